//! Rows of f32 → the forms that products read.

use super::ROW_RECORD;
use crate::compiled::for_each_isa;
use crate::isa::Isa;
use crate::packed::layout::BLOCK;

for_each_isa!(pub(super) interleave, interleave_rows(x: &[f32], k: usize, group: usize, out: &mut [f32]));

/// `[rows][k]` → `[k][group]`; rows that are not there are zeros.
#[inline(always)]
fn interleave_rows(x: &[f32], k: usize, group: usize, out: &mut [f32]) {
    if x.len() == 4 * k && group == 4 {
        let (a, rest) = x.split_at(k);
        let (b, rest) = rest.split_at(k);
        let (c, d) = rest.split_at(k);
        for ((((out, a), b), c), d) in out.chunks_exact_mut(4).zip(a).zip(b).zip(c).zip(d) {
            out.copy_from_slice(&[*a, *b, *c, *d]);
        }
        return;
    }
    out.fill(0.0);
    for (row, values) in x.chunks_exact(k).enumerate() {
        for (i, value) in values.iter().enumerate() {
            out[i * group + row] = *value;
        }
    }
}

/// Writes the records of a lot of rows, `x` being those that are there; the rest are zeros.
pub(super) fn quantize(isa: Isa, x: &[f32], k: usize, lot: usize, out: &mut [u8]) {
    if x.len() < lot * k {
        out.fill(0);
    }
    for (row, values) in x.chunks_exact(k).enumerate() {
        let place = Place { lot, row };
        match isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: callers ask only for instruction sets the processor offers.
            Isa::Avx512 | Isa::Amx => unsafe { avx512::quantize_row(values, place, out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 | Isa::AvxVnni => unsafe { avx2_row(values, place, out) },
            _ => quantize_row(values, place, out, Block::quantize),
        }
    }
}

/// The definition, compiled for wider registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2_row(values: &[f32], place: Place, out: &mut [u8]) {
    quantize_row(values, place, out, Block::quantize);
}

/// A row of a lot.
#[derive(Clone, Copy)]
struct Place {
    lot: usize,
    row: usize,
}

/// Writes one row's share of its group's records; a row's end is filled up with zeros.
#[inline(always)]
fn quantize_row(
    values: &[f32],
    place: Place,
    out: &mut [u8],
    quantize: impl Fn(&[f32; BLOCK]) -> Block,
) {
    let (blocks, tail) = values.as_chunks::<BLOCK>();
    let mut records = out.chunks_exact_mut(place.lot * ROW_RECORD);
    for (block, record) in blocks.iter().zip(&mut records) {
        quantize(block).write(place, record);
    }
    if let (false, Some(record)) = (tail.is_empty(), records.next()) {
        let mut block = [0.0; BLOCK];
        block[..tail.len()].copy_from_slice(tail);
        quantize(&block).write(place, record);
    }
}

/// A block in int8.
struct Block {
    codes: [u8; BLOCK],
    scale: f32,
    /// Σ codes of each half.
    sums: [i32; 2],
}

impl Block {
    /// The definition.
    #[inline(always)]
    fn quantize(block: &[f32; BLOCK]) -> Block {
        // Magnitudes compare like their bit patterns, with infinities and NaNs on top.
        let largest = block
            .iter()
            .fold(0, |largest, x| largest.max(x.to_bits() & 0x7fff_ffff));
        let (scale, inverse) = scale_and_inverse(largest);
        let mut codes = [0; BLOCK];
        for (code, value) in codes.iter_mut().zip(block) {
            // Adding 1.5 · 2²³ rounds to the nearest integer, ties to even, and leaves it in the
            // low bits.
            *code = (value * inverse + 12_582_912.0).to_bits() as u8;
        }
        let sum = |codes: &[u8]| codes.iter().map(|&code| i32::from(code as i8)).sum();
        Block {
            codes,
            scale,
            sums: [sum(&codes[..BLOCK / 2]), sum(&codes[BLOCK / 2..])],
        }
    }

    #[inline(always)]
    fn write(&self, Place { lot, row }: Place, record: &mut [u8]) {
        record[row * BLOCK..][..BLOCK].copy_from_slice(&self.codes);
        let mut put = |field: usize, word: [u8; 4]| {
            record[lot * BLOCK + 4 * (field * lot + row)..][..4].copy_from_slice(&word);
        };
        let sum = self.sums[0] + self.sums[1];
        put(0, self.scale.to_ne_bytes());
        put(1, (-128 * sum).to_ne_bytes());
        put(2, (-128 * self.sums[0]).to_ne_bytes());
        put(3, (sum as f32).to_ne_bytes());
    }
}

/// The scale of a block whose largest magnitude has these bits, and what brings its values to codes.
#[inline(always)]
fn scale_and_inverse(largest: u32) -> (f32, f32) {
    let largest = f32::from_bits(largest);
    if largest.is_nan() || largest.is_infinite() {
        // Spoils the row, whatever the codes.
        (f32::NAN, 0.0)
    } else if largest < f32::from_bits(7 << 23) {
        (0.0, 0.0)
    } else {
        (to_eleven_bits(largest / 127.0), 127.0 / largest)
    }
}

/// The nearest number with the eleven significant bits of an f16, ties to even; its exponent may be
/// any. Block formats hold their scales so, and so do other engines where they round activations:
/// logits that agree with theirs differ by this rounding more than by all others together.
#[inline(always)]
fn to_eleven_bits(scale: f32) -> f32 {
    const DROPPED: u32 = 13;
    let bits = scale.to_bits();
    let even = (bits >> DROPPED) & 1;
    f32::from_bits((bits + (1 << (DROPPED - 1)) - 1 + even) >> DROPPED << DROPPED)
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{BLOCK, Block, Place, scale_and_inverse};

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub(super) fn quantize_row(values: &[f32], place: Place, out: &mut [u8]) {
        // SAFETY: this function has the features.
        super::quantize_row(values, place, out, |block| unsafe { quantize(block) });
    }

    /// # Safety
    /// The caller has the features of `quantize_row` enabled.
    #[inline(always)]
    unsafe fn quantize(block: &[f32; BLOCK]) -> Block {
        // SAFETY: loads of the block's two halves, a store of its codes.
        unsafe {
            let low = _mm512_loadu_ps(block.as_ptr());
            let high = _mm512_loadu_ps(block.as_ptr().add(16));
            let magnitude =
                |x| _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fff_ffff));
            let largest = _mm512_max_epu32(magnitude(low), magnitude(high));
            let (scale, inverse) = scale_and_inverse(_mm512_reduce_max_epu32(largest));
            let code = |x| {
                let scaled = _mm512_mul_ps(x, _mm512_set1_ps(inverse));
                _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(scaled))
            };
            let codes = _mm256_set_m128i(code(high), code(low));
            // Sums of absolute differences add bytes without sign: codes offset by 128.
            let offset = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
            let sums = _mm256_sad_epu8(offset, _mm256_setzero_si256());
            let sums = _mm256_add_epi64(sums, _mm256_unpackhi_epi64(sums, sums));
            let sum = |half: __m128i| _mm_cvtsi128_si32(half) - 128 * 16;
            let sums = [
                sum(_mm256_castsi256_si128(sums)),
                sum(_mm256_extracti128_si256::<1>(sums)),
            ];
            let mut bytes = [0; BLOCK];
            _mm256_storeu_si256(bytes.as_mut_ptr().cast(), codes);
            Block {
                codes: bytes,
                scale,
                sums,
            }
        }
    }
}
