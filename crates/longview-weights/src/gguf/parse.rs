//! The header of a GGUF file, checked field by field.
//!
//! ```text
//! "GGUF" · version u32 · tensors u64 · entries u64
//! entries ×  key string · type u32 · value
//! tensors ×  name string · dimensions u32 · size u64 each, fastest first · type u32 · offset u64
//! padding to the alignment, then the tensor data that offsets count from
//! ```
//!
//! A string is its length u64 and its bytes; an array its item type u32, its length u64 and its items.
//! Nothing here allocates by a number the file states before that many bytes were seen to be there.

use super::cursor::{Cursor, Described};
use super::value::{Kind, Value};
use crate::error::{Result, WeightsError};
use crate::table::Entry;

/// Bounds no real model comes near: a file beyond them is damaged or hostile.
const MAX_ENTRIES: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 18;
const MAX_KEY_BYTES: u64 = (1 << 16) - 1;

/// The fewest bytes an entry and a tensor description can take.
const MIN_ENTRY_BYTES: u64 = 8 + 4 + 1;
const MIN_TENSOR_BYTES: u64 = 8 + 4 + 4 + 8;

/// What a header says.
pub(super) struct Header {
    pub(super) metadata: Vec<Located>,
    pub(super) tensors: Vec<Entry>,
}

/// A metadata entry: its key and where in the file its value is.
#[derive(Debug)]
pub(super) struct Located {
    pub(super) key: String,
    pub(super) kind: Kind,
    pub(super) offset: usize,
}

/// Reads the header of `bytes`; `file` is the name that errors show.
pub(super) fn parse(file: &str, bytes: &[u8]) -> Result<Header> {
    let mut cursor = Cursor::new(file, bytes);
    check_magic(file, bytes)?;
    cursor.take(4, || "the magic number".into())?;
    let version = cursor.u32(|| "the version".into())?;
    if matches!(version.swap_bytes(), 1..=3) {
        return Err(WeightsError::BigEndian {
            file: file.to_owned(),
        });
    }
    if !matches!(version, 2 | 3) {
        return Err(WeightsError::Version {
            file: file.to_owned(),
            version,
        });
    }
    let tensor_count = cursor.count("tensors", MAX_TENSORS, MIN_TENSOR_BYTES)?;
    let entry_count = cursor.count("metadata entries", MAX_ENTRIES, MIN_ENTRY_BYTES)?;

    let mut metadata: Vec<Located> = Vec::new();
    let mut keys = std::collections::HashSet::new();
    let mut alignment = 32;
    for number in 0..entry_count {
        let offset = cursor.at();
        let key = cursor.text(MAX_KEY_BYTES, || {
            format!("the key of metadata entry {number}")
        })?;
        let kind = cursor.kind(&key)?;
        let located = Located {
            key,
            kind,
            offset: cursor.at(),
        };
        cursor.skip_value(&located.key, kind, 0)?;
        if !keys.insert(located.key.clone()) {
            let file = file.to_owned();
            return Err(WeightsError::DuplicateKey {
                file,
                key: located.key,
                offset,
            });
        }
        if located.key == "general.alignment" {
            alignment = cursor.alignment(&located)?;
        }
        metadata.push(located);
    }

    let mut described = Vec::new();
    for number in 0..tensor_count {
        described.push(cursor.tensor(number)?);
    }
    let data_start = cursor.at().next_multiple_of(alignment);
    let tensors = place(file, bytes.len(), data_start, alignment, described)?;
    Ok(Header { metadata, tensors })
}

/// Decodes a value that [`parse`] found at `located`.
pub(super) fn value_at<'a>(bytes: &'a [u8], located: &Located) -> Option<Value<'a>> {
    Value::decode(located.kind, bytes.get(located.offset..)?).map(|(value, _)| value)
}

fn check_magic(file: &str, bytes: &[u8]) -> Result<()> {
    let why = match bytes.first_chunk::<4>() {
        Some(b"GGUF") => return Ok(()),
        None => format!("it has {} bytes", bytes.len()),
        Some(b"ggjt" | b"tjgg" | b"ggml" | b"lmgg" | b"fmgg" | b"ggmf") => {
            "it is in a format older than GGUF; convert the model again".to_owned()
        }
        Some(other) => format!("it begins with {:?}", String::from_utf8_lossy(other)),
    };
    Err(WeightsError::NotWeights {
        path: file.to_owned(),
        why,
    })
}

/// Gives each tensor its place in the file: inside it, aligned, on its own, named once.
fn place(
    file: &str,
    file_bytes: usize,
    data_start: usize,
    alignment: usize,
    described: Vec<Described>,
) -> Result<Vec<Entry>> {
    let mut names = std::collections::HashSet::new();
    let mut tensors = Vec::new();
    for tensor in described {
        if !names.insert(tensor.name.clone()) {
            let place = format!("at byte {}", tensor.offset);
            let file = file.to_owned();
            return Err(WeightsError::DuplicateTensor {
                file,
                tensor: tensor.name,
                place,
            });
        }
        if tensor.data_offset % alignment as u64 != 0 {
            let what = format!(
                "its data offset {} is not a multiple of the alignment {alignment}",
                tensor.data_offset
            );
            let (file, offset) = (file.to_owned(), tensor.offset);
            return Err(WeightsError::TensorShape {
                file,
                tensor: tensor.name,
                offset,
                what,
            });
        }
        let start = data_start as u128 + u128::from(tensor.data_offset);
        let end = start + tensor.bytes as u128;
        if end > file_bytes as u128 {
            let file = file.to_owned();
            let tensor = tensor.name;
            return Err(WeightsError::TensorOutside {
                file,
                tensor,
                start,
                end,
                file_bytes,
            });
        }
        // Both fit: `end` is at most the length of a slice.
        let bytes = start as usize..end as usize;
        let Described {
            name,
            format,
            shape,
            ..
        } = tensor;
        tensors.push(Entry {
            name,
            format,
            shape,
            bytes,
        });
    }
    let mut by_place: Vec<&Entry> = tensors.iter().collect();
    by_place.sort_by_key(|entry| entry.bytes.start);
    for pair in by_place.windows(2) {
        if pair[1].bytes.start < pair[0].bytes.end {
            return Err(WeightsError::TensorOverlap {
                file: file.to_owned(),
                first: pair[0].name.clone(),
                second: pair[1].name.clone(),
                offset: pair[1].bytes.start,
            });
        }
    }
    Ok(tensors)
}
