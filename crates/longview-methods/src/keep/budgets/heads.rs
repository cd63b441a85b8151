//! Known from KVzip, <https://arxiv.org/abs/2505.23416> (Kim et al., 2025), as its head mode, and from
//! DuoAttention.
//!
//! Heads whose best pair scores highest keep everything, as many as the budget has room for; the others
//! keep what always stays, the first and the last tokens. One head takes what is left of the budget and is
//! neither.

use longview_kv::keep::{Allocate, Allocation, Scope, Scores};

use crate::method::{Build, Method, Stage};

/// `heads`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "heads",
    exact: false,
    paper: Some("https://arxiv.org/abs/2505.23416"),
    claim: None,
    doc: "the heads with the best pairs keep everything, the others only what always stays",
    parameters: &[],
    build: Build::Allocate(|_| Box::new(Heads)),
};

struct Heads;

impl Allocate for Heads {
    fn scope(&self) -> Scope {
        Scope::Model
    }

    fn wanted(&self, ask: &Allocation<'_>) -> Vec<Vec<f64>> {
        let best = |scores: &[f32]| {
            let free = scores.iter().filter(|&&x| x < f32::INFINITY);
            free.fold(f32::NEG_INFINITY, |m, &x| m.max(x))
        };
        let of_layer = |scores: &Scores| {
            (0..scores.heads())
                .map(|head| best(scores.head(head)))
                .collect()
        };
        let ranks: Vec<Vec<f32>> = ask.scores.iter().map(of_layer).collect();
        whole_heads(ask, &ranks)
    }
}

/// All pairs for the heads with the highest of `ranks [layers][heads]`, of equal ones the first, until
/// the budget is used up; for the others what is protected.
fn whole_heads(ask: &Allocation<'_>, ranks: &[Vec<f32>]) -> Vec<Vec<f64>> {
    let mut wanted: Vec<Vec<f64>> = ask
        .protected
        .iter()
        .map(|heads| heads.iter().map(|&held| held as f64).collect())
        .collect();
    let heads: usize = wanted.iter().map(Vec::len).sum();
    let held: f64 = wanted.iter().flatten().sum();
    let mut left = (ask.slots * heads) as f64 - held;
    let mut order: Vec<(usize, usize)> = Vec::new();
    for (layer, heads) in wanted.iter().enumerate() {
        order.extend((0..heads.len()).map(|head| (layer, head)));
    }
    order.sort_by(|&(a, b), &(c, d)| ranks[c][d].total_cmp(&ranks[a][b]));
    for (layer, head) in order {
        let more = ask.scores[layer].head(head).len() as f64 - wanted[layer][head];
        let given = more.min(left.max(0.0));
        wanted[layer][head] += given;
        left -= given;
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::layer_counts;

    #[test]
    fn the_best_heads_are_whole() {
        let protected = f32::INFINITY;
        let layers = [
            vec![
                vec![0.1, 0.9, 0.1, protected],
                vec![0.2, 0.2, 0.2, protected],
            ],
            vec![
                vec![0.3, 0.5, 0.1, protected],
                vec![0.0, 0.1, 0.0, protected],
            ],
        ];
        assert_eq!(layer_counts("heads", &layers, 2), [[4, 1], [2, 1]]);
        assert_eq!(layer_counts("heads", &layers, 4), [[4, 4], [4, 4]]);
    }
}
