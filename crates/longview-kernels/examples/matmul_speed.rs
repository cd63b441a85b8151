//! How fast matrix products are here, next to what the machine can do at most.
//!
//! `cargo run --release -p longview-kernels --example matmul_speed -- [THREADS] [rows=1,512] [n=8192] [k=2048] [cached] [FORMAT …]`
//!
//! The shapes are those of a llama of one billion parameters. A product of few rows goes through
//! copies of the matrix that together exceed the caches, so its weights come from memory, unless `cached`
//! is said: then one copy stays where it fits (n=512). Each figure is the best of several rounds. The
//! share is the time that the bytes or the operations need at least, whichever is longer, over the time
//! taken.

use std::time::{Duration, Instant};

use longview_kernels::limits::{self, Limits};
use longview_kernels::{Activations, Exec, Format, Isa, Numerics, Packed, matmul, needed};

/// Outputs and inputs.
const SHAPES: [(usize, usize); 5] = [
    (2048, 2048),
    (8192, 2048),
    (2048, 8192),
    (512, 2048),
    (128_256, 2048),
];
const FORMATS: [Format; 5] = [
    Format::Q4_0,
    Format::Q8_0,
    Format::Q4_K,
    Format::Q6_K,
    Format::F16,
];
/// Weights that products of few rows go through.
const BEYOND_CACHE: usize = 512 << 20;
/// Rows from which on weights may come from a cache: the arithmetic takes longer anyway.
const MANY_ROWS: usize = 128;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse()?;
    let exec = Exec::new(
        arguments.threads,
        Isa::from_environment()?,
        Numerics::Default,
    );
    let limits = limits::measure(exec.isa, &exec.pool, 1 << 30);
    println!(
        "{} threads, {}: int8 {:.0} GOP/s, f32 {:.0} GFLOP/s, memory {:.1} GB/s",
        arguments.threads,
        exec.isa,
        limits.int8_tops * 1e3,
        limits.f32_gflops,
        limits.memory_gb_per_s
    );
    println!("format      n × k     rows        µs     GB/s   GOP/s  share");
    for &format in &arguments.formats {
        for &(n, k) in &arguments.shapes {
            let one = copy(&exec, format, n, k)?;
            let copies = match arguments.cached {
                true => 1,
                false => (BEYOND_CACHE / one.bytes()).max(1),
            };
            let mut weights = vec![one];
            for _ in 1..copies {
                weights.push(copy(&exec, format, n, k)?);
            }
            for &rows in &arguments.rows {
                let weights = if rows < MANY_ROWS {
                    &weights
                } else {
                    &weights[..1]
                };
                let line = measure(&exec, weights, rows, &limits);
                println!("{format:6} {n:6} × {k:5}  {rows:4}  {line}");
            }
        }
    }
    Ok(())
}

struct Arguments {
    threads: usize,
    rows: Vec<usize>,
    shapes: Vec<(usize, usize)>,
    formats: Vec<Format>,
    cached: bool,
}

impl Arguments {
    fn parse() -> Result<Arguments, Failure> {
        let mut parsed = Arguments {
            threads: 2,
            rows: vec![1, 512],
            shapes: SHAPES.to_vec(),
            formats: Vec::new(),
            cached: false,
        };
        for text in std::env::args().skip(1) {
            if let Some(rows) = text.strip_prefix("rows=") {
                parsed.rows = rows.split(',').map(str::parse).collect::<Result<_, _>>()?;
            } else if let Some(n) = text.strip_prefix("n=") {
                let n: usize = n.parse()?;
                parsed.shapes.retain(|shape| shape.0 == n);
            } else if let Some(k) = text.strip_prefix("k=") {
                let k: usize = k.parse()?;
                parsed.shapes.retain(|shape| shape.1 == k);
            } else if text == "cached" {
                parsed.cached = true;
            } else if let Ok(threads) = text.parse() {
                parsed.threads = threads;
            } else {
                parsed.formats.push(text.parse()?);
            }
        }
        if parsed.formats.is_empty() {
            parsed.formats = FORMATS.to_vec();
        }
        Ok(parsed)
    }
}

/// Time, rates and share of the limit of one product of `rows` rows.
fn measure(exec: &Exec, weights: &[Packed], rows: usize, limits: &Limits) -> String {
    let (n, k) = (weights[0].n(), weights[0].k());
    let time = seconds(exec, weights, rows);
    let bytes = weights[0].bytes() as f64;
    let ops = 2.0 * rows as f64 * (n * k) as f64;
    let peak = if weights[0].format().is_float() {
        limits.f32_gflops * 1e9
    } else {
        limits.int8_tops * 1e12
    };
    let mut least = ops / peak;
    if rows < MANY_ROWS {
        least = least.max(bytes / (limits.memory_gb_per_s * 1e9));
    }
    format!(
        "{:9.1}  {:6.1}  {:6.0}  {:4.0} %",
        time * 1e6,
        bytes / time / 1e9,
        ops / time / 1e9,
        100.0 * least / time
    )
}

/// A matrix of irregular numbers without infinities.
fn copy(exec: &Exec, format: Format, n: usize, k: usize) -> Result<Packed, Failure> {
    let row = format.bytes_for(k).ok_or("rows are whole blocks")?;
    let bytes: Vec<u8> = (0..n * row)
        .map(|i| (i as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3] & 0xbf)
        .collect();
    Ok(Packed::pack(format, n, k, &bytes, &|row| row, &exec.pool)?)
}

/// The best time of one product of `rows` rows.
fn seconds(exec: &Exec, weights: &[Packed], rows: usize) -> f64 {
    let (n, k) = (weights[0].n(), weights[0].k());
    let x: Vec<f32> = (0..rows * k).map(|i| (i % 61) as f32 * 0.1 - 3.0).collect();
    let mut act = Activations::new();
    act.set(
        exec,
        &x,
        rows,
        k,
        needed(exec.numerics, weights[0].format()),
    );
    let mut out = vec![0.0; rows * n];
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    while start.elapsed() < Duration::from_millis(300) {
        let began = Instant::now();
        // Few rows: a time over several matrices, as one may be too short to measure.
        for w in weights {
            matmul(exec, &act, w, &mut out);
        }
        best = best.min(began.elapsed().as_secs_f64() / weights.len() as f64);
    }
    best
}
