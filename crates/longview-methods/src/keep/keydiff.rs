//! Paper: <https://arxiv.org/abs/2504.15364> (Park et al., KeyDiff: Key Similarity-Based KV Cache
//! Eviction for Long-Context LLM Inference in Resource-Constrained Environments, 2025).
//!
//! Keys that point elsewhere than the mean key are distinctive, and stay. The anchor is the mean of
//! all unit keys held, so ranking by the cosine to it is ranking by the mean cosine to all keys. Needs
//! keys only, as they are cached, and so holds its budget while a text of any length is read. The
//! last tokens are protected here, for chat and code; `recent=0` is the paper.

use longview_kv::KvError;
use longview_kv::keep::{LayerView, Question, Score, Scores};

use super::{keep, parameter};
use crate::method::{Build, Method, Stage};

/// `keydiff(budget, sinks, recent, alloc, merge, block, decode, chunks)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "keydiff",
    exact: false,
    paper: Some("https://arxiv.org/abs/2504.15364"),
    claim: Some("at most 0.04 % below the whole cache on LongBench with a budget of 8,192 tokens"),
    doc: "the pairs whose keys are least like the mean key stay",
    parameters: &[
        parameter::budget("2048"),
        parameter::sinks("0"),
        parameter::recent("32"),
        parameter::alloc("uniform"),
        parameter::MERGE,
        parameter::block("128"),
        parameter::decode("64"),
        parameter::CHUNKS,
    ],
    build: Build::Keep(|arguments| keep(arguments, Question::Unseen, KeyDiff)),
};

struct KeyDiff;

/// Below this a key has no direction.
const LEAST_NORM: f32 = 1e-12;

/// Keys of a page side by side.
const LANES: usize = 64;

impl Score for KeyDiff {
    fn score(&self, layer: &LayerView<'_>, scores: &mut Scores) -> Result<(), KvError> {
        let dim = layer.head_dim();
        for head in 0..layer.heads() {
            let mut inverse = vec![0f32; layer.pairs(head)];
            // Sums of unit keys lane by lane, `[head_dim][64]`: no sum runs across a register.
            let mut sums = vec![0f32; dim * LANES];
            layer.keys(head, &mut |page| {
                let mut squares = [0f32; LANES];
                page.squares(&mut squares);
                // Slots that hold no pair count for nothing.
                let mut units = [0f32; LANES];
                for slot in page.slots.clone() {
                    units[slot] = 1.0 / squares[slot].sqrt().max(LEAST_NORM);
                }
                let pairs = page.first..page.first + page.slots.len();
                inverse[pairs].copy_from_slice(&units[page.slots.clone()]);
                page.add_weighted(&units, &mut sums);
            });
            let lanes = sums.chunks_exact(LANES);
            let mut anchor: Vec<f32> = lanes.map(|lanes| lanes.iter().sum()).collect();
            let length = anchor.iter().map(|x| x * x).sum::<f32>().sqrt();
            let scale = 1.0 / length.max(LEAST_NORM);
            anchor.iter_mut().for_each(|x| *x *= scale);
            let mut products = Vec::new();
            layer.products(head, &anchor, &mut products);
            let pairs = products.iter().zip(&inverse);
            for (score, (product, inverse)) in scores.head_mut(head).iter_mut().zip(pairs) {
                *score = -product * inverse;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Toy;

    #[test]
    fn the_odd_key_out_stays() {
        let mut toy = Toy::new(1, 1, 2);
        toy.keep("keydiff(budget=2, recent=0, block=never)", 4);
        // Of the three alike, the first.
        toy.read_keys(&[[1.0, 0.0], [3.0, 0.0], [0.5, 0.0], [0.0, 1.0]]);
        toy.compress();
        assert_eq!(toy.positions(0, 0), [0, 3]);
    }

    #[test]
    fn the_anchor_ranks_like_all_pairs_together() {
        let mut toy = Toy::new(1, 1, 8);
        toy.keep("keydiff(budget=30, recent=0, block=never)", 100);
        toy.read(100);
        let keys = toy.keys(0);
        let norm = |key: &[f32]| key.iter().map(|x| x * x).sum::<f32>().sqrt();
        let cosine = |a: &[f32], b: &[f32]| {
            a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>() / norm(a) / norm(b)
        };
        let mut ranked: Vec<(f32, u32)> = (0..keys.len())
            .map(|i| (keys.iter().map(|key| cosine(&keys[i], key)).sum(), i as u32))
            .collect();
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut expected: Vec<u32> = ranked[..30].iter().map(|&(_, pair)| pair).collect();
        expected.sort_unstable();
        toy.compress();
        assert_eq!(toy.positions(0, 0), expected);
    }

    #[test]
    fn a_long_text_never_takes_more_than_budget_and_block() {
        let mut toy = Toy::new(2, 2, 8);
        toy.keep("keydiff(budget=100, block=64)", 1000);
        for _ in 0..20 {
            toy.read(50);
            assert!(toy.positions(0, 0).len() <= 100 + 64 + 50);
            if toy.context.keep_is_due() {
                toy.compress();
            }
        }
        assert!(toy.positions(1, 1).len() <= 164);
    }
}
