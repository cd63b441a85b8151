//! Walking two products with the same rows side by side, for what is made of their outputs two by two.
//!
//! The sums of a block of rows never leave the caches: where they are complete, `finish` makes
//! something smaller of them.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::{Ahead, At, Kernel, Sums, Tiles, ZEROS};
use crate::activations::Activations;
use crate::packed::Packed;
use crate::packed::layout::{BLOCK, LANES};

/// The outputs of some panels of two matrices of one shape and format for some groups of rows.
pub(in crate::matmul) struct Pairs<'a> {
    pub(in crate::matmul) x: &'a Activations,
    pub(in crate::matmul) ws: [&'a Packed; 2],
    /// Of each matrix: those of whole blocks.
    pub(in crate::matmul) panels: Range<usize>,
    /// Whole lots of rows, but for the last.
    pub(in crate::matmul) groups: Range<usize>,
}

/// Takes a number of a block, a lot of rows, and their outputs for it: `[rows][2][32]`.
pub(in crate::matmul) type Finish<'a> = dyn Fn(usize, usize, &[f32]) + Sync + 'a;

/// Panels of a block.
const OF_BLOCK: usize = BLOCK / LANES;
/// Panels of both matrices that make a block.
const OF_BOTH: usize = 2 * OF_BLOCK;

/// Computes `pairs`, the panels of a block of both matrices at a time.
pub(in crate::matmul) fn walk_pairs<K: Kernel>(pairs: &Pairs, kernel: &mut K, finish: &Finish) {
    const { assert!(K::PANELS == OF_BOTH) };
    debug_assert!(pairs.panels.start.is_multiple_of(OF_BLOCK));
    let mut room = MaybeUninit::<Sums>::uninit();
    let (sums, lot) = (room.as_mut_ptr().cast::<f32>(), pairs.x.shape().lot);
    for group in pairs.groups.clone().step_by(K::BLOCK_GROUPS) {
        let block = Block {
            pairs,
            groups: group..pairs.groups.end.min(group + K::BLOCK_GROUPS),
            sums,
        };
        let rows = 4 * group..pairs.x.rows().min(4 * block.groups.end);
        for panel in pairs.panels.clone().step_by(OF_BLOCK) {
            block.compute(kernel, panel);
            for first in rows.clone().step_by(lot) {
                let count = lot.min(rows.end - first) * 2 * BLOCK;
                let at = (first - rows.start) * 2 * BLOCK;
                // SAFETY: so many sums have been computed.
                let sums = unsafe { std::slice::from_raw_parts(sums.add(at), count) };
                finish(panel / OF_BLOCK, first / lot, sums);
            }
        }
    }
}

/// A block of rows.
struct Block<'a> {
    pairs: &'a Pairs<'a>,
    groups: Range<usize>,
    /// Room for the sums.
    sums: *mut f32,
}

impl<'a> Block<'a> {
    /// The panels from `panel` on, first those of one matrix, then those of the other.
    fn panels(&self, panel: usize) -> impl Iterator<Item = (&'a Packed, usize)> {
        let ws = self.pairs.ws.into_iter();
        ws.flat_map(move |w| (panel..panel + OF_BLOCK).map(move |panel| (w, panel)))
    }

    /// Computes the sums of the panels from `panel` on.
    fn compute<K: Kernel>(&self, kernel: &mut K, panel: usize) {
        let k = self.pairs.x.k();
        let steps = self.groups.len().div_ceil(K::GROUPS);
        let zeros = At {
            start: ZEROS.0.as_ptr(),
            stride: 0,
        };
        let to = At {
            start: self.sums,
            stride: OF_BOTH * LANES,
        };
        for first in (0..k).step_by(K::SLAB) {
            let count = K::SLAB.min(k - first);
            for (slot, (w, panel)) in self.panels(panel).enumerate() {
                kernel.unpack(w, panel, slot, first, count);
            }
            let (next, after) = (first + K::SLAB, panel + OF_BLOCK);
            let mut ahead = if next < k {
                Ahead::new::<K>(self.panels(panel), next, steps)
            } else if after < self.pairs.panels.end {
                Ahead::new::<K>(self.panels(after), 0, steps)
            } else {
                Ahead::new::<K>(std::iter::empty(), 0, steps)
            };
            let tiles = Tiles {
                panels: OF_BOTH,
                group: self.groups.start,
                groups: self.groups.len(),
                from: if first == 0 { zeros } else { to.to_read() },
                to,
                met: None,
                ahead: &mut ahead,
            };
            kernel.add(self.pairs.x, tiles, first, count);
        }
    }
}
