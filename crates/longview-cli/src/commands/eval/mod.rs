//! `longview eval`: how good a model or a method is.

mod leaderboard;
mod tasks;
mod text;

use longview_eval::{EvalError, Wording};

use super::read_text;
use crate::args::{EngineArgs, EvalArgs, EvalTask, Format};
use crate::failure::Failure;

/// Runs one evaluation.
pub(crate) fn run(args: &EvalArgs, format: Format) -> Result<(), Failure> {
    match &args.task {
        Some(EvalTask::Perplexity(args)) => text::perplexity_of(args, format),
        Some(EvalTask::Kld { text, reference }) => {
            text::divergence_of(text, reference.as_ref(), format)
        }
        Some(EvalTask::Leaderboard(args)) => leaderboard::run(args, format),
        None => tasks::run(&args.tasks, format),
    }
}

/// The wording called `name`, or the one that suits the model.
pub(super) fn wording(name: Option<&str>, engine: &EngineArgs) -> Result<Wording, Failure> {
    match name {
        None if engine.model.model.is_none() => Ok(Wording::needle()),
        None | Some("general") => Ok(Wording::general()),
        Some("needle") => Ok(Wording::needle()),
        Some(file) => Wording::from_json(file, &read_text(file)?).map_err(failed),
    }
}

/// What ended an evaluation early.
pub(super) fn failed(error: EvalError) -> Failure {
    match error {
        EvalError::Stopped => Failure::Stopped,
        EvalError::Engine(error) => (*error).into(),
        error if error.is_request_error() => Failure::wrong(error),
        error => Failure::failed(error),
    }
}
