//! A forward pass within the memory allowed, over blocks that may have to be read or computed again.

use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

use longview_kv::tier::BlockKey;
use longview_kv::{BLOCK_TOKENS, Context, Segment, Wanted};
use longview_models::Workspace;
use smallvec::SmallVec;

use crate::account::Buffers;
use crate::engine::Engine;
use crate::error::EngineError;

/// A block that is lost again after it was computed so often is lost for good: the place that should hold
/// it does not.
const MOST_LOSSES: usize = 3;

/// The blocks that turned out to be lost while one thing was done, each as often as it was.
#[derive(Default)]
pub(crate) struct Losses(Vec<BlockKey>);

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
        let is_limited = self.ledger.limit() != u64::MAX;
        let mut contexts = segments.iter().map(|segment| &segment.context);
        // Every step of an answer reads what is away.
        let buffers = match is_limited && contexts.any(|context| context.away_bytes() > 0) {
            true => Buffers::AsNeeded,
            false => Buffers::Stay,
        };
        self.settle_memory(&mut workspace, rows, wanted, buffers);
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
            let mut may_follow = true;
            while !tokens.is_empty() {
                found = true;
                // What follows the lost block may still be there.
                let to_edge = BLOCK_TOKENS - context.len() % BLOCK_TOKENS;
                let most = if may_follow {
                    to_edge
                } else {
                    self.chunk_tokens
                };
                let count = context.next_pass(tokens.len(), most);
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
                        // A keep method goes by all that is read.
                        let is_read = context.keep_method().is_some();
                        if may_follow && context.len().is_multiple_of(BLOCK_TOKENS) && !is_read {
                            tokens.drain(..context.find_again(&tokens)?);
                            may_follow = false;
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
                        may_follow = true;
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
    /// for which memory has room.
    pub(crate) fn chunk_for(&self, context: &Context) -> usize {
        if self.ledger.limit() == u64::MAX || context.away_bytes() == 0 {
            return self.chunk_tokens;
        }
        let largest = LARGEST_CHUNK.max(self.chunk_tokens);
        self.with_passes(context, |passes| passes.best_chunk(context.len(), largest))
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

    pub(crate) fn workspace(&self) -> MutexGuard<'_, Workspace> {
        // A panic during a pass leaves buffers that the next pass overwrites anyway.
        self.workspace
            .lock()
            .unwrap_or_else(|error| error.into_inner())
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
