//! Blocks for tests.

use std::sync::Arc;

use super::{BlockInfo, BlockKey, BlockShape, Origin};
use crate::block::Block;
use crate::hash::BlockHash;
use crate::ledger::Ledger;
use crate::{BLOCK_TOKENS, tier::Tier};

/// A small shape whose slices are not multiples of a disk's sectors.
pub(crate) const SHAPE: BlockShape = BlockShape {
    layers: 3,
    layer_bytes: 1000,
};

/// Makes blocks that follow each other.
#[derive(Clone)]
pub(crate) struct Chain {
    pub(crate) origin: Arc<Origin>,
    pub(crate) group: u16,
    pub(crate) shape: BlockShape,
    pub(crate) head: BlockHash,
    pub(crate) next: u32,
}

impl Chain {
    pub(crate) fn new(model: &str) -> Chain {
        let seed = BlockHash::seed(&[("model", model.as_bytes())]);
        Chain {
            origin: Arc::new(Origin {
                seed,
                model: model.to_owned(),
                identity: "f16 keys and values".to_owned(),
            }),
            group: 0,
            shape: SHAPE,
            head: seed,
            next: 0,
        }
    }

    pub(crate) fn group(mut self, group: u16, shape: BlockShape) -> Chain {
        self.group = group;
        self.shape = shape;
        self
    }

    /// The next block, whose tokens are all `token`.
    pub(crate) fn block(&mut self, token: u32) -> BlockInfo {
        let tokens = [token; BLOCK_TOKENS];
        let parent = self.head;
        self.head = parent.then(&tokens);
        self.next += 1;
        BlockInfo {
            key: BlockKey {
                hash: self.head,
                group: self.group,
            },
            parent,
            index: self.next - 1,
            tokens: tokens.into(),
            shape: self.shape,
            seconds: 0.25,
            origin: Arc::clone(&self.origin),
        }
    }

    /// The next `count` blocks.
    pub(crate) fn blocks(&mut self, count: usize, token: u32) -> Vec<BlockInfo> {
        (0..count).map(|_| self.block(token)).collect()
    }
}

/// What a block holds: depends on its key only.
pub(crate) fn payload(info: &BlockInfo) -> Vec<u8> {
    let [a, b, c, d, e, f, g, h, ..] = *info.key.hash.as_bytes();
    let seed = u64::from_le_bytes([a, b, c, d, e, f, g, h]) ^ u64::from(info.key.group);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; info.shape.layers * info.shape.layer_bytes];
    random.fill(&mut bytes);
    bytes
}

pub(crate) fn block(info: &BlockInfo) -> Arc<Block> {
    let bytes = payload(info);
    let mut block = Block::zeroed(bytes.len(), &Ledger::unlimited()).unwrap();
    block.bytes_mut().copy_from_slice(&bytes);
    Arc::new(block)
}

pub(crate) fn keys(infos: &[BlockInfo]) -> Vec<BlockKey> {
    infos.iter().map(|info| info.key).collect()
}

pub(crate) fn put(tier: &dyn Tier, infos: &[BlockInfo]) {
    for info in infos {
        tier.put(info, &block(info)).unwrap();
    }
}

/// Finds and reads all of `infos`, which have one shape, and compares every byte.
pub(crate) fn assert_held(tier: &dyn Tier, infos: &[BlockInfo]) {
    for info in infos {
        assert_eq!(tier.find(&info.key).as_ref(), Some(info));
    }
    let Some(first) = infos.first() else {
        return;
    };
    let bytes = first.shape.layer_bytes;
    let payloads: Vec<_> = infos.iter().map(payload).collect();
    for layer in 0..first.shape.layers {
        let mut out = vec![0; infos.len() * bytes];
        tier.read(&keys(infos), layer, &mut out).unwrap();
        for (got, payload) in out.chunks(bytes).zip(&payloads) {
            assert!(
                got == &payload[layer * bytes..(layer + 1) * bytes],
                "layer {layer}"
            );
        }
    }
}

pub(crate) fn assert_gone(tier: &dyn Tier, infos: &[BlockInfo]) {
    for info in infos {
        assert_eq!(tier.find(&info.key), None);
        let mut out = vec![0; info.shape.layer_bytes];
        let outcome = tier.read(&[info.key], 0, &mut out);
        assert!(matches!(outcome, Err(super::TierError::Missing(key)) if key == info.key));
    }
}

/// What is held, in a fixed order.
pub(crate) fn contents(tier: &dyn Tier) -> Vec<BlockInfo> {
    let mut all = Vec::new();
    tier.for_each(&mut |info| all.push(info.clone()));
    all.sort_by_key(|info| info.key);
    all
}
