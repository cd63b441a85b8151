//! Paper: <https://arxiv.org/abs/2412.09036> (Zhong et al., ZigZagkv: Dynamic KV Cache Compression for
//! Long-context Modeling based on Layer Uncertainty, 2024). No official code is known.
//!
//! A layer whose attention is spread needs more pairs to keep most of it. The smallest number of
//! pairs that holds `mass` of a head's attention, averaged over the heads of a layer, is the layer's
//! uncertainty; budgets are in proportion to it, above a floor that every layer has. Here the
//! attention is what the score made of it (for `snapkv` pooled, the window itself left out), of KV heads,
//! where the paper has it raw and of query heads; a score that is no share of attention makes little
//! sense here.

use longview_kv::keep::{Allocate, Allocation, Scope, Scores};

use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `zigzagkv(mass, floor)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "zigzagkv",
    exact: false,
    paper: Some("https://arxiv.org/abs/2412.09036"),
    claim: Some("about 20 % of the cache is nearly lossless"),
    doc: "layers that need more pairs to keep most of their attention have more",
    parameters: &[
        Parameter {
            name: "mass",
            default: "0.9",
            unit: "share",
            doc: "attention that is to be kept",
            domain: Domain::Share,
        },
        Parameter {
            name: "floor",
            default: "0.2",
            unit: "share",
            doc: "part of the budget that every layer gets alike",
            domain: Domain::Share,
        },
    ],
    build: Build::Allocate(|arguments| {
        Box::new(ZigZagKv {
            mass: arguments.number("mass"),
            floor: arguments.number("floor"),
        })
    }),
};

struct ZigZagKv {
    mass: f64,
    floor: f64,
}

impl Allocate for ZigZagKv {
    fn scope(&self) -> Scope {
        Scope::Model
    }

    fn wanted(&self, ask: &Allocation<'_>) -> Vec<Vec<f64>> {
        let uncertainty = |scores: &Scores| {
            let heads = 0..scores.heads();
            let sum: usize = heads.map(|head| needed(scores.head(head), self.mass)).sum();
            sum as f64 / scores.heads().max(1) as f64
        };
        let layers: Vec<f64> = ask.scores.iter().map(uncertainty).collect();
        let all: f64 = layers.iter().sum();
        let (slots, count) = (ask.slots as f64, layers.len() as f64);
        let of_layer = |(&uncertainty, protected): (&f64, &Vec<usize>)| {
            let share = if all > 0.0 {
                uncertainty / all
            } else {
                1.0 / count
            };
            let wanted = slots * self.floor + slots * (1.0 - self.floor) * count * share;
            vec![wanted; protected.len()]
        };
        layers.iter().zip(ask.protected).map(of_layer).collect()
    }
}

/// The fewest pairs whose scores hold `mass` of all that are not protected.
fn needed(scores: &[f32], mass: f64) -> usize {
    let counts = |&&score: &&f32| score > 0.0 && score < f32::INFINITY;
    let mut free: Vec<f64> = scores
        .iter()
        .filter(counts)
        .map(|&x| f64::from(x))
        .collect();
    free.sort_by(|a, b| b.total_cmp(a));
    let goal = mass * free.iter().sum::<f64>() - 1e-6;
    let mut held = 0.0;
    let reached = free.iter().position(|score| {
        held += score;
        held >= goal
    });
    reached.map_or(0, |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::layer_counts;
    use super::*;

    #[test]
    fn pairs_needed_by_hand() {
        assert_eq!(needed(&[0.15, 0.5, 0.05, 0.3], 0.9), 3);
        assert_eq!(needed(&[0.1; 10], 0.9), 9);
        assert_eq!(needed(&[0.0, 1.0, 0.0], 0.9), 1);
        assert_eq!(needed(&[0.0, 0.0, f32::INFINITY], 0.9), 0);
    }

    #[test]
    fn budgets_follow_what_layers_need() {
        let flat = |pairs: usize| {
            let mut scores = vec![0.0f32; 400];
            scores[..pairs].fill(1.0 / pairs as f32);
            vec![scores]
        };
        // 30 and 10 needed; of 100 on average 20 to each alike: 140 and 60.
        let counts = layer_counts("zigzagkv(mass=1)", &[flat(30), flat(10)], 100);
        assert_eq!(counts, [[140], [60]]);
        let counts = layer_counts("zigzagkv(mass=1)", &[flat(9), flat(9), flat(9)], 50);
        assert_eq!(counts, [[50], [50], [50]]);
    }
}
