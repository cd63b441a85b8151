//! Paper: <https://arxiv.org/abs/2309.17453> (Xiao et al., Efficient Streaming Language Models with
//! Attention Sinks, 2023).
//!
//! The first few tokens, which attention leans on whatever they say, and a window of the last ones
//! stay; everything between is gone. Pairs leave block by block, so early queries of a block see a
//! little more than the window. The paper numbers positions by cache slot: `positions=slots`, with which
//! a text may be longer than what the model was made for. Only the first tokens ever move then, by as
//! much as left behind them, and in a rounded form of the store each move rounds their keys once more.
//! Otherwise keys keep the rotation of their true positions, and distances to the first tokens grow.

use longview_kv::KvError;
use longview_kv::keep::{LayerView, Question, Score, Scores};

use super::{keep, parameter};
use crate::method::{Build, Method, Stage};

/// `streaming-llm(budget, sinks, positions, block, decode)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "streaming-llm",
    exact: false,
    paper: Some("https://arxiv.org/abs/2309.17453"),
    claim: Some(
        "flat perplexity over 4 million tokens, up to 22.2 times as fast as a \
             window that is read anew",
    ),
    doc: "the first tokens and a window of the last ones stay; what is between is forgotten",
    parameters: &[
        parameter::budget("1024"),
        parameter::sinks("4"),
        parameter::positions("text"),
        parameter::block("256"),
        parameter::decode("64"),
    ],
    build: Build::Keep(|arguments| keep(arguments, Question::Unseen, StreamingLlm)),
};

struct StreamingLlm;

impl Score for StreamingLlm {
    /// The later, the better; sinks are protected.
    fn score(&self, layer: &LayerView<'_>, scores: &mut Scores) -> Result<(), KvError> {
        for head in 0..layer.heads() {
            for (pair, score) in scores.head_mut(head).iter_mut().enumerate() {
                // Counted from the end: the latest are told apart in a text of any length.
                *score = -((layer.tokens() - layer.position(head, pair)) as f32);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Toy;

    #[test]
    fn sinks_and_the_window_stay_step_by_step() {
        // One sink and a window of two, a token at a time.
        let mut toy = Toy::new(1, 2, 4);
        let keep = toy.keep("streaming-llm(budget=3, sinks=1, block=1, decode=1)", 5);
        let mut sets = Vec::new();
        for _ in 0..5 {
            toy.read(1);
            toy.compress();
            sets.push(toy.positions(0, 0));
        }
        assert_eq!(
            sets,
            [
                vec![0],
                vec![0, 1],
                vec![0, 1, 2],
                vec![0, 2, 3],
                vec![0, 3, 4]
            ]
        );
        assert_eq!(
            keep.text,
            "streaming-llm(budget=3, sinks=1, positions=text, block=1, decode=1)"
        );
    }

    #[test]
    fn by_slots_the_first_tokens_follow_the_window() {
        let kept = |positions: &str| {
            let mut toy = Toy::turning(1, 1, 2);
            toy.keep(
                &format!("streaming-llm(budget=3, sinks=1, positions={positions}, block=1)"),
                50,
            );
            for _ in 0..40 {
                toy.read_keys(&[[1.0, 0.0]]);
                toy.compress();
            }
            assert_eq!(toy.positions(0, 0), [0, 38, 39]);
            toy.keys(0)
        };
        // Keys are stored as they are given here, rotated or not. The first was given at place 0 and
        // stands at place 37 now, 37 turns on.
        let turned = Toy::turned(37, [1.0, 0.0]);
        assert_eq!(kept("text"), [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]);
        let slots = kept("slots");
        assert_eq!(slots[1..], [[1.0, 0.0], [1.0, 0.0]]);
        for (got, wanted) in slots[0].iter().zip(turned) {
            assert!((got - wanted).abs() < 1e-4, "{slots:?} {turned:?}");
        }
    }
}
