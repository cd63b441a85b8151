//! A context follows a text that has changed: what both have in common stays, the rest is read.

use longview_kv::Context;
use similar::{Algorithm, DiffOp, capture_diff_slices};

use crate::engine::Engine;
use crate::error::EngineError;
use crate::prefill::{Control, PrefillProgress};

/// What a context may take over from an earlier version of its text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reuse {
    /// What both begin with: exact.
    #[default]
    Prefix,
    /// Also what both have further on, at least `least_tokens` tokens in a row: keys and values are
    /// moved to their new positions, although they were computed with what stood before them then.
    Shift {
        /// Shorter spans are computed again.
        least_tokens: usize,
    },
}

/// Where the tokens of a realigned context came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Realigned {
    /// Tokens of the new text that the context holds now; the rest is still to be read.
    pub held: usize,
    /// Those of them that were moved from other positions: they make the context approximate.
    pub moved: usize,
    /// Those of them that were computed on the way.
    pub computed: usize,
    /// Whether reading between moved spans was stopped.
    pub control: Control,
}

impl Engine {
    /// Makes `context`, which holds an earlier version of a text, hold as much of `tokens` as `reuse`
    /// allows, at most all but the last. Text between moved spans is read on the way, with `on` told
    /// of it.
    ///
    /// # Errors
    /// As [`Engine::align`] and [`Engine::prefill`]. A context that moved text cannot be made for,
    /// because its layers do not allow it, is aligned exactly.
    pub fn realign(
        &self,
        context: &mut Context,
        tokens: &[u32],
        reuse: Reuse,
        on: &mut dyn FnMut(PrefillProgress) -> Control,
    ) -> Result<Realigned, EngineError> {
        if let Reuse::Shift { least_tokens } = reuse
            && let Some(realigned) = self.shift(context, tokens, least_tokens, on)?
        {
            return Ok(realigned);
        }
        Ok(Realigned {
            held: self.align(context, tokens)?,
            moved: 0,
            computed: 0,
            control: Control::Continue,
        })
    }

    /// [`Reuse::Shift`]; `None`, with the context as it was, where nothing can be moved.
    fn shift(
        &self,
        context: &mut Context,
        tokens: &[u32],
        least_tokens: usize,
        on: &mut dyn FnMut(PrefillProgress) -> Control,
    ) -> Result<Option<Realigned>, EngineError> {
        if self.model().layout().is_recurrent() {
            // A state is of all that stood before it: nothing can be moved.
            return Ok(None);
        }
        let usable = &tokens[..tokens.len().saturating_sub(1)];
        let common = context.tokens().common_prefix(usable);
        let old = context.tokens().range(common..context.len());
        let new = &usable[common..];
        let equal = |op: &DiffOp| match *op {
            DiffOp::Equal {
                old_index,
                new_index,
                len,
            } if len >= least_tokens.max(1) => Some((common + old_index, common + new_index, len)),
            _ => None,
        };
        let spans: Vec<(usize, usize, usize)> = capture_diff_slices(Algorithm::Myers, &old, new)
            .iter()
            .filter_map(equal)
            .collect();
        if spans.is_empty() {
            return Ok(None);
        }
        let mut fresh = context.fork();
        if fresh.truncate(common).is_err() {
            // Windows have passed what going back would need.
            return Ok(None);
        }
        let mut realigned = Realigned {
            held: common,
            moved: 0,
            computed: 0,
            control: Control::Continue,
        };
        for (from, to, len) in spans {
            let between = &usable[fresh.len()..to];
            realigned.control = self.prefill(&mut fresh, between, on)?;
            realigned.computed += between.len();
            if realigned.control == Control::Stop {
                realigned.computed -= to - fresh.len();
                break;
            }
            if fresh.append_moved(context, from..from + len).is_err() {
                break;
            }
            realigned.moved += len;
        }
        realigned.held = fresh.len();
        if realigned.moved == 0 && realigned.control == Control::Continue {
            return Ok(None);
        }
        *context = fresh;
        Ok(Some(realigned))
    }
}
