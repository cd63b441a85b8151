//! Where a context with recurrent layers can go back to, and where it leaves such places.

use std::sync::Arc;

use crate::BLOCK_TOKENS;
use crate::context::Context;
use crate::error::KvError;
use crate::layout::Group;
use crate::recurrent::{CHECKPOINT_TOKENS, RecurrentState};
use crate::tier::{BlockInfo, BlockKey};

impl Context {
    /// The longest prefix of at most `most` tokens that [`Context::truncate`] can go back to;
    /// `None` when a window has passed or a keep method has dropped pairs, and only a new context
    /// helps.
    pub fn resumable(&self, most: usize) -> Option<usize> {
        let len = self.nearest_state(most.min(self.len()));
        self.check_kept(len).ok()?;
        self.check_windows(&self.places, len).is_ok().then_some(len)
    }

    /// Tokens to read in the next pass of a prefill that has `left` to go, `most` at a time: up to
    /// where a keep method decides what stays; and
    /// recurrent layers can keep their state only where a pass ends, so passes end at multiples of
    /// [`CHECKPOINT_TOKENS`] and at the last block edge.
    pub fn next_pass(&self, left: usize, most: usize) -> usize {
        let count = left.min(most.max(1)).min(self.most_before_due());
        if !self.layout.is_recurrent() {
            return count;
        }
        let (len, end) = (self.len(), self.len() + left);
        let regular = (len / CHECKPOINT_TOKENS + 1) * CHECKPOINT_TOKENS;
        let last_edge = end / BLOCK_TOKENS * BLOCK_TOKENS;
        [regular, last_edge]
            .into_iter()
            .filter(|&stop| stop > len)
            .fold(count, |count, stop| count.min(stop - len))
    }

    /// Keeps the state of recurrent layers, if this is a block edge, as the end of a message: the
    /// context can be cut back to here, and is found by content. Returns whether it is kept now.
    /// Of such states the last few stay; at multiples of [`CHECKPOINT_TOKENS`] they are kept anyway.
    pub fn checkpoint(&mut self) -> bool {
        let len = self.len();
        if len == 0 || !len.is_multiple_of(BLOCK_TOKENS) {
            return false;
        }
        let derived = self.approximate_from();
        for (place, state) in self.states.iter_mut().enumerate() {
            let Some(state) = state else { continue };
            let Some((block, seconds)) = state.to_checkpoint(len) else {
                continue;
            };
            // What is not what the model defines is kept here, and found by nobody.
            let home = self.home.as_ref().filter(|_| derived.is_none());
            let kept = home.map(|home| {
                let index = len / BLOCK_TOKENS - 1;
                let key = BlockKey {
                    hash: home.before(index + 1),
                    group: place as u16,
                };
                let info = BlockInfo {
                    key,
                    parent: home.before(index),
                    index: index as u32,
                    tokens: self.tokens.to_vec(len - BLOCK_TOKENS..len).into(),
                    shape: self.layout.groups[place].shape(),
                    seconds,
                    origin: Arc::clone(&home.origin),
                };
                let handle = home.store.seal(info, Arc::clone(&block));
                // Equal states are held once: this may be another context's.
                (handle.name(), handle.pin(home.store.now()))
            });
            let (name, shared) = kept.unzip();
            let gone = state.keep(len, shared.flatten().unwrap_or(block), name);
            if let (Some(home), Some(gone)) = (&self.home, gone) {
                home.store.let_go(&gone);
            }
        }
        true
    }

    /// Brings the states of recurrent layers back to `len` tokens.
    pub(crate) fn go_back(&mut self, len: usize) -> Result<(), KvError> {
        let nearest = self.nearest_state(len);
        if nearest != len {
            return Err(KvError::NoCheckpoint {
                wanted: len,
                nearest,
            });
        }
        if len < self.len() {
            let store = self.home.as_ref().map(|home| &*home.store);
            for state in self.states.iter_mut().flatten() {
                state.go_back(len, store);
            }
        }
        Ok(())
    }

    /// The longest prefix of at most `most` tokens that recurrent layers kept the state of.
    pub(crate) fn nearest_state(&self, most: usize) -> usize {
        let store = self.home.as_ref().map(|home| &*home.store);
        let len = self.len();
        let mut found = most;
        // Two groups may differ in what a store still has: until all agree.
        loop {
            let states = self.states.iter().flatten();
            let all = states.map(|state| state.nearest(found, len, store)).min();
            match all {
                Some(nearest) if nearest < found => found = nearest,
                _ => return found,
            }
        }
    }

    /// Bytes of the states of recurrent layers, and of their checkpoints that no store has.
    pub(crate) fn state_bytes(&self) -> u64 {
        let of_group = |(state, group): (&Option<RecurrentState>, &Group)| {
            state.as_ref().map_or(0, RecurrentState::blocks) * group.block_bytes()
        };
        let groups = self.states.iter().zip(&self.layout.groups);
        groups.map(of_group).sum::<usize>() as u64
    }
}
