//! Paper: <https://arxiv.org/abs/2309.17453> (Xiao et al., Efficient Streaming Language Models with
//! Attention Sinks, 2023).
//!
//! The first few tokens, which attention leans on whatever they say, and a window of the last ones
//! stay; everything between is gone. Pairs leave block by block, so early queries of a block see a
//! little more than the window. Keys keep the rotation of their true positions, so that distances to
//! the sinks grow: the paper numbers positions by cache slot instead, which matters only beyond the
//! length that a model was trained for.

use longview_kv::KvError;
use longview_kv::keep::{LayerView, Question, Score, Scores};

use super::{keep, parameter};
use crate::method::{Build, Method, Stage};

/// `streaming-llm(budget, sinks, block, decode)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "streaming-llm",
    exact: false,
    paper: Some("https://arxiv.org/abs/2309.17453"),
    doc: "the first tokens and a window of the last ones stay; what is between is forgotten",
    parameters: &[
        parameter::budget("1024"),
        parameter::sinks("4"),
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
                *score = layer.position(head, pair) as f32;
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
            "streaming-llm(budget=3, sinks=1, block=1, decode=1)"
        );
    }
}
