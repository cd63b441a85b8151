//! 8 lanes of NEON, in pairs of registers: with 32 registers of 16 bytes a pair is to the kernels
//! what a register of AVX2 is.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{Kernel, Lanes};
use crate::page::Q4_MIDDLE;

/// Proof that the processor offers NEON.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// # Safety
    /// The processor offers NEON.
    #[inline(always)]
    pub(crate) unsafe fn assume() -> Neon {
        Neon(())
    }
}

/// Methods of one safe expression each.
macro_rules! operations {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $out:ty = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: $ty),*) -> $out {
            // SAFETY: `self` is proof that the processor has the instructions; no memory is read.
            unsafe { $body }
        }
    )*};
}

type Pair = float32x4x2_t;

/// Applies `f` to both registers.
#[inline(always)]
fn each(a: Pair, f: impl Fn(float32x4_t) -> float32x4_t) -> Pair {
    float32x4x2_t(f(a.0), f(a.1))
}

/// Applies `f` to the registers of two pairs.
#[inline(always)]
fn both(a: Pair, b: Pair, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> Pair {
    float32x4x2_t(f(a.0, b.0), f(a.1, b.1))
}

impl Lanes for Neon {
    type V = Pair;
    type I = int32x4x2_t;
    const WIDTH: usize = 8;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` is proof that the processor has the features.
        unsafe { super::run_neon(kernel) }
    }

    #[inline(always)]
    unsafe fn load_ptr(self, p: *const f32) -> Pair {
        // SAFETY: the caller vouches for the memory, `self` for the instructions.
        unsafe { float32x4x2_t(vld1q_f32(p), vld1q_f32(p.add(4))) }
    }

    #[inline(always)]
    unsafe fn store_ptr(self, p: *mut f32, v: Pair) {
        // SAFETY: the caller vouches for the memory, `self` for the instructions.
        unsafe {
            vst1q_f32(p, v.0);
            vst1q_f32(p.add(4), v.1);
        }
    }

    #[inline(always)]
    unsafe fn load_f16_ptr(self, p: *const u8) -> Pair {
        // SAFETY: the caller vouches for the memory, `self` for the instructions.
        unsafe {
            let halves = vreinterpretq_u16_u8(vld1q_u8(p));
            float32x4x2_t(
                widen_f16(vget_low_u16(halves)),
                widen_f16(vget_high_u16(halves)),
            )
        }
    }

    #[inline(always)]
    unsafe fn store_f16_ptr(self, p: *mut u8, v: Pair) {
        // SAFETY: the caller vouches for the memory, `self` for the instructions.
        unsafe {
            let halves = vcombine_u16(narrow_f16(v.0), narrow_f16(v.1));
            vst1q_u8(p, vreinterpretq_u8_u16(halves));
        }
    }

    #[inline(always)]
    unsafe fn load_bf16_ptr(self, p: *const u8) -> Pair {
        // SAFETY: the caller vouches for the memory, `self` for the instructions.
        unsafe {
            let halves = vreinterpretq_u16_u8(vld1q_u8(p));
            float32x4x2_t(
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(halves))),
                vreinterpretq_f32_u32(vshll_high_n_u16::<16>(halves)),
            )
        }
    }

    #[inline(always)]
    unsafe fn load_i8_ptr(self, p: *const u8) -> Pair {
        // SAFETY: the caller vouches for the memory, `self` for the instructions.
        unsafe { floats(vld1_s8(p.cast())) }
    }

    #[inline(always)]
    unsafe fn load_nibbles_ptr(self, p: *const u8, shift: u32) -> Pair {
        // SAFETY: the caller vouches for the memory, `self` for the instructions.
        let codes = unsafe {
            let down = vshl_u8(vld1_u8(p), vdup_n_s8(-(shift as i8)));
            floats(vreinterpret_s8_u8(vand_u8(down, vdup_n_u8(15))))
        };
        self.sub(codes, self.splat(Q4_MIDDLE))
    }

    #[inline(always)]
    unsafe fn load_whole(self, p: *const u8) -> int32x4x2_t {
        // SAFETY: the caller vouches for the memory, `self` for the instructions.
        unsafe {
            int32x4x2_t(
                vreinterpretq_s32_u8(vld1q_u8(p)),
                vreinterpretq_s32_u8(vld1q_u8(p.add(16))),
            )
        }
    }

    #[inline(always)]
    unsafe fn store_low_bytes(self, p: *mut u8, x: [int32x4x2_t; 4]) {
        for (i, x) in x.into_iter().enumerate() {
            // SAFETY: the caller vouches for the memory, `self` for the instructions.
            unsafe {
                let halves = vcombine_s16(vmovn_s32(x.0), vmovn_s32(x.1));
                vst1_s8(p.add(8 * i).cast(), vmovn_s16(halves));
            }
        }
    }

    #[inline(always)]
    unsafe fn store_high_bytes(self, p: *mut u8, x: [int32x4x2_t; 4]) {
        for (i, x) in x.into_iter().enumerate() {
            // SAFETY: the caller vouches for the memory, `self` for the instructions.
            unsafe {
                let halves = vcombine_s16(vmovn_s32(x.0), vmovn_s32(x.1));
                vst1_s8(
                    p.add(8 * i).cast(),
                    vshrn_n_s16::<8>(vaddq_s16(halves, vdupq_n_s16(128))),
                );
            }
        }
    }

    operations! {
        prefetch(p: *const u8) -> () = asm!(
            "prfm pldl2keep, [{p}]",
            p = in(reg) p,
            options(readonly, nostack, preserves_flags)
        );
        splat_whole(x: i32) -> int32x4x2_t = int32x4x2_t(vdupq_n_s32(x), vdupq_n_s32(x));
        codes(x: int32x4x2_t, shift: u32, mask: u8) -> int32x4x2_t = {
            let one = |x: int32x4_t| {
                let down = vshlq_u32(vreinterpretq_u32_s32(x), vdupq_n_s32(-(shift as i32)));
                let codes = vandq_u8(vreinterpretq_u8_u32(down), vdupq_n_u8(mask));
                vreinterpretq_s32_u8(codes)
            };
            int32x4x2_t(one(x.0), one(x.1))
        };
        dot4(acc: int32x4x2_t, codes: int32x4x2_t, factors: int32x4x2_t) -> int32x4x2_t = {
            let one = |acc: int32x4_t, a: int32x4_t, b: int32x4_t| {
                let (a, b) = (vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
                let low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)));
                let high = vpaddlq_s16(vmull_s8(vget_high_s8(a), vget_high_s8(b)));
                vaddq_s32(acc, vpaddq_s32(low, high))
            };
            int32x4x2_t(one(acc.0, codes.0, factors.0), one(acc.1, codes.1, factors.1))
        };
        dot4_bytes(acc: int32x4x2_t, codes: int32x4x2_t, factors: int32x4x2_t) -> int32x4x2_t = {
            let one = |acc: int32x4_t, a: int32x4_t, b: int32x4_t| {
                let (a, b) = (vreinterpretq_u8_s32(a), vreinterpretq_s8_s32(b));
                let wide = |a: uint8x8_t| vreinterpretq_s16_u16(vmovl_u8(a));
                let half = |a: int16x8_t, b: int16x8_t| {
                    let low = vmull_s16(vget_low_s16(a), vget_low_s16(b));
                    vpaddq_s32(low, vmull_s16(vget_high_s16(a), vget_high_s16(b)))
                };
                let low = half(wide(vget_low_u8(a)), vmovl_s8(vget_low_s8(b)));
                let high = half(wide(vget_high_u8(a)), vmovl_s8(vget_high_s8(b)));
                vaddq_s32(acc, vpaddq_s32(low, high))
            };
            int32x4x2_t(one(acc.0, codes.0, factors.0), one(acc.1, codes.1, factors.1))
        };
        join_bytes(high: int32x4x2_t, low: int32x4x2_t) -> int32x4x2_t = int32x4x2_t(
            vaddq_s32(vshlq_n_s32::<8>(high.0), low.0),
            vaddq_s32(vshlq_n_s32::<8>(high.1), low.1),
        );
        to_floats(x: int32x4x2_t) -> Pair =
            float32x4x2_t(vcvtq_f32_s32(x.0), vcvtq_f32_s32(x.1));
        to_whole(x: Pair) -> int32x4x2_t =
            int32x4x2_t(vcvtnq_s32_f32(x.0), vcvtnq_s32_f32(x.1));
        splat(x: f32) -> Pair = float32x4x2_t(vdupq_n_f32(x), vdupq_n_f32(x));
        add(a: Pair, b: Pair) -> Pair = both(a, b, |a, b| vaddq_f32(a, b));
        sub(a: Pair, b: Pair) -> Pair = both(a, b, |a, b| vsubq_f32(a, b));
        mul(a: Pair, b: Pair) -> Pair = both(a, b, |a, b| vmulq_f32(a, b));
        div(a: Pair, b: Pair) -> Pair = both(a, b, |a, b| vdivq_f32(a, b));
        fma(a: Pair, b: Pair, c: Pair) -> Pair =
            float32x4x2_t(vfmaq_f32(c.0, a.0, b.0), vfmaq_f32(c.1, a.1, b.1));
        // NEON's own minimum and maximum give NaN when either is NaN.
        min(a: Pair, b: Pair) -> Pair = both(a, b, |a, b| vbslq_f32(vcltq_f32(a, b), a, b));
        max(a: Pair, b: Pair) -> Pair = both(a, b, |a, b| larger(a, b));
        select_less(a: Pair, b: Pair, x: Pair, y: Pair) -> Pair = float32x4x2_t(
            vbslq_f32(vcltq_f32(a.0, b.0), x.0, y.0),
            vbslq_f32(vcltq_f32(a.1, b.1), x.1, y.1),
        );
        round(a: Pair) -> Pair = each(a, |a| vrndnq_f32(a));
        // In two halves, so that neither factor leaves the range of an exponent.
        scale_by_power(a: Pair, n: Pair) -> Pair = both(a, n, |a, n| {
            let n = vcvtnq_s32_f32(n);
            let half = vshrq_n_s32::<1>(n);
            let power = |n| {
                let biased = vaddq_s32(n, vdupq_n_s32(127));
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
            };
            vmulq_f32(vmulq_f32(a, power(half)), power(vsubq_s32(n, half)))
        });
        scale_down(a: Pair, n: Pair) -> Pair = both(a, n, |a, n| {
            let exponent = vshlq_n_s32::<23>(vcvtnq_s32_f32(n));
            vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a), exponent))
        });
        abs(a: Pair) -> Pair = each(a, |a| vabsq_f32(a));
        copy_sign(a: Pair, sign: Pair) -> Pair =
            both(a, sign, |a, sign| vbslq_f32(vdupq_n_u32(1 << 31), sign, a));
        keep(v: Pair, lo: i32, hi: i32, fill: Pair) -> Pair = {
            let lane = vld1q_s32([0, 1, 2, 3].as_ptr());
            let inside = |lane| {
                let high_enough = vcgeq_s32(lane, vdupq_n_s32(lo));
                vandq_u32(high_enough, vcltq_s32(lane, vdupq_n_s32(hi)))
            };
            float32x4x2_t(
                vbslq_f32(inside(lane), v.0, fill.0),
                vbslq_f32(inside(vaddq_s32(lane, vdupq_n_s32(4))), v.1, fill.1),
            )
        };
        reduce_max(v: Pair) -> f32 = {
            let four = larger(v.0, v.1);
            let two = larger(four, vextq_f32::<2>(four, four));
            vgetq_lane_f32::<0>(larger(two, vextq_f32::<1>(two, two)))
        };
        reduce_add(v: Pair) -> f32 = {
            let four = vaddq_f32(v.0, v.1);
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        };
    }
}

/// Eight bytes as floats.
///
/// # Safety
/// The caller has NEON enabled.
#[inline(always)]
unsafe fn floats(bytes: int8x8_t) -> Pair {
    // SAFETY: register arithmetic.
    unsafe {
        let wide = vmovl_s8(bytes);
        float32x4x2_t(
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))),
            vcvtq_f32_s32(vmovl_high_s16(wide)),
        )
    }
}

/// The larger numbers; `b` where either is NaN.
///
/// # Safety
/// The caller has NEON enabled.
#[inline(always)]
unsafe fn larger(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: register arithmetic.
    unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
}

/// Four half-precision numbers as f32. (The compiler's own functions for this are younger than the
/// oldest compiler supported.)
///
/// # Safety
/// The caller has NEON enabled.
#[inline(always)]
pub(crate) unsafe fn widen_f16(halves: uint16x4_t) -> float32x4_t {
    let wide;
    // SAFETY: register arithmetic.
    unsafe {
        asm!(
            "fcvtl {wide:v}.4s, {halves:v}.4h",
            wide = lateout(vreg) wide,
            halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    wide
}

/// Four f32 as half-precision numbers, rounded to nearest even.
///
/// # Safety
/// The caller has NEON enabled.
#[inline(always)]
unsafe fn narrow_f16(wide: float32x4_t) -> uint16x4_t {
    let halves;
    // SAFETY: register arithmetic.
    unsafe {
        asm!(
            "fcvtn {halves:v}.4h, {wide:v}.4s",
            halves = lateout(vreg) halves,
            wide = in(vreg) wide,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    halves
}
