//! Quantised weights · int8 activations.

use std::arch::x86_64::*;

use super::each;
use super::rows_int8::some_rows;
use super::unpack::Block;
use super::wide_int8::wide_int8;
use crate::activations::ROW_RECORD;
use crate::matmul::source::{Segment, Source, with_source};
use crate::matmul::{FEW_GROUPS, Part, SOME_ROWS};
use crate::packed::layout::{BLOCK, LANES, SEGMENT};

/// Computes `part`, whose weights are quantised.
pub(in crate::matmul) fn int8(part: &Part) {
    let format = part.w.format();
    if part.x.shape().groups <= FEW_GROUPS {
        with_source!(format, few_rows(part));
    } else if part.rows().len() <= SOME_ROWS {
        with_source!(format, some_rows(part));
    } else {
        with_source!(format, wide_int8(part));
    }
}

fn few_rows<S: Source>(part: &Part) {
    let shape = part.x.shape();
    for panel in part.panels.clone() {
        let tile = Tile {
            panel: part.w.panel(panel).as_ptr(),
            blocks: part.blocks(),
            x: part.x.records().as_ptr(),
            x_stride: shape.record_bytes(),
            out: part.out(0, panel),
            out_stride: part.w.n(),
            rows: part.x.rows(),
            lanes: (0xffff_u32 >> (LANES - part.lanes(panel))) as __mmask16,
        };
        // SAFETY: `Isa::Avx512` runs only where the processor offers the features. The tile's panel
        // and groups are whole, and its rows and lanes lie inside the output, which no other part
        // writes.
        unsafe {
            match (shape.group, shape.groups) {
                (1, _) => tile.compute::<S, 1, 1>(),
                (2, _) => tile.compute::<S, 2, 1>(),
                (3, _) => tile.compute::<S, 3, 1>(),
                (_, 1) => tile.compute::<S, 4, 1>(),
                (_, 2) => tile.compute::<S, 4, 2>(),
                _ => tile.compute::<S, 4, 3>(),
            }
        }
    }
}

/// One panel times all rows, up to three groups of them.
struct Tile {
    panel: *const u8,
    blocks: usize,
    /// Records of the first group.
    x: *const u8,
    /// Bytes from one group to the next.
    x_stride: usize,
    out: *mut f32,
    out_stride: usize,
    rows: usize,
    lanes: __mmask16,
}

impl Tile {
    /// Sums `GROUPS` groups of `G` rows; the first `rows` of them are written.
    ///
    /// # Safety
    /// The processor offers the features; pointers are as their fields say.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn compute<S: Source, const G: usize, const GROUPS: usize>(&self) {
        let layout = S::LAYOUT;
        let mut sums = [_mm512_setzero_ps(); 12];
        let mut x: [*const u8; 3] = [0, 1, 2].map(|i| self.x.wrapping_add(i * self.x_stride));
        // SAFETY: segments and blocks are counted inside the panel, records inside the groups.
        unsafe {
            for at in 0..self.blocks.div_ceil(SEGMENT) {
                let (segment, count) = Segment::at::<S>(self.panel, self.blocks, at);
                for b in 0..count {
                    segment.prefetch::<S>(b);
                    let w = Block::unpack::<S>(segment.planes::<S>(b));
                    each!(r < G * GROUPS, {
                        let record = x[r / G];
                        let codes = record.add((r % G) * BLOCK);
                        let field = |i: usize| record.add(G * BLOCK + 4 * (i * G + r % G));
                        let int =
                            |i: usize| _mm512_set1_epi32(field(i).cast::<i32>().read_unaligned());
                        let four = |g: usize| {
                            _mm512_set1_epi32(codes.add(4 * g).cast::<i32>().read_unaligned())
                        };
                        let zero = _mm512_setzero_si512();
                        let mut dot = if layout.subs == 1 {
                            let mut sum = if layout.has_min() { zero } else { int(1) };
                            each!(g < 8, {
                                sum = _mm512_dpbusd_epi32(sum, w.codes[g], four(g));
                            } of 8);
                            _mm512_mul_ps(_mm512_cvtepi32_ps(sum), w.scale[0])
                        } else {
                            let mut low = if layout.has_min() { zero } else { int(2) };
                            let mut high = zero;
                            if !layout.has_min() {
                                high = _mm512_sub_epi32(int(1), low);
                            }
                            each!(g < 4, {
                                low = _mm512_dpbusd_epi32(low, w.codes[g], four(g));
                                high = _mm512_dpbusd_epi32(high, w.codes[g + 4], four(g + 4));
                            } of 4);
                            let dot = _mm512_mul_ps(_mm512_cvtepi32_ps(low), w.scale[0]);
                            _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), w.scale[1], dot)
                        };
                        let float = |i: usize| field(i).cast::<f32>().read_unaligned();
                        if layout.has_min() && layout.subs == 1 {
                            dot = _mm512_fmadd_ps(w.min[0], _mm512_set1_ps(float(3)), dot);
                        } else if layout.has_min() {
                            let low =
                                field(2).cast::<i32>().read_unaligned() as f32 * (-1.0 / 128.0);
                            dot = _mm512_fmadd_ps(w.min[0], _mm512_set1_ps(low), dot);
                            let high = _mm512_set1_ps(float(3) - low);
                            dot = _mm512_fmadd_ps(w.min[1], high, dot);
                        }
                        sums[r] = _mm512_fmadd_ps(dot, _mm512_set1_ps(float(0)), sums[r]);
                        fence();
                    });
                    x = x.map(|x| x.wrapping_add(G * ROW_RECORD));
                }
            }
            each!(r < G * GROUPS, {
                if r < self.rows {
                    _mm512_mask_storeu_ps(self.out.add(r * self.out_stride), self.lanes, sums[r]);
                }
            });
        }
    }
}

/// Keeps the compiler from loading the operands of the next row before the last is done: there
/// are not registers enough, and the processor looks far enough ahead by itself.
#[inline(always)]
pub(super) fn fence() {
    // SAFETY: no instructions.
    unsafe { std::arch::asm!("", options(nostack, preserves_flags)) };
}
