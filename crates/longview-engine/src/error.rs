//! What can go wrong in the engine.

use longview_kernels::isa::IsaError;
use longview_kv::tier::{BlockKey, TierError};
use longview_kv::{KvError, human_bytes};
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
    /// The store refused.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// The place where contexts are kept cannot be used.
    #[error("contexts cannot be kept: {0}")]
    Store(#[from] TierError),
    /// A remote store was asked for that this build cannot reach.
    #[error(
        "contexts cannot be kept at {url}: this program was built without remote stores (cargo feature \
         `remote`)"
    )]
    NoRemote {
        /// The address.
        url: String,
    },
    /// No token could be chosen.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The instruction set asked for by `LONGVIEW_ISA`.
    #[error(transparent)]
    Isa(#[from] IsaError),
    /// The plan does not fit the memory allowed.
    #[error("{0}")]
    DoesNotFit(Box<MemoryPlan>),
    /// The memory allowed does not suffice to turn a text into token ids.
    #[error(
        "a text of {} takes about {} while it is turned into tokens, but --memory leaves {}; give \
         more, or less text at a time",
        human_bytes(*.text_bytes), human_bytes(*.needed), human_bytes(*.left)
    )]
    TextTooLarge {
        /// Bytes of the text.
        text_bytes: u64,
        /// Bytes needed meanwhile.
        needed: u64,
        /// Bytes left.
        left: u64,
    },
    /// A pass over several requests failed, for the reason given.
    #[error("{0}")]
    Pass(String),
    /// Generation was asked for without a token to start from.
    #[error("there is nothing to continue: the prompt is empty; give some text")]
    EmptyPrompt,
}

impl EngineError {
    /// The block that could not be read back, where that is what went wrong.
    pub(crate) fn lost_block(&self) -> Option<BlockKey> {
        match self {
            EngineError::Kv(KvError::Lost(error))
            | EngineError::Model(ModelError::Kv(KvError::Lost(error))) => error.key(),
            _ => None,
        }
    }

    /// Whether it is the memory limit that stands in the way.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(
            self,
            EngineError::Kv(KvError::OverLimit { .. })
                | EngineError::Model(ModelError::Kv(KvError::OverLimit { .. }))
        )
    }

    /// Whether what was asked for is at fault (a path, a model's files, a prompt, a limit), as
    /// opposed to something failing at run time. The program's exit code follows from it.
    pub fn is_request_error(&self) -> bool {
        match self {
            EngineError::Weights(error) => error.is_request_error(),
            EngineError::Model(error) => error.is_request_error(),
            EngineError::Text { source, .. } => source.is_request_error(),
            EngineError::DoesNotFit(_)
            | EngineError::TextTooLarge { .. }
            | EngineError::NoRemote { .. }
            | EngineError::EmptyPrompt
            | EngineError::Isa(_) => true,
            EngineError::Store(error) => matches!(
                error,
                TierError::NotAStore { .. } | TierError::Version { .. } | TierError::Io { .. }
            ),
            EngineError::Kv(error) => matches!(
                error,
                KvError::KeepRefused { .. }
                    | KvError::PatternRefused { .. }
                    | KvError::ReadRefused { .. }
                    | KvError::WatchRefused { .. }
                    | KvError::NotObserved { .. }
            ),
            EngineError::Sampling(_) | EngineError::Pass(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_request_error_is_one_whatever_it_is_wrapped_in() {
        let missing = || WeightsError::NotFound {
            path: "model.gguf".to_owned(),
        };
        assert!(EngineError::from(missing()).is_request_error());
        assert!(EngineError::from(ModelError::from(missing())).is_request_error());
        let text = EngineError::Text {
            file: "model.gguf".to_owned(),
            source: Box::new(missing().into()),
        };
        assert!(text.is_request_error());
        let full = WeightsError::Io {
            path: "model.gguf".to_owned(),
            action: "map",
            source: io::ErrorKind::OutOfMemory.into(),
        };
        assert!(!EngineError::from(ModelError::from(full)).is_request_error());
        assert!(!EngineError::from(ModelError::Kv(KvError::EmptyBatch)).is_request_error());
    }
}
