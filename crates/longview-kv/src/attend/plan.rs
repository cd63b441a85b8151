//! How the work of a layer is cut into tasks: who reads which keys for which rows and heads.

use std::ops::Range;

use longview_kernels::attention::{Partials, SPAN_TOKENS};

use super::picked::Pick;
use super::{Call, HEADS_PER_TASK};

/// Up to this many query rows a KV head, the key spans of a context are shared between threads
/// (decode); beyond it, the query rows are (prefill). Results do not depend on the choice.
const SPLIT_SPANS_UP_TO: usize = 32;

/// Query rows a prefill task works on: their queries and accumulators stay in the second-level cache while the
/// keys stream by, and a page that is converted or split serves them all.
const ROWS_PER_TASK: usize = 512;

/// Decode tasks a thread at least, where there are heads to part: with fewer, the last one decides
/// the time.
pub(super) const DECODE_TASKS_PER_THREAD: usize = 8;
/// Query rows of some KV heads over some of the key spans, and their running softmax.
pub(super) struct Task {
    pub(super) segment: usize,
    pub(super) heads: Range<usize>,
    /// Rows inside the segment.
    pub(super) rows: Range<usize>,
    pub(super) spans: Range<usize>,
    pub(super) source: Source,
    /// `[heads][rows][group]`
    pub(super) partials: Partials,
}

/// Where the keys of a task's spans are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// In blocks, by position.
    Blocks,
    /// In what a keep method left of earlier tokens.
    Stream,
    /// In the blocks that this pick says.
    Picked(usize),
    /// In what a keep method left, in the pages that this pick says.
    PickedStream(usize),
    /// In blocks that several segments read, as this piece of them.
    Shared(usize),
}

/// How the work of a segment is cut: of the rows that read everything, and of those from `picked_from` on, whose
/// pages a read method picks.
pub(super) struct Cuts {
    /// The first task.
    pub(super) first: usize,
    pub(super) whole: Sources,
    pub(super) picked_from: usize,
    pub(super) picked: Sources,
}

/// How the work of some rows is cut: what a keep method left comes before the blocks.
pub(super) struct Sources {
    pub(super) streams: Cut,
    pub(super) blocks: Cut,
}

/// How the work of a segment is cut into tasks, `[parts][row ranges][head ranges]` from `first` on.
pub(super) struct Cut {
    pub(super) first: usize,
    /// Parts of the keys, in order: spans in a decode step, the whole in a prefill.
    pub(super) parts: usize,
    pub(super) row_step: usize,
    pub(super) row_tasks: usize,
    pub(super) head_step: usize,
    pub(super) head_tasks: usize,
}

impl Call<'_, '_> {
    /// Writes the tasks of this call over `tasks` from `planned` on, how they were cut over `cuts` and
    /// what read methods are to plan over `picks`; returns how many tasks there are then, and how many
    /// picks. What pieces read is left out.
    pub(super) fn plan(
        &self,
        tasks: &mut Vec<Task>,
        mut planned: usize,
        cuts: &mut Vec<Cuts>,
        picks: &mut Vec<Pick>,
    ) -> (usize, usize) {
        let mut picked = 0;
        cuts.clear();
        let sharing = self.sharing();
        for segment in 0..self.batch.segments().len() {
            if sharing.is_some_and(|sharing| sharing.has(segment)) {
                cuts.push(Cuts::NONE);
                continue;
            }
            let (context, group, _) = self.place(segment);
            let first = planned;
            let of_method = self.picked_rows(segment);
            let rows = of_method.start;
            let streams = self.plan_streams(segment, rows, tasks, &mut planned);
            let start = context.len();
            let places = &context.places;
            // The first tokens are seen by every row where they are held apart.
            let has_sinks = group.recent.is_some_and(|recent| recent.sinks.is_some());
            let spans_of = |rows: &Range<usize>| {
                let first = match has_sinks {
                    true => 0,
                    false => places.slot(context.first_token(group, start + rows.start)),
                };
                first / SPAN_TOKENS..places.slot(start + rows.end).div_ceil(SPAN_TOKENS)
            };
            let all_spans = match rows {
                0 => 0..0,
                _ => spans_of(&(0..rows)),
            };
            // Spans that are read back come one after another, so they cannot be split.
            let streamed = self.missing(segment).is_some_and(|spans| !spans.is_empty());
            let parts = if streamed { 1 } else { all_spans.len() };
            let cut = self.cut(planned, group.kind.kv_heads, rows, parts);
            for part in 0..cut.parts {
                // The last rows see most: heaviest first.
                for from in (0..rows).step_by(cut.row_step).rev() {
                    let task_rows = from..(from + cut.row_step).min(rows);
                    let spans = if cut.parts == 1 {
                        spans_of(&task_rows)
                    } else {
                        all_spans.start + part..all_spans.start + part + 1
                    };
                    for first in (0..group.kind.kv_heads).step_by(cut.head_step) {
                        let heads = first..(first + cut.head_step).min(group.kind.kv_heads);
                        if planned == tasks.len() {
                            tasks.push(Task::new());
                        }
                        tasks[planned].set(segment, heads, task_rows.clone(), spans.clone());
                        planned += 1;
                    }
                }
            }
            let whole = Sources {
                streams,
                blocks: cut,
            };
            let of_picks =
                self.plan_picked(segment, &of_method, tasks, &mut planned, picks, &mut picked);
            cuts.push(Cuts {
                first,
                whole,
                picked_from: of_method.start,
                picked: of_picks,
            });
        }
        (planned, picked)
    }

    /// Cuts `rows` rows of `kv_heads` heads over keys that may be read in `parts` parts.
    pub(super) fn cut(&self, first: usize, kv_heads: usize, rows: usize, parts: usize) -> Cut {
        let threads = self.exec.pool.threads();
        let group_size = self.attention.heads / kv_heads;
        let (parts, row_step, head_step) = if rows == 0 {
            (0, 1, kv_heads)
        } else if rows * group_size <= SPLIT_SPANS_UP_TO {
            let segments = self.batch.segments().len();
            let head_tasks = (DECODE_TASKS_PER_THREAD * threads)
                .div_ceil(parts * segments)
                .min(kv_heads);
            (
                parts,
                rows,
                kv_heads.div_ceil(head_tasks).min(HEADS_PER_TASK),
            )
        } else {
            // At least a few tasks a thread, or the last one decides the time.
            let wanted_tasks = (4 * threads).div_ceil(kv_heads);
            let step = (ROWS_PER_TASK / group_size)
                .min(rows.div_ceil(wanted_tasks))
                .max(1)
                .next_multiple_of(8);
            (1, step, 1)
        };
        Cut {
            first,
            parts,
            row_step,
            row_tasks: rows.div_ceil(row_step),
            head_step,
            head_tasks: kv_heads.div_ceil(head_step),
        }
    }
}

impl Cuts {
    /// Nothing is read.
    pub(super) const NONE: Cuts = Cuts {
        first: 0,
        whole: Sources::NONE,
        picked_from: usize::MAX,
        picked: Sources::NONE,
    };
}

impl Sources {
    pub(super) const NONE: Sources = Sources {
        streams: Cut::NONE,
        blocks: Cut::NONE,
    };
}

impl Cut {
    pub(super) const NONE: Cut = Cut {
        first: 0,
        parts: 0,
        row_step: 1,
        row_tasks: 0,
        head_step: 1,
        head_tasks: 0,
    };

    /// The task that holds part `part` of `row` and `head`.
    pub(super) fn task(&self, part: usize, row: usize, head: usize) -> usize {
        let rows = self.row_tasks - 1 - row / self.row_step;
        let heads = head / self.head_step;
        self.first + (part * self.row_tasks + rows) * self.head_tasks + heads
    }
}

impl Task {
    pub(super) fn new() -> Task {
        Task {
            segment: 0,
            heads: 0..0,
            rows: 0..0,
            spans: 0..0,
            source: Source::Blocks,
            partials: Partials::new(0, 0),
        }
    }

    pub(super) fn set(
        &mut self,
        segment: usize,
        heads: Range<usize>,
        rows: Range<usize>,
        spans: Range<usize>,
    ) {
        (self.segment, self.heads, self.rows, self.spans) = (segment, heads, rows, spans);
        self.source = Source::Blocks;
    }

    /// Those of its spans that lie in `spans`.
    pub(super) fn overlap(&self, spans: &Range<usize>) -> Range<usize> {
        self.spans.start.max(spans.start)..self.spans.end.min(spans.end)
    }
}
