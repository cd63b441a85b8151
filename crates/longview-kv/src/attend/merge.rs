//! What is left to do when all tasks are done: a row's parts become its result.

use std::ops::Range;

use longview_kernels::Isa;
use longview_kernels::attention::Partials;

use super::plan::{Cuts, Sources, Task};
use super::shared::Pieces;
use super::{Call, Worker};

/// What is left to do when all tasks are done.
pub(super) struct Finish<'a, 'b> {
    pub(super) call: &'a Call<'a, 'b>,
    pub(super) tasks: &'a [Task],
    pub(super) cuts: &'a [Cuts],
    pub(super) pieces: &'a Pieces,
}

impl Finish<'_, '_> {
    /// Merges the parts of the KV heads `heads` of row `row` left to right, divides by the sums and
    /// writes the result, `[heads · group][v_dim]`.
    pub(super) fn row(
        &self,
        row: usize,
        heads: Range<usize>,
        out: &mut [f32],
        worker: &mut Worker,
    ) {
        let Finish {
            call,
            tasks,
            cuts,
            pieces,
        } = *self;
        let isa = call.exec.isa;
        let segment = (0..cuts.len())
            .find(|&segment| row < call.batch.rows_of(segment).end)
            .expect("every row is in a segment");
        let row = row - call.batch.rows_of(segment).start;
        let place = call.sharing().and_then(|sharing| sharing.place(segment));
        let v_dim = call.place(segment).1.kind.v_dim;
        let group_size = out.len() / heads.len() / v_dim;
        let cuts = &cuts[segment];
        let (Sources { streams, blocks }, row_of_cut) = match row.checked_sub(cuts.picked_from) {
            None => (&cuts.whole, row),
            Some(row) => (&cuts.picked, row),
        };
        for (head, out) in heads.zip(out.chunks_exact_mut(group_size * v_dim)) {
            let sinks = call.attention.sinks;
            let sinks = sinks.map(|sinks| &sinks[head * group_size..(head + 1) * group_size]);
            // Blocks first among themselves, as one task that walks them all merges them.
            let mut merge = Merge::new(isa, group_size, v_dim, &mut worker.apart);
            for part in 0..blocks.parts {
                let task = &tasks[blocks.task(part, row_of_cut, head)];
                merge.add_row(task, head, row - task.rows.start);
            }
            if let Some(place) = place {
                call.merge_pieces(pieces, tasks, place, row, head, &mut merge);
            }
            if streams.parts == 0 {
                merge.finish(sinks, out);
                continue;
            }
            let mut whole = Merge::new(isa, group_size, v_dim, &mut worker.partials);
            for part in 0..streams.parts {
                let task = &tasks[streams.task(part, row_of_cut, head)];
                whole.add_row(task, head, row - task.rows.start);
            }
            match merge.so_far {
                SoFar::Nothing => {}
                SoFar::One(part, rows) => whole.add(part, rows),
                SoFar::Several => whole.add(merge.whole, 0..group_size),
            }
            whole.finish(sinks, out);
        }
    }
}

/// The parts of one row and KV head, merged from left to right; a part that is alone stays where it is.
pub(super) struct Merge<'t, 'w> {
    pub(super) isa: Isa,
    pub(super) group_size: usize,
    pub(super) v_dim: usize,
    pub(super) whole: &'w mut Partials,
    pub(super) so_far: SoFar<'t>,
}

/// What a [`Merge`] has.
pub(super) enum SoFar<'t> {
    Nothing,
    One(&'t Partials, Range<usize>),
    /// Merged in its room.
    Several,
}

impl<'t, 'w> Merge<'t, 'w> {
    /// Nothing so far, with `whole` as the room for several parts merged.
    fn new(isa: Isa, group_size: usize, v_dim: usize, whole: &'w mut Partials) -> Merge<'t, 'w> {
        Merge {
            isa,
            group_size,
            v_dim,
            whole,
            so_far: SoFar::Nothing,
        }
    }

    /// Adds row `row` of `task` for KV head `head`.
    pub(super) fn add_row(&mut self, task: &'t Task, head: usize, row: usize) {
        let at = (head - task.heads.start) * task.rows.len() + row;
        self.add(
            &task.partials,
            at * self.group_size..(at + 1) * self.group_size,
        );
    }

    /// Adds the rows `rows` of `part`.
    pub(super) fn add(&mut self, part: &'t Partials, rows: Range<usize>) {
        self.so_far = match std::mem::replace(&mut self.so_far, SoFar::Several) {
            SoFar::Nothing => SoFar::One(part, rows),
            SoFar::One(first, of_first) => {
                self.whole.reset(self.group_size, self.v_dim);
                self.whole.merge_rows(self.isa, first, of_first);
                self.whole.merge_rows(self.isa, part, rows);
                SoFar::Several
            }
            SoFar::Several => {
                self.whole.merge_rows(self.isa, part, rows);
                SoFar::Several
            }
        };
    }

    /// Divides by the sums and writes the result, `[group][v_dim]`.
    pub(super) fn finish(self, sinks: Option<&[f32]>, out: &mut [f32]) {
        match self.so_far {
            SoFar::Nothing => out.fill(0.0),
            SoFar::One(part, rows) => part.finish_rows(self.isa, rows, sinks, out),
            SoFar::Several => self.whole.finish(self.isa, sinks, out),
        }
    }
}
