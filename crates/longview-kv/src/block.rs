//! Blocks: 64 tokens of all layers of one kind and all KV heads, in one slab.

use longview_kernels::AlignedBytes;
use longview_kernels::attention::PageRef;

use crate::error::KvError;
use crate::layout::Group;
use crate::ledger::{Ledger, Purpose, Reservation};

/// One slab of keys and values: 64 tokens of all layers of one group, layer-major, the pages of all
/// KV heads of a layer one after another; or the recurrent state of those layers.
pub struct Block {
    bytes: AlignedBytes,
    held: Reservation,
}

impl Block {
    /// A block of `len` zeros.
    ///
    /// # Errors
    /// [`KvError::OverLimit`] when the ledger has no room for it.
    pub fn zeroed(len: usize, ledger: &Ledger) -> Result<Block, KvError> {
        let held = ledger.reserve(Purpose::Kv, len as u64)?;
        Ok(Block {
            bytes: AlignedBytes::zeroed(len),
            held,
        })
    }

    /// The same for a block of tokens, of which a context has many of one length: together in huge pages
    /// where they are small.
    ///
    /// # Errors
    /// As [`Block::zeroed`].
    pub(crate) fn one_of_many(len: usize, ledger: &Ledger) -> Result<Block, KvError> {
        let held = ledger.reserve(Purpose::Kv, len as u64)?;
        Ok(Block {
            bytes: AlignedBytes::one_of_many(len),
            held,
        })
    }

    /// A block of `len` bytes in memory that is reserved already: `spare` if it is as long, whatever it
    /// holds, otherwise zeros.
    pub(crate) fn in_room(len: usize, room: Reservation, spare: Option<AlignedBytes>) -> Block {
        debug_assert_eq!(room.bytes(), len as u64, "the room of the block");
        // What is of no use goes before more is taken.
        let spare = spare.filter(|spare| spare.len() == len);
        Block {
            bytes: spare.unwrap_or_else(|| AlignedBytes::zeroed(len)),
            held: room,
        }
    }

    /// Its room, and the memory that was in it.
    pub(crate) fn into_room(self) -> (Reservation, AlignedBytes) {
        (self.held, self.bytes)
    }

    /// The slab: the slices of all layers, first layer first.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// The pages of all KV heads of the layer at place `layer` of the group, one after another.
    pub(crate) fn layer(&self, group: &Group, layer: usize) -> &[u8] {
        let start = group.layer_offset(layer);
        &self.bytes[start..start + group.layer_bytes()]
    }

    /// The same, to be written.
    pub(crate) fn layer_mut(&mut self, group: &Group, layer: usize) -> &mut [u8] {
        let start = group.layer_offset(layer);
        &mut self.bytes[start..start + group.layer_bytes()]
    }
}

impl Group {
    /// The page of one KV head in a layer's slice of a block.
    pub(crate) fn page<'a>(&self, slice: &'a [u8], head: usize) -> PageRef<'a> {
        let start = head * self.page_bytes();
        let (k, v) = slice[start..start + self.page_bytes()].split_at(self.geometry.k_bytes());
        PageRef::new(k, v)
    }
}
