//! Quantised weights · int8 activations of some rows: more than registers have sums for, fewer than pay
//! for panels that are unpacked into the cache.
//!
//! The same block of two panels is unpacked into sixteen registers and meets row after row: a word of
//! activations that is loaded serves two products, and no block is unpacked twice. The rows' sums lie
//! in the nearest cache, where adding to them costs a load and a store for ten multiplications.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::each;
use super::int8::{fence, minima, times_minima};
use super::unpack::{Block, Factors, SmallBlock, Unit, add_scaled};
use crate::activations::ROW_RECORD;
use crate::matmul::source::{Ahead, Segment, Source};
use crate::matmul::{PANELS_OF_SOME_ROWS as PANELS, Part, SOME_ROWS};
use crate::memory::prefetch;
use crate::packed::layout::{BLOCK, Grain, LANES, SEGMENT};

/// The sums of all rows for two panels, and those of a segment in whole numbers.
#[repr(align(64))]
struct Sums {
    _floats: [[f32; PANELS * LANES]; SOME_ROWS],
    _ints: [[i32; PANELS * LANES]; SOME_ROWS],
}

/// Computes `part`, of at least four rows and at most [`SOME_ROWS`].
pub(super) fn some_rows<S: Source>(part: &Part) {
    assert!(part.x.shape().group == 4 && 4 * part.groups.len() <= SOME_ROWS);
    let mut room = MaybeUninit::<Sums>::uninit();
    let sums = room.as_mut_ptr().cast::<f32>();
    for panel in part.panels.clone().step_by(PANELS) {
        // SAFETY: `Isa::Avx512` runs only where the processor offers the features; the panels and
        // groups are the part's, and there is room for the sums of their rows.
        unsafe {
            match part.panels.end - panel {
                1 => compute::<S, 1>(part, panel, sums),
                _ => compute::<S, 2>(part, panel, sums),
            }
        }
    }
}

/// Computes the products of `P` panels from `panel` on with all rows of the part.
///
/// # Safety
/// The processor offers the features; so many panels are the part's, whose rows come in groups of
/// four, and `sums` has room for `[rows of the groups][P][16]` floats and as many ints behind those of
/// [`SOME_ROWS`] rows of [`PANELS`] panels, aligned to 64 bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn compute<S: Source, const P: usize>(part: &Part, panel: usize, sums: *mut f32) {
    const GROUP_BYTES: usize = 4 * ROW_RECORD;
    let (layout, grain) = (S::LAYOUT, S::LAYOUT.grain());
    let (blocks, groups) = (part.blocks(), part.groups.len());
    let panels: [*const u8; P] = std::array::from_fn(|p| part.w.panel(panel + p).as_ptr());
    let stride = part.x.shape().record_bytes(grain);
    let mut x =
        part.x.records(grain)[part.groups.start * stride..part.groups.end * stride].as_ptr();
    let ahead = Ahead::new::<S>(P, blocks, None);
    let ints = sums.wrapping_add(SOME_ROWS * PANELS * LANES).cast::<i32>();
    // SAFETY: segments and blocks are counted inside the panels, records inside the groups, and sums
    // inside their room; rows and lanes that are written lie inside the output.
    unsafe {
        sums.write_bytes(0, 4 * groups * P * LANES);
        for at in 0..blocks.div_ceil(SEGMENT) {
            let mut segments = [Segment::at::<S>(panels[0], blocks, at); P];
            each!(p < P, {
                segments[p] = Segment::at::<S>(panels[p], blocks, at);
            } of 2);
            let mut units = [Unit::of::<S>(segments[0].0, segments[0].1); P];
            each!(p < P, {
                units[p] = Unit::of::<S>(segments[p].0, segments[p].1);
            } of 2);
            if grain == Grain::Segment {
                ints.write_bytes(0, 4 * groups * P * LANES);
            }
            let first = x;
            for b in 0..segments[0].1 {
                ahead.ask::<S, 1>(&panels, at, b, 0, prefetch);
                let mut planes = [segments[0].0.planes::<S>(b); P];
                each!(p < P, {
                    planes[p] = segments[p].0.planes::<S>(b);
                } of 2);
                let mut record = x;
                if grain == Grain::Block {
                    let mut w = [Block::unpack::<S>(planes[0]); P];
                    each!(p < P, {
                        if p > 0 {
                            w[p] = Block::unpack::<S>(planes[p]);
                        }
                    } of 2);
                    let mut to = sums;
                    for _ in 0..groups {
                        if layout.has_min() {
                            // Registers for two rows beside the scales.
                            add::<S, P, 2>(&w, record, 0, to);
                            add::<S, P, 2>(&w, record, 2, to);
                        } else {
                            add::<S, P, 4>(&w, record, 0, to);
                        }
                        record = record.add(stride);
                        to = to.add(4 * P * LANES);
                    }
                } else {
                    let mut w = [SmallBlock::unpack::<S>(planes[0], units[0]); P];
                    each!(p < P, {
                        if p > 0 {
                            w[p] = SmallBlock::unpack::<S>(planes[p], units[p]);
                        }
                    } of 2);
                    let mut to = ints;
                    for _ in 0..groups {
                        if layout.subs == 1 {
                            add_small::<S, P, 4>(&w, record, 0, to);
                        } else {
                            add_small::<S, P, 2>(&w, record, 0, to);
                            add_small::<S, P, 2>(&w, record, 2, to);
                        }
                        record = record.add(stride);
                        to = to.add(4 * P * LANES);
                    }
                }
                x = x.wrapping_add(GROUP_BYTES);
            }
            if grain == Grain::Block {
                continue;
            }
            for (p, &(segment, _)) in segments.iter().enumerate() {
                let factors = Factors::of::<S>(segment.planes::<S>(0), units[p]);
                let minima = minima::<S>(segment);
                for row in 0..4 * groups {
                    let record = first.add(row / 4 * stride);
                    let of_row = || times_minima::<S, 4>(&minima, record, row % 4);
                    let scale = record.add(4 * BLOCK + 4 * (row % 4)).cast::<f32>();
                    let to = (row * P + p) * LANES;
                    let scaled = _mm512_load_si512(ints.add(to).cast());
                    let sum = _mm512_load_ps(sums.add(to));
                    let sum = factors.add::<S>(sum, scaled, of_row, scale.read_unaligned());
                    _mm512_store_ps(sums.add(to), sum);
                }
            }
        }
        for (at, row) in part.rows().enumerate() {
            for p in 0..P {
                let sum = _mm512_load_ps(sums.add((at * P + p) * LANES));
                let lanes = (0xffff_u32 >> (LANES - part.lanes(panel + p))) as __mmask16;
                _mm512_mask_storeu_ps(part.out(row, panel + p), lanes, sum);
            }
        }
    }
}

/// The integer dot products of a block of `P` panels with the rows from `first` on, `R` of them, of a
/// group's `record`: of its first half, and of the other one where halves have scales of their own.
///
/// The rows' chains of dot products run side by side: one alone waits for its last addition longer
/// than the processor can look ahead.
///
/// # Safety
/// The caller has the features enabled; the record is of four rows.
#[inline(always)]
unsafe fn dots<S: Source, const P: usize, const R: usize>(
    codes: [&[__m512i; 8]; P],
    record: *const u8,
    first: usize,
) -> [[[__m512i; P]; R]; 2] {
    let layout = S::LAYOUT;
    let (subs, groups) = (layout.subs, 8 / layout.subs);
    // SAFETY: what is read lies inside the record.
    unsafe {
        let mut ints = [[[_mm512_setzero_si512(); P]; R]; 2];
        if !layout.has_min() {
            let int = |i: usize, r: usize| {
                let field = record.add(4 * BLOCK + 4 * (4 * i + first + r));
                field.cast::<i32>().read_unaligned()
            };
            each!(r < R, {
                let starts = match subs {
                    1 => [int(1, r), 0],
                    _ => [int(2, r), int(1, r) - int(2, r)],
                };
                each!(s < subs, {
                    ints[s][r] = [_mm512_set1_epi32(starts[s]); P];
                } of 2);
            } of 4);
        }
        each!(i < groups, {
            each!(s < subs, {
                let g = s * groups + i;
                each!(r < R, {
                    let four = record.add((first + r) * BLOCK + 4 * g).cast::<i32>();
                    let four = _mm512_set1_epi32(four.read_unaligned());
                    each!(p < P, {
                        ints[s][r][p] = _mm512_dpbusd_epi32(ints[s][r][p], codes[p][g], four);
                    } of 2);
                } of 4);
            } of 2);
            fence();
        } of 8);
        ints
    }
}

/// Adds a block of `P` panels times the rows from `first` on, `R` of them, of a group's `record` to the
/// group's sums `to`, `[4][P][16]`.
///
/// # Safety
/// The caller has the features enabled; the record is of four rows, and `to` has room for their sums.
#[inline(always)]
unsafe fn add<S: Source, const P: usize, const R: usize>(
    w: &[Block; P],
    record: *const u8,
    first: usize,
    to: *mut f32,
) {
    // SAFETY: what is read and written lies inside what the caller promises.
    unsafe {
        let mut codes = [&w[0].codes; P];
        each!(p < P, {
            codes[p] = &w[p].codes;
        } of 2);
        let [ints, _] = dots::<S, P, R>(codes, record, first);
        each!(r < R, {
            let float = |i: usize| {
                let field = record.add(4 * BLOCK + 4 * (4 * i + first + r));
                _mm512_set1_ps(field.cast::<f32>().read_unaligned())
            };
            let scale = float(0);
            each!(p < P, {
                let mut dot = _mm512_mul_ps(_mm512_cvtepi32_ps(ints[r][p]), w[p].scale[0]);
                if S::LAYOUT.has_min() {
                    dot = _mm512_fmadd_ps(w[p].min[0], float(3), dot);
                }
                let to = to.add(((first + r) * P + p) * LANES);
                _mm512_store_ps(to, _mm512_fmadd_ps(dot, scale, _mm512_load_ps(to)));
            } of 2);
        } of 4);
        fence();
    }
}

/// The same with scales in whole numbers: adds Σ scale · code · x.
///
/// # Safety
/// As [`add`].
#[inline(always)]
unsafe fn add_small<S: Source, const P: usize, const R: usize>(
    w: &[SmallBlock; P],
    record: *const u8,
    first: usize,
    to: *mut i32,
) {
    // SAFETY: what is read and written lies inside what the caller promises.
    unsafe {
        let mut codes = [&w[0].codes; P];
        each!(p < P, {
            codes[p] = &w[p].codes;
        } of 2);
        let ints = dots::<S, P, R>(codes, record, first);
        each!(r < R, {
            each!(p < P, {
                let to = to.add(((first + r) * P + p) * LANES).cast::<__m512i>();
                let mut sum = _mm512_load_si512(to);
                each!(s < S::LAYOUT.subs, {
                    sum = add_scaled::<S>(sum, ints[s][r][p], w[p].scale[s]);
                } of 2);
                _mm512_store_si512(to, sum);
            } of 2);
        } of 4);
        fence();
    }
}
