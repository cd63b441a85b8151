//! A forward pass within the memory allowed, over blocks that may have to be read or computed again.

use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

use longview_kv::{Context, Segment, Wanted};
use longview_models::Workspace;
use smallvec::SmallVec;

use crate::engine::Engine;
use crate::error::EngineError;

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
        let away = |segment: &Segment<'_>| segment.context.away_bytes() > 0;
        let pressed = self.ledger.limit() != u64::MAX && segments.iter().any(away);
        self.settle_memory(rows, wanted, pressed.then_some(&mut *workspace));
        self.has_run.store(true, Ordering::Relaxed);
        loop {
            let attempt = segments.iter_mut().map(Segment::reborrow);
            let Err(error) = self.model.forward(&self.exec, attempt, &mut workspace) else {
                return Ok(workspace);
            };
            let contexts = segments.iter_mut().map(|segment| &mut *segment.context);
            self.recompute(error.into(), contexts, &mut workspace)?;
        }
    }

    /// Computes again what `error` says is lost; any other error is handed back.
    pub(crate) fn recompute<'c>(
        &self,
        error: EngineError,
        contexts: impl Iterator<Item = &'c mut Context>,
        workspace: &mut Workspace,
    ) -> Result<(), EngineError> {
        let Some(key) = error.lost_block() else {
            return Err(error);
        };
        let mut found = false;
        for context in contexts {
            let mut tokens = context.lose(&key);
            while !tokens.is_empty() {
                found = true;
                let chunk = &tokens[..tokens.len().min(self.chunk_tokens)];
                let segment = Segment {
                    context: &mut *context,
                    tokens: chunk,
                    wanted: Wanted::Nothing,
                };
                match self.model.forward(&self.exec, vec![segment], workspace) {
                    Ok(()) => drop(tokens.drain(..chunk.len())),
                    Err(error) => {
                        let error = EngineError::from(error);
                        // More of the same context is lost: go back further.
                        let Some(key) = error.lost_block() else {
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
    /// pass reads all of them: the more it computes the fewer passes there are, but the more scratch
    /// it takes from what could stay in memory. So many are taken that the bytes read a token are the
    /// fewest.
    pub(crate) fn chunk_for(&self, context: &Context) -> usize {
        let usage = self.ledger.usage();
        if self.ledger.limit() == u64::MAX || context.away_bytes() == 0 {
            return self.chunk_tokens;
        }
        let room = self
            .ledger
            .limit()
            .saturating_sub(usage.program + usage.weights);
        let needed = |chunk| {
            let threads = self.exec.pool.threads();
            let scratch = Workspace::predicted_bytes(self.model.blueprint(), chunk, 1, threads);
            scratch + self.model.layout().least_bytes(chunk)
        };
        best_chunk(self.chunk_tokens, context.kv_bytes(), room, needed)
    }

    pub(crate) fn workspace(&self) -> MutexGuard<'_, Workspace> {
        // A panic during a pass leaves buffers that the next pass overwrites anyway.
        self.workspace
            .lock()
            .unwrap_or_else(|error| error.into_inner())
    }

    /// Brings the account up to what is measured, and lets blocks leave memory that no longer fit. Of
    /// buffers in `shrinkable` that are far larger than `rows` rows need, as those of a prefill are for
    /// the steps after it, the memory is given to blocks.
    fn settle_memory(&self, rows: usize, wanted: usize, shrinkable: Option<&mut Workspace>) {
        let Some(kept) = self
            .store
            .as_ref()
            .filter(|_| self.ledger.limit() != u64::MAX)
        else {
            return;
        };
        let growth = self.program_growth();
        let threads = self.exec.pool.threads();
        let scratch = Workspace::predicted_bytes(self.model.blueprint(), rows, wanted, threads);
        let mut account = self
            .account
            .lock()
            .unwrap_or_else(|error| error.into_inner());
        account.program.resize(self.program_bytes + growth);
        match shrinkable {
            Some(workspace) if scratch < account.scratch.bytes() / 2 => {
                workspace.give_back();
                account.scratch.resize(scratch);
            }
            // Buffers grow to the largest pass and stay.
            _ => {
                let scratch = scratch.max(account.scratch.bytes());
                account.scratch.resize(scratch);
            }
        }
        drop(account);
        kept.store.make_space(0);
    }
}

/// The multiple of `step` for which a pass over a context of `held` bytes reads the fewest bytes a token,
/// when it must have `needed` bytes of the `room` there is and what is left of it keeps blocks.
fn best_chunk(step: usize, held: u64, room: u64, needed: impl Fn(usize) -> u64) -> usize {
    let chunks = (step..=LARGEST_CHUNK.max(step)).step_by(step);
    let reads = |chunk: usize| {
        let kept = room.checked_sub(needed(chunk))?;
        Some(held.saturating_sub(kept) as f64 / chunk as f64)
    };
    chunks
        .filter_map(|chunk| Some((reads(chunk)?, chunk)))
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .map_or(step, |(_, chunk)| chunk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_grow_with_what_is_away_and_never_beyond_the_room() {
        let chunk = |held: u64, room: u64| best_chunk(512, held, room, |chunk| 10 * chunk as u64);
        // 10 bytes of scratch a token: of 30,000 bytes, chunks of 512 leave 24,880 for blocks.
        assert_eq!(chunk(24_000, 30_000), 512);
        // Slightly more is still best read in the chunks that leave most of it in memory.
        assert_eq!(chunk(25_000, 30_000), 512);
        assert_eq!(chunk(60_000, 30_000), 2560);
        assert_eq!(chunk(1_000_000, 30_000), 2560);
        assert_eq!(chunk(3_000_000, 1_000_000), LARGEST_CHUNK);
        // What does not fit at all is for the plan to refuse.
        assert_eq!(chunk(1_000_000, 100), 512);
    }
}
