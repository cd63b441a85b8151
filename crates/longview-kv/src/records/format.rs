//! The file format of records.
//!
//! ```text
//! magic, version, lengths of the two parts, checksums of the two parts, checksum of all this
//! head   the summary as JSON
//! body   tokens, block keys, pieces
//! ```

use std::io;

use crate::hash::BlockHash;
use crate::tier::BlockKey;
use crate::tier::extent::checksum;
use crate::tier::files::OpenFile;

use super::{Record, Summary};

const MAGIC: [u8; 8] = *b"LVCONTXT";
const VERSION: u32 = 1;
/// Bytes before the head.
const PREFIX: usize = 8 + 4 + 4 + 8 + 16 + 16 + 16;
const KEY: usize = 32 + 2;
/// More than any context has; a record that claims more is not read into memory.
pub(crate) const MOST_BYTES: u64 = 1 << 30;
/// Lengths of tokens, keys and pieces.
const COUNTS: usize = 3 * 8;

/// Why a file is not a record.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("not a record of a context; remove it or move it elsewhere")]
    Foreign,
    #[error("written by a newer Longview (format {0}; this one reads {VERSION}); use that version")]
    Future(u32),
    #[error("damaged or cut short; remove it: the context is read anew when it is needed")]
    Damaged,
}

pub(crate) fn encode(record: &Record) -> Vec<u8> {
    let head = serde_json::to_vec(&record.summary).expect("a summary has only text and numbers");
    let mut body = Vec::with_capacity(COUNTS + 4 * record.tokens.len() + KEY * record.keys.len());
    for count in [record.tokens.len(), record.keys.len(), record.pieces.len()] {
        body.extend((count as u64).to_le_bytes());
    }
    for token in &record.tokens {
        body.extend(token.to_le_bytes());
    }
    for key in &record.keys {
        body.extend(key.hash.as_bytes());
        body.extend(key.group.to_le_bytes());
    }
    body.extend(&record.pieces);
    let mut out = Vec::with_capacity(PREFIX + head.len() + body.len());
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend((head.len() as u32).to_le_bytes());
    out.extend((body.len() as u64).to_le_bytes());
    out.extend(checksum(&head).to_le_bytes());
    out.extend(checksum(&body).to_le_bytes());
    out.extend(checksum(&out).to_le_bytes());
    debug_assert_eq!(out.len(), PREFIX);
    out.extend(head);
    out.extend(body);
    out
}

pub(crate) fn decode(bytes: &[u8]) -> Result<Record, Unreadable> {
    let lengths = Lengths::read(bytes)?;
    let (head, body) = bytes
        .get(PREFIX..)
        .and_then(|rest| rest.split_at_checked(lengths.head))
        .ok_or(Unreadable::Damaged)?;
    let summary = lengths.summary(head)?;
    if body.len() != lengths.body || checksum(body) != lengths.body_sum {
        return Err(Unreadable::Damaged);
    }
    body_of(summary, body).ok_or(Unreadable::Damaged)
}

/// Reads a whole record.
pub(crate) fn read(file: &dyn OpenFile) -> Result<Record, Unreadable> {
    let lengths = lengths(file)?;
    let mut bytes = vec![0; PREFIX + lengths.head + lengths.body];
    file.read_all_at(&mut bytes, 0).map_err(cut_short)?;
    decode(&bytes)
}

/// Reads what is listed only.
pub(crate) fn read_summary(file: &dyn OpenFile) -> Result<Summary, Unreadable> {
    let lengths = lengths(file)?;
    let mut head = vec![0; lengths.head];
    file.read_all_at(&mut head, PREFIX as u64)
        .map_err(cut_short)?;
    lengths.summary(&head)
}

/// The lengths of a record's parts, which are those of its file.
fn lengths(file: &dyn OpenFile) -> Result<Lengths, Unreadable> {
    let len = file.stat()?.len;
    let mut prefix = vec![0; PREFIX.min(usize::try_from(len).unwrap_or(PREFIX))];
    file.read_all_at(&mut prefix, 0).map_err(cut_short)?;
    let lengths = Lengths::read(&prefix)?;
    let said = (PREFIX + lengths.head) as u64;
    match said.checked_add(lengths.body as u64) == Some(len) && len <= MOST_BYTES {
        true => Ok(lengths),
        false => Err(Unreadable::Damaged),
    }
}

struct Lengths {
    head: usize,
    body: usize,
    head_sum: u128,
    body_sum: u128,
}

impl Lengths {
    fn read(bytes: &[u8]) -> Result<Lengths, Unreadable> {
        if bytes.len() < MAGIC.len() {
            return Err(Unreadable::Damaged);
        }
        if bytes[..MAGIC.len()] != MAGIC {
            return Err(Unreadable::Foreign);
        }
        let prefix: &[u8; PREFIX] = bytes.first_chunk().ok_or(Unreadable::Damaged)?;
        let version = u32::from_le_bytes(part(prefix, 8));
        if version != VERSION {
            return Err(Unreadable::Future(version));
        }
        if u128::from_le_bytes(part(prefix, PREFIX - 16)) != checksum(&prefix[..PREFIX - 16]) {
            return Err(Unreadable::Damaged);
        }
        let body = u64::from_le_bytes(part(prefix, 16));
        Ok(Lengths {
            head: u32::from_le_bytes(part(prefix, 12)) as usize,
            body: usize::try_from(body).map_err(|_| Unreadable::Damaged)?,
            head_sum: u128::from_le_bytes(part(prefix, 24)),
            body_sum: u128::from_le_bytes(part(prefix, 40)),
        })
    }

    fn summary(&self, head: &[u8]) -> Result<Summary, Unreadable> {
        if head.len() != self.head || checksum(head) != self.head_sum {
            return Err(Unreadable::Damaged);
        }
        let mut summary: Summary = serde_json::from_slice(head).map_err(|_| Unreadable::Damaged)?;
        // It may come from elsewhere, and is shown on terminals.
        summary.title = summary.title.replace(char::is_control, " ");
        Ok(summary)
    }
}

/// `N` bytes at an offset that lies inside the prefix.
fn part<const N: usize>(prefix: &[u8; PREFIX], at: usize) -> [u8; N] {
    std::array::from_fn(|byte| prefix[at + byte])
}

fn body_of(summary: Summary, body: &[u8]) -> Option<Record> {
    let (counts, rest) = body.split_at_checked(COUNTS)?;
    let mut counts = counts.chunks_exact(8).map(|bytes| {
        let bytes = bytes.try_into().ok()?;
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    });
    let (tokens, rest) = rest.split_at_checked(counts.next()??.checked_mul(4)?)?;
    let (keys, pieces) = rest.split_at_checked(counts.next()??.checked_mul(KEY)?)?;
    let (keys, []) = keys.as_chunks::<KEY>() else {
        return None;
    };
    let (tokens, []) = tokens.as_chunks::<4>() else {
        return None;
    };
    if pieces.len() != counts.next()?? || summary.tokens != tokens.len() as u64 {
        return None;
    }
    let key = |bytes: &[u8; KEY]| {
        Some(BlockKey {
            hash: BlockHash::from_bytes(*bytes.first_chunk()?),
            group: u16::from_le_bytes(*bytes.last_chunk()?),
        })
    };
    Some(Record {
        summary,
        tokens: tokens
            .iter()
            .map(|bytes| u32::from_le_bytes(*bytes))
            .collect(),
        keys: keys.iter().map(key).collect::<Option<_>>()?,
        pieces: pieces.to_vec(),
    })
}

fn cut_short(error: io::Error) -> Unreadable {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Unreadable::Damaged,
        _ => Unreadable::Io(error),
    }
}
