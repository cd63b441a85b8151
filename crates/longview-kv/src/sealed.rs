//! Sealed blocks as contexts share them: in memory, or away in a tier and read when needed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::block::Block;
use crate::tier::{BlockInfo, BlockKey, Hold};

/// A sealed block that contexts refer to. Whether it is in memory is the same for all of them.
pub(crate) struct Handle {
    info: BlockInfo,
    block: Mutex<Option<Arc<Block>>>,
    /// The clock of the memory when it was used last.
    used: AtomicU64,
    /// Keeps it from being evicted where it is read back from, once its memory was let go.
    relied_on: Mutex<Option<Hold>>,
    /// Counts those who may ask for it again by its name.
    names: Arc<()>,
}

/// The name of a block that somebody may ask for again. It keeps nothing in memory.
#[derive(Clone)]
pub(crate) struct Name {
    pub(crate) key: BlockKey,
    _one: Arc<()>,
}

impl Handle {
    /// A block that is not in memory.
    pub(crate) fn new(info: BlockInfo) -> Handle {
        Handle {
            info,
            block: Mutex::default(),
            used: AtomicU64::new(0),
            relied_on: Mutex::default(),
            names: Arc::default(),
        }
    }

    pub(crate) fn info(&self) -> &BlockInfo {
        &self.info
    }

    pub(crate) fn key(&self) -> BlockKey {
        self.info.key
    }

    /// Its name, for whoever may ask for it again.
    pub(crate) fn name(&self) -> Name {
        Name {
            key: self.key(),
            _one: Arc::clone(&self.names),
        }
    }

    /// Whether somebody may ask for it again by its name.
    pub(crate) fn is_named(&self) -> bool {
        Arc::strong_count(&self.names) > 1
    }

    /// The block, if it is in memory. It stays there for as long as the pin is held.
    pub(crate) fn pin(&self, now: u64) -> Option<Arc<Block>> {
        self.touch(now);
        self.lock().clone()
    }

    /// Notes a use.
    pub(crate) fn touch(&self, now: u64) {
        self.used.store(now, Ordering::Relaxed);
    }

    pub(crate) fn last_used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Relies on a tier that holds the block, for as long as a context refers to it.
    pub(crate) fn rely(&self, hold: Hold) {
        // One hold is as good as another.
        lock(&self.relied_on).get_or_insert(hold);
    }

    /// Whether a tier holds the block for it.
    pub(crate) fn relies(&self) -> bool {
        lock(&self.relied_on).is_some()
    }

    /// Relies on no tier any more: the block was not there.
    pub(crate) fn rely_no_longer(&self) {
        let hold = lock(&self.relied_on).take();
        drop(hold);
    }

    /// Whether letting go would free memory: not while a pass holds the block.
    pub(crate) fn is_free(&self) -> bool {
        let held = self.lock();
        held.as_ref()
            .is_some_and(|block| Arc::strong_count(block) == 1)
    }

    pub(crate) fn is_resident(&self) -> bool {
        self.lock().is_some()
    }

    /// Puts the block that was read into memory; one that came first stays.
    pub(crate) fn fill(&self, block: Arc<Block>) {
        self.lock().get_or_insert(block);
    }

    /// Lets go of the memory, unless a pass holds the block. Returns whether it is not in memory now.
    pub(crate) fn let_go(&self) -> bool {
        let mut block = self.lock();
        if block
            .as_ref()
            .is_none_or(|held| Arc::strong_count(held) == 1)
        {
            *block = None;
        }
        block.is_none()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Block>>> {
        lock(&self.block)
    }
}

/// An `Option` is whole at every unlock, so a panic elsewhere does not spoil it.
fn lock<T>(option: &Mutex<Option<T>>) -> MutexGuard<'_, Option<T>> {
    option.lock().unwrap_or_else(PoisonError::into_inner)
}
