//! Quantised weights · int8 activations of many rows.
//!
//! A tile is three panels times four rows: every word of activations that is loaded serves three
//! products, every register of codes four, and the sums stay in registers for a segment. What
//! stands between the products is the scaling of each block: 2 of 10 operations of the multipliers
//! where a block has one scale and no minimum, 3 of 11 otherwise.

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::each;
use super::int8::fence;
use super::unpack::Block;
use crate::activations::ROW_RECORD;
use crate::matmul::Part;
use crate::matmul::source::{Segment, Source};
use crate::matmul::wide::{self, Kernel, SUMS_STRIDE, Tile, walk};
use crate::packed::layout::{BLOCK, LANES, SEGMENT};

/// Computes `part`, of at least four rows.
pub(super) fn wide_int8<S: Source>(part: &Part) {
    walk(part, &mut Unpacked::<S>::new());
}

/// A segment of each panel of a tile.
struct Unpacked<S> {
    blocks: MaybeUninit<[[UnpackedBlock; SEGMENT]; wide::PANELS]>,
    source: PhantomData<S>,
}

/// A block of a panel.
#[repr(C, align(64))]
struct UnpackedBlock {
    /// `[group][row][4]`
    codes: [u8; CODES],
    /// `[half][row]`
    scale: [[f32; LANES]; 2],
    /// `[half][row]`, added.
    min: [[f32; LANES]; 2],
}

/// Bytes of a block's codes.
const CODES: usize = LANES * BLOCK;
/// Bytes from one panel of a tile to the next.
const PANEL: usize = SEGMENT * size_of::<UnpackedBlock>();

impl<S: Source> Unpacked<S> {
    fn new() -> Self {
        Unpacked {
            blocks: MaybeUninit::uninit(),
            source: PhantomData,
        }
    }
}

impl<S: Source> Kernel for Unpacked<S> {
    const PANELS: usize = wide::PANELS;
    const GROUPS: usize = 1;
    const BLOCK_GROUPS: usize = wide::ROWS / 4;
    const SLAB: usize = SEGMENT * BLOCK;
    const WIDE_SLAB: usize = 8 * SEGMENT * BLOCK;

    fn bytes(_part: &Part, first: usize) -> Range<usize> {
        let bytes = S::LAYOUT.segment_bytes(SEGMENT);
        let start = first / Self::SLAB * bytes;
        start..start + bytes
    }

    fn unpack(&mut self, part: &Part, panel: usize, slot: usize, first: usize, _count: usize) {
        let panel = part.w.panel(panel).as_ptr();
        // SAFETY: `Isa::Avx512` runs only where the processor offers the features; `first` is the
        // first element of a segment of the panel, and `slot` is below `PANELS`.
        unsafe { self.read(panel, part.blocks(), first / Self::SLAB, slot) }
    }

    fn add(&self, part: &Part, tile: &Tile, first: usize, count: usize) {
        let stride = part.x.shape().record_bytes();
        let blocks = count / BLOCK;
        let at = tile.group * stride + first / BLOCK * 4 * ROW_RECORD;
        let x = part.x.records()[at..at + blocks * 4 * ROW_RECORD].as_ptr();
        let w = self.blocks.as_ptr().cast();
        // SAFETY: the features as above; so many blocks of so many panels are unpacked, the
        // records of the group's blocks are there, and so are the sums of the tile's rows.
        unsafe {
            match tile.panels {
                1 => compute::<S, 1>(w, x, blocks, tile.sums),
                2 => compute::<S, 2>(w, x, blocks, tile.sums),
                _ => compute::<S, 3>(w, x, blocks, tile.sums),
            }
        }
    }
}

impl<S: Source> Unpacked<S> {
    /// Unpacks segment `at` of `panel`.
    ///
    /// # Safety
    /// The processor offers the features; the segment lies in the panel, and `slot` is a panel of
    /// the tile.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn read(&mut self, panel: *const u8, blocks: usize, at: usize, slot: usize) {
        let layout = S::LAYOUT;
        let slot = self
            .blocks
            .as_mut_ptr()
            .cast::<UnpackedBlock>()
            .wrapping_add(slot * SEGMENT);
        // SAFETY: the caller's promise; blocks are counted inside the segment.
        unsafe {
            let (segment, count) = Segment::at::<S>(panel, blocks, at);
            for b in 0..count {
                let block = Block::unpack::<S>(segment.planes::<S>(b));
                let to = slot.add(b);
                let codes = (&raw mut (*to).codes).cast::<u8>();
                for (g, code) in block.codes.into_iter().enumerate() {
                    _mm512_store_si512(codes.add(64 * g).cast(), code);
                }
                let scale = (&raw mut (*to).scale).cast::<f32>();
                let min = (&raw mut (*to).min).cast::<f32>();
                for s in 0..layout.subs {
                    _mm512_store_ps(scale.add(s * LANES), block.scale[s]);
                    if layout.has_min() {
                        _mm512_store_ps(min.add(s * LANES), block.min[s]);
                    }
                }
            }
        }
    }
}

/// Adds `blocks` blocks of `P` panels times the four rows of the records `x` to `out`.
///
/// # Safety
/// The processor offers the features; `w` holds the unpacked blocks of `P` panels, `x` their
/// records, `out` the sums of four rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn compute<S: Source, const P: usize>(
    w: *const u8,
    x: *const u8,
    blocks: usize,
    out: *mut f32,
) {
    let layout = S::LAYOUT;
    let (subs, groups) = (layout.subs, 8 / layout.subs);
    // SAFETY: what is read and written lies inside what the caller promises.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 4]; P];
        each!(p < P, {
            each!(r < 4, {
                sums[p][r] = _mm512_load_ps(out.add(r * SUMS_STRIDE + p * LANES));
            } of 4);
        } of 3);
        for b in 0..blocks {
            let w = w.add(b * size_of::<UnpackedBlock>());
            let record = x.add(b * 4 * ROW_RECORD);
            let field = |i: usize, r: usize| record.add(4 * BLOCK + 4 * (4 * i + r));
            let int = |i: usize, r: usize| field(i, r).cast::<i32>().read_unaligned();
            let float = |i: usize, r: usize| field(i, r).cast::<f32>().read_unaligned();
            let scale =
                |p: usize, s: usize| _mm512_load_ps(w.add(p * PANEL + CODES + 64 * s).cast());
            let min =
                |p: usize, s: usize| _mm512_load_ps(w.add(p * PANEL + CODES + 128 + 64 * s).cast());
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
                        codes[p] = _mm512_load_si512(w.add(p * PANEL + 64 * g).cast());
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
                _mm512_store_ps(out.add(r * SUMS_STRIDE + p * LANES), sums[p][r]);
            } of 4);
        } of 3);
    }
}
