//! Paper: <https://arxiv.org/abs/2506.11418> (Hu et al., Efficient Long-Context LLM Inference via KV
//! Cache Clustering, 2025). **Reconstructed**, as the method of this name.
//!
//! What goes is averaged into the kept pair near it whose key is most like its own, each counting as many
//! tokens as were averaged into it before: whatever the order, a pair is the mean of its tokens. The first
//! and the last tokens, which always stay, take nothing in; what has no other kept pair near it is gone. In
//! attention a pair counts as one, which is plain replacement; with `as=tokens` as many as it is the mean
//! of, by their logarithm on its score: exact where these are the same.

use std::ops::Range;

use longview_kv::keep::{Counting, Merge, Merging, Pairs};

use super::{KEYS, Keys, Nearest, blend, blend_bytes, norm};
use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `chelsea(near, keys, as)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "chelsea",
    exact: false,
    paper: Some("https://arxiv.org/abs/2506.11418"),
    claim: None,
    doc: "evicted pairs are averaged into the kept one near them that is most like them",
    parameters: &[
        Parameter {
            name: "near",
            default: "64",
            unit: "tokens",
            doc: "pairs further apart are not averaged",
            domain: Domain::Count,
        },
        KEYS,
        Parameter {
            name: "as",
            default: "one",
            unit: "",
            doc: "what attention counts a pair as that others were averaged into: one, or as many tokens \
                  as it is the mean of",
            domain: Domain::Word(&["one", "tokens"]),
        },
    ],
    build: Build::Merge(|arguments| {
        Box::new(Chelsea {
            near: arguments.count("near") as u32,
            keys: Keys::of(arguments),
            counting: match arguments.word("as") {
                "tokens" => Counting::Attention,
                _ => Counting::Merges,
            },
        })
    }),
};

struct Chelsea {
    near: u32,
    keys: Keys,
    counting: Counting,
}

impl Merge for Chelsea {
    fn counting(&self) -> Counting {
        self.counting
    }

    fn scratch(&self, gone: usize, kept: usize, head_dim: usize) -> usize {
        blend_bytes(gone, kept, head_dim) + size_of::<u32>() * kept
    }

    fn merge(&self, gone: &Pairs, kept: &mut Pairs, with: &mut Merging<'_>) {
        let to: Vec<Option<Nearest>> = (0..gone.len())
            .map(|pair| self.match_of(gone, pair, kept, &with.open))
            .collect();
        let before = kept.tokens.clone();
        let shares = |pair: usize, members: &[(usize, f32)]| {
            let of = |&(member, _): &(usize, f32)| gone.tokens[member] as f32;
            let all = before[pair] as f32 + members.iter().map(of).sum::<f32>();
            let others = members.iter().map(|member| of(member) / all).collect();
            (before[pair] as f32 / all, others)
        };
        blend(gone, kept, &to, self.keys, &shares, with.turn);
        for (pair, to) in to.iter().enumerate() {
            if let Some(to) = to {
                kept.tokens[to.kept] += gone.tokens[pair];
            }
        }
    }
}

impl Chelsea {
    fn match_of(
        &self,
        gone: &Pairs,
        pair: usize,
        kept: &Pairs,
        open: &Range<u32>,
    ) -> Option<Nearest> {
        let at = gone.positions[pair];
        let from = at.saturating_sub(self.near - 1).max(open.start);
        let to = at.saturating_add(self.near).min(open.end);
        let first = kept.positions.partition_point(|&other| other < from);
        let last = kept.positions.partition_point(|&other| other < to);
        let key = gone.key(pair);
        let of = |kept_pair: usize| {
            let other = kept.key(kept_pair);
            let product: f32 = key.iter().zip(other).map(|(x, y)| x * y).sum();
            Nearest {
                kept: kept_pair,
                cosine: product / (norm(key) * norm(other)).max(f32::MIN_POSITIVE),
            }
        };
        let better = |best: Option<Nearest>, next: Nearest| match best {
            Some(best) if best.cosine >= next.cosine => Some(best),
            _ => Some(next),
        };
        (first..last).map(of).fold(None, better)
    }
}

#[cfg(test)]
mod tests {
    use longview_kernels::Isa;

    use super::super::tests::{merged, pairs};
    use super::*;

    #[test]
    fn means_of_neighbours_alone() {
        let merge = Chelsea {
            near: 4,
            keys: Keys::Cached,
            counting: Counting::Merges,
        };
        let mut kept = pairs(&[(0, [1.0, 0.0]), (10, [0.0, 1.0])]);
        let gone = pairs(&[
            (1, [3.0, 0.0]),
            (2, [5.0, 0.0]),
            (6, [9.0, 9.0]),
            (9, [0.0, 2.0]),
        ]);
        merged(&merge, &gone, &mut kept, &mut None);
        assert_eq!(
            (kept.key(0), kept.key(1)),
            (&[3.0, 0.0][..], &[0.0, 1.5][..])
        );
        assert_eq!(kept.value(1), [0.0, 15.0]);
        assert_eq!(kept.tokens, [3, 2]);
    }

    #[test]
    fn a_pair_is_the_mean_of_its_tokens_whatever_the_order_and_protected_ones_take_nothing() {
        let merge = Chelsea {
            near: 64,
            keys: Keys::Cached,
            counting: Counting::Merges,
        };
        let mut kept = pairs(&[(0, [1.0, 0.0]), (3, [2.0, 0.0]), (9, [4.0, 0.0])]);
        let with = |gone: &[(u32, [f32; 2])], kept: &mut Pairs| {
            let mut memory = None;
            let mut with = Merging {
                isa: Isa::Scalar,
                open: 1..9,
                turn: &|_, _| {},
                memory: &mut memory,
            };
            merge.merge(&pairs(gone), kept, &mut with);
        };
        with(&[(1, [5.0, 0.0]), (2, [8.0, 0.0])], &mut kept);
        with(&[(4, [1.0, 0.0])], &mut kept);
        assert_eq!(kept.keys, [1.0, 0.0, 4.0, 0.0, 4.0, 0.0]);
        assert_eq!(kept.tokens, [1, 4, 1]);
    }
}
