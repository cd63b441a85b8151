//! 16 lanes of AVX-512.

use std::arch::x86_64::*;

use super::{Kernel, Lanes, SparseRows};
use crate::page::Q4_MIDDLE;

/// What the codes of q4 stand for.
static Q4_LEVELS: [f32; 16] = {
    let mut levels = [0f32; 16];
    let mut code = 0;
    while code < 16 {
        levels[code] = code as f32 - Q4_MIDDLE;
        code += 1;
    }
    levels
};

/// Proof that the processor offers AVX-512 F, BW, DQ, VL and VNNI.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The processor offers AVX-512 F, BW, DQ, VL and VNNI.
    #[inline(always)]
    pub(crate) unsafe fn assume() -> Avx512 {
        Avx512(())
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
/// The processor offers AVX-512 BW.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pairs(x: [__m512i; 4]) -> [__m512i; 2] {
    [
        _mm512_packs_epi32(x[0], x[1]),
        _mm512_packs_epi32(x[2], x[3]),
    ]
}

/// Packing takes 128 bits of each vector in turn: those of the same vector come together again.
///
/// # Safety
/// The processor offers AVX-512 F.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn in_order(x: __m512i) -> __m512i {
    let places = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_permutexvar_epi32(places, x)
}

impl Lanes for Avx512 {
    type V = __m512;
    type I = __m512i;
    const WIDTH: usize = 16;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` is proof that the processor has the features.
        unsafe { super::run_avx512(kernel) }
    }

    #[inline(always)]
    unsafe fn load_ptr(self, p: *const f32) -> __m512 {
        // SAFETY: the caller vouches for the memory, `self` for the instructions.
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store_ptr(self, p: *mut f32, v: __m512) {
        // SAFETY: the caller vouches for the memory, `self` for the instructions.
        unsafe { _mm512_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn load_f16_ptr(self, p: *const u8) -> __m512 {
        // SAFETY: the caller vouches for the memory, `self` for the instructions.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    unsafe fn store_f16_ptr(self, p: *mut u8, v: __m512) {
        // SAFETY: the caller vouches for the memory, `self` for the instructions.
        unsafe {
            let half = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v);
            _mm256_storeu_si256(p.cast(), half);
        }
    }

    #[inline(always)]
    unsafe fn load_bf16_ptr(self, p: *const u8) -> __m512 {
        // SAFETY: the caller vouches for the memory, `self` for the instructions.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn load_i8_ptr(self, p: *const u8) -> __m512 {
        // SAFETY: the caller vouches for the memory, `self` for the instructions.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_nibbles_ptr(self, p: *const u8, shift: u32) -> __m512 {
        // SAFETY: the caller vouches for the memory, `self` for the instructions.
        unsafe {
            let wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
            let wide = _mm512_srlv_epi32(wide, _mm512_set1_epi32(shift as i32));
            // Looks at the lowest four bits of an index only.
            _mm512_permutexvar_ps(wide, _mm512_loadu_ps(Q4_LEVELS.as_ptr()))
        }
    }

    #[inline(always)]
    unsafe fn load_whole(self, p: *const u8) -> __m512i {
        // SAFETY: the caller vouches for the memory, `self` for the instructions.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }

    #[inline(always)]
    unsafe fn store_low_bytes(self, p: *mut u8, x: [__m512i; 4]) {
        // SAFETY: the caller vouches for the memory, `self` for the instructions.
        unsafe {
            let byte = _mm512_set1_epi16(255);
            let [a, b] = pairs(x).map(|x| _mm512_and_si512(x, byte));
            _mm512_storeu_si512(p.cast(), in_order(_mm512_packus_epi16(a, b)));
        }
    }

    #[inline(always)]
    unsafe fn store_high_bytes(self, p: *mut u8, x: [__m512i; 4]) {
        // SAFETY: the caller vouches for the memory, `self` for the instructions.
        unsafe {
            let half = _mm512_set1_epi16(128);
            let [a, b] = pairs(x).map(|x| _mm512_srai_epi16::<8>(_mm512_add_epi16(x, half)));
            _mm512_storeu_si512(p.cast(), in_order(_mm512_packs_epi16(a, b)));
        }
    }

    #[inline(always)]
    unsafe fn expand_rows(self, rows: &SparseRows) {
        // SAFETY: the caller vouches for the memory, the question for the instructions.
        unsafe {
            if is_x86_feature_detected!("avx512vbmi2") && is_x86_feature_detected!("popcnt") {
                expand_rows_of_halves(rows);
            } else {
                expand_rows_of_floats(rows);
            }
        }
    }

    operations! {
        prefetch(p: *const u8) -> () = _mm_prefetch::<_MM_HINT_T1>(p.cast());
        splat_whole(x: i32) -> __m512i = _mm512_set1_epi32(x);
        codes(x: __m512i, shift: u32, mask: u8) -> __m512i = {
            let down = _mm512_srlv_epi32(x, _mm512_set1_epi32(shift as i32));
            _mm512_and_si512(down, _mm512_set1_epi8(mask as i8))
        };
        dot4(acc: __m512i, codes: __m512i, factors: __m512i) -> __m512i =
            _mm512_dpbusd_epi32(acc, codes, factors);
        dot4_bytes(acc: __m512i, codes: __m512i, factors: __m512i) -> __m512i =
            _mm512_dpbusd_epi32(acc, codes, factors);
        join_bytes(high: __m512i, low: __m512i) -> __m512i =
            _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low);
        to_floats(x: __m512i) -> __m512 = _mm512_cvtepi32_ps(x);
        to_whole(x: __m512) -> __m512i = _mm512_cvtps_epi32(x);
        splat(x: f32) -> __m512 = _mm512_set1_ps(x);
        add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
        mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
        fma(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
        max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
        select_less(a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 =
            // Asked the other way round, zeros for `x` take no operation of their own.
            _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(a, b), x, y);
        round(a: __m512) -> __m512 =
            _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
        scale_by_power(a: __m512, n: __m512) -> __m512 = _mm512_scalef_ps(a, n);
        scale_down(a: __m512, n: __m512) -> __m512 = _mm512_scalef_ps(a, n);
        abs(a: __m512) -> __m512 = _mm512_abs_ps(a);
        copy_sign(a: __m512, sign: __m512) -> __m512 = {
            let bit = _mm512_set1_ps(-0.0);
            _mm512_or_ps(_mm512_andnot_ps(bit, a), _mm512_and_ps(bit, sign))
        };
        keep(v: __m512, lo: i32, hi: i32, fill: __m512) -> __m512 = {
            let below = |n: i32| ((1u32 << n.clamp(0, 16)) - 1) as __mmask16;
            _mm512_mask_blend_ps(below(hi) & !below(lo), fill, v)
        };
        tops(v: [__m512; 4]) -> [f32; 4] = folded(
            v,
            |a, b| _mm512_max_ps(a, b),
            |a, b| _mm_max_ps(a, b),
        );
        sums(v: [__m512; 4]) -> [f32; 4] = folded(
            v,
            |a, b| _mm512_add_ps(a, b),
            |a, b| _mm_add_ps(a, b),
        );
        reduce_max(v: __m512) -> f32 = {
            let half = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            super::avx2::max_of_8(half)
        };
        reduce_add(v: __m512) -> f32 = {
            let half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            super::avx2::sum_of_8(half)
        };
    }
}

/// The lanes of each of four vectors folded: pairs of lanes of all four first, side by side, so that it
/// takes a third of the instructions that one after another would.
///
/// # Safety
/// The processor offers AVX-512 F and DQ.
#[inline(always)]
unsafe fn folded(
    [a, b, c, d]: [__m512; 4],
    fold: impl Fn(__m512, __m512) -> __m512,
    fold_four: impl Fn(__m128, __m128) -> __m128,
) -> [f32; 4] {
    // SAFETY: register arithmetic; the array is as long as what is stored to it.
    unsafe {
        let ab = fold(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let cd = fold(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        // In every 128 bits now a, b, a, b and c, d, c, d.
        let all = fold(
            _mm512_shuffle_ps::<0b01_00_01_00>(ab, cd),
            _mm512_shuffle_ps::<0b11_10_11_10>(ab, cd),
        );
        let low = fold_four(
            _mm512_castps512_ps128(all),
            _mm512_extractf32x4_ps::<2>(all),
        );
        let high = fold_four(
            _mm512_extractf32x4_ps::<1>(all),
            _mm512_extractf32x4_ps::<3>(all),
        );
        let mut folded = [0f32; 4];
        _mm_storeu_ps(folded.as_mut_ptr(), fold_four(low, high));
        folded
    }
}

/// [`Lanes::expand_rows`] with instructions that put halves where bits say.
///
/// # Safety
/// The processor offers them; otherwise as there.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,popcnt,bmi1,bmi2")]
unsafe fn expand_rows_of_halves(rows: &SparseRows) {
    let mut next = rows.next;
    // SAFETY: the caller vouches for the memory: loads read as many numbers as there are bits, and
    // stores write `count` of them, a multiple of 16.
    unsafe {
        rows.each_word(|bits, from, to, count| {
            // At most two lines a word.
            _mm_prefetch::<_MM_HINT_T1>(next.cast());
            _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(rows.next_step / 2).cast());
            next = next.wrapping_add(rows.next_step);
            let (low, high) = (bits as u32, (bits >> 32) as u32);
            let (of_low, of_high) = (low.count_ones(), high.count_ones());
            let then = from.wrapping_add(of_low as usize * 2);
            // Whole vectors where as much is there: near the end only what has bits.
            let is_far = rows.end as usize - from as usize >= 192;
            let halves = |from: *const u8, count: u32| {
                if is_far {
                    _mm512_loadu_si512(from.cast())
                } else {
                    let there = (1u64 << count) - 1;
                    _mm512_maskz_loadu_epi16(there as __mmask32, from.cast())
                }
            };
            let first = _mm512_maskz_expand_epi16(low, halves(from, of_low));
            if count >= 32 {
                _mm512_storeu_si512(to.cast(), first);
            } else {
                _mm256_storeu_si256(to.cast(), _mm512_castsi512_si256(first));
            }
            if count > 32 {
                let second = _mm512_maskz_expand_epi16(high, halves(then, of_high));
                if count == 64 {
                    _mm512_storeu_si512(to.add(64).cast(), second);
                } else {
                    _mm256_storeu_si256(to.add(64).cast(), _mm512_castsi512_si256(second));
                }
            }
        });
    }
}

/// The same by way of floats.
///
/// # Safety
/// The processor offers AVX-512 F; otherwise as there.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn expand_rows_of_floats(rows: &SparseRows) {
    // SAFETY: as above, sixteen numbers at a time.
    unsafe {
        rows.each_word(|bits, from, to, count| {
            let mut from = from;
            for at in (0..count).step_by(16) {
                let mask = (bits >> at) as __mmask16;
                let there = (1u32 << mask.count_ones()) - 1;
                let halves = _mm256_maskz_loadu_epi16(there as __mmask16, from.cast());
                let whole = _mm512_maskz_expand_ps(mask, _mm512_cvtph_ps(halves));
                let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(whole);
                _mm256_storeu_si256(to.add(at * 2).cast(), halves);
                from = from.wrapping_add(mask.count_ones() as usize * 2);
            }
        });
    }
}
