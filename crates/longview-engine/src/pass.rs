//! A forward pass within the memory allowed, over blocks that may have to be read or computed again.

use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

use longview_kv::tier::BlockKey;
use longview_kv::{BLOCK_TOKENS, Context, Segment, Wanted};
use longview_models::Workspace;
use smallvec::SmallVec;

use crate::engine::Engine;
use crate::error::EngineError;

/// A block that is lost again after it was computed so often is lost for good: the place that should hold
/// it does not.
const MOST_LOSSES: usize = 3;

/// The blocks that turned out to be lost while one thing was done, each as often as it was.
#[derive(Default)]
pub(crate) struct Losses(Vec<BlockKey>);

/// Passes of a few rows between two looks at what the process holds: asking the system takes as long as a
/// layer of a small model.
const PASSES_TO_A_LOOK: u32 = 16;

/// The most tokens that one pass of a prefill computes when it reads blocks back.
const LARGEST_CHUNK: usize = 4096;

impl Engine {
    /// One forward pass; the guard gives the logits. Blocks of the contexts that turn out not to be
    /// readable are computed again first.
    ///
    /// # Errors
    /// As [`longview_models::Model::forward`].
    pub fn pass<'a>(
        &self,
        segments: impl IntoIterator<Item = Segment<'a>>,
    ) -> Result<MutexGuard<'_, Workspace>, EngineError> {
        let mut segments: SmallVec<[Segment<'a>; 1]> = segments.into_iter().collect();
        let mut workspace = self.workspace();
        let rows = segments.iter().map(|segment| segment.tokens.len()).sum();
        let wanted = segments.iter().map(|segment| match segment.wanted {
            Wanted::Nothing | Wanted::Hidden => 0,
            Wanted::Last => 1,
            Wanted::All => segment.tokens.len(),
        });
        let wanted = wanted.sum::<usize>().max(1);
        self.settle_memory(rows, wanted);
        self.has_run.store(true, Ordering::Relaxed);
        let mut losses = Losses::default();
        loop {
            let attempt = segments.iter_mut().map(Segment::reborrow);
            let Err(error) = self.model.forward(&self.exec, attempt, &mut workspace) else {
                return Ok(workspace);
            };
            let contexts = segments.iter_mut().map(|segment| &mut *segment.context);
            self.recompute(error.into(), contexts, &mut workspace, &mut losses)?;
        }
    }

    /// Computes again what `error` says is lost; any other error is handed back, and so is that of a
    /// block that was lost too often.
    pub(crate) fn recompute<'c>(
        &self,
        error: EngineError,
        contexts: impl Iterator<Item = &'c mut Context>,
        workspace: &mut Workspace,
        losses: &mut Losses,
    ) -> Result<(), EngineError> {
        let Some(key) = error.lost_block().filter(|&key| losses.note(key)) else {
            return Err(error);
        };
        let mut found = false;
        for context in contexts {
            let mut tokens = context.lose(&key);
            while !tokens.is_empty() {
                found = true;
                let count = context.next_pass(tokens.len(), self.chunk_tokens);
                let chunk = &tokens[..count];
                let segment = Segment {
                    context: &mut *context,
                    tokens: chunk,
                    wanted: Wanted::Nothing,
                };
                match self.model.forward(&self.exec, vec![segment], workspace) {
                    Ok(()) => {
                        tokens.drain(..count);
                        if tokens.len() < BLOCK_TOKENS {
                            context.checkpoint();
                        }
                    }
                    Err(error) => {
                        let error = EngineError::from(error);
                        // More of the same context is lost: go back further.
                        let Some(key) = error.lost_block().filter(|&key| losses.note(key)) else {
                            return Err(error);
                        };
                        let before = context.lose(&key);
                        if before.is_empty() {
                            return Err(error);
                        }
                        tokens.splice(..0, before);
                    }
                }
            }
        }
        if !found {
            return Err(error);
        }
        if let Some(kept) = &self.store {
            kept.store.note(error.to_string());
        }
        Ok(())
    }

    /// Tokens that the next pass of a prefill computes. While blocks of the context are away, every
    /// pass reads all of them: then as many as make the bytes that are read for each token fewest, of those
    /// for which memory has room, and half of the room has scratch: buffers stay, and the steps of an answer
    /// read what they leave no room for.
    pub(crate) fn chunk_for(&self, context: &Context) -> usize {
        if self.ledger.limit() == u64::MAX || context.away_bytes() == 0 {
            return self.chunk_tokens;
        }
        let half = self.free_bytes() / 2;
        // A pass takes more than its buffers, which is only found when it is over, and the more the larger it
        // is: with chunks up to the last block that has room a book went 2.4 MiB over a limit of 160.
        let largest = std::iter::successors(Some(self.chunk_tokens), |chunk| Some(2 * chunk))
            .take_while(|&chunk| chunk <= LARGEST_CHUNK && self.reserved_scratch(chunk, 1) <= half)
            .last()
            .unwrap_or(self.chunk_tokens);
        self.with_passes(context, |passes| passes.best_chunk(context.len(), largest))
    }

    /// Bytes of the memory allowed for keys, values and scratch.
    pub(crate) fn free_bytes(&self) -> u64 {
        let usage = self.ledger.usage();
        let others = usage.program + usage.index + usage.weights;
        self.ledger.limit().saturating_sub(others)
    }

    /// After a pass that read `rows` tokens of a prompt failed: the tokens that the next one reads at
    /// most, where memory ran out and fewer may fit. Buffers of larger passes are given back.
    ///
    /// # Errors
    /// `error` itself where fewer tokens would not help.
    pub(crate) fn smaller_pass(
        &self,
        error: EngineError,
        rows: usize,
    ) -> Result<usize, EngineError> {
        if !error.is_out_of_memory() || rows <= BLOCK_TOKENS {
            return Err(error);
        }
        let most = (rows / 2).max(BLOCK_TOKENS);
        self.workspace().give_back();
        let mut account = self
            .account
            .lock()
            .unwrap_or_else(|error| error.into_inner());
        account.scratch.resize(self.scratch_bytes(most, 1));
        Ok(most)
    }

    /// Bytes of the buffers of a pass of `rows` rows that gives `wanted` rows of logits.
    pub(crate) fn scratch_bytes(&self, rows: usize, wanted: usize) -> u64 {
        let threads = self.exec.pool.threads();
        Workspace::predicted_bytes(self.model.blueprint(), rows, wanted, threads)
    }

    /// What the account of buffers has for such a pass: for one much larger than those that every plan counts
    /// with, an eighth of the difference more, since what the allocator keeps beside it is not known.
    pub(crate) fn reserved_scratch(&self, rows: usize, wanted: usize) -> u64 {
        let planned = self.scratch_bytes(self.chunk_tokens + self.chunk_tokens / 4, wanted);
        let bytes = self.scratch_bytes(rows, wanted);
        bytes + bytes.saturating_sub(planned) / 8
    }

    /// Bytes that `texts` texts to one prompt take in every pass beyond what [`Engine::plan`] counts for one.
    pub fn logits_bytes(&self, texts: usize) -> u64 {
        let rows = self.chunk_tokens;
        self.scratch_bytes(rows + texts, texts.max(1)) - self.scratch_bytes(rows, 1)
    }

    pub(crate) fn workspace(&self) -> MutexGuard<'_, Workspace> {
        // A panic during a pass leaves buffers that the next pass overwrites anyway.
        self.workspace
            .lock()
            .unwrap_or_else(|error| error.into_inner())
    }

    /// Brings the account up to what is measured, and lets blocks leave memory that no longer fit.
    fn settle_memory(&self, rows: usize, wanted: usize) {
        if self.ledger.limit() == u64::MAX {
            return;
        }
        let scratch = self.reserved_scratch(rows, wanted);
        let mut account = self
            .account
            .lock()
            .unwrap_or_else(|error| error.into_inner());
        // Buffers grow to the largest pass and stay.
        let scratch = scratch.max(account.scratch.bytes());
        account.scratch.resize(scratch);
        // Without a store nothing can give way to the program.
        let Some(kept) = &self.store else { return };
        let passes = self.settled_passes.fetch_add(1, Ordering::Relaxed);
        if rows >= BLOCK_TOKENS || passes.is_multiple_of(PASSES_TO_A_LOOK) {
            account
                .program
                .resize(self.program_bytes + self.program_growth());
        }
        drop(account);
        kept.store.make_space(0);
    }
}

impl Losses {
    /// Notes that a block is lost. Returns whether it is worth computing again.
    fn note(&mut self, key: BlockKey) -> bool {
        self.0.push(key);
        self.0.iter().filter(|known| **known == key).count() <= MOST_LOSSES
    }
}

#[cfg(test)]
mod tests {
    use longview_kv::BlockHash;

    use super::*;

    #[test]
    fn each_block_is_computed_again_so_often_and_no_more() {
        let key = |group| BlockKey {
            hash: BlockHash::seed(&[]),
            group,
        };
        let mut losses = Losses::default();
        for _ in 0..MOST_LOSSES {
            assert!(losses.note(key(0)) && losses.note(key(1)));
        }
        assert!(!losses.note(key(0)) && losses.note(key(2)));
    }
}
