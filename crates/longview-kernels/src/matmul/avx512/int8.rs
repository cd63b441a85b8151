//! Quantised weights · int8 activations.

use std::arch::x86_64::*;

use super::each;
use super::rows_int8::some_rows;
use super::tiles_int8::{tiles_int8, tiles_int8_pairs};
use super::tiles_small::{tiles_small, tiles_small_pairs};
use super::unpack::{Block, Factors, SmallBlock, Unit, add_scaled, small_minima};
use super::wide_int8::wide_int8;
use crate::activations::ROW_RECORD;
use crate::isa::prefers_one_stream;
use crate::matmul::source::{Ahead, Segment, Source, with_source};
use crate::matmul::wide::{Finish, Pairs};
use crate::matmul::{
    FEW_GROUPS, PANELS_OF_ONE_GROUP as FOUR, PANELS_OF_TWO_GROUPS as TWO, Part, SOME_ROWS,
};
use crate::memory::prefetch_farther;
use crate::packed::layout::{BLOCK, Grain, LANES, SEGMENT};

/// Computes `part`, whose weights are quantised.
pub(in crate::matmul) fn int8(part: &Part) {
    let format = part.w.format();
    if part.x.shape().in_tiles() {
        with_source!(format, in_tiles(part));
    } else if part.x.shape().groups <= FEW_GROUPS {
        with_source!(format, few_rows(part, prefers_one_stream()));
    } else if part.rows().len() <= SOME_ROWS {
        with_source!(format, some_rows(part));
    } else {
        with_source!(format, wide_int8(part));
    }
}

/// Computes `pairs`, whose weights are quantised and whose rows are in tiles.
pub(in crate::matmul) fn int8_pairs(pairs: &Pairs, finish: &Finish) {
    with_source!(pairs.ws[0].format(), pairs_in_tiles(pairs, finish));
}

fn in_tiles<S: Source>(part: &Part) {
    if const { matches!(S::LAYOUT.grain(), Grain::Block) } {
        tiles_int8::<S>(part);
    } else {
        tiles_small::<S>(part);
    }
}

fn pairs_in_tiles<S: Source>(pairs: &Pairs, finish: &Finish) {
    if const { matches!(S::LAYOUT.grain(), Grain::Block) } {
        tiles_int8_pairs::<S>(pairs, finish);
    } else {
        tiles_small_pairs::<S>(pairs, finish);
    }
}

/// `alone` says whether one stream is read faster than several.
fn few_rows<S: Source>(part: &Part, alone: bool) {
    let groups = part.x.shape().groups;
    let one_stream = one_stream::<S>(part.rows().len()).filter(|_| alone);
    let distance = match one_stream {
        Some(Asks::Far(distance)) => Some(distance),
        _ => None,
    };
    let mut panel = part.panels.start;
    while panel < part.panels.end {
        let left = part.panels.end - panel;
        let panels = match groups {
            1 if left >= FOUR && one_stream.is_none() => FOUR,
            2 if left >= TWO && one_stream.is_none() => TWO,
            _ => 1,
        };
        let tile = Tile {
            part,
            panel,
            distance,
        };
        // SAFETY: `Isa::Avx512` runs only where the processor offers the features; so many panels are the
        // part's, and the groups are those of its rows.
        unsafe {
            match (part.x.shape().group, groups, panels) {
                (1, ..) if one_stream == Some(Asks::Nothing) => tile.compute::<S, 1, 1, 1, false>(),
                (2, ..) if one_stream == Some(Asks::Nothing) => tile.compute::<S, 1, 2, 1, false>(),
                (1, _, 1) => tile.compute::<S, 1, 1, 1, true>(),
                (1, _, _) => tile.compute::<S, FOUR, 1, 1, true>(),
                (2, _, 1) => tile.compute::<S, 1, 2, 1, true>(),
                (2, _, _) => tile.compute::<S, FOUR, 2, 1, true>(),
                (3, _, 1) => tile.compute::<S, 1, 3, 1, true>(),
                (3, _, _) => tile.compute::<S, FOUR, 3, 1, true>(),
                (_, 1, 1) => tile.compute::<S, 1, 4, 1, true>(),
                (_, 1, _) => tile.compute::<S, FOUR, 4, 1, true>(),
                (_, 2, 1) => tile.compute::<S, 1, 4, 2, true>(),
                (_, 2, _) => tile.compute::<S, TWO, 4, 2, true>(),
                _ => tile.compute::<S, 1, 4, 3, true>(),
            }
        }
        panel += panels;
    }
}

/// How far ahead weights are asked for.
#[derive(Clone, Copy, PartialEq)]
enum Asks {
    /// As far as [`Ahead`] does by itself.
    Usual,
    /// Not at all: the processor fetches by itself what is read in order.
    Nothing,
    /// So many bytes.
    Far(usize),
}

/// How products of so many rows ask for weights where the processor prefers one panel after the other, and `None`
/// where they take several side by side even so. Where there is little arithmetic between two lines of cache,
/// asking takes away from what the processor fetches by itself; where there is more, it no longer runs ahead far
/// enough.
fn one_stream<S: Source>(rows: usize) -> Option<Asks> {
    let layout = S::LAYOUT;
    match rows {
        1 => Some(Asks::Nothing),
        2 if layout.low_bits == 0 => Some(Asks::Nothing),
        3 | 4 if layout.top_bits == 8 => None,
        2..=4 => Some(Asks::Far(rows * 4096)),
        _ => Some(Asks::Usual),
    }
}

/// Some panels times all rows, up to three groups of them.
struct Tile<'a> {
    part: &'a Part<'a>,
    /// The first.
    panel: usize,
    /// Bytes ahead at which it asks for weights, where they are not the usual.
    distance: Option<usize>,
}

impl Tile<'_> {
    /// Computes the products of `P` panels with `GROUPS` groups of `G` rows, and asks ahead for weights if `ASKS`.
    ///
    /// # Safety
    /// The processor offers the features; so many panels are the part's, and so many groups its rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn compute<
        S: Source,
        const P: usize,
        const G: usize,
        const GROUPS: usize,
        const ASKS: bool,
    >(
        &self,
    ) {
        let part = self.part;
        let (blocks, grain) = (part.blocks(), S::LAYOUT.grain());
        let panels: [*const u8; P] = std::array::from_fn(|p| part.w.panel(self.panel + p).as_ptr());
        let ahead = Ahead::new::<S>(P, blocks, self.distance);
        let records = part.x.records(grain);
        let stride = part.x.shape().record_bytes(grain);
        let mut x: [*const u8; GROUPS] = std::array::from_fn(|i| records[i * stride..].as_ptr());
        let mut sums = [[_mm512_setzero_ps(); 12]; P];
        // SAFETY: segments and blocks are counted inside the panels, records inside the groups; rows and
        // lanes that are written lie inside the output.
        unsafe {
            for at in 0..blocks.div_ceil(SEGMENT) {
                let count = SEGMENT.min(blocks - at * SEGMENT);
                let (mut scaled, first) = ([[_mm512_setzero_si512(); 12]; P], x);
                let units: [Unit; P] = std::array::from_fn(|p| {
                    let (segment, count) = Segment::at::<S>(panels[p], blocks, at);
                    Unit::of::<S>(segment, count)
                });
                for b in 0..count {
                    for p in 0..P {
                        if ASKS {
                            ahead.ask::<S, P>(&panels, at, b, p, prefetch_farther);
                        }
                        let (segment, _) = Segment::at::<S>(panels[p], blocks, at);
                        let planes = segment.planes::<S>(b);
                        if grain == Grain::Block {
                            let w = Block::unpack::<S>(planes);
                            add::<S, G, GROUPS>(&w, &x, &mut sums[p]);
                        } else {
                            let w = SmallBlock::unpack::<S>(planes, units[p]);
                            add_small::<S, G, GROUPS>(&w, &x, &mut scaled[p]);
                        }
                    }
                    x = x.map(|x| x.wrapping_add(G * ROW_RECORD));
                }
                if grain == Grain::Block {
                    continue;
                }
                for p in 0..P {
                    let (segment, _) = Segment::at::<S>(panels[p], blocks, at);
                    let factors = Factors::of::<S>(segment.planes::<S>(0), units[p]);
                    let minima = minima::<S>(segment);
                    each!(r < G * GROUPS, {
                        let record = first[r / G];
                        let of_row = || times_minima::<S, G>(&minima, record, r % G);
                        let scale = record.add(G * BLOCK + 4 * (r % G)).cast::<f32>();
                        let (sum, scaled) = (sums[p][r], scaled[p][r]);
                        sums[p][r] = factors.add::<S>(sum, scaled, of_row, scale.read_unaligned());
                    });
                }
            }
            for (p, sums) in sums.iter().enumerate() {
                let panel = self.panel + p;
                let lanes = (0xffff_u32 >> (LANES - part.lanes(panel))) as __mmask16;
                each!(r < G * GROUPS, {
                    if r < part.x.rows() {
                        _mm512_mask_storeu_ps(part.out(r, panel), lanes, sums[r]);
                    }
                });
            }
        }
    }
}

/// The minima of a whole segment, in floats; zeros where the format has none.
///
/// # Safety
/// The segment is one of a panel of `S`; the caller has the features enabled.
#[inline(always)]
pub(super) unsafe fn minima<S: Source>(segment: Segment) -> [[__m512; 2]; SEGMENT] {
    // SAFETY: the blocks are the segment's.
    unsafe {
        let mut minima = [[_mm512_setzero_ps(); 2]; SEGMENT];
        if S::LAYOUT.has_min() {
            each!(b < SEGMENT, {
                let [low, high] = small_minima::<S>(segment.planes::<S>(b));
                minima[b] = [_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(high)];
            } of 8);
        }
        minima
    }
}

/// Σ minimum · x of a segment and row `row` of `G` rows, whose records of the segment begin at `record`:
/// whole numbers that floats hold exactly, whatever the order.
///
/// # Safety
/// The records are there; the caller has the features enabled.
#[inline(always)]
pub(super) unsafe fn times_minima<S: Source, const G: usize>(
    minima: &[[__m512; 2]; SEGMENT],
    record: *const u8,
    row: usize,
) -> __m512 {
    // SAFETY: what is read lies inside the records.
    unsafe {
        let mut sum = _mm512_setzero_ps();
        each!(b < SEGMENT, {
            let record = record.add(b * G * ROW_RECORD);
            let field = |i: usize| record.add(G * BLOCK + 4 * (i * G + row));
            let all = field(3).cast::<f32>().read_unaligned();
            if S::LAYOUT.subs == 1 {
                sum = _mm512_fmadd_ps(minima[b][0], _mm512_set1_ps(all), sum);
            } else {
                let low = field(2).cast::<i32>().read_unaligned() as f32 * (-1.0 / 128.0);
                sum = _mm512_fmadd_ps(minima[b][0], _mm512_set1_ps(low), sum);
                sum = _mm512_fmadd_ps(minima[b][1], _mm512_set1_ps(all - low), sum);
            }
        } of 8);
        sum
    }
}

/// Adds the products of a block of weights with the records `x` of `GROUPS` groups of `G` rows.
///
/// # Safety
/// The caller has the features enabled; the records are there.
#[inline(always)]
unsafe fn add<S: Source, const G: usize, const GROUPS: usize>(
    w: &Block,
    x: &[*const u8; GROUPS],
    sums: &mut [__m512; 12],
) {
    let layout = S::LAYOUT;
    // SAFETY: what is read lies inside the records.
    unsafe {
        each!(r < G * GROUPS, {
            let record = x[r / G];
            let codes = record.add((r % G) * BLOCK);
            let field = |i: usize| record.add(G * BLOCK + 4 * (i * G + r % G));
            let float = |i: usize| field(i).cast::<f32>().read_unaligned();
            let mut ints = match layout.has_min() {
                true => _mm512_setzero_si512(),
                false => _mm512_set1_epi32(field(1).cast::<i32>().read_unaligned()),
            };
            each!(g < 8, {
                ints = _mm512_dpbusd_epi32(ints, w.codes[g], four(codes, g));
            } of 8);
            let mut dot = _mm512_mul_ps(_mm512_cvtepi32_ps(ints), w.scale[0]);
            if layout.has_min() {
                dot = _mm512_fmadd_ps(w.min[0], _mm512_set1_ps(float(3)), dot);
            }
            sums[r] = _mm512_fmadd_ps(dot, _mm512_set1_ps(float(0)), sums[r]);
            fence();
        });
    }
}

/// The same with scales in whole numbers: adds Σ scale · code · x.
///
/// # Safety
/// As [`add`].
#[inline(always)]
unsafe fn add_small<S: Source, const G: usize, const GROUPS: usize>(
    w: &SmallBlock,
    x: &[*const u8; GROUPS],
    sums: &mut [__m512i; 12],
) {
    let layout = S::LAYOUT;
    // SAFETY: what is read lies inside the records.
    unsafe {
        each!(r < G * GROUPS, {
            let record = x[r / G];
            let codes = record.add((r % G) * BLOCK);
            let field = |i: usize| record.add(G * BLOCK + 4 * (i * G + r % G));
            let int = |i: usize| _mm512_set1_epi32(field(i).cast::<i32>().read_unaligned());
            let zero = _mm512_setzero_si512();
            if layout.subs == 1 {
                let mut ints = if layout.has_min() { zero } else { int(1) };
                each!(g < 8, {
                    ints = _mm512_dpbusd_epi32(ints, w.codes[g], four(codes, g));
                } of 8);
                sums[r] = add_scaled::<S>(sums[r], ints, w.scale[0]);
            } else {
                let mut low = if layout.has_min() { zero } else { int(2) };
                let mut high = zero;
                if !layout.has_min() {
                    high = _mm512_sub_epi32(int(1), low);
                }
                each!(g < 4, {
                    low = _mm512_dpbusd_epi32(low, w.codes[g], four(codes, g));
                    high = _mm512_dpbusd_epi32(high, w.codes[g + 4], four(codes, g + 4));
                } of 4);
                sums[r] = add_scaled::<S>(sums[r], low, w.scale[0]);
                sums[r] = add_scaled::<S>(sums[r], high, w.scale[1]);
            }
            fence();
        });
    }
}

/// Group `g` of a row's `codes`, in every lane.
///
/// # Safety
/// The codes of a block are there; the caller has AVX-512 F enabled.
#[inline(always)]
unsafe fn four(codes: *const u8, g: usize) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { _mm512_set1_epi32(codes.add(4 * g).cast::<i32>().read_unaligned()) }
}

/// Keeps the compiler from loading the operands of the next row before the last is done: there
/// are not registers enough, and the processor looks far enough ahead by itself.
#[inline(always)]
pub(super) fn fence() {
    // SAFETY: no instructions.
    unsafe { std::arch::asm!("", options(nostack, preserves_flags)) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activations::Activations;
    use crate::matmul::needed;
    use crate::matmul::source::{Q4K, Q40, Q80};
    use crate::packed::Packed;
    use crate::{Exec, Format, Isa, Numerics};

    /// With scales for 32 and for 256 numbers, and with codes of whole bytes and of less. How other formats are
    /// unpacked makes no difference here, and takes long to compile.
    #[test]
    fn how_weights_are_read_and_asked_for_changes_no_bit() {
        if !Isa::Avx512.is_available() {
            return;
        }
        same_bits::<Q80>(Format::Q8_0);
        same_bits::<Q40>(Format::Q4_0);
        same_bits::<Q4K>(Format::Q4_K);
    }

    fn same_bits<S: Source>(format: Format) {
        let exec = Exec::new(1, Isa::Avx512, Numerics::Default);
        // Five panels, the last of them of six rows; two segments, the last of half its blocks where that can be.
        let (n, k) = (70, if format.block_len() == 256 { 512 } else { 384 });
        let len = n * format.bytes_for(k).unwrap();
        let bytes: Vec<u8> = (0..len).map(|i| (i * 37 + i / 251) as u8 & 0x3f).collect();
        let w = Packed::pack(format, n, k, &bytes, &|row| row, &exec.pool).unwrap();
        for rows in 1..=12 {
            let floats: Vec<f32> = (0..rows * k)
                .map(|i| ((i * 29) % 83) as f32 - 40.0)
                .collect();
            let mut x = Activations::new();
            x.set(&exec, &floats, rows, k, needed(exec.numerics, format));
            let product = |alone: bool| {
                let mut out = vec![f32::NAN; rows * n];
                let part = Part {
                    x: &x,
                    w: &w,
                    panels: 0..w.panels(),
                    groups: 0..x.shape().groups,
                    out: out.as_mut_ptr(),
                };
                few_rows::<S>(&part, alone);
                out.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
            };
            let (alone, together) = (product(true), product(false));
            assert!(alone == together, "{format}, {rows} rows");
            assert!(alone.iter().any(|&bits| bits != 0), "{format}, {rows} rows");
        }
    }
}
