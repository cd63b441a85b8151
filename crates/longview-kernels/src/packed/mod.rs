//! Weights repacked once, at load, into the layout that matrix products read.

pub(crate) mod lane;
pub(crate) mod layout;
mod room;
mod source;

use std::ops::Range;

use half::{bf16, f16};

use crate::error::KernelError;
use crate::format::Format;
use crate::pool::Pool;
use lane::LaneBlock;
use layout::{BLOCK, LANES, Layout};
use room::Room;

/// A weight matrix `[n outputs][k inputs]`, repacked once at load into panels of 16 outputs.
///
/// It stays as compact as the file: no format grows by more than 6 %, the main ones by at most 3 % (plus padding to whole panels
/// and cache lines). See `layout` for where each bit lies.
pub struct Packed {
    format: Format,
    n: usize,
    k: usize,
    panel_bytes: usize,
    bytes: Room,
}

/// Bytes that are packed before [`Packed::pack_in_pieces`] says which were read.
const PIECE_BYTES: usize = 4 << 20;

impl Packed {
    /// Repacks `bytes`, the tensor as in the file: `n` rows of `k` elements.
    ///
    /// `row_order(i)` is the file's row that becomes output row `i`, so that files which permute
    /// rows (query and key rows of rotary models) are put in order for free.
    ///
    /// # Errors
    /// When `k` is not whole blocks, `bytes` is not the shape's length, or `row_order` leaves the
    /// tensor.
    pub fn pack(
        format: Format,
        n: usize,
        k: usize,
        bytes: &[u8],
        row_order: &(dyn Fn(usize) -> usize + Sync),
        pool: &Pool,
    ) -> Result<Packed, KernelError> {
        Packed::pack_in_pieces(format, n, k, bytes, row_order, pool, &mut |_| {})
    }

    /// As [`Packed::pack`], piece by piece, so that a large tensor need not be in memory twice:
    /// `done(range)` is told which bytes of the tensor were repacked, from the first to the last.
    /// Where `row_order` reaches beyond a piece, such bytes may be read once more.
    ///
    /// # Errors
    /// As [`Packed::pack`]; `done` was not called then.
    pub fn pack_in_pieces(
        format: Format,
        n: usize,
        k: usize,
        bytes: &[u8],
        row_order: &(dyn Fn(usize) -> usize + Sync),
        pool: &Pool,
        done: &mut dyn FnMut(Range<usize>),
    ) -> Result<Packed, KernelError> {
        if !k.is_multiple_of(format.block_len()) {
            return Err(KernelError::PartialBlocks {
                format,
                k,
                block: format.block_len(),
            });
        }
        let too_large = KernelError::TooLarge { format, n, k };
        let row_bytes = format.bytes_for(k).ok_or(too_large.clone())?;
        let expected = row_bytes.checked_mul(n).ok_or(too_large)?;
        if bytes.len() != expected {
            return Err(KernelError::WrongLength {
                format,
                n,
                k,
                expected,
                found: bytes.len(),
            });
        }
        for row in 0..n {
            let source_row = row_order(row);
            if source_row >= n {
                return Err(KernelError::RowOutside { row, source_row, n });
            }
        }
        let panel_bytes = layout::panel_bytes(format, k);
        let mut packed = Room::new(Packed::packed_bytes(format, n, k));
        let padding = vec![
            0;
            if n.is_multiple_of(LANES) {
                0
            } else {
                row_bytes
            }
        ];
        let piece_panels = (PIECE_BYTES / panel_bytes.max(1)).max(1);
        let pieces = packed.chunks_mut(piece_panels * panel_bytes.max(1));
        for (piece, target) in pieces.enumerate() {
            let first = piece * piece_panels;
            pool.for_each_chunk(target, panel_bytes, |panel, target, _| {
                let rows: [&[u8]; LANES] = std::array::from_fn(|lane| {
                    let row = (first + panel) * LANES + lane;
                    match row < n {
                        true => &bytes[row_order(row) * row_bytes..][..row_bytes],
                        false => &padding,
                    }
                });
                match Layout::of(format) {
                    Some(_) => source::pack_blocks(format, k / BLOCK, &rows, target),
                    None => pack_floats(format, k, &rows, target),
                }
            });
            let rows = first * LANES..n.min((first + piece_panels) * LANES);
            done(rows.start * row_bytes..rows.end * row_bytes);
        }
        Ok(Packed {
            format,
            n,
            k,
            panel_bytes,
            bytes: packed,
        })
    }

    /// The format of the file's tensor.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Resident bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// What [`Packed::bytes`] of such a tensor will be.
    pub fn packed_bytes(format: Format, n: usize, k: usize) -> usize {
        n.div_ceil(LANES) * layout::panel_bytes(format, k)
    }

    /// Writes the dequantised output row `row` to `out` (`[k]`), exactly as the format defines it.
    ///
    /// # Panics
    /// When `row` is not below `n` or `out` is not `k` long.
    pub fn row_f32(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.n, "row {row} of {}", self.n);
        assert_eq!(out.len(), self.k, "a row has k elements");
        let (panel, lane) = (self.panel(row / LANES), row % LANES);
        match Layout::of(self.format) {
            Some(layout) => {
                let blocks = self.k / BLOCK;
                for (b, out) in out.chunks_exact_mut(BLOCK).enumerate() {
                    let block = LaneBlock::read(&layout, panel, blocks, b, lane);
                    out.copy_from_slice(&block.values(&layout));
                }
            }
            None => {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = float_at(self.format, panel, i * LANES + lane);
                }
            }
        }
    }

    /// The bytes of a panel, 64-byte aligned.
    pub(crate) fn panel(&self, panel: usize) -> &[u8] {
        &self.bytes[panel * self.panel_bytes..][..self.panel_bytes]
    }

    /// The bytes of a panel and of those after it.
    pub(crate) fn panels_from(&self, panel: usize) -> &[u8] {
        &self.bytes[panel * self.panel_bytes..]
    }

    /// Panels, the last possibly part empty.
    pub(crate) fn panels(&self) -> usize {
        self.n.div_ceil(LANES)
    }
}

/// Element `at` of a float panel.
pub(crate) fn float_at(format: Format, panel: &[u8], at: usize) -> f32 {
    let pair = |at: usize| [panel[2 * at], panel[2 * at + 1]];
    match format {
        Format::F16 => f16::from_le_bytes(pair(at)).to_f32(),
        Format::BF16 => bf16::from_le_bytes(pair(at)).to_f32(),
        _ => f32::from_le_bytes(std::array::from_fn(|i| panel[4 * at + i])),
    }
}

fn pack_floats(format: Format, k: usize, rows: &[&[u8]; LANES], target: &mut [u8]) {
    match format.block_bytes() {
        2 => interleave::<2>(k, rows, target),
        _ => interleave::<4>(k, rows, target),
    }
}

/// `[16 rows][k]` → `[k][16]`, numbers of `SIZE` bytes.
///
/// A line of each row is copied before it is taken apart: rows often lie a power of two apart, and
/// sixteen such lines push each other out of the nearest cache.
fn interleave<const SIZE: usize>(k: usize, rows: &[&[u8]; LANES], target: &mut [u8]) {
    /// Numbers of each row that are taken at once.
    const LINE: usize = 32;
    let (target, _) = target.as_chunks_mut::<SIZE>();
    let mut lines = [[[0; SIZE]; LINE]; LANES];
    for first in (0..k).step_by(LINE) {
        let count = LINE.min(k - first);
        for (line, row) in lines.iter_mut().zip(rows) {
            let (row, _) = row.as_chunks::<SIZE>();
            line[..count].copy_from_slice(&row[first..first + count]);
        }
        let target = target[first * LANES..].as_chunks_mut::<LANES>().0;
        for (i, target) in target.iter_mut().take(count).enumerate() {
            for (number, line) in target.iter_mut().zip(&lines) {
                *number = line[i];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused() {
        let pool = Pool::new(1);
        let same = |row: usize| row;
        let pack = |k, bytes: &[u8]| Packed::pack(Format::Q4_0, 2, k, bytes, &same, &pool).err();
        assert!(matches!(
            pack(33, &[0; 36]),
            Some(KernelError::PartialBlocks { .. })
        ));
        assert!(matches!(
            pack(32, &[0; 35]),
            Some(KernelError::WrongLength { expected: 36, .. })
        ));
        let huge = usize::MAX / 32 * 32;
        assert!(matches!(
            pack(huge, &[]),
            Some(KernelError::TooLarge { .. })
        ));
        let outside = Packed::pack(Format::Q4_0, 2, 32, &[0; 36], &|row| row + 1, &pool);
        assert!(matches!(
            outside.err(),
            Some(KernelError::RowOutside { row: 1, .. })
        ));
    }
}
