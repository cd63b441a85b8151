//! Quantised weights · int8 activations of many rows.
//!
//! A tile is three panels times four rows: every word of activations that is loaded serves three
//! products, every register of codes four, and the sums stay in registers for a segment. What
//! stands between the products is the scaling of each block: 2 of 10 operations of the multipliers
//! where a block has one scale and no minimum, 3 of 11 otherwise.

use std::arch::x86_64::*;
use std::ops::Range;

use super::each;
use super::int8::fence;
use super::unpacked::{BLOCKS, CODES, Place, Unpacked, VECTOR, WIDE_SLAB, slab_bytes};
use crate::activations::{Activations, ROW_RECORD};
use crate::matmul::source::Source;
use crate::matmul::wide::{Kernel, Tile, Tiles, walk};
use crate::matmul::{PANELS_TOGETHER, Part};
use crate::packed::Packed;
use crate::packed::layout::{BLOCK, LANES};

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
        let stride = x.shape().record_bytes();
        let records = &x.records()[..(tiles.group + tiles.groups) * stride];
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
    let layout = S::LAYOUT;
    let (subs, groups) = (layout.subs, 8 / layout.subs);
    // SAFETY: what is read and written lies inside what the caller promises.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 4]; P];
        each!(p < P, {
            each!(r < 4, {
                let from = tile.from.start.add(r * tile.from.stride + p * LANES);
                sums[p][r] = _mm512_loadu_ps(from);
            } of 4);
        } of 3);
        for b in 0..blocks {
            let w = w.add(b * Place::<S>::BLOCK);
            let part = |p: usize, at: usize| w.add(p * Place::<S>::PANEL + at);
            let record = x.add(b * RECORD);
            let field = |i: usize, r: usize| record.add(4 * BLOCK + 4 * (4 * i + r));
            let int = |i: usize, r: usize| field(i, r).cast::<i32>().read_unaligned();
            let float = |i: usize, r: usize| field(i, r).cast::<f32>().read_unaligned();
            let scale = |p: usize, s: usize| _mm512_load_ps(part(p, CODES + VECTOR * s).cast());
            let min = |p: usize, s: usize| {
                _mm512_load_ps(part(p, Place::<S>::MINIMA + VECTOR * s).cast())
            };
            let mut dots = [[_mm512_setzero_ps(); 4]; P];
            each!(s < subs, {
                let mut ints = [[_mm512_setzero_si512(); 4]; P];
                if !layout.has_min() {
                    each!(r < 4, {
                        let start = match (subs, s) {
                            (1, _) => int(1, r),
                            (_, 0) => int(2, r),
                            _ => int(1, r) - int(2, r),
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
                        codes[p] = _mm512_load_si512(part(p, VECTOR * g).cast());
                    } of 3);
                    each!(r < 4, {
                        let four = record.add(r * BLOCK + 4 * g).cast::<i32>();
                        let four = _mm512_set1_epi32(four.read_unaligned());
                        each!(p < P, {
                            ints[p][r] = _mm512_dpbusd_epi32(ints[p][r], codes[p], four);
                        } of 3);
                            if subs == 2 {
                                // Three sets of registers: no room for operands loaded early.
                                fence();
                            }
                    } of 4);
                    fence();
                } of 8);
                each!(p < P, {
                    each!(r < 4, {
                        let dot = _mm512_cvtepi32_ps(ints[p][r]);
                        dots[p][r] = if s == 0 {
                            _mm512_mul_ps(dot, scale(p, s))
                        } else {
                            _mm512_fmadd_ps(dot, scale(p, s), dots[p][r])
                        };
                    } of 4);
                    if s + 1 == subs {
                        each!(r < 4, {
                            let mut dot = dots[p][r];
                            if layout.has_min() && subs == 1 {
                                dot = _mm512_fmadd_ps(min(p, 0), _mm512_set1_ps(float(3, r)), dot);
                            } else if layout.has_min() {
                                let low = int(2, r) as f32 * (-1.0 / 128.0);
                                dot = _mm512_fmadd_ps(min(p, 0), _mm512_set1_ps(low), dot);
                                let high = _mm512_set1_ps(float(3, r) - low);
                                dot = _mm512_fmadd_ps(min(p, 1), high, dot);
                            }
                            let scale = _mm512_set1_ps(float(0, r));
                            sums[p][r] = _mm512_fmadd_ps(dot, scale, sums[p][r]);
                        } of 4);
                    }
                    fence();
                } of 3);
            } of 2);
        }
        each!(p < P, {
            each!(r < 4, {
                let to = tile.to.start.add(r * tile.to.stride + p * LANES);
                _mm512_storeu_ps(to, sums[p][r]);
            } of 4);
        } of 3);
    }
}
