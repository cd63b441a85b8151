//! What can go wrong in the engine.

use longview_kernels::isa::IsaError;
use longview_kv::KvError;
use longview_models::ModelError;
use longview_text::TextError;
use longview_weights::WeightsError;

use crate::plan::MemoryPlan;
use crate::sampling::SamplingError;

/// An error of the engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The model's file could not be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The model could not be loaded or run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The tokenizer or the chat template.
    #[error("{file}: {source}")]
    Text {
        /// The model's file or folder.
        file: String,
        /// What is wrong with its text side.
        source: Box<TextError>,
    },
    /// A file of the model could not be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The store refused.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// No token could be chosen.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The instruction set asked for by `LONGVIEW_ISA`.
    #[error(transparent)]
    Isa(#[from] IsaError),
    /// The plan does not fit the memory allowed.
    #[error("{0}")]
    DoesNotFit(Box<MemoryPlan>),
    /// Generation was asked for without a token to start from.
    #[error("there is nothing to continue: the prompt is empty; give some text")]
    EmptyPrompt,
}

impl EngineError {
    /// Whether the request itself was wrong, as opposed to something failing at run time.
    pub fn is_request_error(&self) -> bool {
        matches!(
            self,
            EngineError::DoesNotFit(_)
                | EngineError::EmptyPrompt
                | EngineError::Isa(_)
                | EngineError::Model(ModelError::TooLong { .. })
                | EngineError::Weights(WeightsError::NotFound { .. })
        )
    }
}
