//! Bundles: a saved context with all its blocks in one file, to be taken elsewhere.
//!
//! A bundle is an uncompressed tar archive: `longview-bundle` (the format's version), `context`
//! (the record), and `blocks/HASH-GROUP.kv`, one for each block, in the format of extents.
//!
//! Everything is checked before any of it enters a store: names, sizes, checksums, that no block
//! is missing and none is foreign, and that each is called what the context's tokens make its name:
//! a bundle brings nothing that another salt, model or text would find. What cannot be checked is that
//! a block's numbers are those its model computes; a store believes whoever made the bundle, so take
//! bundles from people you trust. Blocks that moved text is part of are found by nobody, and stay out.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read, Seek, Write};
use std::sync::Arc;

use crate::BLOCK_TOKENS;
use crate::block::Block;
use crate::error::KvError;
use crate::hash::BlockHash;
use crate::ledger::Ledger;
use crate::records::{MOST_RECORD_BYTES, Record, Records, decode_record, encode_record, new_id};
use crate::tier::extent::{Header, Slot, SlotState, checksum};
use crate::tier::{BlockInfo, BlockKey, Origin, Tier, TierError};

const MARKER: &str = "longview-bundle";
const CONTEXT: &str = "context";
const VERSION: &str = "1";

/// Why a bundle was not made or not taken in. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// Reading or writing the file failed.
    #[error("the bundle cannot be read or written: {0}")]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("not a Longview bundle: {0}")]
    NotABundle(String),
    /// It is of another version.
    #[error("a bundle of format {0}; this Longview reads format {VERSION}")]
    Version(String),
    /// It is damaged, incomplete, or was tampered with.
    #[error("the bundle is damaged: {0}; export it again")]
    Damaged(String),
    /// The store does not go along.
    #[error(transparent)]
    Tier(#[from] TierError),
    /// There is no memory to read a block into.
    #[error(transparent)]
    Memory(#[from] KvError),
}

/// What an import did.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    /// The record as it is in the store now.
    pub record: Record,
    /// Blocks that were not held before.
    pub new_blocks: u64,
    /// The label it came with, when another context has it: it was dropped.
    pub label_taken: Option<String>,
}

/// Writes a context and its blocks, which are taken from the first of `tiers` that holds them. What is
/// not called by its tokens alone, because text was moved, is left out: nobody would find it.
///
/// # Errors
/// [`TierError::Missing`] or [`TierError::Damaged`] when a block cannot be had any more.
pub fn export(
    record: &Record,
    tiers: &[Arc<dyn Tier>],
    out: impl Write,
) -> Result<(), BundleError> {
    let mut archive = tar::Builder::new(out);
    let mut add = |name: &str, bytes: &[u8]| {
        let mut entry = tar::Header::new_gnu();
        entry.set_size(bytes.len() as u64);
        entry.set_mode(0o600);
        archive.append_data(&mut entry, name, bytes)
    };
    let first = record.keys.first();
    let (_, first) = first.map(|key| held(key, tiers)).transpose()?.unzip();
    let names = names(first.as_ref().map(|info| &*info.origin), &record.tokens);
    let mut record = record.clone();
    let mut seen = HashSet::new();
    record
        .keys
        .retain(|key| names.contains_key(&key.hash) && seen.insert(*key));
    add(MARKER, VERSION.as_bytes())?;
    add(CONTEXT, &encode_record(&record))?;
    for key in &record.keys {
        add(&name_of(key), &block_file(key, tiers)?)?;
    }
    archive.into_inner()?.flush()?;
    Ok(())
}

/// Takes a context into a store: its blocks into `tier`, its record into `records`. Where `only` has
/// any, nothing but a context of one of these origins.
///
/// Memory for one block at a time is reserved in `ledger`.
///
/// # Errors
/// When anything about the bundle is not right, or the store cannot take it.
pub fn import(
    mut bundle: impl Read + Seek,
    tier: &dyn Tier,
    records: &Records,
    ledger: &Ledger,
    only: &[Arc<Origin>],
) -> Result<Imported, BundleError> {
    let start = bundle.stream_position()?;
    let limits = Limits {
        bytes: bundle.seek(io::SeekFrom::End(0))?.saturating_sub(start),
        ledger,
    };
    bundle.seek(io::SeekFrom::Start(start))?;
    let mut record = check(&mut bundle, &limits)?;
    record.summary.check_origins(only)?;
    records.check_salt(&record)?;
    bundle.seek(io::SeekFrom::Start(start))?;
    let mut new_blocks = 0;
    each_block(&mut bundle, &limits, &mut |info, block| {
        if tier.find(&info.key).is_none() {
            tier.put(info, &Arc::new(block))?;
            new_blocks += 1;
        }
        Ok(())
    })?;
    tier.sync()?;
    let same = |there: &Record| there.keys == record.keys && there.tokens == record.tokens;
    match records.load(&record.summary.id) {
        Ok(there) if same(&there) => {
            return Ok(Imported {
                record: there,
                new_blocks,
                label_taken: None,
            });
        }
        Err(TierError::NoContext { .. }) if !records.exists(&record.summary.id) => {}
        // Another context, or one that may not be seen: neither is overwritten.
        _ => record.summary.id = new_id(),
    }
    let mut label_taken = None;
    match records.save(&record) {
        Err(TierError::LabelTaken { label, .. }) => {
            record.summary.label = None;
            label_taken = Some(label);
            records.save(&record)?;
        }
        other => other?,
    }
    let record = records.load(&record.summary.id)?;
    Ok(Imported {
        record,
        new_blocks,
        label_taken,
    })
}

/// What a bundle may make this program do.
struct Limits<'a> {
    /// Length of the whole: no block is longer.
    bytes: u64,
    /// Accounts for the memory of one block at a time.
    ledger: &'a Ledger,
}

/// Reads everything, and compares it with what the record says.
fn check(bundle: &mut impl Read, limits: &Limits<'_>) -> Result<Record, BundleError> {
    let mut infos = HashMap::new();
    let record = each_block(bundle, limits, &mut |info, _| match infos
        .insert(info.key, info.clone())
    {
        None => Ok(()),
        Some(_) => Err(damaged(format!("{} is there twice", name_of(&info.key)))),
    })?;
    let origin = infos.values().next().map(|info| Arc::clone(&info.origin));
    let names = names(origin.as_deref(), &record.tokens);
    for (key, info) in &infos {
        let of_context = record.summary.check_origin(&info.origin).is_ok();
        if !of_context || names.get(&key.hash) != Some(&Named::of(info)) {
            return Err(damaged(format!(
                "{} is not called what the context's text says",
                name_of(key)
            )));
        }
    }
    let blocks: HashSet<_> = infos.keys().copied().collect();
    let wanted: HashSet<_> = record.keys.iter().copied().collect();
    if let Some(missing) = wanted.difference(&blocks).next() {
        return Err(damaged(format!("{} is missing", name_of(missing))));
    }
    if let Some(foreign) = blocks.difference(&wanted).next() {
        return Err(damaged(format!(
            "{} is not of the context",
            name_of(foreign)
        )));
    }
    Ok(record)
}

/// What a block's name stands for.
#[derive(PartialEq)]
struct Named {
    parent: BlockHash,
    index: u32,
    tokens: Arc<[u32]>,
}

impl Named {
    fn of(info: &BlockInfo) -> Named {
        Named {
            parent: info.parent,
            index: info.index,
            tokens: Arc::clone(&info.tokens),
        }
    }
}

/// What the blocks of a context that has read `tokens` under `origin` are called.
fn names(origin: Option<&Origin>, tokens: &[u32]) -> HashMap<BlockHash, Named> {
    let Some(origin) = origin else {
        return HashMap::new();
    };
    let mut parent = origin.seed;
    let blocks = tokens.chunks_exact(BLOCK_TOKENS).zip(0..);
    let name = |(tokens, index): (&[u32], u32)| {
        let hash = parent.then(tokens);
        let parent = std::mem::replace(&mut parent, hash);
        let named = Named {
            parent,
            index,
            tokens: tokens.into(),
        };
        (hash, named)
    };
    blocks.map(name).collect()
}

/// Reads a bundle from its beginning to its end and calls `visit` with every block.
fn each_block(
    bundle: &mut impl Read,
    limits: &Limits<'_>,
    visit: &mut dyn FnMut(&BlockInfo, Block) -> Result<(), BundleError>,
) -> Result<Record, BundleError> {
    let mut archive = tar::Archive::new(bundle);
    let mut entries = archive.entries()?;
    let mut next = |wanted: &str| match entries.next() {
        None => Err(BundleError::NotABundle(format!("it has no {wanted}"))),
        Some(entry) => named(entry).and_then(|(name, entry)| {
            if name == wanted {
                Ok(entry)
            } else {
                Err(BundleError::NotABundle(format!(
                    "{name} stands where {wanted} belongs"
                )))
            }
        }),
    };
    let version = next(MARKER)?;
    let mut text = String::new();
    version.take(64).read_to_string(&mut text)?;
    if text != VERSION {
        return Err(BundleError::Version(text));
    }
    let mut context = next(CONTEXT)?;
    if context.size() > MOST_RECORD_BYTES {
        return Err(damaged("the record is longer than any can be".to_owned()));
    }
    let mut bytes = Vec::new();
    context.read_to_end(&mut bytes)?;
    let record = decode_record(&bytes).map_err(|error| damaged(error.to_string()))?;
    for entry in entries {
        let (name, mut entry) = named(entry)?;
        let (info, block) = read_block(&name, &mut entry, limits)?;
        visit(&info, block)?;
    }
    Ok(record)
}

/// A plain file of the archive with its name.
fn named<R: Read>(
    entry: io::Result<tar::Entry<'_, R>>,
) -> Result<(String, tar::Entry<'_, R>), BundleError> {
    let entry = entry.map_err(|_| {
        // What the archive's reader says quotes the bytes it stumbled over.
        BundleError::NotABundle("it is no tar archive, or its end is missing".to_owned())
    })?;
    let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
    if entry.header().entry_type() != tar::EntryType::Regular {
        return Err(damaged(format!("{name:?} is not a plain file")));
    }
    Ok((name, entry))
}

/// Reads and checks the file of one block.
fn read_block<R: Read>(
    name: &str,
    entry: &mut tar::Entry<'_, R>,
    limits: &Limits<'_>,
) -> Result<(BlockInfo, Block), BundleError> {
    let wrong = |what: &str| damaged(format!("{name:?}: {what}"));
    let read = |entry: &mut tar::Entry<'_, R>, into: &mut Vec<u8>, len: u64| {
        let missing = len.saturating_sub(into.len() as u64);
        let got = entry.take(missing).read_to_end(into)?;
        if got as u64 == missing {
            Ok(())
        } else {
            Err(damaged(format!("{name:?}: cut short")))
        }
    };
    let mut bytes = Vec::new();
    read(entry, &mut bytes, 16)?;
    let len = Header::encoded_len_of(&bytes).map_err(|error| wrong(&error.to_string()))?;
    read(entry, &mut bytes, len as u64)?;
    let header = Header::decode(&bytes).map_err(|error| wrong(&error.to_string()))?;
    if header.capacity != 1 || name != name_of(&header.key()) {
        return Err(wrong("its name is not that of its contents"));
    }
    let file_bytes = header.payload_offset() + header.block_bytes();
    // What an entry says of its length is no more than a claim.
    if entry.size() != file_bytes || file_bytes > limits.bytes {
        return Err(wrong("its length is not what its header says"));
    }
    read(entry, &mut bytes, header.payload_offset())?;
    let table = &bytes[header.table_offset() as usize..][..header.table_bytes()];
    let table = Slot::decode_table(&header, table);
    let [SlotState::Valid(slot)] = &table[..] else {
        return Err(wrong("its record is damaged"));
    };
    if slot.hash != header.hash || slot.parent != header.parent {
        return Err(wrong("its record is of another block"));
    }
    let mut block = Block::zeroed(header.block_bytes() as usize, limits.ledger)?;
    entry
        .read_exact(block.bytes_mut())
        .map_err(|error| wrong(&error.to_string()))?;
    let slices = block.bytes().chunks_exact(header.shape.layer_bytes);
    if slices
        .zip(&slot.sums)
        .any(|(slice, sum)| checksum(slice) != *sum)
    {
        return Err(wrong("its payload is damaged"));
    }
    Ok((header.info(0, slot), block))
}

/// A block as the file of an extent that holds nothing else.
fn block_file(key: &BlockKey, tiers: &[Arc<dyn Tier>]) -> Result<Vec<u8>, BundleError> {
    let (tier, info) = held(key, tiers)?;
    let layer_bytes = info.shape.layer_bytes;
    let mut payload = vec![0; info.shape.layers * layer_bytes];
    for (layer, slice) in payload.chunks_exact_mut(layer_bytes).enumerate() {
        tier.read(&[*key], layer, slice)?;
    }
    let header = Header {
        capacity: 1,
        ..Header::beginning_with(&info)
    };
    let mut bytes = header.encode();
    bytes.extend(Slot::of(&info, &payload).encode(&header, 0));
    bytes.resize(header.payload_offset() as usize, 0);
    bytes.extend(payload);
    Ok(bytes)
}

/// The first of `tiers` that holds a block.
fn held<'a>(
    key: &BlockKey,
    tiers: &'a [Arc<dyn Tier>],
) -> Result<(&'a Arc<dyn Tier>, BlockInfo), TierError> {
    let found = tiers.iter().find_map(|tier| Some((tier, tier.find(key)?)));
    found.ok_or(TierError::Missing(*key))
}

fn name_of(key: &BlockKey) -> String {
    format!("blocks/{}-{}.kv", key.hash, key.group)
}

fn damaged(what: String) -> BundleError {
    BundleError::Damaged(what)
}

#[cfg(test)]
mod tests;
