//! A panel's block → eight registers of codes and its scales.
//!
//! The vector twin of [`crate::packed::lane`], which defines the layout.

use std::arch::x86_64::*;

use crate::format::IQ4_VALUES;
use crate::matmul::source::{Planes, Segment, Source};
use crate::packed::layout::Scales;

/// A block of a panel in registers, in the terms of [`crate::packed::lane::LaneBlock`].
#[derive(Clone, Copy)]
pub(super) struct Block {
    /// Register `g`: group `g` of the 16 outputs.
    pub(super) codes: [__m512i; 8],
    pub(super) scale: [__m512; 2],
    pub(super) min: [__m512; 2],
}

impl Block {
    /// Unpacks a block of `S`.
    ///
    /// # Safety
    /// `planes` are those of a block of `S`; the caller has AVX-512 F, BW and F16C enabled.
    #[inline(always)]
    pub(super) unsafe fn unpack<S: Source>(planes: Planes) -> Block {
        // SAFETY: the caller's promise.
        unsafe {
            let (scale, min) = scales::<S>(planes.scales, planes.factors);
            Block {
                codes: codes::<S>(planes.top, planes.low),
                scale,
                min,
            }
        }
    }
}

/// A block of a panel whose scales are whole numbers, in units of the segment's factor.
#[derive(Clone, Copy)]
pub(super) struct SmallBlock {
    /// As [`Block::codes`].
    pub(super) codes: [__m512i; 8],
    /// Scale of each half; of the whole block where it has but one.
    pub(super) scale: [__m512i; 2],
}

impl SmallBlock {
    /// Unpacks a block of `S`, given its segment's unit.
    ///
    /// # Safety
    /// As [`Block::unpack`].
    #[inline(always)]
    pub(super) unsafe fn unpack<S: Source>(planes: Planes, unit: Unit) -> SmallBlock {
        // SAFETY: the caller's promise.
        unsafe {
            SmallBlock {
                codes: codes::<S>(planes.top, planes.low),
                scale: small_scales::<S>(planes, unit),
            }
        }
    }
}

/// `sums` and a block's dot products times its scales, whole numbers.
///
/// # Safety
/// The caller has AVX-512 VNNI enabled.
#[inline(always)]
pub(super) unsafe fn add_scaled<S: Source>(
    sums: __m512i,
    dots: __m512i,
    scale: __m512i,
) -> __m512i {
    // SAFETY: register arithmetic.
    unsafe {
        match S::LAYOUT.dropped_bits() {
            0 => _mm512_add_epi32(sums, _mm512_mullo_epi32(dots, scale)),
            _ => add_short(sums, dots, scale),
        }
    }
}

/// The same for codes of four bits, as far as they are from their centre, in sixteenths: sixteen bits hold the
/// sum of 32 of them times bytes, and the scale.
///
/// # Safety
/// The caller has AVX-512 VNNI enabled.
#[inline(always)]
pub(super) unsafe fn add_short(sums: __m512i, dots: __m512i, scale: __m512i) -> __m512i {
    // SAFETY: register arithmetic.
    unsafe { _mm512_dpwssd_epi32(sums, _mm512_srai_epi32::<DROPPED>(dots), scale) }
}

/// [`crate::packed::layout::Layout::dropped_bits`] where there are any.
pub(super) const DROPPED: u32 = 4;

/// One over what rounded scales of a segment are multiples of (see [`crate::packed::lane::unit`]), powers of
/// two; nothing that is read where scales are not rounded.
#[derive(Clone, Copy)]
pub(super) struct Unit(__m512);

impl Unit {
    /// That of a segment of so many blocks.
    ///
    /// # Safety
    /// The segment is one of a panel of `S`; the caller has AVX-512 F, VL and F16C enabled.
    #[inline(always)]
    pub(super) unsafe fn of<S: Source>(segment: Segment, blocks: usize) -> Unit {
        const { assert!(S::LAYOUT.dropped_bits() == 0 || S::LAYOUT.dropped_bits() == DROPPED as usize) };
        // SAFETY: loads of the blocks' scales.
        unsafe {
            if !matches!(S::LAYOUT.scales, Scales::Rounded) {
                return Unit(_mm512_setzero_ps());
            }
            let mut largest = _mm256_setzero_si256();
            for b in 0..blocks {
                let scales = _mm256_loadu_si256(segment.planes::<S>(b).scales.cast());
                let magnitude = _mm256_and_si256(scales, _mm256_set1_epi16(0x7fff));
                largest = _mm256_max_epu16(largest, magnitude);
            }
            let power = _mm512_castps_si512(_mm512_cvtph_ps(largest));
            let power = _mm512_and_si512(power, _mm512_set1_epi32(0x7f80_0000));
            // The exponent that brings 2ᵉ to 2¹¹; of infinities and zeros any number will do.
            let inverse = _mm512_sub_epi32(_mm512_set1_epi32(Unit::BOTH), power);
            Unit(_mm512_castsi512_ps(inverse))
        }
    }

    /// The exponents of a number and of 2¹¹ over it, added up, where they lie in a float.
    const BOTH: i32 = ((127_u32 + 127 + 11) << 23) as i32;

    /// What a whole number of units is to be multiplied by.
    ///
    /// # Safety
    /// The caller has AVX-512 F enabled.
    #[inline(always)]
    unsafe fn factor(self) -> __m512 {
        // SAFETY: register arithmetic.
        unsafe {
            let inverse = _mm512_castps_si512(self.0);
            let power = _mm512_sub_epi32(_mm512_set1_epi32(Unit::BOTH), inverse);
            _mm512_mul_ps(_mm512_castsi512_ps(power), _mm512_set1_ps(1.0 / 2048.0))
        }
    }

    /// Scales as multiples of the unit, in the lower half of each lane.
    ///
    /// # Safety
    /// As above.
    #[inline(always)]
    unsafe fn round(self, scales: __m512) -> __m512i {
        // SAFETY: register arithmetic.
        unsafe {
            let whole = _mm512_cvtps_epi32(_mm512_mul_ps(scales, self.0));
            _mm512_and_si512(whole, _mm512_set1_epi32(0xffff))
        }
    }
}

/// The factors of a segment, and what its sums of whole numbers become with them.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    pub(super) scale: __m512,
    /// That of the minima, which are added.
    pub(super) min: __m512,
}

impl Factors {
    /// # Safety
    /// `planes` are those of a block of the segment, `unit` its own; the caller has AVX-512 F and F16C
    /// enabled.
    #[inline(always)]
    pub(super) unsafe fn of<S: Source>(planes: Planes, unit: Unit) -> Factors {
        let layout = S::LAYOUT;
        // SAFETY: loads inside the segment's factors.
        unsafe {
            if layout.factor_bytes() == 0 {
                return Factors {
                    scale: unit.factor(),
                    min: _mm512_setzero_ps(),
                };
            }
            let half =
                |at: usize| _mm512_cvtph_ps(_mm256_loadu_si256(planes.factors.add(32 * at).cast()));
            let zero = _mm512_setzero_ps();
            Factors {
                scale: _mm512_mul_ps(half(0), _mm512_set1_ps(layout.widening())),
                min: match layout.has_min() {
                    true => _mm512_sub_ps(zero, half(1)),
                    false => zero,
                },
            }
        }
    }

    /// `sum` and what a segment adds to it: Σ scale · code · x is `scaled`, Σ minimum · x `minima`.
    ///
    /// # Safety
    /// The caller has AVX-512 F enabled.
    #[inline(always)]
    pub(super) unsafe fn add<S: Source>(
        &self,
        sum: __m512,
        scaled: __m512i,
        minima: impl FnOnce() -> __m512,
        x_scale: f32,
    ) -> __m512 {
        // SAFETY: register arithmetic.
        unsafe {
            let mut dot = _mm512_mul_ps(_mm512_cvtepi32_ps(scaled), self.scale);
            if S::LAYOUT.has_min() {
                dot = _mm512_fmadd_ps(minima(), self.min, dot);
            }
            _mm512_fmadd_ps(dot, _mm512_set1_ps(x_scale), sum)
        }
    }
}

/// # Safety
/// As [`Block::unpack`].
#[inline(always)]
unsafe fn small_scales<S: Source>(planes: Planes, unit: Unit) -> [__m512i; 2] {
    // SAFETY: loads inside the block's scales.
    unsafe {
        let bytes = |at: usize| _mm_loadu_si128(planes.scales.add(16 * at).cast());
        match S::LAYOUT.scales {
            Scales::Rounded => {
                let scales = _mm512_cvtph_ps(_mm256_loadu_si256(planes.scales.cast()));
                [unit.round(scales); 2]
            }
            Scales::Small => {
                let last = S::LAYOUT.subs - 1;
                [0, last].map(|at| _mm512_cvtepi8_epi32(bytes(at)))
            }
            Scales::NibbleMin => {
                [0, 1].map(|at| _mm512_cvtepu8_epi32(_mm_and_si128(bytes(at), _mm_set1_epi8(15))))
            }
            _ => [_mm512_cvtepu8_epi32(bytes(0)); 2],
        }
    }
}

/// The minima of each half of a block, whole numbers; of the whole block where it has but one.
///
/// # Safety
/// As [`Block::unpack`]; the format has minima.
#[inline(always)]
pub(super) unsafe fn small_minima<S: Source>(planes: Planes) -> [__m512i; 2] {
    // SAFETY: loads inside the block's scales.
    unsafe {
        let bytes = |at: usize| _mm_loadu_si128(planes.scales.add(16 * at).cast());
        match S::LAYOUT.scales {
            Scales::NibbleMin => [0, 1].map(|at| {
                let high = _mm_srli_epi16::<4>(bytes(at));
                _mm512_cvtepu8_epi32(_mm_and_si128(high, _mm_set1_epi8(15)))
            }),
            _ => [_mm512_cvtepu8_epi32(bytes(1)); 2],
        }
    }
}

/// Pair `pair` of the minima of a whole segment, as i16: of two blocks, or of the halves of one.
///
/// # Safety
/// The segment is a whole one of a panel of `S`, which has minima; the caller has the features enabled.
#[inline(always)]
pub(super) unsafe fn pair_of_minima<S: Source>(segment: Segment, pair: usize) -> __m512i {
    // SAFETY: the blocks are the segment's.
    unsafe {
        let of_block = |b: usize| small_minima::<S>(segment.planes::<S>(b));
        let [first, second] = match S::LAYOUT.subs {
            1 => [of_block(2 * pair)[0], of_block(2 * pair + 1)[0]],
            _ => of_block(pair),
        };
        _mm512_or_si512(first, _mm512_slli_epi32::<16>(second))
    }
}

/// # Safety
/// `top` and `low` hold a block's planes.
#[inline(always)]
unsafe fn codes<S: Source>(top: *const u8, low: *const u8) -> [__m512i; 8] {
    let layout = S::LAYOUT;
    // SAFETY: every load is inside the block's planes.
    unsafe {
        let load = |plane: *const u8, j: usize| _mm512_loadu_si512(plane.add(64 * j).cast());
        let mut codes = [_mm512_setzero_si512(); 8];
        match layout.top_bits {
            8 => {
                codes = std::array::from_fn(|g| load(top, g));
            }
            4 if layout.table => {
                let table = table();
                let mask = _mm512_set1_epi8(15);
                for j in 0..4 {
                    let word = load(top, j);
                    codes[j] = _mm512_shuffle_epi8(table, _mm512_and_si512(word, mask));
                    let upper = _mm512_and_si512(_mm512_srli_epi16::<4>(word), mask);
                    codes[j + 4] = _mm512_shuffle_epi8(table, upper);
                }
            }
            4 => {
                let mask = _mm512_set1_epi8(0xf0u8 as i8);
                for j in 0..4 {
                    let word = load(top, j);
                    codes[j] = _mm512_slli_epi16::<4>(word);
                    codes[j + 4] = word;
                }
                match layout.low_bits {
                    0 => codes
                        .iter_mut()
                        .for_each(|code| *code = _mm512_and_si512(*code, mask)),
                    1 => {
                        let low = load(low, 0);
                        for (g, code) in codes.iter_mut().enumerate() {
                            *code = join(*code, mask, bits_to::<3>(low, g), 0x08);
                        }
                    }
                    _ => {
                        for (g, code) in codes.iter_mut().enumerate() {
                            let low = bits_to::<2>(load(low, g % 2), 2 * (g / 2));
                            *code = join(*code, mask, low, 0x0c);
                        }
                    }
                }
            }
            _ => {
                let mask = _mm512_set1_epi8(0xc0u8 as i8);
                for (g, code) in codes.iter_mut().enumerate() {
                    *code = bits_to::<6>(load(top, g % 2), 2 * (g / 2));
                    *code = if layout.low_bits == 0 {
                        _mm512_and_si512(*code, mask)
                    } else {
                        join(*code, mask, bits_to::<5>(load(low, 0), g), 0x20)
                    };
                }
            }
        }
        codes
    }
}

/// The values of `IQ4_NL`, offset by 128, in every 128-bit lane.
#[inline(always)]
unsafe fn table() -> __m512i {
    const WIDE: [u8; 16] = {
        let mut wide = [0; 16];
        let mut i = 0;
        while i < 16 {
            wide[i] = IQ4_VALUES[i] as u8 ^ 0x80;
            i += 1;
        }
        wide
    };
    // SAFETY: 16 bytes are read from an array of 16.
    unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(WIDE.as_ptr().cast())) }
}

/// Moves bit `from` of every byte to bit `TO`; the other bits are left as they fall.
#[inline(always)]
unsafe fn bits_to<const TO: i32>(word: __m512i, from: usize) -> __m512i {
    // SAFETY: register arithmetic; the caller has the features.
    unsafe {
        match TO - from as i32 {
            6 => _mm512_slli_epi16::<6>(word),
            5 => _mm512_slli_epi16::<5>(word),
            4 => _mm512_slli_epi16::<4>(word),
            3 => _mm512_slli_epi16::<3>(word),
            2 => _mm512_slli_epi16::<2>(word),
            1 => _mm512_slli_epi16::<1>(word),
            0 => word,
            -1 => _mm512_srli_epi16::<1>(word),
            -2 => _mm512_srli_epi16::<2>(word),
            -3 => _mm512_srli_epi16::<3>(word),
            _ => _mm512_srli_epi16::<4>(word),
        }
    }
}

/// `(upper & mask) | (lower & low_mask)`.
#[inline(always)]
unsafe fn join(upper: __m512i, mask: __m512i, lower: __m512i, low_mask: i8) -> __m512i {
    // SAFETY: register arithmetic; the caller has the features.
    unsafe {
        let lower = _mm512_and_si512(lower, _mm512_set1_epi8(low_mask));
        _mm512_ternarylogic_epi32::<0xea>(upper, mask, lower)
    }
}

/// # Safety
/// `scales` holds a block's scales and `factors` its segment's factors.
#[inline(always)]
unsafe fn scales<S: Source>(scales: *const u8, factors: *const u8) -> ([__m512; 2], [__m512; 2]) {
    let layout = S::LAYOUT;
    // SAFETY: every load is inside the planes.
    unsafe {
        let half = |plane: *const u8, at: usize| {
            _mm512_cvtph_ps(_mm256_loadu_si256(plane.add(32 * at).cast()))
        };
        let bytes = |at: usize| _mm_loadu_si128(scales.add(16 * at).cast());
        let unsigned = |bytes: __m128i| _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
        let signed = |bytes: __m128i| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
        let widen = |scale: __m512| _mm512_mul_ps(scale, _mm512_set1_ps(layout.widening()));
        let negate = |min: __m512| _mm512_sub_ps(_mm512_setzero_ps(), min);
        let zero = _mm512_setzero_ps();
        match layout.scales {
            Scales::Half | Scales::Rounded => ([widen(half(scales, 0)); 2], [zero; 2]),
            Scales::HalfMin => ([widen(half(scales, 0)); 2], [half(scales, 1); 2]),
            Scales::Small => {
                let factor = widen(half(factors, 0));
                let first = _mm512_mul_ps(factor, signed(bytes(0)));
                if layout.subs == 1 {
                    return ([first; 2], [zero; 2]);
                }
                ([first, _mm512_mul_ps(factor, signed(bytes(1)))], [zero; 2])
            }
            Scales::SmallMin => {
                let scale = _mm512_mul_ps(widen(half(factors, 0)), unsigned(bytes(0)));
                let min = _mm512_mul_ps(negate(half(factors, 1)), unsigned(bytes(1)));
                ([scale; 2], [min; 2])
            }
            Scales::NibbleMin => {
                let (factor, min) = (widen(half(factors, 0)), negate(half(factors, 1)));
                let mask = _mm_set1_epi8(15);
                let low = |at: usize| unsigned(_mm_and_si128(bytes(at), mask));
                let high =
                    |at: usize| unsigned(_mm_and_si128(_mm_srli_epi16::<4>(bytes(at)), mask));
                (
                    [_mm512_mul_ps(factor, low(0)), _mm512_mul_ps(factor, low(1))],
                    [_mm512_mul_ps(min, high(0)), _mm512_mul_ps(min, high(1))],
                )
            }
        }
    }
}
