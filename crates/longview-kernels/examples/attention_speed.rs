//! Attention's speed as a share of this machine's measured limits.
//!
//! `cargo run --release -p longview-kernels --example attention_speed -- [threads] [head_dim] [group]`
//!
//! Prefill: rows of several tokens and a group of heads each against spans of f16 pages, as a share
//! of the f32 multiply-add limit. Decode: one token's group of heads against far more pages than
//! the caches hold, as a share of the memory bandwidth; the pages of a head lie as far apart as in
//! a KV block of 16 layers of 8 heads.

use std::ops::Range;
use std::time::Instant;

use longview_kernels::attention::{
    AttentionScratch, PageRef, Partials, QueryRows, SPAN_TOKENS, attend_span,
};
use longview_kernels::page::{KvType, PAGE_TOKENS, PageGeometry, StridedRows, write_tokens};
use longview_kernels::{AlignedBytes, Isa, Pool, limits};

const SPAN_PAGES: usize = SPAN_TOKENS / PAGE_TOKENS;

/// Bytes of pages that decode reads: more than any cache.
const DECODE_BYTES: usize = 1 << 30;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: usize| arguments.next().map_or(Ok(default), |a| a.parse());
    let (threads, head_dim, group) = (number(2)?, number(64)?, number(4)?);
    let isa = Isa::from_environment()?;
    let pool = Pool::new(threads);
    let limits = limits::measure(isa, &pool, DECODE_BYTES);
    println!("{isa}, {threads} threads, {limits:.1?}");

    let geom = PageGeometry {
        head_dim,
        v_dim: head_dim,
        k_type: KvType::F16,
        v_type: KvType::F16,
    };
    let blocks = DECODE_BYTES / (geom.k_bytes() + geom.v_bytes()) / BLOCK_PAGES;
    let spans = blocks * BLOCK_PAGES / SPAN_PAGES;
    let cache = Cache::new(geom, spans);

    for rows in [1, 2, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 512] {
        let spans = (4096 / rows).clamp(16, 64);
        let seconds = best_of(5, || cache.attend(isa, &pool, 0..spans, rows, Span::Reused));
        let multiply_adds = pool.threads() * spans * SPAN_TOKENS * rows * 2 * head_dim;
        let rate = multiply_adds as f64 * 2.0 / seconds / 1e9;
        let share = rate / limits.f32_gflops;
        println!("cached, {rows:3} rows: {rate:6.1} GFLOP/s, {share:.2} of the f32 limit");
    }
    for rows in [1, group, 2 * group] {
        let seconds = best_of(3, || {
            cache.attend(isa, &pool, 0..spans, rows, Span::Streamed)
        });
        let rate = cache.bytes.len() as f64 / seconds / 1e9;
        let share = rate / limits.memory_gb_per_s;
        // Two bytes a number, a multiplication and an addition a number and row.
        let compute = rate * rows as f64 / limits.f32_gflops;
        println!(
            "decode, {rows:3} rows: {rate:6.2} GB/s, {share:.2} of the memory limit, \
             {compute:.2} of the f32 limit"
        );
    }
    Ok(())
}

/// Pages in a KV block: those of one layer and head are so many pages apart.
const BLOCK_PAGES: usize = 128;

/// Whether every span is read once, or each thread reads one span again and again.
#[derive(Clone, Copy, PartialEq)]
enum Span {
    Streamed,
    Reused,
}

/// Spans of pages, each page's keys before its values.
struct Cache {
    geom: PageGeometry,
    bytes: AlignedBytes,
}

impl Cache {
    fn new(geom: PageGeometry, spans: usize) -> Cache {
        let page = geom.k_bytes() + geom.v_bytes();
        let mut bytes = AlignedBytes::zeroed(spans * SPAN_PAGES * page);
        let data: Vec<f32> = (0..PAGE_TOKENS * geom.head_dim)
            .map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0)
            .collect();
        let rows = StridedRows {
            data: &data,
            stride: geom.head_dim,
        };
        for page in bytes.chunks_exact_mut(page) {
            let (k, v) = page.split_at_mut(geom.k_bytes());
            write_tokens(Isa::best(), &geom, k, v, 0, PAGE_TOKENS, rows, rows);
        }
        Cache { geom, bytes }
    }

    /// Page `index` of all: the blocks' first pages, then their second ones, and so on.
    fn page(&self, index: usize) -> PageRef<'_> {
        let bytes = self.geom.k_bytes() + self.geom.v_bytes();
        let blocks = self.bytes.len() / bytes / BLOCK_PAGES;
        let place = index % blocks * BLOCK_PAGES + index / blocks;
        let (k, v) = self.bytes[place * bytes..][..bytes].split_at(self.geom.k_bytes());
        PageRef { k, v }
    }

    fn attend(&self, isa: Isa, pool: &Pool, spans: Range<usize>, rows: usize, span: Span) {
        let geom = &self.geom;
        let tasks = match span {
            Span::Streamed => spans.len(),
            Span::Reused => pool.threads(),
        };
        let q: Vec<f32> = (0..rows * geom.head_dim)
            .map(|i| (i % 13) as f32 * 0.01)
            .collect();
        let visible = vec![0..SPAN_TOKENS as u32; rows];
        let workers: Vec<_> = (0..pool.threads())
            .map(|_| {
                std::sync::Mutex::new((AttentionScratch::new(), Partials::new(rows, geom.v_dim)))
            })
            .collect();
        pool.run(tasks, &|task, worker| {
            let mut worker = workers[worker].lock().unwrap_or_else(|e| e.into_inner());
            let (scratch, partials) = &mut *worker;
            let pages: Vec<_> = (0..SPAN_PAGES)
                .map(|page| self.page(task * SPAN_PAGES + page))
                .collect();
            let queries = QueryRows {
                q: &q,
                visible: &visible,
                softcap: 0.0,
            };
            let times = if span == Span::Reused { spans.len() } else { 1 };
            for _ in 0..times {
                attend_span(isa, geom, &pages, &queries, scratch, partials);
            }
            std::hint::black_box(partials.sum());
        });
    }
}

fn best_of(rounds: usize, mut round: impl FnMut()) -> f64 {
    (0..rounds)
        .map(|_| {
            let start = Instant::now();
            round();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}
