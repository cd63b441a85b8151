//! Paper: <https://arxiv.org/abs/2506.11418> (Hu et al., Efficient Long-Context LLM Inference via KV
//! Cache Clustering, 2025). **Reconstructed**, as the method of this name.
//!
//! What goes is averaged into the kept pair near it whose key is most like its own, all counting alike;
//! what has no kept pair near it is gone. A cluster counts as one pair in attention, the paper's plain
//! replacement.

use longview_kv::keep::{Merge, Pairs};

use super::{KEYS, Keys, Nearest, blend, norm};
use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `chelsea(near, keys)`.
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
    ],
    build: Build::Merge(|arguments| {
        Box::new(Chelsea {
            near: arguments.count("near") as u32,
            keys: Keys::of(arguments),
        })
    }),
};

struct Chelsea {
    near: u32,
    keys: Keys,
}

impl Merge for Chelsea {
    fn merge(
        &self,
        gone: &Pairs,
        kept: &mut Pairs,
        turn: &dyn Fn(isize, &mut [f32]),
        _memory: &mut Option<f32>,
    ) {
        let to: Vec<Option<Nearest>> = (0..gone.len())
            .map(|pair| self.match_of(gone, pair, kept))
            .collect();
        let shares = |cosines: &[f32]| {
            let share = 1.0 / (cosines.len() + 1) as f32;
            (share, vec![share; cosines.len()])
        };
        blend(gone, kept, &to, self.keys, &shares, turn);
    }
}

impl Chelsea {
    fn match_of(&self, gone: &Pairs, pair: usize, kept: &Pairs) -> Option<Nearest> {
        let at = gone.positions[pair];
        let first = kept
            .positions
            .partition_point(|&other| other + self.near <= at);
        let last = kept
            .positions
            .partition_point(|&other| other < at.saturating_add(self.near));
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
    use super::super::tests::pairs;
    use super::*;

    #[test]
    fn means_of_neighbours_alone() {
        let merge = Chelsea {
            near: 4,
            keys: Keys::Cached,
        };
        let mut kept = pairs(&[(0, [1.0, 0.0]), (10, [0.0, 1.0])]);
        let gone = pairs(&[
            (1, [3.0, 0.0]),
            (2, [5.0, 0.0]),
            (6, [9.0, 9.0]),
            (9, [0.0, 2.0]),
        ]);
        merge.merge(&gone, &mut kept, &|_, _| {}, &mut None);
        assert_eq!(
            (kept.key(0), kept.key(1)),
            (&[3.0, 0.0][..], &[0.0, 1.5][..])
        );
        assert_eq!(kept.value(1), [0.0, 15.0]);
    }
}
