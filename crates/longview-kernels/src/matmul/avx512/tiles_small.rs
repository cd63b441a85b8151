//! Quantised weights whose scales are whole numbers · int8 activations of many rows, with the tiles of AMX.
//!
//! Sixteen rows times two panels over a segment are sixteen tile products, two for each 64 elements of a
//! panel as scale · code has two bytes; they add up in four tiles. While they do, the sums of the two panels
//! before the last become floats: those of the last are on their way out of the tiles.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::cut_for_rows;
use super::each;
use super::folded::{Folded, PLANE, times_minima};
use super::unpack::Factors;
use super::unpacked::{VECTOR, WIDE_SLAB};
use crate::activations::tile_record::{self, QUARTER, QUARTER_BYTES};
use crate::activations::{Activations, TILE_ROWS};
use crate::amx;
use crate::matmul::Part;
use crate::matmul::source::Source;
use crate::matmul::wide::{self, At, Finish, Kernel, Pairs, Tiles, walk, walk_pairs};
use crate::packed::Packed;
use crate::packed::layout::{BLOCK, Grain, LANES, SEGMENT};

/// Computes `part`, whose rows share records of sixteen.
pub(super) fn tiles_small<S: Source>(part: &Part) {
    let _cut = cut_for_rows(part.x, &part.groups, QUARTER);
    walk(part, &mut Tiled::<S>::new());
}

/// Computes `pairs`, whose rows share records of sixteen.
pub(super) fn tiles_small_pairs<S: Source>(pairs: &Pairs, finish: &Finish) {
    let _cut = cut_for_rows(pairs.x, &pairs.groups, QUARTER);
    walk_pairs(pairs, &mut Tiled::<S>::new(), finish);
}

/// Groups of a tile.
const GROUPS: usize = TILE_ROWS / 4;
/// Numbers of a tile of sums.
const SUMS: usize = TILE_ROWS * LANES;
/// Tiles of sums: the high and the low bytes of two panels.
const TILES: usize = 4;

/// Segments of panels, unpacked, and the sums of tile products.
struct Tiled<S> {
    folded: Folded<S>,
    dots: MaybeUninit<Dots>,
}

impl<S: Source> Tiled<S> {
    fn new() -> Self {
        Tiled {
            folded: Folded::new(),
            dots: MaybeUninit::uninit(),
        }
    }
}

/// Sums of two products, one that becomes floats, and the one after it.
#[repr(align(64))]
struct Dots {
    _room: [[[i32; SUMS]; TILES]; 2],
}

impl<S: Source> Kernel for Tiled<S> {
    const PANELS: usize = wide::PANELS;
    const GROUPS: usize = GROUPS;
    const BLOCK_GROUPS: usize = wide::ROWS / 4;
    const SLAB: usize = SEGMENT * BLOCK;
    const WIDE_SLAB: usize = WIDE_SLAB;

    fn bytes(_w: &Packed, first: usize) -> Range<usize> {
        let bytes = S::LAYOUT.segment_bytes(SEGMENT);
        let start = first / (SEGMENT * BLOCK) * bytes;
        start..start + bytes
    }

    fn unpack(&mut self, w: &Packed, panel: usize, slot: usize, first: usize, _count: usize) {
        self.folded.unpack(w, panel, slot, first);
    }

    fn add(&mut self, x: &Activations, tiles: Tiles<'_>, first: usize, _count: usize) {
        let stride = x.shape().record_bytes(Grain::Segment);
        let lots = tiles.group / GROUPS..(tiles.group + tiles.groups).div_ceil(GROUPS);
        let records = &x.records(Grain::Segment)[lots.start * stride..lots.end * stride];
        let first = first / (SEGMENT * BLOCK) * tile_record::BYTES;
        let x = records.as_ptr().wrapping_add(first);
        let dots = self.dots.as_mut_ptr().cast();
        // SAFETY: the processor offers the features, and tiles are cut; a segment of so many panels is
        // unpacked, and the records of the tiles' rows are there.
        unsafe { compute(&self.folded, x, stride, tiles, dots) };
    }
}

/// Two panels times the rows of a tile.
#[derive(Clone, Copy)]
struct Product {
    /// The record.
    x: *const u8,
    /// The codes of the first panel.
    codes: *const u8,
    /// What stands beside the codes of each panel.
    beside: [*const u8; 2],
    /// Panels that are there, 1 or 2.
    panels: usize,
    /// Rows that are there, a multiple of four.
    rows: usize,
    /// What the sums are before.
    from: At<*const f32>,
    /// Where they go.
    to: At<*mut f32>,
    /// Room for the sums of the tile products, `[TILES][16][16]`.
    dots: *mut i32,
}

/// Adds an unpacked segment times the rows of the records from `x` on, which are `stride` bytes apart, to
/// the sums of `tiles`.
///
/// # Safety
/// The processor offers the features, and tiles are cut for quarters of a segment; the panels' segments
/// and the rows' records are there, and `dots` has room for [`Dots`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn compute<S: Source>(
    folded: &Folded<S>,
    x: *const u8,
    stride: usize,
    mut tiles: Tiles<'_>,
    dots: *mut i32,
) {
    // In the tiles, and stored.
    let (mut summed, mut stored): (Option<Product>, Option<Product>) = (None, None);
    let (all, groups, mut count) = (tiles.sums(), tiles.groups, 0);
    // Two panels stay in the first-level cache with the rows that come and go.
    for p in (0..tiles.panels).step_by(2) {
        for first in (0..groups).step_by(GROUPS) {
            let groups = GROUPS.min(groups - first);
            if p == 0 {
                tiles.next(groups);
            }
            let product = Product {
                x: x.wrapping_add(first / GROUPS * stride),
                codes: folded.codes(p),
                beside: [folded.beside(p), folded.beside(p + 1)],
                panels: 2.min(tiles.panels - p),
                rows: 4 * groups,
                from: all.from.panel(p).row(4 * first),
                to: all.to.panel(p).row(4 * first),
                dots: dots.wrapping_add(count % 2 * TILES * SUMS),
            };
            // SAFETY: the caller's promise.
            unsafe { step::<S>(Some(&product), summed.as_ref(), stored.as_ref()) };
            (summed, stored) = (Some(product), summed);
            count += 1;
        }
    }
    // SAFETY: as above.
    unsafe {
        step::<S>(None, summed.as_ref(), stored.as_ref());
        step::<S>(None, None, summed.as_ref());
    }
}

/// Multiplies `next`, stores the sums of what was multiplied before, `summed`, and makes floats of those
/// that are stored.
///
/// # Safety
/// As [`compute`].
#[inline(always)]
unsafe fn step<S: Source>(
    next: Option<&Product>,
    summed: Option<&Product>,
    stored: Option<&Product>,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if let Some(summed) = summed {
            amx::store_first(summed.dots);
            amx::store_second(summed.dots.add(SUMS));
            amx::store_third(summed.dots.add(2 * SUMS));
            amx::store_fourth(summed.dots.add(3 * SUMS));
        }
        amx::clear();
        each!(quarter < 4, {
            if let Some(next) = next {
                let x = next.x.wrapping_add(quarter * QUARTER_BYTES);
                let codes = next.codes.wrapping_add(quarter * TILE_ROWS * VECTOR);
                if S::LAYOUT.has_min() {
                    amx::unsigned_fours(x, codes, PLANE);
                } else {
                    amx::signed_fours(x, codes, PLANE);
                }
            }
            if let Some(stored) = stored {
                stored.scale::<S>(4 * quarter);
            }
        } of 4);
    }
}

impl Product {
    /// Adds what four rows from `first` on, as far as they are there, have in [`Product::dots`] to their
    /// sums: the operations of every other kernel.
    ///
    /// # Safety
    /// As [`compute`]; the sums are stored.
    #[inline(always)]
    unsafe fn scale<S: Source>(&self, first: usize) {
        if first >= self.rows {
            return;
        }
        // SAFETY: what is read and written lies inside what the caller promises.
        unsafe {
            // Moves bytes up by one: 256 times as much.
            let up = _mm512_set4_epi32(0x0e0d_0c80, 0x0a09_0880, 0x0605_0480, 0x0201_0080);
            each!(p < 2, {
                if p < self.panels {
                    let factors = Factors {
                        scale: _mm512_load_ps(self.beside[p].cast()),
                        min: _mm512_load_ps(self.beside[p].add(VECTOR).cast()),
                    };
                    let minima = self.beside[p].add(2 * VECTOR);
                    each!(r < 4, {
                        let row = first + r;
                        let dots = self.dots.add(2 * p * SUMS + row * LANES);
                        let high = _mm512_load_si512(dots.cast());
                        let low = _mm512_load_si512(dots.add(SUMS).cast());
                        let scaled = _mm512_add_epi32(shuffle(high, up), low);
                        let sums = match S::LAYOUT.subs {
                            1 => tile_record::BLOCKS + row * tile_record::BLOCKS_ROW,
                            _ => tile_record::HALVES + row * tile_record::HALVES_ROW,
                        };
                        let of_row = || times_minima::<S>(minima, self.x.add(sums));
                        let x_scale = self.x.add(tile_record::SCALES + 4 * row).cast::<f32>();
                        let from = self.from.start.add(row * self.from.stride + p * LANES);
                        let sum = _mm512_loadu_ps(from);
                        let sum = factors.add::<S>(sum, scaled, of_row, x_scale.read());
                        let to = self.to.start.add(row * self.to.stride + p * LANES);
                        _mm512_storeu_ps(to, sum);
                    } of 4);
                }
            } of 2);
        }
    }
}

/// Bytes of `from` at the places that `places` tells in every 16 bytes. Written so that the compiler does
/// not make a shift of it, for which there is but the port that multiplies.
///
/// # Safety
/// The processor offers AVX-512 BW.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn shuffle(from: __m512i, places: __m512i) -> __m512i {
    let to;
    // SAFETY: register arithmetic.
    unsafe {
        std::arch::asm!(
            "vpshufb {to}, {from}, {places}",
            to = lateout(zmm_reg) to,
            from = in(zmm_reg) from,
            places = in(zmm_reg) places,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    to
}
