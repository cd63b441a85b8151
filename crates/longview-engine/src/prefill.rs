//! Prefill: reading tokens into a context, chunk by chunk.

use std::time::{Duration, Instant};

use longview_kv::{BLOCK_TOKENS, Context, Segment, Wanted};

use crate::engine::Engine;
use crate::error::EngineError;

/// What to do after a step of a long piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Go on.
    Continue,
    /// Leave off here; what is done stays done.
    Stop,
}

/// How far a prefill has come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PrefillProgress {
    /// Tokens read by this prefill.
    pub done: usize,
    /// Tokens it was asked to read.
    pub total: usize,
    /// Tokens that the context held when it began: read before, or taken over from the store.
    pub reused: usize,
    /// Time since it began.
    pub elapsed: Duration,
}

impl PrefillProgress {
    /// Tokens read a second so far.
    pub fn tokens_per_second(&self) -> f64 {
        self.done as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// What becomes of the last chunk of a prefill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LastChunk {
    Read,
    /// It is left to the pass that begins the answer, unless it is full: while blocks are away, every pass
    /// reads all of them.
    LeftUnlessFull,
}

impl Engine {
    /// Reads `tokens` into `context` in chunks of [`Engine::chunk_tokens`], calling `on` after
    /// each; where blocks of the context are on disk chunks are larger, and where memory runs short
    /// smaller. Every finished chunk stays in the context when `on` stops the prefill, when it
    /// fails, and when the process goes on to something else: reading the rest later gives the
    /// same bits as reading all at once. Recurrent layers keep their state at the last block edge,
    /// so that the context can go back to there and is found by content. A keep method that decides
    /// while a prompt is read does so on the way.
    ///
    /// # Errors
    /// When the tokens do not fit the model's context or the memory allowed, and the keep method's.
    pub fn prefill(
        &self,
        context: &mut Context,
        tokens: &[u32],
        on: &mut dyn FnMut(PrefillProgress) -> Control,
    ) -> Result<Control, EngineError> {
        let read = self.read_chunks(context, tokens, LastChunk::Read, on);
        read.map(|(control, _)| control)
    }

    /// The same, with the last chunk as `last` says. Returns how many tokens were read, too.
    pub(crate) fn read_chunks(
        &self,
        context: &mut Context,
        tokens: &[u32],
        last: LastChunk,
        on: &mut dyn FnMut(PrefillProgress) -> Control,
    ) -> Result<(Control, usize), EngineError> {
        let (start, reused) = (Instant::now(), context.len());
        let mut done = 0;
        let mut most = usize::MAX;
        while done < tokens.len() {
            let rest = &tokens[done..];
            let wanted = self.chunk_for(context).min(most);
            if last == LastChunk::LeftUnlessFull && rest.len() < wanted {
                break;
            }
            let chunk = &rest[..context.next_pass(rest.len(), wanted)];
            let segment = Segment {
                context: &mut *context,
                tokens: chunk,
                wanted: Wanted::Nothing,
            };
            let begun = Instant::now();
            match self.pass([segment]) {
                Ok(workspace) => drop(workspace),
                Err(error) => {
                    most = self.smaller_pass(error, chunk.len())?;
                    continue;
                }
            }
            if chunk.len() >= BLOCK_TOKENS {
                let work = self.operations(chunk.len(), context.len() - chunk.len());
                let mut speed = self.speed.lock().unwrap_or_else(|error| error.into_inner());
                speed.learn(work, begun.elapsed());
            }
            done += chunk.len();
            self.keep_pace(context)?;
            if tokens.len() - done < BLOCK_TOKENS {
                context.checkpoint();
            }
            let progress = PrefillProgress {
                done,
                total: tokens.len(),
                reused,
                elapsed: start.elapsed(),
            };
            if on(progress) == Control::Stop && done < tokens.len() {
                return Ok((Control::Stop, done));
            }
        }
        Ok((Control::Continue, done))
    }
}
