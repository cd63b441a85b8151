//! No paper: the floor of every comparison.
//!
//! Pairs stay by chance, each layer and KV head for itself. A pair's number follows from the seed and
//! from what it is, so whoever was spared once is spared again, and two runs keep the same.

use longview_kv::KvError;
use longview_kv::keep::{LayerView, Question, Score, Scores};

use super::{keep, parameter};
use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `random(budget, seed, sinks, recent, alloc, merge, block, decode, chunks)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "random",
    exact: false,
    paper: None,
    claim: None,
    doc: "pairs stay by chance: the floor of every comparison",
    parameters: &[
        parameter::budget("20%"),
        Parameter {
            name: "seed",
            default: "0",
            unit: "",
            doc: "another number keeps other pairs",
            domain: Domain::Whole,
        },
        parameter::sinks("4"),
        parameter::recent("32"),
        parameter::alloc("uniform"),
        parameter::MERGE,
        parameter::block("never"),
        parameter::decode("never"),
        parameter::CHUNKS,
    ],
    build: Build::Keep(|arguments| {
        let seed = arguments.count("seed") as u64;
        keep(arguments, Question::Unseen, Random { seed })
    }),
};

struct Random {
    seed: u64,
}

impl Score for Random {
    fn score(&self, layer: &LayerView<'_>, scores: &mut Scores) -> Result<(), KvError> {
        for head in 0..layer.heads() {
            let stream = mixed(self.seed ^ ((layer.layer() as u64) << 32 | head as u64));
            for (pair, score) in scores.head_mut(head).iter_mut().enumerate() {
                let number = mixed(stream ^ layer.position(head, pair) as u64);
                *score = (number >> 40) as f32;
            }
        }
        Ok(())
    }
}

/// A number that looks like chance (splitmix64).
fn mixed(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::super::testing::Toy;

    #[test]
    fn chance_is_the_same_in_every_run_and_differs_by_head_and_seed() {
        let kept = |text: &str, head| {
            let mut toy = Toy::new(1, 2, 4);
            toy.keep(text, 200);
            toy.read(200);
            toy.compress();
            toy.positions(0, head)
        };
        let first = kept("random(budget=50, seed=1)", 0);
        assert_eq!(first, kept("random(budget=50, seed=1)", 0));
        assert_ne!(first, kept("random(budget=50, seed=1)", 1));
        assert_ne!(first, kept("random(budget=50, seed=2)", 0));
        assert_eq!(first.len(), 50);
        assert_eq!((&first[..4], first[49]), (&[0, 1, 2, 3][..], 199));
    }
}
