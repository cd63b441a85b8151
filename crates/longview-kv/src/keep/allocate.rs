//! From what a rule wants for every head to numbers of pairs whose totals are exact.

use super::{Allocate, Planned, Scope, Scores};

/// The question how a budget is to be spread.
pub struct Allocation<'a> {
    /// The layers that are compressed, by their numbers in the model, in order.
    pub layers: &'a [usize],
    /// Their scores.
    pub scores: &'a [Scores],
    /// For every layer and head the pairs that stay in any case.
    pub protected: &'a [Vec<usize>],
    /// Pairs a head keeps on average, protected ones included.
    pub slots: usize,
    /// Tokens read so far.
    pub tokens: usize,
    /// What was planned for the prompt.
    pub planned: Planned,
}

/// Pairs that stay, `[layers][heads]`.
pub type Counts = Vec<Vec<usize>>;

impl Allocation<'_> {
    /// The pairs a head that must stay on average where a rule of this scope has less to share out;
    /// `None` where there is room for all of them.
    pub(super) fn lacks(&self, scope: Scope) -> Option<usize> {
        let average = |heads: &[usize]| heads.iter().sum::<usize>().div_ceil(heads.len().max(1));
        let least = match scope {
            Scope::Layer => self.protected.iter().map(|heads| average(heads)).max(),
            Scope::Model => Some(average(&self.protected.concat())),
        };
        least.filter(|&least| least > self.slots)
    }

    /// The pairs that every head keeps by the rule `rule`: within a layer, or over all layers for a
    /// rule of that scope, they add up to `slots` a head exactly, or to all there are.
    pub fn counts(&self, rule: &dyn Allocate) -> Counts {
        let wanted = rule.wanted(self);
        let layers = wanted.iter().zip(self.scores).zip(self.protected);
        match rule.scope() {
            Scope::Layer => layers
                .map(|((wanted, scores), protected)| {
                    let most: Vec<usize> =
                        scores.heads.iter().map(|scores| may_stay(scores)).collect();
                    share_out(wanted, protected, &most, self.slots * most.len())
                })
                .collect(),
            Scope::Model => {
                let wanted: Vec<f64> = wanted.iter().flatten().copied().collect();
                let least: Vec<usize> = self.protected.iter().flatten().copied().collect();
                let heads = self.scores.iter().flat_map(|scores| &scores.heads);
                let most: Vec<usize> = heads.map(|scores| may_stay(scores)).collect();
                let flat = share_out(&wanted, &least, &most, self.slots * most.len());
                let mut rest = flat.as_slice();
                let of_layer = |scores: &Scores| {
                    let (own, others) = rest.split_at(scores.heads.len());
                    rest = others;
                    own.to_vec()
                };
                self.scores.iter().map(of_layer).collect()
            }
        }
    }
}

/// Pairs of a head that do not go in any case.
fn may_stay(scores: &[f32]) -> usize {
    let stays = |score: &&f32| **score > f32::NEG_INFINITY;
    scores.iter().filter(stays).count()
}

/// Whole numbers in proportion to `wanted`, each from its `least` to its `most`, that add up to
/// `total`, or to the nearest sum there can be. Where `wanted` adds up to `total` and nothing is
/// clamped, that is `wanted` rounded by largest remainders, the first of equal ones first.
pub fn share_out(wanted: &[f64], least: &[usize], most: &[usize], total: usize) -> Vec<usize> {
    let total = total
        .max(least.iter().sum())
        .min(most.iter().sum::<usize>().max(least.iter().sum()));
    let at = |level: f64| -> Vec<f64> {
        let limits = least.iter().zip(most);
        let share = |(&wanted, (&least, &most)): (&f64, (&usize, &usize))| {
            // A head for which nothing is wanted still takes what nobody else has room for.
            let scaled = wanted.max(1e-9) * level;
            scaled.clamp(least as f64, most.max(least) as f64)
        };
        wanted.iter().zip(limits).map(share).collect()
    };
    let sum = |level: f64| at(level).iter().sum::<f64>();
    let goal = total as f64;
    let mut level = 1.0;
    if (sum(level) - goal).abs() > 1e-6 {
        let (mut low, mut high) = (0.0, 1.0);
        while sum(high) < goal && high < 1e30 {
            high *= 2.0;
        }
        for _ in 0..200 {
            level = (low + high) / 2.0;
            if sum(level) < goal {
                low = level;
            } else {
                high = level;
            }
        }
    }
    let shares = at(level);
    let mut counts: Vec<usize> = shares
        .iter()
        .map(|&share| (share + 1e-9) as usize)
        .collect();
    let mut order: Vec<usize> = (0..counts.len()).collect();
    let rest = |at: usize| shares[at] - counts[at] as f64;
    order.sort_by(|&a, &b| rest(b).total_cmp(&rest(a)).then(a.cmp(&b)));
    let mut missing = total.saturating_sub(counts.iter().sum());
    while missing > 0 {
        let before = missing;
        for &at in &order {
            if missing > 0 && counts[at] < most[at] {
                counts[at] += 1;
                missing -= 1;
            }
        }
        if missing == before {
            break;
        }
    }
    let mut over = counts.iter().sum::<usize>().saturating_sub(total);
    for &at in order.iter().rev() {
        let less = over.min(counts[at] - least[at].min(counts[at])).min(1);
        counts[at] -= less;
        over -= less;
    }
    counts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shares_by_hand() {
        let share = |wanted: &[f64], least: &[usize], most: &[usize], total| {
            share_out(wanted, least, most, total)
        };
        assert_eq!(share(&[2.0, 2.0], &[0, 0], &[9, 9], 4), [2, 2]);
        // Remainders of a half each: the first is rounded up.
        assert_eq!(share(&[1.5, 2.5], &[0, 0], &[9, 9], 4), [2, 2]);
        // What one head has no room for goes to the other.
        assert_eq!(share(&[6.0, 2.0], &[0, 0], &[3, 9], 8), [3, 5]);
        assert_eq!(share(&[8.0, 0.0], &[0, 2], &[9, 9], 8), [6, 2]);
        // More than there is, and less than must stay.
        assert_eq!(share(&[8.0, 8.0], &[0, 0], &[3, 3], 99), [3, 3]);
        assert_eq!(share(&[1.0, 1.0], &[4, 4], &[9, 9], 2), [4, 4]);
        assert_eq!(share(&[0.0, 0.0], &[0, 0], &[5, 5], 6), [3, 3]);
    }

    proptest! {
        #[test]
        fn totals_are_exact_within_the_limits(
            heads in proptest::collection::vec((0f64..50.0, 0usize..10, 0usize..60), 1..12),
            total in 0usize..500,
        ) {
            let wanted: Vec<f64> = heads.iter().map(|head| head.0).collect();
            let least: Vec<usize> = heads.iter().map(|head| head.1).collect();
            let most: Vec<usize> = heads.iter().map(|head| head.1 + head.2).collect();
            let counts = share_out(&wanted, &least, &most, total);
            let (low, high) = (least.iter().sum::<usize>(), most.iter().sum());
            prop_assert_eq!(counts.iter().sum::<usize>(), total.clamp(low, high));
            for (count, (least, most)) in counts.iter().zip(least.iter().zip(&most)) {
                prop_assert!(least <= count && count <= most);
            }
        }
    }
}
