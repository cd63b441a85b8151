//! Weights of any format · f32 activations.

use std::arch::x86_64::*;

use super::each;
use super::unpack::Block;
use crate::format::Format;
use crate::matmul::Part;
use crate::matmul::slab::{SLAB, Tile, slabs, tiles};
use crate::matmul::source::{Segment, Source, with_source};
use crate::packed::layout::{BLOCK, LANES};

/// Computes `part` with its weights as f32.
pub(in crate::matmul) fn float(part: &Part) {
    let few = part.rows().len() <= 4;
    match part.w.format() {
        Format::F32 if few => in_place::<Single>(part),
        Format::F16 if few => in_place::<Half>(part),
        Format::BF16 if few => in_place::<Brain>(part),
        // SAFETY: the slab begins inside the panel.
        Format::F32 => slabs(
            part,
            |panel, first, _, _| unsafe { panel.add(first * LANES * 4).cast() },
            add,
        ),
        Format::F16 => slabs(part, widen::<Half>, add),
        Format::BF16 => slabs(part, widen::<Brain>, add),
        format => with_source!(format, quantised(part)),
    }
}

fn quantised<S: Source>(part: &Part) {
    let blocks = part.blocks();
    let unpack = |panel: *const u8, first: usize, _: usize, slab: *mut f32| {
        // SAFETY: `Isa::Avx512` runs only where the processor offers the features; `first` is the
        // start of a segment of the panel, and the slab holds a segment.
        unsafe { dequantise::<S>(panel, blocks, first / SLAB, slab) };
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

/// Computes `part`, of at most four rows, reading float weights in their own form.
fn in_place<W: Element>(part: &Part) {
    for panel in part.panels.clone() {
        let weights = part.w.panel(panel).as_ptr();
        // SAFETY: as in `add`; the panel holds k vectors.
        tiles(part, panel, 0, part.w.k(), |tile| unsafe {
            dispatch::<W>(tile, weights)
        });
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
trait Element {
    /// Bytes of an element.
    const BYTES: usize;

    /// Sixteen elements.
    ///
    /// # Safety
    /// `at` holds sixteen elements; the caller has AVX-512 and F16C enabled.
    unsafe fn load(at: *const u8) -> __m512;
}

struct Single;
struct Half;
struct Brain;

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

/// Unpacks elements `first..first + count` of a float panel.
fn widen<W: Element>(panel: *const u8, first: usize, count: usize, slab: *mut f32) -> *const f32 {
    #[target_feature(enable = "avx512f,f16c")]
    unsafe fn all<W: Element>(from: *const u8, count: usize, slab: *mut f32) {
        for i in 0..count {
            // SAFETY: `count` vectors lie at both places.
            unsafe {
                let from = from.add(i * LANES * W::BYTES);
                _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(4096).cast());
                _mm512_store_ps(slab.add(i * LANES), W::load(from));
            }
        }
    }
    // SAFETY: `slabs` asks for elements inside the panel and gives room for them.
    unsafe { all::<W>(panel.add(first * LANES * W::BYTES), count, slab) };
    slab
}

/// Unpacks a segment of a quantised panel.
///
/// # Safety
/// The processor offers the features; the panel has `blocks` blocks and this segment, and `slab`
/// room for a segment.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,f16c")]
unsafe fn dequantise<S: Source>(panel: *const u8, blocks: usize, segment: usize, slab: *mut f32) {
    let centre = if S::LAYOUT.has_min() { 0 } else { 128 };
    // SAFETY: blocks inside the segment, and four vectors of the slab for each group.
    unsafe {
        let (segment, count) = Segment::at::<S>(panel, blocks, segment);
        for b in 0..count {
            segment.prefetch::<S>(b);
            let block = Block::unpack::<S>(segment.planes::<S>(b));
            for g in 0..BLOCK / 4 {
                let (scale, min) = (block.scale[g / 4], block.min[g / 4]);
                let mut codes = block.codes[g];
                for i in 0..4 {
                    let code = _mm512_and_si512(codes, _mm512_set1_epi32(0xff));
                    let value = _mm512_sub_epi32(code, _mm512_set1_epi32(centre));
                    let value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(value), scale, min);
                    _mm512_store_ps(slab.add((b * BLOCK + 4 * g + i) * LANES), value);
                    codes = _mm512_srli_epi32::<8>(codes);
                }
            }
        }
    }
}
