//! Spans of finished work leave a context: results of tools that were used, sub-tasks that were concluded.

use std::ops::Range;

use longview_kv::{Context, KvError};

use crate::engine::Engine;
use crate::error::EngineError;
use crate::prefill::{Control, PrefillProgress};
use crate::realign::Reuse;
use crate::threads::finished_work;

/// What leaves, and what becomes of the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prune {
    /// Pieces of work that stay, those finished last.
    pub last: usize,
    /// What becomes of the text after what leaves.
    pub tail: Tail,
}

/// What becomes of the text after what leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tail {
    /// It is read again: the context is what reading the rest alone gives, to the bit.
    #[default]
    Anew,
    /// It moves up with the keys and values it has, which were computed when the work stood there: but
    /// for pieces of a few tokens nothing is computed, and the context is an approximation.
    Moved,
}

/// What a pruning did.
#[derive(Clone, Debug, PartialEq)]
pub struct Pruned {
    /// The tokens that left, as they were numbered.
    pub spans: Vec<Range<usize>>,
    /// How many they are.
    pub tokens: usize,
    /// Tokens after them that were read again.
    pub read_again: usize,
    /// Bytes of keys and values that the context holds less.
    pub bytes_freed: u64,
    /// [`Control::Stop`] where the reading was stopped: the rest is still to be read.
    pub control: Control,
}

/// Moved text begins at a block, of which it takes all 64 slots: what is shorter is read again, which
/// costs little and keeps rewritten passages, whose words a diff finds one by one, from filling memory.
const LEAST_MOVED: usize = longview_kv::BLOCK_TOKENS / 4;

impl Tail {
    /// What of the text after a gap may be taken over.
    pub fn reuse(self) -> Reuse {
        match self {
            Tail::Anew => Reuse::Prefix,
            Tail::Moved => Reuse::Shift {
                least_tokens: LEAST_MOVED,
            },
        }
    }
}

impl Engine {
    /// Lets finished work leave `context`, see [`finished_work`](crate::finished_work): its tokens are
    /// removed and its bytes are free. Only whole tokens leave. Nothing changes where nothing is
    /// finished.
    ///
    /// # Errors
    /// As [`Engine::remove`].
    pub fn prune(
        &self,
        context: &mut Context,
        prune: Prune,
        on: &mut dyn FnMut(PrefillProgress) -> Control,
    ) -> Result<Pruned, EngineError> {
        let spans = self.finished_spans(&context.tokens().to_vec(), prune.last);
        self.remove(context, spans, prune.tail, on)
    }

    /// The whole tokens of finished work in `tokens`, all but the `last` pieces that were finished last.
    fn finished_spans(&self, tokens: &[u32], last: usize) -> Vec<Range<usize>> {
        let mut text = Vec::new();
        let mut ends = Vec::with_capacity(tokens.len());
        for &id in tokens {
            text.extend(self.tokenizer().token_bytes(id).unwrap_or_default());
            ends.push(text.len());
        }
        // Lossless for what is looked for, which is ASCII; lengths must stay.
        let text: String = text
            .iter()
            .map(|&byte| {
                if byte.is_ascii() {
                    char::from(byte)
                } else {
                    '?'
                }
            })
            .collect();
        finished_work(&text, last)
            .into_iter()
            .map(|bytes| whole_tokens(&ends, bytes))
            .filter(|tokens| !tokens.is_empty())
            .collect()
    }

    /// Removes the tokens `spans`, ascending and apart, from `context`. Where it cannot go back to before
    /// them, since windows or recurrent states have passed, all that is left is read again.
    ///
    /// # Errors
    /// Where a keep method has dropped pairs, and those of the prefill. What the context holds is then a
    /// prefix of what it was to hold.
    pub fn remove(
        &self,
        context: &mut Context,
        spans: Vec<Range<usize>>,
        tail: Tail,
        on: &mut dyn FnMut(PrefillProgress) -> Control,
    ) -> Result<Pruned, EngineError> {
        let before = context.kv_bytes();
        let tokens = spans.iter().map(Range::len).sum();
        let mut pruned = Pruned {
            tokens,
            spans,
            read_again: 0,
            bytes_freed: 0,
            control: Control::Continue,
        };
        if pruned.tokens == 0 {
            return Ok(pruned);
        }
        let all = context.tokens().to_vec();
        let mut rest = Vec::with_capacity(all.len() - tokens);
        let mut from = 0;
        for span in &pruned.spans {
            rest.extend_from_slice(&all[from..span.start]);
            from = span.end;
        }
        rest.extend_from_slice(&all[from..]);
        let realigned = match self.realign(context, &rest, tail.reuse(), on) {
            Err(EngineError::Kv(KvError::WindowPassed { .. } | KvError::NoCheckpoint { .. })) => {
                context.truncate(0)?;
                self.realign(context, &rest, Reuse::Prefix, on)?
            }
            realigned => realigned?,
        };
        pruned.control = realigned.control;
        if realigned.control == Control::Continue {
            pruned.control = self.prefill(context, &rest[realigned.held..], on)?;
        }
        pruned.read_again = realigned.computed + context.len() - realigned.held;
        pruned.bytes_freed = before.saturating_sub(context.kv_bytes());
        Ok(pruned)
    }
}

/// Finished work that leaves a text while it is written.
pub(crate) struct Leaving {
    prune: Prune,
    /// Where the text begins in its context, once something of it is chosen.
    start: Option<usize>,
}

impl Leaving {
    pub(crate) fn new(prune: Prune) -> Leaving {
        Leaving { prune, start: None }
    }

    /// Lets what has been finished in the text so far leave `context`, which holds all of it but the token
    /// chosen last. Nothing leaves where the context cannot go back to before it.
    pub(crate) fn leave(
        &mut self,
        engine: &Engine,
        context: &mut Context,
    ) -> Result<Option<Pruned>, EngineError> {
        let start = *self.start.get_or_insert(context.len());
        let written = context.tokens().range(start..context.len());
        let closes = |id: &u32| {
            let bytes = engine.tokenizer().token_bytes(*id);
            bytes.is_some_and(|bytes| bytes.iter().any(|byte| b"]}\">".contains(byte)))
        };
        // Work ends with one of these, so most steps look no further.
        if !written.last().is_some_and(closes) {
            return Ok(None);
        }
        let spans = engine.finished_spans(&written, self.prune.last);
        let spans = spans.into_iter();
        let spans: Vec<Range<usize>> = spans
            .map(|span| start + span.start..start + span.end)
            .collect();
        let first = spans.first().map(|span| span.start);
        if first.is_none_or(|first| context.resumable(first).is_none()) {
            return Ok(None);
        }
        let go_on = &mut |_| Control::Continue;
        engine
            .remove(context, spans, self.prune.tail, go_on)
            .map(Some)
    }
}

/// The tokens that lie whole within `bytes`, given where each ends.
fn whole_tokens(ends: &[usize], bytes: Range<usize>) -> Range<usize> {
    // The first that begins at or after the start: the one after the first that ends there or later.
    let first = match bytes.start {
        0 => 0,
        start => ends.partition_point(|&end| end < start) + 1,
    };
    let last = ends.partition_point(|&end| end <= bytes.end);
    first..last.max(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_tokens_leave() {
        // Tokens of 3, 2, 4 and 1 bytes.
        let ends = [3, 5, 9, 10];
        assert_eq!(whole_tokens(&ends, 0..10), 0..4);
        assert_eq!(whole_tokens(&ends, 3..9), 1..3);
        assert_eq!(whole_tokens(&ends, 2..9), 1..3);
        assert_eq!(whole_tokens(&ends, 4..9), 2..3);
        assert_eq!(whole_tokens(&ends, 3..8), 1..2);
        assert!(whole_tokens(&ends, 6..8).is_empty());
        assert!(whole_tokens(&ends, 10..10).is_empty());
    }
}
