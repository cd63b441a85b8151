//! The part of attention that a read method plans: for every row of an answer and every KV head the
//! pages that are read, of what a keep method has left and of the blocks after it.
//!
//! A row's pages are planned first, for all rows and heads of a layer side by side, and then read span
//! by span like any others, one head at a time, for heads differ in what they read.

use std::ops::Range;

use longview_kernels::attention::SPAN_TOKENS;
use longview_kernels::page::PAGE_TOKENS;

use super::plan::{Cut, Source, Sources, Task};
use super::{Call, SPAN_BLOCKS, Worker};
use crate::keep::stream::Stream;
use crate::layout::LayerState;
use crate::read::{ReadPlan, Reads, RowQuery};

/// What one row reads with the query heads of one KV head.
pub(super) struct Pick {
    segment: usize,
    row: usize,
    head: usize,
    /// The blocks.
    pub(super) plan: ReadPlan,
    /// The pages of what a keep method has left of the head.
    pub(super) left: ReadPlan,
}

/// What one row can read with the query heads of one KV head.
struct Present {
    /// The first tokens' blocks that a keep method leaves where they are; they are read in any case.
    sinks: usize,
    /// Pages of what it has left of other tokens.
    left: usize,
    /// The first of the blocks after them.
    first: usize,
    /// The row's own block.
    own: usize,
}

impl Present {
    /// Those that the method chooses from: the pages left of earlier tokens, then the blocks.
    fn pages(&self) -> usize {
        self.left + self.own - self.first + 1
    }

    /// All.
    fn count(&self) -> usize {
        self.sinks + self.pages()
    }
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
        let heads = group.kind.kv_heads;
        let pages = |row: usize, head: usize| self.present(segment, row, head).pages();
        let all = |row: &usize| {
            let most = (0..heads).map(|head| pages(*row, head)).max();
            select.reads_all(self.layer, most.unwrap_or(0))
        };
        let picked = first + (first..rows).take_while(all).count();
        for row in first..picked {
            for head in 0..heads {
                let pages = self.present(segment, row, head).count();
                reads.count(pages, pages);
            }
        }
        picked..rows
    }

    /// What a row of a segment with a read method can read in this layer.
    fn present(&self, segment: usize, row: usize, head: usize) -> Present {
        let context = self.place(segment).0;
        let stream = context.stream(self.layer);
        let first = context.reads.as_deref().map_or(0, Reads::first);
        let sinks = stream.map_or(0, |stream| stream.apart().div_ceil(PAGE_TOKENS));
        Present {
            sinks: sinks.min(first),
            left: stream.map_or(0, |stream| stream.slots(head).pages.len()),
            first,
            own: context.places.slot(context.len() + row) / PAGE_TOKENS,
        }
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
    ) -> Sources {
        let (context, group, _) = self.place(segment);
        let heads = group.kind.kv_heads;
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
        let end = context.places.slot(context.len() + rows.end);
        let deepest = context.stream(self.layer).map_or(0, Stream::deepest);
        let mut tasks_over = |spans: Range<usize>, source: fn(usize) -> Source| {
            // With enough of them each walks its own spans; spans that are read back cannot be split.
            let walks = rows.len() * heads >= 4 * self.exec.pool.threads();
            let streamed = self.missing(segment).is_some_and(|spans| !spans.is_empty());
            let cut = Cut {
                first: *planned,
                parts: match rows.len() {
                    0 => 0,
                    _ if walks || streamed => spans.len().min(1),
                    _ => spans.len(),
                },
                row_step: 1,
                row_tasks: rows.len(),
                head_step: 1,
                head_tasks: heads,
            };
            for part in 0..cut.parts {
                let of_part = match cut.parts {
                    1 => spans.clone(),
                    _ => spans.start + part..spans.start + part + 1,
                };
                for row in rows.clone().rev() {
                    for head in 0..heads {
                        if *planned == tasks.len() {
                            tasks.push(Task::new());
                        }
                        let task = &mut tasks[*planned];
                        task.set(segment, head..head + 1, row..row + 1, of_part.clone());
                        task.source = source(first + (row - rows.start) * heads + head);
                        *planned += 1;
                    }
                }
            }
            cut
        };
        // Blocks before the first are nowhere, but for those of exempt first tokens.
        let before = match self.present(segment, rows.start, 0) {
            Present {
                sinks: 0, first, ..
            } => first / SPAN_BLOCKS,
            _ => 0,
        };
        Sources {
            streams: tasks_over(0..deepest.div_ceil(SPAN_BLOCKS), Source::PickedStream),
            blocks: tasks_over(before..end.div_ceil(SPAN_TOKENS), Source::Picked),
        }
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
        let present = self.present(pick.segment, pick.row, pick.head);
        let latest = group.recent.map_or(present.own, |recent| {
            (recent.first_slot(slot) / PAGE_TOKENS).min(present.own)
        });
        let own = present.pages() - 1;
        let latest = present.left + latest.saturating_sub(present.first);
        pick.left.blocks.clear();
        pick.plan.blocks.clear();
        let mut query = RowQuery {
            isa: self.exec.isa,
            layer: self.layer,
            head: pick.head,
            own,
            latest,
            queries: &self.q[from..from + of_head * dim],
            bounds: reads.bounds(self.layer, (group_index, place), pick.head),
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
        let read = present.sinks + pick.plan.count();
        reads.count(read, present.count());
        pick.part(&present);
    }
}

impl Pick {
    /// Whether it is of this row and KV head.
    pub(super) fn is_of(&self, segment: usize, row: usize, head: usize) -> bool {
        (self.segment, self.row, self.head) == (segment, row, head)
    }

    /// Takes the pages that a keep method has left out of the plan, which then speaks of blocks alone, those of
    /// the first tokens included.
    fn part(&mut self, present: &Present) {
        let &Present {
            sinks, left, first, ..
        } = present;
        if left == 0 && first == 0 {
            return;
        }
        let blocks = &mut self.plan.blocks;
        let of_left = blocks.iter().take_while(|range| range.start < left);
        let of_left = of_left.map(|range| range.start..range.end.min(left));
        self.left.blocks.extend(of_left);
        blocks.retain(|range| range.end > left);
        for range in blocks.iter_mut() {
            *range = range.start.max(left) - left + first..range.end - left + first;
        }
        if sinks > 0 {
            match blocks.first_mut() {
                Some(range) if range.start == sinks => range.start = 0,
                _ => blocks.insert(0, 0..sinks),
            }
        }
    }

    fn new() -> Pick {
        Pick {
            segment: 0,
            row: 0,
            head: 0,
            plan: ReadPlan::default(),
            left: ReadPlan::default(),
        }
    }
}
