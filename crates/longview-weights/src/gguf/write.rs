//! Writing GGUF version 3: the header first, then tensors streamed one by one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use longview_kernels::Format;

use super::{Array, Kind, Value};
use crate::error::{Result, WeightsError};

/// Tensor data begins at multiples of this many bytes.
const ALIGNMENT: usize = 32;

/// Everything of a GGUF file but its tensor data: fill it, then [`GgufHeader::create`] the file.
#[derive(Clone, Debug, Default)]
pub struct GgufHeader {
    entries: Vec<u8>,
    keys: Vec<String>,
    tensors: Vec<Declared>,
}

/// A GGUF file being written under a temporary name, published by [`GgufWriter::finish`].
///
/// Dropped before that, it leaves nothing behind.
#[derive(Debug)]
pub struct GgufWriter {
    path: PathBuf,
    temporary: PathBuf,
    /// `None` once finished.
    file: Option<BufWriter<File>>,
    tensors: Vec<Declared>,
    /// The tensor being written, and how many of its bytes are.
    current: usize,
    written: usize,
}

#[derive(Clone, Debug)]
struct Declared {
    name: String,
    format: Format,
    shape: Vec<usize>,
    bytes: usize,
}

impl GgufHeader {
    /// A header with nothing in it.
    pub fn new() -> GgufHeader {
        GgufHeader::default()
    }

    /// Adds a u32.
    pub fn u32(&mut self, key: &str, value: u32) -> &mut GgufHeader {
        self.value(key, Value::U32(value))
    }

    /// Adds an f32.
    pub fn f32(&mut self, key: &str, value: f32) -> &mut GgufHeader {
        self.value(key, Value::F32(value))
    }

    /// Adds a bool.
    pub fn bool(&mut self, key: &str, value: bool) -> &mut GgufHeader {
        self.value(key, Value::Bool(value))
    }

    /// Adds a text.
    pub fn str(&mut self, key: &str, value: &str) -> &mut GgufHeader {
        self.value(key, Value::String(value.as_bytes()))
    }

    /// Adds a list of texts.
    pub fn strings<S: AsRef<str>>(&mut self, key: &str, values: &[S]) -> &mut GgufHeader {
        let mut packed = Vec::new();
        for value in values {
            put_string(&mut packed, value.as_ref().as_bytes());
        }
        self.value(
            key,
            Value::Array(Array::new(Kind::String, values.len(), &packed)),
        )
    }

    /// Adds a list of u32.
    pub fn u32s(&mut self, key: &str, values: &[u32]) -> &mut GgufHeader {
        let packed: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.value(
            key,
            Value::Array(Array::new(Kind::U32, values.len(), &packed)),
        )
    }

    /// Adds a list of i32.
    pub fn i32s(&mut self, key: &str, values: &[i32]) -> &mut GgufHeader {
        let packed: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.value(
            key,
            Value::Array(Array::new(Kind::I32, values.len(), &packed)),
        )
    }

    /// Adds a list of f32.
    pub fn f32s(&mut self, key: &str, values: &[f32]) -> &mut GgufHeader {
        let packed: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.value(
            key,
            Value::Array(Array::new(Kind::F32, values.len(), &packed)),
        )
    }

    /// Adds a list of bools.
    pub fn bools(&mut self, key: &str, values: &[bool]) -> &mut GgufHeader {
        let packed: Vec<u8> = values.iter().map(|&v| u8::from(v)).collect();
        self.value(
            key,
            Value::Array(Array::new(Kind::Bool, values.len(), &packed)),
        )
    }

    /// Adds a value of any type, such as one read from another file. A key is set once: later
    /// values for it are ignored, so overrides are added before what is copied. The keys that
    /// describe a file's own layout (`general.alignment`, `split.…`) are the writer's business and
    /// ignored too.
    pub fn value(&mut self, key: &str, value: Value<'_>) -> &mut GgufHeader {
        let layout = key == "general.alignment" || key.starts_with("split.");
        if layout || self.keys.iter().any(|known| known == key) {
            return self;
        }
        self.keys.push(key.to_owned());
        put_string(&mut self.entries, key.as_bytes());
        put_u32(&mut self.entries, value.kind() as u32);
        put_value(&mut self.entries, value);
        self
    }

    /// Declares the next tensor; `shape` is row-major, its last entry the length of a row.
    ///
    /// # Errors
    ///
    /// When the shape is empty, has a zero, more than four dimensions or rows that do not fill
    /// blocks of the format, or the name is taken.
    pub fn tensor(
        &mut self,
        name: &str,
        format: Format,
        shape: &[usize],
    ) -> Result<&mut GgufHeader> {
        let misuse = |what: &str| {
            let what = format!("tensor {name:?} of {format} and shape {shape:?}: {what}");
            WeightsError::WriterMisuse {
                path: "GGUF header".into(),
                what,
            }
        };
        let row = *shape
            .last()
            .ok_or_else(|| misuse("a scalar cannot be stored"))?;
        let elements = shape
            .iter()
            .try_fold(1usize, |product, &size| product.checked_mul(size));
        let elements = elements.ok_or_else(|| misuse("its size overflows"))?;
        if elements == 0 || shape.len() > 4 || !row.is_multiple_of(format.block_len()) {
            return Err(misuse("it cannot be stored so"));
        }
        if self.tensors.iter().any(|declared| declared.name == name) {
            return Err(misuse("the name is taken"));
        }
        let bytes = format
            .bytes_for(elements)
            .ok_or_else(|| misuse("its size overflows"))?;
        self.tensors.push(Declared {
            name: name.into(),
            format,
            shape: shape.into(),
            bytes,
        });
        Ok(self)
    }

    /// Bytes the finished file will have.
    pub fn file_bytes(&self) -> u64 {
        let data: u64 = self
            .tensors
            .iter()
            .map(|declared| padded(declared.bytes) as u64)
            .sum();
        self.encode().len() as u64 + data
    }

    /// Starts the file: writes the header under a temporary name beside `path`.
    ///
    /// # Errors
    ///
    /// When the folder does not exist or cannot be written to, the disk is full, or `path` names
    /// something else than a file.
    pub fn create(self, path: impl AsRef<Path>) -> Result<GgufWriter> {
        let path = path.as_ref().to_owned();
        // Publishing replaces what is there: a device or a folder must not be.
        if fs::metadata(&path).is_ok_and(|there| !there.is_file()) {
            let what = "what is there is not a file; name a file to write";
            let source = io::Error::new(io::ErrorKind::InvalidInput, what);
            return Err(write_error(&path, source));
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".partial-{}", std::process::id()));
        let temporary = path.with_file_name(name);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&temporary)
            .map_err(|error| write_error(&path, error))?;
        let mut writer = GgufWriter {
            path,
            temporary,
            file: Some(BufWriter::with_capacity(1 << 20, file)),
            tensors: Vec::new(),
            current: 0,
            written: 0,
        };
        writer.put(&self.encode())?;
        writer.tensors = self.tensors;
        Ok(writer)
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        put_u32(&mut bytes, 3);
        put_u64(&mut bytes, self.tensors.len() as u64);
        put_u64(&mut bytes, self.keys.len() as u64);
        bytes.extend_from_slice(&self.entries);
        let mut offset = 0;
        for tensor in &self.tensors {
            put_string(&mut bytes, tensor.name.as_bytes());
            put_u32(&mut bytes, tensor.shape.len() as u32);
            for &size in tensor.shape.iter().rev() {
                put_u64(&mut bytes, size as u64);
            }
            put_u32(&mut bytes, tensor.format.gguf_type());
            put_u64(&mut bytes, offset);
            offset += padded(tensor.bytes) as u64;
        }
        bytes.resize(padded(bytes.len()), 0);
        bytes
    }
}

impl GgufWriter {
    /// Appends to a tensor's data. Tensors are written in the order they were declared, each whole
    /// or in as many pieces as is convenient.
    ///
    /// # Errors
    ///
    /// When it is not this tensor's turn or it gets more bytes than declared; or when the disk is
    /// full.
    pub fn append(&mut self, tensor: &str, data: &[u8]) -> Result<()> {
        let Some(declared) = self.tensors.get(self.current) else {
            return Err(self.misuse(format!("tensor {tensor:?} after the last one declared")));
        };
        if declared.name != tensor {
            let what = format!("tensor {tensor:?} where {:?} is next", declared.name);
            return Err(self.misuse(what));
        }
        let (total, left) = (declared.bytes, declared.bytes - self.written);
        if data.len() > left {
            let what = format!(
                "tensor {tensor:?} has {total} bytes; {} too many",
                data.len() - left
            );
            return Err(self.misuse(what));
        }
        self.put(data)?;
        self.written += data.len();
        if self.written == total {
            self.put(&[0; ALIGNMENT][..padded(total) - total])?;
            self.current += 1;
            self.written = 0;
        }
        Ok(())
    }

    /// Makes sure everything is on disk and gives the file its name, replacing what was there.
    ///
    /// # Errors
    ///
    /// When a declared tensor is missing, the disk is full or the name cannot be replaced.
    pub fn finish(mut self) -> Result<()> {
        if let Some(declared) = self.tensors.get(self.current) {
            let what = format!(
                "tensor {:?} was declared and is not complete",
                declared.name
            );
            return Err(self.misuse(what));
        }
        let path = self.path.clone();
        let publish = |file: BufWriter<File>| -> io::Result<()> {
            let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.sync_all()?;
            drop(file);
            fs::rename(&self.temporary, &self.path)
        };
        let file = self
            .file
            .take()
            .expect("the file is there until it is finished, which is now");
        publish(file).map_err(|error| {
            let _ = fs::remove_file(&self.temporary);
            write_error(&path, error)
        })
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let file = self
            .file
            .as_mut()
            .expect("the file is there until it is finished");
        file.write_all(bytes)
            .map_err(|error| write_error(&self.path, error))
    }

    fn misuse(&self, what: String) -> WeightsError {
        WeightsError::WriterMisuse {
            path: self.path.display().to_string(),
            what,
        }
    }
}

impl Drop for GgufWriter {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            // What is still buffered must not be written to a file about to be removed.
            drop(file.into_parts());
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

fn write_error(path: &Path, source: io::Error) -> WeightsError {
    let folder = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new(".")).display();
    let hint = match source.kind() {
        io::ErrorKind::StorageFull => format!("; free space on the disk of {folder}"),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            format!("; choose a folder you may write to, {folder} is not one")
        }
        io::ErrorKind::NotFound => format!("; create the folder {folder} first"),
        _ => String::new(),
    };
    WeightsError::Write {
        path: path.display().to_string(),
        source,
        hint,
    }
}

fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    put_u64(out, text.len() as u64);
    out.extend_from_slice(text);
}

fn put_value(out: &mut Vec<u8>, value: Value<'_>) {
    match value {
        Value::U8(v) => out.push(v),
        Value::I8(v) => out.push(v as u8),
        Value::Bool(v) => out.push(v.into()),
        Value::U16(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I16(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U32(v) => put_u32(out, v),
        Value::I32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::F32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U64(v) => put_u64(out, v),
        Value::I64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::F64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::String(text) => put_string(out, text),
        Value::Array(array) => {
            put_u32(out, array.kind() as u32);
            put_u64(out, array.len() as u64);
            out.extend_from_slice(array.packed());
        }
    }
}
