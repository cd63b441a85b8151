//! Known from KVzip, <https://arxiv.org/abs/2505.23416> (Kim et al., 2025), as its non-uniform mode.
//!
//! The best pairs of all heads of all layers stay, whosever they are. Scores of different layers must
//! mean the same, as shares of attention do.

use longview_kv::keep::{Allocate, Allocation, Scope, Scores};

use super::adakv::won;
use crate::method::{Build, Method, Stage};

/// `threshold`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "threshold",
    exact: false,
    paper: Some("https://arxiv.org/abs/2505.23416"),
    claim: None,
    doc: "the best pairs of all heads and layers together stay",
    parameters: &[],
    build: Build::Allocate(|_| Box::new(Threshold)),
};

struct Threshold;

impl Allocate for Threshold {
    fn scope(&self) -> Scope {
        Scope::Model
    }

    fn wanted(&self, ask: &Allocation<'_>) -> Vec<Vec<f64>> {
        let heads: usize = ask.protected.iter().map(Vec::len).sum();
        let held: usize = ask.protected.iter().flatten().sum();
        let layers: Vec<&Scores> = ask.scores.iter().collect();
        let won = won(&layers, (ask.slots * heads).saturating_sub(held));
        let of_layer = |(won, protected): (&Vec<usize>, &Vec<usize>)| {
            let both = won.iter().zip(protected);
            both.map(|(won, held)| (won + held) as f64).collect()
        };
        won.iter().zip(ask.protected).map(of_layer).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::layer_counts;

    #[test]
    fn the_best_of_all_layers_stay() {
        let layers = [
            vec![vec![9.0, 1.0, 8.0], vec![0.0, 0.5, 0.1]],
            vec![vec![7.0, 6.0, f32::INFINITY], vec![2.0, 0.2, 0.3]],
        ];
        assert_eq!(layer_counts("threshold", &layers, 1), [[2, 0], [2, 0]]);
        assert_eq!(layer_counts("threshold", &layers, 2), [[3, 1], [3, 1]]);
    }
}
