//! What can go wrong when a model is opened or run.

use longview_kernels::KernelError;
use longview_kv::KvError;
use longview_weights::WeightsError;

/// An error of a model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file could not be read as weights.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The store refused.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// An architecture that Longview has no file for.
    #[error("{file}: unknown architecture {name:?}; known architectures: {known}")]
    UnknownArchitecture {
        /// The model's file or folder.
        file: String,
        /// The name found in it.
        name: String,
        /// The names Longview knows, comma-separated.
        known: String,
    },
    /// A setting is absent, of the wrong type, or outside what makes sense.
    #[error("{file}: setting {key}: {problem}")]
    Setting {
        /// The model's file or folder.
        file: String,
        /// The setting, in the words of `config.json`.
        key: String,
        /// What is wrong with it and what was expected.
        problem: String,
    },
    /// A tensor has another shape than the settings say.
    #[error(
        "{file}: tensor {tensor} has shape {found:?}, but the model's settings ask for {expected:?}"
    )]
    Shape {
        /// The model's file or folder.
        file: String,
        /// Name of the tensor.
        tensor: String,
        /// Shape in the file, outermost dimension first.
        found: Vec<usize>,
        /// Shape asked for.
        expected: Vec<usize>,
    },
    /// A tensor that cannot be used as it is.
    #[error("{file}: tensor {tensor} {problem}")]
    Tensor {
        /// The model's file or folder.
        file: String,
        /// Name of the tensor.
        tensor: String,
        /// What is wrong with it and what to do.
        problem: String,
    },
    /// A tokenizer that has no form in a GGUF file.
    #[error("{file} {problem}")]
    Tokenizer {
        /// Path of the tokenizer's file.
        file: String,
        /// What stands in the way.
        problem: String,
    },
    /// A layer holds a tensor that the architecture as its settings describe it does not use.
    #[error(
        "{file}: tensor {tensor} has no place in the {architecture} that the settings describe; \
         leaving it out would give wrong results, so the model is refused: check the settings"
    )]
    Unread {
        /// The model's file or folder.
        file: String,
        /// Name of the tensor.
        tensor: String,
        /// Name of the architecture.
        architecture: &'static str,
    },
    /// A tensor could not be brought into the form the kernels read.
    #[error("{file}: tensor {tensor}: {source}")]
    Pack {
        /// The model's file or folder.
        file: String,
        /// Name of the tensor.
        tensor: String,
        /// Why.
        source: KernelError,
    },
    /// The caller broke the work off.
    #[error("stopped before the file was complete; nothing was written")]
    Stopped,
    /// A token id outside the vocabulary.
    #[error("token id {id} is outside the model's vocabulary of {vocabulary} tokens")]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// Rows of the embedding.
        vocabulary: usize,
    },
    /// More positions than the model was made for.
    #[error(
        "{wanted} tokens do not fit the model's context of {limit} tokens; shorten the text, or \
         choose a model with a longer context"
    )]
    TooLong {
        /// Positions asked for.
        wanted: usize,
        /// Positions the model has.
        limit: usize,
    },
    /// A shape or a conversion that Longview cannot make.
    #[error("{0}")]
    Unsupported(String),
}

impl ModelError {
    /// Whether what was asked for is at fault (the model's files, or more than the model can do),
    /// as opposed to something failing while it runs.
    pub fn is_request_error(&self) -> bool {
        match self {
            ModelError::Weights(error) => error.is_request_error(),
            ModelError::Kv(error) => matches!(error, KvError::NoSuchLayers { .. }),
            ModelError::Stopped | ModelError::TokenOutOfRange { .. } => false,
            _ => true,
        }
    }
}
