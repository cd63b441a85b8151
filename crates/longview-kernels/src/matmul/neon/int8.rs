//! Quantised weights · int8 activations: the walk over a part.

use super::dot::{self, Fours, Product, Widening};
use super::matrix;
use super::unpack::{Order, Stored, Unpacked};
use crate::activations::ROW_RECORD;
use crate::isa::Isa;
use crate::matmul::Part;
use crate::matmul::source::{Source, with_source};
use crate::packed::layout::SEGMENT;

/// Computes `part`, whose weights are quantised, with one of the versions of NEON.
pub(in crate::matmul) fn int8(part: &Part, isa: Isa) {
    with_source!(part.w.format(), panels(part, isa));
}

fn panels<S: Source>(part: &Part, isa: Isa) {
    let shape = part.x.shape();
    let grain = S::LAYOUT.grain();
    let records = part.x.records(grain);
    // A group alone reads the panel itself; several share an unpacked copy of each segment.
    let alone = part.groups.len() == 1;
    let order = if isa == Isa::NeonI8mm && shape.group == 4 {
        Order::Eights
    } else {
        Order::Fours
    };
    let mut unpacked = Unpacked::ZERO;
    for panel in part.panels.clone() {
        let weights = part.w.panel(panel).as_ptr();
        for at in 0..part.blocks().div_ceil(SEGMENT) {
            // SAFETY: the segment is inside the panel. The versions of NEON run only where the
            // processor offers them.
            let (stored, count) = unsafe { Stored::<S>::at(weights, part.blocks(), at) };
            if !alone {
                // SAFETY: as above.
                unsafe { unpacked.read(stored, count, order) };
            }
            for group in part.groups.clone() {
                let row = group * shape.group;
                let first =
                    group * shape.record_bytes(grain) + at * SEGMENT * shape.group * ROW_RECORD;
                let tile = Tile {
                    count,
                    fresh: at == 0,
                    x: records[first..].as_ptr(),
                    group: shape.group,
                    out: part.out(row, panel),
                    out_stride: part.w.n(),
                    rows: (part.x.rows() - row).min(shape.group),
                    lanes: part.lanes(panel),
                };
                // SAFETY: the features as above; the records of the segment's blocks are there for
                // this group, and rows and lanes lie inside the part's output.
                unsafe {
                    match (alone, order, isa) {
                        (true, _, Isa::Neon) => dot::tile::<S, Widening, _>(&tile, stored),
                        (true, _, _) => dot::tile::<S, Fours, _>(&tile, stored),
                        (_, Order::Eights, _) => matrix::tile::<S>(&tile, &unpacked),
                        // Of several groups each has four rows.
                        (_, _, Isa::Neon) => Widening::compute::<S, _, 4, 2>(&tile, &unpacked),
                        (_, _, _) => Fours::compute::<S, _, 4, 2>(&tile, &unpacked),
                    }
                }
            }
        }
    }
}

/// One panel's segment times the rows of a group.
pub(super) struct Tile {
    /// Blocks.
    pub(super) count: usize,
    /// Whether the sums begin at zero rather than at what `out` holds.
    pub(super) fresh: bool,
    /// Record of the group for the segment's first block.
    pub(super) x: *const u8,
    /// Rows of the group.
    pub(super) group: usize,
    pub(super) out: *mut f32,
    /// Numbers from one row to the next.
    pub(super) out_stride: usize,
    /// Rows to write.
    pub(super) rows: usize,
    /// Lanes to write.
    pub(super) lanes: usize,
}
