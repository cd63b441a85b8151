//! How products that share an input are cut into tasks.

use std::ops::Range;

use super::{
    FEW_GROUPS, PANELS_IN_TILES, PANELS_OF_ONE_GROUP, PANELS_OF_SOME_ROWS, PANELS_OF_TWO_GROUPS,
    PANELS_TOGETHER, SOME_ROWS, needed,
};
use crate::activations::{Activations, Need, TILE_ROWS};
use crate::exec::Exec;
use crate::packed::Packed;

/// The panels of all matrices in one sequence, cut into chunks that get smaller towards the end:
/// long streams for memory first, then small pieces so that the threads finish together. Blocks of
/// rows whose activations stay in the second-level cache are tasks of their own.
pub(super) struct Plan<'a> {
    ws: &'a [&'a Packed],
    /// Threads that share a round of chunks.
    threads: usize,
    /// Panels that tiles take at once.
    together: usize,
    /// Bytes of weights of all matrices.
    bytes: usize,
    /// Bytes of weights of the smallest chunk.
    least: usize,
    /// What a round of chunks takes of what is left, in eighths.
    share: usize,
    /// Chunks of panels.
    chunks: usize,
    groups: usize,
    group_block: usize,
}

/// Row groups that the tallest tiles take at once, but for those of a processor that has tiles itself.
const TILE_GROUPS: usize = 3;
/// Rows from which on a product is not limited by memory.
const MANY_ROWS: usize = 25;
/// Row groups of a block with f32 activations, of which 1,024 stay cached; with int8 activations it
/// is as many as [`crate::Isa::rows_together`] says, and 2,048 stay cached.
const FLOAT_GROUPS: usize = 24;
/// Weights that a task of up to eight rows should at least read: a microsecond and more.
const TASK_BYTES: usize = 48 << 10;
/// What `share` counts: eighths.
const EIGHTHS: usize = 8;

impl<'a> Plan<'a> {
    /// The tasks of x · Wᵀ for each of `ws`.
    pub(super) fn new(exec: &Exec, x: &Activations, ws: &'a [&'a Packed]) -> Plan<'a> {
        Plan::with_panels(exec, x, ws, 1)
    }

    /// The same, of each matrix a multiple of so many panels for each task, but for the last ones.
    pub(super) fn with_panels(
        exec: &Exec,
        x: &Activations,
        ws: &'a [&'a Packed],
        panels: usize,
    ) -> Plan<'a> {
        let groups = if x.rows() == 0 { 0 } else { x.shape().groups };
        let int8_groups = exec.usable_isa().rows_together() / 4;
        let most = ws.iter().map(|w| match needed(exec.numerics, w.format()) {
            Need::F32 => FLOAT_GROUPS,
            _ => int8_groups,
        });
        let blocks = groups.div_ceil(most.min().unwrap_or(int8_groups)).max(1);
        let tile = match x.shape().in_tiles() {
            true => TILE_ROWS / x.shape().group,
            false => TILE_GROUPS,
        };
        let group_block = groups.div_ceil(blocks).next_multiple_of(tile);
        let many = x.rows() >= MANY_ROWS;
        let int8 = |w: &&Packed| needed(exec.numerics, w.format()) != Need::F32;
        let together = match x.rows() {
            _ if x.shape().in_tiles() && ws.iter().all(int8) => PANELS_IN_TILES,
            rows if groups > FEW_GROUPS && rows <= SOME_ROWS && ws.iter().all(int8) => {
                PANELS_OF_SOME_ROWS
            }
            _ if many => PANELS_TOGETHER,
            _ if groups == 1 => PANELS_OF_ONE_GROUP,
            _ if groups == 2 => PANELS_OF_TWO_GROUPS,
            _ => 1,
        };
        let rows = group_block * x.shape().group;
        let mut plan = Plan {
            ws,
            threads: exec.pool.threads(),
            together: together.next_multiple_of(panels),
            bytes: ws.iter().map(|w| w.bytes()).sum(),
            least: TASK_BYTES / x.rows().min(rows).div_ceil(8).max(1),
            // Every task of few rows begins with waiting for memory: few and large ones first.
            share: if many { 4 } else { 6 },
            chunks: 0,
            groups,
            group_block,
        };
        plan.chunks = plan.chunks().count();
        plan
    }

    /// Tasks.
    pub(super) fn tasks(&self) -> usize {
        self.chunks * self.groups.div_ceil(self.group_block.max(1))
    }

    /// Calls `part(i, panels, groups)` for what task `task` computes of matrix `i`.
    pub(super) fn parts(
        &self,
        task: usize,
        mut part: impl FnMut(usize, Range<usize>, Range<usize>),
    ) {
        let first = task / self.chunks * self.group_block;
        let groups = first..self.groups.min(first + self.group_block);
        let Some(bytes) = self.chunks().nth(task % self.chunks) else {
            return;
        };
        let mut base = 0;
        for (i, w) in self.ws.iter().enumerate() {
            let panels = self.panels(w, base, &bytes);
            if !panels.is_empty() {
                part(i, panels, groups.clone());
            }
            base += w.bytes();
        }
    }

    /// The panels of `w`, which begins at `base` of the sequence, that belong to the chunk `bytes`:
    /// those whose grain begins in it.
    fn panels(&self, w: &Packed, base: usize, bytes: &Range<usize>) -> Range<usize> {
        let together = self.together;
        let grain = (w.bytes() / w.panels().max(1) * together).max(1);
        let panel = |at: usize| {
            let grains = at.saturating_sub(base).div_ceil(grain);
            w.panels().min(grains.saturating_mul(together))
        };
        panel(bytes.start)..panel(bytes.end)
    }

    /// The chunks of the sequence, in bytes.
    fn chunks(&self) -> impl Iterator<Item = Range<usize>> {
        let (mut start, mut in_round, mut size) = (0, 0, 0);
        std::iter::from_fn(move || {
            let left = self.bytes - start;
            if in_round == 0 {
                (in_round, size) = (self.threads, left / EIGHTHS * self.share / self.threads);
            }
            in_round -= 1;
            let count = size.max(self.least).max(1).min(left);
            start += count;
            (count > 0).then(|| start - count..start)
        })
    }
}
