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

use longview_kernels::Format;

use super::value::{Kind, Value};
use crate::error::{Result, WeightsError};
use crate::table::Entry;

/// Bounds no real model comes near: a file beyond them is damaged or hostile.
const MAX_ENTRIES: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 18;
const MAX_KEY_BYTES: u64 = (1 << 16) - 1;
const MAX_NAME_BYTES: u64 = 256;
const MAX_DIMENSIONS: u32 = 4;
const MAX_ALIGNMENT: u32 = 1 << 20;
/// Arrays of arrays of arrays are allowed for; deeper nesting is an attack on the stack.
const MAX_NESTING: usize = 3;

/// The fewest bytes an entry, a tensor description, a string and an array can take.
const MIN_ENTRY_BYTES: u64 = 8 + 4 + 1;
const MIN_TENSOR_BYTES: u64 = 8 + 4 + 4 + 8;
const MIN_STRING_BYTES: u64 = 8;
const MIN_ARRAY_BYTES: u64 = 12;

/// What a header says.
pub(super) struct Header {
    pub(super) version: u32,
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
    let mut cursor = Cursor { file, bytes, at: 0 };
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
        let offset = cursor.at;
        let key = cursor.text(MAX_KEY_BYTES, || {
            format!("the key of metadata entry {number}")
        })?;
        let kind = cursor.kind(&key)?;
        let located = Located {
            key,
            kind,
            offset: cursor.at,
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
    let data_start = cursor.at.next_multiple_of(alignment);
    let tensors = place(file, bytes.len(), data_start, alignment, described)?;
    Ok(Header {
        version,
        metadata,
        tensors,
    })
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

/// A tensor as described, before its data is known to be there.
struct Described {
    name: String,
    format: Format,
    shape: Vec<usize>,
    bytes: usize,
    /// From the start of the tensor data.
    data_offset: u64,
    /// Of this description.
    offset: usize,
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

/// A position in the header.
struct Cursor<'a> {
    file: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// The next `needed` bytes; `what` describes them if they are not there.
    fn take(&mut self, needed: u64, what: impl FnOnce() -> String) -> Result<&'a [u8]> {
        let left = &self.bytes[self.at..];
        match usize::try_from(needed)
            .ok()
            .and_then(|needed| left.get(..needed))
        {
            Some(bytes) => {
                self.at += bytes.len();
                Ok(bytes)
            }
            None => Err(self.truncated(needed, what())),
        }
    }

    fn u32(&mut self, what: impl FnOnce() -> String) -> Result<u32> {
        let bytes = self.take(4, what)?;
        Ok(u32::from_le_bytes(
            *bytes.first_chunk().expect("four bytes were taken"),
        ))
    }

    fn u64(&mut self, what: impl FnOnce() -> String) -> Result<u64> {
        let bytes = self.take(8, what)?;
        Ok(u64::from_le_bytes(
            *bytes.first_chunk().expect("eight bytes were taken"),
        ))
    }

    /// A count of things of at least `min_bytes` each, no more than `max` and than what is left.
    fn count(&mut self, things: &str, max: u64, min_bytes: u64) -> Result<u64> {
        let offset = self.at;
        let count = self.u64(|| format!("the number of {things}"))?;
        if count > max {
            return Err(self.damaged(offset, format!("{count} {things}, at most {max} are read")));
        }
        self.expect_left(count, min_bytes, || format!("{count} {things}"))?;
        Ok(count)
    }

    /// Refuses a number of things that cannot be in the bytes that are left.
    fn expect_left(&self, count: u64, min_bytes: u64, what: impl FnOnce() -> String) -> Result<()> {
        let left = (self.bytes.len() - self.at) as u64;
        match count.checked_mul(min_bytes) {
            Some(needed) if needed <= left => Ok(()),
            needed => Err(self.truncated(needed.unwrap_or(u64::MAX), what())),
        }
    }

    /// A string that must be UTF-8, owned: a key or a tensor's name.
    fn text(&mut self, max: u64, what: impl Fn() -> String) -> Result<String> {
        let offset = self.at;
        let length = self.u64(&what)?;
        if length > max {
            return Err(self.damaged(offset, format!("{} has {length} bytes", what())));
        }
        match std::str::from_utf8(self.take(length, &what)?) {
            Ok("") => Err(self.damaged(offset, format!("{} is empty", what()))),
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.damaged(offset, format!("{} is not UTF-8", what()))),
        }
    }

    fn kind(&mut self, key: &str) -> Result<Kind> {
        let offset = self.at;
        let number = self.u32(|| format!("the type of {key:?}"))?;
        Kind::from_number(number).ok_or_else(|| {
            self.damaged(
                offset,
                format!("metadata {key:?} has value type {number}; 0 to 12 exist"),
            )
        })
    }

    /// Steps over a value, checking that it is whole.
    fn skip_value(&mut self, key: &str, kind: Kind, nesting: usize) -> Result<()> {
        let value = || format!("the value of {key:?}");
        if let Some(size) = kind.size() {
            let offset = self.at;
            let bytes = self.take(size as u64, value)?;
            if kind == Kind::Bool && bytes[0] > 1 {
                let what = format!("metadata {key:?} is a bool with the value {}", bytes[0]);
                return Err(self.damaged(offset, what));
            }
            return Ok(());
        }
        if kind == Kind::String {
            let length = self.u64(value)?;
            self.take(length, value)?;
            return Ok(());
        }
        if nesting == MAX_NESTING {
            let what = format!("metadata {key:?} nests arrays more than {MAX_NESTING} deep");
            return Err(self.damaged(self.at, what));
        }
        let item = self.kind(key)?;
        let count = self.u64(value)?;
        if let Some(size) = item.size() {
            self.expect_left(count, size as u64, value)?;
            self.take(count * size as u64, value)?;
            return Ok(());
        }
        let min_bytes = if item == Kind::String {
            MIN_STRING_BYTES
        } else {
            MIN_ARRAY_BYTES
        };
        self.expect_left(count, min_bytes, value)?;
        for _ in 0..count {
            self.skip_value(key, item, nesting + 1)?;
        }
        Ok(())
    }

    fn alignment(&self, located: &Located) -> Result<usize> {
        match value_at(self.bytes, located) {
            Some(Value::U32(v)) if v.is_power_of_two() && v <= MAX_ALIGNMENT => Ok(v as usize),
            Some(value) => {
                let what = format!(
                    "general.alignment is {value} ({}), which is not a u32 power of two up to \
                     {MAX_ALIGNMENT}",
                    value.kind()
                );
                Err(self.damaged(located.offset, what))
            }
            None => Err(self.truncated(4, "the value of \"general.alignment\"".into())),
        }
    }

    fn tensor(&mut self, number: u64) -> Result<Described> {
        let offset = self.at;
        let name = self.text(MAX_NAME_BYTES, || format!("the name of tensor {number}"))?;
        let file = self.file;
        let refuse = |what: String| {
            let (file, tensor) = (file.to_owned(), name.clone());
            Err(WeightsError::TensorShape {
                file,
                tensor,
                offset,
                what,
            })
        };
        let what = || format!("the description of tensor {name:?}");
        let dimensions = self.u32(what)?;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            return refuse(format!(
                "it has {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are read"
            ));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(self.u64(what)?);
        }
        let type_number = self.u32(what)?;
        let data_offset = self.u64(what)?;
        let Some(format) = Format::from_gguf_type(type_number) else {
            return Err(WeightsError::UnknownType {
                file: file.to_owned(),
                tensor: name,
                offset,
                number: type_number,
                name: type_name(type_number)
                    .map(|name| format!(" ({name})"))
                    .unwrap_or_default(),
                known: Format::ALL.map(Format::name).join(", "),
            });
        };
        let elements = shape
            .iter()
            .try_fold(1u64, |product, &size| product.checked_mul(size))
            .and_then(|elements| usize::try_from(elements).ok());
        let Some(elements) = elements else {
            return refuse(format!("the product of its dimensions {shape:?} overflows"));
        };
        if elements == 0 {
            return refuse(format!(
                "its dimensions {shape:?} leave it without elements"
            ));
        }
        // Every size divides `elements`, so every size fits.
        let shape: Vec<usize> = shape.iter().rev().map(|&size| size as usize).collect();
        let row = shape[shape.len() - 1];
        if !row.is_multiple_of(format.block_len()) {
            let block = format.block_len();
            return refuse(format!(
                "its rows of {row} elements do not fill the blocks of {block} that {format} has"
            ));
        }
        let Some(bytes) = format.bytes_for(elements) else {
            return refuse(format!(
                "the size of {shape:?} elements of {format} overflows"
            ));
        };
        Ok(Described {
            name,
            format,
            shape,
            bytes,
            data_offset,
            offset,
        })
    }

    fn truncated(&self, needed: u64, what: String) -> WeightsError {
        WeightsError::Truncated {
            file: self.file.to_owned(),
            what,
            offset: self.at,
            needed,
            left: (self.bytes.len() - self.at) as u64,
        }
    }

    fn damaged(&self, offset: usize, what: String) -> WeightsError {
        WeightsError::Header {
            file: self.file.to_owned(),
            offset,
            what,
        }
    }
}

/// What other tools call the tensor types that we do not read.
fn type_name(number: u32) -> Option<&'static str> {
    Some(match number {
        4 => "Q4_2",
        5 => "Q4_3",
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        31..=33 => "Q4_0 repacked for one processor",
        34 => "TQ1_0",
        35 => "TQ2_0",
        36..=38 => "IQ4_NL repacked for one processor",
        39 => "MXFP4",
        40 => "NVFP4",
        41 => "Q1_0",
        _ => return None,
    })
}
