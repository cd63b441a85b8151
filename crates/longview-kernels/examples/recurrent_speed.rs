//! How fast gated delta layers read: microseconds a token and layer, and what that is of the
//! arithmetic and the memory it takes.
//!
//!     cargo run --release -p longview-kernels --example recurrent_speed

use std::time::Instant;

use longview_kernels::recurrent::{DeltaRows, DeltaScratch, DeltaShape, GatedDelta, HeadOrder};
use longview_kernels::{Isa, Pool};

/// As Qwen3-Next 80B and Qwen3.5 0.8B have them.
const SHAPES: [(&str, usize, usize); 2] = [("qwen3-next", 16, 32), ("qwen3.5-0.8b", 16, 16)];

fn main() {
    let threads = std::env::args().nth(1).and_then(|n| n.parse().ok());
    let pool = Pool::new(threads.unwrap_or(2));
    let isa = Isa::best();
    println!("{isa}, {} threads", pool.threads());
    for (name, key_heads, value_heads) in SHAPES {
        let shape = DeltaShape {
            key_heads,
            value_heads,
            key_dim: 128,
            value_dim: 128,
            taps: 4,
        };
        for rows in [1, 16, 512] {
            let seconds = time(&pool, isa, shape, rows);
            let tokens = rows as f64;
            let operations = 7.0 * (value_heads * 128 * 128) as f64 * tokens;
            // A state is read and written once a pass.
            let bytes = 8.0 * shape.state() as f64;
            println!(
                "{name:13} {rows:4} rows  {:7.2} µs a token and layer  {:6.1} Gop/s  {:5.1} GB/s",
                seconds / tokens * 1e6,
                operations / seconds / 1e9,
                bytes / seconds / 1e9,
            );
        }
    }
}

/// Seconds to read `rows` rows into the states of enough layers that none stays in a cache.
fn time(pool: &Pool, isa: Isa, shape: DeltaShape, rows: usize) -> f64 {
    const LAYERS: usize = 24;
    let wave = |count: usize, low: f32, high: f32| -> Vec<f32> {
        let at = |i: usize| ((i * 7919) % 1000) as f32 / 1000.0;
        (0..count).map(|i| low + (high - low) * at(i)).collect()
    };
    let conv = wave(shape.taps * shape.channels(), -1.0, 1.0);
    let mixed = wave(rows * shape.channels(), -1.0, 1.0);
    let decay = wave(rows * shape.value_heads, 0.9, 1.0);
    let beta = wave(rows * shape.value_heads, 0.0, 1.0);
    let layer = GatedDelta {
        shape,
        order: HeadOrder::Grouped,
        conv: &conv,
    };
    let inputs = DeltaRows {
        mixed: &mixed,
        decay: &decay,
        beta: &beta,
    };
    let mut states = vec![0.0f32; LAYERS * shape.state()];
    let out_len = rows * shape.group() * shape.value_dim;
    let mut best = f64::INFINITY;
    for _ in 0..if rows > 100 { 3 } else { 20 } {
        let begun = Instant::now();
        for states in states.chunks_exact_mut(shape.state()) {
            pool.for_each_chunk(states, shape.head_state(), |head, state, _| {
                let mut out = vec![0.0; out_len];
                let mut scratch = DeltaScratch::default();
                layer.read(isa, head, &inputs, state, &mut out, &mut scratch);
            });
        }
        best = best.min(begun.elapsed().as_secs_f64() / LAYERS as f64);
    }
    best
}
