//! 8 lanes of AVX2 with FMA and F16C.

use std::arch::x86_64::*;

use super::{Kernel, Lanes};
use crate::page::Q4_MIDDLE;

/// Proof that the processor offers AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The processor offers AVX2, FMA and F16C.
    #[inline(always)]
    pub(crate) unsafe fn assume() -> Avx2 {
        Avx2(())
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

/// Four vectors of 32 bits as two of 16, in an order that [`in_order`] puts right.
///
/// # Safety
/// The processor offers AVX2.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn pairs(x: [__m256i; 4]) -> [__m256i; 2] {
    [
        _mm256_packs_epi32(x[0], x[1]),
        _mm256_packs_epi32(x[2], x[3]),
    ]
}

/// Packing takes 128 bits of each vector in turn: those of the same vector come together again.
///
/// # Safety
/// The processor offers AVX2.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn in_order(x: __m256i) -> __m256i {
    _mm256_permutevar8x32_epi32(x, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
}

impl Lanes for Avx2 {
    type V = __m256;
    type I = __m256i;
    const WIDTH: usize = 8;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` is proof that the processor has the features.
        unsafe { super::run_avx2(kernel) }
    }

    #[inline(always)]
    unsafe fn load_ptr(self, p: *const f32) -> __m256 {
        // SAFETY: the caller vouches for the memory, `self` for the instructions.
        unsafe { _mm256_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store_ptr(self, p: *mut f32, v: __m256) {
        // SAFETY: the caller vouches for the memory, `self` for the instructions.
        unsafe { _mm256_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn load_f16_ptr(self, p: *const u8) -> __m256 {
        // SAFETY: the caller vouches for the memory, `self` for the instructions.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }

    #[inline(always)]
    unsafe fn store_f16_ptr(self, p: *mut u8, v: __m256) {
        // SAFETY: the caller vouches for the memory, `self` for the instructions.
        unsafe { _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }

    #[inline(always)]
    unsafe fn load_bf16_ptr(self, p: *const u8) -> __m256 {
        // SAFETY: the caller vouches for the memory, `self` for the instructions.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn load_i8_ptr(self, p: *const u8) -> __m256 {
        // SAFETY: the caller vouches for the memory, `self` for the instructions.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_nibbles_ptr(self, p: *const u8, shift: u32) -> __m256 {
        // SAFETY: the caller vouches for the memory, `self` for the instructions.
        unsafe {
            let wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
            let wide = _mm256_srlv_epi32(wide, _mm256_set1_epi32(shift as i32));
            let code = _mm256_and_si256(wide, _mm256_set1_epi32(15));
            _mm256_sub_ps(_mm256_cvtepi32_ps(code), _mm256_set1_ps(Q4_MIDDLE))
        }
    }

    #[inline(always)]
    unsafe fn load_whole(self, p: *const u8) -> __m256i {
        // SAFETY: the caller vouches for the memory, `self` for the instructions.
        unsafe { _mm256_loadu_si256(p.cast()) }
    }

    #[inline(always)]
    unsafe fn store_low_bytes(self, p: *mut u8, x: [__m256i; 4]) {
        // SAFETY: the caller vouches for the memory, `self` for the instructions.
        unsafe {
            let byte = _mm256_set1_epi16(255);
            let [a, b] = pairs(x).map(|x| _mm256_and_si256(x, byte));
            _mm256_storeu_si256(p.cast(), in_order(_mm256_packus_epi16(a, b)));
        }
    }

    #[inline(always)]
    unsafe fn store_high_bytes(self, p: *mut u8, x: [__m256i; 4]) {
        // SAFETY: the caller vouches for the memory, `self` for the instructions.
        unsafe {
            let half = _mm256_set1_epi16(128);
            let [a, b] = pairs(x).map(|x| _mm256_srai_epi16::<8>(_mm256_add_epi16(x, half)));
            _mm256_storeu_si256(p.cast(), in_order(_mm256_packs_epi16(a, b)));
        }
    }

    operations! {
        prefetch(p: *const u8) -> () = _mm_prefetch::<_MM_HINT_T1>(p.cast());
        splat_whole(x: i32) -> __m256i = _mm256_set1_epi32(x);
        codes(x: __m256i, shift: u32, mask: u8) -> __m256i = {
            let down = _mm256_srlv_epi32(x, _mm256_set1_epi32(shift as i32));
            _mm256_and_si256(down, _mm256_set1_epi8(mask as i8))
        };
        // Two products of a code of four bits at most fit 16 bits.
        dot4(acc: __m256i, codes: __m256i, factors: __m256i) -> __m256i = {
            let pairs = _mm256_maddubs_epi16(codes, factors);
            _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        };
        // Bytes with even numbers and bytes with odd ones: no product of two leaves 32 bits.
        dot4_bytes(acc: __m256i, codes: __m256i, factors: __m256i) -> __m256i = {
            let even = _mm256_madd_epi16(
                _mm256_and_si256(codes, _mm256_set1_epi16(255)),
                _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(factors)),
            );
            let odd = _mm256_madd_epi16(
                _mm256_srli_epi16::<8>(codes),
                _mm256_srai_epi16::<8>(factors),
            );
            _mm256_add_epi32(acc, _mm256_add_epi32(even, odd))
        };
        join_bytes(high: __m256i, low: __m256i) -> __m256i =
            _mm256_add_epi32(_mm256_slli_epi32::<8>(high), low);
        to_floats(x: __m256i) -> __m256 = _mm256_cvtepi32_ps(x);
        to_whole(x: __m256) -> __m256i = _mm256_cvtps_epi32(x);
        splat(x: f32) -> __m256 = _mm256_set1_ps(x);
        add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
        sub(a: __m256, b: __m256) -> __m256 = _mm256_sub_ps(a, b);
        mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
        div(a: __m256, b: __m256) -> __m256 = _mm256_div_ps(a, b);
        fma(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
        min(a: __m256, b: __m256) -> __m256 = _mm256_min_ps(a, b);
        max(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b);
        select_less(a: __m256, b: __m256, x: __m256, y: __m256) -> __m256 =
            _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b));
        round(a: __m256) -> __m256 =
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
        // In two halves, so that neither factor leaves the range of an exponent.
        scale_by_power(a: __m256, n: __m256) -> __m256 = {
            let n = _mm256_cvtps_epi32(n);
            let half = _mm256_srai_epi32::<1>(n);
            let power = |n| {
                let biased = _mm256_add_epi32(n, _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
            };
            _mm256_mul_ps(_mm256_mul_ps(a, power(half)), power(_mm256_sub_epi32(n, half)))
        };
        scale_down(a: __m256, n: __m256) -> __m256 = {
            let exponent = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(n));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), exponent))
        };
        abs(a: __m256) -> __m256 = _mm256_andnot_ps(_mm256_set1_ps(-0.0), a);
        copy_sign(a: __m256, sign: __m256) -> __m256 = {
            let bit = _mm256_set1_ps(-0.0);
            _mm256_or_ps(_mm256_andnot_ps(bit, a), _mm256_and_ps(bit, sign))
        };
        keep(v: __m256, lo: i32, hi: i32, fill: __m256) -> __m256 = {
            let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let too_low = _mm256_cmpgt_epi32(_mm256_set1_epi32(lo), lane);
            let low_enough = _mm256_cmpgt_epi32(_mm256_set1_epi32(hi), lane);
            let mask = _mm256_andnot_si256(too_low, low_enough);
            _mm256_blendv_ps(fill, v, _mm256_castsi256_ps(mask))
        };
        reduce_max(v: __m256) -> f32 = max_of_8(v);
        reduce_add(v: __m256) -> f32 = sum_of_8(v);
    }
}

/// # Safety
/// The processor offers AVX2.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn max_of_8(v: __m256) -> f32 {
    let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
}

/// # Safety
/// The processor offers AVX2.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn sum_of_8(v: __m256) -> f32 {
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
}
