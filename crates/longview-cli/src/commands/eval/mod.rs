//! `longview eval`: how good a model or a method is.

mod leaderboard;
mod tasks;
mod text;

use std::path::Path;

use longview_eval::{EvalError, Wording};

use super::read_text;
use crate::args::{EngineArgs, EvalArgs, EvalTask, Format};
use crate::failure::Failure;

/// Runs one evaluation.
pub(crate) fn run(args: &EvalArgs, format: Format) -> Result<(), Failure> {
    match &args.task {
        Some(EvalTask::Perplexity(args)) => text::perplexity_of(args, format),
        Some(EvalTask::Kld { text, reference }) => {
            text::divergence_of(text, reference.as_deref(), format)
        }
        Some(EvalTask::Leaderboard(args)) => leaderboard::run(args, format),
        None => tasks::run(&args.tasks, format),
    }
}

/// The wording called `name`, or the one that suits the model.
pub(super) fn wording(name: Option<&Path>, engine: &EngineArgs) -> Result<Wording, Failure> {
    let Some(name) = name else {
        return Ok(match engine.model.model {
            None => Wording::needle(),
            Some(_) => Wording::general(),
        });
    };
    match name.to_str() {
        Some("general") => Ok(Wording::general()),
        Some("needle") => Ok(Wording::needle()),
        _ => {
            let shown = name.display().to_string();
            Wording::from_json(&shown, &read_text(name)?).map_err(failed)
        }
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
