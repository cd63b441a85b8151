//! Blocks: 64 tokens of all layers of one kind and all KV heads, in one slab.

use longview_kernels::AlignedBytes;
use longview_kernels::attention::PageRef;

use crate::error::KvError;
use crate::layout::Group;
use crate::ledger::{Ledger, Purpose, Reservation};

/// One slab of keys and values; see [`Group::block_bytes`] for its layout.
pub(crate) struct Block {
    bytes: AlignedBytes,
    _held: Reservation,
}

impl Block {
    /// A block of zeros.
    pub(crate) fn new(group: &Group, ledger: &Ledger) -> Result<Block, KvError> {
        let len = group.block_bytes();
        let held = ledger.reserve(Purpose::Kv, len as u64)?;
        Ok(Block {
            bytes: AlignedBytes::zeroed(len),
            _held: held,
        })
    }

    /// A private copy.
    pub(crate) fn copy(&self, group: &Group, ledger: &Ledger) -> Result<Block, KvError> {
        let mut block = Block::new(group, ledger)?;
        block.bytes.copy_from_slice(&self.bytes);
        Ok(block)
    }

    /// The page of one KV head of the layer at place `layer` of the group.
    pub(crate) fn page(&self, group: &Group, layer: usize, head: usize) -> PageRef<'_> {
        let start = group.layer_offset(layer) + head * group.page_bytes();
        let (k, v) =
            self.bytes[start..start + group.page_bytes()].split_at(group.geometry.k_bytes());
        PageRef { k, v }
    }

    /// The pages of all KV heads of the layer at place `layer` of the group, one after another.
    pub(crate) fn layer_mut(&mut self, group: &Group, layer: usize) -> &mut [u8] {
        let start = group.layer_offset(layer);
        &mut self.bytes[start..start + group.page_bytes() * group.kind.kv_heads]
    }
}
