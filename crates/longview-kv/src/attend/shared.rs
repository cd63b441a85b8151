//! The part of attention that reads blocks which several segments have in common.
//!
//! A run of such blocks is cut at the edges of key spans into pieces. A piece yields the partials of all
//! rows of its segments over its pages, each of which is fetched once for all of them. Where a piece
//! begins inside of a span it goes on from what the piece before has for its rows, so a row's running
//! softmax meets the same pages in the same order as alone, and its bits are the same.

use std::ops::Range;
use std::sync::Mutex;

use longview_kernels::attention::{PageRef, QueryRows, attend_further};
use longview_kernels::page::PAGE_TOKENS;

use super::merge::Merge;
use super::plan::{DECODE_TASKS_PER_THREAD, Source, Task};
use super::{Call, HEADS_PER_TASK, SPAN_BLOCKS, Worker, lock};
use crate::sharing::{Run, Sharing};

/// How the runs of a layer's group are cut.
#[derive(Default)]
pub(super) struct Pieces {
    /// Every piece after the one it goes on from, those of a segment in the order of their keys.
    all: Vec<Piece>,
    /// Tasks of pieces that go on from nothing, then of those and of the pieces that go on from them,
    /// and so forth.
    waves: Vec<usize>,
}

/// What of a run lies in one key span.
struct Piece {
    run: usize,
    span: usize,
    blocks: Range<usize>,
    /// The piece before in the same span.
    from: Option<usize>,
    /// Pieces before in the same span.
    wave: usize,
    first_task: usize,
    head_step: usize,
}

impl Piece {
    /// The task that holds KV head `head`.
    fn task(&self, head: usize) -> usize {
        self.first_task + head / self.head_step
    }
}

impl Pieces {
    /// Tasks of all pieces.
    pub(super) fn tasks(&self) -> usize {
        self.waves.last().copied().unwrap_or(0)
    }
}

impl<'a> Call<'a, '_> {
    /// What segments have in common in this layer.
    pub(super) fn sharing(&self) -> Option<&'a Sharing> {
        let context = &*self.batch.segments()[0].context;
        self.batch.sharing(context.layout().layers[self.layer].0)
    }

    /// Writes the tasks that read common blocks over `tasks`, from the first on, and how they were cut
    /// over `pieces`.
    pub(super) fn plan_shared(&self, tasks: &mut Vec<Task>, pieces: &mut Pieces) {
        pieces.all.clear();
        pieces.waves.clear();
        let Some(sharing) = self.sharing() else {
            return;
        };
        for (index, run) in sharing.runs().iter().enumerate() {
            self.cut_run(sharing, index, run, &mut pieces.all);
        }
        let kv_heads = self.place(0).1.kind.kv_heads;
        let wanted = DECODE_TASKS_PER_THREAD * self.exec.pool.threads();
        let mut planned = 0;
        for wave in 0.. {
            let of_wave = |piece: &&mut Piece| piece.wave == wave;
            let count = pieces.all.iter_mut().filter(of_wave).count();
            if count == 0 {
                break;
            }
            let head_tasks = wanted.div_ceil(count).min(kv_heads);
            let head_step = kv_heads.div_ceil(head_tasks).min(HEADS_PER_TASK);
            for (at, piece) in pieces.all.iter_mut().enumerate() {
                if piece.wave != wave {
                    continue;
                }
                (piece.first_task, piece.head_step) = (planned, head_step);
                let run = &sharing.runs()[piece.run];
                let rows = sharing.rows(run);
                for first in (0..kv_heads).step_by(head_step) {
                    let heads = first..(first + head_step).min(kv_heads);
                    if planned == tasks.len() {
                        tasks.push(Task::new());
                    }
                    let task = &mut tasks[planned];
                    let segment = sharing.segments(run)[0];
                    task.set(segment, heads, 0..rows, piece.span..piece.span + 1);
                    task.source = Source::Shared(at);
                    planned += 1;
                }
            }
            pieces.waves.push(planned);
        }
    }

    /// Adds the pieces of run `index` that have pages.
    fn cut_run(&self, sharing: &Sharing, index: usize, run: &Run, pieces: &mut Vec<Piece>) {
        let (context, _, _) = self.place(sharing.segments(run)[0]);
        let group = context.layout().layers[self.layer].0;
        let mut start = run.blocks.start;
        while start < run.blocks.end {
            let span = start / SPAN_BLOCKS;
            let blocks = start..run.blocks.end.min((span + 1) * SPAN_BLOCKS);
            start = blocks.end;
            // A window drops blocks from the front.
            if context.block(group, blocks.end - 1).is_none() {
                continue;
            }
            let before = |piece: &Piece| Some(piece.run) == run.from && piece.span == span;
            let from = match blocks.start == run.blocks.start {
                true => pieces.iter().rposition(before),
                false => None,
            };
            pieces.push(Piece {
                run: index,
                span,
                blocks,
                from,
                wave: from.map_or(0, |from| pieces[from].wave + 1),
                first_task: 0,
                head_step: 1,
            });
        }
    }

    /// Computes the pieces of `pieces`, whose tasks are `tasks`.
    pub(super) fn attend_shared(
        &self,
        pieces: &Pieces,
        tasks: &mut [Task],
        workers: &[Mutex<Worker>],
    ) {
        let mut done = 0;
        for &end in &pieces.waves {
            let (before, rest) = tasks.split_at_mut(done);
            let before = &*before;
            self.exec
                .pool
                .for_each(&mut rest[..end - done], |_, task, worker| {
                    self.run_piece(pieces, before, task, &mut lock(&workers[worker]));
                });
            done = end;
        }
    }

    /// The partials of one task of a piece; `before` are the tasks of the pieces before.
    fn run_piece(&self, pieces: &Pieces, before: &[Task], task: &mut Task, worker: &mut Worker) {
        let (Source::Shared(piece), Some(sharing)) = (task.source, self.sharing()) else {
            unreachable!("tasks of pieces are planned where segments share");
        };
        let piece = &pieces.all[piece];
        let run = &sharing.runs()[piece.run];
        let (first_context, group, place) = self.place(task.segment);
        let group_index = first_context.layout().layers[self.layer].0;
        let group_size = self.attention.heads / group.kind.kv_heads;
        let of_head = task.rows.len() * group_size;
        task.partials
            .reset(task.heads.len() * of_head, group.kind.v_dim);
        if let Some(from) = piece.from {
            let from = &pieces.all[from];
            let skipped = sharing.first_row(&sharing.runs()[from.run], run.places.start);
            for (at, head) in task.heads.clone().enumerate() {
                let source = &before[from.task(head)];
                let row = (head - source.heads.start) * source.rows.len() + skipped;
                let rows = row * group_size..row * group_size + of_head;
                task.partials
                    .copy_rows(at * of_head, &source.partials, rows);
            }
        }

        let mut pages = [PageRef::new(&[], &[]); SPAN_BLOCKS * HEADS_PER_TASK];
        let mut used = 0;
        let mut first_block = piece.blocks.end;
        for index in piece.blocks.clone() {
            if let Some(block) = first_context.block(group_index, index) {
                first_block = first_block.min(index);
                let slice = block.layer(group, place);
                for head in task.heads.clone() {
                    pages[used] = group.page(slice, head);
                    used += 1;
                }
            }
        }
        let (first, end) = (first_block * PAGE_TOKENS, piece.blocks.end * PAGE_TOKENS);
        worker.visible.clear();
        for &segment in sharing.segments(run) {
            let context = self.place(segment).0;
            for row in 0..self.batch.rows_of(segment).len() {
                let position = context.len() + row;
                let slot = |token: usize| (token.clamp(first, end) - first) as u32;
                let seen = slot(context.first_token(group, position))..slot(position + 1);
                worker.visible.extend(std::iter::repeat_n(seen, group_size));
            }
        }
        if worker.visible.iter().all(Range::is_empty) {
            return;
        }
        worker.queries.clear();
        for head in task.heads.clone() {
            for &segment in sharing.segments(run) {
                let rows = self.batch.rows_of(segment);
                self.gather_rows(task.segment, head, rows, &mut worker.queries);
            }
        }
        let rows = QueryRows {
            heads: task.heads.len(),
            q: &worker.queries,
            visible: &worker.visible,
            softcap: self.attention.softcap,
        };
        worker.pages += used as u64;
        attend_further(
            self.exec.isa,
            &group.geometry,
            &pages[..used],
            &rows,
            &mut worker.scratch,
            &mut task.partials,
        );
    }

    /// Adds what the pieces have for row `row` of the segment at `place` and KV head `head` to `merge`.
    pub(super) fn merge_pieces<'t>(
        &self,
        pieces: &Pieces,
        tasks: &'t [Task],
        place: usize,
        row: usize,
        head: usize,
        merge: &mut Merge<'t, '_>,
    ) {
        let Some(sharing) = self.sharing() else {
            return;
        };
        let of_segment = |piece: &&Piece| sharing.runs()[piece.run].places.contains(&place);
        let mut own = pieces.all.iter().filter(of_segment).peekable();
        while let Some(piece) = own.next() {
            // What the last piece of a span has includes those before.
            if own.peek().is_some_and(|next| next.span == piece.span) {
                continue;
            }
            let task = &tasks[piece.task(head)];
            let row = sharing.first_row(&sharing.runs()[piece.run], place) + row;
            merge.add_row(task, head, row);
        }
    }
}
