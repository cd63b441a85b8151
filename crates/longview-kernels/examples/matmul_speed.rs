//! How fast matrix products are here, next to what the machine can do at most.
//!
//! `cargo run --release -p longview-kernels --example matmul_speed -- [THREADS] [FORMAT …]`
//!
//! The shapes are those of a llama of one billion parameters. Each figure is the best of several
//! rounds; products of one row go through copies of the matrix that together exceed the caches.

use std::time::{Duration, Instant};

use longview_kernels::{Activations, Exec, Format, Isa, Numerics, Packed, limits, matmul, needed};

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
/// Weights that products of one row go through.
const BEYOND_CACHE: usize = 512 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let threads = arguments.next().map_or(Ok(2), |text| text.parse())?;
    let formats = arguments
        .map(|name| name.parse())
        .collect::<Result<Vec<Format>, _>>()?;
    let formats = if formats.is_empty() {
        FORMATS.to_vec()
    } else {
        formats
    };
    let exec = Exec::new(threads, Isa::from_environment()?, Numerics::Default);
    let limits = limits::measure(exec.isa, &exec.pool, 1 << 30);
    println!(
        "{} threads, {}: int8 {:.0} GOP/s, f32 {:.0} GFLOP/s, memory {:.1} GB/s",
        threads,
        exec.isa,
        limits.int8_tops * 1e3,
        limits.f32_gflops,
        limits.memory_gb_per_s
    );
    println!("format      n × k          512 rows            1 row");
    for format in formats {
        for (n, k) in SHAPES {
            let one = copy(&exec, format, n, k)?;
            let copies = (BEYOND_CACHE / one.bytes()).max(1);
            let mut weights = vec![one];
            for _ in 1..copies {
                weights.push(copy(&exec, format, n, k)?);
            }
            let many = seconds(&exec, &weights[..1], 512);
            let few = seconds(&exec, &weights, 1);
            let rate = 2.0 * 512.0 * (n * k) as f64 / many / 1e9;
            let most = if format.is_float() {
                limits.f32_gflops
            } else {
                limits.int8_tops * 1e3
            };
            let bytes = weights[0].bytes() as f64 / few / 1e9;
            println!(
                "{format:6} {n:6} × {k:5}  {rate:5.0} GOP/s {:3.0} %  {bytes:5.1} GB/s {:3.0} %",
                100.0 * rate / most,
                100.0 * bytes / limits.memory_gb_per_s
            );
        }
    }
    Ok(())
}

/// A matrix of irregular numbers without infinities.
fn copy(
    exec: &Exec,
    format: Format,
    n: usize,
    k: usize,
) -> Result<Packed, Box<dyn std::error::Error>> {
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
    while start.elapsed() < Duration::from_millis(400) {
        let began = Instant::now();
        // Few rows: a time over several matrices, as one may be too short to measure.
        for w in weights {
            matmul(exec, &act, w, &mut out);
        }
        best = best.min(began.elapsed().as_secs_f64() / weights.len() as f64);
    }
    best
}
