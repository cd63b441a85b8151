//! Quantised weights · int8 activations of many rows, with the tiles of AMX.
//!
//! A tile product is sixteen rows times a panel over one block, as that is what has one scale; its
//! sums go through the nearest cache into registers, where they are scaled and added exactly as
//! without tiles. A block is multiplied two steps before it is scaled and its sums are stored one
//! step before, also where the next panel or the next rows begin: only so do tiles work while the
//! registers do. Measured on a processor with tiles, only one of the two ports for floats of 512 bits
//! goes on meanwhile, so sums become floats by an addition of integers, which others take.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::cut_for_rows;
use super::each;
use super::unpacked::{BLOCKS, CODES, Place, Unpacked, WIDE_SLAB, slab_bytes};
use crate::activations::{Activations, ROW_RECORD, TILE_ROWS};
use crate::amx;
use crate::matmul::Part;
use crate::matmul::source::Source;
use crate::matmul::wide::{self, At, Finish, Kernel, Pairs, Tiles, walk, walk_pairs};
use crate::packed::Packed;
use crate::packed::layout::{BLOCK, Grain, LANES};

/// Computes `part`, whose rows share records of sixteen.
pub(super) fn tiles_int8<S: Source>(part: &Part) {
    let _cut = cut_for_rows(part.x, &part.groups, BLOCK);
    walk(part, &mut Tiled::<S>::new());
}

/// Computes `pairs`, whose rows share records of sixteen.
pub(super) fn tiles_int8_pairs<S: Source>(pairs: &Pairs, finish: &Finish) {
    let _cut = cut_for_rows(pairs.x, &pairs.groups, BLOCK);
    walk_pairs(pairs, &mut Tiled::<S>::new(), finish);
}

/// Groups of a tile.
const GROUPS: usize = TILE_ROWS / 4;
/// Bytes of a record.
const RECORD: usize = TILE_ROWS * ROW_RECORD;
/// Blocks whose sums are kept: one that is scaled, and the one after it.
const KEPT: usize = 2;
/// Blocks that are worked on together: registers take turns.
const TURNS: usize = 2;
/// Steps of a product at least, so that what is begun ahead belongs to the next one at most.
const STEPS: usize = 4;
/// Numbers of a tile of sums.
const SUMS: usize = TILE_ROWS * LANES;
/// Added to a sum as an integer, it makes the bits of the float 1.5 · 2²³ + sum.
const SHIFT: i32 = 0x4B40_0000;

/// Slabs of panels, unpacked, and the sums of tile products.
struct Tiled<S> {
    unpacked: Unpacked<S, true>,
    dots: MaybeUninit<Dots>,
}

impl<S: Source> Tiled<S> {
    fn new() -> Self {
        Tiled {
            unpacked: Unpacked::new(),
            dots: MaybeUninit::uninit(),
        }
    }
}

/// Sums of tile products, `[block][16 rows][16]`.
#[repr(align(64))]
struct Dots {
    _room: [[i32; SUMS]; KEPT],
}

impl<S: Source> Kernel for Tiled<S> {
    const PANELS: usize = wide::PANELS;
    const GROUPS: usize = GROUPS;
    const BLOCK_GROUPS: usize = wide::ROWS / 4;
    const SLAB: usize = BLOCKS * BLOCK;
    const WIDE_SLAB: usize = WIDE_SLAB;

    fn bytes(_w: &Packed, first: usize) -> Range<usize> {
        slab_bytes::<S>(first)
    }

    fn unpack(&mut self, w: &Packed, panel: usize, slot: usize, first: usize, count: usize) {
        self.unpacked.unpack(w, panel, slot, first, count);
    }

    fn add(&mut self, x: &Activations, mut tiles: Tiles<'_>, first: usize, count: usize) {
        let stride = x.shape().record_bytes(Grain::Block);
        let lots = tiles.group / GROUPS..(tiles.group + tiles.groups).div_ceil(GROUPS);
        let records = &x.records(Grain::Block)[lots.start * stride..lots.end * stride];
        let mut x = records.as_ptr().wrapping_add(first / BLOCK * RECORD);
        let panels = tiles.panels;
        let of_panel = |p: usize| {
            let blocks = self.unpacked.blocks();
            blocks.wrapping_add(p * Place::<S>::PANEL)
        };
        let blocks = count / BLOCK;
        let mut front = Front {
            at: Blocks { w: of_panel(0), x },
            left: steps(blocks),
            idle: steps(blocks) - blocks,
        };
        let mut begun = false;
        while tiles.groups > 0 {
            let groups = tiles.groups.min(GROUPS);
            let Some(tile) = tiles.next(groups) else {
                break;
            };
            for p in 0..panels {
                let next = match p + 1 < panels {
                    true => Blocks {
                        w: of_panel(p + 1),
                        x,
                    },
                    // After the last tile its first product begins once more, and is never scaled.
                    false => Blocks {
                        w: of_panel(0),
                        x: x.wrapping_add(if tiles.groups > 0 { stride } else { 0 }),
                    },
                };
                let product = Product {
                    at: Blocks { w: of_panel(p), x },
                    next,
                    blocks,
                    dots: self.dots.as_mut_ptr().cast(),
                    from: tile.from.panel(p),
                    to: tile.to.panel(p),
                };
                // SAFETY: the processor offers the features, and tiles are cut; so many blocks of so
                // many panels are unpacked, and the records of the tiles' rows are there. Each
                // product begins the next.
                unsafe {
                    if !begun {
                        product.begin::<S>(&mut front);
                        begun = true;
                    }
                    match groups {
                        1 => product.add::<S, 4>(&mut front),
                        2 => product.add::<S, 8>(&mut front),
                        3 => product.add::<S, 12>(&mut front),
                        _ => product.add::<S, 16>(&mut front),
                    }
                }
            }
            x = x.wrapping_add(stride);
        }
    }
}

/// Some blocks of a panel times the rows of a tile.
struct Product {
    /// What is multiplied.
    at: Blocks,
    /// What is multiplied next.
    next: Blocks,
    blocks: usize,
    /// Room for [`Dots`].
    dots: *mut i32,
    /// What the sums are before.
    from: At<*const f32>,
    /// Where they go.
    to: At<*mut f32>,
}

/// Blocks of a panel and of the rows of a tile.
#[derive(Clone, Copy)]
struct Blocks {
    /// The first block, unpacked.
    w: *const u8,
    /// The first record.
    x: *const u8,
}

/// What is multiplied next.
#[derive(Clone, Copy)]
struct Front {
    at: Blocks,
    /// Steps that are left of its product.
    left: usize,
    /// Those that repeat the last block, as there are no more.
    idle: usize,
}

/// Steps that blocks take: an even number, as registers take turns.
fn steps(blocks: usize) -> usize {
    blocks.next_multiple_of(2).max(STEPS)
}

impl Product {
    /// Begins the first steps.
    ///
    /// # Safety
    /// As [`Product::add`].
    #[inline(always)]
    unsafe fn begin<S: Source>(&self, front: &mut Front) {
        // SAFETY: the caller's promise.
        unsafe {
            for b in 0..TURNS {
                self.multiply::<S>(b, front);
            }
            self.store(0);
            self.multiply::<S>(TURNS, front);
        }
    }

    /// Adds to the sums of the first `R` rows, the first steps having begun, and begins those of the next
    /// product.
    ///
    /// # Safety
    /// The processor offers the features, and tiles are cut for blocks of `S`; pointers are as their
    /// fields say, the sums those of at least `R` rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn add<S: Source, const R: usize>(&self, front: &mut Front) {
        let mut sums = [_mm512_setzero_ps(); TILE_ROWS];
        // In registers: behind the reference it would be written at every step.
        let mut ahead = *front;
        // SAFETY: blocks are counted, and there is room for the sums of the next ones.
        unsafe {
            each!(r < R, {
                sums[r] = _mm512_loadu_ps(self.from.start.add(r * self.from.stride));
            } of 16);
            for first in (0..steps(self.blocks)).step_by(2) {
                each!(turn < 2, {
                    let b = first + turn;
                    self.store(b + 1);
                    self.multiply::<S>(b + 1 + TURNS, &mut ahead);
                    if b < self.blocks {
                        self.scale::<S, R>(b, &mut sums);
                    }
                } of 2);
            }
            each!(r < R, {
                _mm512_storeu_ps(self.to.start.add(r * self.to.stride), sums[r]);
            } of 16);
        }
        *front = ahead;
    }

    /// Where the sums of step `b` go.
    #[inline(always)]
    fn dots(&self, b: usize) -> *mut i32 {
        self.dots.wrapping_add(b % KEPT * SUMS)
    }

    /// Multiplies the block at the front with the registers of step `b`.
    ///
    /// # Safety
    /// As [`Product::add`].
    #[inline(always)]
    unsafe fn multiply<S: Source>(&self, b: usize, front: &mut Front) {
        let Blocks { w, x } = front.at;
        // SAFETY: the caller's promise.
        unsafe {
            match (S::LAYOUT.has_min(), b.is_multiple_of(2)) {
                (false, true) => amx::signed_first(x, BLOCK, w),
                (false, false) => amx::signed_second(x, BLOCK, w),
                (true, true) => amx::unsigned_first(x, BLOCK, w),
                (true, false) => amx::unsigned_second(x, BLOCK, w),
            }
        }
        front.left -= 1;
        let on = usize::from(front.left > front.idle);
        front.at = Blocks {
            w: w.wrapping_add(on * Place::<S>::BLOCK),
            x: x.wrapping_add(on * RECORD),
        };
        if front.left == 0 {
            (front.at, front.left) = (self.next, steps(self.blocks));
        }
    }

    /// Writes the sums of step `b`, which has been multiplied, to its [`Product::dots`].
    ///
    /// # Safety
    /// As [`Product::add`]; there is room for the sums.
    #[inline(always)]
    unsafe fn store(&self, b: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match b.is_multiple_of(2) {
                true => amx::store_first(self.dots(b)),
                false => amx::store_second(self.dots(b)),
            }
        }
    }

    /// Adds the scaled sums of block `b` to the `sums` of `R` rows: the operations of every other kernel,
    /// in their order.
    ///
    /// # Safety
    /// As [`Product::add`]; the sums of the block are stored.
    #[inline(always)]
    unsafe fn scale<S: Source, const R: usize>(&self, b: usize, sums: &mut [__m512; TILE_ROWS]) {
        let layout = S::LAYOUT;
        // SAFETY: what is read lies inside the block and its record.
        unsafe {
            let w = self.at.w.add(b * Place::<S>::BLOCK);
            let record = self.at.x.add(b * RECORD);
            let field =
                |i: usize, r: usize| record.add(TILE_ROWS * BLOCK + 4 * (TILE_ROWS * i + r));
            let float = |i: usize, r: usize| field(i, r).cast::<f32>().read();
            let scale = _mm512_load_ps(w.add(CODES).cast());
            let dots = self.dots(b);
            let (shift, shifted) = (_mm512_set1_epi32(SHIFT), f32::from_bits(SHIFT as u32));
            let unshift = _mm512_mul_ps(scale, _mm512_set1_ps(-shifted));
            each!(r < R, {
                let dot = _mm512_load_si512(dots.add(r * LANES).cast());
                let dot_shifted = _mm512_castsi512_ps(_mm512_add_epi32(dot, shift));
                let mut sum = _mm512_fmadd_ps(dot_shifted, scale, unshift);
                if layout.has_min() {
                    let min = _mm512_load_ps(w.add(Place::<S>::MINIMA).cast());
                    sum = _mm512_fmadd_ps(min, _mm512_set1_ps(float(3, r)), sum);
                }
                sums[r] = _mm512_fmadd_ps(sum, _mm512_set1_ps(float(0, r)), sums[r]);
            } of 16);
        }
    }
}
