//! A context follows a text that has changed: what both have in common stays, the rest is read.

use std::collections::HashMap;

use longview_kv::Context;

use crate::engine::{Engine, Tenant};
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
        let spans = common_spans(&old, &usable[common..], least_tokens);
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
        for Span { from, to, len } in spans.into_iter().map(|span| span.after(common)) {
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
    /// A context with the text that a tenant's store has most of `tokens` of, under the rotary frequencies of
    /// a context planned for `planned_tokens`: an earlier version of it, to move text from. `None` when
    /// nothing was read that has anything in common with them, or reading it back takes longer than computing
    /// it did. Looks at all that the store knows, so it is asked beside the thread that computes.
    ///
    /// # Errors
    /// As [`Engine::new_context_of`].
    pub fn earlier_version(
        &self,
        tenant: &Tenant,
        tokens: &[u32],
        planned_tokens: usize,
    ) -> Result<Option<Context>, EngineError> {
        let mut context = self.unplanned_context(tenant, planned_tokens)?;
        let earlier = context.earlier_version(tokens);
        context.attach(&earlier)?;
        Ok(Some(context).filter(|context| !context.is_empty()))
    }
}

/// Tokens in a row that two texts have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Where the old text has them.
    pub(crate) from: usize,
    /// Where the new text has them.
    pub(crate) to: usize,
    pub(crate) len: usize,
}

impl Span {
    /// The same where both texts have `tokens` more before it.
    pub(crate) fn after(self, tokens: usize) -> Span {
        Span {
            from: self.from + tokens,
            to: self.to + tokens,
            len: self.len,
        }
    }

    /// What of it lies at place `to` of the new text or further on, if anything does.
    pub(crate) fn beyond(self, to: usize) -> Option<Span> {
        let gone = to.saturating_sub(self.to);
        let left = self.len.checked_sub(gone).filter(|&left| left > 0);
        left.map(|len| Span {
            from: self.from + gone,
            to: self.to + gone,
            len,
        })
    }
}

/// Places of one window of the old text that are looked at, and the longest taken: text that says the same
/// over and over must not take long.
const MOST_PLACES: usize = 8;

/// Spans of at least `least` tokens that `new` has in common with `old`, in the order of both and apart. From
/// left to right each is the longest at the first place where there is one, so the time is that of going
/// through both texts once.
pub(crate) fn common_spans(old: &[u32], new: &[u32], least: usize) -> Vec<Span> {
    let least = least.max(1);
    // A span of so many tokens has a whole window of the old text in it, wherever those begin.
    let window = least.div_ceil(2);
    let mut places: HashMap<u64, Vec<usize>> = HashMap::new();
    for (number, tokens) in old.chunks_exact(window).enumerate() {
        places
            .entry(rolled(tokens))
            .or_default()
            .push(number * window);
    }
    let mut spans = Vec::new();
    let (mut old_done, mut new_done, mut at) = (0, 0, 0);
    let mut hash = None;
    while at + window <= new.len() {
        let here = hash.unwrap_or_else(|| rolled(&new[at..at + window]));
        let known = places.get(&here).map_or(&[][..], Vec::as_slice);
        let first = known.partition_point(|&place| place < old_done);
        let known = known[first..].iter().copied().take(MOST_PLACES);
        let grown = known.filter(|&place| old[place..place + window] == new[at..at + window]);
        let grown = grown.map(|place| {
            let (before, behind) = (&old[old_done..place], &old[place + window..]);
            let back = same(before.iter().rev(), new[new_done..at].iter().rev());
            let forth = same(behind.iter(), new[at + window..].iter());
            Span {
                from: place - back,
                to: at - back,
                len: back + window + forth,
            }
        });
        // Of equals the one that leaves most of the old text to come.
        let longest = grown.max_by_key(|span| (span.len, std::cmp::Reverse(span.from)));
        if let Some(span) = longest.filter(|span| span.len >= least) {
            (old_done, new_done) = (span.from + span.len, span.to + span.len);
            at = new_done;
            hash = None;
            spans.push(span);
            continue;
        }
        hash = new
            .get(at + window)
            .map(|&next| roll(here, window, new[at], next));
        at += 1;
    }
    spans
}

/// How many of the first of both are the same.
fn same<'a>(one: impl Iterator<Item = &'a u32>, other: impl Iterator<Item = &'a u32>) -> usize {
    one.zip(other).take_while(|(a, b)| a == b).count()
}

/// What hashes that roll over a text are multiplied by with every token.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// A hash of tokens that [`roll`] moves on by one.
fn rolled(tokens: &[u32]) -> u64 {
    let add =
        |hash: u64, &token: &u32| hash.wrapping_mul(FACTOR).wrapping_add(u64::from(token) + 1);
    tokens.iter().fold(0, add)
}

/// The hash of `window` tokens, with the first, `gone`, taken away and `next` put behind.
fn roll(hash: u64, window: usize, gone: u32, next: u32) -> u64 {
    let weight = FACTOR.wrapping_pow(window as u32);
    let rest = hash
        .wrapping_mul(FACTOR)
        .wrapping_sub((u64::from(gone) + 1).wrapping_mul(weight));
    rest.wrapping_add(u64::from(next) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_roll() {
        let text: Vec<u32> = (0..40).map(|at| at * at % 17).collect();
        for window in [1, 2, 7, 32] {
            let mut hash = rolled(&text[..window]);
            for at in 0..text.len() - window {
                hash = roll(hash, window, text[at], text[at + window]);
                assert_eq!(hash, rolled(&text[at + 1..at + 1 + window]));
            }
        }
    }

    #[test]
    fn what_both_have_is_found_in_the_order_of_both() {
        let old: Vec<u32> = (100..200).collect();
        let new = [&old[3..40], &[1, 2, 3], &old[60..75], &[4], &old[70..100]].concat();
        let span = |from, to, len| Span { from, to, len };
        // What was moved already does not come again.
        let all = [span(3, 0, 37), span(60, 40, 15), span(75, 61, 25)];
        assert_eq!(common_spans(&old, &new, 15), all);
        assert_eq!(common_spans(&old, &new, 16), [all[0], span(70, 56, 30)]);
        assert!(common_spans(&old, &new, 38).is_empty());
        assert_eq!(common_spans(&old, &old, 1), [span(0, 0, 100)]);
        assert!(common_spans(&[], &new, 4).is_empty());
        assert!(common_spans(&old, &[], 4).is_empty());
        // Backwards only one of two.
        let turned = [&old[50..], &old[..50]].concat();
        assert_eq!(common_spans(&old, &turned, 20), [span(50, 0, 50)]);
    }

    #[test]
    fn spans_are_equal_in_both_long_enough_and_apart_in_texts_that_repeat() {
        let mut x = 5_u32;
        let mut next = |below: u32| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (x >> 8) % below
        };
        for round in 0..300 {
            let words = 1 + round % 5;
            let old: Vec<u32> = (0..next(200)).map(|_| next(words)).collect();
            let new: Vec<u32> = match round % 2 {
                0 => (0..next(200)).map(|_| next(words)).collect(),
                _ => old.iter().copied().filter(|_| next(9) > 0).collect(),
            };
            let least = 1 + next(30) as usize;
            let (mut from, mut to) = (0, 0);
            for span in common_spans(&old, &new, least) {
                assert!(span.len >= least && span.from >= from && span.to >= to);
                (from, to) = (span.from + span.len, span.to + span.len);
                assert_eq!(old[span.from..from], new[span.to..to]);
            }
        }
    }
}
