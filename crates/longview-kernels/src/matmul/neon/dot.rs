//! Integer products as dot products of four elements, with and without an instruction for them.

use std::arch::aarch64::*;
use std::arch::asm;

use super::int8::Tile;
use super::unpack::Weights;
use super::{QUARTERS, WIDTH, load_lanes, store_lanes};
use crate::activations::ROW_RECORD;
use crate::matmul::source::Source;
use crate::packed::layout::BLOCK;

/// A way of adding dot products of four elements to 32-bit sums.
pub(super) trait Product {
    /// Sums of four outputs under way.
    type Sums: Copy;

    /// # Safety
    /// The caller has the features of the tile enabled; so for all methods.
    unsafe fn zero() -> Self::Sums;

    /// Adds two groups of codes times the groups `2 PAIR` and `2 PAIR + 1` of the 16 elements `x`.
    ///
    /// # Safety
    /// As above.
    unsafe fn add<const PAIR: i32>(
        sums: Self::Sums,
        codes: [int8x16_t; 2],
        x: int8x16_t,
    ) -> Self::Sums;

    /// # Safety
    /// As above.
    unsafe fn total(sums: Self::Sums) -> int32x4_t;

    /// Computes `tile` with `R` rows in `Q` quarters of a panel at a time, as a function with the
    /// features that the product needs.
    ///
    /// # Safety
    /// The processor offers them; the tile's pointers are as its fields say, `R` is its group, and
    /// `weights` hold its blocks.
    unsafe fn compute<S: Source, W: Weights, const R: usize, const Q: usize>(
        tile: &Tile,
        weights: W,
    );
}

/// The dot product of four elements that `dotprod` adds to NEON.
pub(super) struct Fours;

/// NEON alone: products in 16 bits, of which two fit (2 · 128 · 127 < 2¹⁵), then sums in 32.
pub(super) struct Widening;

impl Product for Fours {
    type Sums = int32x4_t;

    #[inline(always)]
    unsafe fn zero() -> int32x4_t {
        // SAFETY: register arithmetic.
        unsafe { vdupq_n_s32(0) }
    }

    // The compiler's own functions for this instruction are not stable yet.
    #[inline(always)]
    unsafe fn add<const PAIR: i32>(
        mut sums: int32x4_t,
        codes: [int8x16_t; 2],
        x: int8x16_t,
    ) -> int32x4_t {
        // SAFETY: register arithmetic.
        unsafe {
            asm!(
                "sdot {sums:v}.4s, {even:v}.16b, {x:v}.4b[{first}]",
                "sdot {sums:v}.4s, {odd:v}.16b, {x:v}.4b[{second}]",
                sums = inout(vreg) sums,
                even = in(vreg) codes[0],
                odd = in(vreg) codes[1],
                x = in(vreg) x,
                first = const 2 * PAIR,
                second = const 2 * PAIR + 1,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        sums
    }

    #[inline(always)]
    unsafe fn total(sums: int32x4_t) -> int32x4_t {
        sums
    }

    #[target_feature(enable = "neon,dotprod")]
    unsafe fn compute<S: Source, W: Weights, const R: usize, const Q: usize>(
        tile: &Tile,
        weights: W,
    ) {
        // SAFETY: the caller's promise.
        unsafe { quarters::<S, Self, W, R, Q>(tile, weights) }
    }
}

impl Product for Widening {
    /// Of the first two outputs two sums each, then of the other two.
    type Sums = [int32x4_t; 2];

    #[inline(always)]
    unsafe fn zero() -> [int32x4_t; 2] {
        // SAFETY: register arithmetic.
        unsafe { [vdupq_n_s32(0); 2] }
    }

    #[inline(always)]
    unsafe fn add<const PAIR: i32>(
        sums: [int32x4_t; 2],
        codes: [int8x16_t; 2],
        x: int8x16_t,
    ) -> [int32x4_t; 2] {
        // SAFETY: register arithmetic.
        unsafe {
            // The two groups of x, each four times over.
            let fours = vreinterpretq_s32_s8(x);
            let (even, odd) = if PAIR == 0 {
                (vdupq_laneq_s32::<0>(fours), vdupq_laneq_s32::<1>(fours))
            } else {
                (vdupq_laneq_s32::<2>(fours), vdupq_laneq_s32::<3>(fours))
            };
            let (even, odd) = (vreinterpretq_s8_s32(even), vreinterpretq_s8_s32(odd));
            let low = vmull_s8(vget_low_s8(codes[0]), vget_low_s8(even));
            let low = vmlal_s8(low, vget_low_s8(codes[1]), vget_low_s8(odd));
            let high = vmull_high_s8(codes[0], even);
            let high = vmlal_high_s8(high, codes[1], odd);
            [vpadalq_s16(sums[0], low), vpadalq_s16(sums[1], high)]
        }
    }

    #[inline(always)]
    unsafe fn total(sums: [int32x4_t; 2]) -> int32x4_t {
        // SAFETY: register arithmetic.
        unsafe { vpaddq_s32(sums[0], sums[1]) }
    }

    #[target_feature(enable = "neon")]
    unsafe fn compute<S: Source, W: Weights, const R: usize, const Q: usize>(
        tile: &Tile,
        weights: W,
    ) {
        // SAFETY: the caller's promise.
        unsafe { quarters::<S, Self, W, R, Q>(tile, weights) }
    }
}

/// Adds a segment to the rows of a group.
///
/// # Safety
/// As [`Product::compute`], whatever the group.
pub(super) unsafe fn tile<S: Source, P: Product, W: Weights>(tile: &Tile, weights: W) {
    // As many outputs at a time as leave registers for the codes.
    // SAFETY: the caller's promise.
    unsafe {
        match tile.group {
            1 => P::compute::<S, W, 1, 4>(tile, weights),
            2 => P::compute::<S, W, 2, 4>(tile, weights),
            3 => P::compute::<S, W, 3, 2>(tile, weights),
            _ => P::compute::<S, W, 4, 2>(tile, weights),
        }
    }
}

/// # Safety
/// As [`Product::compute`]; the caller has the features enabled.
#[inline(always)]
unsafe fn quarters<S: Source, P: Product, W: Weights, const R: usize, const Q: usize>(
    tile: &Tile,
    weights: W,
) {
    for first in (0..QUARTERS).step_by(Q) {
        // Rows beyond the last are zeros and computed all the same.
        // SAFETY: rows and lanes inside the output, blocks inside the segment.
        unsafe {
            let mut sums = [[vdupq_n_f32(0.0); Q]; R];
            if !tile.fresh {
                for (r, sums) in sums.iter_mut().enumerate().take(tile.rows) {
                    let out = tile.out.add(r * tile.out_stride);
                    *sums = load_lanes(out, first * WIDTH, tile.lanes);
                }
            }
            for b in 0..tile.count {
                if first == 0 {
                    weights.prefetch(b);
                }
                let record = tile.x.add(b * R * ROW_RECORD);
                block::<S, P, W, R, Q>(weights, b, first, record, &mut sums);
            }
            for (r, &sums) in sums.iter().enumerate().take(tile.rows) {
                let out = tile.out.add(r * tile.out_stride);
                store_lanes(out, first * WIDTH, tile.lanes, sums);
            }
        }
    }
}

/// Adds block `b` of the quarters from `first` on.
///
/// # Safety
/// `record` is that of `R` rows; the rest as [`Weights::codes`].
#[inline(always)]
unsafe fn block<S: Source, P: Product, W: Weights, const R: usize, const Q: usize>(
    weights: W,
    b: usize,
    first: usize,
    record: *const u8,
    sums: &mut [[float32x4_t; Q]; R],
) {
    let layout = S::LAYOUT;
    // SAFETY: the caller's promise.
    unsafe {
        let field = |i: usize, r: usize| record.add(R * BLOCK + 4 * (i * R + r));
        let int = |i: usize, r: usize| field(i, r).cast::<i32>().read_unaligned();
        let float = |i: usize, r: usize| field(i, r).cast::<f32>().read_unaligned();
        let mut ints = [[P::zero(); Q]; R];
        let mut dots = [[vdupq_n_f32(0.0); Q]; R];
        for half in 0..2 {
            let x: [int8x16_t; R] =
                std::array::from_fn(|r| vld1q_s8(record.add(r * BLOCK + 16 * half).cast()));
            for pair in 0..2 {
                for q in 0..Q {
                    let code = |i: usize| weights.codes(b, 4 * half + 2 * pair + i, first + q);
                    let codes = [code(0), code(1)];
                    for r in 0..R {
                        ints[r][q] = if pair == 0 {
                            P::add::<0>(ints[r][q], codes, x[r])
                        } else {
                            P::add::<1>(ints[r][q], codes, x[r])
                        };
                    }
                }
            }
            if layout.subs == 2 || half == 1 {
                let s = if layout.subs == 2 { half } else { 0 };
                for q in 0..Q {
                    let scale = weights.scales(b, first + q).0[s];
                    for r in 0..R {
                        let total = vcvtq_f32_s32(P::total(ints[r][q]));
                        dots[r][q] = if s == 0 {
                            vmulq_f32(total, scale)
                        } else {
                            vfmaq_f32(dots[r][q], total, scale)
                        };
                        ints[r][q] = P::zero();
                    }
                }
            }
        }
        if layout.has_min() {
            for s in 0..layout.subs {
                for q in 0..Q {
                    let min = weights.scales(b, first + q).1[s];
                    for r in 0..R {
                        // Σ codes of the row's block, or of one of its halves.
                        let sum = match (layout.subs, s) {
                            (1, _) => float(3, r),
                            (_, 0) => int(2, r) as f32 * (-1.0 / 128.0),
                            (_, _) => (int(1, r) - int(2, r)) as f32 * (-1.0 / 128.0),
                        };
                        dots[r][q] = vfmaq_n_f32(dots[r][q], min, sum);
                    }
                }
            }
        }
        for r in 0..R {
            for q in 0..Q {
                sums[r][q] = vfmaq_n_f32(sums[r][q], dots[r][q], float(0, r));
            }
        }
    }
}
