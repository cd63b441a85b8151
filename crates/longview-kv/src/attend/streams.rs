//! The part of attention that reads what a keep method left of earlier tokens.
//!
//! Every row of a batch sees all of it, for it is of tokens before the batch. Heads have streams of
//! different lengths, so a task walks one head's. Its keys are cut into spans of as many pages as
//! blocks are, counted from the head's first page, and merged left to right before the blocks'.

use std::ops::Range;

use longview_kernels::attention::{PageRef, QueryRows, SPAN_TOKENS, attend_span};
use longview_kernels::page::PAGE_TOKENS;

use super::plan::{Cut, Source, Task};
use super::{Call, SPAN_BLOCKS, Worker};
use crate::context::Context;
use crate::read::ReadPlan;

impl<'a> Call<'a, '_> {
    /// Writes the tasks that read the streams of a segment for its first `rows` rows over `tasks` from
    /// `planned` on, which it moves. There are none where no pair was dropped.
    pub(super) fn plan_streams(
        &self,
        segment: usize,
        rows: usize,
        tasks: &mut Vec<Task>,
        planned: &mut usize,
    ) -> Cut {
        let (context, group, _) = self.place(segment);
        let context: &'a Context = context;
        let spans = context
            .stream(self.layer)
            .map_or(0, |stream| stream.deepest().div_ceil(SPAN_BLOCKS));
        let mut cut = self.cut(*planned, group.kind.kv_heads, rows, spans.max(1));
        (cut.head_step, cut.head_tasks) = (1, group.kind.kv_heads);
        if spans == 0 {
            cut.parts = 0;
        }
        for part in 0..cut.parts {
            let of_part = match cut.parts {
                1 => 0..spans,
                _ => part..part + 1,
            };
            for from in (0..rows).step_by(cut.row_step).rev() {
                let task_rows = from..(from + cut.row_step).min(rows);
                for head in 0..group.kind.kv_heads {
                    if *planned == tasks.len() {
                        tasks.push(Task::new());
                    }
                    let heads = head..head + 1;
                    let task = &mut tasks[*planned];
                    task.set(segment, heads, task_rows.clone(), of_part.clone());
                    task.source = Source::Stream;
                    *planned += 1;
                }
            }
        }
        cut
    }

    /// The running softmax of a task over some of its spans, which follow those before.
    pub(super) fn run_stream(&self, task: &mut Task, spans: Range<usize>, worker: &mut Worker) {
        let (context, group, _) = self.place(task.segment);
        let group_size = self.attention.heads / group.kind.kv_heads;
        let count = task.rows.len() * group_size;
        if spans.start == task.spans.start {
            task.partials.reset(count, group.kind.v_dim);
        }
        let Some(stream) = context.stream(self.layer) else {
            return;
        };
        let slots = stream.slots(task.heads.start);
        let plan = match task.source {
            Source::PickedStream(at) => Some(&self.picks[at].left),
            _ => None,
        };
        let log_weights = stream.log_weights(task.heads.start);
        self.gather(task, worker);
        for span in spans {
            let first = slots.pages.start + span * SPAN_BLOCKS;
            let last = (first + SPAN_BLOCKS).min(slots.pages.end);
            if first >= last {
                break;
            }
            let mut of_slots;
            let mut pages = [PageRef::new(&[], &[]); SPAN_BLOCKS];
            for (page, index) in pages.iter_mut().zip(first..last) {
                *page = stream.page(group, index);
            }
            let before = span * SPAN_BLOCKS * PAGE_TOKENS;
            let slot = |slot: usize| {
                slot.saturating_sub(before)
                    .min((last - first) * PAGE_TOKENS)
            };
            let seen = slot(slots.slots.start)..slot(slots.slots.end);
            if !log_weights.is_empty() {
                // In the order of slots, of which the first ones may be another head's.
                of_slots = [0.0; SPAN_TOKENS];
                let pair = before + seen.start - slots.slots.start;
                of_slots[seen.clone()].copy_from_slice(&log_weights[pair..][..seen.len()]);
                for (page, added) in pages.iter_mut().zip(of_slots.chunks_exact(PAGE_TOKENS)) {
                    page.log_weights = added;
                }
            }
            let (count_read, seen) = match plan {
                None => (last - first, seen),
                Some(plan) => chosen(plan, span, &mut pages[..last - first], seen),
            };
            if count_read == 0 {
                continue;
            }
            let pages = &pages[..count_read];
            let visible = seen.start as u32..seen.end as u32;
            worker.visible.clear();
            worker.visible.extend(std::iter::repeat_n(visible, count));
            let rows = QueryRows {
                heads: 1,
                q: &worker.queries,
                visible: &worker.visible,
                softcap: self.attention.softcap,
            };
            worker.partials.reset(count, group.kind.v_dim);
            worker.pages += pages.len() as u64;
            attend_span(
                self.exec.isa,
                &group.geometry,
                pages,
                &rows,
                &mut worker.scratch,
                &mut worker.partials,
            );
            task.partials.merge(self.exec.isa, &worker.partials);
        }
    }
}

/// Moves those of the pages of a span that are read to the front. Returns how many they are, and which of their
/// slots are the head's, as `seen` are those of all.
fn chosen(
    plan: &ReadPlan,
    span: usize,
    pages: &mut [PageRef<'_>],
    seen: Range<usize>,
) -> (usize, Range<usize>) {
    let mut count = 0;
    let (mut first, mut last) = (None, 0);
    for at in 0..pages.len() {
        let page = span * SPAN_BLOCKS + at;
        if !plan.touches(&(page..page + 1)) {
            continue;
        }
        pages[count] = pages[at];
        let of_page = |slot: usize| slot.clamp(at * PAGE_TOKENS, (at + 1) * PAGE_TOKENS);
        let moved = |slot: usize| of_page(slot) - at * PAGE_TOKENS + count * PAGE_TOKENS;
        first.get_or_insert(moved(seen.start));
        last = moved(seen.end);
        count += 1;
    }
    (count, first.unwrap_or(last)..last)
}
