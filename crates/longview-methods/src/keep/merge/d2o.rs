//! Paper: <https://arxiv.org/abs/2406.13035> (Wan et al., D2O: Dynamic Discriminative Operations for
//! Efficient Long-Context Inference of Large Language Models, 2024).
//!
//! An evicted pair is merged into the kept one whose key is most like its own, if it is at least as
//! like as evicted pairs are on average; the others are gone for good. Shares are exponentials of
//! the cosines, the kept pair counting as one of 1, so that they add up to 1: the paper's form, as
//! recalled, where the published code shrinks norms. The threshold of a head is the mean of its first
//! compaction, and then moves by a part of the way to the mean of each one, before that is compared
//! with it: the published code by half of it.

use longview_kv::keep::{Merge, Pairs};

use super::{KEYS, Keys, blend, nearest};
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
    fn merge(
        &self,
        gone: &Pairs,
        kept: &mut Pairs,
        turn: &dyn Fn(isize, &mut [f32]),
        memory: &mut Option<f32>,
    ) {
        let near = nearest(gone, kept);
        if near.is_empty() {
            return;
        }
        let mean = near.iter().map(|to| to.cosine).sum::<f32>() / near.len() as f32;
        let before = memory.unwrap_or(mean);
        let threshold = self.memory * before + (1.0 - self.memory) * mean;
        *memory = Some(threshold);
        // What is alike to the last bit is merged, however the mean was rounded.
        let to: Vec<_> = near
            .into_iter()
            .map(|to| (to.cosine >= threshold - 1e-6).then_some(to))
            .collect();
        blend(gone, kept, &to, self.keys, &shares, turn);
    }
}

fn shares(cosines: &[f32]) -> (f32, Vec<f32>) {
    let others: Vec<f32> = cosines.iter().map(|cosine| cosine.exp()).collect();
    let sum = others.iter().sum::<f32>() + 1f32.exp();
    (1f32.exp() / sum, others.iter().map(|x| x / sum).collect())
}

#[cfg(test)]
mod tests {
    use super::super::tests::pairs;
    use super::*;

    #[test]
    fn shares_add_up_and_a_copy_changes_nothing() {
        let (own, others) = shares(&[1.0, 0.2, -0.5]);
        assert!((own + others.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert_eq!(shares(&[1.0]), (0.5, vec![0.5]));

        let merge = D2o {
            memory: 0.5,
            keys: Keys::Cached,
        };
        let mut kept = pairs(&[(0, [1.0, 0.0]), (1, [0.0, 1.0])]);
        let before = kept.clone();
        let copy = pairs(&[(2, [1.0, 0.0])]);
        merge.merge(&copy, &mut kept, &|_, _| {}, &mut None);
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
            merge.merge(&pairs(&[(1, gone)]), &mut kept, &|_, _| {}, &mut memory);
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
        merge.merge(
            &pairs(&[(1, [3.0, 0.0]), (2, [0.0, 9.0])]),
            &mut kept,
            &|_, _| {},
            &mut None,
        );
        assert_eq!(kept.key(0), [2.0, 0.0]);
        assert_eq!(kept.value(0), [20.0, 0.0]);
    }
}
