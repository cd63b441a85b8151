//! From logits to the next token: the traits of the decode stage and what they work on.
//!
//! A [`Chain`] holds the [`Sampler`]s of one generation, applied in order to the [`Candidates`] of a
//! step, and the [`Finish`] that chooses among those left. The samplers themselves are methods and
//! live in `longview-methods`; only the trait is here, because the decode loop calls it.
//!
//! **Repeatable.** For equal logits, an equal chain and an equal seed give equal tokens on every
//! platform: the exponential and the random numbers are our own arithmetic ([`math`], [`Rng`]), and
//! ties are broken by token id.

mod candidates;
mod chain;
pub mod math;
mod order;
mod rng;

pub use candidates::{Candidate, Candidates};
pub use chain::{Chain, Choice, Finish, Sampler, logprobs, top_logprobs};
pub use rng::Rng;

/// A step from which no token can be chosen.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// A logit is NaN or +∞: the weights or the input are damaged.
    #[error(
        "the model gave {value} as the logit of token {id}: the weights are damaged or overflow; \
         check the model file, or compute with --numerics f32"
    )]
    NotFinite {
        /// Token id.
        id: u32,
        /// The logit, NaN or +∞.
        value: f32,
    },
    /// Every token is forbidden.
    #[error(
        "no token is left to choose from: the decode methods forbid all {vocabulary} of them; \
         loosen --logit-bias or --decode"
    )]
    NoCandidate {
        /// Tokens the model offered.
        vocabulary: usize,
    },
}
