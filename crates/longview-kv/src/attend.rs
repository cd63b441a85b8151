//! Attention of a batch over its contexts, built from partials over fixed key spans: exact over all
//! that they hold, or over what their methods say.

mod blocks;
mod merge;
mod picked;
mod plan;
mod shared;
mod streams;
mod watch;

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use longview_kernels::Exec;
use longview_kernels::attention::{AttentionScratch, Partials};

use crate::SPAN_BLOCKS;
use crate::batch::Batch;
use crate::context::{Context, RopeSet};
use crate::error::KvError;
use crate::feed::{Feed, Missing, Slices};
use crate::layout::Group;
use crate::read::Best;
use merge::Finish;
use picked::Pick;
use plan::{Cuts, Task};
use shared::Pieces;

/// KV heads a decode task walks at most. Pages of neighbouring heads lie one after another in a
/// block, so a task over several heads reads longer runs of memory.
const HEADS_PER_TASK: usize = 8;

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
                    let end = cuts.get(segment + 1).map_or(planned, |cuts| cuts.first);
                    let (own, others) = rest.split_at_mut(end - cuts[segment].first);
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
    /// Makes room for any of `tasks` in a worker's buffers.
    fn reserve(&self, tasks: &[Task], worker: &mut Worker) {
        for task in tasks {
            let group = self.place(task.segment).1;
            let group_size = self.attention.heads / group.kind.kv_heads;
            let rows = task.rows.len() * group_size;
            let heads = task.heads.len();
            let all_rows = heads * rows;
            for partials in [&mut worker.partials, &mut worker.apart] {
                if all_rows > partials.rows() || group.kind.v_dim > partials.v_dim() {
                    partials.reset(all_rows, group.kind.v_dim);
                }
            }
            worker.scratch.reserve(&group.geometry, heads, rows);
            if let Some(recent) = group.recent {
                // That of the first tokens is the same.
                let groups = &self.place(task.segment).0.layout().groups;
                let geometry = &groups[recent.group].geometry;
                worker.scratch.reserve(geometry, heads, rows);
            }
            let numbers = all_rows * group.kind.head_dim;
            worker.queries.clear();
            worker.queries.reserve(numbers);
            worker.visible.clear();
            worker.visible.reserve(rows);
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
