//! Paper: <https://arxiv.org/abs/2406.11430> (Devoto et al., A Simple and Effective L2 Norm-Based
//! Strategy for KV Cache Compression, 2024).
//!
//! A key of small norm tends to be given much attention, so the pairs with the smallest keys stay.
//! Needs nothing but the keys; here a floor that better methods must beat.

use longview_kv::KvError;
use longview_kv::keep::{LayerView, Question, Score, Scores};

use super::{keep, parameter};
use crate::method::{Build, Method, Stage};

/// `knorm(budget, sinks, recent, alloc, merge, block, decode, chunks)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "knorm",
    exact: false,
    paper: Some("https://arxiv.org/abs/2406.11430"),
    claim: None,
    doc: "the pairs with the smallest keys stay",
    parameters: &[
        parameter::budget("20%"),
        parameter::sinks("4"),
        parameter::recent("32"),
        parameter::alloc("uniform"),
        parameter::MERGE,
        parameter::block("never"),
        parameter::decode("never"),
        parameter::CHUNKS,
    ],
    build: Build::Keep(|arguments| keep(arguments, Question::Unseen, Knorm)),
};

struct Knorm;

impl Score for Knorm {
    fn score(&self, layer: &LayerView<'_>, scores: &mut Scores) -> Result<(), KvError> {
        for head in 0..layer.heads() {
            let scores = scores.head_mut(head);
            let mut squares = [0f32; 64];
            layer.keys(head, &mut |page| {
                page.squares(&mut squares);
                let to = &mut scores[page.first..page.first + page.slots.len()];
                for (score, square) in to.iter_mut().zip(&squares[page.slots.clone()]) {
                    *score = -square.sqrt();
                }
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Toy;

    #[test]
    fn small_keys_stay() {
        let mut toy = Toy::new(1, 1, 2);
        toy.keep("knorm(budget=2, sinks=0, recent=0)", 4);
        // Norms 5, 1, 2, √2.
        toy.read_keys(&[[3.0, 4.0], [0.0, 1.0], [2.0, 0.0], [1.0, -1.0]]);
        toy.compress();
        assert_eq!(toy.positions(0, 0), [1, 3]);
    }

    #[test]
    fn a_score_that_is_no_number_is_refused_and_nothing_leaves() {
        let mut toy = Toy::new(1, 1, 2);
        toy.keep("knorm(budget=2, sinks=0, recent=0)", 3);
        toy.read_keys(&[[1.0, 0.0], [f32::NAN, 0.0], [0.0, 1.0]]);
        let message = toy.try_compress().unwrap_err().to_string();
        assert!(
            message.contains("token 1 in layer 0, KV head 0"),
            "{message}"
        );
        assert_eq!(toy.positions(0, 0), [0, 1, 2]);
    }
}
