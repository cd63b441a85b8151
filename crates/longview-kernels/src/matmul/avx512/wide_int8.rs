//! Quantised weights · int8 activations of many rows.
//!
//! A tile is three panels times four rows: every word of activations that is loaded serves three
//! products, every register of codes four, and the sums stay in registers for a segment. What
//! stands between the products is the scaling of each block: 2 of 10 operations of the multipliers
//! where a block has one scale and no minimum, or codes of four bits; 3 of 11 otherwise, which are 4 of 12
//! where a product of 32-bit numbers is two operations.

use std::arch::x86_64::*;
use std::ops::Range;

use super::each;
use super::int8::fence;
use super::unpack::{Factors, add_scaled, add_short};
use super::unpacked::{BLOCKS, CODES, Place, Unpacked, VECTOR, WIDE_SLAB, slab_bytes};
use crate::activations::{Activations, ROW_RECORD};
use crate::matmul::source::Source;
use crate::matmul::wide::{Kernel, Tile, Tiles, walk};
use crate::matmul::{PANELS_TOGETHER, Part};
use crate::packed::Packed;
use crate::packed::layout::{BLOCK, Grain, LANES, SEGMENT};

/// Computes `part`, of at least four rows.
pub(super) fn wide_int8<S: Source>(part: &Part) {
    walk(part, &mut Wide::<S>(Unpacked::new()));
}

/// Slabs of panels, unpacked.
struct Wide<S>(Unpacked<S, false>);

impl<S: Source> Kernel for Wide<S> {
    const PANELS: usize = PANELS_TOGETHER;
    const GROUPS: usize = 1;
    const BLOCK_GROUPS: usize = 48;
    const SLAB: usize = BLOCKS * BLOCK;
    const WIDE_SLAB: usize = WIDE_SLAB;

    fn bytes(_w: &Packed, first: usize) -> Range<usize> {
        slab_bytes::<S>(first)
    }

    fn unpack(&mut self, w: &Packed, panel: usize, slot: usize, first: usize, count: usize) {
        self.0.unpack(w, panel, slot, first, count);
    }

    fn add(&mut self, x: &Activations, tiles: Tiles<'_>, first: usize, count: usize) {
        let grain = S::LAYOUT.grain();
        let stride = x.shape().record_bytes(grain);
        let records = &x.records(grain)[..(tiles.group + tiles.groups) * stride];
        let x = Records {
            start: records
                .as_ptr()
                .wrapping_add(tiles.group * stride + first / BLOCK * RECORD),
            stride,
            blocks: count / BLOCK,
        };
        let w = self.0.blocks();
        // SAFETY: the features as above; so many blocks of so many panels are unpacked, and the
        // records of the tiles' groups are there.
        unsafe {
            match tiles.panels {
                1 => compute::<S, 1>(w, x, tiles),
                2 => compute::<S, 2>(w, x, tiles),
                _ => compute::<S, 3>(w, x, tiles),
            }
        }
    }
}

/// Bytes of a group's record.
const RECORD: usize = 4 * ROW_RECORD;

/// Some records of each group of rows.
struct Records {
    /// The first of the first group.
    start: *const u8,
    /// Bytes from one group to the next.
    stride: usize,
    /// Records.
    blocks: usize,
}

/// Adds the unpacked blocks of `P` panels times the rows of the records `x` to the sums of `tiles`.
///
/// # Safety
/// The processor offers the features; `w` holds as many blocks of `P` panels as `x` has records for each
/// group of the tiles.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn compute<S: Source, const P: usize>(w: *const u8, x: Records, mut tiles: Tiles<'_>) {
    let mut start = x.start;
    while let Some(tile) = tiles.next(1) {
        // SAFETY: the caller's promise.
        unsafe { of_group::<S, P>(w, start, x.blocks, tile) };
        start = start.wrapping_add(x.stride);
    }
}

/// Adds `blocks` unpacked blocks of `P` panels times the four rows of the records `x` to the sums of
/// `tile`.
///
/// # Safety
/// As [`compute`].
#[inline(always)]
unsafe fn of_group<S: Source, const P: usize>(
    w: *const u8,
    x: *const u8,
    blocks: usize,
    tile: Tile,
) {
    // SAFETY: what is read and written lies inside what the caller promises.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 4]; P];
        each!(p < P, {
            each!(r < 4, {
                let from = tile.from.start.add(r * tile.from.stride + p * LANES);
                sums[p][r] = _mm512_loadu_ps(from);
            } of 4);
        } of 3);
        match S::LAYOUT.grain() {
            Grain::Block => {
                for b in 0..blocks {
                    let w = w.add(b * Place::<S>::BLOCK);
                    add::<S, P>(w, x.add(b * RECORD), &mut sums);
                }
            }
            Grain::Segment => {
                for at in 0..blocks.div_ceil(SEGMENT) {
                    let first = at * SEGMENT;
                    let count = SEGMENT.min(blocks - first);
                    let factors = w.add(Place::<S>::factors(at));
                    let w = w.add(first * Place::<S>::BLOCK);
                    add_segment::<S, P>(w, factors, count, x.add(first * RECORD), &mut sums);
                }
            }
        }
        each!(p < P, {
            each!(r < 4, {
                let to = tile.to.start.add(r * tile.to.stride + p * LANES);
                _mm512_storeu_ps(to, sums[p][r]);
            } of 4);
        } of 3);
    }
}

/// Adds the unpacked block `w` of `P` panels times the four rows of `record`.
///
/// # Safety
/// As [`compute`].
#[inline(always)]
unsafe fn add<S: Source, const P: usize>(
    w: *const u8,
    record: *const u8,
    sums: &mut [[__m512; 4]; P],
) {
    let layout = S::LAYOUT;
    // SAFETY: what is read lies inside the block and the record.
    unsafe {
        let part = |p: usize, at: usize| w.add(p * Place::<S>::PANEL + at);
        let ints = dots::<S, P>(w, record, 0);
        each!(p < P, {
            let scale = _mm512_load_ps(part(p, CODES).cast());
            each!(r < 4, {
                let float = |i: usize| {
                    let field = record.add(4 * BLOCK + 4 * (4 * i + r)).cast::<f32>();
                    _mm512_set1_ps(field.read_unaligned())
                };
                let mut dot = _mm512_mul_ps(_mm512_cvtepi32_ps(ints[p][r]), scale);
                if layout.has_min() {
                    let min = _mm512_load_ps(part(p, Place::<S>::MINIMA).cast());
                    dot = _mm512_fmadd_ps(min, float(3), dot);
                }
                sums[p][r] = _mm512_fmadd_ps(dot, float(0), sums[p][r]);
            } of 4);
            fence();
        } of 3);
    }
}

/// Adds the unpacked segment `w` of `blocks` blocks of `P` panels, whose `factors` are those of the first,
/// times the four rows of the records from `record` on.
///
/// # Safety
/// As [`compute`].
#[inline(always)]
unsafe fn add_segment<S: Source, const P: usize>(
    w: *const u8,
    factors: *const u8,
    blocks: usize,
    record: *const u8,
    sums: &mut [[__m512; 4]; P],
) {
    let layout = S::LAYOUT;
    // SAFETY: what is read lies inside the segment and its records.
    unsafe {
        let mut scaled = [[_mm512_setzero_si512(); 4]; P];
        for b in 0..blocks {
            let (w, record) = (w.add(b * Place::<S>::BLOCK), record.add(b * RECORD));
            each!(s < layout.subs, {
                let ints = dots::<S, P>(w, record, s);
                each!(p < P, {
                    let scale = w.add(p * Place::<S>::PANEL + CODES + VECTOR * s);
                    let scale = _mm512_load_si512(scale.cast());
                    each!(r < 4, {
                        scaled[p][r] = match Place::<S>::CENTRED {
                            true => add_short(scaled[p][r], ints[p][r], scale),
                            false => add_scaled::<S>(scaled[p][r], ints[p][r], scale),
                        };
                    } of 4);
                } of 3);
                fence();
            } of 2);
        }
        let sums_of_x = match layout.has_min() {
            true => pairs_of_sums::<S>(record),
            false => [[0; 4]; SEGMENT],
        };
        each!(p < P, {
            let factors = factors.add(p * Place::<S>::PANEL);
            let factors = Factors {
                scale: _mm512_load_ps(factors.cast()),
                min: _mm512_load_ps(factors.add(VECTOR).cast()),
            };
            let part = |at: usize| {
                let part = w.add(p * Place::<S>::PANEL + at);
                _mm512_load_si512(part.cast())
            };
            let mut minima = [_mm512_setzero_si512(); SEGMENT];
            let mut scales = [_mm512_setzero_si512(); SEGMENT];
            if layout.has_min() {
                each!(pair < Place::<S>::PAIRS, {
                    minima[pair] = part(Place::<S>::pair(pair));
                    if Place::<S>::CENTRED {
                        scales[pair] = part(Place::<S>::scales(pair));
                    }
                } of 8);
            }
            each!(r < 4, {
                if Place::<S>::CENTRED {
                    each!(pair < Place::<S>::PAIRS, {
                        let of_row = &sums_of_x[pair][r];
                        scaled[p][r] = add_pairs(scaled[p][r], scales[pair], of_row);
                    } of 8);
                }
                let of_row = || {
                    let mut sum = _mm512_setzero_si512();
                    each!(pair < Place::<S>::PAIRS, {
                        sum = add_pairs(sum, minima[pair], &sums_of_x[pair][r]);
                    } of 8);
                    _mm512_cvtepi32_ps(sum)
                };
                let scale = record.add(4 * BLOCK + 4 * r).cast::<f32>().read_unaligned();
                sums[p][r] = factors.add::<S>(sums[p][r], scaled[p][r], of_row, scale);
            } of 4);
            fence();
        } of 3);
    }
}

/// `sums` and the products of pairs of i16 with the pair `of_row`, added up. Written so that the compiler
/// neither makes two operations of it nor puts pairs in registers with more of them.
///
/// # Safety
/// The caller has AVX-512 VNNI enabled.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn add_pairs(mut sums: __m512i, pairs: __m512i, of_row: &i32) -> __m512i {
    // SAFETY: a load and register arithmetic.
    unsafe {
        std::arch::asm!(
            "vpdpwssd {sums}, {pairs}, dword ptr [{of_row}]{{1to16}}",
            sums = inout(zmm_reg) sums,
            pairs = in(zmm_reg) pairs,
            of_row = in(reg) of_row,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    sums
}

/// Σ x of four rows, whose records of a segment begin at `record`, as pairs of i16 that belong to the pairs of
/// the minima.
///
/// # Safety
/// As [`compute`].
#[inline(always)]
unsafe fn pairs_of_sums<S: Source>(record: *const u8) -> [[i32; 4]; SEGMENT] {
    let mut pairs = [[0; 4]; SEGMENT];
    // SAFETY: what is read lies inside the records, what is written inside the pairs.
    unsafe {
        let field = |b: usize, i: usize| record.add(b * RECORD + 4 * BLOCK + 16 * i);
        let sums = |b: usize| _mm_cvtps_epi32(_mm_loadu_ps(field(b, 3).cast()));
        each!(pair < Place::<S>::PAIRS, {
            let (first, second) = match S::LAYOUT.subs {
                1 => (sums(2 * pair), sums(2 * pair + 1)),
                _ => {
                    // −128 times that of the first half.
                    let low = _mm_loadu_si128(field(pair, 2).cast());
                    let low = _mm_sub_epi32(_mm_setzero_si128(), _mm_srai_epi32::<7>(low));
                    (low, _mm_sub_epi32(sums(pair), low))
                }
            };
            let both = _mm_blend_epi16::<0b1010_1010>(first, _mm_slli_epi32::<16>(second));
            _mm_storeu_si128(pairs[pair].as_mut_ptr().cast(), both);
        } of 8);
    }
    pairs
}

/// The integer dot products of a block of `P` panels, or of its half `s` where halves have scales of
/// their own, with the four rows of `record`.
///
/// # Safety
/// As [`compute`].
#[inline(always)]
unsafe fn dots<S: Source, const P: usize>(
    w: *const u8,
    record: *const u8,
    s: usize,
) -> [[__m512i; 4]; P] {
    let layout = S::LAYOUT;
    let (subs, groups) = (layout.subs, 8 / layout.subs);
    // SAFETY: what is read lies inside the block and the record.
    unsafe {
        let mut ints = [[_mm512_setzero_si512(); 4]; P];
        if !layout.has_min() || Place::<S>::CENTRED {
            each!(r < 4, {
                let int = |i: usize| {
                    let field = record.add(4 * BLOCK + 4 * (4 * i + r)).cast::<i32>();
                    field.read_unaligned()
                };
                let start = match (subs, s) {
                    (1, _) => int(1),
                    (_, 0) => int(2),
                    _ => int(1) - int(2),
                };
                each!(p < P, {
                    ints[p][r] = _mm512_set1_epi32(start);
                } of 3);
            } of 4);
        }
        each!(i < groups, {
            let g = s * groups + i;
            let mut codes = [_mm512_setzero_si512(); P];
            each!(p < P, {
                let at = w.add(p * Place::<S>::PANEL + VECTOR * g);
                codes[p] = _mm512_load_si512(at.cast());
            } of 3);
            each!(r < 4, {
                let four = record.add(r * BLOCK + 4 * g).cast::<i32>();
                let four = _mm512_set1_epi32(four.read_unaligned());
                each!(p < P, {
                    ints[p][r] = _mm512_dpbusd_epi32(ints[p][r], codes[p], four);
                } of 3);
                if layout.grain() == Grain::Segment {
                    // Three sets of registers: no room for operands loaded early.
                    fence();
                }
            } of 4);
            fence();
        } of 8);
        ints
    }
}
