//! A context: what a model has read, kept as keys and values.

use std::collections::VecDeque;
use std::sync::Arc;

use longview_kernels::Numerics;

use crate::BLOCK_TOKENS;
use crate::block::Block;
use crate::error::KvError;
use crate::layout::{Group, KvLayout, LayerState};
use crate::ledger::Ledger;

/// Which set of rotary frequencies a context was created with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RopeSet {
    /// The model's only set, or its set for short contexts.
    #[default]
    Short,
    /// The set for contexts planned beyond the model's original length (longrope).
    Long,
}

/// What must agree before state computed by one run may be used by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// A number that tells loaded models apart inside one process.
    pub model: u64,
    /// Rotary frequencies, fixed when the context is created.
    pub rope: RopeSet,
    /// Numerics class.
    pub numerics: Numerics,
}

/// What a model has read.
///
/// Blocks are shared between forks and copied when one of them writes, so [`Context::fork`] costs
/// no keys or values.
pub struct Context {
    layout: Arc<KvLayout>,
    ledger: Ledger,
    identity: Identity,
    tokens: Vec<u32>,
    groups: Vec<BlockRun>,
}

/// The blocks of one layer group: blocks `first..first + blocks.len()` of the context.
#[derive(Clone, Default)]
struct BlockRun {
    first: usize,
    blocks: VecDeque<Arc<Block>>,
}

impl Context {
    /// An empty context.
    pub fn new(layout: Arc<KvLayout>, ledger: Ledger, identity: Identity) -> Context {
        let groups = vec![BlockRun::default(); layout.groups.len()];
        Context {
            layout,
            ledger,
            identity,
            tokens: Vec::new(),
            groups,
        }
    }

    /// Tokens read so far.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The ids of the tokens read so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// What the context was made for.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Bytes of the blocks this context refers to; blocks shared with forks count in each.
    pub fn kv_bytes(&self) -> u64 {
        let of_run = |(run, group): (&BlockRun, &Group)| run.blocks.len() * group.block_bytes();
        self.groups
            .iter()
            .zip(&self.layout.groups)
            .map(of_run)
            .sum::<usize>() as u64
    }

    /// A second context with the same content; both grow apart from here.
    pub fn fork(&self) -> Context {
        Context {
            layout: Arc::clone(&self.layout),
            ledger: self.ledger.clone(),
            identity: self.identity,
            tokens: self.tokens.clone(),
            groups: self.groups.clone(),
        }
    }

    /// Forgets everything from token `len` on.
    ///
    /// # Errors
    /// [`KvError::BeyondEnd`] when the context is shorter, [`KvError::WindowPassed`] when a
    /// sliding-window layer no longer holds what the token at `len` must see.
    pub fn truncate(&mut self, len: usize) -> Result<(), KvError> {
        if len > self.len() {
            return Err(KvError::BeyondEnd {
                wanted: len,
                held: self.len(),
            });
        }
        for (run, group) in self.groups.iter().zip(&self.layout.groups) {
            let kept = run.first * BLOCK_TOKENS;
            if first_visible(group, len) < kept {
                return Err(KvError::WindowPassed { wanted: len, kept });
            }
        }
        self.tokens.truncate(len);
        self.trim();
        Ok(())
    }

    pub(crate) fn layout(&self) -> &Arc<KvLayout> {
        &self.layout
    }

    /// Makes room for `count` more tokens: drops what window layers no longer need, allocates
    /// blocks, and makes the blocks to be written private.
    pub(crate) fn make_room(&mut self, count: usize) -> Result<(), KvError> {
        let made = self.try_make_room(count);
        if made.is_err() {
            self.trim();
        }
        made
    }

    /// Records that the tokens computed since [`Context::make_room`] are now part of the context.
    pub(crate) fn commit(&mut self, tokens: &[u32]) {
        self.tokens.extend_from_slice(tokens);
    }

    /// The block that holds position `position`, unless a window layer has dropped it.
    pub(crate) fn block(&self, group: usize, index: usize) -> Option<&Block> {
        let run = &self.groups[group];
        run.blocks
            .get(index.checked_sub(run.first)?)
            .map(|block| &**block)
    }

    /// The blocks of a group from block `first` on, to be written. All of them are private since
    /// [`Context::make_room`].
    pub(crate) fn blocks_mut(
        &mut self,
        group: usize,
        first: usize,
    ) -> impl Iterator<Item = &mut Block> {
        let run = &mut self.groups[group];
        run.blocks.range_mut(first - run.first..).map(|block| {
            Arc::get_mut(block).expect("make_room has replaced every shared block that is written")
        })
    }

    fn try_make_room(&mut self, count: usize) -> Result<(), KvError> {
        let len = self.len();
        let (first_written, end) = (len / BLOCK_TOKENS, (len + count).div_ceil(BLOCK_TOKENS));
        for (run, group) in self.groups.iter_mut().zip(&self.layout.groups) {
            let needed = first_visible(group, len) / BLOCK_TOKENS;
            while run.first < needed && run.blocks.pop_front().is_some() {
                run.first += 1;
            }
            while run.first + run.blocks.len() < end {
                run.blocks
                    .push_back(Arc::new(Block::zeroed(group.block_bytes(), &self.ledger)?));
            }
            for block in run.blocks.range_mut(first_written - run.first..) {
                if Arc::get_mut(block).is_none() {
                    *block = Arc::new(block.copy(&self.ledger)?);
                }
            }
        }
        Ok(())
    }

    /// Drops the blocks beyond the last token.
    fn trim(&mut self) {
        let end = self.tokens.len().div_ceil(BLOCK_TOKENS);
        for run in &mut self.groups {
            run.blocks.truncate(end.saturating_sub(run.first));
        }
    }
}

/// The first position that the token at `position` attends to.
pub(crate) fn first_visible(group: &Group, position: usize) -> usize {
    match group.kind.state {
        LayerState::Full => 0,
        LayerState::Window { tokens } => (position + 1).saturating_sub(tokens),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::LayerLayout;
    use longview_kernels::page::KvType;

    fn context(limit: u64) -> Context {
        let full = LayerLayout {
            state: LayerState::Full,
            kv_heads: 1,
            head_dim: 16,
            v_dim: 16,
        };
        let window = LayerLayout {
            state: LayerState::Window { tokens: 100 },
            ..full
        };
        let layout = Arc::new(KvLayout::new(&[full, window], KvType::F16));
        let identity = Identity {
            model: 0,
            rope: RopeSet::Short,
            numerics: Numerics::Default,
        };
        Context::new(layout, Ledger::with_limit(limit), identity)
    }

    fn grow(context: &mut Context, count: usize) {
        context.make_room(count).unwrap();
        context.commit(&vec![7; count]);
    }

    const BLOCK: u64 = 64 * 32 * 2;

    #[test]
    fn window_layers_drop_what_no_token_sees() {
        let mut context = context(u64::MAX);
        for _ in 0..10 {
            grow(&mut context, 64);
        }
        assert_eq!(context.len(), 640);
        // Ten full blocks; the window of the last chunk began at 576 − 99, in block 7.
        assert_eq!(context.kv_bytes(), (10 + 3) * BLOCK);
        assert!(matches!(
            context.truncate(100),
            Err(KvError::WindowPassed { .. })
        ));
        assert!(matches!(
            context.truncate(641),
            Err(KvError::BeyondEnd { .. })
        ));
        context.truncate(600).unwrap();
        assert_eq!(context.len(), 600);
    }

    #[test]
    fn forks_share_blocks_until_one_writes() {
        let ledger_bytes = |context: &Context| context.ledger.usage().kv;
        let mut first = context(u64::MAX);
        grow(&mut first, 70);
        let held = ledger_bytes(&first);
        let mut second = first.fork();
        assert_eq!(ledger_bytes(&first), held);
        grow(&mut second, 1);
        // The last block of both groups became private; the first is still shared.
        assert_eq!(ledger_bytes(&first), held + 2 * BLOCK);
        assert_eq!((first.len(), second.len()), (70, 71));
        drop(second);
        assert_eq!(ledger_bytes(&first), held);
    }

    #[test]
    fn a_refused_growth_leaves_the_context_as_it_was() {
        let mut context = context(5 * BLOCK);
        grow(&mut context, 128);
        let held = context.kv_bytes();
        assert!(matches!(
            context.make_room(64),
            Err(KvError::OverLimit { .. })
        ));
        assert_eq!((context.len(), context.kv_bytes()), (128, held));
    }
}
