//! GGUF, the single-file format of llama.cpp and its relatives, versions 2 and 3.

mod cursor;
mod metadata;
mod parse;
mod presplit;
mod shards;
mod value;
mod write;

use std::collections::HashMap;
use std::path::Path;

use crate::error::Result;
use crate::source::Source;
use crate::table::Table;
use crate::tensor::Tensor;
use parse::{Header, Located};

pub use presplit::{GPT2_WORDS, PRESPLITS, Presplit};
pub use shards::PartName;
pub use value::{Array, Kind, Value};
pub use write::{GgufHeader, GgufWriter};

/// An open GGUF model: typed metadata and named tensors, both borrowed from the mapped file.
///
/// A model split into files `NAME-00001-of-0000N.gguf` is opened whole by the name of any of them.
#[derive(Debug)]
pub struct GgufFile {
    metadata: Vec<Located>,
    by_key: HashMap<String, usize>,
    tensors: Table,
}

impl GgufFile {
    /// Opens and checks a GGUF file, and the other parts if it is one of several.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, is not GGUF 2 or 3, or its header is damaged in any way.
    pub fn open(path: impl AsRef<Path>) -> Result<GgufFile> {
        let path = path.as_ref();
        GgufFile::assemble(shards::open_all(path, Part::read(Source::map(path)?)?)?)
    }

    /// Reads a GGUF file that is part of the program; `name` is what errors call it.
    ///
    /// # Errors
    ///
    /// As [`GgufFile::open`].
    pub fn from_static(name: &str, bytes: &'static [u8]) -> Result<GgufFile> {
        GgufFile::assemble(vec![Part::read(Source::from_static(name, bytes))?])
    }

    /// Reads a GGUF file that is in memory; `name` is what errors call it.
    ///
    /// # Errors
    ///
    /// As [`GgufFile::open`].
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<GgufFile> {
        GgufFile::assemble(vec![Part::read(Source::from_bytes(name, bytes))?])
    }

    /// The path or name of the (first) file.
    pub fn name(&self) -> &str {
        &self.tensors.sources()[0].name
    }

    /// The tensor with this name.
    ///
    /// # Errors
    ///
    /// When there is none; the message names one that is called alike.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        self.tensors.require(self.name(), name)
    }

    /// The tensor with this name, where a model may do without it.
    pub fn find_tensor(&self, name: &str) -> Option<Tensor<'_>> {
        self.tensors.get(name)
    }

    /// All tensors in the order of the file; none in a file that is only a vocabulary.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor<'_>> {
        self.tensors.iter()
    }

    /// The number of tensors.
    pub fn tensor_count(&self) -> usize {
        self.tensors.len()
    }

    /// Bytes of the file, or of all files of a split model.
    pub fn file_bytes(&self) -> u64 {
        self.tensors.file_bytes()
    }

    pub(crate) fn table(&self) -> &Table {
        &self.tensors
    }

    /// One model of all its parts, the first of which has the metadata.
    fn assemble(parts: Vec<Part>) -> Result<GgufFile> {
        let mut file = GgufFile {
            metadata: Vec::new(),
            by_key: HashMap::new(),
            tensors: Table::default(),
        };
        for (number, Part { source, header }) in parts.into_iter().enumerate() {
            if number == 0 {
                let keys = header.metadata.iter().enumerate();
                file.by_key = keys.map(|(i, located)| (located.key.clone(), i)).collect();
                file.metadata = header.metadata;
            }
            file.tensors.add(source, header.tensors)?;
        }
        Ok(file)
    }
}

/// One file with its checked header.
struct Part {
    source: Source,
    header: Header,
}

impl Part {
    fn read(source: Source) -> Result<Part> {
        let header = parse::parse(&source.name, source.bytes())?;
        Ok(Part { source, header })
    }

    fn value(&self, key: &str) -> Option<Value<'_>> {
        let located = self
            .header
            .metadata
            .iter()
            .find(|located| located.key == key)?;
        parse::value_at(self.source.bytes(), located)
    }
}
