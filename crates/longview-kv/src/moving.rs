//! Text that moves: spans that leave a context, and spans that another context has read elsewhere.
//!
//! Keys and values stay as they were computed, with what stood before them then. So a context with
//! moved text is an approximation, and never found by content.

use std::ops::Range;
use std::sync::Arc;

use crate::BLOCK_TOKENS;
use crate::batch::pack_layer;
use crate::context::{Context, Home};
use crate::error::KvError;
use crate::hash::BlockHash;
use crate::layout::LayerState;
use crate::pattern::Sparse;
use crate::places::{Places, Stretch};
use crate::records::new_id;
use crate::run::{BlockRun, Gap, Slot};
use crate::shared::SharedList;
use crate::tokens::PIECE;

impl Context {
    /// Removes the tokens `span`; those after it move up. Their keys and values stay as they are:
    /// they were computed when the span was there, so the context is an approximation from here on,
    /// see [`Context::is_exact`].
    ///
    /// # Errors
    /// [`KvError::BeyondEnd`] when the context is shorter, [`KvError::WindowPassed`] when a
    /// sliding-window layer no longer holds tokens that would come into its window,
    /// [`KvError::SpanInState`] when the model has recurrent layers, [`KvError::PairsGone`] when a keep
    /// method has dropped pairs.
    pub fn remove_span(&mut self, span: Range<usize>) -> Result<(), KvError> {
        if span.is_empty() {
            return Ok(());
        }
        if span.end >= self.len() {
            let held = self.len();
            return match span.end == held {
                true => self.truncate(span.start),
                false => Err(KvError::BeyondEnd {
                    wanted: span.end,
                    held,
                }),
            };
        }
        if self.layout.is_recurrent() {
            return Err(KvError::SpanInState { span });
        }
        self.check_unkept(span.start)?;
        self.check_unread()?;
        let mut places = self.places.clone();
        places.remove(span.clone());
        self.check_windows(&places, self.len() - span.len())?;

        // Blocks between the last token that stays before it and the first after it have none.
        let last = span.start.checked_sub(1);
        let first = last.map_or(0, |last| self.places.slot(last) / BLOCK_TOKENS + 1);
        let end = self.places.slot(span.end) / BLOCK_TOKENS;
        for run in &mut self.groups {
            run.remove(first..end);
        }
        let what = format!("without tokens {}..{}", span.start, span.end);
        let now = self.name().derived(&what);
        let rest = self.tokens.to_vec(span.end..self.len());
        self.tokens.truncate(span.start);
        self.tokens.extend(rest);
        self.places = places;
        if let Some(home) = &mut self.home {
            // From the first block that changed on, nothing here is what its tokens alone say.
            let full = home.chain.len();
            home.chain.truncate(span.start / BLOCK_TOKENS);
            home.derive(now, full);
        }
        self.share_full();
        Ok(())
    }

    /// Appends the tokens `span` of `from` with the keys and values they have there, moved to their
    /// new positions. Blocks are shared, not copied: the span begins as far into a block as it did there,
    /// so up to 63 slots stay empty where the text before ends and as many where the span begins, and count
    /// as bytes held. The context is an approximation from here on, see [`Context::is_exact`].
    ///
    /// # Errors
    /// [`KvError::WrongIdentity`] for a context of another model, [`KvError::BeyondEnd`] when `from`
    /// is shorter, [`KvError::WindowPassed`] when its sliding-window layers no longer hold the end
    /// of the span, [`KvError::SinksMoved`] when the first tokens of a context have a form of their own
    /// and the span would come among them, [`KvError::SpanInState`] when the model has recurrent layers,
    /// [`KvError::PairsGone`] when a keep method has dropped pairs of either, [`KvError::OverLimit`] when
    /// there is no room for a block.
    pub fn append_moved(&mut self, from: &Context, span: Range<usize>) -> Result<(), KvError> {
        if self.identity() != from.identity() || self.layout != from.layout {
            return Err(KvError::WrongIdentity);
        }
        if span.end > from.len() {
            return Err(KvError::BeyondEnd {
                wanted: span.end,
                held: from.len(),
            });
        }
        if span.is_empty() {
            return Ok(());
        }
        if self.layout.is_recurrent() {
            return Err(KvError::SpanInState { span });
        }
        self.check_unkept(self.len())?;
        from.check_unkept(span.start)?;
        self.check_unread()?;
        from.check_unread()?;
        let place = self.places.slot(self.len()).div_ceil(BLOCK_TOKENS);
        let blocks = self.layout.groups.iter().map(|group| group.most_blocks);
        let of_sinks = blocks.filter(|&blocks| blocks < usize::MAX).max();
        if let Some(blocks) = of_sinks.filter(|&blocks| place < blocks) {
            return Err(KvError::SinksMoved {
                tokens: blocks * BLOCK_TOKENS,
            });
        }
        // What later tokens see of the span in each group, in blocks of `from`.
        let first = from.places.slot(span.start) / BLOCK_TOKENS;
        let end = from.places.slot(span.end - 1) / BLOCK_TOKENS + 1;
        let mut taken: Vec<(usize, Vec<Slot>)> = Vec::new();
        for (run, group) in from.groups.iter().zip(&self.layout.groups) {
            let seen = match group.kind.state {
                LayerState::Window { tokens } => span.end.saturating_sub(tokens).max(span.start),
                _ => span.start,
            };
            let kept = run.first * BLOCK_TOKENS;
            if from.places.slot(seen) < kept {
                return Err(KvError::WindowPassed { wanted: seen, kept });
            }
            // What a window has passed is missing here as it is there.
            let held = first.max(run.first).min(end);
            let slot = |index: usize| run.slot(index).cloned().unwrap_or(Slot::Removed);
            taken.push((held - first, (held..end).map(slot).collect()));
        }

        self.pack_last()?;
        let what = format!("and {}..{} of {}", span.start, span.end, from.name());
        let now = self.name().derived(&what);
        // They follow from the next block on; the slots left in the last one stay empty.
        for ((run, group), taken) in self.groups.iter_mut().zip(&self.layout.groups).zip(taken) {
            let (passed, taken) = taken;
            let gap = match passed {
                0 => Gap::Empty,
                _ => Gap::Dropped,
            };
            if group.most_blocks == usize::MAX {
                run.append(place + passed, gap, taken);
            }
        }
        let len = self.len();
        if len == 0 && from.sparse.is_some() {
            // What it was read by, this is read by now, and found by nobody.
            (self.sparse, self.home) = (from.sparse.as_ref().map(Sparse::anew), None);
        }
        let slots = from.places.slot(span.start)..from.places.slot(span.end - 1) + 1;
        for (covered, stretch) in from.places.within(slots, from.len()) {
            let old = stretch.token + covered.start - stretch.slot;
            let new = len + old - span.start;
            self.places.push(Stretch {
                token: new,
                slot: place * BLOCK_TOKENS + covered.start - first * BLOCK_TOKENS,
                shift: stretch.shift + old as isize - new as isize,
            });
        }
        self.tokens.extend(from.tokens.to_vec(span.clone()));
        let full = self.places.slot(self.len()) / BLOCK_TOKENS;
        let named = self.home.as_ref().map_or(0, |home| home.chain.len());
        if let Some(home) = &mut self.home {
            let held = from.home.iter().flat_map(|other| &other.holds);
            home.holds.extend(held.cloned());
            match self.places.is_plain() {
                // The beginning of `from` is here what it is there.
                true => home
                    .chain
                    .extend(hashes(home.origin.seed, &self.tokens, full)),
                false => home.derive(now, full),
            }
        }
        self.close(named);
        self.share_full();
        Ok(())
    }

    /// Where the latest tokens are held apart, makes of the last block what is otherwise made of it when it is
    /// full: text that is moved behind it leaves it before, and its tokens are not among the latest for long.
    fn pack_last(&mut self) -> Result<(), KvError> {
        let end = self.places.slot(self.len());
        if end.is_multiple_of(BLOCK_TOKENS) {
            return Ok(());
        }
        let index = end / BLOCK_TOKENS;
        let layout = Arc::clone(&self.layout);
        let store = self.home.as_ref().map(|home| Arc::clone(&home.store));
        let is_open = |run: &BlockRun| matches!(run.slot(index), Some(Slot::Open(_)));
        for (older, group) in layout.groups.iter().enumerate() {
            let Some(recent) = group.recent else { continue };
            for to in std::iter::once(older).chain(recent.sinks) {
                let of_filled = &layout.groups[to];
                // What is sealed was full where it was written.
                let is_made = !is_open(&self.groups[to]) || !is_open(&self.groups[recent.group]);
                if is_made || index >= of_filled.most_blocks {
                    continue;
                }
                let bytes = of_filled.block_bytes();
                self.groups[to].make_writable(
                    index,
                    index + 1,
                    bytes,
                    &self.ledger,
                    store.as_deref(),
                )?;
                let from_group = &layout.groups[recent.group];
                for (from, to) in self.block_pairs(recent.group, to, index..index + 1) {
                    for place in 0..of_filled.layers {
                        pack_layer(place, (from_group, from), (of_filled, &mut *to));
                    }
                }
            }
        }
        Ok(())
    }

    /// What stands for all that is held here, for the keys and values and how they came to be: equal
    /// names, equal bytes.
    fn name(&self) -> BlockHash {
        let all = self.tokens.to_vec(0..self.len());
        match &self.home {
            Some(home) => home.last().then(&all),
            // It may have been read in any way.
            None => BlockHash::seed(&[("unnamed", new_id().as_bytes())]),
        }
    }
}

/// The names of the first `full` blocks of a context that has read `tokens`.
fn hashes(seed: BlockHash, tokens: &SharedList<u32, PIECE>, full: usize) -> Vec<BlockHash> {
    let next = |hash: &mut BlockHash, index: usize| {
        let ids = tokens.to_vec(index * BLOCK_TOKENS..(index + 1) * BLOCK_TOKENS);
        *hash = hash.then(&ids);
        Some(*hash)
    };
    (0..full).scan(seed, next).collect()
}

impl Home {
    /// The hash of all full blocks.
    fn last(&self) -> BlockHash {
        self.before(self.chain.len())
    }

    /// Gives the blocks after those whose hashes are known names of their own, up to block `end`, and
    /// has the one after them sealed under such a name, too: `now` stands for all they were made from.
    fn derive(&mut self, now: BlockHash, end: usize) {
        for index in self.chain.len()..end {
            self.chain.push(now.derived(&format!("block {index}")));
        }
        self.moved = Some((self.chain.len(), now.derived("what follows")));
    }

    /// Forgets the names of blocks that are no longer full, when the context was cut to `len` tokens
    /// that lie at `places`.
    pub(crate) fn cut(&mut self, places: &Places, len: usize) {
        let before = self.last();
        self.chain.truncate(places.slot(len) / BLOCK_TOKENS);
        // What is moved in the last block is not told by its tokens, nor where that ends now.
        let moved = || {
            let name = before.derived(&format!("up to token {len}"));
            (self.chain.len(), name)
        };
        self.moved = (!places.is_plain()).then(moved);
    }
}
