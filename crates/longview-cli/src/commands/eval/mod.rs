//! `longview eval`: how good a model or a method is.

mod leaderboard;
mod tasks;
mod text;

use std::path::Path;

use longview::Engine;
use longview_eval::{EvalError, Wording};

use super::read_text;
use crate::args::{EvalArgs, EvalTask, Format};
use crate::failure::Failure;
use crate::output::note;

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

/// The wording called `name`; none where the model is to say which.
pub(super) fn wording(name: Option<&Path>) -> Result<Option<Wording>, Failure> {
    let Some(name) = name else {
        return Ok(None);
    };
    let wording = match name.to_str() {
        Some("general") => Wording::general(),
        Some("needle") => Wording::needle(),
        _ => {
            let shown = name.display().to_string();
            Wording::from_json(&shown, &read_text(name)?).map_err(failed)?
        }
    };
    Ok(Some(wording))
}

/// `given`, or the wording that suits `engine`'s model, whatever that was called; says which it is.
pub(super) fn wording_for(given: Option<Wording>, engine: &Engine) -> Wording {
    let chosen = match given {
        Some(_) => "",
        None => ", by the model (--wording gives another)",
    };
    let wording = given.unwrap_or_else(|| Wording::suiting(engine.model().fingerprint()));
    note(format!("wording: {}{chosen}", wording.name));
    wording
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
