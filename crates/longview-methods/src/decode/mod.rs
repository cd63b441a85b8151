//! The decode stage: samplers in order, and the choice at their end.

mod draw;
mod frequency;
mod greedy;
mod logit_bias;
mod min_p;
mod presence;
mod repetition;
mod sampling;
mod temperature;
mod top_k;
mod top_p;
mod typical;
mod window;

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;

use longview_engine::sampling::{Chain, Finish};

pub use sampling::Sampling;

use crate::arguments::Arguments;
use crate::error::MethodError;
use crate::method::{Build, Method, Stage};
use crate::registry;

/// The methods of this stage; the first is the default.
pub(crate) static METHODS: &[Method] = &[
    greedy::METHOD,
    draw::METHOD,
    logit_bias::METHOD,
    repetition::METHOD,
    presence::METHOD,
    frequency::METHOD,
    temperature::METHOD,
    top_k::METHOD,
    top_p::METHOD,
    min_p::METHOD,
    typical::METHOD,
];

/// A chain of decode methods as a person asked for it; it prints in canonical form.
///
/// A text without `greedy` or `draw` at its end gets `draw`.
#[derive(Clone, Debug)]
pub struct Decode {
    steps: Vec<(&'static Method, Arguments)>,
}

impl Decode {
    /// The most likely token at every step.
    pub fn greedy() -> Decode {
        "greedy"
            .parse()
            .expect("greedy is a method, as the tests of this module check")
    }

    /// Uses `seed` where a seed was left open, so that the canonical text names it.
    #[must_use]
    pub fn with_open_seed(mut self, seed: u64) -> Decode {
        for (_, arguments) in &mut self.steps {
            arguments.set_open_seeds(seed);
        }
        self
    }

    /// The largest token id that the methods name, if they name any.
    pub fn largest_token(&self) -> Option<u32> {
        let of_step = |(_, arguments): &(_, Arguments)| arguments.largest_token();
        self.steps.iter().filter_map(of_step).max()
    }

    /// A new chain, at the start of its random numbers.
    pub fn chain(&self) -> Chain {
        let mut samplers = Vec::new();
        let mut finish = Finish::Greedy;
        for (method, arguments) in &self.steps {
            match method.build {
                Build::Sampler(build) => samplers.push(build(arguments)),
                Build::Finish(build) => finish = build(arguments),
                Build::Nothing
                | Build::Store(_)
                | Build::Reuse(_)
                | Build::Prefill(_)
                | Build::Read(_)
                | Build::Keep(_)
                | Build::Prune(_)
                | Build::Allocate(_)
                | Build::Merge(_) => {}
            }
        }
        Chain::new(samplers, finish)
    }
}

impl FromStr for Decode {
    type Err = MethodError;

    fn from_str(text: &str) -> Result<Decode, MethodError> {
        let mut steps = registry::resolve(Stage::Decode, text)?;
        let ends = |(method, _): &(&Method, Arguments)| matches!(method.build, Build::Finish(_));
        match steps.iter().position(ends) {
            None => steps.extend(registry::resolve(Stage::Decode, draw::METHOD.name)?),
            Some(place) if place + 1 < steps.len() => {
                return Err(MethodError::AfterFinish {
                    finish: steps[place].0.name.to_owned(),
                    after: steps[place + 1].0.name.to_owned(),
                });
            }
            Some(_) => {}
        }
        Ok(Decode { steps })
    }
}

impl fmt::Display for Decode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (_, arguments)) in self.steps.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            arguments.fmt(f)?;
        }
        Ok(())
    }
}

/// A seed that nobody has seen before, from the operating system's randomness.
pub fn fresh_seed() -> u64 {
    // Short enough to be typed again.
    RandomState::new().hash_one("longview") >> 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_token_named_is_known() {
        let largest = |text: &str| text.parse::<Decode>().unwrap().largest_token();
        assert_eq!(largest("top-k(900), greedy"), None);
        assert_eq!(
            largest("logit-bias(7=1, 90=-inf), logit-bias(8=2)"),
            Some(90)
        );
    }

    #[test]
    fn a_chain_without_an_end_is_drawn_from() {
        let decode: Decode = "temperature(0.7), top-p(0.9)".parse().unwrap();
        assert_eq!(decode.to_string(), "temperature(t=0.7), top-p(p=0.9), draw");
        let decode = decode.with_open_seed(3);
        assert_eq!(
            decode.to_string(),
            "temperature(t=0.7), top-p(p=0.9), draw(seed=3)"
        );
        assert_eq!(
            decode.clone().with_open_seed(4).to_string(),
            decode.to_string()
        );
        assert_eq!(Decode::greedy().to_string(), "greedy");
    }

    #[test]
    fn methods_apply_in_the_order_given() {
        // A bias before top-k lets token 2 in, one after it comes too late.
        let logits = [3.0, 2.0, 1.0];
        let pick = |text: &str| {
            let decode: Decode = text.parse().unwrap();
            decode.chain().pick(&logits, &[]).unwrap().id
        };
        assert_eq!(pick("logit-bias(2=10), top-k(1), greedy"), 2);
        assert_eq!(pick("top-k(1), logit-bias(2=10), greedy"), 0);
    }

    #[test]
    fn nothing_may_follow_the_choice() {
        let message = "greedy, top-k(4)"
            .parse::<Decode>()
            .unwrap_err()
            .to_string();
        assert!(message.contains("greedy chooses the token"), "{message}");
        assert!(message.contains("move top-k before it"), "{message}");
        assert!("draw, draw".parse::<Decode>().is_err());
    }

    #[test]
    fn a_large_vocabulary_is_handled_by_every_method() {
        let logits: Vec<f32> = (0..131_072_u32)
            .map(|id| (id.wrapping_mul(2_654_435_761) >> 12) as f32 / 65_536.0)
            .collect();
        let text = "logit-bias(5=1), repetition, presence, frequency, temperature, top-k(1000), \
                    typical, top-p, min-p, draw(seed=1)";
        let mut chain = text.parse::<Decode>().unwrap().chain();
        let history: Vec<u32> = (0..1_000).collect();
        let first = chain.pick(&logits, &history).unwrap().id;
        let mut again = text.parse::<Decode>().unwrap().chain();
        assert_eq!(again.pick(&logits, &history).unwrap().id, first);
    }
}
