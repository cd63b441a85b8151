//! Weights of any format · f32 activations of many rows.
//!
//! A tile is three panels times eight rows: 24 sums, for which each element of k needs eleven
//! loads, so that the multipliers and not the loads decide.

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::each;
use super::float::{Brain, Element, Half, Single};
use super::int8::fence;
use super::unpack::Block;
use crate::activations::Activations;
use crate::format::Format;
use crate::matmul::source::{Segment, Source, with_source};
use crate::matmul::wide::{Kernel, Tile, Tiles, walk};
use crate::matmul::{PANELS_TOGETHER, Part};
use crate::packed::Packed;
use crate::packed::layout::{BLOCK, LANES, SEGMENT};

/// Elements of k that are unpacked at a time.
const SLAB: usize = 128;

/// Computes `part`, of at least four rows.
pub(super) fn wide_float(part: &Part) {
    match part.w.format() {
        Format::F32 => walk(part, &mut Unpacked::<Floats<Single>>::new()),
        Format::F16 => walk(part, &mut Unpacked::<Floats<Half>>::new()),
        Format::BF16 => walk(part, &mut Unpacked::<Floats<Brain>>::new()),
        format => with_source!(format, quantised(part)),
    }
}

fn quantised<S: Source>(part: &Part) {
    walk(part, &mut Unpacked::<Codes<S>>::new());
}

/// A slab of each panel of a tile, `[panel][k][16]`.
#[repr(align(64))]
struct Unpacked<W> {
    floats: MaybeUninit<[[f32; SLAB * LANES]; PANELS_TOGETHER]>,
    weights: PhantomData<W>,
}

impl<W> Unpacked<W> {
    fn new() -> Self {
        Unpacked {
            floats: MaybeUninit::uninit(),
            weights: PhantomData,
        }
    }
}

impl<W: Weights> Kernel for Unpacked<W> {
    const PANELS: usize = PANELS_TOGETHER;
    const GROUPS: usize = 2;
    const BLOCK_GROUPS: usize = 24;
    const SLAB: usize = SLAB;
    const WIDE_SLAB: usize = 8 * SLAB;

    fn bytes(w: &Packed, first: usize) -> Range<usize> {
        W::bytes(first)..W::bytes(w.k().min(first + SLAB))
    }

    fn unpack(&mut self, w: &Packed, panel: usize, slot: usize, first: usize, count: usize) {
        let to = self
            .floats
            .as_mut_ptr()
            .cast::<f32>()
            .wrapping_add(slot * SLAB * LANES);
        // SAFETY: `Isa::Avx512` runs only where the processor offers the features; the elements lie
        // in the panel, `first` is a multiple of the slab, and the slot has room for one.
        unsafe { W::unpack(w.panel(panel).as_ptr(), w.k(), first, count, to) }
    }

    fn add(&mut self, x: &Activations, mut tiles: Tiles<'_>, first: usize, count: usize) {
        let stride = x.shape().float_bytes() / size_of::<f32>();
        let floats = &x.floats()[..(tiles.group + tiles.groups) * stride];
        let x = Rows {
            floats: floats.as_ptr().wrapping_add(4 * first),
            stride,
            count,
        };
        let w = self.floats.as_ptr().cast();
        // SAFETY: the features as above; so many elements of so many panels are unpacked, and the
        // tiles' groups hold them too. What two groups at a time leave is one.
        unsafe {
            match tiles.panels {
                1 => {
                    compute::<1, 2>(w, &x, &mut tiles);
                    compute::<1, 1>(w, &x, &mut tiles);
                }
                2 => {
                    compute::<2, 2>(w, &x, &mut tiles);
                    compute::<2, 1>(w, &x, &mut tiles);
                }
                _ => {
                    compute::<3, 2>(w, &x, &mut tiles);
                    compute::<3, 1>(w, &x, &mut tiles);
                }
            }
        }
    }
}

/// Some elements of each group of rows.
struct Rows {
    /// Those of the very first group.
    floats: *const f32,
    /// Numbers from one group to the next.
    stride: usize,
    /// Elements.
    count: usize,
}

/// Adds the unpacked elements of `P` panels times the rows of `x` to the sums of `tiles`, `G` groups at
/// a time, as long as there are so many.
///
/// # Safety
/// The processor offers the features; `w` holds as many elements of `P` panels as `x` has for each
/// group of the tiles.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn compute<const P: usize, const G: usize>(w: *const f32, x: &Rows, tiles: &mut Tiles<'_>) {
    loop {
        let first = x.floats.wrapping_add(tiles.group * x.stride);
        let Some(tile) = tiles.next(G) else { return };
        let groups = [first, first.wrapping_add(x.stride)];
        // SAFETY: the caller's promise.
        unsafe { of_groups::<P, G>(w, groups, x.count, tile) };
    }
}

/// Adds `count` elements of `P` panels times `G` groups of four rows to the sums of `tile`.
///
/// # Safety
/// As [`compute`].
#[inline(always)]
unsafe fn of_groups<const P: usize, const G: usize>(
    w: *const f32,
    x: [*const f32; 2],
    count: usize,
    tile: Tile,
) {
    // SAFETY: what is read and written lies inside what the caller promises.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 8]; P];
        each!(p < P, {
            each!(r < 4 * G, {
                let from = tile.from.start.add(r * tile.from.stride + p * LANES);
                sums[p][r] = _mm512_loadu_ps(from);
            } of 8);
        } of 3);
        for i in 0..count {
            let mut weights = [_mm512_setzero_ps(); P];
            each!(p < P, {
                weights[p] = _mm512_load_ps(w.add((p * SLAB + i) * LANES));
            } of 3);
            each!(r < 4 * G, {
                let x = _mm512_set1_ps(*x[r / 4].add(4 * i + r % 4));
                each!(p < P, {
                    sums[p][r] = _mm512_fmadd_ps(weights[p], x, sums[p][r]);
                } of 3);
            } of 8);
            fence();
        }
        each!(p < P, {
            each!(r < 4 * G, {
                let to = tile.to.start.add(r * tile.to.stride + p * LANES);
                _mm512_storeu_ps(to, sums[p][r]);
            } of 8);
        } of 3);
    }
}

/// How weights become f32.
pub(super) trait Weights {
    /// Where element `first` begins in a panel, up to rounding.
    fn bytes(first: usize) -> usize;

    /// Writes elements `first..first + count` of a panel of rows of `k` to `to`, `[count][16]`.
    ///
    /// # Safety
    /// The processor offers AVX-512 and F16C; the elements lie in the panel, those of a quantised
    /// format are whole blocks of one segment, and there is room.
    unsafe fn unpack(panel: *const u8, k: usize, first: usize, count: usize, to: *mut f32);
}

/// A float format.
struct Floats<W>(PhantomData<W>);

impl<W: Element> Weights for Floats<W> {
    fn bytes(first: usize) -> usize {
        first * LANES * W::BYTES
    }

    #[target_feature(enable = "avx512f,f16c")]
    unsafe fn unpack(panel: *const u8, _k: usize, first: usize, count: usize, to: *mut f32) {
        for i in 0..count {
            // SAFETY: `count` vectors lie at both places.
            unsafe {
                let from = panel.add((first + i) * LANES * W::BYTES);
                _mm512_store_ps(to.add(i * LANES), W::load(from));
            }
        }
    }
}

/// A quantised format.
pub(super) struct Codes<S>(PhantomData<S>);

impl<S: Source> Weights for Codes<S> {
    fn bytes(first: usize) -> usize {
        S::LAYOUT.segment_bytes(SEGMENT) / SEGMENT * (first / BLOCK)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,f16c")]
    unsafe fn unpack(panel: *const u8, k: usize, first: usize, count: usize, to: *mut f32) {
        const SEGMENT_ELEMENTS: usize = SEGMENT * BLOCK;
        let centre = if S::LAYOUT.has_min() { 0 } else { 128 };
        let skipped = first % SEGMENT_ELEMENTS / BLOCK;
        // SAFETY: blocks inside the segment, and four vectors of the slab for each group.
        unsafe {
            let (segment, _) = Segment::at::<S>(panel, k / BLOCK, first / SEGMENT_ELEMENTS);
            for b in 0..count / BLOCK {
                let block = Block::unpack::<S>(segment.planes::<S>(skipped + b));
                for g in 0..BLOCK / 4 {
                    let (scale, min) = (block.scale[g / 4], block.min[g / 4]);
                    let mut codes = block.codes[g];
                    for i in 0..4 {
                        let code = _mm512_and_si512(codes, _mm512_set1_epi32(0xff));
                        let value = _mm512_sub_epi32(code, _mm512_set1_epi32(centre));
                        let value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(value), scale, min);
                        _mm512_store_ps(to.add((b * BLOCK + 4 * g + i) * LANES), value);
                        codes = _mm512_srli_epi32::<8>(codes);
                    }
                }
            }
        }
    }
}
