//! The part of attention that a read method plans: for every row of an answer and every KV head the
//! blocks that are read.
//!
//! A row's pages are planned first, for all rows and heads of a layer side by side, and then read span
//! by span like any others, one head at a time, for heads differ in what they read.

use std::ops::Range;

use longview_kernels::attention::SPAN_TOKENS;
use longview_kernels::page::PAGE_TOKENS;

use super::plan::{Cut, Source, Task};
use super::{Call, Worker};
use crate::layout::LayerState;
use crate::read::{ReadPlan, RowQuery};

/// What one row reads with the query heads of one KV head.
pub(super) struct Pick {
    segment: usize,
    row: usize,
    head: usize,
    pub(super) plan: ReadPlan,
}

impl Call<'_, '_> {
    /// The rows of a segment whose pages are planned in this layer; the others before them read
    /// everything that they see.
    pub(super) fn picked_rows(&self, segment: usize) -> Range<usize> {
        let (context, group, _) = self.place(segment);
        let rows = self.batch.rows_of(segment).len();
        let Some(reads) = context.reads.as_deref() else {
            return rows..rows;
        };
        let first = reads.from.saturating_sub(context.len()).min(rows);
        if group.kind.state != LayerState::Full {
            return rows..rows;
        }
        let select = &reads.read.select;
        let blocks = |row: usize| context.places.slot(context.len() + row) / PAGE_TOKENS + 1;
        let all = |row: &usize| select.reads_all(self.layer, blocks(*row));
        let picked = first + (first..rows).take_while(all).count();
        for row in first..picked {
            let pages = blocks(row) * group.kind.kv_heads;
            reads.count(pages, pages);
        }
        picked..rows
    }

    /// Writes what the rows `rows` of a segment are to read over `picks`, and the tasks that read it
    /// over `tasks`, from `picked` and `planned` on, which it moves.
    pub(super) fn plan_picked(
        &self,
        segment: usize,
        rows: &Range<usize>,
        tasks: &mut Vec<Task>,
        planned: &mut usize,
        picks: &mut Vec<Pick>,
        picked: &mut usize,
    ) -> Cut {
        let (context, group, _) = self.place(segment);
        let heads = group.kind.kv_heads;
        let end = context.places.slot(context.len() + rows.end);
        let spans = end.div_ceil(SPAN_TOKENS);
        // With enough of them each walks its own spans; spans that are read back cannot be split.
        let walks = rows.len() * heads >= 4 * self.exec.pool.threads();
        let streamed = self.missing(segment).is_some_and(|spans| !spans.is_empty());
        let cut = Cut {
            first: *planned,
            parts: match rows.len() {
                0 => 0,
                _ if walks || streamed => 1,
                _ => spans,
            },
            row_step: 1,
            row_tasks: rows.len(),
            head_step: 1,
            head_tasks: heads,
        };
        let first = *picked;
        for row in rows.clone() {
            for head in 0..heads {
                if *picked == picks.len() {
                    picks.push(Pick::new());
                }
                let pick = &mut picks[*picked];
                (pick.segment, pick.row, pick.head) = (segment, row, head);
                *picked += 1;
            }
        }
        for part in 0..cut.parts {
            let of_part = match cut.parts {
                1 => 0..spans,
                _ => part..part + 1,
            };
            for row in rows.clone().rev() {
                for head in 0..heads {
                    if *planned == tasks.len() {
                        tasks.push(Task::new());
                    }
                    let task = &mut tasks[*planned];
                    task.set(segment, head..head + 1, row..row + 1, of_part.clone());
                    task.source = Source::Picked(first + (row - rows.start) * heads + head);
                    *planned += 1;
                }
            }
        }
        cut
    }

    /// Plans what a row reads.
    ///
    /// # Panics
    /// When the method breaks its contract.
    pub(super) fn pick(&self, pick: &mut Pick, worker: &mut Worker) {
        let (context, group, place) = self.place(pick.segment);
        let reads = context.reads.as_deref().expect("picks are a read method's");
        let group_index = context.layout().layers[self.layer].0;
        let (heads, dim) = (self.attention.heads, group.kind.head_dim);
        let of_head = heads / group.kind.kv_heads;
        let row = self.batch.rows_of(pick.segment).start + pick.row;
        let from = (row * heads + pick.head * of_head) * dim;
        let slot = context.places.slot(context.len() + pick.row);
        let own = slot / PAGE_TOKENS;
        let latest = group.recent.map_or(own, |recent| {
            (recent.first_slot(slot) / PAGE_TOKENS).min(own)
        });
        pick.plan.blocks.clear();
        let mut query = RowQuery {
            isa: self.exec.isa,
            layer: self.layer,
            head: pick.head,
            own,
            latest,
            queries: &self.q[from..from + of_head * dim],
            bounds: reads
                .bounds(group_index)
                .map(|bounds| bounds.head(place, pick.head)),
            best: &mut worker.best,
        };
        reads.read.select.select(&mut query, &mut pick.plan);
        let ends = pick.plan.blocks.last();
        assert!(
            ends.is_some_and(|last| last.start <= latest && last.end == own + 1),
            "{}: {:?} for a row in block {own}",
            reads.read.text,
            pick.plan
        );
        reads.count(pick.plan.count(), own + 1);
    }
}

impl Pick {
    /// Whether it is of this row and KV head.
    pub(super) fn is_of(&self, segment: usize, row: usize, head: usize) -> bool {
        (self.segment, self.row, self.head) == (segment, row, head)
    }

    fn new() -> Pick {
        Pick {
            segment: 0,
            row: 0,
            head: 0,
            plan: ReadPlan::default(),
        }
    }
}
