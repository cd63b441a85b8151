//! Exact attention of a batch over its contexts, built from partials over fixed key spans.

use std::ops::Range;

use longview_kernels::Exec;
use longview_kernels::attention::{
    AttentionScratch, PageRef, Partials, QueryRows, SPAN_TOKENS, attend_span,
};
use longview_kernels::page::PAGE_TOKENS;

use crate::batch::Batch;
use crate::context::{Context, first_visible};
use crate::error::KvError;
use crate::feed::{Feed, Missing, Slices};
use crate::layout::Group;

/// Blocks in a key span.
const SPAN_BLOCKS: usize = SPAN_TOKENS / PAGE_TOKENS;

/// Up to this many query rows a KV head, the key spans of a context are shared between threads
/// (decode); beyond it, the query rows are (prefill). Results do not depend on the choice.
const SPLIT_SPANS_UP_TO: usize = 32;

/// Query rows a prefill task works on: their queries and accumulators stay in the second-level
/// cache while the keys stream by.
const ROWS_PER_TASK: usize = 256;

/// How a layer attends.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Query heads; a multiple of the layer's KV heads.
    pub heads: usize,
    /// Factor on the scores before the softmax.
    pub scale: f32,
    /// Scores become `softcap · tanh(score / softcap)`; 0 leaves them.
    pub softcap: f32,
    /// One logit a query head that joins the softmax's denominator only.
    pub sinks: Option<&'a [f32]>,
}

/// Buffers of [`Batch::attend`], kept between calls.
#[derive(Default)]
pub struct AttendWorkspace {
    workers: Vec<Worker>,
    /// One task of a prefill or one (head, span) part of a decode step.
    tasks: Vec<Task>,
}

/// What one thread needs.
struct Worker {
    scratch: AttentionScratch,
    queries: Vec<f32>,
    visible: Vec<Range<u32>>,
    span: Partials,
}

/// Query rows of one KV head over some of the key spans, and their running softmax.
struct Task {
    segment: usize,
    head: usize,
    /// Rows inside the segment.
    rows: Range<usize>,
    spans: Range<usize>,
    partials: Partials,
    /// `[rows × group][v_dim]`, once finished.
    out: Vec<f32>,
}

impl Batch<'_> {
    /// Attention of every row of layer `layer` over its context, the batch's own tokens included.
    ///
    /// `q` is `[rows][heads][head_dim]` after rotary embedding, `out` `[rows][heads][v_dim]`.
    /// The batch's keys and values must have been appended. Where blocks of a context are not in
    /// memory, layers must be asked for in ascending order, each once a pass: that is the order in
    /// which blocks are read back.
    ///
    /// # Errors
    /// [`KvError::Lost`] when a block cannot be read back; the pass has to be given up.
    pub fn attend(
        &self,
        exec: &Exec,
        layer: usize,
        attention: &Attention<'_>,
        q: &[f32],
        out: &mut [f32],
        workspace: &mut AttendWorkspace,
    ) -> Result<(), KvError> {
        let pool = &exec.pool;
        let call = Call {
            batch: self,
            exec,
            layer,
            attention,
            q,
        };
        workspace.workers.resize_with(pool.threads(), Worker::new);
        let planned = call.plan(&mut workspace.tasks, pool.threads());
        let tasks = &mut workspace.tasks[..planned];
        let workers: Vec<_> = workspace
            .workers
            .iter_mut()
            .map(std::sync::Mutex::new)
            .collect();
        match self.feed() {
            None => call.wave(tasks, &workers, 0..usize::MAX, None),
            Some(feed) => {
                let mut rest = &mut tasks[..];
                for segment in 0..self.segments().len() {
                    let count = rest
                        .iter()
                        .take_while(|task| task.segment == segment)
                        .count();
                    let (own, others) = rest.split_at_mut(count);
                    rest = others;
                    call.stream(feed, segment, own, &workers)?;
                }
            }
        }
        call.merge_and_finish(tasks);
        call.scatter(tasks, out);
        Ok(())
    }
}

/// What the threads of a pool work with, each its own.
type Workers<'w> = [std::sync::Mutex<&'w mut Worker>];

/// The arguments of one [`Batch::attend`].
struct Call<'a> {
    batch: &'a Batch<'a>,
    exec: &'a Exec,
    layer: usize,
    attention: &'a Attention<'a>,
    q: &'a [f32],
}

impl<'a> Call<'a> {
    /// Writes the tasks of this call over `tasks`, heaviest first, and returns how many they are.
    fn plan(&self, tasks: &mut Vec<Task>, threads: usize) -> usize {
        let mut planned = 0;
        let mut push = |segment, head, rows: Range<usize>, spans: Range<usize>| {
            if planned == tasks.len() {
                tasks.push(Task::new());
            }
            tasks[planned].set(segment, head, rows, spans);
            planned += 1;
        };
        for segment in 0..self.batch.segments().len() {
            let (context, group, _) = self.place(segment);
            let rows = self.batch.rows_of(segment).len();
            let group_size = self.attention.heads / group.kind.kv_heads;
            let start = context.len();
            let spans_of = |rows: &Range<usize>| {
                first_visible(group, start + rows.start) / SPAN_TOKENS
                    ..(start + rows.end).div_ceil(SPAN_TOKENS)
            };
            // Spans that are read back come one after another, so they cannot be split.
            let streamed = self.missing(segment).is_some_and(|spans| !spans.is_empty());
            if rows * group_size <= SPLIT_SPANS_UP_TO && !streamed {
                let spans = spans_of(&(0..rows));
                for head in 0..group.kind.kv_heads {
                    spans
                        .clone()
                        .for_each(|span| push(segment, head, 0..rows, span..span + 1));
                }
                continue;
            }
            // At least a few tasks a thread, or the last one decides the time.
            let wanted_tasks = (4 * threads).div_ceil(group.kind.kv_heads);
            let step = (ROWS_PER_TASK / group_size)
                .min(rows.div_ceil(wanted_tasks))
                .max(1)
                .next_multiple_of(8);
            for from in (0..rows).step_by(step).rev() {
                let task_rows = from..(from + step).min(rows);
                for head in 0..group.kind.kv_heads {
                    push(segment, head, task_rows.clone(), spans_of(&task_rows));
                }
            }
        }
        planned
    }

    /// The tasks of one segment, some of whose spans are read back: what is in memory is attended to
    /// at once, and the spans between when they have come.
    fn stream(
        &self,
        feed: &Feed,
        segment: usize,
        tasks: &mut [Task],
        workers: &Workers<'_>,
    ) -> Result<(), KvError> {
        let (context, _, place) = self.place(segment);
        let group = context.layout().layers[self.layer].0;
        let mut from = 0;
        for missing in feed.missing(segment, group) {
            self.wave(tasks, workers, from..missing.span, None);
            let slices = feed.receive(segment, group, place, missing)?;
            let span = missing.span..missing.span + 1;
            self.wave(tasks, workers, span, Some((missing, &slices)));
            feed.give_back(slices);
            from = missing.span + 1;
        }
        self.wave(tasks, workers, from..usize::MAX, None);
        Ok(())
    }

    /// Goes on with `tasks` over those of their spans that lie in `spans`. `read` has the blocks that
    /// are not in memory.
    fn wave(
        &self,
        tasks: &mut [Task],
        workers: &Workers<'_>,
        spans: Range<usize>,
        read: Option<(&Missing, &Slices)>,
    ) {
        if tasks.iter().all(|task| task.overlap(&spans).is_empty()) {
            return;
        }
        self.exec.pool.for_each(tasks, |_, task, worker| {
            // Each worker number is held by one running task at a time, so this never waits.
            let mut worker = workers[worker]
                .lock()
                .unwrap_or_else(|error| error.into_inner());
            let spans = task.overlap(&spans);
            self.run(task, spans, read, &mut worker);
        });
    }

    /// The spans of a segment that are read back in this layer.
    fn missing(&self, segment: usize) -> Option<&[Missing]> {
        let group = self.place(segment).0.layout().layers[self.layer].0;
        Some(self.batch.feed()?.missing(segment, group))
    }

    /// The running softmax of a task over some of its spans, which follow those before.
    fn run(
        &self,
        task: &mut Task,
        spans: Range<usize>,
        read: Option<(&Missing, &Slices)>,
        worker: &mut Worker,
    ) {
        let (context, group, place) = self.place(task.segment);
        let group_index = context.layout().layers[self.layer].0;
        let (head_dim, v_dim) = (group.kind.head_dim, group.kind.v_dim);
        let (heads, group_size) = (
            self.attention.heads,
            self.attention.heads / group.kind.kv_heads,
        );
        let first_row = self.batch.rows_of(task.segment).start;
        let count = task.rows.len() * group_size;

        worker.queries.clear();
        for row in task.rows.clone() {
            let from = ((first_row + row) * heads + task.head * group_size) * head_dim;
            let queries = &self.q[from..from + group_size * head_dim];
            worker
                .queries
                .extend(queries.iter().map(|x| x * self.attention.scale));
        }
        if spans.start == task.spans.start {
            task.partials.reset(count, v_dim);
        }
        for span in spans {
            let end = (context.len() + task.rows.end).min((span + 1) * SPAN_TOKENS);
            let last = end.div_ceil(PAGE_TOKENS);
            let (mut pages, mut used) = ([PageRef { k: &[], v: &[] }; SPAN_BLOCKS], 0);
            for index in span * SPAN_BLOCKS..last {
                let page = match context.block(group_index, index) {
                    Some(block) => Some(block.page(group, place, task.head)),
                    None => read.and_then(|(missing, slices)| {
                        let at = missing.blocks.binary_search(&index).ok()?;
                        Some(group.page(slices.of(at), task.head))
                    }),
                };
                // A block that a window layer has dropped is seen by no row of the batch.
                if let Some(page) = page {
                    pages[used] = page;
                    used += 1;
                }
            }
            let slots = (last - used) * PAGE_TOKENS..last * PAGE_TOKENS;
            worker.visible.clear();
            for row in task.rows.clone() {
                let position = context.len() + row;
                let slot = |at: usize| (at.clamp(slots.start, slots.end) - slots.start) as u32;
                let range = slot(first_visible(group, position))..slot(position + 1);
                worker
                    .visible
                    .extend(std::iter::repeat_n(range, group_size));
            }
            worker.span.reset(count, v_dim);
            let rows = QueryRows {
                q: &worker.queries,
                visible: &worker.visible,
                softcap: self.attention.softcap,
            };
            attend_span(
                self.exec.isa,
                &group.geometry,
                &pages[..used],
                &rows,
                &mut worker.scratch,
                &mut worker.span,
            );
            task.partials.merge(self.exec.isa, &worker.span);
        }
    }

    /// Merges the parts of each decode head left to right and divides by the sums. The first task
    /// of every (segment, head, rows) holds the result.
    fn merge_and_finish(&self, tasks: &mut [Task]) {
        let mut heads: Vec<&mut [Task]> = tasks.chunk_by_mut(Task::is_continued_by).collect();
        self.exec.pool.for_each(&mut heads, |_, parts, _| {
            let Some((first, rest)) = parts.split_first_mut() else {
                return;
            };
            for part in rest {
                first.partials.merge(self.exec.isa, &part.partials);
            }
            let group = self.place(first.segment).1;
            let group_size = self.attention.heads / group.kind.kv_heads;
            let count = first.rows.len() * group_size;
            first.out.resize(count * group.kind.v_dim, 0.0);
            let sinks: Option<Vec<f32>> = self.attention.sinks.map(|sinks| {
                let of_head = &sinks[first.head * group_size..(first.head + 1) * group_size];
                of_head.iter().copied().cycle().take(count).collect()
            });
            first
                .partials
                .finish(self.exec.isa, sinks.as_deref(), &mut first.out);
        });
    }

    /// Copies the results of the tasks to their rows.
    fn scatter(&self, tasks: &[Task], out: &mut [f32]) {
        let pool = &self.exec.pool;
        let row_len = out.len() / self.batch.rows();
        let mut by_segment: Vec<Vec<&Task>> = Vec::new();
        by_segment.resize_with(self.batch.segments().len(), Vec::new);
        for task in tasks.iter().filter(|task| !task.out.is_empty()) {
            by_segment[task.segment].push(task);
        }
        for (segment, tasks) in by_segment.iter().enumerate() {
            let rows = self.batch.rows_of(segment);
            let rows_out = &mut out[rows.start * row_len..rows.end * row_len];
            let chunk_rows = rows.len().div_ceil(pool.threads());
            pool.for_each_chunk(rows_out, chunk_rows * row_len, |chunk, part, _| {
                let first = chunk * chunk_rows;
                let covered = first..first + part.len() / row_len;
                for task in tasks {
                    let from = task.rows.start.max(covered.start);
                    let to = task.rows.end.min(covered.end);
                    let head_len = task.out.len() / task.rows.len();
                    for row in from..to {
                        let source = &task.out[(row - task.rows.start) * head_len..][..head_len];
                        let target = (row - first) * row_len + task.head * head_len;
                        part[target..target + head_len].copy_from_slice(source);
                    }
                }
            });
        }
    }

    /// The context of a segment, the layer's group, and its place in the group's blocks.
    fn place(&self, segment: usize) -> (&'a Context, &'a Group, usize) {
        let context: &'a Context = self.batch.segments()[segment].context;
        let layout = context.layout();
        let (group, place) = layout.layers[self.layer];
        (context, &layout.groups[group], place)
    }
}

impl Worker {
    fn new() -> Worker {
        Worker {
            scratch: AttentionScratch::new(),
            queries: Vec::new(),
            visible: Vec::new(),
            span: Partials::new(0, 0),
        }
    }
}

impl Task {
    fn new() -> Task {
        Task {
            segment: 0,
            head: 0,
            rows: 0..0,
            spans: 0..0,
            partials: Partials::new(0, 0),
            out: Vec::new(),
        }
    }

    fn set(&mut self, segment: usize, head: usize, rows: Range<usize>, spans: Range<usize>) {
        (self.segment, self.head, self.rows, self.spans) = (segment, head, rows, spans);
        self.out.clear();
    }

    /// Those of its spans that lie in `spans`.
    fn overlap(&self, spans: &Range<usize>) -> Range<usize> {
        self.spans.start.max(spans.start)..self.spans.end.min(spans.end)
    }

    fn is_continued_by(&self, next: &Task) -> bool {
        (self.segment, self.head, &self.rows) == (next.segment, next.head, &next.rows)
    }
}
