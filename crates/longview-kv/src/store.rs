//! The store: sealed blocks of all contexts of a process, in memory and in the tiers below.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::block::Block;
use crate::error::KvError;
use crate::hash::BlockHash;
use crate::ledger::Ledger;
use crate::sealed::Handle;
use crate::tier::{BlockInfo, BlockKey, Hold, RamTier, Tier, TierError};

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
/// A block that seals is held in memory and put into every tier that lasts, so it outlives its
/// context and the process. Memory is given back under pressure: first by blocks that
/// no context refers to, then by letting go of others, the last of a context first, so that what stays
/// is a prefix. What no tier holds then is put into one that does not last.
pub struct Store {
    ledger: Ledger,
    /// Below memory, fastest first.
    tiers: Vec<Arc<dyn Tier>>,
    memory: RamTier,
    counts: Mutex<StoreCounts>,
    warnings: Mutex<Vec<String>>,
    /// Tiers that were said to be full, and when.
    full: Mutex<HashMap<String, Instant>>,
}

/// A tier that is full is told of this often: it is for every block that seals.
const TELL_FULL: Duration = Duration::from_secs(600);

impl Store {
    /// A store over `tiers`, fastest first, whose memory `ledger` accounts for. Without tiers,
    /// blocks are kept in memory as long as there is room.
    pub fn new(ledger: Ledger, tiers: Vec<Arc<dyn Tier>>) -> Store {
        Store {
            ledger,
            tiers,
            memory: RamTier::new(),
            counts: Mutex::default(),
            warnings: Mutex::default(),
            full: Mutex::default(),
        }
    }

    /// The most bytes that the tiers below memory could hold, as far as that is known.
    pub fn room(&self) -> u64 {
        let of_tiers = self.tiers.iter().map(|tier| tier.room());
        of_tiers.fold(0, u64::saturating_add)
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
        let lacking = || self.ledger.lacks(wanted);
        // What no context refers to may be lost if it must.
        self.memory.shed(lacking, |block| {
            self.put_below(block);
        });
        self.demote(lacking);
        if lacking() {
            // Blocks that a tier still holds in memory.
            self.tiers.iter().for_each(|tier| tier.relieve());
            self.demote(lacking);
        }
        !self.ledger.lacks(wanted)
    }

    /// Registers a block that sealed, puts it into a tier, and returns how contexts refer to it:
    /// the same handle for equal blocks, so that what two contexts computed alike is held once.
    pub(crate) fn seal(&self, info: BlockInfo, block: Arc<Block>) -> Arc<Handle> {
        for tier in self.tiers.iter().filter(|tier| tier.lasts()) {
            match tier.put(&info, &block) {
                Ok(()) => {}
                // The place has told so itself.
                Err(TierError::ReadOnly { .. }) => {}
                Err(error) => self.note_unkept(&error),
            }
        }
        lock(&self.counts).sealed_blocks += 1;
        self.memory.refer(&info, Some(block))
    }

    /// How contexts refer to the block called `key`, if it is in memory or in a tier.
    pub(crate) fn find(&self, key: &BlockKey) -> Option<Arc<Handle>> {
        if let Some(handle) = self.memory.handle(key)
            && (handle.is_resident() || self.is_below(key))
        {
            return Some(handle);
        }
        let known = |tier: &'_ Arc<dyn Tier>| Some((tier.find(key)?, tier.resident(key)));
        let (info, block) = self.tiers.iter().find_map(known)?;
        Some(self.memory.refer(&info, block))
    }

    /// What holds a block: `memory` or a tier's name; `None` when nothing does.
    pub fn place_of(&self, key: &BlockKey) -> Option<&str> {
        if self.memory.find(key).is_some() {
            return Some(self.memory.name());
        }
        self.holder(key).map(|tier| self.tiers[tier].name())
    }

    /// The blocks of group 0 that directly follow `parent`, wherever they are.
    pub fn after(&self, parent: &BlockHash) -> Vec<BlockInfo> {
        let mut found: Vec<BlockInfo> = Vec::new();
        for tier in self.levels() {
            for info in tier.after(parent) {
                if found.iter().all(|known| known.key != info.key) {
                    found.push(info);
                }
            }
        }
        found
    }

    /// Shows `visit` every block, wherever it is; one that is in several places once for each.
    pub(crate) fn for_each(&self, visit: &mut dyn FnMut(&BlockInfo)) {
        self.levels().for_each(|tier| tier.for_each(visit));
    }

    /// Seconds that reading a whole block is expected to take; 0 from memory.
    pub(crate) fn seconds_to_read(&self, handle: &Handle) -> f64 {
        /// Assumed of a tier that was not read from yet: an ordinary disk.
        const UNMEASURED: f64 = 500e6;
        if handle.is_resident() {
            return 0.0;
        }
        let key = handle.key();
        let shape = handle.info().shape;
        let tier = self.holder(&key).map(|tier| &self.tiers[tier]);
        let rate = tier.and_then(|tier| tier.read_rate()).unwrap_or(UNMEASURED);
        (shape.layers * shape.layer_bytes) as f64 / rate
    }

    /// Reads one layer's slice of each of `keys` into `out`, each from the first tier that can.
    pub(crate) fn read(
        &self,
        keys: &[BlockKey],
        layer: usize,
        out: &mut [u8],
    ) -> Result<(), TierError> {
        let Some(slice) = out.len().checked_div(keys.len()) else {
            return Ok(());
        };
        let (mut keys, mut out) = (keys, out);
        while let Some(first) = keys.first() {
            // What lies in one tier is read together.
            let holder = self.holder(first);
            let same = keys.iter().take_while(|key| self.holder(key) == holder);
            let (run, others) = keys.split_at(same.count());
            let (into, rest) = out.split_at_mut(run.len() * slice);
            self.read_run(run, layer, into)?;
            (keys, out) = (others, rest);
        }
        Ok(())
    }

    fn read_run(&self, keys: &[BlockKey], layer: usize, out: &mut [u8]) -> Result<(), TierError> {
        let mut result = Err(TierError::Missing(keys[0]));
        let first = &keys[0];
        let known = self.tiers.iter().filter(|tier| tier.knows(first));
        // Those that have to look for it come last, if it must be.
        let others = self.tiers.iter().filter(|tier| !tier.knows(first));
        let found = others.filter(|tier| tier.find(first).is_some());
        for tier in known.chain(found) {
            result = tier.read(keys, layer, out);
            if result.is_ok() {
                lock(&self.counts).read_bytes += out.len() as u64;
                break;
            }
        }
        match result {
            // Whatever the reason: the block cannot be had from here.
            Err(error) if error.key().is_none() => Err(TierError::Damaged {
                place: "the store".to_owned(),
                key: keys[0],
                what: error.to_string(),
            }),
            result => result,
        }
    }

    /// The first tier that holds a block. One that knows it to be there is asked before those that would
    /// have to look for it: a folder is searched for what it does not have.
    fn holder(&self, key: &BlockKey) -> Option<usize> {
        let known = self.tiers.iter().position(|tier| tier.knows(key));
        known.or_else(|| self.tiers.iter().position(|tier| tier.find(key).is_some()))
    }

    /// Says that one layer's slices of `keys` are about to be read.
    pub(crate) fn prefetch(&self, keys: &[BlockKey], layer: usize) {
        let mut keys = keys;
        while let Some(first) = keys.first() {
            let holder = self.holder(first);
            let same = keys.iter().take_while(|key| self.holder(key) == holder);
            let (run, others) = keys.split_at(same.count());
            if let Some(tier) = holder {
                self.tiers[tier].prefetch(run, layer);
            }
            keys = others;
        }
    }

    /// Puts a block that was read from far away into the tiers before that which last, so that the
    /// next process finds it there.
    pub(crate) fn bring_nearer(&self, info: &BlockInfo, block: &Arc<Block>) {
        let from = self.holder(&info.key).unwrap_or(0);
        for tier in self.tiers[..from].iter().filter(|tier| tier.lasts()) {
            match tier.put(info, block) {
                Ok(()) | Err(TierError::ReadOnly { .. }) => {}
                Err(error) => self.note_unkept(&error),
            }
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

    /// Takes back that a tier holds a block, after it turned out not to be readable. A tier that
    /// could not read one has forgotten it; what is on its disk may be whole, and stays.
    pub(crate) fn forget(&self, key: &BlockKey) {
        for tier in self.tiers.iter().filter(|tier| tier.knows(key)) {
            if let Err(error) = tier.remove(key) {
                self.note(error.to_string());
            }
        }
        self.memory.forget(key);
    }

    /// Notes that blocks are taken over by a context, and keeps them from being evicted while what
    /// is returned lives. `None` when one has just gone.
    pub(crate) fn take_over(&self, handles: &[Arc<Handle>]) -> Option<Vec<Hold>> {
        let mut by_tier: Vec<Vec<BlockKey>> = vec![Vec::new(); self.tiers.len()];
        for handle in handles {
            let key = handle.key();
            // What is in memory is not looked for.
            let tier = match handle.is_resident() {
                true => self.tiers.iter().position(|tier| tier.knows(&key)),
                false => Some(self.holder(&key)?),
            };
            if let Some(tier) = tier {
                by_tier[tier].push(key);
            }
        }
        let mut holds = Vec::new();
        let held = self.tiers.iter().zip(&by_tier);
        for (tier, keys) in held.filter(|(_, keys)| !keys.is_empty()) {
            tier.touch(keys);
            match tier.hold(keys) {
                Ok(hold) => holds.push(hold),
                Err(TierError::Missing(_)) => return None,
                // It can be read all the same; what is evicted meanwhile is computed again.
                Err(error) => self.note(error.to_string()),
            }
        }
        Some(holds)
    }

    /// Takes back a reference to a block that its context has passed.
    pub(crate) fn release(&self, handle: Arc<Handle>) {
        self.memory.release(handle);
    }

    /// Lets go of a block that no context needs at hand: it stays where a tier below has it.
    pub(crate) fn let_go(&self, key: &BlockKey) {
        self.memory.let_go(key);
    }

    /// The next moment of the clock by which uses are told apart.
    pub(crate) fn now(&self) -> u64 {
        self.memory.now()
    }

    /// Notes why a block was not kept; that a place is full now and then, not with every block.
    fn note_unkept(&self, error: &TierError) {
        if let TierError::Full { place, .. } = error {
            let now = Instant::now();
            let mut full = lock(&self.full);
            let known = full.get(place);
            if known.is_some_and(|then| now.duration_since(*then) < TELL_FULL) {
                return;
            }
            full.insert(place.clone(), now);
        }
        self.note(error.to_string());
    }

    /// Keeps a warning for whoever asks next, once.
    pub fn note(&self, text: String) {
        let mut warnings = lock(&self.warnings);
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    /// Memory and the tiers below it.
    fn levels(&self) -> impl Iterator<Item = &dyn Tier> {
        let below = self.tiers.iter().map(|tier| &**tier);
        std::iter::once(&self.memory as &dyn Tier).chain(below)
    }

    /// Lets blocks that contexts refer to leave memory while `lacking` says so.
    fn demote(&self, lacking: impl Fn() -> bool) {
        if lacking() {
            let freed = self.memory.demote(lacking, |block| self.rely_below(block));
            lock(&self.counts).demoted_bytes += freed;
        }
    }

    /// Whether a block that leaves memory is below, if need be from now on.
    fn put_below(&self, handle: &Handle) -> bool {
        let key = handle.key();
        self.tiers.iter().any(|tier| tier.knows(&key)) || self.spill(handle)
    }

    /// Puts a block into a tier that does not last.
    fn spill(&self, handle: &Handle) -> bool {
        let Some(block) = handle.pin(handle.last_used()) else {
            return false;
        };
        let mut passing = self.tiers.iter().filter(|tier| !tier.lasts());
        passing.any(|tier| match tier.put(handle.info(), &block) {
            Ok(()) => true,
            Err(error) => {
                self.note(error.to_string());
                false
            }
        })
    }

    /// The same for a block that contexts refer to: it is kept from being evicted there.
    fn rely_below(&self, handle: &Handle) -> bool {
        if handle.relies() {
            return true;
        }
        let key = handle.key();
        let held_by = |tier: &Arc<dyn Tier>| match tier.hold(&[key]) {
            Ok(hold) => Some(hold),
            Err(TierError::Missing(_)) => None,
            // Such as a full disk, which cannot note what is held: another place may.
            Err(error) => {
                self.note(error.to_string());
                None
            }
        };
        let hold = || {
            let mut known = self.tiers.iter().filter(|tier| tier.knows(&key));
            known.find_map(held_by)
        };
        let held = hold().or_else(|| self.spill(handle).then(hold).flatten());
        held.is_some_and(|held| {
            handle.rely(held);
            true
        })
    }

    /// Whether a tier below memory holds a block.
    fn is_below(&self, key: &BlockKey) -> bool {
        self.holder(key).is_some()
    }
}

/// What the store guards is whole at every unlock, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests;
