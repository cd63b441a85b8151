//! Text that a request takes over from an earlier version of its prompt, moved to where it stands now.
//!
//! An earlier version is what the store has most in common with the prompt, or the context of an earlier
//! request that has moved text itself, which nobody finds by content. The scheduler remembers a few of the
//! latter, as long as nobody needs their memory.

use std::collections::VecDeque;
use std::ops::Range;

use longview_kv::Context;

use super::Scheduler;
use super::job::Kind;
use super::request::MovedText;
use super::sequence::Sequence;
use crate::error::EngineError;
use crate::realign::{Span, common_spans};

/// The most contexts that are remembered.
const MOST_REMEMBERED: usize = 8;

/// What one sequence takes over from an earlier version of its text.
#[derive(Default)]
pub(super) struct Moves {
    /// The earlier version, and where spans of it go, in order; none when all are there.
    from: Option<(Context, VecDeque<Span>)>,
    /// Its tokens whose keys and values were computed for another place, ascending.
    moved: Vec<Range<usize>>,
}

impl Moves {
    /// Whether nothing was moved and nothing will be.
    pub(super) fn is_nothing(&self) -> bool {
        self.from.is_none() && self.moved.is_empty()
    }

    /// Whether something was moved.
    pub(super) fn have_moved(&self) -> bool {
        !self.moved.is_empty()
    }

    /// The same for another text that goes on from the end of the prompt.
    pub(super) fn moved(&self) -> Moves {
        Moves {
            from: None,
            moved: self.moved.clone(),
        }
    }

    /// Where the next span goes: up to there is to be read.
    pub(super) fn next(&self) -> Option<usize> {
        let (_, spans) = self.from.as_ref()?;
        spans.front().map(|span| span.to)
    }

    /// Tokens that were moved.
    pub(super) fn tokens(&self) -> usize {
        self.moved.iter().map(Range::len).sum()
    }

    /// What was moved of the first `tokens` tokens.
    fn before(&self, tokens: usize) -> Moves {
        let within = |moved: &Range<usize>| moved.start..moved.end.min(tokens);
        let moved = self.moved.iter().map(within);
        Moves {
            from: None,
            moved: moved.filter(|moved| !moved.is_empty()).collect(),
        }
    }

    /// Appends to `context` what goes where it ends. Returns how many tokens that is.
    pub(super) fn take(&mut self, context: &mut Context) -> usize {
        let mut taken = 0;
        while let Some((from, spans)) = &mut self.from {
            let Some(&Span { from: old, to, len }) = spans.front() else {
                self.from = None;
                break;
            };
            if to > context.len() {
                break;
            }
            // What cannot be moved is read, and so is what follows: the layers do not allow it.
            if to < context.len() || context.append_moved(from, old..old + len).is_err() {
                self.from = None;
                break;
            }
            spans.pop_front();
            self.moved.push(to..to + len);
            taken += len;
        }
        taken
    }
}

/// A context with moved text that no request owns.
pub(super) struct Remembered {
    tenant: u64,
    pub(super) context: Context,
    moves: Moves,
}

/// What there is to be had of an earlier version.
struct Offer<'a> {
    from: &'a Context,
    /// Tokens of its own that were moved.
    moves: Option<&'a Moves>,
    /// Tokens that both begin with.
    common: usize,
    spans: Vec<Span>,
}

impl<'a> Offer<'a> {
    /// What `from`, which has `moves`, has of the tokens of a prompt, the last of which is always computed.
    fn new(from: &'a Context, moves: Option<&'a Moves>, prompt: &[u32], least: usize) -> Offer<'a> {
        let usable = &prompt[..prompt.len() - 1];
        let common = from.tokens().common_prefix(usable);
        let old = from.tokens().range(common..from.len());
        let spans = common_spans(&old, &usable[common..], least).into_iter();
        Offer {
            from,
            moves,
            common,
            spans: spans.map(|span| span.after(common)).collect(),
        }
    }

    /// A context with what both begin with; `None` where windows have passed what going back would need.
    fn beginning(&self) -> Option<Context> {
        let mut fork = self.from.fork();
        fork.truncate(self.common).ok()?;
        Some(fork)
    }

    /// Tokens that need not be read, of a prompt of which `held` are there already.
    fn tokens(&self, held: usize) -> usize {
        let beyond = self.spans.iter().filter_map(|span| span.beyond(held));
        self.common.max(held) + beyond.map(|span| span.len).sum::<usize>()
    }
}

impl Scheduler {
    /// Has a sequence that was opened take over what it may of the earlier version that has most.
    pub(super) fn plan_moves(&self, sequence: &mut Sequence) -> Result<(), EngineError> {
        let job = &self.jobs[&sequence.job];
        let Some(MovedText {
            least_tokens,
            earlier,
        }) = &job.moved
        else {
            return Ok(());
        };
        let acted_on = !job.methods.is_nothing() || job.goes_on || job.is_scoring();
        let is_recurrent = self.engine.model().layout().is_recurrent();
        if acted_on || is_recurrent || job.kind != Kind::Writes {
            return Ok(());
        }
        let held = sequence.held();
        let own = self.remembered.iter().filter(|one| {
            one.tenant == job.tenant.id() && sequence.can_take_over(&one.context, &self.engine)
        });
        let own = own.map(|one| (&one.context, Some(&one.moves)));
        let all = earlier.iter().map(|context| (context, None)).chain(own);
        let mut best: Option<Offer<'_>> = None;
        for (from, moves) in all {
            let offer = Offer::new(from, moves, &sequence.tokens, *least_tokens);
            // Of equals the first, which is exact.
            if best
                .as_ref()
                .is_none_or(|best| offer.tokens(held) > best.tokens(held))
            {
                best = Some(offer);
            }
        }
        let Some(best) = best.filter(|best| best.tokens(held) >= held + least_tokens) else {
            return Ok(());
        };
        let begun = (best.common > held).then(|| best.beginning()).flatten();
        let base = begun.as_ref().map_or(held, Context::len);
        let mut moves = match (&begun, best.moves) {
            (Some(_), Some(moves)) => moves.before(base),
            _ => Moves::default(),
        };
        let left = best.spans.iter().filter_map(|span| span.beyond(base));
        let spans = left.filter(|span| span.len >= *least_tokens).collect();
        moves.from = Some((best.from.fork(), spans));
        sequence.take_over(begun, moves, job)?;
        sequence.take_moved();
        Ok(())
    }

    /// Remembers what a request with moved text leaves, for the one that goes on from it. What is exact is
    /// in the store, if there is one.
    pub(super) fn remember(&mut self, tenant: u64, context: Context, moves: Moves) {
        if !moves.have_moved() && self.engine.store().is_some() {
            return;
        }
        if self.remembered.len() == MOST_REMEMBERED {
            self.remembered.remove(0);
        }
        self.remembered.push(Remembered {
            tenant,
            context,
            moves,
        });
    }

    /// Lets go of what is remembered. Returns whether there was anything.
    pub fn forget(&mut self) -> bool {
        !std::mem::take(&mut self.remembered).is_empty()
    }
}
