//! Reading the header of a GGUF file field by field, refusing what cannot be.

use longview_kernels::Format;

use super::parse::{Located, value_at};
use super::value::{Kind, Value};
use crate::error::{Result, WeightsError};

/// Bounds no real model comes near: a file beyond them is damaged or hostile.
const MAX_NAME_BYTES: u64 = 256;
const MAX_DIMENSIONS: u32 = 4;
const MAX_ALIGNMENT: u32 = 1 << 20;
/// Arrays of arrays of arrays are allowed for; deeper nesting is an attack on the stack.
const MAX_NESTING: usize = 3;

/// The fewest bytes a string and an array can take.
const MIN_STRING_BYTES: u64 = 8;
const MIN_ARRAY_BYTES: u64 = 12;

/// A position in the header.
pub(super) struct Cursor<'a> {
    file: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// At the start of `bytes`; `file` is the name that errors show.
    pub(super) fn new(file: &'a str, bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { file, bytes, at: 0 }
    }

    /// Bytes read so far.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The next `needed` bytes; `what` describes them if they are not there.
    pub(super) fn take(&mut self, needed: u64, what: impl FnOnce() -> String) -> Result<&'a [u8]> {
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

    pub(super) fn u32(&mut self, what: impl FnOnce() -> String) -> Result<u32> {
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
    pub(super) fn count(&mut self, things: &str, max: u64, min_bytes: u64) -> Result<u64> {
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
    pub(super) fn text(&mut self, max: u64, what: impl Fn() -> String) -> Result<String> {
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

    pub(super) fn kind(&mut self, key: &str) -> Result<Kind> {
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
    pub(super) fn skip_value(&mut self, key: &str, kind: Kind, nesting: usize) -> Result<()> {
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

    pub(super) fn alignment(&self, located: &Located) -> Result<usize> {
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

    pub(super) fn tensor(&mut self, number: u64) -> Result<Described> {
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

/// A tensor as described, before its data is known to be there.
pub(super) struct Described {
    pub(super) name: String,
    pub(super) format: Format,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: usize,
    /// From the start of the tensor data.
    pub(super) data_offset: u64,
    /// Of this description.
    pub(super) offset: usize,
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
