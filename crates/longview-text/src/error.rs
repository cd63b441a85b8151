//! What can go wrong between text and token ids.

use thiserror::Error;

/// An error of this crate: what is wrong, where, and what to do about it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TextError {
    /// A tokenizer file is not valid JSON.
    #[error("{file} is not valid JSON: {detail}; download the model's {file} again")]
    Json {
        /// The file as models name it, such as `tokenizer.json`.
        file: &'static str,
        /// What the JSON reader said.
        detail: String,
    },
    /// The metadata of a GGUF file cannot be read.
    #[error(transparent)]
    Weights(#[from] longview_weights::WeightsError),
    /// A vocabulary contradicts itself or lacks something its kind needs.
    #[error("the vocabulary is unusable: {0}")]
    Vocabulary(String),
    /// A part of a tokenizer is of a kind that is not supported.
    #[error("{part} `{found}` is not supported; supported are {known}")]
    Unsupported {
        /// Which part, such as `pre-tokenizer`.
        part: &'static str,
        /// The name found in the file.
        found: String,
        /// The names that would have worked.
        known: String,
    },
    /// A text could not be turned into token ids.
    #[error("the text cannot be tokenised: {0}")]
    Encode(String),
    /// A token id is not in the vocabulary.
    #[error(
        "token id {id} is not in the vocabulary of {size} ids; the ids come from another model, \
         or padded rows of the embedding were not masked"
    )]
    UnknownId {
        /// The offending id.
        id: u32,
        /// Number of ids in the vocabulary.
        size: usize,
    },
    /// The embedding has fewer rows than the vocabulary has ids.
    #[error(
        "the vocabulary has {vocabulary} ids but the embedding only {rows} rows: the tokenizer \
         and the weights are of different models"
    )]
    Embedding {
        /// Number of ids in the vocabulary.
        vocabulary: usize,
        /// Rows of the embedding matrix.
        rows: usize,
    },
    /// A chat template does not parse.
    #[error("the chat template does not parse: {0}; pass another template or none")]
    TemplateSyntax(String),
    /// A chat template failed, or ran past its budget, while rendering.
    #[error("the chat template failed: {0}")]
    TemplateRender(String),
    /// The template itself refused the conversation (`raise_exception`).
    #[error("the chat template refuses this conversation: {0}")]
    TemplateRefused(String),
    /// A template renders in a way that leaves no place for documents before the question.
    #[error("the chat template cannot carry documents before a question: {0}")]
    TemplateFrame(String),
}

impl TextError {
    /// Whether what was asked for is at fault (the model's text side, or a conversation its
    /// template refuses), as opposed to something failing while text is turned into ids and back.
    pub fn is_request_error(&self) -> bool {
        match self {
            Self::Weights(error) => error.is_request_error(),
            Self::Encode(_) | Self::UnknownId { .. } => false,
            _ => true,
        }
    }

    /// Wraps the boxed errors of the `tokenizers` crate met while building a tokenizer.
    pub(crate) fn building(error: impl std::fmt::Display) -> Self {
        Self::Vocabulary(error.to_string())
    }
}
