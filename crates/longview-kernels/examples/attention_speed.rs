//! Attention's speed as a share of this machine's measured limits.
//!
//! `cargo run --release -p longview-kernels --example attention_speed -- [threads] [head_dim] [group] [kv type]`
//!
//! Prefill: rows of several tokens and a group of heads each against spans of pages, as a share of
//! the f32 multiply-add limit. Decode: one token's groups of heads against far more pages than the
//! caches hold, as a share of the memory bandwidth; the pages lie as in KV blocks of 16 layers of 8
//! heads, and a task reads a span of all heads of a layer.

use std::time::Instant;

use longview_kernels::attention::{
    AttentionScratch, PageRef, Partials, QueryRows, SPAN_TOKENS, attend_span,
};
use longview_kernels::page::{
    KvType, PAGE_TOKENS, PageGeometry, StridedRows, pack_page, write_tokens,
};
use longview_kernels::{AlignedBytes, Isa, Pool, limits};

const SPAN_PAGES: usize = SPAN_TOKENS / PAGE_TOKENS;

/// Bytes of pages that decode reads: more than any cache.
const DECODE_BYTES: usize = 1 << 30;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: usize| arguments.next().map_or(Ok(default), |a| a.parse());
    let (threads, head_dim, group) = (number(2)?, number(64)?, number(4)?);
    let only = arguments.next();
    let isa = Isa::from_environment()?;
    let pool = Pool::new(threads);
    let limits = limits::measure(isa, &pool, DECODE_BYTES);
    println!("{isa}, {threads} threads, {limits:.1?}");

    let asked_for = |kv_type: &KvType| only.as_ref().is_none_or(|o| *o == kv_type.to_string());
    let forms = KvType::ALL.into_iter().chain(KvType::WHOLE);
    for kv_type in forms.filter(asked_for) {
        let geom = PageGeometry {
            head_dim,
            v_dim: head_dim,
            k_type: kv_type,
            v_type: kv_type,
        };
        let cache = Cache::new(geom);
        println!("{kv_type} keys and values");
        for rows in [1, 2, 4, 6, 8, 16, 32, 128, 512] {
            let times = (4096 / rows).clamp(16, 64);
            let seconds = best_of(5, || cache.attend(isa, &pool, rows, Reading::Again(times)));
            let multiply_adds = pool.threads() * times * SPAN_TOKENS * rows * 2 * head_dim;
            let rate = multiply_adds as f64 * 2.0 / seconds / 1e9;
            let share = rate / limits.f32_gflops;
            println!("cached, {rows:3} rows: {rate:6.1} GFLOP/s, {share:.2} of the f32 limit");
        }
        for rows in [1, group, 2 * group] {
            let seconds = best_of(5, || cache.attend(isa, &pool, rows, Reading::Once));
            let numbers = cache.pages() * PAGE_TOKENS * 2 * head_dim;
            let rate = cache.bytes.len() as f64 / seconds / 1e9;
            let compute = (numbers * rows * 2) as f64 / seconds / 1e9;
            let tokens = (cache.pages() * PAGE_TOKENS) as f64 / seconds / 1e6;
            println!(
                "decode, {rows:3} rows: {tokens:6.1} M tokens/s a head, {rate:6.2} GB/s, {:.2} of the \
                 memory limit, {:.2} of the f32 limit",
                rate / limits.memory_gb_per_s,
                compute / limits.f32_gflops
            );
        }
    }
    Ok(())
}

/// Layers and KV heads in a block.
const LAYERS: usize = 16;
const HEADS: usize = 8;

/// Whether every span is read once, all heads of it, or each thread reads one head's span so many
/// times.
#[derive(Clone, Copy, PartialEq)]
enum Reading {
    Once,
    Again(usize),
}

/// Blocks of pages, each page's keys before its values.
struct Cache {
    geom: PageGeometry,
    bytes: AlignedBytes,
}

impl Cache {
    fn new(geom: PageGeometry) -> Cache {
        let page = geom.k_bytes() + geom.v_bytes();
        let span = SPAN_PAGES * LAYERS * HEADS * page;
        let mut bytes = AlignedBytes::zeroed(DECODE_BYTES / span * span);
        let data: Vec<f32> = (0..PAGE_TOKENS * geom.head_dim)
            .map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0)
            .collect();
        let rows = StridedRows {
            data: &data,
            stride: geom.head_dim,
        };
        let mut first = vec![0; page];
        let (k, v) = first.split_at_mut(geom.k_bytes());
        if geom.is_whole() {
            let from = PageGeometry {
                k_type: KvType::F32,
                v_type: KvType::F32,
                ..geom
            };
            let (mut from_k, mut from_v) = (vec![0; from.k_bytes()], vec![0; from.v_bytes()]);
            let best = Isa::best();
            write_tokens(
                best,
                &from,
                &mut from_k,
                &mut from_v,
                0,
                PAGE_TOKENS,
                rows,
                rows,
            );
            pack_page(&from, (&from_k, &from_v), &geom, (k, v));
        } else {
            write_tokens(Isa::best(), &geom, k, v, 0, PAGE_TOKENS, rows, rows);
        }
        for page in bytes.chunks_exact_mut(page) {
            page.copy_from_slice(&first);
        }
        Cache { geom, bytes }
    }

    fn pages(&self) -> usize {
        self.bytes.len() / (self.geom.k_bytes() + self.geom.v_bytes())
    }

    fn page(&self, place: usize) -> PageRef<'_> {
        let bytes = self.geom.k_bytes() + self.geom.v_bytes();
        let (k, v) = self.bytes[place * bytes..][..bytes].split_at(self.geom.k_bytes());
        PageRef { k, v }
    }

    fn attend(&self, isa: Isa, pool: &Pool, rows: usize, reading: Reading) {
        let geom = &self.geom;
        let spans = self.pages() / (LAYERS * HEADS * SPAN_PAGES);
        let (tasks, heads, times) = match reading {
            Reading::Once => (spans * LAYERS, HEADS, 1),
            Reading::Again(times) => (pool.threads(), 1, times),
        };
        let q: Vec<f32> = (0..heads * rows * geom.head_dim)
            .map(|i| (i % 13) as f32 * 0.01)
            .collect();
        let visible = vec![0..SPAN_TOKENS as u32; rows];
        let workers: Vec<_> = (0..pool.threads())
            .map(|_| {
                let partials = Partials::new(heads * rows, geom.v_dim);
                std::sync::Mutex::new((AttentionScratch::new(), partials))
            })
            .collect();
        pool.run(tasks, &|task, worker| {
            let mut worker = workers[worker].lock().unwrap_or_else(|e| e.into_inner());
            let (scratch, partials) = &mut *worker;
            let (layer, span) = (task / spans, task % spans);
            let pages: Vec<_> = (0..SPAN_PAGES * heads)
                .map(|i| match reading {
                    Reading::Once => {
                        let block = span * SPAN_PAGES + i / heads;
                        self.page((block * LAYERS + layer) * HEADS + i % heads)
                    }
                    // One after another: pages that lie as far apart as in blocks would all fall
                    // into the same sets of a cache.
                    Reading::Again(_) => self.page(task * SPAN_PAGES + i),
                })
                .collect();
            let queries = QueryRows {
                heads,
                q: &q,
                visible: &visible,
                softcap: 0.0,
            };
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
