//! Attention of a batch over its contexts, built from partials over fixed key spans: exact over all
//! that they hold, or over what their methods say.

mod picked;
mod shared;
mod streams;
mod watch;

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use longview_kernels::attention::{
    AttentionScratch, PageRef, Partials, QueryRows, SPAN_TOKENS, attend_further,
};
use longview_kernels::page::PAGE_TOKENS;
use longview_kernels::{Exec, Isa};

use crate::batch::Batch;
use crate::context::{Context, RopeSet};
use crate::error::KvError;
use crate::feed::{Feed, Missing, Slices};
use crate::layout::{Group, LayerState, Recent};
use crate::pattern::{QueryBlock, Sparse};
use crate::places::Stretch;
use crate::read::Best;
use picked::Pick;
use shared::Pieces;

/// Blocks in a key span.
const SPAN_BLOCKS: usize = SPAN_TOKENS / PAGE_TOKENS;

/// Up to this many query rows a KV head, the key spans of a context are shared between threads
/// (decode); beyond it, the query rows are (prefill). Results do not depend on the choice.
const SPLIT_SPANS_UP_TO: usize = 32;

/// Query rows a prefill task works on: their queries and accumulators stay in the second-level
/// cache while the keys stream by.
const ROWS_PER_TASK: usize = 256;

/// KV heads a decode task walks at most. Pages of neighbouring heads lie one after another in a
/// block, so a task over several heads reads longer runs of memory.
const HEADS_PER_TASK: usize = 8;

/// Decode tasks a thread at least, where there are heads to part: with fewer, the last one decides
/// the time.
const DECODE_TASKS_PER_THREAD: usize = 8;

/// How a layer attends.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// Query heads; a multiple of the layer's KV heads.
    pub heads: usize,
    /// Factor on the scores before the softmax.
    pub scale: f32,
    /// Scores become `softcap · tanh(score / softcap)`; 0 leaves them.
    pub softcap: f32,
    /// One logit a query head that joins the softmax's denominator only.
    pub sinks: Option<&'a [f32]>,
    /// Rotates queries `[rows][head_dim]` of a context with this rotary set forward by so many
    /// positions, or back, as the layer's rotary embedding does, without scaling them: for keys that
    /// were rotated to other positions than where they are now, because text has moved.
    pub rotate: &'a (dyn Fn(RopeSet, isize, &mut [f32]) + Sync),
}

impl std::fmt::Debug for Attention<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attention")
            .field("heads", &self.heads)
            .field("scale", &self.scale)
            .field("softcap", &self.softcap)
            .field("sinks", &self.sinks)
            .finish_non_exhaustive()
    }
}

/// Buffers of [`Batch::attend`], kept between calls.
#[derive(Default)]
pub struct AttendWorkspace {
    /// One for each thread, which alone locks it.
    workers: Vec<Mutex<Worker>>,
    tasks: Vec<Task>,
    /// One for each segment.
    cuts: Vec<Cuts>,
    /// What read methods plan.
    picks: Vec<Pick>,
    /// Of what segments have in common.
    pieces: Pieces,
}

impl AttendWorkspace {
    /// Pages that were read since the workspace was made, each counted as often as it was fetched for
    /// some rows.
    pub fn pages_read(&self) -> u64 {
        self.workers.iter().map(|worker| lock(worker).pages).sum()
    }
}

/// What one thread needs.
struct Worker {
    scratch: AttentionScratch,
    queries: Vec<f32>,
    visible: Vec<Range<u32>>,
    /// What a pattern says.
    blocks: Vec<Range<usize>>,
    /// What read methods search with.
    best: Best,
    partials: Partials,
    /// Of the spans before one that is read in several parts; of the blocks of a row.
    apart: Partials,
    /// Pages read so far.
    pages: u64,
}

/// Query rows of some KV heads over some of the key spans, and their running softmax.
struct Task {
    segment: usize,
    heads: Range<usize>,
    /// Rows inside the segment.
    rows: Range<usize>,
    spans: Range<usize>,
    source: Source,
    /// `[heads][rows][group]`
    partials: Partials,
}

/// Where the keys of a task's spans are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// In blocks, by position.
    Blocks,
    /// In what a keep method left of earlier tokens.
    Stream,
    /// In the blocks that this pick says.
    Picked(usize),
    /// In blocks that several segments read, as this piece of them.
    Shared(usize),
}

/// How the work of a segment is cut: what a keep method left comes before the blocks.
struct Cuts {
    streams: Cut,
    /// Of the rows before `picked_from`.
    blocks: Cut,
    /// The first row whose blocks a read method picks; all after it are such, too.
    picked_from: usize,
    picked: Cut,
}

/// How the work of a segment is cut into tasks, `[parts][row ranges][head ranges]` from `first` on.
struct Cut {
    first: usize,
    /// Parts of the keys, in order: spans in a decode step, the whole in a prefill.
    parts: usize,
    row_step: usize,
    row_tasks: usize,
    head_step: usize,
    head_tasks: usize,
}

impl Batch<'_> {
    /// Attention of every row of layer `layer` over its context, the batch's own tokens included.
    ///
    /// `q` is `[rows][heads][head_dim]` after rotary embedding, `out` `[rows][heads][v_dim]`.
    /// The batch's keys and values must have been appended. Where blocks of a context are not in
    /// memory, layers must be asked for in ascending order, each once a pass: that is the order in
    /// which blocks are read back. Where they are, and the workspace has seen a batch of this size,
    /// nothing is allocated.
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
        let threads = exec.pool.threads();
        let call = Call {
            batch: self,
            exec,
            layer,
            attention,
            q,
            picks: &[],
        };
        let AttendWorkspace {
            workers,
            tasks,
            cuts,
            picks,
            pieces,
        } = workspace;
        workers.resize_with(threads, || Mutex::new(Worker::new()));
        call.plan_shared(tasks, pieces);
        let (planned, picked) = call.plan(tasks, pieces.tasks(), cuts, picks);
        let tasks = &mut tasks[..planned];
        // All of them now, for it is chance which thread comes to work first.
        workers
            .iter()
            .for_each(|worker| call.reserve(tasks, &mut lock(worker)));
        let workers = &**workers;
        if picked > 0 {
            let picks = &mut picks[..picked];
            exec.pool.for_each(picks, |_, pick, worker| {
                call.pick(pick, &mut lock(&workers[worker]));
            });
        }
        let call = Call {
            picks: &picks[..picked],
            ..call
        };
        let (shared, own) = tasks.split_at_mut(pieces.tasks());
        call.attend_shared(pieces, shared, workers);
        match self.feed() {
            None => call.wave(own, workers, 0..usize::MAX, None),
            Some(feed) => {
                let mut rest = own;
                for segment in 0..self.segments().len() {
                    let end = cuts
                        .get(segment + 1)
                        .map_or(planned, |cut| cut.streams.first);
                    let (own, others) = rest.split_at_mut(end - cuts[segment].streams.first);
                    rest = others;
                    call.stream(feed, segment, own, workers)?;
                }
            }
        }
        let finish = Finish {
            call: &call,
            tasks,
            cuts,
            pieces,
        };

        // What a thread finishes at once: a row, or one KV head of it where rows are few.
        let (_, group, _) = call.place(0);
        let (kv_heads, v_dim) = (group.kind.kv_heads, group.kind.v_dim);
        let units = if self.rows() < 4 * threads {
            kv_heads
        } else {
            1
        };
        let heads_per_unit = kv_heads / units;
        let chunk = attention.heads / units * v_dim;
        exec.pool.for_each_chunk(out, chunk, |index, out, worker| {
            let first = index % units * heads_per_unit;
            let heads = first..first + heads_per_unit;
            let mut worker = lock(&workers[worker]);
            finish.row(index / units, heads, out, &mut worker);
        });
        call.watch(workers)
    }
}

/// Each worker number is held by one running task at a time, so this never waits.
fn lock(worker: &Mutex<Worker>) -> MutexGuard<'_, Worker> {
    worker.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The arguments of one [`Batch::attend`].
#[derive(Clone, Copy)]
struct Call<'a, 'b> {
    batch: &'a Batch<'b>,
    exec: &'a Exec,
    layer: usize,
    attention: &'a Attention<'a>,
    q: &'a [f32],
    /// What read methods have planned.
    picks: &'a [Pick],
}

impl<'a> Call<'a, '_> {
    /// Writes the tasks of this call over `tasks` from `planned` on, how they were cut over `cuts` and
    /// what read methods are to plan over `picks`; returns how many tasks there are then, and how many
    /// picks. What pieces read is left out.
    fn plan(
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
            let streams = self.plan_streams(segment, tasks, &mut planned);
            let of_method = self.picked_rows(segment);
            let rows = of_method.start;
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
            let picked_cut =
                self.plan_picked(segment, &of_method, tasks, &mut planned, picks, &mut picked);
            cuts.push(Cuts {
                streams,
                blocks: cut,
                picked_from: of_method.start,
                picked: picked_cut,
            });
        }
        (planned, picked)
    }

    /// Makes room for any of `tasks` in a worker's buffers.
    fn reserve(&self, tasks: &[Task], worker: &mut Worker) {
        for task in tasks {
            let group = self.place(task.segment).1;
            let group_size = self.attention.heads / group.kind.kv_heads;
            let rows = task.rows.len() * group_size;
            let all_rows = task.heads.len() * rows;
            for partials in [&mut worker.partials, &mut worker.apart] {
                if all_rows > partials.rows() || group.kind.v_dim > partials.v_dim() {
                    partials.reset(all_rows, group.kind.v_dim);
                }
            }
            worker.scratch.reserve(&group.geometry, rows);
            if let Some(recent) = group.recent {
                // That of the first tokens is the same.
                let groups = &self.place(task.segment).0.layout().groups;
                worker.scratch.reserve(&groups[recent.group].geometry, rows);
            }
            let numbers = all_rows * group.kind.head_dim;
            worker.queries.clear();
            worker.queries.reserve(numbers);
            worker.visible.clear();
            worker.visible.reserve(rows);
        }
    }

    /// Cuts `rows` rows of `kv_heads` heads over keys that may be read in `parts` parts.
    fn cut(&self, first: usize, kv_heads: usize, rows: usize, parts: usize) -> Cut {
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

    /// The tasks of one segment, some of whose spans are read back: what is in memory is attended to
    /// at once, and the spans between when they have come.
    fn stream(
        &self,
        feed: &Feed,
        segment: usize,
        tasks: &mut [Task],
        workers: &[Mutex<Worker>],
    ) -> Result<(), KvError> {
        let group = self.place(segment).0.layout().layers[self.layer].0;
        let mut from = 0;
        for missing in feed.missing(segment, group) {
            self.wave(tasks, workers, from..missing.span, None);
            let slices = feed.receive(missing)?;
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
        workers: &[Mutex<Worker>],
        spans: Range<usize>,
        read: Option<(&Missing, &Slices)>,
    ) {
        if tasks.iter().all(|task| task.overlap(&spans).is_empty()) {
            return;
        }
        self.exec.pool.for_each(tasks, |_, task, worker| {
            let spans = task.overlap(&spans);
            self.run(task, spans, read, &mut lock(&workers[worker]));
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
        if task.source == Source::Stream {
            return self.run_stream(task, spans, worker);
        }
        let (context, group, place) = self.place(task.segment);
        let group_index = context.layout().layers[self.layer].0;
        let v_dim = group.kind.v_dim;
        let group_size = self.attention.heads / group.kind.kv_heads;
        self.gather(task, worker);
        let count = task.heads.len() * task.rows.len() * group_size;
        if spans.start == task.spans.start {
            task.partials.reset(count, v_dim);
        }
        let end = context.len() + task.rows.end;
        let mut turned = 0;
        // A span's parts are merged before it joins the spans before it: whoever attends to spans in
        // tasks of their own has no other choice.
        let in_parts = group.recent.is_some() || !context.places.is_plain();
        let plan = match task.source {
            Source::Picked(at) => Some(&self.picks[at].plan),
            Source::Blocks | Source::Stream | Source::Shared(_) => None,
        };
        for span in spans {
            let blocks = span * SPAN_BLOCKS..(span + 1) * SPAN_BLOCKS;
            if plan.is_some_and(|plan| !plan.touches(&blocks)) {
                continue;
            }
            let slots = span * SPAN_TOKENS..(span + 1) * SPAN_TOKENS;
            if in_parts {
                std::mem::swap(&mut task.partials, &mut worker.apart);
                task.partials.reset(count, v_dim);
            }
            for (covered, stretch) in context.places.within(slots, end) {
                if stretch.shift != turned {
                    self.gather(task, worker);
                    (self.attention.rotate)(
                        context.identity().rope,
                        stretch.shift,
                        &mut worker.queries,
                    );
                    turned = stretch.shift;
                }
                let part = Part {
                    covered,
                    stretch,
                    read,
                };
                let in_memory = Part {
                    read: None,
                    ..part.clone()
                };
                let of = |group, seen| Blocks { group, place, seen };
                let (sinks, recent) = match group.recent {
                    None => (None, None),
                    Some(recent) => (
                        recent.sinks.map(|sinks| of(sinks, Seen::Sinks(recent))),
                        Some(of(recent.group, Seen::From(recent))),
                    ),
                };
                let older = match group.recent {
                    None => of(group_index, Seen::All),
                    Some(recent) => of(group_index, Seen::Before(recent)),
                };
                let mut attend = |task: &mut Task, chosen: &Chosen<'_>, worker: &mut Worker| {
                    if let Some(sinks) = &sinks {
                        self.attend_blocks(task, sinks, &in_memory, chosen, worker);
                    }
                    self.attend_blocks(task, &older, &part, chosen, worker);
                    if let Some(recent) = &recent {
                        self.attend_blocks(task, recent, &in_memory, chosen, worker);
                    }
                };
                if let Some(plan) = plan {
                    let chosen = Chosen {
                        rows: task.rows.clone(),
                        blocks: Some(&plan.blocks),
                    };
                    attend(task, &chosen, worker);
                    continue;
                }
                let full = group.kind.state == LayerState::Full;
                let Some(sparse) = context.sparse.as_ref().filter(|_| full) else {
                    let all = Chosen {
                        rows: task.rows.clone(),
                        blocks: None,
                    };
                    attend(task, &all, worker);
                    continue;
                };
                self.by_pattern(sparse, task, worker, &mut attend);
            }
            if in_parts {
                worker.apart.merge(self.exec.isa, &task.partials);
                std::mem::swap(&mut task.partials, &mut worker.apart);
            }
        }
    }

    /// Calls `attend` for the rows of a task that a pattern speaks of, one block of queries at a time,
    /// and for the others.
    fn by_pattern(
        &self,
        sparse: &Sparse,
        task: &mut Task,
        worker: &mut Worker,
        attend: &mut dyn FnMut(&mut Task, &Chosen<'_>, &mut Worker),
    ) {
        let context: &Context = self.batch.segments()[task.segment].context;
        let start = context.len();
        let tokens = start + task.rows.start..start + task.rows.end;
        let mut spoken_of = sparse.rows(tokens.clone());
        let mut blocks = std::mem::take(&mut worker.blocks);
        while !spoken_of.is_empty() {
            let block = context.places.slot(spoken_of.start) / PAGE_TOKENS;
            let same = |token: &usize| context.places.slot(*token) / PAGE_TOKENS == block;
            let end = spoken_of.clone().take_while(same).last();
            let end = end.map_or(spoken_of.end, |token| token + 1);
            let query = QueryBlock {
                layer: self.layer,
                block,
            };
            sparse.blocks(&query, &mut blocks);
            let chosen = Chosen {
                rows: spoken_of.start - start..end - start,
                blocks: Some(&blocks),
            };
            attend(task, &chosen, worker);
            spoken_of.start = end;
        }
        worker.blocks = blocks;
        let rest = Chosen {
            rows: spoken_of.end - start..task.rows.end,
            blocks: None,
        };
        if !rest.rows.is_empty() {
            attend(task, &rest, worker);
        }
    }

    /// Goes on with a task's rows `chosen` over what `blocks` hold of a part of the keys.
    fn attend_blocks(
        &self,
        task: &mut Task,
        blocks: &Blocks,
        part: &Part<'_>,
        chosen: &Chosen<'_>,
        worker: &mut Worker,
    ) {
        let Part {
            covered,
            stretch,
            read,
        } = part;
        let context: &Context = self.batch.segments()[task.segment].context;
        let group = &context.layout().groups[blocks.group];
        let layer_group = self.place(task.segment).1;
        let v_dim = group.kind.v_dim;
        let group_size = self.attention.heads / group.kind.kv_heads;
        let first = covered.start / PAGE_TOKENS;
        let last = covered.end.div_ceil(PAGE_TOKENS);
        let mut pages = [PageRef { k: &[], v: &[] }; SPAN_BLOCKS * HEADS_PER_TASK];
        let mut used = 0;
        // The blocks whose pages are read, as they follow one another there.
        let mut present = [0; SPAN_BLOCKS];
        let mut count = 0;
        for index in (first..last).filter(|&index| chosen.holds(index)) {
            let slice = match context.block(blocks.group, index) {
                Some(block) => Some(block.layer(group, blocks.place)),
                None => read.and_then(|(missing, slices)| {
                    let at = missing.blocks.binary_search(&index).ok()?;
                    Some(slices.of(at))
                }),
            };
            // A block that a window layer has dropped is seen by no row of the batch.
            if let Some(slice) = slice {
                for head in task.heads.clone() {
                    pages[used] = group.page(slice, head);
                    used += 1;
                }
                present[count] = index;
                count += 1;
            }
        }
        if used == 0 {
            return;
        }
        let present = &present[..count];
        // How many slots of the pages that are read lie before a slot.
        let before = |slot: usize| {
            let whole = present.partition_point(|&index| (index + 1) * PAGE_TOKENS <= slot);
            let within = present.get(whole) == Some(&(slot / PAGE_TOKENS));
            whole * PAGE_TOKENS + if within { slot % PAGE_TOKENS } else { 0 }
        };
        worker.visible.clear();
        for row in task.rows.clone() {
            let position = context.len() + row;
            let seen = blocks.seen.of(context, context.places.slot(position));
            // Tokens of this stretch are as far from its first as their slots are.
            let slot = |token: usize| {
                let slot = stretch.slot + token.saturating_sub(stretch.token);
                let slot = slot.clamp(seen.start, seen.end);
                before(slot.clamp(covered.start, covered.end)) as u32
            };
            let first = match blocks.seen {
                Seen::Sinks(_) => 0,
                _ => context.first_token(layer_group, position),
            };
            let range = if chosen.rows.contains(&row) {
                slot(first)..slot(position + 1)
            } else {
                0..0
            };
            worker
                .visible
                .extend(std::iter::repeat_n(range, group_size));
        }
        if worker.visible.iter().all(Range::is_empty) {
            return;
        }
        let rows = QueryRows {
            heads: task.heads.len(),
            q: &worker.queries,
            visible: &worker.visible,
            softcap: self.attention.softcap,
        };
        let count = task.heads.len() * task.rows.len() * group_size;
        worker.pages += used as u64;
        let fresh = task.partials.is_fresh();
        let out = match fresh {
            true => &mut task.partials,
            false => {
                worker.partials.reset(count, v_dim);
                &mut worker.partials
            }
        };
        attend_further(
            self.exec.isa,
            &group.geometry,
            &pages[..used],
            &rows,
            &mut worker.scratch,
            out,
        );
        if !fresh {
            task.partials.merge(self.exec.isa, &worker.partials);
        }
    }

    /// The queries of a task, scaled: `[heads][rows][group][head_dim]`.
    fn gather(&self, task: &Task, worker: &mut Worker) {
        let first = self.batch.rows_of(task.segment).start;
        let rows = first + task.rows.start..first + task.rows.end;
        worker.queries.clear();
        for head in task.heads.clone() {
            self.gather_rows(task.segment, head, rows.clone(), &mut worker.queries);
        }
    }

    /// Adds the queries of KV head `head` in rows `rows` of the batch to `queries`, scaled:
    /// `[rows][group][head_dim]`. The rows belong to `segment` or to segments that share with it.
    fn gather_rows(&self, segment: usize, head: usize, rows: Range<usize>, queries: &mut Vec<f32>) {
        let group = self.place(segment).1;
        let (heads, head_dim) = (self.attention.heads, group.kind.head_dim);
        let group_size = heads / group.kind.kv_heads;
        for row in rows {
            let from = (row * heads + head * group_size) * head_dim;
            let of_row = &self.q[from..from + group_size * head_dim];
            queries.extend(of_row.iter().map(|x| x * self.attention.scale));
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

/// What is left to do when all tasks are done.
struct Finish<'a, 'b> {
    call: &'a Call<'a, 'b>,
    tasks: &'a [Task],
    cuts: &'a [Cuts],
    pieces: &'a Pieces,
}

impl Finish<'_, '_> {
    /// Merges the parts of the KV heads `heads` of row `row` left to right, divides by the sums and
    /// writes the result, `[heads · group][v_dim]`.
    fn row(&self, row: usize, heads: Range<usize>, out: &mut [f32], worker: &mut Worker) {
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
        let Cuts {
            streams,
            blocks,
            picked_from,
            picked,
        } = &cuts[segment];
        let (of_blocks, row_of_cut) = match row < *picked_from {
            true => (blocks, row),
            false => (picked, row - *picked_from),
        };
        for (head, out) in heads.zip(out.chunks_exact_mut(group_size * v_dim)) {
            let sinks = call.attention.sinks;
            let sinks = sinks.map(|sinks| &sinks[head * group_size..(head + 1) * group_size]);
            // Blocks first among themselves, as one task that walks them all merges them.
            let mut merge = Merge {
                isa,
                group_size,
                v_dim,
                whole: &mut worker.apart,
                so_far: SoFar::Nothing,
            };
            for part in 0..of_blocks.parts {
                let task = &tasks[of_blocks.task(part, row_of_cut, head)];
                merge.add_row(task, head, row - task.rows.start);
            }
            if let Some(place) = place {
                call.merge_pieces(pieces, tasks, place, row, head, &mut merge);
            }
            if streams.parts == 0 {
                merge.finish(sinks, out);
                continue;
            }
            let mut whole = Merge {
                isa,
                group_size,
                v_dim,
                whole: &mut worker.partials,
                so_far: SoFar::Nothing,
            };
            for part in 0..streams.parts {
                let task = &tasks[streams.task(part, row, head)];
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
struct Merge<'t, 'w> {
    isa: Isa,
    group_size: usize,
    v_dim: usize,
    whole: &'w mut Partials,
    so_far: SoFar<'t>,
}

/// What a [`Merge`] has.
enum SoFar<'t> {
    Nothing,
    One(&'t Partials, Range<usize>),
    /// Merged in its room.
    Several,
}

impl<'t> Merge<'t, '_> {
    /// Adds row `row` of `task` for KV head `head`.
    fn add_row(&mut self, task: &'t Task, head: usize, row: usize) {
        let at = (head - task.heads.start) * task.rows.len() + row;
        self.add(
            &task.partials,
            at * self.group_size..(at + 1) * self.group_size,
        );
    }

    /// Adds the rows `rows` of `part`.
    fn add(&mut self, part: &'t Partials, rows: Range<usize>) {
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
    fn finish(self, sinks: Option<&[f32]>, out: &mut [f32]) {
        match self.so_far {
            SoFar::Nothing => out.fill(0.0),
            SoFar::One(part, rows) => part.finish_rows(self.isa, rows, sinks, out),
            SoFar::Several => self.whole.finish(self.isa, sinks, out),
        }
    }
}

/// A part of the keys: the slots `covered` of a stretch, and what of it was read back.
#[derive(Clone)]
struct Part<'r> {
    covered: Range<usize>,
    stretch: Stretch,
    read: Option<(&'r Missing, &'r Slices)>,
}

/// Rows of a task, and the blocks that they attend to; all where nothing is said.
struct Chosen<'a> {
    /// Inside the segment.
    rows: Range<usize>,
    /// Ascending.
    blocks: Option<&'a [Range<usize>]>,
}

impl Chosen<'_> {
    /// Whether block `index` is attended to.
    fn holds(&self, index: usize) -> bool {
        self.blocks.is_none_or(|blocks| {
            let after = blocks.partition_point(|range| range.end <= index);
            blocks
                .get(after)
                .is_some_and(|range| range.contains(&index))
        })
    }
}

/// The blocks of a layer in one group, and which of their slots a row sees.
struct Blocks {
    group: usize,
    place: usize,
    seen: Seen,
}

/// Which slots a row sees, beside what its layer's kind says.
enum Seen {
    All,
    /// The first ones, where they are held as they were written.
    Sinks(Recent),
    /// Those that are read in pages made of filled ones.
    Before(Recent),
    /// Those that are read among the recent ones.
    From(Recent),
}

impl Seen {
    /// Those of the row in `slot` of a context.
    fn of(&self, context: &Context, slot: usize) -> Range<usize> {
        match self {
            Seen::All => 0..usize::MAX,
            Seen::Sinks(recent) => 0..sink_slots(context, recent, slot),
            Seen::Before(recent) => sink_slots(context, recent, slot)..recent.first_slot(slot),
            Seen::From(recent) => recent.first_slot(slot)..usize::MAX,
        }
    }
}

/// The first slots that the row in `slot` reads as they were written, though they are not recent.
fn sink_slots(context: &Context, recent: &Recent, slot: usize) -> usize {
    let blocks = recent
        .sinks
        .map_or(0, |sinks| context.layout().groups[sinks].most_blocks);
    recent.first_slot(slot).min(blocks * PAGE_TOKENS)
}

impl Cuts {
    /// Nothing is read.
    const NONE: Cuts = Cuts {
        streams: Cut::NONE,
        blocks: Cut::NONE,
        picked_from: usize::MAX,
        picked: Cut::NONE,
    };
}

impl Cut {
    const NONE: Cut = Cut {
        first: 0,
        parts: 0,
        row_step: 1,
        row_tasks: 0,
        head_step: 1,
        head_tasks: 0,
    };

    /// The task that holds part `part` of `row` and `head`.
    fn task(&self, part: usize, row: usize, head: usize) -> usize {
        let rows = self.row_tasks - 1 - row / self.row_step;
        let heads = head / self.head_step;
        self.first + (part * self.row_tasks + rows) * self.head_tasks + heads
    }
}

impl Worker {
    fn new() -> Worker {
        Worker {
            scratch: AttentionScratch::new(),
            queries: Vec::new(),
            visible: Vec::new(),
            blocks: Vec::new(),
            best: Best::default(),
            partials: Partials::new(0, 0),
            apart: Partials::new(0, 0),
            pages: 0,
        }
    }
}

impl Task {
    fn new() -> Task {
        Task {
            segment: 0,
            heads: 0..0,
            rows: 0..0,
            spans: 0..0,
            source: Source::Blocks,
            partials: Partials::new(0, 0),
        }
    }

    fn set(
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
    fn overlap(&self, spans: &Range<usize>) -> Range<usize> {
        self.spans.start.max(spans.start)..self.spans.end.min(spans.end)
    }
}
