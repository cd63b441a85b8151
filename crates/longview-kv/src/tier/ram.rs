//! Sealed blocks in memory, the same slabs that contexts use.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::extent::{block_bytes, unfit};
use super::{BlockInfo, BlockKey, Hold, Tier, TierError, TierUsage};
use crate::block::Block;
use crate::hash::BlockHash;

/// A tier in memory. Its bytes are those of the blocks themselves, which the ledger they were
/// allocated from accounts for; a block that a context uses as well is held once.
#[derive(Default)]
pub struct RamTier {
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    blocks: HashMap<BlockKey, Entry>,
    /// Counts uses, to tell which block was used last.
    clock: u64,
}

struct Entry {
    info: BlockInfo,
    block: Arc<Block>,
    used: u64,
}

impl RamTier {
    /// An empty tier.
    pub fn new() -> RamTier {
        RamTier::default()
    }

    /// Lets go of blocks that nobody else refers to, those not used for longest first, and of
    /// blocks that were used together the last of a context first, until `bytes` bytes are
    /// free. Returns the bytes freed.
    pub fn shed(&self, bytes: u64) -> u64 {
        let mut held = self.lock();
        let mut idle: Vec<_> = held
            .blocks
            .values()
            .filter(|entry| Arc::strong_count(&entry.block) == 1)
            .map(|entry| {
                (
                    entry.used,
                    std::cmp::Reverse(entry.info.index),
                    entry.info.key,
                )
            })
            .collect();
        idle.sort_unstable();
        let mut freed = 0;
        for (_, _, key) in idle {
            if freed >= bytes {
                break;
            }
            if let Some(entry) = held.blocks.remove(&key) {
                freed += block_bytes(entry.info.shape);
            }
        }
        freed
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Every change is a single insertion or removal: a panic elsewhere leaves it whole.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn get(&self, key: &BlockKey) -> Result<&Entry, TierError> {
        self.blocks.get(key).ok_or(TierError::Missing(*key))
    }
}

impl Tier for RamTier {
    fn name(&self) -> &str {
        "memory"
    }

    fn put(&self, info: &BlockInfo, block: &Arc<Block>) -> Result<(), TierError> {
        if let Some(what) = unfit(info, block.bytes().len()) {
            return Err(TierError::Unfit {
                key: info.key,
                what,
            });
        }
        let mut held = self.lock();
        held.clock += 1;
        let used = held.clock;
        held.blocks.entry(info.key).or_insert_with(|| Entry {
            info: info.clone(),
            block: Arc::clone(block),
            used,
        });
        Ok(())
    }

    fn find(&self, key: &BlockKey) -> Option<BlockInfo> {
        Some(self.lock().get(key).ok()?.info.clone())
    }

    fn after(&self, parent: &BlockHash) -> Vec<BlockInfo> {
        let held = self.lock();
        let follows = |info: &&BlockInfo| info.key.group == 0 && info.parent == *parent;
        let infos = held.blocks.values().map(|entry| &entry.info);
        infos.filter(follows).cloned().collect()
    }

    fn resident(&self, key: &BlockKey) -> Option<Arc<Block>> {
        Some(Arc::clone(&self.lock().get(key).ok()?.block))
    }

    fn read(&self, keys: &[BlockKey], layer: usize, out: &mut [u8]) -> Result<(), TierError> {
        let mut rest = out;
        for key in keys {
            let (block, layer_bytes) = {
                let held = self.lock();
                let entry = held.get(key)?;
                (Arc::clone(&entry.block), entry.info.shape.layer_bytes)
            };
            let slice = block
                .bytes()
                .get(layer * layer_bytes..(layer + 1) * layer_bytes);
            let (Some(slice), Some((head, tail))) = (slice, rest.split_at_mut_checked(layer_bytes))
            else {
                return Err(TierError::Unfit {
                    key: *key,
                    what: "it has other layers than are read",
                });
            };
            head.copy_from_slice(slice);
            rest = tail;
        }
        Ok(())
    }

    fn touch(&self, keys: &[BlockKey]) {
        let mut held = self.lock();
        held.clock += 1;
        let now = held.clock;
        for key in keys {
            if let Some(entry) = held.blocks.get_mut(key) {
                entry.used = now;
            }
        }
    }

    fn hold(&self, keys: &[BlockKey]) -> Result<Hold, TierError> {
        let held = self.lock();
        let blocks: Result<Vec<_>, _> = keys
            .iter()
            .map(|key| Ok(Arc::clone(&held.get(key)?.block)))
            .collect();
        blocks.map(Hold::new)
    }

    fn remove(&self, key: &BlockKey) -> Result<(), TierError> {
        self.lock().blocks.remove(key);
        Ok(())
    }

    fn sync(&self) -> Result<(), TierError> {
        Ok(())
    }

    fn usage(&self) -> TierUsage {
        let held = self.lock();
        let bytes = held
            .blocks
            .values()
            .map(|entry| block_bytes(entry.info.shape));
        TierUsage {
            blocks: held.blocks.len() as u64,
            bytes: bytes.sum(),
        }
    }

    fn for_each(&self, visit: &mut dyn FnMut(&BlockInfo)) {
        let infos: Vec<_> = {
            let held = self.lock();
            held.blocks
                .values()
                .map(|entry| entry.info.clone())
                .collect()
        };
        infos.iter().for_each(visit);
    }

    fn read_rate(&self) -> Option<f64> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Ledger, Purpose};
    use crate::tier::conformance::{self, Fixture};
    use crate::tier::testing::{Chain, assert_gone, assert_held, block, put};

    #[test]
    fn conforms() {
        conformance::run(|| Fixture {
            tier: Box::new(RamTier::new()),
            _home: Box::new(()),
        });
    }

    #[test]
    fn sheds_what_nobody_uses_oldest_first_and_from_the_end() {
        let tier = RamTier::new();
        let infos = Chain::new("m").blocks(4, 1);
        put(&tier, &infos);
        let used = tier.resident(&infos[3].key).unwrap();
        tier.touch(&[infos[1].key, infos[2].key]);
        assert_eq!(tier.shed(1), 3000);
        assert_gone(&tier, &infos[..1]);
        assert_eq!(tier.shed(3000), 3000);
        assert_gone(&tier, &infos[2..3]);
        assert_eq!(tier.shed(u64::MAX), 3000);
        assert_held(&tier, &infos[3..]);
        drop(used);
        assert_eq!(tier.shed(u64::MAX), 3000);
        assert_eq!(tier.usage(), TierUsage::default());
    }

    #[test]
    fn the_ledger_owns_the_bytes() {
        let ledger = Ledger::unlimited();
        let tier = RamTier::new();
        let info = Chain::new("m").block(1);
        let slab = Block::zeroed(3000, &ledger).unwrap();
        tier.put(&info, &Arc::new(slab)).unwrap();
        assert_eq!(ledger.usage().kv, 3000);
        assert_eq!(tier.shed(1), 3000);
        assert_eq!(ledger.usage().total(), 0);
        assert!(ledger.reserve(Purpose::Kv, 1).is_ok());
        let held = block(&info);
        tier.put(&info, &held).unwrap();
        let hold = tier.hold(&[info.key]).unwrap();
        drop(held);
        assert_eq!(tier.shed(1), 0);
        drop(hold);
        assert_eq!(tier.shed(1), 3000);
    }
}
