//! Paper: <https://arxiv.org/abs/2406.13035> (Wan et al., D2O: Dynamic Discriminative Operations for
//! Efficient Long-Context Inference of Large Language Models, 2024).
//!
//! An evicted pair is merged into the kept one whose key is most like its own, if it is at least as
//! like as evicted pairs are on average; the others are gone for good. Shares are exponentials of
//! the cosines, the kept pair counting as one of 1, so that they add up to 1: the paper's form, as
//! recalled, where the published code shrinks norms. The threshold of a head is the mean of its first
//! compaction, and then moves by a part of the way to the mean of each one, before that is compared
//! with it: the published code by half of it. All that stays may take others in. The paper merges under
//! sums of attention with the first 4 tokens kept in any case: `h2o(sinks=4, merge=d2o)`.

use longview_kv::keep::{Merge, Merging, Pairs};

use super::{KEYS, Keys, blend, blend_bytes, nearest, nearest_bytes};
use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `d2o(memory, keys)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "d2o",
    exact: false,
    paper: Some("https://arxiv.org/abs/2406.13035"),
    claim: Some("more than 3 times the throughput, better than h2o at the same budget"),
    doc: "evicted pairs that are like a kept one are merged into it, by exponential shares",
    parameters: &[
        Parameter {
            name: "memory",
            default: "0.5",
            unit: "share",
            doc: "part of the threshold that is carried over from one compaction to the next",
            domain: Domain::Share,
        },
        KEYS,
    ],
    build: Build::Merge(|arguments| {
        Box::new(D2o {
            memory: arguments.number("memory") as f32,
            keys: Keys::of(arguments),
        })
    }),
};

struct D2o {
    memory: f32,
    keys: Keys,
}

impl Merge for D2o {
    fn scratch(&self, gone: usize, kept: usize, head_dim: usize) -> usize {
        nearest_bytes(kept, head_dim) + blend_bytes(gone, kept, head_dim)
    }

    fn merge(&self, gone: &Pairs, kept: &mut Pairs, with: &mut Merging<'_>) {
        let near = nearest(with.isa, gone, kept);
        if near.is_empty() {
            return;
        }
        let mean = near.iter().map(|to| to.cosine).sum::<f32>() / near.len() as f32;
        let before = with.memory.unwrap_or(mean);
        let threshold = self.memory * before + (1.0 - self.memory) * mean;
        *with.memory = Some(threshold);
        // What is alike to the last bit is merged, however the mean was rounded.
        let to: Vec<_> = near
            .into_iter()
            .map(|to| (to.cosine >= threshold - 1e-6).then_some(to))
            .collect();
        blend(gone, kept, &to, self.keys, &shares, with.turn);
    }
}

fn shares(_kept: usize, members: &[(usize, f32)]) -> (f32, Vec<f32>) {
    let others: Vec<f32> = members.iter().map(|(_, cosine)| cosine.exp()).collect();
    let sum = others.iter().sum::<f32>() + 1f32.exp();
    (1f32.exp() / sum, others.iter().map(|x| x / sum).collect())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{merged, pairs};
    use super::*;

    #[test]
    fn shares_add_up_and_a_copy_changes_nothing() {
        let (own, others) = shares(0, &[(1, 1.0), (2, 0.2), (3, -0.5)]);
        assert!((own + others.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert_eq!(shares(0, &[(1, 1.0)]), (0.5, vec![0.5]));

        let merge = D2o {
            memory: 0.5,
            keys: Keys::Cached,
        };
        let mut kept = pairs(&[(0, [1.0, 0.0]), (1, [0.0, 1.0])]);
        let before = kept.clone();
        let copy = pairs(&[(2, [1.0, 0.0])]);
        merged(&merge, &copy, &mut kept, &mut None);
        assert_eq!(kept, before);
    }

    #[test]
    fn the_threshold_moves_half_of_the_way() {
        let merge = D2o {
            memory: 0.5,
            keys: Keys::Untouched,
        };
        let mut memory = None;
        let mut compact = |gone: [f32; 2]| {
            let mut kept = pairs(&[(0, [1.0, 0.0])]);
            merged(&merge, &pairs(&[(1, gone)]), &mut kept, &mut memory);
            (memory.unwrap(), kept.value(0) != [10.0, 0.0])
        };
        // Cosines 0.8, 0.4 and 0.8: thresholds 0.8, 0.6 and 0.7.
        let near = |(threshold, merged): (f32, bool), wanted: f32| {
            assert!((threshold - wanted).abs() < 1e-6, "{threshold} {wanted}");
            merged
        };
        assert!(near(compact([0.8, 0.6]), 0.8));
        assert!(!near(compact([0.4, 0.84f32.sqrt()]), 0.6));
        assert!(near(compact([0.8, 0.6]), 0.7));
    }

    #[test]
    fn what_is_less_alike_than_the_mean_is_gone() {
        let merge = D2o {
            memory: 0.5,
            keys: Keys::Cached,
        };
        let mut kept = pairs(&[(0, [1.0, 0.0])]);
        // Cosines 1 and 0: the second is below their mean.
        let gone = pairs(&[(1, [3.0, 0.0]), (2, [0.0, 9.0])]);
        merged(&merge, &gone, &mut kept, &mut None);
        assert_eq!(kept.key(0), [2.0, 0.0]);
        assert_eq!(kept.value(0), [20.0, 0.0]);
    }
}
