//! What can go wrong between a path and a tensor.

use std::io;

/// A weight file cannot be read or written. Every message names the file, the place in it and what
/// to do about it; offsets are in bytes from the start of the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // The fields are what the messages say.
pub enum WeightsError {
    /// The path does not exist.
    #[error("{path}: there is no such file or folder; give a .gguf file or a Hugging Face folder")]
    NotFound { path: String },

    /// The operating system refused to open, map or read something.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        path: String,
        action: &'static str,
        source: io::Error,
    },

    /// A file was overwritten while its weights were in use.
    #[error(
        "{path}: the file was changed while its weights were in use, so that answers would be of neither \
         model; start again, and replace a model by renaming the new file over the old one"
    )]
    Changed { path: String },

    /// A folder with nothing in it.
    #[error(
        "{path}: the folder is empty; a model folder holds config.json, tokenizer.json and \
         *.safetensors, or one .gguf file"
    )]
    EmptyFolder { path: String },

    /// A folder without weights.
    #[error(
        "{path}: no model in this folder (it holds {found}); a model folder holds config.json, \
         tokenizer.json and *.safetensors, or one .gguf file"
    )]
    NoModel { path: String, found: String },

    /// A folder with several GGUF models.
    #[error("{path}: several models in this folder, name one of them: {list}")]
    SeveralModels { path: String, list: String },

    /// A file that is neither GGUF nor part of a folder we read.
    #[error("{path}: not a GGUF file ({why})")]
    NotWeights { path: String, why: String },

    /// A part of a model folder is missing.
    #[error("{path}: missing; {needed}")]
    MissingFile { path: String, needed: String },

    /// A JSON file that does not parse, or parses to something else than expected.
    #[error("{path}: {what}")]
    Json { path: String, what: String },

    /// A small file that is not small.
    #[error("{path}: {bytes} bytes, more than the {limit} such a file may have")]
    TooLarge {
        path: String,
        bytes: u64,
        limit: u64,
    },

    /// A GGUF file made for a big-endian machine.
    #[error("{file}: a big-endian GGUF file; convert the model again for little endian")]
    BigEndian { file: String },

    /// A GGUF version we do not know.
    #[error(
        "{file}: GGUF version {version}; versions 2 and 3 are read, so convert the model again"
    )]
    Version { file: String, version: u32 },

    /// The file ends inside its header.
    #[error(
        "{file}: ends too early: {what} at byte {offset} needs {needed} bytes and {left} are left; \
         the download may be incomplete"
    )]
    Truncated {
        file: String,
        what: String,
        offset: usize,
        needed: u64,
        left: u64,
    },

    /// A header field with an impossible value.
    #[error("{file}: damaged header at byte {offset}: {what}")]
    Header {
        file: String,
        offset: usize,
        what: String,
    },

    /// Two metadata entries with one key.
    #[error("{file}: metadata key {key:?} occurs twice, again at byte {offset}")]
    DuplicateKey {
        file: String,
        key: String,
        offset: usize,
    },

    /// Two tensors with one name.
    #[error("{file}: tensor {tensor:?} occurs twice, again {place}")]
    DuplicateTensor {
        file: String,
        tensor: String,
        place: String,
    },

    /// A tensor type we cannot read.
    #[error(
        "{file}: tensor {tensor:?} (described at byte {offset}) has type {number}{name}, which is \
         not read; known types: {known}"
    )]
    UnknownType {
        file: String,
        tensor: String,
        offset: usize,
        number: u32,
        name: String,
        known: String,
    },

    /// A tensor of a data type we cannot read, in a safetensors file.
    #[error("{file}: tensor {tensor:?} has type {dtype}; F32, F16 and BF16 are read")]
    UnsupportedDtype {
        file: String,
        tensor: String,
        dtype: String,
    },

    /// A tensor with an impossible shape.
    #[error("{file}: tensor {tensor:?} (described at byte {offset}): {what}")]
    TensorShape {
        file: String,
        tensor: String,
        offset: usize,
        what: String,
    },

    /// A tensor that reaches past the end of the file.
    #[error(
        "{file}: tensor {tensor:?} lies at bytes {start} to {end}, but the file ends at \
         {file_bytes}; the download may be incomplete"
    )]
    TensorOutside {
        file: String,
        tensor: String,
        start: u128,
        end: u128,
        file_bytes: usize,
    },

    /// Two tensors that share bytes.
    #[error("{file}: tensors {first:?} and {second:?} overlap at byte {offset}")]
    TensorOverlap {
        file: String,
        first: String,
        second: String,
        offset: usize,
    },

    /// A tensor asked for is not there.
    #[error("{file}: no tensor {tensor:?}{hint}")]
    MissingTensor {
        file: String,
        tensor: String,
        hint: String,
    },

    /// A metadata key asked for is not there.
    #[error("{file}: the metadata has no {key:?}, which this model needs; convert the model again")]
    MissingKey { file: String, key: String },

    /// A metadata value of another type than asked for.
    #[error("{file}: metadata {key:?} is {found}, where {wanted} is expected")]
    WrongType {
        file: String,
        key: String,
        found: String,
        wanted: String,
    },

    /// A part of a model in several files is missing or belongs to another model.
    #[error("{file}: part {part} of {count} of the model: {what}")]
    Shard {
        file: String,
        part: usize,
        count: usize,
        what: String,
    },

    /// An index that names a file outside its folder.
    #[error(
        "{file}: the index places tensor {tensor:?} in {target:?}, which is not a plain file name \
         in the same folder; refused"
    )]
    IndexEscapes {
        file: String,
        tensor: String,
        target: String,
    },

    /// A file cannot be written.
    #[error("{path}: cannot write: {source}{hint}")]
    Write {
        path: String,
        source: io::Error,
        hint: String,
    },

    /// The writer was handed something else than was declared. A mistake of the calling program.
    #[error("{path}: {what}")]
    WriterMisuse { path: String, what: String },
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
            ),
            WeightsError::Write { .. }
            | WeightsError::WriterMisuse { .. }
            | WeightsError::Changed { .. } => false,
            _ => true,
        }
    }
}

/// The crate's result.
pub(crate) type Result<T> = std::result::Result<T, WeightsError>;
