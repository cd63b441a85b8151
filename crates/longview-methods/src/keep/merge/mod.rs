//! What evicted pairs leave behind in those that stay.
//!
//! All rules here give each pair that goes to the kept pair whose key is most like its own, and differ
//! in who is merged at all and with what weights. Keys are cached rotated to their positions, and
//! averaging two of them blurs where they were: `keys` says how that is dealt with.

pub(crate) mod chelsea;
pub(crate) mod d2o;
pub(crate) mod look_m;

use longview_kernels::Isa;
use longview_kernels::activation::add_scaled;
use longview_kv::keep::Pairs;

use crate::arguments::Arguments;
use crate::method::{Domain, Parameter};

/// How keys are merged.
pub(super) const KEYS: Parameter = Parameter {
    name: "keys",
    default: "cached",
    unit: "",
    doc: "cached: keys are averaged as they are cached, rotated; unrotated: turned back to position 0 \
          first, and forward to the kept pair's; untouched: only values are merged",
    domain: Domain::Word(&["cached", "unrotated", "untouched"]),
};

/// What is done with keys.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Keys {
    Cached,
    Unrotated,
    Untouched,
}

/// The kept pair that an evicted one goes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Nearest {
    pub(super) kept: usize,
    /// The cosine of their keys.
    pub(super) cosine: f32,
}

/// The shares of a kept pair and of those merged into it, given which one it is, and its members: which
/// of the evicted pairs, and the cosine of their keys.
pub(super) type Shares<'a> = &'a dyn Fn(usize, &[(usize, f32)]) -> (f32, Vec<f32>);

impl Keys {
    pub(super) fn of(arguments: &Arguments) -> Keys {
        match arguments.word("keys") {
            "unrotated" => Keys::Unrotated,
            "untouched" => Keys::Untouched,
            _ => Keys::Cached,
        }
    }
}

/// Kept pairs that evicted ones meet at a time: their keys stay in a near cache meanwhile.
const MET_AT_ONCE: usize = 128;

/// Bytes that [`nearest`] takes beside what it returns.
pub(super) fn nearest_bytes(kept: usize, head_dim: usize) -> usize {
    size_of::<f32>() * kept.min(MET_AT_ONCE) * (head_dim + 1)
}

/// Bytes that [`blend`] takes, with the kept pair of every evicted one.
pub(super) fn blend_bytes(gone: usize, kept: usize, head_dim: usize) -> usize {
    // A list grows to twice what it holds; shares are as many again.
    let member = 2 * size_of::<(usize, f32)>() + size_of::<f32>();
    let of_gone = 2 * size_of::<Option<Nearest>>() + member;
    gone * of_gone + kept * size_of::<Vec<(usize, f32)>>() + size_of::<f32>() * head_dim
}

/// For every evicted pair the kept one whose key points most nearly the same way, of equal ones the
/// first.
pub(super) fn nearest(isa: Isa, gone: &Pairs, kept: &Pairs) -> Vec<Nearest> {
    let dim = kept.head_dim;
    let mut best = vec![
        Nearest {
            kept: 0,
            cosine: f32::NEG_INFINITY,
        };
        gone.len()
    ];
    for first in (0..kept.len()).step_by(MET_AT_ONCE) {
        let met = first..kept.len().min(first + MET_AT_ONCE);
        // Keys as columns, so that one evicted key meets all of these side by side.
        let mut columns = vec![0f32; dim * met.len()];
        for (at, pair) in met.clone().enumerate() {
            let key = kept.key(pair);
            let inverse = 1.0 / norm(key).max(f32::MIN_POSITIVE);
            for (d, x) in key.iter().enumerate() {
                columns[d * met.len() + at] = x * inverse;
            }
        }
        let mut cosines = vec![0f32; met.len()];
        for (pair, best) in best.iter_mut().enumerate() {
            let key = gone.key(pair);
            let inverse = 1.0 / norm(key).max(f32::MIN_POSITIVE);
            cosines.fill(0.0);
            for (x, column) in key.iter().zip(columns.chunks_exact(met.len())) {
                add_scaled(isa, &mut cosines, column, x * inverse);
            }
            for (kept, &cosine) in met.clone().zip(&cosines) {
                if cosine > best.cosine {
                    *best = Nearest { kept, cosine };
                }
            }
        }
    }
    best
}

/// Merges the evicted pairs into those that `to` names; `None` leaves one out.
pub(super) fn blend(
    gone: &Pairs,
    kept: &mut Pairs,
    to: &[Option<Nearest>],
    keys: Keys,
    shares: Shares<'_>,
    turn: &dyn Fn(isize, &mut [f32]),
) {
    let mut members: Vec<Vec<(usize, f32)>> = vec![Vec::new(); kept.len()];
    for (pair, to) in to.iter().enumerate() {
        if let Some(to) = to {
            members[to.kept].push((pair, to.cosine));
        }
    }
    for (pair, members) in members
        .iter()
        .enumerate()
        .filter(|(_, members)| !members.is_empty())
    {
        let (own, others) = shares(pair, members);
        let place = kept.positions[pair] as isize;
        if keys != Keys::Untouched {
            let key = kept.key_mut(pair);
            key.iter_mut().for_each(|x| *x *= own);
            for (&(member, _), &share) in members.iter().zip(&others) {
                let mut from = gone.key(member).to_vec();
                if keys == Keys::Unrotated {
                    turn(place - gone.positions[member] as isize, &mut from);
                }
                key.iter_mut().zip(&from).for_each(|(x, y)| *x += share * y);
            }
        }
        let value = kept.value_mut(pair);
        value.iter_mut().for_each(|x| *x *= own);
        for (&(member, _), &share) in members.iter().zip(&others) {
            let from = gone.value(member);
            value
                .iter_mut()
                .zip(from)
                .for_each(|(x, y)| *x += share * y);
        }
    }
}

fn norm(x: &[f32]) -> f32 {
    x.iter().map(|x| x * x).sum::<f32>().sqrt()
}

#[cfg(test)]
pub(super) mod tests {
    use longview_kv::keep::{Merge, Merging};

    use super::*;

    /// Pairs at the given positions, whose values are ten times their keys.
    pub(in super::super) fn pairs(of: &[(u32, [f32; 2])]) -> Pairs {
        Pairs {
            positions: of.iter().map(|&(position, _)| position).collect(),
            tokens: vec![1; of.len()],
            keys: of.iter().flat_map(|(_, key)| *key).collect(),
            values: of
                .iter()
                .flat_map(|(_, key)| key.map(|x| 10.0 * x))
                .collect(),
            head_dim: 2,
            v_dim: 2,
        }
    }

    /// Merges where nothing is rotated and nothing always stays.
    pub(in super::super) fn merged(
        merge: &dyn Merge,
        gone: &Pairs,
        kept: &mut Pairs,
        memory: &mut Option<f32>,
    ) {
        let mut with = Merging {
            isa: Isa::best(),
            open: 0..u32::MAX,
            turn: &|_, _| {},
            memory,
        };
        merge.merge(gone, kept, &mut with);
    }

    #[test]
    fn every_pair_goes_to_the_first_of_the_nearest() {
        let kept = pairs(&[(0, [1.0, 0.0]), (1, [2.0, 0.0]), (5, [0.0, 3.0])]);
        let gone = pairs(&[(2, [4.0, 0.1]), (3, [0.0, 1.0]), (4, [-1.0, -0.5])]);
        let found: Vec<usize> = nearest(Isa::best(), &gone, &kept)
            .iter()
            .map(|to| to.kept)
            .collect();
        assert_eq!(found, [0, 2, 2]);
    }

    #[test]
    fn unrotated_keys_are_turned_to_where_they_are_merged() {
        // A quarter turn a position.
        let turn = |positions: isize, key: &mut [f32]| {
            for _ in 0..positions.rem_euclid(4) {
                (key[0], key[1]) = (-key[1], key[0]);
            }
        };
        let gone = pairs(&[(3, [1.0, 0.0])]);
        let to = [Some(Nearest {
            kept: 0,
            cosine: 1.0,
        })];
        let half = |_: usize, _: &[(usize, f32)]| (0.5, vec![0.5]);
        let merged = |keys| {
            let mut kept = pairs(&[(4, [0.0, 1.0])]);
            blend(&gone, &mut kept, &to, keys, &half, &turn);
            (kept.keys, kept.values)
        };
        // The same content one position on: nothing changes but the value.
        assert_eq!(merged(Keys::Unrotated), (vec![0.0, 1.0], vec![5.0, 5.0]));
        assert_eq!(merged(Keys::Cached), (vec![0.5, 0.5], vec![5.0, 5.0]));
        assert_eq!(merged(Keys::Untouched), (vec![0.0, 1.0], vec![5.0, 5.0]));
    }
}
