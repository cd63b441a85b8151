//! The blocks that a context has of one layer group.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::block::Block;
use crate::error::KvError;
use crate::ledger::Ledger;
use crate::sealed::Handle;
use crate::store::Store;

/// Blocks `first..first + slots.len()` of a context; the ones before were dropped by a window.
#[derive(Clone, Default)]
pub(crate) struct BlockRun {
    pub(crate) first: usize,
    pub(crate) slots: VecDeque<Slot>,
}

/// One block of a run.
#[derive(Clone)]
pub(crate) enum Slot {
    /// Being written, or kept outside any store; shared between forks until one writes.
    Open(Arc<Block>),
    /// Full and never written again.
    Sealed {
        handle: Arc<Handle>,
        /// Holds the block in memory while a pass reads it.
        pin: Option<Arc<Block>>,
    },
    /// All its tokens were removed from the context.
    Removed,
}

impl BlockRun {
    /// One past the last block.
    pub(crate) fn end(&self) -> usize {
        self.first + self.slots.len()
    }

    /// Block `index`, if it is in memory and was not dropped.
    pub(crate) fn block(&self, index: usize) -> Option<&Block> {
        match self.slots.get(index.checked_sub(self.first)?)? {
            Slot::Open(block) => Some(block),
            Slot::Sealed { pin, .. } => pin.as_deref(),
            Slot::Removed => None,
        }
    }

    /// The sealed blocks that are not in memory, with their places. Blocks must be pinned.
    pub(crate) fn away(&self) -> impl Iterator<Item = (usize, &Arc<Handle>)> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(place, slot)| match slot {
            Slot::Sealed { handle, pin: None } => Some((self.first + place, handle)),
            _ => None,
        })
    }

    /// Drops blocks before block `needed`, which no later token sees.
    pub(crate) fn drop_before(&mut self, needed: usize, store: Option<&Store>) {
        while self.first < needed
            && let Some(slot) = self.slots.pop_front()
        {
            self.first += 1;
            if let (Slot::Sealed { handle, pin }, Some(store)) = (slot, store) {
                drop(pin);
                store.release(handle);
            }
        }
    }

    /// Keeps every block in memory that is there, until [`BlockRun::unpin`].
    pub(crate) fn pin(&mut self, store: &Store) {
        let now = store.now();
        for slot in &mut self.slots {
            if let Slot::Sealed { handle, pin } = slot
                && pin.is_none()
            {
                *pin = handle.pin(now);
            }
        }
    }

    /// Takes the pins back.
    pub(crate) fn unpin(&mut self) {
        for slot in &mut self.slots {
            if let Slot::Sealed { pin, .. } = slot {
                *pin = None;
            }
        }
    }

    /// Makes room up to block `end`, with blocks from `first_written` on ready to be written.
    pub(crate) fn make_writable(
        &mut self,
        first_written: usize,
        end: usize,
        block_bytes: usize,
        ledger: &Ledger,
        store: Option<&Store>,
    ) -> Result<(), KvError> {
        while self.end() < end {
            let block = Block::with_space(block_bytes, ledger, store)?;
            self.slots.push_back(Slot::Open(Arc::new(block)));
        }
        for slot in self.slots.range_mut(first_written - self.first..) {
            match slot {
                Slot::Open(block) => {
                    if Arc::get_mut(block).is_some() {
                        continue;
                    }
                    let mut copy = Block::with_space(block_bytes, ledger, store)?;
                    copy.bytes_mut().copy_from_slice(block.bytes());
                    *block = Arc::new(copy);
                }
                Slot::Sealed { handle, .. } => {
                    let store = store.expect("only a store seals blocks");
                    let block = store.private_copy(handle, block_bytes)?;
                    *slot = Slot::Open(Arc::new(block));
                }
                Slot::Removed => unreachable!("tokens follow a removed span"),
            }
        }
        Ok(())
    }
}

impl Block {
    /// A block of `len` zeros, for which the store gives way where there is one.
    pub(crate) fn with_space(
        len: usize,
        ledger: &Ledger,
        store: Option<&Store>,
    ) -> Result<Block, KvError> {
        if let Some(store) = store {
            store.make_space(len as u64);
        }
        Block::zeroed(len, ledger)
    }
}
