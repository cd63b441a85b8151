//! The store: sealed blocks of all contexts of a process, in memory and in the tiers below.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::block::Block;
use crate::error::KvError;
use crate::hash::BlockHash;
use crate::ledger::Ledger;
use crate::sealed::Handle;
use crate::tier::{BlockInfo, BlockKey, Hold, Tier, TierError};

/// What a store has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreCounts {
    /// Blocks sealed.
    pub sealed_blocks: u64,
    /// Bytes read back from tiers.
    pub read_bytes: u64,
    /// Bytes of memory freed by letting go of blocks that a tier holds.
    pub demoted_bytes: u64,
}

/// Sealed blocks of all contexts of a process.
///
/// A block that seals is registered here and put into the first tier that takes it, so it outlives
/// its context and the process. Memory is given back under pressure: first by blocks that no
/// context refers to, then by letting go of blocks that a tier holds, the last of a context first,
/// so that what stays is a prefix.
pub struct Store {
    ledger: Ledger,
    tiers: Vec<Arc<dyn Tier>>,
    live: Mutex<HashMap<BlockKey, Arc<Handle>>>,
    /// Counts pins, to tell which blocks were used last.
    clock: AtomicU64,
    counts: Mutex<StoreCounts>,
    warnings: Mutex<Vec<String>>,
}

impl Store {
    /// A store over `tiers`, fastest first, whose memory `ledger` accounts for. Without tiers,
    /// blocks are kept in memory as long as there is room.
    pub fn new(ledger: Ledger, tiers: Vec<Arc<dyn Tier>>) -> Store {
        Store {
            ledger,
            tiers,
            live: Mutex::default(),
            clock: AtomicU64::new(1),
            counts: Mutex::default(),
            warnings: Mutex::default(),
        }
    }

    /// The tiers below memory, fastest first.
    pub fn tiers(&self) -> &[Arc<dyn Tier>] {
        &self.tiers
    }

    /// The account of the memory its blocks take.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What was done so far.
    pub fn counts(&self) -> StoreCounts {
        *lock(&self.counts)
    }

    /// What went wrong without stopping the work, since the last call. Each says what follows.
    pub fn take_warnings(&self) -> Vec<String> {
        let mut warnings = std::mem::take(&mut *lock(&self.warnings));
        warnings.extend(self.tiers.iter().flat_map(|tier| tier.take_notices()));
        warnings
    }

    /// Makes what was sealed so far survive a power loss.
    ///
    /// # Errors
    /// When a tier cannot; the others were still asked.
    pub fn sync(&self) -> Result<(), TierError> {
        let mut result = Ok(());
        for tier in &self.tiers {
            result = tier.sync().and(result);
        }
        result
    }

    /// Frees `wanted` bytes of the ledger, or as many as it can. Returns whether they are free.
    pub fn make_space(&self, wanted: u64) -> bool {
        if !self.ledger.lacks(wanted) {
            return true;
        }
        let mut live = lock(&self.live);
        // What no context refers to: the longest unused first.
        let mut unused: Vec<Arc<Handle>> = live
            .values()
            .filter(|handle| Arc::strong_count(handle) == 1)
            .cloned()
            .collect();
        unused.sort_by_key(|handle| (handle.last_used(), std::cmp::Reverse(handle.info().index)));
        for handle in unused {
            if !self.ledger.lacks(wanted) {
                return true;
            }
            handle.let_go();
            live.remove(&handle.key());
        }
        let mut away: Vec<Arc<Handle>> = live
            .values()
            .filter(|handle| handle.free_bytes() > 0)
            .cloned()
            .collect();
        drop(live);
        away.sort_by_key(|handle| std::cmp::Reverse((handle.info().index, handle.key())));
        for handle in away {
            if !self.ledger.lacks(wanted) {
                break;
            }
            if self.is_below(&handle.key()) {
                let freed = handle.let_go();
                lock(&self.counts).demoted_bytes += freed;
            }
        }
        !self.ledger.lacks(wanted)
    }

    /// Registers a block that sealed, puts it into a tier, and returns how contexts refer to it:
    /// the same handle for equal blocks, so that what two contexts computed alike is held once.
    pub(crate) fn seal(&self, info: BlockInfo, block: Arc<Block>) -> Arc<Handle> {
        for tier in &self.tiers {
            match tier.put(&info, &block) {
                Ok(()) => break,
                // The place has told so itself.
                Err(TierError::ReadOnly { .. }) => {}
                Err(error) => self.note(error.to_string()),
            }
        }
        lock(&self.counts).sealed_blocks += 1;
        let mut live = lock(&self.live);
        let handle = live
            .entry(info.key)
            .or_insert_with(|| Arc::new(Handle::new(info, None)));
        handle.fill(block);
        Arc::clone(handle)
    }

    /// How contexts refer to the block called `key`, if it is in memory or in a tier.
    pub(crate) fn find(&self, key: &BlockKey) -> Option<Arc<Handle>> {
        if let Some(handle) = lock(&self.live).get(key)
            && (handle.is_resident() || self.is_below(key))
        {
            return Some(Arc::clone(handle));
        }
        let known = |tier: &'_ Arc<dyn Tier>| Some((Arc::clone(tier), tier.find(key)?));
        let (tier, info) = self.tiers.iter().find_map(known)?;
        let handle = Arc::new(Handle::new(info, tier.resident(key)));
        let mut live = lock(&self.live);
        Some(Arc::clone(live.entry(*key).or_insert(handle)))
    }

    /// What holds a block: `memory` or a tier's name; `None` when nothing does.
    pub fn place_of(&self, key: &BlockKey) -> Option<&str> {
        if lock(&self.live)
            .get(key)
            .is_some_and(|held| held.is_resident())
        {
            return Some("memory");
        }
        let tier = self.tiers.iter().find(|tier| tier.find(key).is_some())?;
        Some(tier.name())
    }

    /// The blocks of group 0 that directly follow `parent`, wherever they are.
    pub fn after(&self, parent: &BlockHash) -> Vec<BlockInfo> {
        let mut found: Vec<BlockInfo> = lock(&self.live)
            .values()
            .map(|handle| handle.info())
            .filter(|info| info.parent == *parent && info.key.group == 0)
            .cloned()
            .collect();
        for tier in &self.tiers {
            for info in tier.after(parent) {
                if found.iter().all(|known| known.key != info.key) {
                    found.push(info);
                }
            }
        }
        found
    }

    /// Seconds that reading `bytes` of the block called `key` is expected to take; 0 from memory.
    pub(crate) fn seconds_to_read(&self, handle: &Handle) -> f64 {
        /// Assumed of a tier that was not read from yet: an ordinary disk.
        const UNMEASURED: f64 = 500e6;
        if handle.is_resident() {
            return 0.0;
        }
        let key = handle.key();
        let shape = handle.info().shape;
        let tier = self.tiers.iter().find(|tier| tier.find(&key).is_some());
        let rate = tier.and_then(|tier| tier.read_rate()).unwrap_or(UNMEASURED);
        (shape.layers * shape.layer_bytes) as f64 / rate
    }

    /// Reads one layer's slice of each of `keys` into `out` from the first tier that can.
    pub(crate) fn read(
        &self,
        keys: &[BlockKey],
        layer: usize,
        out: &mut [u8],
    ) -> Result<(), TierError> {
        let mut result = match keys.first() {
            None => return Ok(()),
            Some(&key) => Err(TierError::Missing(key)),
        };
        for tier in &self.tiers {
            result = tier.read(keys, layer, out);
            if result.is_ok() {
                lock(&self.counts).read_bytes += out.len() as u64;
                break;
            }
        }
        match (result, keys) {
            // Whatever the reason: the block cannot be had from here.
            (Err(error), [key, ..]) if error.key().is_none() => Err(TierError::Damaged {
                place: "the store".to_owned(),
                key: *key,
                what: error.to_string(),
            }),
            (result, _) => result,
        }
    }

    /// A copy of a sealed block, to be written.
    pub(crate) fn private_copy(&self, handle: &Handle, len: usize) -> Result<Block, KvError> {
        // Pinned first, so that making space cannot take it away.
        let held = handle.pin(self.now());
        let mut block = Block::with_space(len, &self.ledger, Some(self))?;
        match held {
            Some(held) => block.bytes_mut().copy_from_slice(held.bytes()),
            None => {
                let BlockInfo { key, shape, .. } = *handle.info();
                let slices = block.bytes_mut().chunks_exact_mut(shape.layer_bytes);
                for (layer, slice) in slices.enumerate() {
                    self.read(&[key], layer, slice)?;
                }
            }
        }
        Ok(block)
    }

    /// Takes back that blocks are held anywhere, after they turned out not to be readable.
    pub(crate) fn forget(&self, key: &BlockKey) {
        for tier in &self.tiers {
            if let Err(error) = tier.remove(key) {
                self.note(error.to_string());
            }
        }
        lock(&self.live).remove(key);
    }

    /// Notes that blocks are taken over by a context, and keeps them from being evicted while what
    /// is returned lives. `None` when one has just gone.
    pub(crate) fn take_over(&self, handles: &[Arc<Handle>]) -> Option<Vec<Hold>> {
        let mut by_tier: Vec<Vec<BlockKey>> = vec![Vec::new(); self.tiers.len()];
        for handle in handles {
            let key = handle.key();
            match self.tiers.iter().position(|tier| tier.find(&key).is_some()) {
                Some(tier) => by_tier[tier].push(key),
                None if handle.is_resident() => {}
                None => return None,
            }
        }
        let held = self.tiers.iter().zip(&by_tier);
        held.filter(|(_, keys)| !keys.is_empty())
            .map(|(tier, keys)| {
                tier.touch(keys);
                tier.hold(keys).ok()
            })
            .collect()
    }

    /// Takes back a reference to a block that its context has passed. The memory goes at once when
    /// no other context refers to it: a window that moves on would fill it otherwise.
    pub(crate) fn release(&self, handle: Arc<Handle>) {
        let mut live = lock(&self.live);
        // The table's own reference and this one.
        if Arc::strong_count(&handle) == 2 {
            handle.let_go();
            live.remove(&handle.key());
        }
    }

    /// Lets go of a block that no context needs at hand, unless one refers to it: it stays where a
    /// tier has it.
    pub(crate) fn let_go(&self, key: &BlockKey) {
        let mut live = lock(&self.live);
        let unused = |held: &&Arc<Handle>| Arc::strong_count(held) == 1;
        if let Some(handle) = live.get(key).filter(unused) {
            handle.let_go();
            live.remove(key);
        }
    }

    /// The next moment of the store's clock.
    pub(crate) fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    /// Keeps a warning for whoever asks next, once.
    pub fn note(&self, text: String) {
        let mut warnings = lock(&self.warnings);
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    /// Whether a tier holds a block.
    fn is_below(&self, key: &BlockKey) -> bool {
        self.tiers.iter().any(|tier| tier.find(key).is_some())
    }
}

/// What the store guards is whole at every unlock, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
