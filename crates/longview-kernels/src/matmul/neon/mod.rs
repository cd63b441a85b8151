//! The products with NEON, with and without its 8-bit dot products and matrix products.
//!
//! A register holds four outputs: in f32 one number of each, in 8 bits four consecutive elements of
//! each, which is a quarter of a panel's group. All codes are taken as signed and centred, so that
//! signed products suffice. A block's integer sums are exact, and the floats follow in one order,
//! so the three versions of the integer products give the same bits.

mod dot;
mod float;
mod int8;
mod matrix;
mod unpack;

pub(super) use float::float;
pub(super) use int8::int8;

use std::arch::aarch64::{float32x4_t, vdupq_n_f32, vld1q_f32, vst1q_f32};

use crate::packed::layout::LANES;

/// Outputs of a register.
const WIDTH: usize = 4;
/// Registers of a panel's outputs.
const QUARTERS: usize = LANES / WIDTH;

/// `Q` registers of outputs from `first` on; those at `lanes` and beyond are zeros.
///
/// # Safety
/// `from` holds `lanes` floats, at most 16, and `first + 4 Q` is at most 16; the caller has NEON
/// enabled.
#[inline(always)]
unsafe fn load_lanes<const Q: usize>(
    from: *const f32,
    first: usize,
    lanes: usize,
) -> [float32x4_t; Q] {
    let mut all = [0.0f32; LANES];
    // SAFETY: the caller's promise.
    unsafe {
        let mut loaded = [vdupq_n_f32(0.0); Q];
        let mut at = from;
        if lanes < LANES {
            std::ptr::copy_nonoverlapping(from, all.as_mut_ptr(), lanes);
            at = all.as_ptr();
        }
        for (q, loaded) in loaded.iter_mut().enumerate() {
            *loaded = vld1q_f32(at.add(first + WIDTH * q));
        }
        loaded
    }
}

/// Writes `Q` registers of outputs from `first` on, as far as they are below `lanes`.
///
/// # Safety
/// `to` has room for `lanes` floats, at most 16, and `first + 4 Q` is at most 16; the caller has
/// NEON enabled.
#[inline(always)]
unsafe fn store_lanes<const Q: usize>(
    to: *mut f32,
    first: usize,
    lanes: usize,
    sums: [float32x4_t; Q],
) {
    let mut all = [0.0f32; LANES];
    // SAFETY: the caller's promise.
    unsafe {
        let whole = lanes == LANES;
        let at = if whole { to } else { all.as_mut_ptr() };
        for (q, &sums) in sums.iter().enumerate() {
            vst1q_f32(at.add(first + WIDTH * q), sums);
        }
        let end = lanes.min(first + WIDTH * Q);
        if !whole && first < end {
            std::ptr::copy_nonoverlapping(all.as_ptr().add(first), to.add(first), end - first);
        }
    }
}
