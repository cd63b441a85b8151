//! Who runs: requests that nobody waits for end, and those that wait start as long as there is a place.

use std::cmp::Reverse;
use std::time::Instant;

use longview_kv::BLOCK_TOKENS;

use super::job::Job;
use super::request::{Priority, Start, Update};
use super::sequence::Sequence;
use super::{RequestId, Scheduler};
use crate::error::EngineError;

/// Tokens that are worth waiting for a pass, or twice as many as are worth a fork's copy of a block.
const LEAST_SHARED: usize = 16;

impl Scheduler {
    /// Ends requests whose listeners have gone.
    pub(super) fn drop_abandoned(&mut self) {
        let gone = |(&id, job): (&RequestId, &Job)| job.listener.is_gone().then_some(id);
        let gone: Vec<RequestId> = self.jobs.iter().filter_map(gone).collect();
        gone.into_iter().for_each(|id| self.cancel(id));
    }

    /// Starts requests as long as there is one that has room.
    pub(super) fn admit(&mut self) {
        while self.look_again && !self.waiting.is_empty() {
            let Some(at) = self.next_waiting() else {
                return;
            };
            if !self.has_place(&self.waiting[at]) {
                self.look_again = false;
                return;
            }
            let mut sequence = self.waiting.remove(at);
            let (job, start) = (sequence.job, sequence.start());
            let opened = self
                .open(&mut sequence)
                .and_then(|()| self.share(&mut sequence))
                .and_then(|()| self.plan_moves(&mut sequence));
            let has_room = opened.is_ok()
                && (self.has_room(&sequence) || self.forget() && self.has_room(&sequence));
            if has_room {
                drop(start);
                self.start(sequence);
                continue;
            }
            // What it found may leave memory while it waits; what it was given is its own.
            sequence.close(start);
            self.waiting.insert(at, sequence);
            match opened {
                Ok(()) => self.look_again = false,
                Err(error) => self.fail(job, error),
            }
        }
    }

    /// Texts that a sequence is or will be.
    pub(super) fn texts(&self, sequence: &Sequence) -> usize {
        match sequence.writer {
            Some(_) => 1,
            None => self.jobs[&sequence.job].open_answers.max(1),
        }
    }

    /// The same of all that run.
    pub(super) fn running_texts(&self) -> usize {
        let running = self.running.iter();
        running.map(|sequence| self.texts(sequence)).sum()
    }

    /// Whether as many may run as there are with the texts of `sequence`.
    fn has_place(&self, sequence: &Sequence) -> bool {
        let all = self.running_texts() + self.texts(sequence);
        self.running.is_empty() || all <= self.options.most_running
    }

    /// Which of those that wait comes next: the highest rank, then those that had to give way, then
    /// the tenant that was served least, then order of arrival. Left out are those for whom
    /// something that is being read now will be worth waiting for; that is then read at their rank.
    fn next_waiting(&mut self) -> Option<usize> {
        let mut awaited: Vec<(RequestId, Priority)> = Vec::new();
        let mut free = Vec::with_capacity(self.waiting.len());
        for (at, waiting) in self.waiting.iter().enumerate() {
            match self.reader_for(waiting) {
                Some(reader) => awaited.push((reader, self.jobs[&waiting.job].priority)),
                None => free.push(at),
            }
        }
        for (reader, rank) in awaited {
            if let Some(job) = self.jobs.get_mut(&reader) {
                job.priority = job.priority.max(rank);
            }
        }
        free.into_iter().min_by_key(|&at| {
            let sequence = &self.waiting[at];
            let job = &self.jobs[&sequence.job];
            (
                Reverse(job.priority),
                !sequence.gave_way,
                self.shares.of(job.tenant.id()),
                at,
            )
        })
    }

    /// The request that reads a prompt which begins like this one, beyond what is read of it.
    fn reader_for(&self, waiting: &Sequence) -> Option<RequestId> {
        let mut running = self.running.iter();
        let reader = running.find(|running| self.waits_for(waiting, running));
        reader.map(|running| running.job)
    }

    /// Whether `running` reads what `waiting` begins with, beyond what is read of it, and far enough to be
    /// worth waiting for.
    fn waits_for(&self, waiting: &Sequence, running: &Sequence) -> bool {
        let own = &self.jobs[&waiting.job];
        let job = &self.jobs[&running.job];
        running.is_reading()
            && own.takes_over()
            && job.methods.reads_alike()
            && job.tenant.id() == own.tenant.id()
            && running.is_exact()
            && waiting.can_take_over(running.context(), &self.engine)
            && running.will_have(&waiting.tokens, self.worth_waiting_for(running))
    }

    /// The tokens that `running` is to hold when it stops next because others wait for what they have in
    /// common with it: where the first of them parts from it. From there all go on together, in passes of
    /// many rows, and those whose layers cannot go back take over all that is theirs.
    pub(super) fn next_parting(&self, running: &Sequence) -> Option<usize> {
        if !self.look_again || self.running_texts() >= self.options.most_running {
            // None of them could start.
            return None;
        }
        let is_plain = running.is_plain(&self.jobs[&running.job]);
        let parting = |waiting: &Sequence| {
            let usable = &waiting.tokens[..waiting.tokens.len() - 1];
            let pairs = usable.iter().zip(&running.tokens);
            let common = pairs.take_while(|(own, read)| own == read).count();
            match is_plain {
                true => common,
                false => common / BLOCK_TOKENS * BLOCK_TOKENS,
            }
        };
        let waiting = self.waiting.iter();
        let of_it = waiting.filter(|waiting| self.waits_for(waiting, running));
        of_it.map(parting).min()
    }

    /// How long a beginning in common must be to be waited for, when a sequence has read as much as it has:
    /// what it holds is taken over now, to the token where a fork of it serves, else in whole blocks.
    fn worth_waiting_for(&self, running: &Sequence) -> usize {
        let held = running.held();
        match running.is_plain(&self.jobs[&running.job]) {
            true => held + LEAST_SHARED,
            false => (held / BLOCK_TOKENS + 1) * BLOCK_TOKENS,
        }
    }

    /// Begins a sequence that was opened as a fork of one that runs, where that holds more of its tokens than
    /// the store has in whole blocks: prompts part in the middle of a block.
    fn share(&mut self, sequence: &mut Sequence) -> Result<(), EngineError> {
        let own = &self.jobs[&sequence.job];
        if !own.takes_over() || own.methods.keep.is_some() {
            return Ok(());
        }
        let usable = &sequence.tokens[..sequence.tokens.len() - 1];
        let common = |running: &Sequence| {
            let job = &self.jobs[&running.job];
            let serves = job.tenant.id() == own.tenant.id()
                && running.is_plain(job)
                && sequence.can_take_over(running.context(), &self.engine);
            match serves {
                true => running.has_in_common(usable),
                false => 0,
            }
        };
        let held = sequence.held();
        let best = self.running.iter().max_by_key(|&running| common(running));
        let Some(best) = best.filter(|&best| common(best) >= held + LEAST_SHARED / 2) else {
            return Ok(());
        };
        let fork = best.context().fork();
        sequence.close(Start::Beginning(fork));
        self.open(sequence)?;
        if sequence.held() < held {
            // Its windows or recurrent layers have gone past where they part.
            sequence.close(Start::Nothing);
            self.open(sequence)?;
        }
        Ok(())
    }

    /// Gives a sequence its context.
    fn open(&mut self, sequence: &mut Sequence) -> Result<(), EngineError> {
        match self.jobs.get_mut(&sequence.job) {
            Some(job) => sequence.open(&self.engine, job),
            None => Ok(()),
        }
    }

    fn start(&mut self, mut sequence: Sequence) {
        let held = sequence.held();
        // What was lost before is not of this request.
        let _ = sequence.take_again();
        if let Some(job) = self.jobs.get_mut(&sequence.job) {
            if sequence.gave_way {
                job.summary.reread_tokens += sequence.tokens.len() - held;
            } else {
                job.started = Some(Instant::now());
                job.summary.queued = job.arrived.elapsed();
                job.summary.reused_tokens = held;
                job.summary.moved_tokens = sequence.moves.tokens();
                self.counts.reused_tokens += held as u64;
                self.counts.moved_tokens += job.summary.moved_tokens as u64;
                job.hear(Update::Started {
                    reused_tokens: held,
                });
            }
        }
        sequence.gave_way = false;
        self.running.push(sequence);
    }
}
