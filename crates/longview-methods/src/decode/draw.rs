//! The draw: a token is chosen with its probability among those left.
//!
//! The generator is xoshiro256++ seeded through SplitMix64 and every sum is taken in one order, so a
//! seed gives the same text on every platform.

use longview_engine::sampling::{Finish, Rng};

use super::fresh_seed;
use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `draw(seed)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Decode,
    name: "draw",
    exact: true,
    paper: None,
    claim: None,
    doc: "chooses a token with its probability; ends a chain",
    parameters: &[Parameter {
        name: "seed",
        default: "",
        unit: "",
        doc: "the same seed gives the same text; a new one is chosen, and reported, without it",
        domain: Domain::Seed,
    }],
    build: Build::Finish(|arguments| {
        Finish::Draw(Rng::new(arguments.seed("seed").unwrap_or_else(fresh_seed)))
    }),
};

#[cfg(test)]
mod tests {
    use crate::decode::Decode;

    fn ids(text: &str) -> Vec<u32> {
        let decode: Decode = text.parse().unwrap();
        let mut chain = decode.chain();
        (0..64)
            .map(|_| chain.pick(&[0.0; 16], &[]).unwrap().id)
            .collect()
    }

    #[test]
    fn equal_seeds_draw_equal_tokens() {
        assert_eq!(ids("draw(seed=5)"), ids("draw(5)"));
        assert_ne!(ids("draw(seed=5)"), ids("draw(seed=6)"));
        assert_ne!(ids("draw"), ids("draw"));
    }
}
