//! Paper: <https://arxiv.org/abs/2504.01281> (Srinivas et al., Scaling Test-Time Inference with
//! Policy-Optimized, Dynamic Retrieval-Augmented Generation via KV Caching and Decoding, 2025), its
//! CRITIC; some of its formulas do not work as printed.
//!
//! A pair matters if it is given much attention (column sums, where the paper's indices give row sums,
//! which are all 1) and if its own token spread its attention widely. Both are brought to 0..1 within a
//! head and added with weights that the paper does not give. Its third part, gradients of an attention
//! layer, is left out. First and last tokens are protected, which the paper does not do.

use longview_kv::KvError;
use longview_kv::keep::{Gather, LayerView, Needs, Question, Score, Scores};

use super::{keep, parameter};
use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `critic(budget, attention, entropy, sinks, recent, alloc, merge, decode)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "critic",
    exact: false,
    paper: Some("https://arxiv.org/abs/2504.01281"),
    doc: "pairs that received much attention, or whose token spread its own, stay",
    parameters: &[
        parameter::budget("70%"),
        Parameter {
            name: "attention",
            default: "0.67",
            unit: "",
            doc: "weight of the attention received",
            domain: Domain::NotNegative,
        },
        Parameter {
            name: "entropy",
            default: "0.33",
            unit: "",
            doc: "weight of how widely the token spread its own attention",
            domain: Domain::NotNegative,
        },
        parameter::sinks("4"),
        parameter::recent("32"),
        parameter::alloc("uniform"),
        parameter::MERGE,
        parameter::decode("16"),
    ],
    build: Build::Keep(|arguments| {
        let score = Critic {
            attention: arguments.number("attention") as f32,
            entropy: arguments.number("entropy") as f32,
        };
        keep(arguments, Question::Unseen, score)
    }),
};

struct Critic {
    attention: f32,
    entropy: f32,
}

impl Score for Critic {
    fn needs(&self) -> Needs {
        Needs {
            column_sums: Gather::Yes,
            row_entropies: Gather::Yes,
            ..Needs::default()
        }
    }

    fn score(&self, layer: &LayerView<'_>, scores: &mut Scores) -> Result<(), KvError> {
        for head in 0..layer.heads() {
            let sums = scaled(layer.column_sums(head)?);
            let entropies = scaled(layer.row_entropies(head)?);
            let both = sums.iter().zip(&entropies);
            for (score, (sum, entropy)) in scores.head_mut(head).iter_mut().zip(both) {
                *score = self.attention * sum + self.entropy * entropy;
            }
        }
        Ok(())
    }
}

/// The numbers brought to 0..1; all 0 where they are all the same.
fn scaled(x: &[f32]) -> Vec<f32> {
    let low = x.iter().fold(f32::INFINITY, |m, &x| m.min(x));
    let high = x.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
    let range = high - low;
    let scale = |&x: &f32| if range > 0.0 { (x - low) / range } else { 0.0 };
    x.iter().map(scale).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::Toy;
    use super::*;

    #[test]
    fn numbers_are_brought_to_one_range() {
        assert_eq!(scaled(&[2.0, 4.0, 3.0]), [0.0, 1.0, 0.5]);
        assert_eq!(scaled(&[2.0, 2.0]), [0.0, 0.0]);
        assert!(scaled(&[]).is_empty());
    }

    #[test]
    fn who_spreads_attention_stays_by_entropy_and_who_receives_it_by_sums() {
        let kept = |attention: f32, entropy: f32| {
            let mut toy = Toy::new(1, 1, 3);
            let text = format!(
                "critic(budget=1, attention={attention}, entropy={entropy}, sinks=0, recent=0)"
            );
            toy.keep(&text, 3);
            // Rows (1), (.99, .01), (⅓, ⅓, ⅓): token 0 receives most, token 2 spreads most.
            let rows = [[1.0, 1e-9, 1e-9], [0.99, 0.01, 1e-9], [1.0, 1.0, 1.0f32]];
            let keys = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
            toy.read_keys_and_queries(&keys, &rows.map(|row| row.map(f32::ln)));
            toy.compress();
            toy.positions(0, 0)
        };
        assert_eq!(kept(1.0, 0.0), [0]);
        assert_eq!(kept(0.0, 1.0), [2]);
    }
}
