//! Paper: <https://arxiv.org/abs/2406.13035> (Wan et al., D2O: Dynamic Discriminative Operations for
//! Efficient Long-Context Inference of Large Language Models, 2024).
//!
//! A layer in which few tokens have most of the attention can be cut harder: budgets are a softmax
//! over layers of the negative variance of the scores, averaged over heads. The paper scores by sums
//! of attention (`h2o`). Its variances are used as they are (`scale=none`, recalled); its code scales
//! them to 0..1 within each layer first, which wipes out how layers differ. The code also keeps the
//! first two layers and the last whole, beyond the budget; here the budget holds. Variances are of the
//! pairs that may leave, where the paper counts the first and the last tokens too.

use longview_kv::keep::{Allocate, Allocation, Scope, Scores};

use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `d2o(scale)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "d2o",
    exact: false,
    paper: Some("https://arxiv.org/abs/2406.13035"),
    claim: None,
    doc: "layers whose scores vary less keep more",
    parameters: &[Parameter {
        name: "scale",
        default: "heads",
        unit: "",
        doc: "heads: variances are scaled to 0..1 over the heads of a layer first, as the published \
              code does; none: they are used as they are",
        domain: Domain::Word(&["heads", "none"]),
    }],
    build: Build::Allocate(|arguments| {
        Box::new(D2o {
            scaled: arguments.word("scale") == "heads",
        })
    }),
};

struct D2o {
    scaled: bool,
}

impl Allocate for D2o {
    fn scope(&self) -> Scope {
        Scope::Model
    }

    fn wanted(&self, ask: &Allocation<'_>) -> Vec<Vec<f64>> {
        let layers: Vec<f64> = ask
            .scores
            .iter()
            .map(|scores| self.spread(scores))
            .collect();
        let largest = layers.iter().fold(f64::INFINITY, |m, &x| m.min(x));
        let weights: Vec<f64> = layers
            .iter()
            .map(|spread| (largest - spread).exp())
            .collect();
        let all: f64 = weights.iter().sum();
        let budget = (ask.slots * layers.len()) as f64;
        let of_layer =
            |(weight, protected): (&f64, &Vec<usize>)| vec![budget * weight / all; protected.len()];
        weights.iter().zip(ask.protected).map(of_layer).collect()
    }
}

impl D2o {
    /// The variance of a layer's scores, averaged over its heads.
    fn spread(&self, scores: &Scores) -> f64 {
        let mut heads: Vec<f64> = (0..scores.heads())
            .map(|head| variance(scores.head(head)))
            .collect();
        let low = heads.iter().fold(f64::INFINITY, |m, &x| m.min(x));
        let high = heads.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(x));
        if self.scaled {
            let range = high - low;
            let scale = |x: &f64| if range > 0.0 { (x - low) / range } else { 0.0 };
            heads = heads.iter().map(scale).collect();
        }
        heads.iter().sum::<f64>() / heads.len().max(1) as f64
    }
}

/// The variance of the scores that are not protected.
fn variance(scores: &[f32]) -> f64 {
    let free = || {
        scores
            .iter()
            .filter(|&&x| x < f32::INFINITY)
            .map(|&x| f64::from(x))
    };
    let count = free().count().max(1) as f64;
    let mean = free().sum::<f64>() / count;
    free().map(|x| (x - mean) * (x - mean)).sum::<f64>() / count
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::layer_counts;
    use super::*;

    #[test]
    fn shares_are_a_softmax_of_negative_variances() {
        // Variances 0 and ln 3: shares ¾ and ¼ of twice fifty.
        let wide = (3f32.ln()).sqrt();
        let even: Vec<f32> = (0..100)
            .map(|i| if i % 2 == 0 { wide } else { -wide })
            .collect();
        assert!((variance(&even) - 3f64.ln()).abs() < 1e-6);
        let layers = [vec![vec![0.5f32; 100]], vec![even]];
        assert_eq!(layer_counts("d2o(scale=none)", &layers, 50), [[75], [25]]);
        // One head a layer has nothing to be scaled against.
        assert_eq!(layer_counts("d2o(scale=heads)", &layers, 50), [[50], [50]]);
    }
}
