//! `longview eval`: how good a model or a method is.

mod leaderboard;
mod tasks;
mod text;

use longview_eval::EvalError;

use crate::args::{EvalArgs, EvalTask, Format};
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

/// What ended an evaluation early.
fn failed(error: EvalError) -> Failure {
    match error {
        EvalError::Stopped => Failure::Stopped,
        EvalError::Engine(error) => (*error).into(),
        error if error.is_request_error() => Failure::wrong(error),
        error => Failure::failed(error),
    }
}
