//! Weights of any format · f32 activations.

use std::arch::x86_64::*;

use super::int8::{load_lanes, store_lanes};
use super::unpack::{Unpacked, bits};
use crate::format::Format;
use crate::matmul::Part;
use crate::matmul::slab::{SLAB, Tile, slabs};
use crate::matmul::source::{Source, with_source};
use crate::memory::prefetch_farther;
use crate::packed::layout::{BLOCK, LANES};

/// Computes `part` with its weights as f32.
pub(in crate::matmul) fn float(part: &Part) {
    match part.w.format() {
        Format::F32 => {
            // SAFETY: the slab begins inside the panel.
            let here = |panel: *const u8, first: usize, _: usize, _: *mut f32| unsafe {
                panel.add(first * LANES * 4).cast()
            };
            slabs(part, here, add);
        }
        Format::F16 => slabs(part, widen::<true>, add),
        Format::BF16 => slabs(part, widen::<false>, add),
        format => with_source!(format, quantised(part)),
    }
}

fn quantised<S: Source>(part: &Part) {
    let blocks = part.blocks();
    let unpack = |panel: *const u8, first: usize, _: usize, slab: *mut f32| {
        // SAFETY: `Isa::Avx2` runs only where the processor offers the features; `first` is the
        // start of a segment of the panel, and the slab holds a segment.
        unsafe { dequantise::<S>(panel, blocks, first / SLAB, slab) };
        slab.cast_const()
    };
    slabs(part, unpack, add);
}

/// Adds a slab that is f32.
fn add(tile: &Tile, w: *const f32) {
    for group in 0..tile.groups {
        // SAFETY: `Isa::Avx2` runs only where the processor offers the features; `slabs` gives a
        // slab and a tile of the part.
        unsafe {
            match tile.group {
                1 => compute::<1>(tile, group, w),
                2 => compute::<2>(tile, group, w),
                3 => compute::<3>(tile, group, w),
                _ => compute::<4>(tile, group, w),
            }
        }
    }
}

/// Adds the slab `w` to one group of `G` rows.
///
/// # Safety
/// The processor offers AVX2 and FMA; `w` holds `tile.count` times 16 floats, the tile's pointers
/// are as its fields say, and `group` is below its number of groups.
#[target_feature(enable = "avx2,fma")]
unsafe fn compute<const G: usize>(tile: &Tile, group: usize, w: *const f32) {
    let mut sums = [[_mm256_setzero_ps(); 2]; G];
    let rows = tile.rows.saturating_sub(group * G).min(G);
    // SAFETY: elements inside the slab and the group, rows and lanes inside the output.
    unsafe {
        let out = tile.out.wrapping_add(group * G * tile.out_stride);
        if !tile.fresh {
            for (r, sums) in sums.iter_mut().enumerate().take(rows) {
                *sums = load_lanes(out.add(r * tile.out_stride), tile.lanes);
            }
        }
        let mut x = tile.x.add(group * tile.x_stride);
        for i in 0..tile.count {
            let w = [
                _mm256_loadu_ps(w.add(i * LANES)),
                _mm256_loadu_ps(w.add(i * LANES + 8)),
            ];
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = _mm256_set1_ps(*x.add(r));
                sums[0] = _mm256_fmadd_ps(w[0], x, sums[0]);
                sums[1] = _mm256_fmadd_ps(w[1], x, sums[1]);
            }
            x = x.wrapping_add(G);
        }
        for (r, sums) in sums.iter().enumerate().take(rows) {
            store_lanes(out.add(r * tile.out_stride), tile.lanes, *sums);
        }
    }
}

/// Unpacks elements `first..first + count` of an F16 (`HALF`) or BF16 panel.
fn widen<const HALF: bool>(
    panel: *const u8,
    first: usize,
    count: usize,
    slab: *mut f32,
) -> *const f32 {
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn all<const HALF: bool>(from: *const u8, count: usize, slab: *mut f32) {
        for i in 0..2 * count {
            // SAFETY: `2 · count` vectors of eight lie at both places.
            unsafe {
                let from = from.add(16 * i);
                if i % 4 == 0 {
                    prefetch_farther(from.wrapping_add(4096));
                }
                let eight = _mm_loadu_si128(from.cast());
                let wide = if HALF {
                    _mm256_cvtph_ps(eight)
                } else {
                    let wide = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(eight));
                    _mm256_castsi256_ps(wide)
                };
                _mm256_storeu_ps(slab.add(8 * i), wide);
            }
        }
    }
    // SAFETY: `slabs` asks for elements inside the panel and gives room for them; the features as
    // in `quantised`.
    unsafe { all::<HALF>(panel.add(first * LANES * 2), count, slab) };
    slab
}

/// Unpacks a segment of a quantised panel.
///
/// # Safety
/// The processor offers the features; the panel has `blocks` blocks and this segment, and `slab`
/// room for a segment.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dequantise<S: Source>(panel: *const u8, blocks: usize, segment: usize, slab: *mut f32) {
    let width = bits(&S::LAYOUT);
    let centre = if S::LAYOUT.has_min() || width == 8 {
        0
    } else {
        1 << (width - 1)
    };
    let mut unpacked = Unpacked::ZERO;
    // SAFETY: blocks inside the segment, and eight vectors of the slab for each group.
    unsafe {
        let count = unpacked.read::<S>(panel, blocks, segment);
        for b in 0..count {
            for g in 0..BLOCK / 4 {
                for h in 0..2 {
                    let scale = _mm256_loadu_ps(unpacked.scale[b][g / 4].as_ptr().add(8 * h));
                    let min = _mm256_loadu_ps(unpacked.min[b][g / 4].as_ptr().add(8 * h));
                    let codes = unpacked.codes[b].as_ptr().add(64 * g + 32 * h);
                    let codes = _mm256_load_si256(codes.cast());
                    for i in 0..4 {
                        // Byte i with its sign, which only signed codes have set.
                        let up = _mm_cvtsi32_si128(24 - 8 * i as i32);
                        let code = _mm256_srai_epi32::<24>(_mm256_sll_epi32(codes, up));
                        let value = _mm256_sub_epi32(code, _mm256_set1_epi32(centre));
                        let value = _mm256_fmadd_ps(_mm256_cvtepi32_ps(value), scale, min);
                        let at = (b * BLOCK + 4 * g + i) * LANES + 8 * h;
                        _mm256_storeu_ps(slab.add(at), value);
                    }
                }
            }
        }
    }
}
