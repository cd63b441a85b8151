//! Paper: <https://arxiv.org/abs/2407.11550> (Feng et al., Ada-KV: Optimizing KV Cache Eviction by
//! Adaptive Budget Allocation for Efficient LLM Inference, 2024).
//!
//! The heads of a layer share its budget by what their pairs score: the layer's best pairs are
//! picked together, and a head gets as many as it has among them, less a part that goes to everyone
//! alike (`floor`). The published code loses and gains slots by rounding; here a layer's total is
//! exact. Scores of different heads must mean the same, as attention does.

use longview_kv::keep::{Allocate, Allocation, Scores};

use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `adakv(floor)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "adakv",
    exact: false,
    paper: Some("https://arxiv.org/abs/2407.11550"),
    claim: Some("better than equal shares on RULER and LongBench at the same total"),
    doc: "a layer's budget goes to the heads that have its best pairs",
    parameters: &[Parameter {
        name: "floor",
        default: "0.2",
        unit: "share",
        doc: "part of the budget that every head gets alike",
        domain: Domain::Share,
    }],
    build: Build::Allocate(|arguments| {
        Box::new(AdaKv {
            floor: arguments.number("floor"),
        })
    }),
};

struct AdaKv {
    floor: f64,
}

impl Allocate for AdaKv {
    fn wanted(&self, ask: &Allocation<'_>) -> Vec<Vec<f64>> {
        let layers = ask.scores.iter().zip(ask.protected);
        layers
            .map(|(scores, protected)| {
                let heads = protected.len();
                let held: usize = protected.iter().sum();
                let free = (ask.slots * heads).saturating_sub(held);
                let share = free as f64 / heads as f64;
                let won = won(&[scores], free);
                let wanted = |(head, &held): (usize, &usize)| {
                    held as f64 + won[0][head] as f64 * (1.0 - self.floor) + share * self.floor
                };
                protected.iter().enumerate().map(wanted).collect()
            })
            .collect()
    }
}

/// How many of the `count` best pairs of all `layers` together each head has, protected ones apart;
/// of equal scores the first head's first.
pub(super) fn won(layers: &[&Scores], count: usize) -> Vec<Vec<usize>> {
    let mut best: Vec<(f32, u32, u32)> = Vec::new();
    let mut won = Vec::new();
    for (layer, scores) in layers.iter().enumerate() {
        won.push(vec![0; scores.heads()]);
        for head in 0..scores.heads() {
            let free = scores.head(head).iter().filter(|&&x| x < f32::INFINITY);
            best.extend(free.map(|&score| (score, layer as u32, head as u32)));
        }
    }
    if count < best.len() && count > 0 {
        let rank = |a: &(f32, u32, u32), b: &(f32, u32, u32)| {
            b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2)))
        };
        best.select_nth_unstable_by(count - 1, rank);
    }
    for &(_, layer, head) in best.iter().take(count) {
        won[layer as usize][head as usize] += 1;
    }
    won
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::counts;

    #[test]
    fn the_best_pairs_of_a_layer_decide() {
        let scores = [vec![9.0, 8.0, 7.0], vec![3.0, 2.0, 1.0]];
        assert_eq!(counts("adakv(floor=0)", &scores, 2), [3, 1]);
        assert_eq!(counts("adakv(floor=1)", &scores, 2), [2, 2]);
        // Half of 3 and 1, and one each.
        assert_eq!(counts("adakv(floor=0.5)", &scores, 2), [3, 1]);
        assert_eq!(counts("uniform", &scores, 2), [2, 2]);
        assert_eq!(counts("adakv(floor=0)", &scores, 5), [3, 3]);
    }

    #[test]
    fn what_is_protected_stays_beside_the_shares() {
        let protected = f32::INFINITY;
        let scores = [vec![1.0, 1.0, protected], vec![5.0, 4.0, protected]];
        assert_eq!(counts("adakv(floor=0)", &scores, 2), [1, 3]);
    }
}
