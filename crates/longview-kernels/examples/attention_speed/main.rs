//! Attention's speed as a share of this machine's measured limits.
//!
//! `cargo run --release -p longview-kernels --example attention_speed -- [threads] [head_dim] [group] [kv type]`
//!
//! Prefill: rows of several tokens and a group of heads each against spans of pages, as a share of
//! the f32 multiply-add limit. Decode: one token's groups of heads against far more pages than the
//! caches hold, as a share of the memory bandwidth; the pages lie as in KV blocks of 16 layers of 8
//! heads, and a task reads a span of all heads of a layer.

mod cache;

use std::time::Instant;

use cache::{Cache, Reading};
use longview_kernels::attention::SPAN_TOKENS;
use longview_kernels::page::{KvType, PAGE_TOKENS};
use longview_kernels::{Isa, Pool, limits};

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
        let cache = Cache::new(kv_type, head_dim, DECODE_BYTES);
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
            let rate = cache.bytes() as f64 / seconds / 1e9;
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

fn best_of(rounds: usize, mut round: impl FnMut()) -> f64 {
    (0..rounds)
        .map(|_| {
            let start = Instant::now();
            round();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}
