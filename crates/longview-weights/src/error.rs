//! What can go wrong between a path and a tensor.

use std::io;

/// A weight file cannot be read or written. Every message names the file, the place in it and what
/// to do about it; offsets are in bytes from the start of the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The path does not exist.
    #[error("{path}: there is no such file or folder; give a .gguf file or a Hugging Face folder")]
    NotFound {
        /// The file or folder.
        path: String,
    },

    /// The operating system refused to open, map or read something.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// The file or folder.
        path: String,
        /// What was tried, such as `read`.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },

    /// A file was overwritten while its weights were in use.
    #[error(
        "{path}: the file was changed while its weights were in use, so that answers would be of neither \
         model; start again, and replace a model by renaming the new file over the old one"
    )]
    Changed {
        /// The file or folder.
        path: String,
    },

    /// A folder with nothing in it.
    #[error(
        "{path}: the folder is empty; a model folder holds config.json, tokenizer.json and \
         *.safetensors, or one .gguf file"
    )]
    EmptyFolder {
        /// The file or folder.
        path: String,
    },

    /// A folder without weights.
    #[error(
        "{path}: no model in this folder (it holds {found}); a model folder holds config.json, \
         tokenizer.json and *.safetensors, or one .gguf file"
    )]
    NoModel {
        /// The file or folder.
        path: String,
        /// What lies there instead.
        found: String,
    },

    /// A folder with several GGUF models.
    #[error("{path}: several models in this folder, name one of them: {list}")]
    SeveralModels {
        /// The file or folder.
        path: String,
        /// Their names.
        list: String,
    },

    /// A file that is neither GGUF nor part of a folder we read.
    #[error("{path}: not a GGUF file ({why})")]
    NotWeights {
        /// The file or folder.
        path: String,
        /// What it is instead, or why it is none.
        why: String,
    },

    /// A part of a model folder is missing.
    #[error("{path}: missing; {needed}")]
    MissingFile {
        /// The file or folder.
        path: String,
        /// What it is needed for, or what to do.
        needed: String,
    },

    /// A JSON file that does not parse, or parses to something else than expected.
    #[error("{path}: {what}")]
    Json {
        /// The file or folder.
        path: String,
        /// What is wrong with it, and where.
        what: String,
    },

    /// A small file that is not small.
    #[error("{path}: {bytes} bytes, more than the {limit} such a file may have")]
    TooLarge {
        /// The file or folder.
        path: String,
        /// How many bytes it has.
        bytes: u64,
        /// The most it may have.
        limit: u64,
    },

    /// A GGUF file made for a big-endian machine.
    #[error("{file}: a big-endian GGUF file; convert the model again for little endian")]
    BigEndian {
        /// The file, as it was opened.
        file: String,
    },

    /// A GGUF version we do not know.
    #[error(
        "{file}: GGUF version {version}; versions 2 and 3 are read, so convert the model again"
    )]
    Version {
        /// The file, as it was opened.
        file: String,
        /// The version it says it has.
        version: u32,
    },

    /// The file ends inside its header.
    #[error(
        "{file}: ends too early: {what} at byte {offset} needs {needed} bytes and {left} are left; \
         the download may be incomplete"
    )]
    Truncated {
        /// The file, as it was opened.
        file: String,
        /// What would stand there.
        what: String,
        /// Where, in bytes from the start of the file.
        offset: usize,
        /// Bytes that this takes.
        needed: u64,
        /// Bytes that are there.
        left: u64,
    },

    /// A header field with an impossible value.
    #[error("{file}: damaged header at byte {offset}: {what}")]
    Header {
        /// The file, as it was opened.
        file: String,
        /// Where, in bytes from the start of the file.
        offset: usize,
        /// What is impossible.
        what: String,
    },

    /// Two metadata entries with one key.
    #[error("{file}: metadata key {key:?} occurs twice, again at byte {offset}")]
    DuplicateKey {
        /// The file, as it was opened.
        file: String,
        /// The metadata key.
        key: String,
        /// Where, in bytes from the start of the file.
        offset: usize,
    },

    /// Two tensors with one name.
    #[error("{file}: tensor {tensor:?} occurs twice, again {place}")]
    DuplicateTensor {
        /// The file, as it was opened.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// Where it occurs again: a byte, or another file.
        place: String,
    },

    /// A tensor type we cannot read.
    #[error(
        "{file}: tensor {tensor:?} (described at byte {offset}) has type {number}{name}, which is \
         not read; known types: {known}"
    )]
    UnknownType {
        /// The file, as it was opened.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// Where, in bytes from the start of the file.
        offset: usize,
        /// GGUF's number of the type.
        number: u32,
        /// The type's name in parentheses, where it is known.
        name: String,
        /// The types that are read.
        known: String,
    },

    /// A tensor of a data type we cannot read, in a safetensors file.
    #[error("{file}: tensor {tensor:?} has type {dtype}; F32, F16 and BF16 are read")]
    UnsupportedDtype {
        /// The file, as it was opened.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// The data type's name in the file.
        dtype: String,
    },

    /// A tensor with an impossible shape.
    #[error("{file}: tensor {tensor:?} (described at byte {offset}): {what}")]
    TensorShape {
        /// The file, as it was opened.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// Where, in bytes from the start of the file.
        offset: usize,
        /// What is impossible.
        what: String,
    },

    /// A tensor that reaches past the end of the file.
    #[error(
        "{file}: tensor {tensor:?} lies at bytes {start} to {end}, but the file ends at \
         {file_bytes}; the download may be incomplete"
    )]
    TensorOutside {
        /// The file, as it was opened.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// Where it would begin, in bytes from the start of the file.
        start: u128,
        /// Where it would end.
        end: u128,
        /// Bytes of the file.
        file_bytes: usize,
    },

    /// Two tensors that share bytes.
    #[error("{file}: tensors {first:?} and {second:?} overlap at byte {offset}")]
    TensorOverlap {
        /// The file, as it was opened.
        file: String,
        /// The tensor that begins first.
        first: String,
        /// The one that begins inside it.
        second: String,
        /// Where, in bytes from the start of the file.
        offset: usize,
    },

    /// A tensor asked for is not there.
    #[error("{file}: no tensor {tensor:?}{hint}")]
    MissingTensor {
        /// The file, as it was opened.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// The name of one that is called alike, after a semicolon; may be empty.
        hint: String,
    },

    /// A metadata key asked for is not there.
    #[error("{file}: the metadata has no {key:?}, which this model needs; convert the model again")]
    MissingKey {
        /// The file, as it was opened.
        file: String,
        /// The metadata key.
        key: String,
    },

    /// A metadata value of another type than asked for.
    #[error("{file}: metadata {key:?} is {found}, where {wanted} is expected")]
    WrongType {
        /// The file, as it was opened.
        file: String,
        /// The metadata key.
        key: String,
        /// The value and its type.
        found: String,
        /// What is expected.
        wanted: String,
    },

    /// A part of a model in several files is missing or belongs to another model.
    #[error("{file}: part {part} of {count} of the model: {what}")]
    Shard {
        /// The file, as it was opened.
        file: String,
        /// Which part, counted from 1.
        part: usize,
        /// How many parts there are.
        count: usize,
        /// What is wrong with it.
        what: String,
    },

    /// An index that names a file outside its folder.
    #[error(
        "{file}: the index places tensor {tensor:?} in {target:?}, which is not a plain file name \
         in the same folder; refused"
    )]
    IndexEscapes {
        /// The file, as it was opened.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// Where the index says it is.
        target: String,
    },

    /// A file cannot be written.
    #[error("{path}: cannot write: {source}{hint}")]
    Write {
        /// The file or folder.
        path: String,
        /// What the system said.
        source: io::Error,
        /// What to do, after a semicolon; empty where nothing is known.
        hint: String,
    },

    /// The writer was handed something else than was declared. A mistake of the calling program.
    #[error("{path}: {what}")]
    WriterMisuse {
        /// The file or folder.
        path: String,
        /// What was handed over instead of what was declared.
        what: String,
    },
}

impl WeightsError {
    /// Whether what was asked for is at fault (the path, or the file it names), as opposed to
    /// something the system refused while reading or writing.
    pub fn is_request_error(&self) -> bool {
        match self {
            // A path that cannot be opened was wrong from the start.
            WeightsError::Io { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::PermissionDenied
                    | io::ErrorKind::IsADirectory
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::InvalidFilename
            ),
            // So was one that cannot be written to; a disk that fills up was not.
            WeightsError::Write { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::PermissionDenied
                    | io::ErrorKind::ReadOnlyFilesystem
            ),
            WeightsError::WriterMisuse { .. } | WeightsError::Changed { .. } => false,
            _ => true,
        }
    }
}

/// The crate's result.
pub(crate) type Result<T> = std::result::Result<T, WeightsError>;
