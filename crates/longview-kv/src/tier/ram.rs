//! Sealed blocks in memory, the same slabs that contexts use: the nearest tier of every store.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::extent::{block_bytes, unfit};
use super::{BlockInfo, BlockKey, Hold, Tier, TierError, TierUsage};
use crate::block::Block;
use crate::hash::BlockHash;
use crate::sealed::Handle;

/// A tier in memory. Its bytes are those of the blocks themselves, which the ledger they were
/// allocated from accounts for; equal blocks are held once.
///
/// Contexts refer to blocks by [`Handle`]s from here. One whose block has left memory stays in the
/// table for as long as a context refers to it; as a tier, memory holds only what is there.
pub(crate) struct RamTier {
    handles: Mutex<HashMap<BlockKey, Arc<Handle>>>,
    /// Counts uses, to tell which blocks were used last.
    clock: AtomicU64,
}

impl RamTier {
    /// An empty tier.
    pub(crate) fn new() -> RamTier {
        RamTier {
            handles: Mutex::default(),
            clock: AtomicU64::new(1),
        }
    }

    /// How contexts refer to a block that is in memory, or that one of them refers to already.
    pub(crate) fn handle(&self, key: &BlockKey) -> Option<Arc<Handle>> {
        self.lock().get(key).cloned()
    }

    /// The handle of a block, the same for all who ask; `block` is held from now on, unless an equal
    /// one is.
    pub(crate) fn refer(&self, info: &BlockInfo, block: Option<Arc<Block>>) -> Arc<Handle> {
        let mut handles = self.lock();
        let new = || Arc::new(Handle::new(info.clone()));
        let handle = handles.entry(info.key).or_insert_with(new);
        if let Some(block) = block {
            handle.fill(block);
        }
        Arc::clone(handle)
    }

    /// Lets go of blocks that no context refers to, those not used for longest first and the last of a
    /// context first, while `lacking` says so. Each is shown to `leaving` before.
    pub(crate) fn shed(&self, lacking: impl Fn() -> bool, leaving: impl Fn(&Handle)) {
        let mut handles = self.lock();
        // Whoever asks for one again gets a new one; until then what it relies on is held for nobody.
        handles.retain(|_, handle| !is_unused(handle) || handle.is_resident());
        let unused = handles.values().filter(|handle| is_unused(handle));
        let mut unused: Vec<_> = unused
            .map(|handle| {
                (
                    handle.last_used(),
                    Reverse(handle.info().index),
                    handle.key(),
                )
            })
            .collect();
        drop(handles);
        unused.sort_unstable();
        for (.., key) in unused {
            if !lacking() {
                break;
            }
            if let Some(handle) = self.handle(&key) {
                leaving(&handle);
                self.release(handle);
            }
        }
    }

    /// Lets go of blocks that contexts refer to, the last of a context first, while `lacking` says so:
    /// those that are held below, as `elsewhere` says. Returns the bytes freed.
    pub(crate) fn demote(
        &self,
        lacking: impl Fn() -> bool,
        elsewhere: impl Fn(&Handle) -> bool,
    ) -> u64 {
        let mut leaving: Vec<Arc<Handle>> = {
            let handles = self.lock();
            let free = handles.values().filter(|handle| handle.is_free());
            free.cloned().collect()
        };
        leaving.sort_by_key(|handle| Reverse((handle.info().index, handle.key())));
        let mut freed = 0;
        for handle in leaving {
            if !lacking() {
                break;
            }
            if elsewhere(&handle) && handle.let_go() {
                freed += block_bytes(handle.info().shape);
            }
        }
        freed
    }

    /// Takes back a reference to a block that its context has passed. The memory goes at once when
    /// no other context refers to it: a window that moves on would fill it otherwise.
    pub(crate) fn release(&self, handle: Arc<Handle>) {
        let mut handles = self.lock();
        let key = handle.key();
        drop(handle);
        forget_unused(&mut handles, &key);
    }

    /// Takes back that a block can be had from below. Contexts that refer to it keep the handle they share,
    /// so that all of them have it again when one has computed it.
    pub(crate) fn forget(&self, key: &BlockKey) {
        if let Some(handle) = self.handle(key) {
            handle.rely_no_longer();
        }
        forget_absent(&mut self.lock(), key);
    }

    /// Lets go of a block that no context needs at hand, unless one refers to it or knows its name.
    pub(crate) fn let_go(&self, key: &BlockKey) {
        let mut handles = self.lock();
        if handles.get(key).is_some_and(|handle| !handle.is_named()) {
            forget_unused(&mut handles, key);
        }
    }

    /// The next moment of the clock by which uses are told apart.
    pub(crate) fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    /// The handle of a block that is in memory.
    fn resident_handle(&self, key: &BlockKey) -> Result<Arc<Handle>, TierError> {
        let handle = self.handle(key).filter(|handle| handle.is_resident());
        handle.ok_or(TierError::Missing(*key))
    }

    /// What is in memory.
    fn infos(&self, wanted: impl Fn(&BlockInfo) -> bool) -> Vec<BlockInfo> {
        let handles = self.lock();
        let there = handles.values().filter(|handle| handle.is_resident());
        let infos = there.map(|handle| handle.info());
        infos.filter(|info| wanted(info)).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BlockKey, Arc<Handle>>> {
        // Every change is a single insertion or removal: a panic elsewhere leaves it whole.
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the table alone refers to it.
fn is_unused(handle: &Arc<Handle>) -> bool {
    Arc::strong_count(handle) == 1
}

/// Removes a handle that nobody refers to, and lets go of its memory.
fn forget_unused(handles: &mut HashMap<BlockKey, Arc<Handle>>, key: &BlockKey) {
    if handles
        .get(key)
        .is_some_and(|handle| is_unused(handle) && handle.let_go())
    {
        handles.remove(key);
    }
}

/// Removes a handle that nobody refers to and whose block is not in memory.
fn forget_absent(handles: &mut HashMap<BlockKey, Arc<Handle>>, key: &BlockKey) {
    let is_absent = |handle: &Arc<Handle>| is_unused(handle) && !handle.is_resident();
    if handles.get(key).is_some_and(is_absent) {
        handles.remove(key);
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
        self.refer(info, Some(Arc::clone(block)));
        Ok(())
    }

    fn find(&self, key: &BlockKey) -> Option<BlockInfo> {
        Some(self.resident_handle(key).ok()?.info().clone())
    }

    fn after(&self, parent: &BlockHash) -> Vec<BlockInfo> {
        self.infos(|info| info.key.group == 0 && info.parent == *parent)
    }

    fn resident(&self, key: &BlockKey) -> Option<Arc<Block>> {
        self.handle(key)?.pin(self.now())
    }

    fn read(&self, keys: &[BlockKey], layer: usize, out: &mut [u8]) -> Result<(), TierError> {
        let mut rest = out;
        for key in keys {
            let handle = self.resident_handle(key)?;
            let block = handle.pin(self.now()).ok_or(TierError::Missing(*key))?;
            let layer_bytes = handle.info().shape.layer_bytes;
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
        let now = self.now();
        for handle in keys.iter().filter_map(|key| self.handle(key)) {
            handle.touch(now);
        }
    }

    fn hold(&self, keys: &[BlockKey]) -> Result<Hold, TierError> {
        let pin = |key: &BlockKey| {
            let block = self.resident(key);
            block.ok_or(TierError::Missing(*key))
        };
        let blocks: Result<Vec<_>, _> = keys.iter().map(pin).collect();
        blocks.map(Hold::new)
    }

    fn remove(&self, key: &BlockKey) -> Result<(), TierError> {
        self.lock().remove(key);
        Ok(())
    }

    fn sync(&self) -> Result<(), TierError> {
        Ok(())
    }

    fn usage(&self) -> TierUsage {
        let infos = self.infos(|_| true);
        let bytes = infos.iter().map(|info| block_bytes(info.shape));
        TierUsage {
            blocks: infos.len() as u64,
            bytes: bytes.sum(),
        }
    }

    fn for_each(&self, visit: &mut dyn FnMut(&BlockInfo)) {
        self.infos(|_| true).iter().for_each(visit);
    }

    fn read_rate(&self) -> Option<f64> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::ledger::Ledger;
    use crate::tier::conformance::{self, Fixture};
    use crate::tier::testing::{Chain, assert_gone, assert_held, keys, put};

    /// Says so many times that something is lacking.
    fn lacking(times: usize) -> impl Fn() -> bool {
        let left = Cell::new(times);
        move || left.replace(left.get().saturating_sub(1)) > 0
    }

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
        let used = tier.handle(&infos[3].key).unwrap();
        tier.touch(&[infos[1].key, infos[2].key]);
        tier.shed(lacking(1), |_| {});
        assert_gone(&tier, &infos[..1]);
        let hold = tier.hold(&keys(&infos[2..3])).unwrap();
        tier.touch(&[infos[1].key]);
        tier.shed(lacking(1), |_| {});
        assert_held(&tier, &infos[1..]);
        drop(hold);
        let told = Cell::new(0);
        tier.shed(lacking(9), |_| told.set(told.get() + 1));
        assert_eq!(told.get(), 2);
        assert_gone(&tier, &infos[..3]);
        assert_held(&tier, &infos[3..]);
        drop(used);
        tier.shed(lacking(9), |_| {});
        assert_eq!(tier.usage(), TierUsage::default());
    }

    #[test]
    fn what_contexts_refer_to_leaves_from_the_end_and_only_if_it_is_elsewhere() {
        let tier = RamTier::new();
        let infos = Chain::new("m").blocks(4, 1);
        put(&tier, &infos);
        let used: Vec<_> = infos.iter().map(|info| tier.handle(&info.key)).collect();
        let pin = used[2].as_ref().unwrap().pin(tier.now());
        let elsewhere = |handle: &Handle| handle.key() != infos[3].key;
        assert_eq!(tier.demote(lacking(2), elsewhere), 3000);
        assert_held(
            &tier,
            &[infos[0].clone(), infos[2].clone(), infos[3].clone()],
        );
        assert_gone(&tier, &infos[1..2]);
        // Whoever asks for it again gets the handle that others have.
        let again = tier.refer(&infos[1], None);
        assert!(Arc::ptr_eq(&again, used[1].as_ref().unwrap()));
        drop(pin);
        assert_eq!(tier.demote(lacking(9), |_| true), 9000);
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
        let handle = tier.handle(&info.key).unwrap();
        tier.let_go(&info.key);
        assert_eq!(ledger.usage().kv, 3000, "a context refers to it");
        tier.release(handle);
        assert_eq!(ledger.usage().total(), 0);
        assert_gone(&tier, &[info]);
    }
}
