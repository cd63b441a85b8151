//! What a method costs on a given model: tasks with known answers, perplexity, divergence from the
//! dense path, bytes and seconds.
//!
//! [`Evaluation`] runs a [`Plan`]: tasks from a seed, made for lengths in tokens, asked under every
//! [`Setup`] beside the dense path. Outcomes go into a [`Record`], which a later run goes on from;
//! [`Evaluation::rows`] makes the rows of a report of them. [`perplexity`] and [`divergence`] walk a text in
//! windows that begin anew. [`calibrate()`] finds the heads of a model that retrieve.

mod calibrate;
mod divergence;
mod draw;
mod error;
mod export;
mod haystack;
mod leaderboard;
mod outcome;
mod perplexity;
mod prompt;
mod record;
pub mod report;
mod run;
mod score;
mod setup;
mod share;
mod task;
mod windows;
mod wording;

pub use calibrate::{Calibration, calibrate};
pub use divergence::{Divergence, divergence};
pub use error::EvalError;
pub use export::{ExportedQuestion, ExportedSample};
pub use haystack::Haystack;
pub use leaderboard::{Board, Entry, Leaderboard, Standing, leaderboard_page, remarks_of};
pub use outcome::{Case, Measure, Outcome, Row, Sight};
pub use perplexity::{Perplexity, perplexity};
pub use prompt::{Prompt, Prompter};
pub use record::{Identity, Record};
pub use run::{Evaluation, Foretold, LeftOut, Material, Plan, Refusal, RunProgress, Subject};
pub use score::{Mean, Scorer};
pub use setup::Setup;
pub use share::Share;
pub use task::{Making, Question, Questions, Sample, Task, Turn};
pub use wording::{ListWording, NeedleWording, PassagesWording, VariablesWording, Wording};

/// How far a walk has come: tokens of a text, or texts and questions about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is done.
    pub done: usize,
    /// What there is to do.
    pub total: usize,
}
