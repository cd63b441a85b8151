//! Walking a product with f32 activations slab by slab.

use super::Part;
use crate::packed::layout::{BLOCK, LANES, SEGMENT};

/// Elements of k that a panel is unpacked for at a time: 16 KiB of f32.
pub(super) const SLAB: usize = SEGMENT * BLOCK;
/// Elements of k for which a block of rows stays in the second-level cache.
const WIDE_SLAB: usize = 4 * SLAB;

/// One panel's slab times up to twelve rows.
pub(super) struct Tile {
    /// Elements of k.
    pub(super) count: usize,
    /// Whether the sums begin at zero rather than at what `out` holds.
    pub(super) fresh: bool,
    /// Rows of a group.
    pub(super) group: usize,
    /// Groups, up to 3 of four rows or 1 of fewer.
    pub(super) groups: usize,
    /// First element of the first group, `[k][group]`.
    pub(super) x: *const f32,
    /// Numbers from one group to the next.
    pub(super) x_stride: usize,
    /// First lane of the first row.
    pub(super) out: *mut f32,
    /// Numbers from one row to the next.
    pub(super) out_stride: usize,
    /// Rows to write.
    pub(super) rows: usize,
    /// Lanes to write.
    pub(super) lanes: usize,
}

/// Room for one unpacked slab, `[k][16]`.
#[repr(align(64))]
struct Slab([f32; SLAB * LANES]);

/// Walks `part` slab by slab. `unpack(panel, first, count, slab)` returns where the weights of
/// elements `first..first + count` of a panel are as `[count][16]` f32, `slab` being room for them;
/// `work(tile, w)` adds their products with some rows.
pub(super) fn slabs(
    part: &Part,
    unpack: impl Fn(*const u8, usize, usize, *mut f32) -> *const f32,
    work: impl Fn(&Tile, *const f32),
) {
    let mut slab = Slab([0.0; SLAB * LANES]);
    let k = part.w.k();
    for wide in (0..k).step_by(WIDE_SLAB) {
        for panel in part.panels.clone() {
            for first in (wide..k.min(wide + WIDE_SLAB)).step_by(SLAB) {
                let count = SLAB.min(k - first);
                let w = unpack(
                    part.w.panel(panel).as_ptr(),
                    first,
                    count,
                    slab.0.as_mut_ptr(),
                );
                tiles(part, panel, first, count, |tile| work(tile, w));
            }
        }
    }
}

/// Calls `work` for the tiles of all rows of `part`, for elements `first..first + count` of `panel`.
pub(super) fn tiles(part: &Part, panel: usize, first: usize, count: usize, work: impl Fn(&Tile)) {
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
        work(&Tile {
            count,
            fresh: first == 0,
            group: shape.group,
            groups,
            x: floats[group * stride + first * shape.group..].as_ptr(),
            x_stride: stride,
            out: part.out(row, panel),
            out_stride: part.w.n(),
            rows: (part.x.rows() - row).min(groups * shape.group),
            lanes: part.lanes(panel),
        });
        group += groups;
    }
}
