//! Rows of f32 → the forms that products read.

#[cfg(target_arch = "x86_64")]
mod avx512;

use super::{ROW_RECORD, TILE_ROWS, tile_record};
use crate::compiled::for_each_isa;
use crate::isa::Isa;
use crate::packed::layout::{BLOCK, Grain, SEGMENT};

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
pub(super) fn quantize(isa: Isa, grain: Grain, x: &[f32], k: usize, lot: usize, out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if matches!(isa, Isa::Avx512 | Isa::Amx) {
        // SAFETY: callers ask only for instruction sets the processor offers.
        let written = unsafe { avx512::quantize_lot(grain, x, k, lot, out) };
        if written {
            return;
        }
    }
    if x.len() < lot * k || !k.is_multiple_of(grain.elements()) {
        out.fill(0);
    }
    for (row, values) in x.chunks_exact(k).enumerate() {
        let place = Place { grain, lot, row };
        match isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: callers ask only for instruction sets the processor offers.
            Isa::Avx512 | Isa::Amx => unsafe { avx512::quantize_row(values, place, out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 | Isa::AvxVnni => unsafe { avx2_row(values, place, out) },
            _ => quantize_row(values, place, out, largest, Codes::of),
        }
    }
}

/// The definition, compiled for wider registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2_row(values: &[f32], place: Place, out: &mut [u8]) {
    quantize_row(values, place, out, largest, Codes::of);
}

/// A row of a lot.
#[derive(Clone, Copy)]
struct Place {
    grain: Grain,
    lot: usize,
    row: usize,
}

/// Writes one row's share of its lot's records; a row's end is filled up with zeros. `largest` makes the
/// bits of the largest magnitude of 32 numbers, `codes` their codes given the inverse of the scale.
#[inline(always)]
fn quantize_row(
    values: &[f32],
    place: Place,
    out: &mut [u8],
    largest: impl Fn(&[f32; BLOCK]) -> u32,
    codes: impl Fn(&[f32; BLOCK], f32) -> Codes,
) {
    let bytes = place.lot * ROW_RECORD;
    match place.grain {
        Grain::Block => {
            let mut records = out.chunks_exact_mut(bytes);
            each_block(values, |_, block| {
                let record = records.next().expect("a record for each block");
                let (scale, inverse) = scale_and_inverse(largest(block), place.grain);
                codes(block, inverse).write(scale, place, record);
            });
        }
        Grain::Segment => {
            let in_tiles = place.lot == TILE_ROWS;
            let bytes_of_all = match in_tiles {
                true => tile_record::BYTES,
                false => SEGMENT * bytes,
            };
            let segments = values.chunks(SEGMENT * BLOCK);
            for (values, record) in segments.zip(out.chunks_mut(bytes_of_all)) {
                let mut most = 0;
                each_block(values, |_, block| most = most.max(largest(block)));
                let (scale, inverse) = scale_and_inverse(most, place.grain);
                each_block(values, |b, block| {
                    let codes = codes(block, inverse);
                    if in_tiles {
                        codes.write_in_tiles(b, place.row, record);
                    } else {
                        codes.write(scale, place, &mut record[b * bytes..][..bytes]);
                    }
                });
                if in_tiles {
                    let at = tile_record::SCALES + 4 * place.row;
                    record[at..at + 4].copy_from_slice(&scale.to_ne_bytes());
                }
            }
        }
    }
}

/// Calls `work(b, block)` for each block of a row, whose end is filled up with zeros.
#[inline(always)]
fn each_block(values: &[f32], mut work: impl FnMut(usize, &[f32; BLOCK])) {
    let (blocks, tail) = values.as_chunks::<BLOCK>();
    for (b, block) in blocks.iter().enumerate() {
        work(b, block);
    }
    if !tail.is_empty() {
        let mut last = [0.0; BLOCK];
        last[..tail.len()].copy_from_slice(tail);
        work(blocks.len(), &last);
    }
}

/// The bits of the largest magnitude: they compare like the magnitudes, with infinities and NaNs on top.
#[inline(always)]
fn largest(block: &[f32; BLOCK]) -> u32 {
    let bits = block.iter().map(|x| x.to_bits() & 0x7fff_ffff);
    bits.fold(0, u32::max)
}

/// The codes of a block.
struct Codes {
    codes: [u8; BLOCK],
    /// Σ codes of each half.
    sums: [i32; 2],
}

impl Codes {
    /// The definition.
    #[inline(always)]
    fn of(block: &[f32; BLOCK], inverse: f32) -> Codes {
        let mut codes = [0; BLOCK];
        for (code, value) in codes.iter_mut().zip(block) {
            // Adding 1.5 · 2²³ rounds to the nearest integer, ties to even, and leaves it in the
            // low bits.
            *code = (value * inverse + 12_582_912.0).to_bits() as u8;
        }
        let sum = |codes: &[u8]| codes.iter().map(|&code| i32::from(code as i8)).sum();
        let sums = [sum(&codes[..BLOCK / 2]), sum(&codes[BLOCK / 2..])];
        Codes { codes, sums }
    }

    #[inline(always)]
    fn write(&self, scale: f32, Place { lot, row, .. }: Place, record: &mut [u8]) {
        record[row * BLOCK..][..BLOCK].copy_from_slice(&self.codes);
        let mut put = |field: usize, word: [u8; 4]| {
            record[lot * BLOCK + 4 * (field * lot + row)..][..4].copy_from_slice(&word);
        };
        let sum = self.sums[0] + self.sums[1];
        put(0, scale.to_ne_bytes());
        put(1, (-128 * sum).to_ne_bytes());
        put(2, (-128 * self.sums[0]).to_ne_bytes());
        put(3, (sum as f32).to_ne_bytes());
    }

    /// Writes block `b` of a segment of row `row` of a tile.
    #[inline(always)]
    fn write_in_tiles(&self, b: usize, row: usize, record: &mut [u8]) {
        use tile_record::{BLOCKS, BLOCKS_ROW, HALVES, HALVES_ROW, QUARTER, QUARTER_BYTES};
        let at = b / 2 * QUARTER_BYTES + row * QUARTER + b % 2 * BLOCK;
        record[at..][..BLOCK].copy_from_slice(&self.codes);
        let mut put = |at: usize, sum: i32| {
            record[at..at + 2].copy_from_slice(&(sum as i16).to_ne_bytes());
        };
        put(HALVES + row * HALVES_ROW + 4 * b, self.sums[0]);
        put(HALVES + row * HALVES_ROW + 4 * b + 2, self.sums[1]);
        put(
            BLOCKS + row * BLOCKS_ROW + 2 * b,
            self.sums[0] + self.sums[1],
        );
    }
}

/// The scale of numbers whose largest magnitude has these bits, and what brings them to codes.
#[inline(always)]
fn scale_and_inverse(largest: u32, grain: Grain) -> (f32, f32) {
    let largest = f32::from_bits(largest);
    if largest.is_nan() || largest.is_infinite() {
        // Spoils the row, whatever the codes.
        (f32::NAN, 0.0)
    } else if largest < f32::from_bits(7 << 23) {
        (0.0, 0.0)
    } else {
        let inverse = 127.0 / largest;
        let scale = match grain {
            Grain::Block => to_eleven_bits(largest / 127.0),
            // To the last bit what other engines take.
            Grain::Segment => 1.0 / inverse,
        };
        (scale, inverse)
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
