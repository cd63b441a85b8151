//! Weights of any format · f32 activations.

use std::arch::x86_64::*;

use super::each;
use super::unpack::{Segment, Source, with_source};
use crate::format::Format;
use crate::matmul::Part;
use crate::packed::layout::{BLOCK, LANES, SEGMENT};

/// Elements of k that a panel is unpacked for at a time: 16 KiB of f32.
const SLAB: usize = SEGMENT * BLOCK;
/// Elements of k for which a block of rows stays in the second-level cache.
const WIDE_SLAB: usize = 4 * SLAB;

/// Computes `part` with its weights as f32.
pub(in crate::matmul) fn float(part: &Part) {
    // SAFETY: `Isa::Avx512` runs only where the processor offers the features.
    unsafe {
        match part.w.format() {
            Format::F32 => slabs(part, |panel, first, _, _| {
                panel.add(first * LANES * 4).cast()
            }),
            Format::F16 if part.rows().len() <= 4 => few::<Half>(part),
            Format::BF16 if part.rows().len() <= 4 => few::<Brain>(part),
            Format::F16 => slabs(part, widen::<Half>),
            Format::BF16 => slabs(part, widen::<Brain>),
            format => with_source!(format, quantised(part)),
        }
    }
}

/// # Safety
/// The processor offers the features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn quantised<S: Source>(part: &Part) {
    let blocks = part.blocks();
    slabs(part, |panel, first, _, slab| {
        // SAFETY: `first` is a segment's start inside the panel, and the slab holds a segment.
        unsafe {
            dequantise::<S>(panel, blocks, first / SLAB, slab);
        }
        slab.cast_const().cast()
    });
}

/// Room for one unpacked slab, `[k][16]`.
#[repr(align(64))]
struct Slab([f32; SLAB * LANES]);

/// Walks `part` slab by slab. `unpack(panel, first, count, slab)` returns where the weights of
/// elements `first..first + count` of a panel are as `[count][16]` f32, `slab` being room for them.
fn slabs(part: &Part, unpack: impl Fn(*const u8, usize, usize, *mut f32) -> *const f32) {
    let mut slab = Slab([0.0; SLAB * LANES]);
    let k = part.w.k();
    for wide in (0..k.max(1)).step_by(WIDE_SLAB) {
        for panel in part.panels.clone() {
            for first in (wide..k.min(wide + WIDE_SLAB)).step_by(SLAB) {
                let count = SLAB.min(k - first);
                let w = unpack(
                    part.w.panel(panel).as_ptr(),
                    first,
                    count,
                    slab.0.as_mut_ptr(),
                );
                rows(part, panel, first, count, |tile, shape| {
                    // SAFETY: `Isa::Avx512` runs only where the processor offers the features;
                    // `w` holds `count` vectors, and the tile is inside the part.
                    unsafe { tile.dispatch::<Single>(shape, w.cast()) }
                });
            }
        }
    }
}

/// Walks `part` of at most four rows, reading the weights in their own form.
fn few<W: Element>(part: &Part) {
    for panel in part.panels.clone() {
        let weights = part.w.panel(panel).as_ptr();
        rows(part, panel, 0, part.w.k(), |tile, shape| {
            // SAFETY: as in `slabs`; the panel holds k vectors.
            unsafe { tile.dispatch::<W>(shape, weights) }
        });
    }
}

/// Calls `work` for the tiles of all rows of `part`.
fn rows(
    part: &Part,
    panel: usize,
    first: usize,
    count: usize,
    work: impl Fn(&Tile, (usize, usize)),
) {
    let shape = part.x.shape();
    let stride = shape.float_bytes() / size_of::<f32>();
    let floats = part.x.floats();
    let mut group = part.groups.start;
    while group < part.groups.end {
        let groups = if shape.group == 4 {
            (part.groups.end - group).min(3)
        } else {
            1
        };
        let row = group * shape.group;
        let tile = Tile {
            count,
            fresh: first == 0,
            x: floats[group * stride + first * shape.group..].as_ptr(),
            x_stride: stride,
            out: part.out(row, panel),
            out_stride: part.w.n(),
            rows: (part.x.rows() - row).min(groups * shape.group),
            lanes: (0xffff_u32 >> (LANES - part.lanes(panel))) as __mmask16,
        };
        work(&tile, (shape.group, groups));
        group += groups;
    }
}

/// One panel's slab times up to twelve rows.
struct Tile {
    /// Elements of k.
    count: usize,
    /// Whether the sums begin at zero rather than at what `out` holds.
    fresh: bool,
    /// First element of the first group.
    x: *const f32,
    /// Numbers from one group to the next.
    x_stride: usize,
    out: *mut f32,
    out_stride: usize,
    rows: usize,
    lanes: __mmask16,
}

impl Tile {
    /// # Safety
    /// As [`Tile::compute`].
    unsafe fn dispatch<W: Element>(&self, (group, groups): (usize, usize), w: *const u8) {
        // SAFETY: the caller's promise.
        unsafe {
            match (group, groups) {
                (1, _) => self.compute::<W, 1, 1>(w),
                (2, _) => self.compute::<W, 2, 1>(w),
                (3, _) => self.compute::<W, 3, 1>(w),
                (_, 1) => self.compute::<W, 4, 1>(w),
                (_, 2) => self.compute::<W, 4, 2>(w),
                _ => self.compute::<W, 4, 3>(w),
            }
        }
    }

    /// Adds `count` elements to `GROUPS` groups of `G` rows.
    ///
    /// # Safety
    /// The processor offers the features; `w` holds `count` vectors of `W`, and the pointers of
    /// the tile are as their fields say.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn compute<W: Element, const G: usize, const GROUPS: usize>(&self, w: *const u8) {
        let mut sums = [_mm512_setzero_ps(); 12];
        let mut x: [*const f32; 3] = [0, 1, 2].map(|i| self.x.wrapping_add(i * self.x_stride));
        // SAFETY: rows and lanes inside the output, elements inside the panel and the groups.
        unsafe {
            each!(r < G * GROUPS, {
                if r < self.rows && !self.fresh {
                    let out = self.out.add(r * self.out_stride);
                    sums[r] = _mm512_maskz_loadu_ps(self.lanes, out);
                }
            });
            for i in 0..self.count {
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
                if r < self.rows {
                    _mm512_mask_storeu_ps(self.out.add(r * self.out_stride), self.lanes, sums[r]);
                }
            });
        }
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
            let block = segment.block::<S>(b);
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
