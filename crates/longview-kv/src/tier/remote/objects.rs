//! What is known of the objects of a store, and what waits to become one.

use std::collections::HashMap;
use std::sync::Arc;

use crate::block::Block;
use crate::tier::extent::{Header, SPAN_BLOCKS, Slot, block_bytes};
use crate::tier::{BlockInfo, BlockKey};

/// An object: a run of blocks, all slots of which were written.
pub(super) struct Object {
    pub(super) name: String,
    pub(super) header: Header,
    /// One a slot; `None` for records that cannot be read.
    pub(super) slots: Vec<Option<Arc<Slot>>>,
}

/// All objects, and where each block is.
#[derive(Default)]
pub(super) struct Objects {
    by_name: HashMap<String, Arc<Object>>,
    /// Objects that hold a block, with its slot: several machines may have put it.
    places: HashMap<BlockKey, Vec<(Arc<Object>, u32)>>,
}

/// Blocks in memory that are to be put.
#[derive(Default)]
pub(super) struct Waiting {
    blocks: HashMap<BlockKey, (BlockInfo, Arc<Block>)>,
    bytes: u64,
}

impl Object {
    /// The blocks in it.
    pub(super) fn infos(&self) -> impl Iterator<Item = BlockInfo> {
        let slots = (0..).zip(&self.slots);
        slots.filter_map(|(at, slot)| Some(self.header.info(at, slot.as_ref()?)))
    }

    pub(super) fn bytes(&self) -> u64 {
        let payload = u64::from(self.header.capacity) * self.header.block_bytes();
        self.header.payload_offset() + payload
    }
}

impl Objects {
    pub(super) fn knows(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    pub(super) fn add(&mut self, object: Object) {
        self.forget(&object.name);
        let object = Arc::new(object);
        for info in object.infos() {
            let at = info.index - object.header.first;
            let places = self.places.entry(info.key).or_default();
            places.push((Arc::clone(&object), at));
        }
        self.by_name.insert(object.name.clone(), object);
    }

    pub(super) fn forget(&mut self, name: &str) {
        if let Some(object) = self.by_name.remove(name) {
            for info in object.infos() {
                self.drop_place(name, &info.key);
            }
        }
    }

    /// An object that holds a block, and the slot it has there.
    pub(super) fn place(&self, key: &BlockKey) -> Option<(Arc<Object>, u32)> {
        self.places.get(key)?.first().cloned()
    }

    pub(super) fn info(&self, key: &BlockKey) -> Option<BlockInfo> {
        let (object, at) = self.place(key)?;
        let slot = object.slots.get(at as usize)?.as_ref()?;
        Some(object.header.info(at, slot))
    }

    /// All blocks held.
    pub(super) fn keys(&self) -> impl Iterator<Item = &BlockKey> {
        self.places.keys()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.by_name.values().map(|object| object.bytes()).sum()
    }

    /// Takes back that an object holds a block.
    pub(super) fn drop_place(&mut self, name: &str, key: &BlockKey) {
        if let Some(places) = self.places.get_mut(key) {
            places.retain(|(object, _)| object.name != name);
            if places.is_empty() {
                self.places.remove(key);
            }
        }
    }
}

impl Waiting {
    pub(super) fn add(&mut self, info: &BlockInfo, block: &Arc<Block>) {
        let waiting = (info.clone(), Arc::clone(block));
        if self.blocks.insert(info.key, waiting).is_none() {
            self.bytes += block_bytes(info.shape);
        }
    }

    pub(super) fn remove(&mut self, key: &BlockKey) {
        if let Some((info, _)) = self.blocks.remove(key) {
            self.bytes -= block_bytes(info.shape);
        }
    }

    pub(super) fn get(&self, key: &BlockKey) -> Option<&(BlockInfo, Arc<Block>)> {
        self.blocks.get(key)
    }

    pub(super) fn infos(&self) -> impl Iterator<Item = &BlockInfo> {
        self.blocks.values().map(|(info, _)| info)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Blocks that follow each other inside a span, as long as they can be, for every block that
    /// `ready` names as one that no other of them follows.
    pub(super) fn runs(
        &self,
        ready: impl Fn(&BlockInfo) -> bool,
    ) -> Vec<Vec<(BlockInfo, Arc<Block>)>> {
        let mut left: HashMap<_, _> = self.blocks.iter().map(|(key, both)| (*key, both)).collect();
        // The deepest first: what leads to them goes with them.
        let mut ends: Vec<_> = self.infos().filter(|info| ready(info)).collect();
        ends.sort_by_key(|info| (std::cmp::Reverse(info.index), info.key));
        let mut runs = Vec::new();
        for end in ends {
            let mut run = Vec::new();
            let mut next = end.key;
            while let Some(both) = left.get(&next) {
                let (info, _) = both;
                let same = run.last().is_none_or(|(later, _): &(BlockInfo, _)| {
                    later.shape == info.shape
                        && later.origin == info.origin
                        && later.index == info.index + 1
                });
                if !same {
                    break;
                }
                run.push((*both).clone());
                let before = BlockKey {
                    hash: info.parent,
                    group: info.key.group,
                };
                let edge = info.index % SPAN_BLOCKS == 0;
                left.remove(&next);
                if edge {
                    break;
                }
                next = before;
            }
            if !run.is_empty() {
                run.reverse();
                runs.push(run);
            }
        }
        runs
    }
}

/// A run, which is not empty, as an object.
pub(super) fn run_bytes(run: &[(BlockInfo, Arc<Block>)]) -> (Header, Vec<u8>) {
    let header = Header {
        capacity: run.len() as u32,
        ..Header::beginning_with(&run[0].0)
    };
    let mut bytes = header.encode();
    for (at, (info, block)) in (0..).zip(run) {
        bytes.extend(Slot::of(info, block.bytes()).encode(&header, at));
    }
    bytes.resize(header.payload_offset() as usize, 0);
    let layer_bytes = header.shape.layer_bytes;
    for layer in 0..header.shape.layers {
        for (_, block) in run {
            bytes.extend(&block.bytes()[layer * layer_bytes..(layer + 1) * layer_bytes]);
        }
    }
    (header, bytes)
}
