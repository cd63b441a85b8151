//! The file format of extents: up to 16 blocks of one layer group that follow each other, cut so
//! that one layer of all of them is one contiguous read.
//!
//! ```text
//! header    magic, version, group, shape, first index, hashes, origin, checksum
//! slots     one record a block: hashes, tokens, seconds, a checksum for each layer's slice,
//!           checksum of the record
//! payload   [layers][slots][layer_bytes], from a multiple of 4,096
//! ```
//!
//! Numbers are little-endian. Checksums are XXH3 of 128 bits: they find accidents (torn, lost or
//! reordered writes, decay of the medium) at memory speed. They do not stop someone who changes a
//! store on purpose; nothing could that lies beside the data.

use std::sync::Arc;

use twox_hash::XxHash3_128;

use super::{BlockInfo, BlockKey, BlockShape, Origin};
use crate::BLOCK_TOKENS;
use crate::hash::BlockHash;

/// Blocks in a span: extents never cross its edges.
pub(crate) const SPAN_BLOCKS: u32 = 16;
// What attention goes over at a time is then read in one piece.
const _: () = assert!(SPAN_BLOCKS as usize == crate::SPAN_BLOCKS);
const MAGIC: [u8; 8] = *b"LVEXTENT";
const VERSION: u32 = 1;
/// Fixed fields of a header, the two texts and the checksum come after.
const FIXED: usize = 144;
const SUM: usize = 16;
const PAYLOAD_ALIGN: u64 = 4096;
/// Bounds that no model comes near; beyond them a header is wrong, whatever its checksum says.
const MAX_TEXT: usize = 64 << 10;
const MAX_LAYERS: usize = 4096;
const MAX_LAYER_BYTES: usize = 1 << 30;

/// What an extent says of itself. `hash` and `group` name the file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Header {
    pub(crate) origin: Arc<Origin>,
    pub(crate) group: u16,
    pub(crate) shape: BlockShape,
    /// Index of the first block.
    pub(crate) first: u32,
    /// Slots, 1 to 16.
    pub(crate) capacity: u32,
    /// Hash of the first block.
    pub(crate) hash: BlockHash,
    /// Hash of everything before the first block.
    pub(crate) parent: BlockHash,
}

/// What an extent says of one block.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Slot {
    pub(crate) hash: BlockHash,
    pub(crate) parent: BlockHash,
    pub(crate) tokens: Arc<[u32]>,
    pub(crate) seconds: f32,
    /// Checksum of each layer's slice.
    pub(crate) sums: Box<[u128]>,
}

/// What stands in the place of a slot record.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum SlotState {
    Empty,
    Torn,
    Valid(Arc<Slot>),
}

/// Why bytes are not the header of an extent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("not a file of a Longview store; remove it or move it elsewhere")]
    Foreign,
    #[error(
        "written by a newer Longview (format {0}; this one reads {VERSION}); use that version, or another --cache-dir"
    )]
    Future(u32),
    #[error("cut short; `longview contexts fsck --repair` removes it")]
    Truncated,
    #[error("damaged ({0}); `longview contexts fsck --repair` removes it")]
    Damaged(&'static str),
}

impl Header {
    /// The header of an extent that begins with `info` and may grow to the end of its span.
    pub(crate) fn beginning_with(info: &BlockInfo) -> Header {
        Header {
            origin: Arc::clone(&info.origin),
            group: info.key.group,
            shape: info.shape,
            first: info.index,
            capacity: SPAN_BLOCKS - info.index % SPAN_BLOCKS,
            hash: info.key.hash,
            parent: info.parent,
        }
    }

    /// What the file is found by.
    pub(crate) fn key(&self) -> BlockKey {
        BlockKey {
            hash: self.hash,
            group: self.group,
        }
    }

    /// Everything up to the slot records.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (model, identity) = (&self.origin.model, &self.origin.identity);
        let mut out = Vec::with_capacity(self.table_offset() as usize);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend((self.encoded_len() as u32).to_le_bytes());
        out.extend(self.group.to_le_bytes());
        out.extend((self.capacity as u16).to_le_bytes());
        out.extend(self.first.to_le_bytes());
        out.extend((self.shape.layers as u32).to_le_bytes());
        out.extend((model.len() as u32).to_le_bytes());
        out.extend((identity.len() as u32).to_le_bytes());
        out.extend([0; 4]);
        out.extend((self.shape.layer_bytes as u64).to_le_bytes());
        out.extend(self.origin.seed.as_bytes());
        out.extend(self.parent.as_bytes());
        out.extend(self.hash.as_bytes());
        debug_assert_eq!(out.len(), FIXED);
        out.extend(model.as_bytes());
        out.extend(identity.as_bytes());
        out.extend(checksum(&out).to_le_bytes());
        out.resize(self.table_offset() as usize, 0);
        out
    }

    /// How long the header is that a file begins with; from its first 16 bytes.
    pub(crate) fn encoded_len_of(prefix: &[u8]) -> Result<usize, Unreadable> {
        let common = prefix.len().min(MAGIC.len());
        if prefix.is_empty() {
            return Err(Unreadable::Truncated);
        }
        if prefix[..common] != MAGIC[..common] {
            return Err(Unreadable::Foreign);
        }
        let mut fields = Fields(prefix);
        fields.skip(MAGIC.len());
        let version = fields.u32().ok_or(Unreadable::Truncated)?;
        if version != VERSION {
            return Err(Unreadable::Future(version));
        }
        let len = fields.u32().ok_or(Unreadable::Truncated)? as usize;
        if !(FIXED + SUM..=FIXED + SUM + 2 * MAX_TEXT).contains(&len) {
            return Err(Unreadable::Damaged("length of the header"));
        }
        Ok(len)
    }

    /// Reads the header that `bytes` begin with.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Header, Unreadable> {
        let len = Header::encoded_len_of(bytes)?;
        let bytes = bytes.get(..len).ok_or(Unreadable::Truncated)?;
        let (body, sum) = bytes.split_at(len - SUM);
        if sum != checksum(body).to_le_bytes() {
            return Err(Unreadable::Damaged("checksum of the header"));
        }
        Header::fields(body).ok_or(Unreadable::Damaged("fields of the header"))
    }

    fn fields(body: &[u8]) -> Option<Header> {
        let mut fields = Fields(body);
        fields.skip(16);
        let group = fields.u16()?;
        let capacity = u32::from(fields.u16()?);
        let first = fields.u32()?;
        let layers = fields.u32()? as usize;
        let model_len = fields.u32()? as usize;
        let identity_len = fields.u32()? as usize;
        fields.skip(4);
        let layer_bytes = usize::try_from(fields.u64()?).ok()?;
        let seed = fields.hash()?;
        let parent = fields.hash()?;
        let hash = fields.hash()?;
        let model = fields.text(model_len)?;
        let identity = fields.text(identity_len)?;
        let sane = fields.0.is_empty()
            && (1..=SPAN_BLOCKS).contains(&capacity)
            && first % SPAN_BLOCKS + capacity <= SPAN_BLOCKS
            && shape_is_sane(BlockShape {
                layers,
                layer_bytes,
            });
        sane.then(|| Header {
            origin: Arc::new(Origin {
                seed,
                model,
                identity,
            }),
            group,
            shape: BlockShape {
                layers,
                layer_bytes,
            },
            first,
            capacity,
            hash,
            parent,
        })
    }

    /// Where the slot records begin.
    pub(crate) fn table_offset(&self) -> u64 {
        (self.encoded_len() as u64).next_multiple_of(64)
    }

    /// Bytes of all slot records.
    pub(crate) fn table_bytes(&self) -> usize {
        self.capacity as usize * self.slot_bytes()
    }

    /// Where a slot record begins.
    pub(crate) fn slot_offset(&self, slot: u32) -> u64 {
        self.table_offset() + u64::from(slot) * self.slot_bytes() as u64
    }

    /// Where the slice of `layer` of the block in `slot` begins.
    pub(crate) fn slice_offset(&self, layer: usize, slot: u32) -> u64 {
        let slices = layer as u64 * u64::from(self.capacity) + u64::from(slot);
        self.payload_offset() + slices * self.shape.layer_bytes as u64
    }

    /// Bytes of everything that is not payload.
    pub(crate) fn payload_offset(&self) -> u64 {
        (self.table_offset() + self.table_bytes() as u64).next_multiple_of(PAYLOAD_ALIGN)
    }

    /// Bytes of one block's payload.
    pub(crate) fn block_bytes(&self) -> u64 {
        block_bytes(self.shape)
    }

    /// What the tier says of the block in a slot.
    pub(crate) fn info(&self, position: u32, slot: &Slot) -> BlockInfo {
        BlockInfo {
            key: BlockKey {
                hash: slot.hash,
                group: self.group,
            },
            parent: slot.parent,
            index: self.first + position,
            tokens: Arc::clone(&slot.tokens),
            shape: self.shape,
            seconds: slot.seconds,
            origin: Arc::clone(&self.origin),
        }
    }

    /// Bytes of one slot record.
    pub(crate) fn slot_bytes(&self) -> usize {
        32 + 32 + 4 + 4 + 4 * BLOCK_TOKENS + SUM * self.shape.layers + SUM
    }

    fn encoded_len(&self) -> usize {
        FIXED + self.origin.model.len() + self.origin.identity.len() + SUM
    }
}

impl Slot {
    /// The record of a block with the payload `bytes`, `[layers][layer_bytes]`.
    pub(crate) fn of(info: &BlockInfo, bytes: &[u8]) -> Slot {
        let slices = bytes.chunks_exact(info.shape.layer_bytes);
        Slot {
            hash: info.key.hash,
            parent: info.parent,
            tokens: Arc::clone(&info.tokens),
            seconds: info.seconds,
            sums: slices.map(checksum).collect(),
        }
    }

    /// The record as it stands in the file, in the place of slot `position`.
    pub(crate) fn encode(&self, header: &Header, position: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(header.slot_bytes());
        out.extend(self.hash.as_bytes());
        out.extend(self.parent.as_bytes());
        out.extend((self.tokens.len() as u32).to_le_bytes());
        out.extend(self.seconds.to_le_bytes());
        for at in 0..BLOCK_TOKENS {
            let token = self.tokens.get(at).copied().unwrap_or(0);
            out.extend(token.to_le_bytes());
        }
        for sum in &self.sums {
            out.extend(sum.to_le_bytes());
        }
        out.extend(record_checksum(header, position, &out).to_le_bytes());
        debug_assert_eq!(out.len(), header.slot_bytes());
        out
    }

    /// Reads all records of a table; what is cut off counts as empty.
    pub(crate) fn decode_table(header: &Header, table: &[u8]) -> Vec<SlotState> {
        let mut records = table.chunks_exact(header.slot_bytes());
        (0..header.capacity)
            .map(|position| match records.next() {
                Some(record) => Slot::decode(header, position, record),
                None => SlotState::Empty,
            })
            .collect()
    }

    fn decode(header: &Header, position: u32, record: &[u8]) -> SlotState {
        if record.iter().all(|&byte| byte == 0) {
            return SlotState::Empty;
        }
        let (body, sum) = record.split_at(record.len() - SUM);
        if sum != record_checksum(header, position, body).to_le_bytes() {
            return SlotState::Torn;
        }
        Slot::fields(header, body).map_or(SlotState::Torn, |slot| SlotState::Valid(Arc::new(slot)))
    }

    fn fields(header: &Header, body: &[u8]) -> Option<Slot> {
        let mut fields = Fields(body);
        let hash = fields.hash()?;
        let parent = fields.hash()?;
        let count = fields.u32()? as usize;
        let seconds = f32::from_bits(fields.u32()?);
        let mut tokens = Vec::with_capacity(BLOCK_TOKENS);
        for _ in 0..BLOCK_TOKENS {
            tokens.push(fields.u32()?);
        }
        let mut sums = Vec::with_capacity(header.shape.layers);
        for _ in 0..header.shape.layers {
            sums.push(u128::from_le_bytes(fields.take()?));
        }
        if count > BLOCK_TOKENS {
            return None;
        }
        tokens.truncate(count);
        Some(Slot {
            hash,
            parent,
            tokens: tokens.into(),
            seconds,
            sums: sums.into(),
        })
    }
}

/// The checksum of a slice, a header or a record.
pub(crate) fn checksum(bytes: &[u8]) -> u128 {
    XxHash3_128::oneshot(bytes)
}

/// What about a block does not fit the format; `None` when all does.
pub(crate) fn unfit(info: &BlockInfo, bytes: usize) -> Option<&'static str> {
    let too_long = |text: &str| text.len() > MAX_TEXT;
    if !shape_is_sane(info.shape) {
        Some("its shape is empty or beyond all models")
    } else if bytes as u64 != block_bytes(info.shape) {
        Some("its length is not what its shape says")
    } else if info.tokens.len() > BLOCK_TOKENS {
        Some("it has more than 64 tokens")
    } else if too_long(&info.origin.model) || too_long(&info.origin.identity) {
        Some("the text of its origin is longer than 64 KiB")
    } else {
        None
    }
}

/// Bytes of a block.
pub(crate) fn block_bytes(shape: BlockShape) -> u64 {
    shape.layers as u64 * shape.layer_bytes as u64
}

fn shape_is_sane(shape: BlockShape) -> bool {
    (1..=MAX_LAYERS).contains(&shape.layers) && (1..=MAX_LAYER_BYTES).contains(&shape.layer_bytes)
}

/// Also depends on the extent and the place, so that a record that belongs elsewhere is not taken.
fn record_checksum(header: &Header, position: u32, body: &[u8]) -> u128 {
    let [a, b, c, d, ..] = *header.hash.as_bytes();
    let seed = (u64::from(u32::from_le_bytes([a, b, c, d])) << 32) | (u64::from(position) + 1);
    XxHash3_128::oneshot_with_seed(seed, body)
}

/// Reads fields off the front of a slice.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn skip(&mut self, bytes: usize) {
        self.0 = self.0.get(bytes..).unwrap_or_default();
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn hash(&mut self) -> Option<BlockHash> {
        self.take().map(BlockHash::from_bytes)
    }

    fn text(&mut self, len: usize) -> Option<String> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        String::from_utf8(head.to_vec()).ok()
    }
}
