//! What a process knows of the extents in a folder: always a copy of what the files say.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::SystemTime;

use crate::hash::BlockHash;
use crate::tier::extent::{Header, Slot, SlotState};
use crate::tier::{BlockInfo, BlockKey, TierUsage};

/// All extents by the key of their first block, and all blocks in them.
#[derive(Default)]
pub(super) struct Index {
    extents: HashMap<BlockKey, Extent>,
    /// Where a block lies: the extent and the slot in it.
    blocks: HashMap<BlockKey, Place>,
    /// The blocks, of all groups, that directly follow a hash.
    followers: HashMap<BlockHash, Vec<BlockKey>>,
    /// Slots whose payload was found damaged, with the hash their record gives: the record is not
    /// believed until it is rewritten.
    damaged: HashMap<Place, BlockHash>,
    /// The greatest number of a layer group so far.
    last_group: u16,
    usage: TierUsage,
}

/// One extent.
pub(super) struct Extent {
    pub(super) header: Arc<Header>,
    /// One a slot.
    pub(super) slots: Vec<Option<Arc<Slot>>>,
    /// Time of the file's last change when its slot records were read.
    pub(super) modified: SystemTime,
    /// When they were read.
    pub(super) checked: SystemTime,
    /// Last use by this process.
    pub(super) used: SystemTime,
    /// Whether this process may write to it, and so nobody else does.
    pub(super) ours: bool,
}

/// Where a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) extent: BlockKey,
    pub(super) slot: u32,
}

impl Index {
    /// Takes in what a file says, in place of what was known of it.
    pub(super) fn load(&mut self, header: &Arc<Header>, table: &[SlotState], modified: SystemTime) {
        let extent = header.key();
        if self
            .extents
            .get(&extent)
            .is_some_and(|known| known.header != *header)
        {
            self.forget(&extent);
        }
        self.last_group = self.last_group.max(extent.group);
        let now = SystemTime::now();
        let known = match self.extents.entry(extent) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                self.usage.bytes += header.payload_offset();
                entry.insert(Extent {
                    header: Arc::clone(header),
                    slots: vec![None; header.capacity as usize],
                    modified,
                    checked: now,
                    used: modified,
                    ours: false,
                })
            }
        };
        known.modified = modified;
        known.checked = now;
        known.used = known.used.max(modified);
        for (at, state) in table.iter().enumerate() {
            let valid = match state {
                SlotState::Valid(slot) => Some(slot),
                SlotState::Empty | SlotState::Torn => None,
            };
            self.set(extent, at as u32, valid);
        }
    }

    /// Notes that a slot was written just now.
    pub(super) fn wrote(&mut self, extent: BlockKey, at: u32, slot: &Arc<Slot>) {
        self.damaged.remove(&Place { extent, slot: at });
        self.set(extent, at, Some(slot));
    }

    /// Notes that a slot was emptied.
    pub(super) fn empty(&mut self, place: Place) {
        self.damaged.remove(&place);
        self.set(place.extent, place.slot, None);
    }

    /// Notes that the payload of a block cannot be read back.
    pub(super) fn damage(&mut self, key: &BlockKey) {
        if let Some(place) = self.blocks.get(key).copied() {
            self.damaged.insert(place, key.hash);
            self.set(place.extent, place.slot, None);
        }
    }

    /// Forgets an extent, whose file is gone.
    pub(super) fn forget(&mut self, extent: &BlockKey) {
        let Some(known) = self.extents.get(extent) else {
            return;
        };
        let header = Arc::clone(&known.header);
        for at in 0..header.capacity {
            self.set(*extent, at, None);
        }
        self.extents.remove(extent);
        self.damaged.retain(|place, _| place.extent != *extent);
        self.usage.bytes -= header.payload_offset();
    }

    pub(super) fn place(&self, key: &BlockKey) -> Option<Place> {
        self.blocks.get(key).copied()
    }

    pub(super) fn extent(&self, extent: &BlockKey) -> Option<&Extent> {
        self.extents.get(extent)
    }

    pub(super) fn extent_mut(&mut self, extent: &BlockKey) -> Option<&mut Extent> {
        self.extents.get_mut(extent)
    }

    pub(super) fn extents(&self) -> impl Iterator<Item = (&BlockKey, &Extent)> {
        self.extents.iter()
    }

    /// The record of a block and the extent it stands in.
    pub(super) fn slot(&self, key: &BlockKey) -> Option<(Place, &Extent, &Arc<Slot>)> {
        let place = self.place(key)?;
        let extent = self.extents.get(&place.extent)?;
        let slot = extent.slots.get(place.slot as usize)?.as_ref()?;
        Some((place, extent, slot))
    }

    pub(super) fn info(&self, key: &BlockKey) -> Option<BlockInfo> {
        let (place, extent, slot) = self.slot(key)?;
        Some(extent.header.info(place.slot, slot))
    }

    /// Whether a block of any group has this hash.
    pub(super) fn holds(&self, hash: BlockHash) -> bool {
        let mut groups = 0..=self.last_group;
        groups.any(|group| self.blocks.contains_key(&BlockKey { hash, group }))
    }

    /// The blocks that directly follow a hash.
    pub(super) fn followers(&self, parent: &BlockHash) -> &[BlockKey] {
        self.followers.get(parent).map_or(&[], Vec::as_slice)
    }

    pub(super) fn usage(&self) -> TierUsage {
        self.usage
    }

    /// Every block held.
    pub(super) fn infos(&self) -> Vec<BlockInfo> {
        self.blocks
            .keys()
            .filter_map(|key| self.info(key))
            .collect()
    }

    /// Puts one slot into the state that the file has it in.
    fn set(&mut self, extent: BlockKey, at: u32, to: Option<&Arc<Slot>>) {
        let Some(known) = self.extents.get_mut(&extent) else {
            return;
        };
        let key_of = |slot: &Slot| BlockKey {
            hash: slot.hash,
            group: extent.group,
        };
        let here = Place { extent, slot: at };
        let to = to.filter(|slot| self.damaged.get(&here) != Some(&slot.hash));
        let Some(place) = known.slots.get_mut(at as usize) else {
            return;
        };
        if place.as_ref() == to {
            return;
        }
        let bytes = known.header.block_bytes();
        let before = std::mem::replace(place, to.cloned());
        if let Some(slot) = before {
            let key = key_of(&slot);
            self.usage.bytes -= bytes;
            // Another extent may hold the same block.
            if self.blocks.get(&key) == Some(&here) {
                self.blocks.remove(&key);
                self.usage.blocks -= 1;
                if let Entry::Occupied(mut entry) = self.followers.entry(slot.parent) {
                    entry.get_mut().retain(|follower| *follower != key);
                    if entry.get().is_empty() {
                        entry.remove();
                    }
                }
            }
        }
        if let Some(slot) = to {
            let key = key_of(slot);
            self.usage.bytes += bytes;
            if let Entry::Vacant(entry) = self.blocks.entry(key) {
                entry.insert(here);
                self.usage.blocks += 1;
                self.followers.entry(slot.parent).or_default().push(key);
            }
        }
    }
}
