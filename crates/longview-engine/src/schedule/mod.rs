//! Many requests on one model: continuous batching over one pool of pages.
//!
//! A [`Scheduler`] owns the contexts of all running requests and computes them in passes. A pass
//! takes one row of every text being written and a slice of the prompts being read. There are no
//! slots: a request runs when its keys and values have room, and may use all there is.
//!
//! - **The gap between two tokens of a text is one pass.** While texts are being written, the slice of
//!   prompts is as large as fits the chosen time ([`ScheduleOptions::decode_gap`]), by what passes took
//!   so far, and never less than sixteen tokens.
//! - **Fairness.** The slice is shared equally between tenants, and a tenant's part equally between its
//!   prompts. Of those who wait, the tenant that was served least comes first, in order of arrival.
//! - **A shared beginning is computed once.** A request whose prompt begins like one that is being read
//!   waits until that part is read, and takes it over: whole blocks from the store, and what the prompts
//!   share of the block in which they part by a fork. The other stops where they part, and what is left of
//!   both is read side by side.
//! - **Memory.** A request starts when what it will need and what the running ones will still need
//!   have room. When the estimate was too low, the youngest request gives its memory up and waits; what
//!   it has read stays in the store, and since a row's bits depend on nothing but the row, its text
//!   goes on as if nothing had been. A prompt that runs alone is read in smaller passes instead.
//! - **A request that nobody waits for any more ends**; the blocks it has finished stay.
//!
//! Nothing here depends on time but the size of a slice, and results do not depend on that.

mod admit;
mod job;
mod moved;
mod pace;
mod request;
mod room;
mod scores;
mod sequence;
mod shares;
mod writer;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longview_kv::Wanted;
use longview_models::{ModelError, Work};

pub use request::{
    AnswerOptions, Ended, Goal, Listener, MovedText, Observe, Priority, Request, SCORED_ROWS,
    Scored, Start, Summary, Token, Update,
};

use crate::engine::Engine;
use crate::error::EngineError;
use crate::generate::FinishReason;
use job::{Job, Kind};
use moved::Remembered;
use pace::Pace;
use scores::Scoring;
use sequence::{NextChoice, Sequence};
use shares::{Reader, Shares, cut};

/// A request's name in its scheduler.
pub type RequestId = u64;

/// How a scheduler divides the machine.
#[derive(Clone, Copy, Debug)]
pub struct ScheduleOptions {
    /// The most sequences that run at once, each text of a request counted. A request of more texts runs
    /// alone.
    pub most_running: usize,
    /// How long texts being written may wait for a slice of prompts to be read.
    pub decode_gap: Duration,
}

/// Runs requests; see the [module](self).
pub struct Scheduler {
    engine: Arc<Engine>,
    options: ScheduleOptions,
    jobs: HashMap<RequestId, Job>,
    /// In order of arrival; those that had to give way first.
    waiting: Vec<Sequence>,
    running: Vec<Sequence>,
    /// Contexts with moved text, the last of them last.
    remembered: Vec<Remembered>,
    pace: Pace,
    shares: Shares,
    /// Tokens that a prompt which runs alone reads at most in a pass, since memory ran out with more.
    most_rows: usize,
    next_id: RequestId,
    counts: ScheduleCounts,
    /// Whether something has changed since the last time that nobody who waits had room.
    look_again: bool,
}

/// What a scheduler has done since it was made, and what it is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ScheduleCounts {
    /// Requests that wait.
    pub waiting: usize,
    /// Sequences that run: prompts being read and texts being written.
    pub running: usize,
    /// Passes computed.
    pub passes: u64,
    /// Tokens of prompts computed.
    pub prompt_tokens: u64,
    /// Tokens of prompts taken over from work done before.
    pub reused_tokens: u64,
    /// Those of them that were moved from another place in a text.
    pub moved_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Times that a request gave its memory to others.
    pub preemptions: u64,
    /// Requests that ended, well or otherwise.
    pub ended: u64,
    /// The longest pass that wrote, in seconds: the longest gap between two tokens of a text.
    pub longest_gap: f64,
    /// Tokens of prompts read a second, as measured last.
    pub prompt_tokens_per_second: f64,
}

/// Whether there is more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A pass was computed; there may be more.
    Worked,
    /// There is nothing to do until a request arrives.
    Idle,
}

impl Default for ScheduleOptions {
    fn default() -> ScheduleOptions {
        ScheduleOptions {
            most_running: 64,
            decode_gap: Duration::from_millis(250),
        }
    }
}

impl Scheduler {
    /// A scheduler without requests.
    pub fn new(engine: Arc<Engine>, options: ScheduleOptions) -> Scheduler {
        Scheduler {
            pace: Pace::new(options.decode_gap),
            engine,
            options,
            jobs: HashMap::new(),
            waiting: Vec::new(),
            running: Vec::new(),
            remembered: Vec::new(),
            shares: Shares::default(),
            most_rows: usize::MAX,
            next_id: 0,
            counts: ScheduleCounts::default(),
            look_again: true,
        }
    }

    /// Takes a request. Its listener hears everything else, errors included. A text of no tokens is
    /// complete at once.
    pub fn submit(&mut self, request: Request) -> RequestId {
        let id = self.next_id;
        self.next_id += 1;
        let active: Vec<u64> = self.jobs.values().map(|job| job.tenant.id()).collect();
        self.shares.enter(request.tenant.id(), active.into_iter());
        let (job, sequence) = Job::new(id, request);
        self.jobs.insert(id, job);
        if sequence.tokens.is_empty() {
            self.fail(id, EngineError::EmptyPrompt);
            return id;
        }
        self.waiting.push(sequence);
        self.look_again = true;
        if self.jobs.get_mut(&id).is_some_and(Job::finish_empty) {
            self.end(id, None);
        }
        id
    }

    /// Ends a request; the blocks it has finished stay in the store. Nothing happens when it has ended.
    pub fn cancel(&mut self, id: RequestId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        for sequence in self.running.iter_mut().chain(&mut self.waiting) {
            if sequence.job == id
                && let Some(writer) = &mut sequence.writer
            {
                let rest = writer.finish();
                job.hear(Update::Finished {
                    answer: writer.answer,
                    reason: FinishReason::Cancelled,
                    stop: None,
                    rest,
                });
            }
        }
        self.end(id, None);
    }

    /// Ends every request.
    pub fn cancel_all(&mut self) {
        let ids: Vec<RequestId> = self.jobs.keys().copied().collect();
        ids.into_iter().for_each(|id| self.cancel(id));
    }

    /// What was done so far.
    pub fn counts(&self) -> ScheduleCounts {
        ScheduleCounts {
            waiting: self.waiting.len(),
            running: self.running.len(),
            prompt_tokens_per_second: self.pace.tokens_per_second().unwrap_or(0.0),
            ..self.counts
        }
    }

    /// Whether no request is here.
    pub fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Computes one pass, after starting what has room.
    pub fn step(&mut self) -> Step {
        self.drop_abandoned();
        self.admit();
        if self.running.is_empty() {
            return Step::Idle;
        }
        let plan = self.plan();
        if self.fail_outgrown(&plan) {
            return Step::Worked;
        }
        match self.compute(&plan) {
            Ok(()) => {}
            // The pass is tried again without what nobody may ask for.
            Err(error) if error.is_out_of_memory() && self.forget() => {}
            Err(error) if error.is_out_of_memory() && self.running.len() > 1 => self.preempt(error),
            Err(error) => match self.engine.smaller_pass(error, plan.iter().sum()) {
                Ok(most) => self.most_rows = most,
                Err(error) => self.fail_concerned(&plan, error),
            },
        }
        Step::Worked
    }

    /// Rows of the next pass for each running sequence.
    fn plan(&self) -> Vec<usize> {
        let writes = |sequence: &Sequence| !sequence.is_reading();
        let writing = self.running.iter().filter(|s| writes(s)).count();
        let readers: Vec<usize> = (0..self.running.len())
            .filter(|&at| self.running[at].is_reading())
            .collect();
        let most = match readers[..] {
            [only] if writing == 0 => {
                let context = self.running[only].context();
                self.engine.chunk_for(context).min(self.most_rows)
            }
            _ => self.engine.chunk_tokens(),
        };
        let budget = match writing {
            0 => most,
            _ => self.pace.slice(most),
        };
        // Tokens that each may read before it stops for others.
        let ahead: Vec<usize> = readers
            .iter()
            .map(|&at| {
                let sequence = &self.running[at];
                let parting = self.next_parting(sequence);
                let ahead = parting.map(|parting| parting - sequence.held());
                ahead.unwrap_or(usize::MAX).min(sequence.left_to_read())
            })
            .collect();
        let reader = |(&at, &left): (&usize, &usize)| {
            let job = &self.jobs[&self.running[at].job];
            Reader {
                priority: job.priority,
                tenant: job.tenant.id(),
                left,
            }
        };
        let parts = cut(
            budget,
            &readers.iter().zip(&ahead).map(reader).collect::<Vec<_>>(),
        );
        let mut plan = vec![1; self.running.len()];
        for ((at, ahead), part) in readers.into_iter().zip(ahead).zip(parts) {
            let part = match self.jobs[&self.running[at].job].is_scoring() {
                true => part.min(SCORED_ROWS),
                false => part,
            };
            plan[at] = self.running[at].next_rows(part, ahead);
        }
        plan
    }

    /// One pass over `plan[i]` rows of running sequence `i`.
    fn compute(&mut self, plan: &[usize]) -> Result<(), EngineError> {
        let begun = Instant::now();
        let engine = Arc::clone(&self.engine);
        let (mut read, mut written) = (0, 0);
        let reads: Vec<bool> = self.running.iter().map(Sequence::is_reading).collect();
        for (&reads, &rows) in reads.iter().zip(plan) {
            match reads {
                true => read += rows,
                false => written += rows,
            }
        }
        // Who wants which rows of logits.
        let mut wants_logits: Vec<(usize, Range<usize>)> = Vec::with_capacity(plan.len());
        let mut segments = Vec::with_capacity(plan.len());
        for (at, (sequence, &rows)) in self.running.iter_mut().zip(plan).enumerate() {
            if rows == 0 {
                continue;
            }
            let job = &self.jobs[&sequence.job];
            let (wanted, count) = match job.kind {
                Kind::Embeds => (Wanted::Hidden, 0),
                Kind::Writes if job.is_scoring() => (Wanted::All, rows),
                Kind::Writes if sequence.left_to_read() == rows => (Wanted::Last, 1),
                Kind::Writes | Kind::Reads => (Wanted::Nothing, 0),
            };
            if count > 0 {
                let from = wants_logits.last().map_or(0, |(_, before)| before.end);
                wants_logits.push((at, from..from + count));
            }
            segments.push(sequence.segment(rows, wanted));
        }
        let mut workspace = engine.pass(segments)?;
        let (all, known) = (engine.model().blueprint().vocab, engine.vocabulary());
        let rows = workspace.logits().chunks_exact(all);
        let rows: Vec<&[f32]> = rows.map(|logits| &logits[..known]).collect();
        let pool = &engine.exec().pool;
        let mut scorings: Vec<Scoring<'_>> = Vec::new();
        for (at, wanted) in &wants_logits {
            let sequence = &self.running[*at];
            let job = &self.jobs[&sequence.job];
            scorings.extend(sequence.scorings(job, &rows[wanted.clone()]));
        }
        pool.for_each(&mut scorings, |_, scoring, _| scoring.make());
        let mut ended: Vec<(RequestId, Option<EngineError>)> = Vec::new();
        for scoring in scorings {
            let id = scoring.job;
            let taken = match self.jobs.get_mut(&id) {
                Some(job) => job.take_score(scoring),
                None => Ok(()),
            };
            ended.extend(taken.err().map(|error| (id, Some(error))));
        }
        let mut choices: Vec<NextChoice<'_>> = Vec::with_capacity(wants_logits.len());
        let mut running = self.running.iter_mut().enumerate();
        for (wanted, of_it) in &wants_logits {
            let sequence = running.find(|(at, _)| at == wanted);
            choices.extend(sequence.and_then(|(_, sequence)| sequence.choice(rows[of_it.end - 1])));
        }
        pool.for_each(&mut choices, |_, choice, _| choice.make());
        let mut wants_logits = wants_logits.into_iter().peekable();
        let mut states = workspace
            .states()
            .chunks_exact(engine.model().blueprint().hidden);
        let mut grown = Vec::new();
        for (at, &count) in plan.iter().enumerate() {
            if count == 0 {
                continue;
            }
            let sequence = &mut self.running[at];
            let Some(job) = self.jobs.get_mut(&sequence.job) else {
                continue;
            };
            self.shares.serve(job.tenant.id(), count);
            if job.kind == Kind::Embeds {
                states
                    .by_ref()
                    .take(count)
                    .for_each(|state| job.add_state(state));
            }
            if reads[at] {
                self.counts.prompt_tokens += count as u64;
                // What was taken over, and could not be read then, was not.
                let again = sequence.take_again().min(job.summary.reused_tokens);
                job.summary.reused_tokens -= again;
                let moved = sequence.take_moved();
                job.summary.moved_tokens += moved;
                job.summary.reused_tokens += moved;
                self.counts.moved_tokens += moved as u64;
                self.counts.reused_tokens += moved as u64;
                sequence.after_read(job);
            }
            let wanted = wants_logits.next_if(|(of, _)| *of == at);
            let Some((_, of_it)) = wanted else {
                if sequence.left_to_read() == 0 {
                    ended.push((sequence.job, None));
                }
                continue;
            };
            if sequence.left_to_read() > 0 {
                // Logits of a prompt, of which there is more.
                continue;
            }
            let written = sequence.write(job, rows[of_it.end - 1], &engine);
            match written {
                Err(error) => ended.push((sequence.job, Some(error))),
                Ok(more) => {
                    self.counts.generated_tokens += more.tokens as u64;
                    grown.extend(more.sequences);
                    if job.open_answers == 0 {
                        ended.push((sequence.job, None));
                    }
                }
            }
        }
        workspace.lap(Work::Sampling);
        drop(workspace);
        let before = self.running.len();
        self.running.retain(|sequence| !sequence.is_done());
        // What a text leaves is there for others, though its request may have more.
        self.look_again |= self.running.len() < before;
        self.running.extend(grown);
        for sequence in &mut self.running {
            if let Err(error) = sequence.keep(&engine) {
                ended.push((sequence.job, Some(error)));
            }
        }
        // What has failed is not done, whatever else is said of it.
        ended.sort_by_key(|(_, error)| error.is_none());
        for (id, error) in ended {
            match error {
                None => self.end(id, None),
                Some(error) => self.fail(id, error),
            }
        }
        let took = begun.elapsed();
        self.counts.passes += 1;
        if written > 0 {
            self.counts.longest_gap = self.counts.longest_gap.max(took.as_secs_f64());
        }
        self.pace.learn(read, written, took);
        Ok(())
    }

    /// Takes the memory of the youngest of the lowest rank; it waits until there is room again. Where
    /// none can give way, the youngest fails with `error`.
    fn preempt(&mut self, error: EngineError) {
        let order = |at: &usize| {
            let sequence = &self.running[*at];
            (
                std::cmp::Reverse(self.jobs[&sequence.job].priority),
                sequence.job,
                *at,
            )
        };
        let all = 0..self.running.len();
        let can = |at: &usize| {
            let sequence = &self.running[*at];
            sequence.can_give_way(&self.jobs[&sequence.job])
        };
        let Some(at) = all.clone().filter(can).max_by_key(order) else {
            if let Some(at) = all.max_by_key(order) {
                self.fail(self.running[at].job, error);
            }
            return;
        };
        let mut sequence = self.running.remove(at);
        sequence.close(Start::Nothing);
        sequence.gave_way = true;
        self.waiting.insert(0, sequence);
        self.counts.preemptions += 1;
        // Not before another has ended: it would take the memory right back.
        self.look_again = false;
    }

    fn fail(&mut self, id: RequestId, error: EngineError) {
        self.end(id, Some(error));
    }

    /// Ends requests whose contexts are at the end of their positions, so that a pass does not fail for all
    /// that are in it. Returns whether there were any.
    fn fail_outgrown(&mut self, plan: &[usize]) -> bool {
        let model = self.engine.model();
        let outgrown = |(sequence, &rows): (&Sequence, &usize)| {
            let limit = model.positions_of(sequence.context());
            let wanted = sequence.held() + rows;
            (wanted > limit).then_some((sequence.job, ModelError::TooLong { wanted, limit }))
        };
        let outgrown: Vec<_> = self.running.iter().zip(plan).filter_map(outgrown).collect();
        let any = !outgrown.is_empty();
        for (id, error) in outgrown {
            self.fail(id, error.into());
        }
        any
    }

    /// A pass failed: those have failed whose block was lost, or else all that took part. No context has
    /// changed, so the others go on.
    fn fail_concerned(&mut self, plan: &[usize], error: EngineError) {
        let took_part = || {
            let all = self.running.iter().zip(plan);
            all.filter(|&(_, &rows)| rows > 0)
                .map(|(sequence, _)| sequence)
        };
        let lost = error.lost_block();
        let has_lost =
            |sequence: &&Sequence| lost.is_some_and(|key| sequence.context().keys().contains(&key));
        let mut ids: Vec<RequestId> = took_part().filter(has_lost).map(|one| one.job).collect();
        if ids.is_empty() {
            ids = took_part().map(|sequence| sequence.job).collect();
        }
        ids.sort_unstable();
        ids.dedup();
        let text = error.to_string();
        let mut first = Some(error);
        for id in ids {
            let error = first
                .take()
                .unwrap_or_else(|| EngineError::Pass(text.clone()));
            self.fail(id, error);
        }
    }

    /// Takes a request out and tells its listener.
    fn end(&mut self, id: RequestId, error: Option<EngineError>) {
        let Some(mut job) = self.jobs.remove(&id) else {
            return;
        };
        let of_job = |sequence: &Sequence| sequence.job == id;
        let mut context = None;
        for list in [&mut self.running, &mut self.waiting] {
            for mut sequence in list.extract_if(.., |sequence| of_job(sequence)) {
                job.summary.kv_bytes += sequence.kv_bytes();
                job.left = sequence.leave_early().or(job.left);
                if job.kind == Kind::Reads {
                    context = sequence.take_context();
                }
            }
        }
        if let Some((context, moves)) = job.left.take() {
            self.remember(job.tenant.id(), context, moves);
        }
        job.end(error, context);
        self.most_rows = usize::MAX;
        self.counts.ended += 1;
        self.look_again = true;
        let jobs = &self.jobs;
        self.shares
            .keep(|tenant| jobs.values().any(|job| job.tenant.id() == tenant));
    }
}

#[cfg(test)]
mod tests;
