//! Integer products as 2 × 8 by 8 × 2 matrix products: two rows, two outputs and eight elements an
//! instruction.

use std::arch::aarch64::*;
use std::arch::asm;

use super::int8::Tile;
use super::unpack::Unpacked;
use crate::activations::ROW_RECORD;
use crate::matmul::source::Source;
use crate::packed::layout::{BLOCK, LANES};

/// Pairs of outputs that are computed at a time.
const PAIRS: usize = 4;
/// Pairs of rows of a group.
const ROWS: usize = 2;

/// Adds an unpacked segment, in the order of eights, to the four rows of a group. Registers hold
/// two outputs of one row, then of the next.
///
/// # Safety
/// The processor offers `i8mm`; the tile's pointers are as its fields say, and its group is four.
#[target_feature(enable = "neon,dotprod,i8mm")]
pub(super) unsafe fn tile<S: Source>(tile: &Tile, weights: &Unpacked) {
    // Where the sums stand between segments, with room for outputs that are not there.
    let mut stand = [[0.0f32; LANES]; 2 * ROWS];
    // SAFETY: rows and lanes inside the output, blocks inside the segment.
    unsafe {
        if !tile.fresh {
            for (r, stand) in stand.iter_mut().enumerate().take(tile.rows) {
                let out = tile.out.add(r * tile.out_stride);
                std::ptr::copy_nonoverlapping(out, stand.as_mut_ptr(), tile.lanes);
            }
        }
        for first in (0..LANES / 2).step_by(PAIRS) {
            let mut sums = [[vdupq_n_f32(0.0); PAIRS]; ROWS];
            for (rows, sums) in sums.iter_mut().enumerate() {
                for (p, sums) in sums.iter_mut().enumerate() {
                    let two = |r: usize| vld1_f32(stand[r].as_ptr().add(2 * (first + p)));
                    *sums = vcombine_f32(two(2 * rows), two(2 * rows + 1));
                }
            }
            for b in 0..tile.count {
                let record = tile.x.add(b * 4 * ROW_RECORD);
                block::<S>(weights, b, first, record, &mut sums);
            }
            for (rows, sums) in sums.iter().enumerate() {
                for (p, &sums) in sums.iter().enumerate() {
                    let at = 2 * (first + p);
                    vst1_f32(stand[2 * rows].as_mut_ptr().add(at), vget_low_f32(sums));
                    vst1_f32(
                        stand[2 * rows + 1].as_mut_ptr().add(at),
                        vget_high_f32(sums),
                    );
                }
            }
        }
        for (r, stand) in stand.iter().enumerate().take(tile.rows) {
            let out = tile.out.add(r * tile.out_stride);
            std::ptr::copy_nonoverlapping(stand.as_ptr(), out, tile.lanes);
        }
    }
}

/// Adds block `b` of the pairs from `first` on.
///
/// # Safety
/// `record` is that of four rows; the caller has the features enabled.
#[inline(always)]
unsafe fn block<S: Source>(
    weights: &Unpacked,
    b: usize,
    first: usize,
    record: *const u8,
    sums: &mut [[float32x4_t; PAIRS]; ROWS],
) {
    let layout = S::LAYOUT;
    // SAFETY: the caller's promise.
    unsafe {
        let codes = weights.codes[b].as_ptr().add(16 * first);
        // A number of each of two rows, twice over.
        let field = |i: usize, rows: usize| {
            let two = vld1_f32(record.add(4 * BLOCK + 4 * (4 * i + 2 * rows)).cast());
            let two = vcombine_f32(two, two);
            vzip1q_f32(two, two)
        };
        let int = |i: usize, rows: usize| vreinterpretq_s32_f32(field(i, rows));
        // Numbers of two outputs, twice over.
        let outputs = |from: &[f32; LANES], p: usize| {
            let two = vld1_f32(from.as_ptr().add(2 * (first + p)));
            vcombine_f32(two, two)
        };
        let mut ints = [[vdupq_n_s32(0); PAIRS]; ROWS];
        let mut dots = [[vdupq_n_f32(0.0); PAIRS]; ROWS];
        for eight in 0..BLOCK / 8 {
            let x: [int8x16_t; ROWS] = std::array::from_fn(|rows| {
                let row = |r: usize| vld1_s8(record.add(r * BLOCK + 8 * eight).cast());
                vcombine_s8(row(2 * rows), row(2 * rows + 1))
            });
            for p in 0..PAIRS {
                let code = vld1q_s8(codes.add((eight * LANES / 2 + p) * 16));
                for rows in 0..ROWS {
                    ints[rows][p] = multiply(ints[rows][p], x[rows], code);
                }
            }
            let last = eight + 1 == BLOCK / 8;
            if last || (layout.subs == 2 && eight == 1) {
                let s = usize::from(layout.subs == 2 && last);
                for p in 0..PAIRS {
                    let scale = outputs(&weights.scale[b][s], p);
                    for rows in 0..ROWS {
                        let total = vcvtq_f32_s32(ints[rows][p]);
                        dots[rows][p] = if s == 0 {
                            vmulq_f32(total, scale)
                        } else {
                            vfmaq_f32(dots[rows][p], total, scale)
                        };
                        ints[rows][p] = vdupq_n_s32(0);
                    }
                }
            }
        }
        if layout.has_min() {
            for s in 0..layout.subs {
                for rows in 0..ROWS {
                    let negated = |sum| vmulq_n_f32(vcvtq_f32_s32(sum), -1.0 / 128.0);
                    let sum = match (layout.subs, s) {
                        (1, _) => field(3, rows),
                        (_, 0) => negated(int(2, rows)),
                        (_, _) => negated(vsubq_s32(int(1, rows), int(2, rows))),
                    };
                    for p in 0..PAIRS {
                        let min = outputs(&weights.min[b][s], p);
                        dots[rows][p] = vfmaq_f32(dots[rows][p], min, sum);
                    }
                }
            }
        }
        for rows in 0..ROWS {
            let scale = field(0, rows);
            for p in 0..PAIRS {
                sums[rows][p] = vfmaq_f32(sums[rows][p], dots[rows][p], scale);
            }
        }
    }
}

/// `sums + x · codesᵀ` of 2 × 8 matrices. (The compiler's own function for this instruction is not
/// stable yet.)
///
/// # Safety
/// The caller has `i8mm` enabled.
#[inline(always)]
unsafe fn multiply(mut sums: int32x4_t, x: int8x16_t, codes: int8x16_t) -> int32x4_t {
    // SAFETY: register arithmetic.
    unsafe {
        asm!(
            "smmla {sums:v}.4s, {x:v}.16b, {codes:v}.16b",
            sums = inout(vreg) sums,
            x = in(vreg) x,
            codes = in(vreg) codes,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}
