//! What an approximation costs on a given model: perplexity and divergence from a reference.
//!
//! Both walk a text in windows that begin anew, as is usual for perplexity: every window is a
//! fresh context, and each of its tokens but the first is predicted from those before it.

mod divergence;
mod perplexity;
mod windows;

pub use divergence::{Divergence, divergence};
pub use perplexity::{Perplexity, perplexity};
pub use windows::EvalError;

/// How far an evaluation has come, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Tokens scored.
    pub done: usize,
    /// Tokens to score.
    pub total: usize,
}
