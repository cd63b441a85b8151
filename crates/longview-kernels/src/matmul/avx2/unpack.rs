//! A segment of a panel → codes, scales and minima in memory.
//!
//! The vector twin of [`crate::packed::lane`], which defines the layout, with codes as they are
//! rather than shifted to the top of their byte: the 8-bit products of AVX2 saturate.

use std::arch::x86_64::*;

use crate::format::IQ4_VALUES;
use crate::matmul::source::{Planes, Segment, Source};
use crate::packed::layout::{BLOCK, LANES, Layout, SEGMENT, Scales};

/// An unpacked segment.
#[repr(align(64))]
pub(super) struct Unpacked {
    /// `[block][group][row][4]`: unsigned in formats of fewer than 8 bits, else signed.
    pub(super) codes: [[u8; LANES * BLOCK]; SEGMENT],
    /// `[block][half][row]`.
    pub(super) scale: [[[f32; LANES]; 2]; SEGMENT],
    /// `[block][half][row]`, added.
    pub(super) min: [[[f32; LANES]; 2]; SEGMENT],
}

/// Bits of a code of `layout`; 8 stands for signed values.
pub(super) const fn bits(layout: &Layout) -> usize {
    if layout.table {
        8
    } else {
        layout.top_bits + layout.low_bits
    }
}

impl Unpacked {
    pub(super) const ZERO: Unpacked = Unpacked {
        codes: [[0; LANES * BLOCK]; SEGMENT],
        scale: [[[0.0; LANES]; 2]; SEGMENT],
        min: [[[0.0; LANES]; 2]; SEGMENT],
    };

    /// Unpacks segment `at` of a panel; returns its number of blocks.
    ///
    /// # Safety
    /// The processor offers AVX2 and F16C; `panel` is a packed panel of `S` with `blocks` blocks,
    /// and `8 · at < blocks`.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn read<S: Source>(
        &mut self,
        panel: *const u8,
        blocks: usize,
        at: usize,
    ) -> usize {
        // SAFETY: the caller's promise; blocks are counted inside the segment.
        unsafe {
            let (segment, count) = Segment::at::<S>(panel, blocks, at);
            for b in 0..count {
                segment.prefetch::<S>(b);
                let planes = segment.planes::<S>(b);
                codes::<S>(planes, self.codes[b].as_mut_ptr());
                for half in 0..2 {
                    let (scale, min) = scales::<S>(planes, half);
                    for s in 0..2 {
                        _mm256_storeu_ps(self.scale[b][s].as_mut_ptr().add(8 * half), scale[s]);
                        _mm256_storeu_ps(self.min[b][s].as_mut_ptr().add(8 * half), min[s]);
                    }
                }
            }
            count
        }
    }
}

/// Writes a block's codes.
///
/// # Safety
/// `planes` are a block's, `out` has room for its 512 codes.
#[inline(always)]
unsafe fn codes<S: Source>(planes: Planes, out: *mut u8) {
    let layout = S::LAYOUT;
    // SAFETY: loads inside the block's planes, stores inside `out`.
    unsafe {
        for half in 0..2 {
            let load = |plane: *const u8, j: usize| {
                _mm256_loadu_si256(plane.add(64 * j + 32 * half).cast())
            };
            // Field `field` of `width` bits of each byte, as the lowest bits.
            let field = |word: __m256i, field: usize, width: usize| {
                let count = _mm_cvtsi32_si128((field * width) as i32);
                let mask = _mm256_set1_epi8(((1u32 << width) - 1) as i8);
                _mm256_and_si256(_mm256_srl_epi16(word, count), mask)
            };
            for g in 0..8 {
                let upper = match layout.top_bits {
                    8 => _mm256_xor_si256(load(planes.top, g), _mm256_set1_epi8(-128)),
                    4 => field(load(planes.top, g % 4), g / 4, 4),
                    _ => field(load(planes.top, g % 2), g / 2, 2),
                };
                let code = match layout.low_bits {
                    0 if layout.table => _mm256_shuffle_epi8(table(), upper),
                    0 => upper,
                    1 => {
                        let lower = field(load(planes.low, 0), g, 1);
                        _mm256_or_si256(_mm256_slli_epi16::<1>(upper), lower)
                    }
                    _ => {
                        let lower = field(load(planes.low, g % 2), g / 2, 2);
                        _mm256_or_si256(_mm256_slli_epi16::<2>(upper), lower)
                    }
                };
                _mm256_storeu_si256(out.add(64 * g + 32 * half).cast(), code);
            }
        }
    }
}

/// The values of `IQ4_NL` in both 128-bit lanes.
#[inline(always)]
unsafe fn table() -> __m256i {
    // SAFETY: 16 bytes are read from an array of 16.
    unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(IQ4_VALUES.as_ptr().cast())) }
}

/// Scales and minima of eight rows, for each half of the block.
///
/// # Safety
/// `planes` are a block's.
#[inline(always)]
unsafe fn scales<S: Source>(planes: Planes, half: usize) -> ([__m256; 2], [__m256; 2]) {
    let layout = S::LAYOUT;
    // SAFETY: loads inside the block's planes.
    unsafe {
        let float = |plane: *const u8, at: usize| {
            _mm256_cvtph_ps(_mm_loadu_si128(plane.add(32 * at + 16 * half).cast()))
        };
        let bytes = |at: usize| _mm_loadl_epi64(planes.scales.add(16 * at + 8 * half).cast());
        let unsigned = |bytes: __m128i| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
        let signed = |bytes: __m128i| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
        let negate = |min: __m256| _mm256_sub_ps(_mm256_setzero_ps(), min);
        let zero = _mm256_setzero_ps();
        match layout.scales {
            Scales::Half | Scales::Rounded => ([float(planes.scales, 0); 2], [zero; 2]),
            Scales::HalfMin => ([float(planes.scales, 0); 2], [float(planes.scales, 1); 2]),
            Scales::Small => {
                let factor = float(planes.factors, 0);
                let scale = |s: usize| _mm256_mul_ps(factor, signed(bytes(s)));
                ([scale(0), scale(layout.subs - 1)], [zero; 2])
            }
            Scales::SmallMin => {
                let scale = _mm256_mul_ps(float(planes.factors, 0), unsigned(bytes(0)));
                let min = _mm256_mul_ps(negate(float(planes.factors, 1)), unsigned(bytes(1)));
                ([scale; 2], [min; 2])
            }
            Scales::NibbleMin => {
                let (factor, min) = (float(planes.factors, 0), negate(float(planes.factors, 1)));
                let mask = _mm_set1_epi8(15);
                let low = |s: usize| unsigned(_mm_and_si128(bytes(s), mask));
                let high = |s: usize| unsigned(_mm_and_si128(_mm_srli_epi16::<4>(bytes(s)), mask));
                (
                    [_mm256_mul_ps(factor, low(0)), _mm256_mul_ps(factor, low(1))],
                    [_mm256_mul_ps(min, high(0)), _mm256_mul_ps(min, high(1))],
                )
            }
        }
    }
}
