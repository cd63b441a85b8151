//! Sealed blocks as contexts share them: in memory, or away in a tier and read when needed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::block::Block;
use crate::tier::{BlockInfo, BlockKey};

/// A sealed block that contexts refer to. Whether it is in memory is the same for all of them.
pub(crate) struct Handle {
    info: BlockInfo,
    block: Mutex<Option<Arc<Block>>>,
    /// The store's clock when it was last pinned.
    used: AtomicU64,
}

impl Handle {
    pub(crate) fn new(info: BlockInfo, block: Option<Arc<Block>>) -> Handle {
        Handle {
            info,
            block: Mutex::new(block),
            used: AtomicU64::new(0),
        }
    }

    pub(crate) fn info(&self) -> &BlockInfo {
        &self.info
    }

    pub(crate) fn key(&self) -> BlockKey {
        self.info.key
    }

    /// The block, if it is in memory. It stays there for as long as the pin is held.
    pub(crate) fn pin(&self, now: u64) -> Option<Arc<Block>> {
        self.used.store(now, Ordering::Relaxed);
        self.lock().clone()
    }

    pub(crate) fn last_used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes in memory that letting go would free: none while a pass holds the block.
    pub(crate) fn free_bytes(&self) -> u64 {
        match &*self.lock() {
            Some(block) if Arc::strong_count(block) == 1 => block.bytes().len() as u64,
            _ => 0,
        }
    }

    pub(crate) fn is_resident(&self) -> bool {
        self.lock().is_some()
    }

    /// Puts the block that was read into memory; one that came first stays.
    pub(crate) fn fill(&self, block: Arc<Block>) {
        self.lock().get_or_insert(block);
    }

    /// Lets go of the memory, unless a pass holds the block. Returns the bytes freed.
    pub(crate) fn let_go(&self) -> u64 {
        let mut block = self.lock();
        match block.take() {
            Some(held) if Arc::strong_count(&held) == 1 => held.bytes().len() as u64,
            held => {
                *block = held;
                0
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Block>>> {
        // An `Option` is whole at every unlock, so a panic elsewhere does not spoil it.
        self.block
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
