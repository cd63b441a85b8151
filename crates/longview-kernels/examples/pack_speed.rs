//! How fast weights are packed at load: GB/s of the file's bytes, for every format.
//!
//! `cargo run --release -p longview-kernels --example pack_speed -- [THREADS]`

use std::time::Instant;

use longview_kernels::{Format, Packed, Pool};

fn main() {
    let threads = std::env::args()
        .nth(1)
        .map_or(1, |text| text.parse().expect("a number of threads"));
    let pool = Pool::new(threads);
    let (n, k) = (8192, 2048);
    for format in Format::ALL {
        let bytes: Vec<u8> = (0..n * format.bytes_for(k).expect("whole blocks"))
            .map(|i| ((i * 7919) >> 5) as u8)
            .collect();
        let mut best = f64::INFINITY;
        for _ in 0..12 {
            let start = Instant::now();
            let packed = Packed::pack(format, n, k, &bytes, &|row| row, &pool).expect("it fits");
            std::hint::black_box(packed.bytes());
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!("{format:8} {:6.2} GB/s", bytes.len() as f64 / best / 1e9);
    }
}
