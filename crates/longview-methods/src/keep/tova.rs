//! Paper: <https://arxiv.org/abs/2401.06104> (Oren et al., Transformers are Multi-State RNNs, 2024).
//!
//! What the newest token attends to least is dropped, averaged over all heads of the layer, which
//! therefore keep the same tokens. The paper drops one token a step, `decode=1`; a long prompt is
//! reduced once by its last token alone, which is noisy. Nothing is protected in the paper, not even
//! the newest token. With `block` the budget holds while a prompt is read, reduced by the last token of
//! each block: another result than the paper's.

use longview_kv::KvError;
use longview_kv::keep::{LayerView, Needs, Question, Score, Scores};

use super::{keep, parameter};
use crate::method::{Build, Method, Stage};

/// `tova(budget, sinks, recent, merge, block, decode, chunks)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "tova",
    exact: false,
    paper: Some("https://arxiv.org/abs/2401.06104"),
    claim: Some(
        "nearly the quality of the whole cache with an eighth of it, up to 4.8 \
             times the throughput",
    ),
    doc: "the tokens that the newest one attends to stay, the same for all heads of a layer",
    parameters: &[
        parameter::budget("20%"),
        parameter::sinks("0"),
        parameter::recent("0"),
        parameter::MERGE,
        parameter::block("never"),
        parameter::decode("16"),
        parameter::CHUNKS,
    ],
    build: Build::Keep(|arguments| keep(arguments, Question::Seen, Tova)),
};

struct Tova;

impl Score for Tova {
    fn needs(&self) -> Needs {
        Needs {
            last_queries: 1,
            ..Needs::default()
        }
    }

    fn score(&self, layer: &LayerView<'_>, scores: &mut Scores) -> Result<(), KvError> {
        let mut sums = vec![0.0; layer.pairs(0)];
        for head in 0..layer.heads() {
            let asked = layer.last_queries(head, 1)?;
            layer.attention(head, &asked.queries, &asked.positions, &mut |_, weights| {
                layer.add(&mut sums, weights);
            });
        }
        let heads = layer.shape().heads as f32;
        sums.iter_mut().for_each(|sum| *sum /= heads);
        for head in 0..layer.heads() {
            scores.head_mut(head).copy_from_slice(&sums);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Toy;

    #[test]
    fn what_all_heads_attend_to_together_stays() {
        // Logits of two heads, ln of (.6, .1, .3) and of (.2, .5, .3): means .4, .3, .3.
        let mut toy = Toy::new(1, 2, 2);
        toy.keep("tova(budget=2)", 3);
        let logits = [[0.6f32, 0.2], [0.1, 0.5], [0.3, 0.3]].map(|x| x.map(f32::ln));
        let keys: Vec<[f32; 4]> = logits.iter().map(|x| [x[0], 0.0, x[1], 0.0]).collect();
        toy.read_keys_and_queries(&keys, &[[1.0, 0.0, 1.0, 0.0]; 3]);
        toy.compress();
        // The rounding of .3 decides between the last two; token 0 stays in any case.
        assert_eq!(toy.positions(0, 0), toy.positions(0, 1));
        assert_eq!(toy.positions(0, 0)[0], 0);
        assert_eq!(toy.positions(0, 0).len(), 2);
    }
}
