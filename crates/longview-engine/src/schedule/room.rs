//! Whether there is memory for one more.

use std::collections::HashSet;

use longview_kv::Context;

use super::Scheduler;
use super::request::SCORED_ROWS;
use super::sequence::Sequence;

/// Tokens of an answer that room is kept for, at most: most answers are shorter than they may be, and
/// one that is not can be made to wait.
const EXPECTED_ANSWER: usize = 256;

impl Scheduler {
    /// Whether what `sequence` and the running ones will hold fits into memory together. One alone
    /// always has room: what memory lacks goes to the store.
    pub(super) fn has_room(&self, sequence: &Sequence) -> bool {
        let ledger = self.engine.ledger();
        if ledger.limit() == u64::MAX || self.running.is_empty() {
            return true;
        }
        let usage = ledger.usage();
        let together = || self.running.iter().chain([sequence]);
        let rows_of_logits = |sequence: &Sequence| match self.jobs[&sequence.job].is_scoring() {
            true => self.texts(sequence).max(SCORED_ROWS),
            // Every text has its logits in the pass.
            false => self.texts(sequence),
        };
        let wanted = together().map(rows_of_logits).sum();
        let rows = self.engine.chunk_tokens() + wanted;
        let scratch = self.engine.scratch_bytes(rows, wanted).max(usage.scratch);
        let fixed = usage.program + usage.index + usage.weights + scratch;
        let mut seen = HashSet::new();
        let mut needed = 0;
        for remembered in &self.remembered {
            needed += distinct_bytes(&remembered.context, &mut seen);
        }
        for sequence in together() {
            needed += distinct_bytes(sequence.context(), &mut seen) + self.growth(sequence);
        }
        fixed.saturating_add(needed) <= ledger.limit()
    }

    /// Bytes that a sequence will still take.
    fn growth(&self, sequence: &Sequence) -> u64 {
        let job = &self.jobs[&sequence.job];
        if let Some(keep) = &job.methods.keep {
            let answer = job.longest_answer().min(EXPECTED_ANSWER);
            let bytes =
                self.engine
                    .keep_bytes(keep, job.methods.store, sequence.tokens.len(), answer);
            // What cannot be told is told when it is opened.
            let peak = bytes.map_or(0, |bytes| {
                let index = job.methods.read.as_ref().map_or(0, |read| {
                    self.engine
                        .index_bytes_beside(read, job.methods.store, bytes.peak)
                });
                bytes.peak + bytes.scratch + index
            });
            return peak.saturating_sub(sequence.kv_bytes());
        }
        let texts = self.texts(sequence);
        let left = match &sequence.writer {
            Some(writer) => writer.left(),
            None => job.longest_answer(),
        };
        let layout = self.engine.layout_in(job.methods.store);
        let chunk = self.engine.chunk_tokens();
        let bytes = |tokens| layout.context_bytes(tokens, chunk);
        let read = bytes(sequence.tokens.len()).saturating_sub(bytes(sequence.held()));
        let end = sequence.tokens.len() + left.min(EXPECTED_ANSWER);
        let text = bytes(end).saturating_sub(bytes(sequence.tokens.len())) + layout.fork_bytes(1);
        let index = job.methods.read.as_ref().map_or(0, |read| {
            let all = self.engine.index_bytes(read, job.methods.store, end);
            // What was read before, or found, has none until a pass makes it.
            all.saturating_sub(sequence.index_bytes())
        });
        read + texts as u64 * text + index
    }
}

/// Bytes of the blocks of `context` that are not in `seen`, which they are added to. Blocks that are
/// not sealed are its own.
fn distinct_bytes(context: &Context, seen: &mut HashSet<longview_kv::tier::BlockKey>) -> u64 {
    let keys = context.keys();
    let all = keys.len();
    if all == 0 {
        return context.kv_bytes();
    }
    let new = keys.into_iter().filter(|&key| seen.insert(key)).count();
    // Blocks of different groups differ in size; in one context every group has as many.
    (context.kv_bytes() as u128 * new as u128 / all as u128) as u64
}
