//! Segments of panels for products with tiles: codes times the scales of their blocks.
//!
//! Where scales are whole numbers, scale · code has up to sixteen bits: 256 times one byte, and another.
//! A tile product of 64 elements with each of the two is a part of the segment's sum as it is, with
//! nothing to scale in between.

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::unpack::{DROPPED, Factors, SmallBlock, Unit, pair_of_minima};
use super::unpacked::{CODES, VECTOR};
use crate::matmul::source::{Segment, Source};
use crate::matmul::wide;
use crate::packed::Packed;
use crate::packed::layout::{BLOCK, SEGMENT};

/// Bytes of the high bytes of a panel, and of the low ones.
pub(super) const PLANE: usize = SEGMENT * CODES;
/// Pairs of minima of a segment at most.
const PAIRS: usize = SEGMENT;
/// Bytes of what a panel has beside its codes.
const BESIDE: usize = (2 + PAIRS) * VECTOR;

/// A segment of each panel of a tile: for each panel the high and the low bytes, `[block][group][row][4]`
/// (those two's complement in formats without minima), then for each panel its factors `[2][row]` and pairs of
/// minima `[pair][row][2]` i16, of two blocks or of a block's halves.
#[repr(align(64))]
pub(super) struct Folded<S> {
    room: MaybeUninit<[u8; wide::PANELS * (2 * PLANE + BESIDE)]>,
    source: PhantomData<S>,
}

/// Where the codes of panel `slot` are.
const fn codes_at(slot: usize) -> usize {
    slot * 2 * PLANE
}

/// Where what stands beside them is.
const fn beside_at(slot: usize) -> usize {
    codes_at(wide::PANELS) + slot * BESIDE
}

impl<S: Source> Folded<S> {
    pub(super) fn new() -> Self {
        Folded {
            room: MaybeUninit::uninit(),
            source: PhantomData,
        }
    }

    /// The codes of panel `slot`.
    pub(super) fn codes(&self, slot: usize) -> *const u8 {
        self.start().wrapping_add(codes_at(slot))
    }

    /// The factors of panel `slot`, and after them its minima.
    pub(super) fn beside(&self, slot: usize) -> *const u8 {
        self.start().wrapping_add(beside_at(slot))
    }

    fn start(&self) -> *const u8 {
        self.room.as_ptr().cast()
    }

    /// Unpacks the segment of `panel` that begins with element `first` as panel `slot`.
    pub(super) fn unpack(&mut self, w: &Packed, panel: usize, slot: usize, first: usize) {
        assert!(slot < wide::PANELS && first.is_multiple_of(SEGMENT * BLOCK) && first < w.k());
        let start = self.room.as_mut_ptr().cast::<u8>();
        let codes = start.wrapping_add(codes_at(slot));
        let beside = start.wrapping_add(beside_at(slot));
        let panel = w.panel(panel).as_ptr();
        // SAFETY: `Isa::Amx` runs only where the processor offers the features; the segment is the
        // panel's, and there is room for what is made of it.
        unsafe {
            fold::<S>(
                panel,
                w.k() / BLOCK,
                first / (SEGMENT * BLOCK),
                codes,
                beside,
            )
        };
    }
}

/// Σ minimum · x of a row, given `beside` of a panel behind its factors and the row's sums of codes, as
/// many pairs of i16.
///
/// # Safety
/// So many are there; the caller has the features enabled.
#[inline(always)]
pub(super) unsafe fn times_minima<S: Source>(minima: *const u8, sums: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sum = _mm512_setzero_si512();
        for pair in 0..S::LAYOUT.subs * SEGMENT / 2 {
            let minima = _mm512_load_si512(minima.add(VECTOR * pair).cast());
            let of_row = sums.add(4 * pair).cast::<i32>().read_unaligned();
            sum = _mm512_dpwssd_epi32(sum, minima, _mm512_set1_epi32(of_row));
        }
        _mm512_cvtepi32_ps(sum)
    }
}

/// Folds segment `at` of `panel`; blocks that it lacks are zeros.
///
/// # Safety
/// The processor offers the features; the segment lies in the panel of so many blocks, and there is room
/// for the two planes and what stands beside them, aligned to 64 bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn fold<S: Source>(
    panel: *const u8,
    blocks: usize,
    at: usize,
    codes: *mut u8,
    beside: *mut u8,
) {
    let layout = S::LAYOUT;
    // SAFETY: the caller's promise; blocks are counted inside the segment.
    unsafe {
        let (segment, count) = Segment::at::<S>(panel, blocks, at);
        debug_assert!(count == SEGMENT || !layout.has_min());
        let unit = Unit::of::<S>(segment, count);
        let twice = |small: __m512i| {
            let low = _mm512_and_si512(small, _mm512_set1_epi32(0xffff));
            _mm512_or_si512(low, _mm512_slli_epi32::<16>(small))
        };
        for b in 0..count {
            let block = SmallBlock::unpack::<S>(segment.planes::<S>(b), unit);
            let scales = [twice(block.scale[0]), twice(block.scale[1])];
            for (g, code) in block.codes.into_iter().enumerate() {
                let scale = scales[g / 4 * (layout.subs - 1)];
                let (high, low) = split::<S>(code, scale);
                let to = codes.add(b * CODES + g * VECTOR);
                _mm512_store_si512(to.cast(), high);
                _mm512_store_si512(to.add(PLANE).cast(), low);
            }
        }
        for plane in [codes, codes.add(PLANE)] {
            plane
                .add(count * CODES)
                .write_bytes(0, (SEGMENT - count) * CODES);
        }
        let factors = Factors::of::<S>(segment.planes::<S>(0), unit);
        _mm512_store_ps(beside.cast(), factors.scale);
        _mm512_store_ps(beside.add(VECTOR).cast(), factors.min);
        if layout.has_min() {
            let minima = beside.add(2 * VECTOR);
            for pair in 0..layout.subs * SEGMENT / 2 {
                let both = pair_of_minima::<S>(segment, pair);
                _mm512_store_si512(minima.add(VECTOR * pair).cast(), both);
            }
        }
    }
}

/// The high and the low byte of `code` times `scale`, in every byte; `scale` is the same in both halves of
/// a lane. Without minima codes are centred at 128, and the high byte has a sign; where bits are to be
/// dropped, they are.
///
/// # Safety
/// The caller has AVX-512 BW enabled.
#[inline(always)]
unsafe fn split<S: Source>(code: __m512i, scale: __m512i) -> (__m512i, __m512i) {
    // SAFETY: register arithmetic.
    unsafe {
        let below = _mm512_set1_epi16(0x00ff);
        let (even, odd) = if S::LAYOUT.has_min() {
            let even = _mm512_and_si512(code, below);
            (even, _mm512_srli_epi16::<8>(code))
        } else {
            let code = _mm512_xor_si512(code, _mm512_set1_epi8(-128));
            let (even, odd) = (_mm512_slli_epi16::<8>(code), code);
            let down = |code| match S::LAYOUT.dropped_bits() {
                0 => _mm512_srai_epi16::<8>(code),
                _ => _mm512_srai_epi16::<{ 8 + DROPPED }>(code),
            };
            (down(even), down(odd))
        };
        let (even, odd) = (
            _mm512_mullo_epi16(even, scale),
            _mm512_mullo_epi16(odd, scale),
        );
        // In every 16 bits the first where `below` is, else the second.
        let join = |first, second| _mm512_ternarylogic_epi32::<0xca>(below, first, second);
        let low = join(even, _mm512_slli_epi16::<8>(odd));
        (join(_mm512_srli_epi16::<8>(even), odd), low)
    }
}
