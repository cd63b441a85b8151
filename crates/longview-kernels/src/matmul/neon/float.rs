//! Weights of any format · f32 activations.

use std::arch::aarch64::*;

use super::unpack::{Stored, Weights};
use super::{QUARTERS, WIDTH, load_lanes, store_lanes};
use crate::format::Format;
use crate::lanes::widen_f16;
use crate::matmul::Part;
use crate::matmul::slab::{SLAB, Tile, slabs, tiles};
use crate::matmul::source::{Source, with_source};
use crate::memory::prefetch;
use crate::packed::layout::{BLOCK, LANES};

/// Computes `part` with its weights as f32.
pub(in crate::matmul) fn float(part: &Part) {
    let few = part.rows().len() <= 4;
    match part.w.format() {
        Format::F32 if few => in_place::<Single>(part),
        Format::F16 if few => in_place::<Half>(part),
        Format::BF16 if few => in_place::<Brain>(part),
        Format::F32 => {
            // SAFETY: the slab begins inside the panel.
            let here = |panel: *const u8, first: usize, _: usize, _: *mut f32| unsafe {
                panel.add(first * LANES * 4).cast()
            };
            slabs(part, here, add);
        }
        Format::F16 => slabs(part, widen::<Half>, add),
        Format::BF16 => slabs(part, widen::<Brain>, add),
        format => with_source!(format, quantised(part)),
    }
}

fn quantised<S: Source>(part: &Part) {
    let blocks = part.blocks();
    let unpack = |panel: *const u8, first: usize, _: usize, slab: *mut f32| {
        // SAFETY: the versions of NEON run only where the processor offers them; `first` is the
        // start of a segment of the panel, and the slab holds a segment.
        unsafe { dequantise::<S>(panel, blocks, first / SLAB, slab) };
        slab.cast_const()
    };
    slabs(part, unpack, add);
}

/// Adds a slab that is f32.
fn add(tile: &Tile, w: *const f32) {
    // SAFETY: the features as in `quantised`; `slabs` gives a slab and a tile of the part.
    unsafe { groups::<Single>(tile, w.cast()) }
}

/// Computes `part`, of at most four rows, reading float weights in their own form.
fn in_place<E: Element>(part: &Part) {
    for panel in part.panels.clone() {
        let weights = part.w.panel(panel).as_ptr();
        // SAFETY: as in `add`; the panel holds `[k][16]` elements.
        tiles(part, panel, 0, part.w.k(), |tile| unsafe {
            groups::<E>(tile, weights)
        });
    }
}

/// # Safety
/// As [`compute`].
unsafe fn groups<E: Element>(tile: &Tile, w: *const u8) {
    for group in 0..tile.groups {
        // SAFETY: the caller's promise.
        unsafe {
            match tile.group {
                1 => compute::<E, 1>(tile, group, w),
                2 => compute::<E, 2>(tile, group, w),
                3 => compute::<E, 3>(tile, group, w),
                _ => compute::<E, 4>(tile, group, w),
            }
        }
    }
}

/// Adds `[count][16]` elements to one group of `G` rows.
///
/// # Safety
/// The processor offers NEON; `w` holds the elements, the tile's pointers are as its fields say,
/// and `group` is below its number of groups.
#[target_feature(enable = "neon")]
unsafe fn compute<E: Element, const G: usize>(tile: &Tile, group: usize, w: *const u8) {
    let mut sums = [[vdupq_n_f32(0.0); QUARTERS]; G];
    let rows = tile.rows.saturating_sub(group * G).min(G);
    // SAFETY: elements inside the weights and the group, rows and lanes inside the output.
    unsafe {
        let out = tile.out.wrapping_add(group * G * tile.out_stride);
        if !tile.fresh {
            for (r, sums) in sums.iter_mut().enumerate().take(rows) {
                *sums = load_lanes(out.add(r * tile.out_stride), 0, tile.lanes);
            }
        }
        let mut x = tile.x.add(group * tile.x_stride);
        for i in 0..tile.count {
            let at = w.add(i * LANES * E::BYTES);
            prefetch(at.wrapping_add(2048));
            let w: [float32x4_t; QUARTERS] =
                std::array::from_fn(|q| E::load(at.add(q * WIDTH * E::BYTES)));
            for (r, sums) in sums.iter_mut().enumerate() {
                for (sum, &w) in sums.iter_mut().zip(&w) {
                    *sum = vfmaq_n_f32(*sum, w, *x.add(r));
                }
            }
            x = x.wrapping_add(G);
        }
        for (r, &sums) in sums.iter().enumerate().take(rows) {
            store_lanes(out.add(r * tile.out_stride), 0, tile.lanes, sums);
        }
    }
}

/// A float format, as a type.
trait Element {
    /// Bytes of an element.
    const BYTES: usize;

    /// Four elements.
    ///
    /// # Safety
    /// `at` holds four elements; the caller has NEON enabled.
    unsafe fn load(at: *const u8) -> float32x4_t;
}

struct Single;
struct Half;
struct Brain;

impl Element for Single {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { vld1q_f32(at.cast()) }
    }
}

impl Element for Half {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { widen_f16(vcreate_u16(at.cast::<u64>().read_unaligned())) }
    }
}

impl Element for Brain {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe {
            let four = vcreate_u16(at.cast::<u64>().read_unaligned());
            vreinterpretq_f32_u32(vshll_n_u16::<16>(four))
        }
    }
}

/// Unpacks elements `first..first + count` of a panel of `E`.
fn widen<E: Element>(panel: *const u8, first: usize, count: usize, slab: *mut f32) -> *const f32 {
    #[target_feature(enable = "neon")]
    unsafe fn all<E: Element>(from: *const u8, count: usize, slab: *mut f32) {
        for i in 0..QUARTERS * count {
            // SAFETY: `4 · count` registers of four lie at both places.
            unsafe {
                let from = from.add(WIDTH * E::BYTES * i);
                if i % 8 == 0 {
                    prefetch(from.wrapping_add(4096));
                }
                vst1q_f32(slab.add(WIDTH * i), E::load(from));
            }
        }
    }
    // SAFETY: `slabs` asks for elements inside the panel and gives room for them; the features as
    // in `quantised`.
    unsafe { all::<E>(panel.add(first * LANES * E::BYTES), count, slab) };
    slab
}

/// Unpacks a segment of a quantised panel.
///
/// # Safety
/// The processor offers NEON; the panel has `blocks` blocks and this segment, and `slab` room for
/// a segment.
#[target_feature(enable = "neon")]
unsafe fn dequantise<S: Source>(panel: *const u8, blocks: usize, segment: usize, slab: *mut f32) {
    // SAFETY: blocks inside the segment, and 128 registers of the slab for each.
    unsafe {
        let (stored, count) = Stored::<S>::at(panel, blocks, segment);
        for b in 0..count {
            stored.prefetch(b);
            for q in 0..QUARTERS {
                let (scale, min) = stored.scales(b, q);
                for g in 0..BLOCK / 4 {
                    let codes = vreinterpretq_s32_s8(stored.codes(b, g, q));
                    let half = g / 4;
                    for i in 0..4 {
                        // Byte i with its sign.
                        let up = vshlq_s32(codes, vdupq_n_s32(24 - 8 * i as i32));
                        let value = vcvtq_f32_s32(vshrq_n_s32::<24>(up));
                        let value = vfmaq_f32(min[half], value, scale[half]);
                        let at = (b * BLOCK + 4 * g + i) * LANES + WIDTH * q;
                        vst1q_f32(slab.add(at), value);
                    }
                }
            }
        }
    }
}
