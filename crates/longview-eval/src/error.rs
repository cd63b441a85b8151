//! What can stand in the way of an evaluation.

use longview_engine::EngineError;
use longview_methods::MethodError;
use longview_text::TextError;

/// An evaluation that could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The engine failed.
    #[error(transparent)]
    Engine(Box<EngineError>),
    /// A prompt cannot be made of the model's template, or its text not be turned into tokens.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A method text is wrong.
    #[error("--methods {text:?}: {source}")]
    Method {
        /// The text of the setup.
        text: String,
        /// What is wrong with it.
        source: Box<MethodError>,
    },
    /// A setup that cannot be understood.
    #[error("--methods {text:?}: {what}")]
    Setup {
        /// The text of the setup.
        text: String,
        /// What is wrong with it.
        what: String,
    },
    /// No task has this name.
    #[error("there is no task {name:?}{hint}; known: {known}")]
    UnknownTask {
        /// The name.
        name: String,
        /// The nearest known name as a clause, or nothing.
        hint: String,
        /// All known names.
        known: String,
    },
    /// A length that the model cannot read.
    #[error(
        "--lengths {length}: the model reads at most {limit} tokens, the answer included; give a \
         shorter length or a model with a longer context"
    )]
    TooLong {
        /// Tokens asked for, with room for the answer.
        length: usize,
        /// The model's limit.
        limit: usize,
    },
    /// A length that a task cannot be made for.
    #[error(
        "--lengths {length}: {task} needs at least {least} tokens in this wording; give a longer length"
    )]
    TooShortForTask {
        /// The task.
        task: String,
        /// Tokens asked for.
        length: usize,
        /// Tokens of its shortest sample.
        least: usize,
    },
    /// A length that a text is too short for.
    #[error(
        "--lengths {length}: the text of {task} has {tokens} tokens; give a longer one with --text"
    )]
    TextTooShort {
        /// The task.
        task: String,
        /// Tokens asked for.
        length: usize,
        /// Tokens of the text.
        tokens: usize,
    },
    /// A task whose samples are a text and nothing else.
    #[error("--export {task}: it goes on with a text and asks nothing; name tasks with questions")]
    NotExported {
        /// The task.
        task: String,
    },
    /// A setup that the engine refuses before anything is computed.
    #[error("--methods {setup}: not with samples of {length} tokens: {why}")]
    Unusable {
        /// The setup, without what is usual.
        setup: String,
        /// Tokens of a sample.
        length: usize,
        /// What stands in the way.
        why: String,
    },
    /// A wording that cannot be used.
    #[error("{file}: {what}")]
    Wording {
        /// The file.
        file: String,
        /// What is wrong with it.
        what: String,
    },
    /// Questions about passages that cannot be used.
    #[error("questions about passages: {what}")]
    Questions {
        /// What is wrong with them.
        what: String,
    },
    /// A file of finished samples that belongs to another evaluation, or is none.
    #[error("{path}: {what}")]
    Record {
        /// The file.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// A report or record could not be read or written.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// The file or folder.
        path: String,
        /// What was to be done with it.
        action: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Too little text.
    #[error("the text has {tokens} tokens; at least 2 are needed to predict one from another")]
    TooShort {
        /// Tokens in the text.
        tokens: usize,
    },
    /// A window that holds no prediction.
    #[error("a window of {window} tokens predicts nothing; use at least 2")]
    WindowTooShort {
        /// Tokens asked for.
        window: usize,
    },
    /// Two engines that do not speak the same tokens.
    #[error(
        "the two models have vocabularies of {left} and {right} tokens; divergence is defined \
         between models of one vocabulary"
    )]
    Vocabularies {
        /// Tokens of the model measured.
        left: usize,
        /// Tokens of the reference.
        right: usize,
    },
    /// The engine refuses a setup.
    #[error("{why}")]
    Refused {
        /// What stands in the way.
        why: String,
    },
    /// The caller stopped.
    #[error("stopped before the end")]
    Stopped,
}

impl EvalError {
    /// Whether the request was wrong, rather than that doing it failed.
    pub fn is_request_error(&self) -> bool {
        match self {
            EvalError::Engine(error) => error.is_request_error(),
            EvalError::Text(error) => error.is_request_error(),
            EvalError::Io { .. } | EvalError::Stopped => false,
            _ => true,
        }
    }

    /// Whether another length would do.
    pub(crate) fn is_of_length(&self) -> bool {
        matches!(
            self,
            EvalError::TooShortForTask { .. }
                | EvalError::TextTooShort { .. }
                | EvalError::TooLong { .. }
        )
    }
}

impl From<EngineError> for EvalError {
    fn from(error: EngineError) -> EvalError {
        EvalError::Engine(Box::new(error))
    }
}
