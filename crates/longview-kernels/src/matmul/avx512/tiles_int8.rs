//! Quantised weights · int8 activations of many rows, with the tiles of AMX.
//!
//! A tile product is sixteen rows times a panel over one block, as that is what has one scale; its
//! sums go through the nearest cache into registers, where they are scaled and added exactly as
//! without tiles. Products are some blocks ahead of the scaling, for what a tile stores is there only
//! after a while. Measured on the first processors with tiles, a product and its store take some nine
//! nanoseconds and the scaling eight, one after the other: tiles and 512-bit registers do not work at the
//! same time there.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::each;
use super::tiles::{self, Tiles as Cut};
use super::unpacked::{BLOCKS, CODES, Place, Unpacked, VECTOR, WIDE_SLAB, slab_bytes};
use crate::activations::{ROW_RECORD, TILE_ROWS};
use crate::matmul::Part;
use crate::matmul::source::Source;
use crate::matmul::wide::{self, At, Kernel, Tiles, walk};
use crate::packed::layout::{BLOCK, LANES};

/// Computes `part`, whose rows share records of sixteen.
pub(super) fn tiles_int8<S: Source>(part: &Part) {
    assert!(part.x.shape().in_tiles() && part.groups.start.is_multiple_of(GROUPS));
    // SAFETY: rows are in tiles where the instruction set is `Isa::Amx`, which runs only where the
    // processor offers it.
    let _cut = unsafe { Cut::cut(BLOCK / S::LAYOUT.subs) };
    walk(
        part,
        &mut Tiled::<S> {
            unpacked: Unpacked::new(),
            dots: MaybeUninit::uninit(),
        },
    );
}

/// Groups of a tile.
const GROUPS: usize = TILE_ROWS / 4;
/// Bytes of a record.
const RECORD: usize = TILE_ROWS * ROW_RECORD;
/// Blocks whose sums are kept: those in the making, and the one that is scaled.
const KEPT: usize = AHEAD + 1;
/// Blocks that products are ahead of the scaling.
const AHEAD: usize = 3;
/// Numbers of a tile of sums.
const SUMS: usize = TILE_ROWS * LANES;

/// Slabs of panels, unpacked, and the sums of tile products.
struct Tiled<S> {
    unpacked: Unpacked<S, true>,
    dots: MaybeUninit<Dots>,
}

/// Sums of tile products, `[block][half][16 rows][16]`.
#[repr(align(64))]
struct Dots {
    _room: [[[i32; SUMS]; 2]; KEPT],
}

impl<S: Source> Kernel for Tiled<S> {
    const PANELS: usize = wide::PANELS;
    const GROUPS: usize = GROUPS;
    const BLOCK_GROUPS: usize = wide::ROWS / 4;
    const SLAB: usize = BLOCKS * BLOCK;
    const WIDE_SLAB: usize = WIDE_SLAB;

    fn bytes(_part: &Part, first: usize) -> Range<usize> {
        slab_bytes::<S>(first)
    }

    fn unpack(&mut self, part: &Part, panel: usize, slot: usize, first: usize, count: usize) {
        self.unpacked.unpack(part, panel, slot, first, count);
    }

    fn add(&mut self, part: &Part, mut tiles: Tiles<'_>, first: usize, count: usize) {
        let stride = part.x.shape().record_bytes();
        let lots = tiles.group / GROUPS..(tiles.group + tiles.groups).div_ceil(GROUPS);
        let records = &part.x.records()[lots.start * stride..lots.end * stride];
        let mut x = records.as_ptr().wrapping_add(first / BLOCK * RECORD);
        let panels = tiles.panels;
        while tiles.groups > 0 {
            let groups = tiles.groups.min(GROUPS);
            let Some(tile) = tiles.next(groups) else {
                break;
            };
            for p in 0..panels {
                let product = Product {
                    w: self.unpacked.blocks().wrapping_add(p * Place::<S>::PANEL),
                    x,
                    blocks: count / BLOCK,
                    dots: self.dots.as_mut_ptr().cast(),
                    from: tile.from.panel(p),
                    to: tile.to.panel(p),
                };
                // SAFETY: the processor offers the features, and tiles are cut; so many blocks of so
                // many panels are unpacked, and the records of the tiles' rows are there.
                unsafe {
                    match groups {
                        1 => product.add::<S, 4>(),
                        2 => product.add::<S, 8>(),
                        3 => product.add::<S, 12>(),
                        _ => product.add::<S, 16>(),
                    }
                }
            }
            x = x.wrapping_add(stride);
        }
    }
}

/// Some blocks of a panel times the rows of a tile.
struct Product {
    /// The first block, unpacked.
    w: *const u8,
    /// The first record.
    x: *const u8,
    blocks: usize,
    /// Room for [`Dots`].
    dots: *mut i32,
    /// What the sums are before.
    from: At<*const f32>,
    /// Where they go.
    to: At<*mut f32>,
}

impl Product {
    /// Adds to the sums of the first `R` rows.
    ///
    /// # Safety
    /// The processor offers the features, and tiles are cut for blocks of `S`; pointers are as their
    /// fields say, the sums those of at least `R` rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn add<S: Source, const R: usize>(&self) {
        let of_block = |b: usize| self.dots.wrapping_add(b % KEPT * 2 * SUMS);
        let mut sums = [_mm512_setzero_ps(); TILE_ROWS];
        // SAFETY: blocks are counted, and there is room for the sums of the next ones.
        unsafe {
            each!(r < R, {
                sums[r] = _mm512_loadu_ps(self.from.start.add(r * self.from.stride));
            } of 16);
            for b in 0..AHEAD.min(self.blocks) {
                self.multiply::<S>(b, of_block(b));
            }
            for b in 0..self.blocks {
                if b + AHEAD < self.blocks {
                    self.multiply::<S>(b + AHEAD, of_block(b + AHEAD));
                }
                self.scale::<S, R>(b, of_block(b), &mut sums);
            }
            each!(r < R, {
                _mm512_storeu_ps(self.to.start.add(r * self.to.stride), sums[r]);
            } of 16);
        }
    }

    /// Writes the sums of block `b`, of each half where halves have scales of their own, to `dots`.
    ///
    /// # Safety
    /// As [`Product::add`]; there is room for the sums.
    #[inline(always)]
    unsafe fn multiply<S: Source>(&self, b: usize, dots: *mut i32) {
        let layout = S::LAYOUT;
        let x = self.x.wrapping_add(b * RECORD);
        let w = self.w.wrapping_add(b * Place::<S>::BLOCK);
        let halves = (x.wrapping_add(BLOCK / 2), w.wrapping_add(CODES / 2));
        // SAFETY: the caller's promise.
        unsafe {
            let product = match layout.has_min() {
                true => tiles::unsigned,
                false => tiles::signed,
            };
            product(x, BLOCK, w, dots);
            if layout.subs == 2 {
                product(halves.0, BLOCK, halves.1, dots.add(SUMS));
            }
        }
    }

    /// Adds the scaled `dots` of block `b` to the `sums` of `R` rows: the operations of every other kernel,
    /// in their order.
    ///
    /// # Safety
    /// As [`Product::add`]; the dots are there.
    #[inline(always)]
    unsafe fn scale<S: Source, const R: usize>(
        &self,
        b: usize,
        dots: *const i32,
        sums: &mut [__m512; TILE_ROWS],
    ) {
        let layout = S::LAYOUT;
        // SAFETY: what is read lies inside the block and its record.
        unsafe {
            let w = self.w.add(b * Place::<S>::BLOCK);
            let record = self.x.add(b * RECORD);
            let field =
                |i: usize, r: usize| record.add(TILE_ROWS * BLOCK + 4 * (TILE_ROWS * i + r));
            let float = |i: usize, r: usize| field(i, r).cast::<f32>().read();
            let scale = |s: usize| _mm512_load_ps(w.add(CODES + VECTOR * s).cast());
            let min = |s: usize| _mm512_load_ps(w.add(Place::<S>::MINIMA + VECTOR * s).cast());
            let dot = |s: usize, r: usize| {
                let dot = dots.add(s * SUMS + r * LANES);
                _mm512_cvtepi32_ps(_mm512_load_si512(dot.cast()))
            };
            let (low, high) = (scale(0), scale(layout.subs - 1));
            each!(r < R, {
                let mut sum = _mm512_mul_ps(dot(0, r), low);
                if layout.subs == 2 {
                    sum = _mm512_fmadd_ps(dot(1, r), high, sum);
                }
                if layout.has_min() && layout.subs == 1 {
                    sum = _mm512_fmadd_ps(min(0), _mm512_set1_ps(float(3, r)), sum);
                } else if layout.has_min() {
                    let of_low = field(2, r).cast::<i32>().read() as f32 * (-1.0 / 128.0);
                    sum = _mm512_fmadd_ps(min(0), _mm512_set1_ps(of_low), sum);
                    let of_high = _mm512_set1_ps(float(3, r) - of_low);
                    sum = _mm512_fmadd_ps(min(1), of_high, sum);
                }
                sums[r] = _mm512_fmadd_ps(sum, _mm512_set1_ps(float(0, r)), sums[r]);
            } of 16);
        }
    }
}
