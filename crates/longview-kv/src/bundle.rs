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

/// Takes a context into a store: its blocks into `tier`, its record into `records`. With `only`,
/// nothing but a context of this origin.
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
    only: Option<&Origin>,
) -> Result<Imported, BundleError> {
    let start = bundle.stream_position()?;
    let limits = Limits {
        bytes: bundle.seek(io::SeekFrom::End(0))?.saturating_sub(start),
        ledger,
    };
    bundle.seek(io::SeekFrom::Start(start))?;
    let mut record = check(&mut bundle, &limits)?;
    if let Some(origin) = only {
        record.summary.check_origin(origin)?;
    }
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
    let entry = entry.map_err(|error| BundleError::NotABundle(error.to_string()))?;
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
mod tests {
    use std::io::Cursor;
    use std::path::Path;

    use super::*;
    use crate::tier::simulated::SimulatedFiles;
    use crate::tier::testing::{Chain, assert_held, contents, keys, put};
    use crate::tier::{BlockShape, DiskOptions, DiskTier, StoreFolder, Syncing};

    struct Machine {
        tier: Arc<dyn Tier>,
        folder: StoreFolder,
    }

    fn machine() -> Machine {
        let files = Arc::new(SimulatedFiles::default());
        let folder = StoreFolder::open_in(Path::new("/store"), files).unwrap();
        let options = DiskOptions {
            sync: Syncing::WhenAsked,
            ..DiskOptions::default()
        };
        Machine {
            tier: Arc::new(DiskTier::open(&folder, options).unwrap()),
            folder,
        }
    }

    impl Machine {
        fn records(&self) -> Records {
            Records::open(&self.folder, b"")
        }

        fn import(&self, bundle: &[u8], only: Option<&Origin>) -> Result<Imported, BundleError> {
            let bundle = Cursor::new(bundle);
            import(
                bundle,
                &*self.tier,
                &self.records(),
                &Ledger::unlimited(),
                only,
            )
        }
    }

    /// A context of two groups, and the bundle of it.
    fn exported() -> (Vec<BlockInfo>, Record, Vec<u8>) {
        let here = machine();
        let mut infos = Chain::new("m").blocks(19, 1);
        let window = Chain::new("m").group(1, infos[0].shape).blocks(19, 1);
        infos.extend_from_slice(&window[16..]);
        put(&*here.tier, &infos);
        put(&*here.tier, &Chain::new("other").blocks(3, 1));
        let mut record = Record::new(&infos[0].origin, vec![1; 19 * 64 + 5], keys(&infos));
        record.summary.label = Some("holmes".to_owned());
        record.pieces = vec![1, 2, 3];
        here.records().save(&record).unwrap();
        let mut bundle = Vec::new();
        export(&record, &[Arc::clone(&here.tier)], &mut bundle).unwrap();
        (infos, record, bundle)
    }

    #[test]
    fn a_context_goes_to_another_machine() {
        let (infos, record, bundle) = exported();
        let there = machine();
        let imported = there.import(&bundle, None).unwrap();
        assert_eq!(imported.new_blocks, 22);
        assert_eq!(imported.record, record);
        assert_held(&*there.tier, &infos);
        assert_eq!(contents(&*there.tier).len(), 22);
        assert_eq!(there.records().find("holmes").unwrap(), record);
        // Again: nothing is new, and there is still one of it.
        let again = there.import(&bundle, Some(&infos[0].origin)).unwrap();
        assert_eq!((again.new_blocks, &again.record), (0, &record));
        assert_eq!(there.records().list().unwrap().len(), 1);
    }

    #[test]
    fn what_moved_text_is_part_of_stays_behind() {
        let here = machine();
        let mut chain = Chain::new("m");
        let plain = chain.blocks(2, 1);
        chain.head = chain.head.derived("without tokens 130..190");
        let moved = chain.blocks(2, 1);
        put(&*here.tier, &[plain.clone(), moved.clone()].concat());
        let all = keys(&[plain.clone(), moved].concat());
        let record = Record::new(&plain[0].origin, vec![1; 4 * 64], all);
        let mut bundle = Vec::new();
        export(&record, &[here.tier], &mut bundle).unwrap();
        let there = machine();
        let imported = there.import(&bundle, None).unwrap();
        assert_eq!(
            (imported.new_blocks, &imported.record.tokens),
            (2, &record.tokens)
        );
        assert_eq!(imported.record.keys, keys(&plain));
        assert_eq!(contents(&*there.tier).len(), 2);
    }

    #[test]
    fn nothing_that_is_there_is_overwritten() {
        let (infos, record, bundle) = exported();
        let there = machine();
        let mut other = Record::new(&infos[0].origin, vec![9], Vec::new());
        other.summary.id = record.summary.id.clone();
        other.summary.label = record.summary.label.clone();
        there.records().save(&other).unwrap();
        let imported = there.import(&bundle, None).unwrap();
        assert_eq!(imported.label_taken.as_deref(), Some("holmes"));
        assert_ne!(imported.record.summary.id, record.summary.id);
        assert_eq!(imported.record.tokens, record.tokens);
        assert_eq!(there.records().find("holmes").unwrap(), other);
    }

    #[test]
    fn other_models_other_salts_and_missing_blocks_are_refused() {
        let (_, record, bundle) = exported();
        let there = machine();
        let error = there
            .import(&bundle, Some(&Chain::new("n").origin))
            .unwrap_err();
        assert!(error.to_string().contains("made by m"), "{error}");
        let salted = Records::open(&there.folder, b"tenant");
        let ledger = Ledger::unlimited();
        let error = import(Cursor::new(&bundle), &*there.tier, &salted, &ledger, None);
        assert!(error.unwrap_err().to_string().contains("salt"));
        assert_eq!(contents(&*there.tier), []);
        let error = export(&record, &[Arc::clone(&there.tier)], Vec::new()).unwrap_err();
        assert!(matches!(error, BundleError::Tier(TierError::Missing(_))));
        let ledger = Ledger::with_limit(100);
        let error = import(
            Cursor::new(&bundle),
            &*there.tier,
            &there.records(),
            &ledger,
            None,
        );
        assert!(matches!(error, Err(BundleError::Memory(_))));
    }

    /// The bundle again, with its entries changed.
    fn rebuilt(bundle: &[u8], change: impl Fn(&mut Vec<(String, Vec<u8>)>)) -> Vec<u8> {
        let mut archive = tar::Archive::new(bundle);
        let mut files = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_str().unwrap().to_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.push((name, bytes));
        }
        change(&mut files);
        let mut out = tar::Builder::new(Vec::new());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            // Names that the library would refuse to write.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(bytes.len() as u64);
            header.set_cksum();
            out.append(&header, &bytes[..]).unwrap();
        }
        out.into_inner().unwrap()
    }

    /// The bundle with a block more, whose header and entry claim the largest block there may be.
    fn claiming_terabytes(bundle: &[u8]) -> Vec<u8> {
        let mut info = Chain::new("m").block(2);
        info.shape = BlockShape {
            layers: 4096,
            layer_bytes: 1 << 30,
        };
        let header = Header {
            capacity: 1,
            ..Header::beginning_with(&info)
        };
        let slot = Slot {
            hash: info.key.hash,
            parent: info.parent,
            tokens: Arc::clone(&info.tokens),
            seconds: 1.0,
            sums: vec![0; info.shape.layers].into(),
        };
        let mut file = header.encode();
        file.extend(slot.encode(&header, 0));
        file.resize(header.payload_offset() as usize, 0);
        let mut entry = tar::Header::new_gnu();
        entry.set_path(name_of(&info.key)).unwrap();
        entry.set_size(header.payload_offset() + header.block_bytes());
        entry.set_cksum();
        // In place of the two empty records at the end.
        let mut out = bundle[..bundle.len() - 1024].to_vec();
        out.extend(entry.as_bytes());
        out.extend(file);
        out
    }

    #[test]
    fn hostile_bundles_change_nothing() {
        let (infos, _, bundle) = exported();
        let there = machine();
        let refused = |what: &str, bundle: &[u8]| {
            let error = match there.import(bundle, None) {
                Err(error) => error.to_string(),
                Ok(_) => panic!("{what} was taken"),
            };
            assert!(error.contains(what), "{error}");
            assert_eq!(contents(&*there.tier), []);
            assert!(there.records().list().unwrap().is_empty());
        };
        type Files = Vec<(String, Vec<u8>)>;
        type Change<'a> = (&'static str, &'a dyn Fn(&mut Files));
        let name = |hash: &str| format!("blocks/{hash}-0.kv");
        let changes: [Change; 10] = [
            ("it has no longview-bundle", &|files| files.clear()),
            ("format 2", &|files| files[0].1 = b"2".to_vec()),
            ("stands where longview-bundle belongs", &|files| {
                files.swap(0, 1)
            }),
            ("damaged or cut short", &|files| files[1].1[300] ^= 1),
            ("is missing", &|files| drop(files.pop())),
            ("is there twice", &|files| files.push(files[5].clone())),
            ("payload is damaged", &|files| {
                *files[9].1.last_mut().unwrap() ^= 1
            }),
            ("name is not that of its contents", &|files| {
                files[9].0 = "blocks/../../../etc/passwd".to_owned();
            }),
            ("name is not that of its contents", &|files| {
                files[9].0 = name(&"0".repeat(64))
            }),
            ("length is not what its header says", &|files| {
                files[9].1.push(0)
            }),
        ];
        for (what, change) in changes {
            refused(what, &rebuilt(&bundle, change));
        }
        let mut foreign = Vec::new();
        let here = machine();
        let others = Chain::new("other").blocks(1, 1);
        put(&*here.tier, &others);
        let record = Record::new(&others[0].origin, vec![1; 64], keys(&others));
        export(&record, &[here.tier], &mut foreign).unwrap();
        let extra = rebuilt(&bundle, |files| {
            let mut archive = tar::Archive::new(&foreign[..]);
            let mut entry = archive.entries().unwrap().nth(2).unwrap().unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.push((name(&others[0].key.hash.to_string()), bytes));
        });
        refused("is not called what the context's text says", &extra);
        // Blocks under names of another seed, or of another text, that a record claims.
        let planted = |origin: &Origin, tokens: Vec<u32>, infos: &[BlockInfo]| {
            let here = machine();
            put(&*here.tier, infos);
            let honest = Record::new(&infos[0].origin, vec![1; 64], keys(infos));
            let mut bundle = Vec::new();
            export(&honest, &[here.tier], &mut bundle).unwrap();
            let claimed = Record::new(origin, tokens, keys(infos));
            rebuilt(&bundle, |files| files[1].1 = encode_record(&claimed))
        };
        let mine = Chain::new("m").blocks(1, 1);
        let theirs = planted(&mine[0].origin, vec![1; 64], &others);
        refused("is not called what the context's text says", &theirs);
        let other_text = planted(&mine[0].origin, vec![2; 64], &mine);
        refused("is not called what the context's text says", &other_text);
        refused(
            "length is not what its header says",
            &claiming_terabytes(&bundle),
        );
        refused("it has no longview-bundle", b"");
        refused("not a Longview bundle", &[7; 4096]);
        // Cut anywhere: the end of an archive is two empty records that need not be there.
        for len in (0..bundle.len() - 1024 - 3000).step_by(509) {
            assert!(there.import(&bundle[..len], None).is_err(), "cut at {len}");
        }
        assert_eq!(contents(&*there.tier), []);
        let mut random = fastrand::Rng::with_seed(2);
        for _ in 0..300 {
            let mut flipped = bundle.clone();
            let at = random.usize(0..flipped.len());
            flipped[at] ^= 1 << random.u8(0..8);
            let there = machine();
            // Padding and unused fields of the archive may be flipped; contents may not.
            if there.import(&flipped, None).is_ok() {
                assert_held(&*there.tier, &infos);
            } else {
                assert_eq!(contents(&*there.tier), []);
            }
        }
    }
}
