//! Typed access to metadata, with errors that name the file and the key.
//!
//! Converters differ in the integer width they choose, so any integer that fits is taken; and in
//! whether a value is given once or for each layer, which the `_per_layer` accessors even out.

use super::{Array, GgufFile, Kind, Value, parse};
use crate::error::{Result, WeightsError};

impl GgufFile {
    /// The value of a key, if the file has it.
    pub fn value(&self, key: &str) -> Option<Value<'_>> {
        let located = &self.metadata[*self.by_key.get(key)?];
        parse::value_at(self.tensors.sources()[0].bytes(), located)
    }

    /// All keys and values in the order of the file.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.metadata.iter().filter_map(|located| {
            let value = parse::value_at(self.tensors.sources()[0].bytes(), located)?;
            Some((located.key.as_str(), value))
        })
    }

    /// An integer from 0 to 2^32 − 1, stored in any integer type.
    ///
    /// # Errors
    ///
    /// When the key is missing or its value is something else; so for all accessors below, except
    /// that those called `find_…` give `None` for a missing key.
    pub fn u32(&self, key: &str) -> Result<u32> {
        self.find_u32(key)?.ok_or_else(|| self.missing(key))
    }

    /// As [`GgufFile::u32`], for a key a file may lack.
    pub fn find_u32(&self, key: &str) -> Result<Option<u32>> {
        self.find(key, "an integer from 0 to 2^32 - 1", to_u32)
    }

    /// A number, stored in any numeric type.
    pub fn f32(&self, key: &str) -> Result<f32> {
        self.find_f32(key)?.ok_or_else(|| self.missing(key))
    }

    /// As [`GgufFile::f32`], for a key a file may lack.
    pub fn find_f32(&self, key: &str) -> Result<Option<f32>> {
        self.find(key, "a number", to_f32)
    }

    /// A truth value.
    pub fn bool(&self, key: &str) -> Result<bool> {
        self.find_bool(key)?.ok_or_else(|| self.missing(key))
    }

    /// As [`GgufFile::bool`], for a key a file may lack.
    pub fn find_bool(&self, key: &str) -> Result<Option<bool>> {
        self.find(key, "a bool", |value| value.bool())
    }

    /// UTF-8 text.
    pub fn str(&self, key: &str) -> Result<&str> {
        self.find_str(key)?.ok_or_else(|| self.missing(key))
    }

    /// As [`GgufFile::str`], for a key a file may lack.
    pub fn find_str(&self, key: &str) -> Result<Option<&str>> {
        self.find(key, "UTF-8 text", |value| value.str())
    }

    /// A list of UTF-8 texts, borrowed: a vocabulary of 128k tokens takes a millisecond or two.
    pub fn strings(&self, key: &str) -> Result<Vec<&str>> {
        self.find_strings(key)?.ok_or_else(|| self.missing(key))
    }

    /// As [`GgufFile::strings`], for a key a file may lack.
    pub fn find_strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.find_list(key, "UTF-8 texts", |value| value.str())
    }

    /// A list of integers from 0 to 2^32 − 1.
    pub fn u32s(&self, key: &str) -> Result<Vec<u32>> {
        self.find_u32s(key)?.ok_or_else(|| self.missing(key))
    }

    /// As [`GgufFile::u32s`], for a key a file may lack.
    pub fn find_u32s(&self, key: &str) -> Result<Option<Vec<u32>>> {
        self.find_list(key, "integers from 0 to 2^32 - 1", to_u32)
    }

    /// A list of integers from −2^31 to 2^31 − 1.
    pub fn i32s(&self, key: &str) -> Result<Vec<i32>> {
        let wanted = "integers from -2^31 to 2^31 - 1";
        let convert = |value: Value<'_>| value.integer().and_then(|v| i32::try_from(v).ok());
        self.find_list(key, wanted, convert)?
            .ok_or_else(|| self.missing(key))
    }

    /// A list of numbers.
    pub fn f32s(&self, key: &str) -> Result<Vec<f32>> {
        self.find_f32s(key)?.ok_or_else(|| self.missing(key))
    }

    /// As [`GgufFile::f32s`], for a key a file may lack.
    pub fn find_f32s(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.find_list(key, "numbers", to_f32)
    }

    /// A list of truth values.
    pub fn bools(&self, key: &str) -> Result<Vec<bool>> {
        self.find_bools(key)?.ok_or_else(|| self.missing(key))
    }

    /// As [`GgufFile::bools`], for a key a file may lack.
    pub fn find_bools(&self, key: &str) -> Result<Option<Vec<bool>>> {
        self.find_list(key, "bools", |value| value.bool())
    }

    fn find<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        convert: impl Fn(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        match convert(value) {
            Some(value) => Ok(Some(value)),
            None => Err(self.wrong_type(key, describe(value), wanted)),
        }
    }

    fn find_list<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        convert: impl Fn(Value<'a>) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        let wanted = format!("a list of {wanted}");
        let Some(array) = self.find(key, &wanted, |value| value.array())? else {
            return Ok(None);
        };
        list(array, convert).map(Some).map_err(|(item, value)| {
            self.wrong_type(&format!("{key}[{item}]"), describe(value), &wanted)
        })
    }

    fn missing(&self, key: &str) -> WeightsError {
        WeightsError::MissingKey {
            file: self.name().to_owned(),
            key: key.to_owned(),
        }
    }

    fn wrong_type(&self, key: &str, found: String, wanted: &str) -> WeightsError {
        WeightsError::WrongType {
            file: self.name().to_owned(),
            key: key.to_owned(),
            found,
            wanted: wanted.to_owned(),
        }
    }
}

/// The converted items, or the first that does not convert.
fn list<'a, T>(
    array: Array<'a>,
    convert: impl Fn(Value<'a>) -> Option<T>,
) -> std::result::Result<Vec<T>, (usize, Value<'a>)> {
    let items = array.iter().enumerate();
    items
        .map(|(item, value)| convert(value).ok_or((item, value)))
        .collect()
}

fn to_u32(value: Value<'_>) -> Option<u32> {
    value.integer().and_then(|v| u32::try_from(v).ok())
}

fn to_f32(value: Value<'_>) -> Option<f32> {
    value.number().map(|v| v as f32)
}

/// A value with its type, for an error message.
fn describe(value: Value<'_>) -> String {
    match value.kind() {
        Kind::Array => value.to_string(),
        kind => format!("{value} ({kind})"),
    }
}
