//! How rows of activations are grouped, and where the parts of their int8 records are.

use super::Need;
use crate::isa::Isa;
use crate::packed::layout::{BLOCK, Grain, SEGMENT};

/// Bytes of one row's share of a record.
pub(crate) const ROW_RECORD: usize = BLOCK + 16;

/// Where the parts of a record of 256 elements of sixteen rows are, and its length.
pub(crate) mod tile_record {
    use super::TILE_ROWS;
    use crate::packed::layout::{BLOCK, SEGMENT};

    /// Elements of a quarter, whose codes of a row lie side by side.
    pub(crate) const QUARTER: usize = 2 * BLOCK;
    /// Bytes of a quarter of the rows.
    pub(crate) const QUARTER_BYTES: usize = TILE_ROWS * QUARTER;
    /// Σ codes of the halves of the blocks, a row after another.
    pub(crate) const HALVES: usize = TILE_ROWS * SEGMENT * BLOCK;
    /// Bytes of a row of them.
    pub(crate) const HALVES_ROW: usize = 2 * SEGMENT * size_of::<i16>();
    /// Σ codes of the blocks, a row after another.
    pub(crate) const BLOCKS: usize = HALVES + TILE_ROWS * HALVES_ROW;
    /// Bytes of a row of them.
    pub(crate) const BLOCKS_ROW: usize = SEGMENT * size_of::<i16>();
    /// The scales.
    pub(crate) const SCALES: usize = BLOCKS + TILE_ROWS * BLOCKS_ROW;
    /// Bytes of all.
    pub(crate) const BYTES: usize = SCALES + TILE_ROWS * size_of::<f32>();
}

/// Rows of a tile.
pub(crate) const TILE_ROWS: usize = 16;
/// Rows from which on products take them in tiles, where there are tiles: fewer where a tile adds up
/// segments, whose sums leave it an eighth as often.
const TILES_FROM: usize = 48;
const TILES_OF_SEGMENTS_FROM: usize = 24;

/// How rows are grouped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Rows of a group, 1 to 4.
    pub(crate) group: usize,
    /// Groups.
    pub(crate) groups: usize,
    /// Rows that share an int8 record: those of a group, or of a tile.
    pub(crate) lot: usize,
    pub(super) rows: usize,
    pub(super) k: usize,
}

impl Shape {
    /// That of so many rows for products that need them so.
    pub(super) fn of(isa: Isa, rows: usize, k: usize, need: Need) -> Shape {
        let group = rows.clamp(1, 4);
        let from = match need.blocks {
            true => TILES_FROM,
            false => TILES_OF_SEGMENTS_FROM,
        };
        let in_tiles = isa == Isa::Amx && rows >= from;
        Shape {
            group,
            groups: rows.div_ceil(group),
            lot: if in_tiles { TILE_ROWS } else { group },
            rows,
            k,
        }
    }

    /// Whether products take the rows in tiles.
    pub(crate) fn in_tiles(&self) -> bool {
        self.lot == TILE_ROWS
    }

    /// Lots of rows.
    pub(crate) fn lots(&self) -> usize {
        self.rows.div_ceil(self.lot)
    }

    /// Bytes of a group in f32, a multiple of 64.
    pub(crate) fn float_bytes(&self) -> usize {
        (self.k * self.group * size_of::<f32>()).next_multiple_of(64)
    }

    /// Bytes of a lot in int8, a multiple of 16.
    pub(crate) fn record_bytes(&self, grain: Grain) -> usize {
        match grain {
            Grain::Segment if self.in_tiles() => {
                self.k.div_ceil(SEGMENT * BLOCK) * tile_record::BYTES
            }
            _ => self.k.div_ceil(BLOCK) * self.lot * ROW_RECORD,
        }
    }
}

/// One row's share of an int8 record, read in plain Rust.
pub(crate) struct RowBlock<'a> {
    /// Codes, two's complement.
    pub(crate) codes: &'a [u8],
    /// Scale.
    pub(crate) scale: f32,
    /// −128 Σ codes of each half.
    pub(crate) negated: [i32; 2],
    /// Σ codes.
    pub(crate) sum: f32,
}

impl RowBlock<'_> {
    /// Row `row` of a `record` of `lot` rows.
    pub(crate) fn read(record: &[u8], lot: usize, row: usize) -> RowBlock<'_> {
        let word = |field: usize| {
            let at = lot * BLOCK + 4 * (field * lot + row);
            [record[at], record[at + 1], record[at + 2], record[at + 3]]
        };
        let (all, low) = (i32::from_ne_bytes(word(1)), i32::from_ne_bytes(word(2)));
        RowBlock {
            codes: &record[row * BLOCK..][..BLOCK],
            scale: f32::from_ne_bytes(word(0)),
            negated: [low, all - low],
            sum: f32::from_ne_bytes(word(3)),
        }
    }
}
