//! Weights of any format · f32 activations.

use std::arch::x86_64::*;

use super::each;
use super::wide_float::{Codes, Weights, wide_float};
use crate::format::Format;
use crate::isa::prefers_one_stream;
use crate::matmul::slab::{Tile, slabs, tiles};
use crate::matmul::source::{Source, with_source};
use crate::matmul::{PANELS_OF_ONE_GROUP as TOGETHER, Part};
use crate::memory::prefetch_farther;
use crate::packed::layout::LANES;

/// Computes `part` with its weights as f32.
pub(in crate::matmul) fn float(part: &Part) {
    if part.rows().len() >= WIDE_ROWS {
        return wide_float(part);
    }
    match part.w.format() {
        Format::F32 => in_place::<Single>(part),
        Format::F16 => in_place::<Half>(part),
        Format::BF16 => in_place::<Brain>(part),
        format => with_source!(format, quantised(part)),
    }
}

/// Rows from which on it pays to unpack panels into the cache.
const WIDE_ROWS: usize = 25;

fn quantised<S: Source>(part: &Part) {
    let unpack = |panel: *const u8, first: usize, count: usize, slab: *mut f32| {
        // SAFETY: `Isa::Avx512` runs only where the processor offers the features; `first` is the
        // start of a segment of the panel, and the slab holds a segment.
        unsafe { Codes::<S>::unpack(panel, part.w.k(), first, count, slab) };
        slab.cast_const()
    };
    slabs(part, unpack, add);
}

/// Adds a slab that is f32.
fn add(tile: &Tile, w: *const f32) {
    // SAFETY: `Isa::Avx512` runs only where the processor offers the features; `slabs` gives a
    // slab and a tile of the part.
    unsafe { dispatch::<Single>(tile, w.cast()) }
}

/// Computes `part`, of few rows, reading float weights in their own form.
fn in_place<W: Element>(part: &Part) {
    if part.x.shape().groups == 1 {
        return one_group::<W>(part);
    }
    for panel in part.panels.clone() {
        let weights = part.w.panel(panel).as_ptr();
        // SAFETY: as in `add`; the panel holds k vectors.
        tiles(part, panel, 0, part.w.k(), |tile| unsafe {
            dispatch::<W>(tile, weights)
        });
    }
}

/// Computes `part`, of at most four rows, several panels at a time: each sum waits for its last
/// addition, and one panel's sums of a row or two wait longer than memory takes.
fn one_group<W: Element>(part: &Part) {
    // The arithmetic of one row is so little that such a processor keeps ahead of it.
    let by_itself = prefers_one_stream();
    for panel in part.panels.clone().step_by(TOGETHER) {
        let panels = TOGETHER.min(part.panels.end - panel);
        // SAFETY: as in `add`; `panels` of the part's panels begin here.
        unsafe {
            match (part.x.shape().group, panels) {
                (1, TOGETHER) if by_itself => together::<W, TOGETHER, 1, false>(part, panel),
                (1, TOGETHER) => together::<W, TOGETHER, 1, true>(part, panel),
                (2, TOGETHER) => together::<W, TOGETHER, 2, true>(part, panel),
                (3, TOGETHER) => together::<W, TOGETHER, 3, true>(part, panel),
                (4, TOGETHER) => together::<W, TOGETHER, 4, true>(part, panel),
                (group, _) => (panel..panel + panels).for_each(|panel| match group {
                    1 => together::<W, 1, 1, true>(part, panel),
                    2 => together::<W, 1, 2, true>(part, panel),
                    3 => together::<W, 1, 3, true>(part, panel),
                    _ => together::<W, 1, 4, true>(part, panel),
                }),
            }
        }
    }
}

/// Bytes ahead in each panel at which such a group asks for weights.
const AHEAD: usize = 2048;

/// Computes the products of `P` panels with the one group of `G` rows, and asks ahead for weights if `ASKS`.
///
/// # Safety
/// The processor offers the features; the panels are the part's, and its rows `G`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn together<W: Element, const P: usize, const G: usize, const ASKS: bool>(
    part: &Part,
    panel: usize,
) {
    let weights: [*const u8; P] = std::array::from_fn(|p| part.w.panel(panel + p).as_ptr());
    let mut x = part.x.floats()[..G * part.w.k()].as_ptr();
    let mut sums = [[_mm512_setzero_ps(); G]; P];
    // What lies ahead of the end of a panel is read by the next panels' call, which begin after all
    // of these.
    let others = (P - 1) * part.w.panel(panel).len();
    let edge = part.w.k().saturating_sub(AHEAD / (LANES * W::BYTES));
    // SAFETY: elements inside the panels and the group, rows and lanes inside the output.
    unsafe {
        for (elements, skipped) in [(0..edge, 0), (edge..part.w.k(), others)] {
            for i in elements {
                for (weights, sums) in weights.iter().zip(&mut sums) {
                    let at = weights.add(i * LANES * W::BYTES);
                    if ASKS {
                        prefetch_farther(at.wrapping_add(AHEAD + skipped));
                    }
                    let w = W::load(at);
                    for (r, sum) in sums.iter_mut().enumerate() {
                        *sum = _mm512_fmadd_ps(w, _mm512_set1_ps(*x.add(r)), *sum);
                    }
                }
                x = x.add(G);
            }
        }
        for (p, sums) in sums.iter().enumerate() {
            let lanes = (0xffff_u32 >> (LANES - part.lanes(panel + p))) as __mmask16;
            for (r, &sum) in sums.iter().enumerate() {
                _mm512_mask_storeu_ps(part.out(r, panel + p), lanes, sum);
            }
        }
    }
}

/// # Safety
/// As [`compute`].
unsafe fn dispatch<W: Element>(tile: &Tile, w: *const u8) {
    // SAFETY: the caller's promise.
    unsafe {
        match (tile.group, tile.groups) {
            (1, _) => compute::<W, 1, 1>(tile, w),
            (2, _) => compute::<W, 2, 1>(tile, w),
            (3, _) => compute::<W, 3, 1>(tile, w),
            (_, 1) => compute::<W, 4, 1>(tile, w),
            (_, 2) => compute::<W, 4, 2>(tile, w),
            _ => compute::<W, 4, 3>(tile, w),
        }
    }
}

/// Adds `count` elements to `GROUPS` groups of `G` rows.
///
/// # Safety
/// The processor offers the features; `w` holds `count` vectors of `W`, and the pointers of
/// the tile are as their fields say.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn compute<W: Element, const G: usize, const GROUPS: usize>(tile: &Tile, w: *const u8) {
    let lanes = (0xffff_u32 >> (LANES - tile.lanes)) as __mmask16;
    let mut sums = [_mm512_setzero_ps(); 12];
    let mut x: [*const f32; 3] = [0, 1, 2].map(|i| tile.x.wrapping_add(i * tile.x_stride));
    // SAFETY: rows and lanes inside the output, elements inside the panel and the groups.
    unsafe {
        each!(r < G * GROUPS, {
            if r < tile.rows && !tile.fresh {
                let out = tile.out.add(r * tile.out_stride);
                sums[r] = _mm512_maskz_loadu_ps(lanes, out);
            }
        });
        for i in 0..tile.count {
            let at = w.add(i * LANES * W::BYTES);
            if W::BYTES < 4 || G * GROUPS <= 4 {
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(2048).cast());
            }
            let w = W::load(at);
            each!(r < G * GROUPS, {
                let x = _mm512_set1_ps(*x[r / G].add(r % G));
                sums[r] = _mm512_fmadd_ps(w, x, sums[r]);
            });
            x = x.map(|x| x.wrapping_add(G));
        }
        each!(r < G * GROUPS, {
            if r < tile.rows {
                _mm512_mask_storeu_ps(tile.out.add(r * tile.out_stride), lanes, sums[r]);
            }
        });
    }
}

/// A float format, as a type.
pub(super) trait Element {
    /// Bytes of an element.
    const BYTES: usize;

    /// Sixteen elements.
    ///
    /// # Safety
    /// `at` holds sixteen elements; the caller has AVX-512 and F16C enabled.
    unsafe fn load(at: *const u8) -> __m512;
}

pub(super) struct Single;
pub(super) struct Half;
pub(super) struct Brain;

impl Element for Single {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(at.cast()) }
    }
}

impl Element for Half {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }
}

impl Element for Brain {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
}
