//! The blocks that a context has of one layer group.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use crate::block::Block;
use crate::error::KvError;
use crate::ledger::Ledger;
use crate::sealed::Handle;
use crate::shared::SharedList;
use crate::store::Store;

/// Blocks that forks share at once: those of a key span.
const RUN_BLOCKS: usize = 16;

/// Blocks of a context from block `first` on; the ones before were dropped by a window.
#[derive(Default)]
pub(crate) struct BlockRun {
    pub(crate) first: usize,
    slots: SharedList<Slot, RUN_BLOCKS>,
    /// Sealed blocks that this context holds in memory while a pass reads them, by place in `slots`;
    /// it may be shorter.
    pins: VecDeque<Option<Arc<Block>>>,
    /// The first so many slots have a pin or need none.
    pinned: usize,
}

/// One block of a run.
#[derive(Clone)]
pub(crate) enum Slot {
    /// Being written, or kept outside any store; shared between forks until one writes.
    Open(Arc<Block>),
    /// Full and never written again.
    Sealed(Arc<Handle>),
    /// All its tokens were removed from the context.
    Removed,
}

impl BlockRun {
    /// A second run of the same blocks. Pins are each context's own.
    pub(crate) fn fork(&self) -> BlockRun {
        BlockRun {
            first: self.first,
            slots: self.slots.clone(),
            pins: VecDeque::new(),
            pinned: 0,
        }
    }

    /// One past the last block.
    pub(crate) fn end(&self) -> usize {
        self.first + self.slots.len()
    }

    /// What block `index` is, unless a window has dropped it or it is not there yet.
    pub(crate) fn slot(&self, index: usize) -> Option<&Slot> {
        self.slots.get(index.checked_sub(self.first)?)
    }

    /// All of them with their numbers.
    pub(crate) fn slots(&self) -> impl Iterator<Item = (usize, &Slot)> {
        self.slots_from(0)
    }

    /// Block `index`, if it is in memory and was not dropped.
    pub(crate) fn block(&self, index: usize) -> Option<&Block> {
        let at = index.checked_sub(self.first)?;
        if let Some(Some(block)) = self.pins.get(at) {
            return Some(block);
        }
        match self.slots.get(at)? {
            Slot::Open(block) => Some(block),
            Slot::Sealed(_) | Slot::Removed => None,
        }
    }

    /// The sealed blocks without a pin, with their numbers: those that are not in memory, when
    /// blocks are pinned.
    pub(crate) fn away(&self) -> impl Iterator<Item = (usize, &Arc<Handle>)> {
        let slots = self.slots_from(self.pinned);
        slots.filter_map(|(index, slot)| match slot {
            Slot::Sealed(handle) => {
                let pin = self.pins.get(index - self.first);
                pin.is_none_or(Option::is_none).then_some((index, handle))
            }
            Slot::Open(_) | Slot::Removed => None,
        })
    }

    /// Drops blocks before block `needed`, which no later token sees.
    pub(crate) fn drop_before(&mut self, needed: usize, store: Option<&Store>) {
        let count = needed.saturating_sub(self.first).min(self.slots.len());
        self.first += count;
        self.pins.drain(..count.min(self.pins.len()));
        self.pinned = self.pinned.saturating_sub(count);
        for slot in self.slots.take_front(count) {
            if let (Slot::Sealed(handle), Some(store)) = (slot, store) {
                store.release(handle);
            }
        }
    }

    /// Drops all blocks; what follows begins with block `first`.
    pub(crate) fn begin_at(&mut self, first: usize, store: Option<&Store>) {
        self.drop_before(self.end(), store);
        self.first = first;
    }

    /// Keeps every block in memory until [`BlockRun::unpin`], and reads those that are not there.
    pub(crate) fn pin_all(&mut self, block_bytes: usize, store: &Store) -> Result<(), KvError> {
        self.pin(store);
        let away = self
            .away()
            .map(|(index, handle)| (index - self.first, Arc::clone(handle)));
        let away: Vec<(usize, Arc<Handle>)> = away.collect();
        for (at, handle) in away {
            let block = Arc::new(store.private_copy(&handle, block_bytes)?);
            handle.fill(Arc::clone(&block));
            self.pins[at] = Some(block);
        }
        Ok(())
    }

    /// Keeps every block in memory that is there, until [`BlockRun::unpin`].
    pub(crate) fn pin(&mut self, store: &Store) {
        let now = store.now();
        let (slots, pins) = (&self.slots, &mut self.pins);
        let mut whole = true;
        for (at, slot) in (self.pinned..).zip(slots.iter_from(self.pinned)) {
            if let Slot::Sealed(handle) = slot {
                if pins.len() <= at {
                    pins.resize(at + 1, None);
                }
                if pins[at].is_none() {
                    pins[at] = handle.pin(now);
                }
                whole &= pins[at].is_some();
            }
            if whole {
                self.pinned = at + 1;
            }
        }
    }

    /// Takes the pins back.
    pub(crate) fn unpin(&mut self) {
        self.pins.clear();
        self.pinned = 0;
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
            self.slots.push(Slot::Open(Arc::new(block)));
        }
        let from = first_written - self.first;
        self.pins.truncate(from);
        for slot in self.slots.private(from) {
            match slot {
                Slot::Open(block) => {
                    if Arc::get_mut(block).is_some() {
                        continue;
                    }
                    let mut copy = Block::with_space(block_bytes, ledger, store)?;
                    copy.bytes_mut().copy_from_slice(block.bytes());
                    *block = Arc::new(copy);
                }
                Slot::Sealed(handle) => {
                    let store = store.expect("only a store seals blocks");
                    let block = store.private_copy(handle, block_bytes)?;
                    *slot = Slot::Open(Arc::new(block));
                }
                Slot::Removed => unreachable!("tokens follow a removed span"),
            }
        }
        Ok(())
    }

    /// The blocks from block `first` on, which [`BlockRun::make_writable`] has made ready.
    pub(crate) fn written(&mut self, first: usize) -> impl Iterator<Item = &mut Block> {
        let slots = self.slots.private(first - self.first).iter_mut();
        slots.map(|slot| match slot {
            Slot::Open(block) => Arc::get_mut(block)
                .expect("make_writable has replaced every shared block that is written"),
            Slot::Sealed(_) | Slot::Removed => {
                unreachable!("make_writable has replaced every sealed block that is written")
            }
        })
    }

    /// Block `index` is sealed from now on, and held in memory by `pin`.
    pub(crate) fn seal(&mut self, index: usize, handle: Arc<Handle>, pin: Option<Arc<Block>>) {
        let at = index - self.first;
        if pin.is_none() {
            self.pinned = self.pinned.min(at);
        }
        if self.pins.len() <= at {
            self.pins.resize(at + 1, None);
        }
        self.pins[at] = pin;
        self.slots.private(at)[0] = Slot::Sealed(handle);
    }

    /// Shares the blocks before block `full`, which are not written again unless the context is
    /// cut, with forks to come.
    pub(crate) fn settle(&mut self, full: usize) {
        self.slots.settle(full.saturating_sub(self.first));
    }

    /// Forgets the blocks from block `end` on.
    pub(crate) fn truncate(&mut self, end: usize) {
        let len = end.saturating_sub(self.first);
        self.slots.truncate(len);
        self.pins.truncate(len);
        self.pinned = self.pinned.min(len);
    }

    /// The tokens of the blocks `range` are gone.
    pub(crate) fn remove(&mut self, range: Range<usize>) {
        let range = range.start.max(self.first)..range.end.min(self.end());
        if range.is_empty() {
            return;
        }
        let from = range.start - self.first;
        self.slots.private(from)[..range.len()].fill(Slot::Removed);
        let pins = self.pins.iter_mut().skip(from).take(range.len());
        pins.for_each(|pin| *pin = None);
    }

    /// Adds blocks that begin with block `first`. What lies between has no tokens; where nothing is
    /// held or `first` is beyond what is held, nothing before it is.
    pub(crate) fn append(&mut self, first: usize, gap: Gap, slots: impl IntoIterator<Item = Slot>) {
        if first > self.end() && (gap == Gap::Dropped || self.slots.len() == 0) {
            *self = BlockRun {
                first,
                ..BlockRun::default()
            };
        }
        let between = first - self.end();
        self.slots
            .extend(std::iter::repeat_n(Slot::Removed, between));
        self.slots.extend(slots);
    }

    fn slots_from(&self, from: usize) -> impl Iterator<Item = (usize, &Slot)> {
        (self.first + from..).zip(self.slots.iter_from(from))
    }
}

/// What lies between the last block of a run and one that is added after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gap {
    /// Blocks without tokens.
    Empty,
    /// Blocks that no later token sees, and none before them.
    Dropped,
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
        Block::one_of_many(len, ledger)
    }
}
