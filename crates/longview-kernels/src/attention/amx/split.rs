//! Numbers as sums of bf16, which tiles multiply.
//!
//! A bf16 is the upper half of an f32, and has eight significant bits. What is left of a number after
//! cutting it off there is exact, so three of them are any f32 and two any f16.
//! Sixteen neighbours and the sixteen after them lie in turns: (0, 16), (1, 17) and so on, which takes one
//! shift instead of a shuffle.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::amx::{ROW, ROWS, TILE};
use crate::attention::fetch::Pace;
use crate::lanes::Lanes;
use crate::page::PAGE_TOKENS;

/// Numbers that a tile product sums up.
pub(super) const DEPTH: usize = 2 * ROWS;
/// Parts of an f32.
pub(super) const FLOAT_PARTS: usize = 3;
/// Parts of an f16.
pub(super) const HALF_PARTS: usize = 2;

/// Writes the f32 `row` as row `at` of tiles `[DEPTH numbers each][FLOAT_PARTS]`; what the last lacks is zeros.
///
/// # Safety
/// The processor offers AVX-512 BW; so many tiles may be written at `to`.
#[inline(always)]
pub(super) unsafe fn split_row(row: &[f32], to: *mut u8, at: usize) {
    for (step, numbers) in row.chunks(DEPTH).enumerate() {
        // SAFETY: the masks cover what there is; the rest is the caller's promise.
        unsafe {
            let mask = u32::MAX >> (DEPTH - numbers.len());
            let from = numbers.as_ptr();
            let a = _mm512_maskz_loadu_ps(mask as __mmask16, from);
            let b = _mm512_maskz_loadu_ps((mask >> 16) as __mmask16, from.wrapping_add(16));
            split_floats(a, b, to.add(step * FLOAT_PARTS * TILE + at * ROW));
        }
    }
}

/// Writes 32 numbers to a row of the tile of each part.
///
/// # Safety
/// As [`split_row`].
#[inline(always)]
pub(super) unsafe fn split_floats(a: __m512, b: __m512, to: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe {
        let (first, a, b) = cut_off(a, b);
        let (second, a, b) = cut_off(a, b);
        let (third, ..) = cut_off(a, b);
        _mm512_store_si512(to.cast(), first);
        _mm512_store_si512(to.add(TILE).cast(), second);
        _mm512_store_si512(to.add(2 * TILE).cast(), third);
    }
}

/// Writes the f16 `keys [dim][64]` as tiles `[DEPTH channels each][16 tokens each][HALF_PARTS]`, channels
/// that are missing as zeros, and asks for a line of `next` every 32 numbers. Calls `beside` with how many
/// rows of tiles there are already.
///
/// # Safety
/// The processor offers AVX-512 BW and F16C; so many tiles may be written at `to`.
#[inline(always)]
pub(super) unsafe fn split_keys<L: Lanes>(
    l: L,
    keys: &[u8],
    dim: usize,
    to: *mut u8,
    next: Pace,
    beside: impl FnMut(usize),
) {
    assert_eq!(keys.len(), 2 * PAGE_TOKENS * dim, "a page of keys");
    // SAFETY: channels that are there are read; the rest is the caller's promise.
    unsafe {
        let steps = dim.div_ceil(DEPTH);
        split_page(l, keys, PAGE_TOKENS, steps, 0..dim, to, next, beside);
    }
}

/// Writes the f16 `values [64][stride]` as tiles `[DEPTH tokens each][16 channels each][HALF_PARTS]`, those
/// of tokens outside of `slots` as zeros. Otherwise as [`split_keys`].
///
/// # Safety
/// As [`split_keys`].
#[inline(always)]
pub(super) unsafe fn split_values<L: Lanes>(
    l: L,
    values: &[u8],
    stride: usize,
    slots: &Range<usize>,
    to: *mut u8,
    next: Pace,
    beside: impl FnMut(usize),
) {
    assert_eq!(values.len(), 2 * PAGE_TOKENS * stride, "a page of values");
    // SAFETY: all tokens may be read; the rest is the caller's promise.
    unsafe {
        let steps = PAGE_TOKENS / DEPTH;
        split_page(l, values, stride, steps, slots.clone(), to, next, beside);
    }
}

/// Writes the rows `there` of `page [rows][width]`, and zeros for others, as tiles
/// `[steps of DEPTH rows][width / 16][HALF_PARTS]`.
///
/// # Safety
/// As [`split_keys`]; those rows may be read.
#[expect(
    clippy::too_many_arguments,
    reason = "a matrix, where it goes, and what is done beside"
)]
#[inline(always)]
unsafe fn split_page<L: Lanes>(
    l: L,
    page: &[u8],
    width: usize,
    steps: usize,
    there: Range<usize>,
    to: *mut u8,
    mut next: Pace,
    mut beside: impl FnMut(usize),
) {
    let groups = width / 16;
    for step in 0..steps {
        for pair in 0..ROWS {
            let first = step * DEPTH + pair;
            let from = page.as_ptr().wrapping_add(2 * width * first);
            let to = to.wrapping_add(step * groups * HALF_PARTS * TILE + pair * ROW);
            let other = from.wrapping_add(2 * width * ROWS);
            let are_there = [there.contains(&first), there.contains(&(first + ROWS))];
            // SAFETY: the caller's promise.
            unsafe {
                match are_there {
                    [true, true] => {
                        split_rows(
                            l,
                            groups,
                            |at| [load(from, at), load(other, at)],
                            to,
                            &mut next,
                        );
                    }
                    [is_first, is_other] => {
                        let load = |is_there, from, at| match is_there {
                            true => load(from, at),
                            false => _mm512_setzero_ps(),
                        };
                        let both = |at| [load(is_first, from, at), load(is_other, other, at)];
                        split_rows(l, groups, both, to, &mut next);
                    }
                }
            }
            beside(step * ROWS + pair + 1);
        }
    }
}

/// Writes two rows, of which `both` gives sixteen numbers of each, as a row of `groups` tiles.
///
/// # Safety
/// As [`split_keys`].
#[inline(always)]
unsafe fn split_rows<L: Lanes>(
    l: L,
    groups: usize,
    both: impl Fn(usize) -> [__m512; 2],
    to: *mut u8,
    next: &mut Pace,
) {
    for group in 0..groups {
        next.next_of_halves(l);
        let [a, b] = both(group);
        // SAFETY: the caller's promise.
        unsafe { split_halves(a, b, to.add(group * HALF_PARTS * TILE)) };
    }
}

/// The sixteen f16 that are `at` times as many after `from`.
///
/// # Safety
/// They may be read, and the processor offers F16C and AVX-512 F.
#[inline(always)]
unsafe fn load(from: *const u8, at: usize) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.wrapping_add(32 * at).cast())) }
}

/// Whether all f16 of the tokens `slots` of `values [64][stride]` are numbers, and finite ones.
#[inline(always)]
pub(super) fn are_finite(values: &[u8], stride: usize, slots: &Range<usize>) -> bool {
    const EXPONENT: u8 = 0x7c;
    let values = &values[2 * stride * slots.start..2 * stride * slots.end];
    let halves = values.chunks_exact(2);
    // All of them, which vectors do faster than they find the first.
    !halves.fold(false, |found, half| {
        found | (half[1] & EXPONENT == EXPONENT)
    })
}

/// Writes two rows of sixteen numbers with eleven significant bits to a row of the tile of each part.
///
/// # Safety
/// As [`split_keys`].
#[inline(always)]
unsafe fn split_halves(a: __m512, b: __m512, to: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe {
        let (cut, a, b) = cut_off(a, b);
        let (rest, ..) = cut_off(a, b);
        _mm512_store_si512(to.cast(), cut);
        _mm512_store_si512(to.add(TILE).cast(), rest);
    }
}

/// The first eight bits of every number of `a` and `b`, as pairs of bf16, and what is left of them.
///
/// # Safety
/// The processor offers AVX-512 F.
#[inline(always)]
unsafe fn cut_off(a: __m512, b: __m512) -> (__m512i, __m512, __m512) {
    // SAFETY: register arithmetic.
    unsafe {
        let upper = _mm512_set1_epi32(0xffff_0000u32 as i32);
        let whole = [_mm512_castps_si512(a), _mm512_castps_si512(b)];
        let low = _mm512_srli_epi32::<16>(whole[0]);
        // In every bit the second where `upper` is, else the first.
        let pairs = _mm512_ternarylogic_epi32::<0xca>(upper, whole[1], low);
        let cut = |x| _mm512_castsi512_ps(_mm512_and_si512(x, upper));
        let rest = |x, whole| _mm512_sub_ps(x, cut(whole));
        (pairs, rest(a, whole[0]), rest(b, whole[1]))
    }
}
