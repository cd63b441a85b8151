//! How a context grows: room for a pass, its tokens when the pass is done, and full blocks sealed.

use std::ops::Range;
use std::sync::Arc;

use crate::BLOCK_TOKENS;
use crate::block::Block;
use crate::context::{Context, first_visible};
use crate::error::KvError;
use crate::hash::BlockHash;
use crate::layout::{Group, LayerState};
use crate::recurrent::CHECKPOINT_TOKENS;
use crate::run::{BlockRun, Slot};
use crate::store::Store;
use crate::tier::{BlockInfo, BlockKey};

/// Stands in a block for a slot whose token was removed.
const NO_TOKEN: u32 = u32::MAX;

impl Context {
    /// Makes room for `count` more tokens: drops what window layers no longer need, allocates
    /// blocks, and makes the blocks to be written private.
    pub(crate) fn make_room(&mut self, count: usize) -> Result<(), KvError> {
        let made = self.try_make_room(count);
        if made.is_err() {
            self.end_pass();
        }
        made
    }

    /// Records that the tokens computed since [`Context::make_room`] are now part of the context,
    /// and seals the blocks they fill. `seconds` is what computing one block took.
    pub(crate) fn commit(&mut self, tokens: &[u32], seconds: f32) {
        let before = self.len();
        self.tokens.extend(tokens.iter().copied());
        self.commit_reads(before);
        self.commit_pattern(before);
        self.commit_watched();
        if let Some(kept) = &mut self.kept {
            kept.observed.commit();
        }
        let all = seconds / BLOCK_TOKENS as f32 * tokens.len() as f32;
        for state in self.states.iter_mut().flatten() {
            state.commit(all);
        }
        self.seal(seconds);
        if self.len().is_multiple_of(CHECKPOINT_TOKENS) && self.layout.is_recurrent() {
            self.checkpoint();
        }
        self.share_full();
    }

    /// Lets forks to come share all that is full.
    pub(crate) fn share_full(&mut self) {
        self.tokens.settle(self.len());
        let full = self.places.slot(self.len()) / BLOCK_TOKENS;
        for (run, group) in self.groups.iter_mut().zip(&self.layout.groups) {
            // Windows are short, and move on.
            if group.kind.state == LayerState::Full {
                run.settle(full);
            }
        }
        if let Some(home) = &mut self.home {
            home.chain.settle(home.chain.len());
        }
    }

    /// Keeps the blocks in memory that are there, until [`Context::end_pass`].
    pub(crate) fn pin(&mut self) {
        if let Some(home) = &self.home {
            self.groups.iter_mut().for_each(|run| run.pin(&home.store));
        }
    }

    /// The same of blocks that hold some tokens of layers whose others are elsewhere, and reads those
    /// that are not in memory: they are few, and attention meets them first and last.
    pub(crate) fn pin_beside(&mut self, store: &Store) -> Result<(), KvError> {
        let groups = self.groups.iter_mut().zip(&self.layout.groups);
        for (run, group) in groups.filter(|(_, group)| group.is_beside && self.home.is_some()) {
            run.pin_all(group.block_bytes(), store)?;
        }
        Ok(())
    }

    /// Gives back room that was not used, and lets blocks leave memory again when it is needed
    /// elsewhere.
    pub(crate) fn end_pass(&mut self) {
        self.trim();
        self.trim_reads(self.len());
        self.give_up_watched();
        self.unpin();
    }

    /// Lets blocks leave memory again when it is needed elsewhere.
    fn unpin(&mut self) {
        // Pins cost nothing where nothing is ever asked to leave.
        if self.home.is_some() && self.ledger.limit() != u64::MAX {
            self.groups.iter_mut().for_each(BlockRun::unpin);
        }
    }

    /// The block that holds position `position`, unless a window layer has dropped it or it is
    /// not in memory.
    pub(crate) fn block(&self, group: usize, index: usize) -> Option<&Block> {
        self.groups[group].block(index)
    }

    /// The blocks of a group from block `first` on, to be written. All of them are private since
    /// [`Context::make_room`].
    pub(crate) fn blocks_mut(
        &mut self,
        group: usize,
        first: usize,
    ) -> impl Iterator<Item = &mut Block> {
        self.groups[group].written(first)
    }

    /// The blocks `blocks` of group `to`, to be written, each after the block of group `from` there. Those
    /// of `to` are private since [`Context::make_room`].
    pub(crate) fn block_pairs(
        &mut self,
        from: usize,
        to: usize,
        blocks: Range<usize>,
    ) -> Vec<(&Block, &mut Block)> {
        let [from, to] = self
            .groups
            .get_disjoint_mut([from, to])
            .expect("a layer's two groups are not one");
        let from = &*from;
        let pair = |(to, index)| {
            let block = from
                .block(index)
                .expect("a block that a pass fills is among the recent ones");
            (block, to)
        };
        to.written(blocks.start).zip(blocks).map(pair).collect()
    }

    fn try_make_room(&mut self, count: usize) -> Result<(), KvError> {
        let len = self.len();
        self.places.go_on(len);
        let slots = self.places.slot(len);
        let (first_written, end) = (slots / BLOCK_TOKENS, (slots + count).div_ceil(BLOCK_TOKENS));
        if let Some(kept) = &mut self.kept {
            kept.observed.begin(kept.pairs(len), count, &self.ledger)?;
        }
        self.make_index_room(count)?;
        let edge = self.kept.as_ref().map_or(0, |kept| kept.edge());
        let store = self.home.as_ref().map(|home| &*home.store);
        let groups = self.groups.iter_mut().zip(&mut self.states);
        for ((run, state), group) in groups.zip(&self.layout.groups) {
            if let Some(state) = state {
                state.begin(group.block_bytes(), &self.ledger, store)?;
                continue;
            }
            let first = first_needed(group, len).max(group.edge(edge));
            let visible = self.places.slot(first);
            run.drop_before(visible / BLOCK_TOKENS, store);
            let bytes = group.block_bytes();
            let end = end.min(group.most_blocks);
            if first_written < end {
                run.make_writable(first_written, end, bytes, &self.ledger, store)?;
            }
        }
        Ok(())
    }

    /// Drops what layers with a window, and forms that hold the latest tokens apart, no longer need, as a pass to
    /// come does first. Until then it can be taken back to where that was read.
    pub fn pass_windows(&mut self) {
        let len = self.len();
        let store = self.home.as_ref().map(|home| &*home.store);
        for (run, group) in self.groups.iter_mut().zip(&self.layout.groups) {
            if let LayerState::Window { .. } = group.kind.state {
                let visible = self.places.slot(first_needed(group, len));
                run.drop_before(visible / BLOCK_TOKENS, store);
            }
        }
    }

    /// Seals every full block that is not sealed yet. What a keep method has made of the text is not what
    /// its tokens say, and is found by nobody; nor is what was computed from less than everything.
    fn seal(&mut self, seconds: f32) {
        let exact = self.approximate_from().unwrap_or(self.tokens.len());
        let end = self.places.slot(self.tokens.len().min(exact)) / BLOCK_TOKENS;
        let named = self.home.as_ref().map_or(end, |home| home.chain.len());
        if self.is_derived() {
            return;
        }
        for index in named..end {
            let tokens = self.block_tokens(index);
            if let Some(home) = &mut self.home {
                let parent = home.before(index);
                home.chain.push(parent.then(&tokens));
                self.seal_block(index, parent, tokens, seconds);
            }
        }
    }

    /// Seals what is open of the blocks from block `first` on that have names: text that was moved here
    /// begins with a block of its own, so no token comes to those before it any more, full or not. They may
    /// leave memory then like others.
    pub(crate) fn close(&mut self, first: usize) {
        let named = self.home.as_ref().map_or(first, |home| home.chain.len());
        if self.is_derived() || self.places.is_plain() {
            return;
        }
        for index in first..named {
            let is_open = |run: &BlockRun| matches!(run.slot(index), Some(Slot::Open(_)));
            if !self.groups.iter().any(is_open) {
                continue;
            }
            let Some(name) = self.home.as_ref().and_then(|home| home.chain.get(index)) else {
                return;
            };
            // Nobody finds it behind what is exact.
            let parent = name.derived("what was before");
            let tokens = self.block_tokens(index);
            self.seal_block(index, parent, tokens, 0.0);
        }
        self.unpin();
    }

    /// Whether its blocks are not what their names would say, and get none.
    fn is_derived(&self) -> bool {
        self.is_compressed() || self.is_watching()
    }

    /// The tokens in the slots of block `index`, [`NO_TOKEN`] where there is none.
    fn block_tokens(&self, index: usize) -> [u32; BLOCK_TOKENS] {
        let slots = index * BLOCK_TOKENS..(index + 1) * BLOCK_TOKENS;
        let mut tokens = [NO_TOKEN; BLOCK_TOKENS];
        for (covered, stretch) in self.places.within(slots.clone(), self.tokens.len()) {
            let first = covered.start - stretch.slot + stretch.token;
            let ids = self.tokens.to_vec(first..first + covered.len());
            tokens[covered.start - slots.start..covered.end - slots.start].copy_from_slice(&ids);
        }
        tokens
    }

    /// Seals what is open of block `index`, which has its name and follows `parent`.
    fn seal_block(
        &mut self,
        index: usize,
        parent: BlockHash,
        tokens: [u32; BLOCK_TOKENS],
        seconds: f32,
    ) {
        let Some((home, hash)) = self.home.as_ref().and_then(|home| {
            let name = home.chain.get(index)?;
            Some((home, *name))
        }) else {
            return;
        };
        let tokens: Arc<[u32]> = Arc::new(tokens);
        for (place, (run, group)) in self.groups.iter_mut().zip(&self.layout.groups).enumerate() {
            let Some(Slot::Open(block)) = run.slot(index) else {
                continue;
            };
            let info = BlockInfo {
                key: BlockKey {
                    hash,
                    group: place as u16,
                },
                parent,
                index: index as u32,
                tokens: Arc::clone(&tokens),
                shape: group.shape(),
                seconds,
                origin: Arc::clone(&home.origin),
            };
            let handle = home.store.seal(info, Arc::clone(block));
            // Equal blocks are held once: this may be another context's.
            let pin = handle.pin(home.store.now());
            run.seal(index, handle, pin);
        }
    }

    /// Drops the blocks beyond the last token.
    pub(crate) fn trim(&mut self) {
        let end = self.places.slot(self.len()).div_ceil(BLOCK_TOKENS);
        for run in &mut self.groups {
            run.truncate(end);
        }
    }
}

/// The first token of a context of `len` tokens that a group cannot do without: what the token after the last full
/// block sees stays, where contexts are gone on from that are saved or taken elsewhere, and what the last token sees,
/// which may be read again.
fn first_needed(group: &Group, len: usize) -> usize {
    let after_full = len - len % BLOCK_TOKENS;
    first_visible(group, after_full.min(len.saturating_sub(1)))
}
