//! Rows of activations, prepared once for the products that share them.

mod forms;
mod need;
mod records;
mod split;

#[cfg(target_arch = "x86_64")]
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::exec::Exec;
use crate::isa::Isa;
use crate::memory::AlignedBytes;
use crate::packed::layout::Grain;
use forms::{interleave, quantize};
pub use need::Need;
pub(crate) use records::{ROW_RECORD, RowBlock, Shape, TILE_ROWS, tile_record};

/// Rows of activations in the forms matrix products read; the buffers are kept from one
/// [`Activations::set`] to the next.
///
/// Rows lie in groups of four (of all rows when there are fewer), so that a product walks one
/// stream for each group whatever the length of a row:
///
/// - f32: `[group][k][4]`.
/// - int8: `[group][block]` records of codes `[4][32]` i8 · scale `[4]` f32 · −128 Σ codes `[4]` i32 ·
///   the same of the first half of the codes `[4]` i32 · Σ codes `[4]` f32. Where products take them in
///   tiles, sixteen rows share a record instead of four; one of 256 elements is then codes
///   `[quarter][16][64]` i8 · Σ codes of each half of a block `[16][16]` i16 · Σ codes of each block
///   `[16][8]` i16 · scale `[16]` f32.
///
/// The int8 form of a block is code = 127 x / max |x| rounded to the nearest integer, ties to even,
/// and scale = max |x| / 127. There are two, of 32 elements and of 256, as weights have scales that are any
/// numbers or are summed up as whole ones; the scale of the first is rounded to eleven significant bits. A block that
/// holds a NaN or an infinity has NaN as its scale, so that the row's results are NaN; one whose largest
/// magnitude is below 2⁻¹²⁰ is taken as zeros.
pub struct Activations {
    /// Whose products read them.
    isa: Isa,
    rows: usize,
    k: usize,
    /// Whether the two rows are one, see [`Activations::split`].
    is_split: bool,
    /// The forms that are there.
    has: Need,
    floats: AlignedBytes,
    /// Of each [`Grain`].
    records: [AlignedBytes; 2],
    /// Rows of a group as [`Activations::set_with`] makes them, one for each thread.
    made: Vec<Mutex<Vec<f32>>>,
}

/// Makes a row: its number, its row of the input, and what products shall read (`[k]`).
pub type MakeRow<'a> = dyn Fn(usize, &mut [f32], &mut [f32]) + Sync + 'a;

impl Activations {
    /// Empty: no rows.
    pub fn new() -> Activations {
        Activations {
            isa: Isa::Scalar,
            rows: 0,
            k: 0,
            is_split: false,
            has: Need::default(),
            floats: AlignedBytes::zeroed(0),
            records: [AlignedBytes::zeroed(0), AlignedBytes::zeroed(0)],
            made: Vec::new(),
        }
    }

    /// Takes over the rows `x` (`[rows][k]`) in the forms of `need`. Allocates only when the
    /// buffers have never been as large.
    ///
    /// # Panics
    /// When `x` is not `rows · k` long.
    pub fn set(&mut self, exec: &Exec, x: &[f32], rows: usize, k: usize, need: Need) {
        assert_eq!(
            Some(x.len()),
            rows.checked_mul(k),
            "x holds rows · k numbers"
        );
        self.begin(exec, rows, k, need);
        if rows == 0 || k == 0 {
            return;
        }
        let forms = self.forms(need);
        exec.pool.run(forms.shape.lots(), &|lot, _| {
            let x = &x[forms.rows_of(lot).start * k..];
            forms.write(lot, &x[..x.len().min(forms.shape.lot * k)]);
        });
    }

    /// Takes over rows that are made on the way: `make(row, x, out)` may change row `row` of `x`
    /// (`[rows][k]`) and writes the row that products shall read over `out` (`[k]`), which never
    /// leaves the first-level cache. Otherwise as [`Activations::set`].
    ///
    /// # Panics
    /// When `x` is not `rows · k` long.
    pub fn set_with(
        &mut self,
        exec: &Exec,
        x: &mut [f32],
        rows: usize,
        k: usize,
        need: Need,
        make: &MakeRow<'_>,
    ) {
        assert_eq!(
            Some(x.len()),
            rows.checked_mul(k),
            "x holds rows · k numbers"
        );
        self.begin(exec, rows, k, need);
        if rows == 0 || k == 0 {
            return;
        }
        let room = self.shape().lot * k;
        self.made.resize_with(exec.pool.threads(), Mutex::default);
        for made in &mut self.made {
            let made = made.get_mut().unwrap_or_else(PoisonError::into_inner);
            made.resize(room.max(made.len()), 0.0);
        }
        let forms = self.forms(need);
        let made = &self.made;
        exec.pool
            .for_each_chunk(x, forms.shape.lot * k, |lot, x, worker| {
                // A worker number is held by one running task at a time: this never waits.
                let mut made = made[worker].lock().unwrap_or_else(PoisonError::into_inner);
                let made = &mut made[..x.len()];
                let first = forms.rows_of(lot).start;
                let rows = x.chunks_exact_mut(k).zip(made.chunks_exact_mut(k));
                for (row, (x, out)) in rows.enumerate() {
                    make(first + row, x, out);
                }
                forms.write(lot, made);
            });
    }

    /// Makes room for one int8 form of `rows` rows of `k` numbers, a multiple of its elements; every block
    /// of every lot is written then. `None`, and nothing changes, where lots are not of `lot` rows.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn by_blocks(
        &mut self,
        exec: &Exec,
        lot: usize,
        rows: usize,
        k: usize,
        grain: Grain,
    ) -> Option<Blocks<'_>> {
        assert!(k.is_multiple_of(grain.elements()), "whole blocks");
        let need = Need::of(grain);
        if Shape::of(exec.usable_isa(), rows, k, need).lot != lot {
            return None;
        }
        self.begin(exec, rows, k, need);
        Some(Blocks {
            forms: self.forms(need),
            grain,
            activations: PhantomData,
        })
    }

    /// Makes room for the forms of `rows` rows.
    fn begin(&mut self, exec: &Exec, rows: usize, k: usize, need: Need) {
        assert!(rows <= 1 || !self.is_split, "one row is split at a time");
        let rows = rows * self.parts();
        (self.isa, self.rows, self.k) = (exec.usable_isa(), rows, k);
        self.has = need;
        let shape = self.shape();
        if need.f32 {
            reserve(&mut self.floats, shape.groups * shape.float_bytes());
        }
        for grain in need.grains() {
            let records = &mut self.records[grain as usize];
            reserve(records, shape.lots() * shape.record_bytes(grain));
        }
    }

    /// Where the forms of the rows that [`Activations::begin`] made room for are written.
    fn forms(&mut self, need: Need) -> Forms {
        Forms {
            isa: self.isa,
            need,
            shape: self.shape(),
            rows: self.rows,
            is_split: self.is_split,
            floats: self.floats.as_mut_ptr(),
            records: self.records.each_mut().map(|records| records.as_mut_ptr()),
        }
    }

    /// Rows that are held: two of one that is split.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers of a row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The forms that are there.
    pub fn has(&self) -> Need {
        self.has
    }

    /// Bytes the buffers hold.
    pub fn bytes(&self) -> usize {
        let records = self.records.iter().map(|records| records.len());
        self.floats.len() + records.sum::<usize>()
    }

    /// How the rows are grouped.
    pub(crate) fn shape(&self) -> Shape {
        Shape::of(self.isa, self.rows, self.k, self.has)
    }

    /// The f32 form, `[group][k][rows of a group]`.
    pub(crate) fn floats(&self) -> &[f32] {
        let count = self.shape().groups * self.shape().float_bytes() / size_of::<f32>();
        assert!(self.has.f32, "activations were set without their f32 form");
        assert!(
            count * size_of::<f32>() <= self.floats.len(),
            "set reserved every group"
        );
        // SAFETY: the buffer is initialised, aligned to 64 and at least this long.
        unsafe { std::slice::from_raw_parts(self.floats.as_ptr().cast(), count) }
    }

    /// An int8 form, `[lot][block]` records.
    pub(crate) fn records(&self, grain: Grain) -> &[u8] {
        assert!(
            self.has.covers(Need::of(grain)),
            "activations were set without this int8 form"
        );
        &self.records[grain as usize][..self.shape().lots() * self.shape().record_bytes(grain)]
    }
}

impl Default for Activations {
    fn default() -> Activations {
        Activations::new()
    }
}

/// Room for an int8 form of rows that come block by block.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Blocks<'a> {
    forms: Forms,
    grain: Grain,
    activations: PhantomData<&'a mut Activations>,
}

#[cfg(target_arch = "x86_64")]
impl Blocks<'_> {
    /// Writes block `block` of the rows of `lot`, `[rows that are there][elements of a block]`. Each is
    /// one task's.
    pub(crate) fn write(&self, lot: usize, block: usize, x: &[f32]) {
        let Forms { isa, shape, .. } = self.forms;
        let elements = self.grain.elements();
        assert!(lot < shape.lots() && block < shape.k / elements);
        assert_eq!(x.len(), self.forms.rows_of(lot).len() * elements);
        let of_lot = shape.record_bytes(self.grain);
        let bytes = of_lot / (shape.k / elements);
        // SAFETY: the record lies in the buffer, which has one for each block of each lot, and no
        // other task writes it.
        let out = unsafe {
            let start = self.forms.records[self.grain as usize].add(lot * of_lot);
            std::slice::from_raw_parts_mut(start.add(block * bytes), bytes)
        };
        quantize(isa, self.grain, x, elements, shape.lot, out);
    }
}

/// The buffers that tasks write the forms of their groups to.
struct Forms {
    isa: Isa,
    need: Need,
    shape: Shape,
    /// Rows in all.
    rows: usize,
    is_split: bool,
    floats: *mut u8,
    records: [*mut u8; 2],
}

// SAFETY: tasks write the parts of different groups, see `Forms::write`.
unsafe impl Sync for Forms {}

impl Forms {
    /// The rows of a lot that are there.
    fn rows_of(&self, lot: usize) -> Range<usize> {
        let first = lot * self.shape.lot;
        first..self.rows.min(first + self.shape.lot)
    }

    /// Writes the forms of the rows `x` of `lot`, or of the two that `x` is split into. Each lot is one task.
    fn write(&self, lot: usize, x: &[f32]) {
        match self.is_split {
            false => self.write_forms(lot, self.need, x),
            true => {
                for (need, x) in split::rows_of_forms(self.isa, self.need, x) {
                    self.write_forms(lot, need, &x);
                }
            }
        }
    }

    /// Writes the forms `need` of the rows `x` of `lot`.
    fn write_forms(&self, lot: usize, need: Need, x: &[f32]) {
        let Shape {
            group,
            lot: rows,
            k,
            ..
        } = self.shape;
        assert!(lot < self.shape.lots(), "room was made for so many");
        if need.f32 {
            let bytes = self.shape.float_bytes();
            for (i, x) in x.chunks(group * k).enumerate() {
                let group_at = lot * (rows / group) + i;
                // SAFETY: each lot is one task, whose groups have their own parts of the buffer,
                // which holds `groups` such parts; cache-line alignment suffices for f32.
                let out = unsafe {
                    std::slice::from_raw_parts_mut(
                        self.floats.add(group_at * bytes).cast::<f32>(),
                        bytes / size_of::<f32>(),
                    )
                };
                interleave(self.isa, x, k, group, out);
            }
        }
        for grain in need.grains() {
            let bytes = self.shape.record_bytes(grain);
            // SAFETY: each lot has its own part of the buffer, which holds `lots` such parts.
            let out = unsafe {
                let start = self.records[grain as usize].add(lot * bytes);
                std::slice::from_raw_parts_mut(start, bytes)
            };
            quantize(self.isa, grain, x, k, rows, out);
        }
    }
}

fn reserve(buffer: &mut AlignedBytes, bytes: usize) {
    if buffer.len() < bytes {
        *buffer = AlignedBytes::zeroed(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Numerics;
    use crate::packed::layout::{BLOCK, SEGMENT};

    const BOTH: Need = Need {
        f32: true,
        blocks: true,
        wide_blocks: false,
    };

    fn exec(isa: Isa) -> Exec {
        Exec::new(2, isa, Numerics::Default)
    }

    fn wave(len: usize) -> Vec<f32> {
        (0..len)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.037 * (1 + i / 64) as f32)
            .collect()
    }

    #[test]
    fn codes_are_nearest_and_sums_are_right_on_every_isa() {
        for isa in Isa::available() {
            for rows in [1, 2, 3, 4, 5, 9, 70] {
                let (k, x) = (96, wave(rows * 96));
                let mut act = Activations::new();
                act.set(&exec(isa), &x, rows, k, BOTH);
                let shape = act.shape();
                for (row, values) in x.chunks_exact(k).enumerate() {
                    for (b, block) in values.chunks_exact(BLOCK).enumerate() {
                        let lot = &act.records(Grain::Block)
                            [row / shape.lot * shape.record_bytes(Grain::Block)..];
                        let record = &lot[b * shape.lot * ROW_RECORD..];
                        let read = RowBlock::read(record, shape.lot, row % shape.lot);
                        let largest = block.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                        let exact = largest / 127.0;
                        assert_eq!(read.scale, half::f16::from_f32(exact).to_f32());
                        assert!((read.scale / exact - 1.0).abs() <= 1.0 / 2048.0);
                        let mut sums = [0, 0];
                        for (i, (&code, &value)) in read.codes.iter().zip(block).enumerate() {
                            let code = code as i8;
                            assert!(
                                (f32::from(code) * read.scale - value).abs() <= read.scale * 0.57
                            );
                            sums[i / 16] -= 128 * i32::from(code);
                        }
                        assert_eq!(read.negated, sums);
                        assert_eq!(read.sum * -128.0, (sums[0] + sums[1]) as f32);
                    }
                    for (i, &value) in values.iter().enumerate() {
                        let at = row / shape.group * shape.float_bytes() / 4;
                        assert_eq!(
                            act.floats()[at + i * shape.group + row % shape.group],
                            value
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn blocks_of_256_have_one_scale_on_every_isa() {
        for isa in Isa::available() {
            for rows in [1, 3, 9, 70] {
                let (k, grain) = (512, Grain::Segment);
                let x = wave(rows * k);
                let mut act = Activations::new();
                act.set(&exec(isa), &x, rows, k, Need::WIDE_BLOCKS);
                assert_eq!(act.has(), Need::WIDE_BLOCKS);
                let shape = act.shape();
                for (row, values) in x.chunks_exact(k).enumerate() {
                    let lot = &act.records(grain)[row / shape.lot * shape.record_bytes(grain)..];
                    let row = row % shape.lot;
                    for (i, wide) in values.chunks_exact(256).enumerate() {
                        let largest = wide.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                        let expected = 1.0 / (127.0 / largest);
                        for (b, block) in wide.chunks_exact(BLOCK).enumerate() {
                            let (codes, scale, sums) = if shape.in_tiles() {
                                of_tile(&lot[i * tile_record::BYTES..], b, row)
                            } else {
                                let at = (i * SEGMENT + b) * shape.lot * ROW_RECORD;
                                let read = RowBlock::read(&lot[at..], shape.lot, row);
                                (read.codes, read.scale, read.negated.map(|sum| sum / -128))
                            };
                            assert_eq!(scale, expected, "{isa} {rows} {row}");
                            let mut expected_sums = [0, 0];
                            for (i, (&code, &value)) in codes.iter().zip(block).enumerate() {
                                let code = code as i8;
                                expected_sums[i / 16] += i32::from(code);
                                let apart = (f32::from(code) * scale - value).abs();
                                assert!(apart <= scale * 0.5001, "{isa} {value} {code}");
                            }
                            assert_eq!(sums, expected_sums);
                        }
                    }
                }
            }
        }
    }

    /// Codes, scale and sums of codes of block `b` of a row in tiles.
    fn of_tile(record: &[u8], b: usize, row: usize) -> (&[u8], f32, [i32; 2]) {
        use tile_record::{HALVES, HALVES_ROW, QUARTER, QUARTER_BYTES, SCALES};
        let codes = &record[b / 2 * QUARTER_BYTES + row * QUARTER + b % 2 * BLOCK..][..BLOCK];
        let scale = &record[SCALES + 4 * row..][..4];
        let sum = |half: usize| {
            let at = HALVES + row * HALVES_ROW + 4 * b + 2 * half;
            i32::from(i16::from_ne_bytes([record[at], record[at + 1]]))
        };
        let scale = f32::from_ne_bytes(scale.try_into().unwrap());
        (codes, scale, [sum(0), sum(1)])
    }

    #[test]
    fn hostile_values_give_nan_or_zero_scales() {
        for isa in Isa::available() {
            for (value, expected) in [
                (f32::NAN, f32::NAN),
                (f32::INFINITY, f32::NAN),
                (1e-40, 0.0),
                (0.0, 0.0),
            ] {
                let mut x = vec![0.0; 32];
                x[17] = value;
                let mut act = Activations::new();
                act.set(&exec(isa), &x, 1, 32, Need::BLOCKS);
                let read = RowBlock::read(act.records(Grain::Block), 1, 0);
                assert_eq!(read.scale.to_bits(), expected.to_bits());
                assert!(value.is_nan() || read.codes.iter().all(|&code| code == 0));
            }
        }
    }

    #[test]
    fn rows_side_by_side_have_the_form_of_rows_alone() {
        // Blocks by fours and by threes; whole lots, a lot of three rows and one of one; a row by itself.
        for (grain, k) in [
            (Grain::Block, 96),
            (Grain::Block, 256),
            (Grain::Segment, 512),
        ] {
            for rows in [1, 67, 65, 64] {
                side_by_side(grain, rows, k);
            }
        }
    }

    fn side_by_side(grain: Grain, rows: usize, k: usize) {
        let wild = [f32::NAN, f32::INFINITY, -0.0, 1e-40, 3e38, -1e-37];
        let mut x = wave(rows * k);
        for (i, x) in x.iter_mut().enumerate() {
            match i % 41 {
                // In some rows, so that most blocks have none.
                0 if (i / k).is_multiple_of(5) => *x = wild[i / 41 % wild.len()],
                // Ties.
                1 => *x = (i / 41) as f32 / 2.0,
                _ if i / 256 % 7 == 0 => *x = 0.0,
                _ => {}
            }
        }
        let need = Need::of(grain);
        for isa in Isa::available() {
            let mut together = Activations::new();
            together.set(&exec(isa), &x, rows, k, need);
            let shape = together.shape();
            for (row, values) in x.chunks_exact(k).enumerate() {
                let mut alone = Activations::new();
                alone.set(&exec(Isa::Scalar), values, 1, k, need);
                let lot = &together.records(grain)[row / shape.lot * shape.record_bytes(grain)..];
                let row = row % shape.lot;
                for b in 0..k / BLOCK {
                    let wanted = RowBlock::read(&alone.records(grain)[b * ROW_RECORD..], 1, 0);
                    let wanted = (wanted.codes, wanted.scale, wanted.negated, wanted.sum);
                    let read = if grain == Grain::Segment && shape.in_tiles() {
                        let record = &lot[b / SEGMENT * tile_record::BYTES..];
                        let (codes, scale, sums) = of_tile(record, b % SEGMENT, row);
                        let negated = sums.map(|sum| -128 * sum);
                        (codes, scale, negated, (sums[0] + sums[1]) as f32)
                    } else {
                        let record = &lot[b * shape.lot * ROW_RECORD..];
                        let read = RowBlock::read(record, shape.lot, row);
                        (read.codes, read.scale, read.negated, read.sum)
                    };
                    if wanted.1.is_nan() {
                        assert!(read.1.is_nan(), "{isa} {row} {b}");
                    } else {
                        assert_eq!(read, wanted, "{isa} {row} {b}");
                    }
                }
            }
        }
    }

    #[test]
    fn rows_made_on_the_way_have_the_forms_of_rows_given() {
        for isa in Isa::available() {
            for rows in [1, 2, 4, 5, 9, 70] {
                let (k, exec) = (96, exec(isa));
                let x = wave(rows * k);
                let mut changed = x.clone();
                let mut made = Activations::new();
                made.set_with(&exec, &mut changed, rows, k, BOTH, &|row, x, out| {
                    x[0] += 1.0;
                    out.copy_from_slice(x);
                    out[1] = row as f32;
                });
                let mut wanted = x.clone();
                for (row, x) in wanted.chunks_exact_mut(k).enumerate() {
                    x[0] += 1.0;
                    x[1] = row as f32;
                }
                let mut given = Activations::new();
                given.set(&exec, &wanted, rows, k, BOTH);
                assert_eq!(made.floats(), given.floats(), "{isa} {rows}");
                assert_eq!(
                    made.records(Grain::Block),
                    given.records(Grain::Block),
                    "{isa} {rows}"
                );
                for (row, changed) in changed.chunks_exact(k).enumerate() {
                    assert_eq!(changed[0], x[row * k] + 1.0);
                    assert_eq!(changed[1..], x[row * k + 1..(row + 1) * k]);
                }
            }
        }
    }

    #[test]
    fn buffers_are_kept() {
        let exec = exec(Isa::Scalar);
        let mut act = Activations::new();
        act.set(&exec, &wave(640), 10, 64, BOTH);
        let bytes = act.bytes();
        assert_eq!(bytes, 12 * (64 * size_of::<f32>() + 2 * ROW_RECORD));
        act.set(&exec, &wave(64), 1, 64, Need::BLOCKS);
        assert_eq!(act.bytes(), bytes);
        assert!(act.has() == Need::BLOCKS);
    }
}
