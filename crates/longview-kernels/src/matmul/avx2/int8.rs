//! Quantised weights · int8 activations.

use std::arch::x86_64::*;

use super::unpack::{Unpacked, bits};
use crate::activations::ROW_RECORD;
use crate::matmul::Part;
use crate::matmul::source::{Source, with_source};
use crate::packed::layout::{BLOCK, LANES, SEGMENT};

/// Computes `part`, whose weights are quantised.
pub(in crate::matmul) fn int8(part: &Part) {
    with_source!(part.w.format(), plain(part));
}

/// The same with AVX-VNNI.
pub(in crate::matmul) fn int8_vnni(part: &Part) {
    with_source!(part.w.format(), vnni(part));
}

fn plain<S: Source>(part: &Part) {
    // SAFETY: `panels` asks for sums of rows inside its part, and `Isa::Avx2` runs only where the
    // processor offers the features.
    panels::<S, 2>(part, |rows, count| unsafe {
        match count {
            1 => rows.plain::<S, 1>(),
            _ => rows.plain::<S, 2>(),
        }
    });
}

fn vnni<S: Source>(part: &Part) {
    // SAFETY: as in `plain`, and `Isa::AvxVnni` runs only where the processor offers it.
    panels::<S, 4>(part, |rows, count| unsafe {
        match count {
            1 => rows.vnni::<S, 1>(),
            2 => rows.vnni::<S, 2>(),
            3 => rows.vnni::<S, 3>(),
            _ => rows.vnni::<S, 4>(),
        }
    });
}

/// Calls `add(rows, count)` for up to `MOST` rows of a group at a time.
fn panels<S: Source, const MOST: usize>(part: &Part, add: impl Fn(&Rows, usize)) {
    let shape = part.x.shape();
    let grain = S::LAYOUT.grain();
    let records = part.x.records(grain);
    let mut unpacked = Unpacked::ZERO;
    for panel in part.panels.clone() {
        let weights = part.w.panel(panel).as_ptr();
        for at in 0..part.blocks().div_ceil(SEGMENT) {
            // SAFETY: `Isa::Avx2` runs only where the processor offers the features; the segment
            // is inside the panel.
            let count = unsafe { unpacked.read::<S>(weights, part.blocks(), at) };
            let rows = part.rows();
            let mut row = rows.start;
            while row < rows.end {
                let (group, slot) = (row / shape.group, row % shape.group);
                let together = MOST.min(shape.group - slot).min(rows.end - row);
                let first =
                    group * shape.record_bytes(grain) + at * SEGMENT * shape.group * ROW_RECORD;
                let some = Rows {
                    unpacked: &unpacked,
                    count,
                    fresh: at == 0,
                    x: records[first..].as_ptr(),
                    group: shape.group,
                    slot,
                    out: part.out(row, panel),
                    out_stride: part.w.n(),
                    lanes: part.lanes(panel),
                };
                // The records of the segment's blocks are there for these rows, and rows and lanes
                // lie inside the part's output.
                add(&some, together);
                row += together;
            }
        }
    }
}

/// One panel's segment times some rows of a group.
struct Rows<'a> {
    unpacked: &'a Unpacked,
    /// Blocks.
    count: usize,
    /// Whether the sums begin at zero rather than at what `out` holds.
    fresh: bool,
    /// Record of the group for the segment's first block.
    x: *const u8,
    /// Rows of the group.
    group: usize,
    /// Which row of the group is first.
    slot: usize,
    out: *mut f32,
    out_stride: usize,
    lanes: usize,
}

impl Rows<'_> {
    /// Adds the segment to `R` rows with AVX2 alone.
    ///
    /// # Safety
    /// The processor offers AVX2 and FMA; pointers are as their fields say.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn plain<S: Source, const R: usize>(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.compute::<S, R>(|codes, x, from, to| dot::<S, R>(codes, x, from, to)) }
    }

    /// Adds the segment to `R` rows with AVX-VNNI.
    ///
    /// # Safety
    /// As [`Rows::plain`], and the processor offers AVX-VNNI.
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    unsafe fn vnni<S: Source, const R: usize>(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.compute::<S, R>(|codes, x, from, to| dot_vnni::<S, R>(codes, x, from, to)) }
    }

    /// Adds the segment to `R` rows; `dot(codes, x, from, to)` makes the integer dot products of
    /// groups `from..to`.
    ///
    /// # Safety
    /// As [`Rows::plain`].
    #[inline(always)]
    unsafe fn compute<S: Source, const R: usize>(
        &self,
        dot: impl Fn(*const u8, &[*const u8; R], usize, usize) -> [[__m256i; 2]; R],
    ) {
        let layout = S::LAYOUT;
        let signed = bits(&layout) == 8;
        // SAFETY: blocks inside the segment, records inside the group, outputs inside the part.
        unsafe {
            let mut sums = [[_mm256_setzero_ps(); 2]; R];
            if !self.fresh {
                for (r, sums) in sums.iter_mut().enumerate() {
                    *sums = load_lanes(self.out.add(r * self.out_stride), self.lanes);
                }
            }
            for b in 0..self.count {
                let record = self.x.add(b * self.group * ROW_RECORD);
                let x: [*const u8; R] =
                    std::array::from_fn(|r| record.add((self.slot + r) * BLOCK));
                let codes = self.unpacked.codes[b].as_ptr();
                let field = |i: usize, r: usize| {
                    record.add(self.group * BLOCK + 4 * (i * self.group + self.slot + r))
                };
                let int = |i: usize, r: usize| field(i, r).cast::<i32>().read_unaligned();
                let float = |i: usize, r: usize| field(i, r).cast::<f32>().read_unaligned();
                let scale = |s: usize, h: usize| {
                    _mm256_loadu_ps(self.unpacked.scale[b][s].as_ptr().add(8 * h))
                };
                let min = |s: usize, h: usize| {
                    _mm256_loadu_ps(self.unpacked.min[b][s].as_ptr().add(8 * h))
                };
                // The centre is at 2^(bits − 1), so −centre · Σ codes is a shift away from −128 Σ.
                let centre = |negated: i32| {
                    if layout.has_min() || signed {
                        0
                    } else {
                        negated >> (8 - bits(&layout))
                    }
                };
                let mut dots = [[_mm256_setzero_ps(); 2]; R];
                if layout.subs == 1 {
                    let ints = dot(codes, &x, 0, 8);
                    for r in 0..R {
                        let start = _mm256_set1_epi32(centre(int(1, r)));
                        for h in 0..2 {
                            let sum = _mm256_cvtepi32_ps(_mm256_add_epi32(ints[r][h], start));
                            dots[r][h] = _mm256_mul_ps(sum, scale(0, h));
                            if layout.has_min() {
                                let sum = _mm256_set1_ps(float(3, r));
                                dots[r][h] = _mm256_fmadd_ps(min(0, h), sum, dots[r][h]);
                            }
                        }
                    }
                } else {
                    for s in 0..2 {
                        let ints = dot(codes, &x, 4 * s, 4 * s + 4);
                        for r in 0..R {
                            let negated = if s == 0 {
                                int(2, r)
                            } else {
                                int(1, r) - int(2, r)
                            };
                            let start = _mm256_set1_epi32(centre(negated));
                            for h in 0..2 {
                                let sum = _mm256_cvtepi32_ps(_mm256_add_epi32(ints[r][h], start));
                                dots[r][h] = _mm256_fmadd_ps(sum, scale(s, h), dots[r][h]);
                                if layout.has_min() {
                                    let sum = _mm256_set1_ps(negated as f32 * (-1.0 / 128.0));
                                    dots[r][h] = _mm256_fmadd_ps(min(s, h), sum, dots[r][h]);
                                }
                            }
                        }
                    }
                }
                for r in 0..R {
                    let scale = _mm256_set1_ps(float(0, r));
                    for h in 0..2 {
                        sums[r][h] = _mm256_fmadd_ps(dots[r][h], scale, sums[r][h]);
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                store_lanes(self.out.add(r * self.out_stride), self.lanes, *sums);
            }
        }
    }
}

/// Integer dot products of groups `from..to` of a block with `R` rows.
///
/// # Safety
/// `codes` holds a block's 512 codes, each of `x` a block's 32.
#[inline(always)]
unsafe fn dot<S: Source, const R: usize>(
    codes: *const u8,
    x: &[*const u8; R],
    from: usize,
    to: usize,
) -> [[__m256i; 2]; R] {
    // Two products of a code and a byte are added in 16 bits; so many such sums fit there.
    let run = match bits(&S::LAYOUT) {
        8 => 1,
        6 => 2,
        5 => 4,
        _ => 8,
    };
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[_mm256_setzero_si256(); 2]; R];
        let mut start = from;
        while start < to {
            let mut pairs = [[_mm256_setzero_si256(); 2]; R];
            let end = to.min(start + run);
            for g in start..end {
                for r in 0..R {
                    let four = _mm256_set1_epi32(x[r].add(4 * g).cast::<i32>().read_unaligned());
                    for (h, pair) in pairs[r].iter_mut().enumerate() {
                        let code = _mm256_load_si256(codes.add(64 * g + 32 * h).cast());
                        let products = if bits(&S::LAYOUT) == 8 {
                            // |code| · (x with the code's sign): unsigned times signed, as needed.
                            let signed = _mm256_sign_epi8(four, code);
                            _mm256_maddubs_epi16(_mm256_abs_epi8(code), signed)
                        } else {
                            _mm256_maddubs_epi16(code, four)
                        };
                        *pair = _mm256_add_epi16(*pair, products);
                    }
                }
            }
            for r in 0..R {
                for h in 0..2 {
                    let sum = _mm256_madd_epi16(pairs[r][h], _mm256_set1_epi16(1));
                    sums[r][h] = _mm256_add_epi32(sums[r][h], sum);
                }
            }
            start = end;
        }
        sums
    }
}

/// [`dot`] with AVX-VNNI, which sums four products to 32 bits.
///
/// # Safety
/// As [`dot`], and the caller has AVX-VNNI enabled.
#[inline(always)]
unsafe fn dot_vnni<S: Source, const R: usize>(
    codes: *const u8,
    x: &[*const u8; R],
    from: usize,
    to: usize,
) -> [[__m256i; 2]; R] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[_mm256_setzero_si256(); 2]; R];
        for g in from..to {
            let code = [0, 1].map(|h| _mm256_load_si256(codes.add(64 * g + 32 * h).cast()));
            for (sums, x) in sums.iter_mut().zip(x) {
                let four = _mm256_set1_epi32(x.add(4 * g).cast::<i32>().read_unaligned());
                for (sum, &code) in sums.iter_mut().zip(&code) {
                    *sum = if bits(&S::LAYOUT) == 8 {
                        // |code| · (x with the code's sign): unsigned times signed, as needed.
                        let signed = _mm256_sign_epi8(four, code);
                        _mm256_dpbusd_avx_epi32(*sum, _mm256_abs_epi8(code), signed)
                    } else {
                        _mm256_dpbusd_avx_epi32(*sum, code, four)
                    };
                }
            }
        }
        sums
    }
}

/// The first `lanes` of 16 floats, the rest zeros.
///
/// # Safety
/// `lanes` floats are there, at most 16; the caller has AVX enabled.
#[inline(always)]
pub(super) unsafe fn load_lanes(from: *const f32, lanes: usize) -> [__m256; 2] {
    let mut all = [0.0f32; LANES];
    // SAFETY: the caller's promise.
    unsafe {
        if lanes == LANES {
            return [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))];
        }
        std::ptr::copy_nonoverlapping(from, all.as_mut_ptr(), lanes);
        [
            _mm256_loadu_ps(all.as_ptr()),
            _mm256_loadu_ps(all.as_ptr().add(8)),
        ]
    }
}

/// Writes the first `lanes` of 16 floats.
///
/// # Safety
/// There is room for `lanes` floats, at most 16; the caller has AVX enabled.
#[inline(always)]
pub(super) unsafe fn store_lanes(to: *mut f32, lanes: usize, sums: [__m256; 2]) {
    let mut all = [0.0f32; LANES];
    // SAFETY: the caller's promise.
    unsafe {
        if lanes == LANES {
            _mm256_storeu_ps(to, sums[0]);
            return _mm256_storeu_ps(to.add(8), sums[1]);
        }
        _mm256_storeu_ps(all.as_mut_ptr(), sums[0]);
        _mm256_storeu_ps(all.as_mut_ptr().add(8), sums[1]);
        std::ptr::copy_nonoverlapping(all.as_ptr(), to, lanes);
    }
}
