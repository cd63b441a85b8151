//! A segment of a panel → signed codes, scales and minima.
//!
//! The vector twin of [`crate::packed::lane`], which defines the layout, with codes as they are
//! rather than shifted to the top of their byte, and centred at zero.

use std::arch::aarch64::*;

use super::{QUARTERS, WIDTH};
use crate::format::IQ4_VALUES;
use crate::lanes::widen_f16;
use crate::matmul::source::{Planes, Segment, Source};
use crate::packed::layout::{BLOCK, LANES, SEGMENT, Scales};

/// Where kernels get weights from: the packed panel itself, or an unpacked copy of a segment.
pub(super) trait Weights: Copy {
    /// Four elements of each of four outputs: group `g`, outputs `4 q..4 q + 4` of block `b`.
    ///
    /// # Safety
    /// The block is in the segment; the caller has NEON enabled.
    unsafe fn codes(self, b: usize, g: usize, q: usize) -> int8x16_t;

    /// Scales and minima (which are added) of both halves of block `b`, of outputs `4 q..4 q + 4`.
    ///
    /// # Safety
    /// As [`Weights::codes`].
    unsafe fn scales(self, b: usize, q: usize) -> ([float32x4_t; 2], [float32x4_t; 2]);

    /// Asks for weights some way ahead of block `b`.
    fn prefetch(self, b: usize);
}

/// A segment as it lies in the panel.
pub(super) struct Stored<S> {
    segment: Segment,
    source: std::marker::PhantomData<S>,
}

impl<S> Clone for Stored<S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Stored<S> {}

impl<S: Source> Stored<S> {
    /// Segment `at` of a panel, and its number of blocks.
    ///
    /// # Safety
    /// `panel` is a packed panel of `S` with `blocks` blocks, and `8 · at < blocks`.
    #[inline(always)]
    pub(super) unsafe fn at(panel: *const u8, blocks: usize, at: usize) -> (Self, usize) {
        // SAFETY: the caller's promise.
        let (segment, count) = unsafe { Segment::at::<S>(panel, blocks, at) };
        let source = std::marker::PhantomData;
        (Stored { segment, source }, count)
    }
}

impl<S: Source> Weights for Stored<S> {
    #[inline(always)]
    unsafe fn codes(self, b: usize, g: usize, q: usize) -> int8x16_t {
        // SAFETY: the caller's promise.
        unsafe { codes::<S>(self.segment.planes::<S>(b), g, q) }
    }

    #[inline(always)]
    unsafe fn scales(self, b: usize, q: usize) -> ([float32x4_t; 2], [float32x4_t; 2]) {
        // SAFETY: the caller's promise.
        unsafe { scales::<S>(self.segment.planes::<S>(b), q) }
    }

    #[inline(always)]
    fn prefetch(self, b: usize) {
        self.segment.prefetch::<S>(b);
    }
}

/// Which elements stand together in an unpacked segment.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Order {
    /// `[group][output][4]`, for dot products.
    Fours,
    /// `[pair of groups][output][8]`, for matrix products.
    Eights,
}

/// An unpacked segment.
#[repr(align(64))]
pub(super) struct Unpacked {
    /// `[block]`, in one of the two orders.
    pub(super) codes: [[i8; LANES * BLOCK]; SEGMENT],
    /// `[block][half][output]`.
    pub(super) scale: [[[f32; LANES]; 2]; SEGMENT],
    /// `[block][half][output]`, added.
    pub(super) min: [[[f32; LANES]; 2]; SEGMENT],
}

impl Unpacked {
    pub(super) const ZERO: Unpacked = Unpacked {
        codes: [[0; LANES * BLOCK]; SEGMENT],
        scale: [[[0.0; LANES]; 2]; SEGMENT],
        min: [[[0.0; LANES]; 2]; SEGMENT],
    };

    /// Unpacks a segment of `count` blocks.
    ///
    /// # Safety
    /// The segment has so many blocks.
    #[target_feature(enable = "neon")]
    pub(super) unsafe fn read<S: Source>(&mut self, stored: Stored<S>, count: usize, order: Order) {
        for b in 0..count {
            stored.prefetch(b);
            let out = self.codes[b].as_mut_ptr();
            // SAFETY: blocks of the segment, 32 registers of codes and four of each scale.
            unsafe {
                for g in (0..BLOCK / 4).step_by(2) {
                    for q in 0..QUARTERS {
                        let (even, odd) = (stored.codes(b, g, q), stored.codes(b, g + 1, q));
                        if order == Order::Fours {
                            vst1q_s8(out.add((g * QUARTERS + q) * 16), even);
                            vst1q_s8(out.add(((g + 1) * QUARTERS + q) * 16), odd);
                        } else {
                            let (even, odd) =
                                (vreinterpretq_s32_s8(even), vreinterpretq_s32_s8(odd));
                            let at = out.add((g * QUARTERS + 2 * q) * 16);
                            vst1q_s8(at, vreinterpretq_s8_s32(vzip1q_s32(even, odd)));
                            vst1q_s8(at.add(16), vreinterpretq_s8_s32(vzip2q_s32(even, odd)));
                        }
                    }
                }
                for q in 0..QUARTERS {
                    let (scale, min) = stored.scales(b, q);
                    for half in 0..2 {
                        let at = WIDTH * q;
                        vst1q_f32(self.scale[b][half].as_mut_ptr().add(at), scale[half]);
                        vst1q_f32(self.min[b][half].as_mut_ptr().add(at), min[half]);
                    }
                }
            }
        }
    }
}

/// An unpacked segment in the order of fours.
impl Weights for &Unpacked {
    #[inline(always)]
    unsafe fn codes(self, b: usize, g: usize, q: usize) -> int8x16_t {
        // SAFETY: one of the block's 32 registers.
        unsafe { vld1q_s8(self.codes[b].as_ptr().add((g * QUARTERS + q) * 16)) }
    }

    #[inline(always)]
    unsafe fn scales(self, b: usize, q: usize) -> ([float32x4_t; 2], [float32x4_t; 2]) {
        let load = |from: &[f32; LANES]| {
            // SAFETY: `q` is below the number of quarters.
            unsafe { vld1q_f32(from.as_ptr().add(WIDTH * q)) }
        };
        let [scale, min] = [&self.scale[b], &self.min[b]];
        (
            [load(&scale[0]), load(&scale[1])],
            [load(&min[0]), load(&min[1])],
        )
    }

    #[inline(always)]
    fn prefetch(self, _: usize) {}
}

/// Group `g` of outputs `4 q..4 q + 4`.
///
/// # Safety
/// `planes` are a block's; the caller has NEON enabled.
#[inline(always)]
unsafe fn codes<S: Source>(planes: Planes, g: usize, q: usize) -> int8x16_t {
    let layout = S::LAYOUT;
    // SAFETY: loads inside the block's planes.
    unsafe {
        let load = |plane: *const u8, j: usize| vld1q_u8(plane.add(64 * j + 16 * q));
        // Field `field` of `width` bits of each byte, as the lowest bits.
        let field = |word: uint8x16_t, field: usize, width: usize| {
            let down = vshlq_u8(word, vdupq_n_s8(-((field * width) as i8)));
            vandq_u8(down, vdupq_n_u8((1 << width) - 1))
        };
        let upper = match layout.top_bits {
            8 => veorq_u8(load(planes.top, g), vdupq_n_u8(0x80)),
            4 => field(load(planes.top, g % 4), g / 4, 4),
            _ => field(load(planes.top, g % 2), g / 2, 2),
        };
        let code = match layout.low_bits {
            0 => upper,
            1 => vorrq_u8(vshlq_n_u8::<1>(upper), field(load(planes.low, 0), g, 1)),
            _ => {
                let lower = field(load(planes.low, g % 2), g / 2, 2);
                vorrq_u8(vshlq_n_u8::<2>(upper), lower)
            }
        };
        let bits = layout.top_bits + layout.low_bits;
        if layout.table {
            vqtbl1q_s8(vld1q_s8(IQ4_VALUES.as_ptr()), code)
        } else if layout.has_min() || bits == 8 {
            vreinterpretq_s8_u8(code)
        } else {
            vsubq_s8(vreinterpretq_s8_u8(code), vdupq_n_s8(1 << (bits - 1)))
        }
    }
}

/// Scales and minima of outputs `4 q..4 q + 4`, for each half of the block.
///
/// # Safety
/// `planes` are a block's; the caller has NEON enabled.
#[inline(always)]
unsafe fn scales<S: Source>(planes: Planes, q: usize) -> ([float32x4_t; 2], [float32x4_t; 2]) {
    let layout = S::LAYOUT;
    // SAFETY: loads inside the block's planes.
    unsafe {
        let float = |plane: *const u8, at: usize| {
            let four = plane.add(2 * (LANES * at + WIDTH * q)).cast::<u64>();
            widen_f16(vcreate_u16(four.read_unaligned()))
        };
        let bytes = |at: usize| {
            let four = planes.scales.add(LANES * at + WIDTH * q).cast::<u32>();
            vcreate_u8(u64::from(four.read_unaligned()))
        };
        let unsigned = |bytes: uint8x8_t| vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))));
        let signed = |bytes: uint8x8_t| {
            let wide = vmovl_s8(vreinterpret_s8_u8(bytes));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)))
        };
        let zero = vdupq_n_f32(0.0);
        match layout.scales {
            Scales::Half | Scales::Rounded => ([float(planes.scales, 0); 2], [zero; 2]),
            Scales::HalfMin => ([float(planes.scales, 0); 2], [float(planes.scales, 1); 2]),
            Scales::Small => {
                let factor = float(planes.factors, 0);
                let scale = |s: usize| vmulq_f32(factor, signed(bytes(s)));
                ([scale(0), scale(layout.subs - 1)], [zero; 2])
            }
            Scales::SmallMin => {
                let scale = vmulq_f32(float(planes.factors, 0), unsigned(bytes(0)));
                let min = vmulq_f32(vnegq_f32(float(planes.factors, 1)), unsigned(bytes(1)));
                ([scale; 2], [min; 2])
            }
            Scales::NibbleMin => {
                let factor = float(planes.factors, 0);
                let min = vnegq_f32(float(planes.factors, 1));
                let low = |s: usize| unsigned(vand_u8(bytes(s), vdup_n_u8(15)));
                let high = |s: usize| unsigned(vshr_n_u8::<4>(bytes(s)));
                (
                    [vmulq_f32(factor, low(0)), vmulq_f32(factor, low(1))],
                    [vmulq_f32(min, high(0)), vmulq_f32(min, high(1))],
                )
            }
        }
    }
}
