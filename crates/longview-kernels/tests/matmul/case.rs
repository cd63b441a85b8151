//! A product whose result is known: weights, activations, and plain arithmetic in f64.

use half::{bf16, f16};
use longview_kernels::format::dequantize;
use longview_kernels::{Activations, Exec, Format, Isa, Need, Numerics, Packed, matmul, needed};

/// A small generator of numbers that only have to look irregular.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    /// −1 to 1.
    pub(super) fn float(&mut self) -> f32 {
        (self.next() % 20001) as f32 / 10000.0 - 1.0
    }

    pub(super) fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }

    /// Any codes; scales that are ordinary numbers.
    pub(super) fn weights(&mut self, format: Format, elements: usize) -> Vec<u8> {
        if format.is_float() {
            return (0..elements)
                .flat_map(|_| match (format, self.float()) {
                    (Format::F16, x) => f16::from_f32(x).to_le_bytes().to_vec(),
                    (Format::BF16, x) => bf16::from_f32(x).to_le_bytes().to_vec(),
                    (_, x) => x.to_le_bytes().to_vec(),
                })
                .collect();
        }
        let len = format.bytes_for(elements).unwrap();
        let mut bytes: Vec<u8> = (0..len).map(|_| self.next() as u8).collect();
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            for &at in halves(format) {
                block[at..at + 2].copy_from_slice(&f16::from_f32(self.float()).to_le_bytes());
            }
        }
        bytes
    }
}

/// Where a block has f16 numbers.
pub(super) fn halves(format: Format) -> &'static [usize] {
    match format {
        Format::Q4_1 | Format::Q5_1 | Format::Q4_K | Format::Q5_K => &[0, 2],
        Format::Q2_K => &[80, 82],
        Format::Q3_K => &[108],
        Format::Q6_K => &[208],
        _ => &[0],
    }
}

/// The formats of whole numbers.
pub(super) fn codes() -> Vec<Format> {
    let all = Format::ALL.into_iter();
    all.filter(|format| !format.is_float()).collect()
}

/// Weights `[n][k]`, as numbers and packed.
pub(super) struct Case {
    pub(super) format: Format,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) weights: Vec<f32>,
    /// Those that whole numbers are summed of.
    summed: Vec<f32>,
    pub(super) packed: Packed,
}

impl Case {
    pub(super) fn new(format: Format, n: usize, k: usize, seed: u64, exec: &Exec) -> Case {
        Case::of(format, n, k, &Random(seed).weights(format, n * k), exec)
    }

    pub(super) fn of(format: Format, n: usize, k: usize, bytes: &[u8], exec: &Exec) -> Case {
        let packed = Packed::pack(format, n, k, bytes, &|row| row, &exec.pool).unwrap();
        let weights = |bytes: &[u8]| {
            let mut weights = vec![0.0; n * k];
            dequantize(format, bytes, &mut weights);
            weights
        };
        let summed = match format {
            Format::Q4_0 => weights(&round_scales(k, bytes)),
            _ => weights(bytes),
        };
        Case {
            format,
            n,
            k,
            weights: weights(bytes),
            summed,
            packed,
        }
    }

    pub(super) fn product(&self, exec: &Exec, x: &[f32]) -> Vec<f32> {
        let rows = x.len() / self.k;
        let mut act = Activations::new();
        act.set(exec, x, rows, self.k, needed(exec.numerics, self.format));
        let mut out = vec![f32::NAN; rows * self.n];
        matmul(exec, &act, &self.packed, &mut out);
        out
    }

    /// Asserts that `out` is x · Wᵀ up to the rounding of f32 sums.
    pub(super) fn check(&self, exec: &Exec, x: &[f32], out: &[f32]) {
        let x = match needed(exec.numerics, self.format) {
            Need::BLOCKS => self.in_codes(x, 32),
            Need::WIDE_BLOCKS => self.in_codes(x, 256),
            _ => x.to_vec(),
        };
        let weights = match exec.isa {
            Isa::Scalar | Isa::Avx512 | Isa::Amx if exec.numerics != Numerics::F32 => &self.summed,
            _ => &self.weights,
        };
        for (i, out) in out.iter().enumerate() {
            let w = &weights[i % self.n * self.k..][..self.k];
            let x = &x[i / self.n * self.k..][..self.k];
            let terms = w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
            let (sum, size) = terms.fold((0.0, 1e-30), |(s, m), t| (s + t, m + t.abs()));
            let wrong = (f64::from(*out) - sum).abs() / size;
            assert!(
                wrong < 3e-6,
                "{} {} {} {}x{} output {i}: {out} instead of {sum}",
                exec.isa,
                exec.numerics,
                self.format,
                self.n,
                self.k,
            );
        }
    }

    /// What rows of activations in int8 blocks of so many elements stand for.
    fn in_codes(&self, x: &[f32], block: usize) -> Vec<f32> {
        let rows = x.chunks_exact(self.k);
        let blocks = rows.flat_map(|row| row.chunks(block));
        blocks.flat_map(|x| in_codes(x, block == 32)).collect()
    }
}

/// What an int8 block of activations stands for.
fn in_codes(x: &[f32], half: bool) -> impl Iterator<Item = f32> {
    let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    let scale = match half {
        true => f16::from_f32(largest / 127.0).to_f32(),
        false => largest / 127.0,
    };
    x.iter()
        .map(move |x| (x * inverse).round_ties_even() * scale)
}

/// `bytes` of Q4_0, rows of `k` numbers, with scales as sums of whole numbers take them: multiples of 2⁻¹¹ of
/// the power of two in the largest of eight.
fn round_scales(k: usize, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for segment in bytes
        .chunks_mut(k / 32 * 18)
        .flat_map(|row| row.chunks_mut(8 * 18))
    {
        let scale = |block: &[u8]| f16::from_le_bytes([block[0], block[1]]).to_f64();
        let sizes = || segment.chunks(18).map(|block| scale(block).abs());
        let largest = sizes().fold(0.0, f64::max);
        if largest == 0.0 || !sizes().all(f64::is_finite) {
            continue;
        }
        let unit = largest.log2().floor().exp2() / 2048.0;
        for block in segment.chunks_mut(18) {
            let rounded = (scale(block) / unit).round_ties_even() * unit;
            let half = f16::from_f64(rounded);
            assert_eq!(half.to_f64(), rounded, "no more bits than before");
            block[..2].copy_from_slice(&half.to_le_bytes());
        }
    }
    bytes
}

pub(super) fn execs(threads: usize) -> impl Iterator<Item = Exec> {
    Isa::available().into_iter().flat_map(move |isa| {
        [Numerics::Default, Numerics::F32].map(|numerics| Exec::new(threads, isa, numerics))
    })
}
