//! Paper: <https://arxiv.org/abs/2504.01281> (Srinivas et al., Scaling Test-Time Inference with
//! Policy-Optimized, Dynamic Retrieval-Augmented Generation via KV Caching and Decoding, 2025), its
//! CRITIC; some of its formulas do not work as printed.
//!
//! A pair matters if it is given much attention (column sums, where the paper's indices give row sums,
//! which are all 1), if its own token spread its attention widely, and if the step from the last token
//! but one to the last would have come out otherwise with another key and value there: gradients of the
//! squared difference of the two attention outputs. Each is brought to 0..1 within a head and they are
//! added with weights that the paper does not give. Gradients need no backward pass: with attention
//! `a`, output `o` and `g` the difference of the outputs, `dG/dv = a g` and `dG/dk = a (g·v - g·o) q`, up
//! to factors that the scaling takes out. Their weight is 0 unless it is given. First and last tokens
//! are protected, and the share of pairs kept is `budget`, which the paper does not let fall below a
//! number of pairs, and lowers as memory fills up (its adaptive ratio, which is not here: a budget is
//! what was stated, whatever else is in memory).

use longview_kv::KvError;
use longview_kv::keep::{Gather, LayerView, Needs, Queries, Question, Score, Scores};

use super::{keep, parameter};
use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `critic(budget, attention, entropy, gradient, sinks, recent, alloc, merge, decode, chunks)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "critic",
    exact: false,
    paper: Some("https://arxiv.org/abs/2504.01281"),
    claim: Some("half the latency on HotpotQA for a joint F1 of 67.95 instead of 71.32"),
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
        Parameter {
            name: "gradient",
            default: "0",
            unit: "",
            doc: "weight of how much the last step depends on the pair",
            domain: Domain::NotNegative,
        },
        parameter::sinks("4"),
        parameter::recent("32"),
        parameter::alloc("uniform"),
        parameter::MERGE,
        parameter::decode("16"),
        parameter::CHUNKS,
    ],
    build: Build::Keep(|arguments| {
        let score = Critic {
            attention: arguments.number("attention") as f32,
            entropy: arguments.number("entropy") as f32,
            gradient: arguments.number("gradient") as f32,
        };
        keep(arguments, Question::Unseen, score)
    }),
};

struct Critic {
    attention: f32,
    entropy: f32,
    gradient: f32,
}

impl Score for Critic {
    fn needs(&self) -> Needs {
        Needs {
            column_sums: Gather::Yes,
            row_entropies: Gather::Yes,
            last_queries: if self.gradient > 0.0 { STEPS } else { 0 },
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
            if self.gradient > 0.0 {
                let gradients = scaled(&gradients(layer, head)?);
                for (score, gradient) in scores.head_mut(head).iter_mut().zip(&gradients) {
                    *score += self.gradient * gradient;
                }
            }
        }
        Ok(())
    }
}

/// Tokens whose attention outputs are compared.
const STEPS: usize = 2;

/// For every pair of a head the sum of the magnitudes of `dG/dk` and `dG/dv`, up to a factor that is the
/// same for all; zeros where only one token was read.
fn gradients(layer: &LayerView<'_>, head: usize) -> Result<Vec<f32>, KvError> {
    let pairs = layer.pairs(head);
    let mut sums = vec![0f32; pairs];
    let Queries {
        queries, positions, ..
    } = layer.last_queries(head, STEPS)?;
    let scale = layer.shape().scale;
    let mut rows = Vec::with_capacity(positions.len());
    layer.attention(head, &queries, &positions, &mut |_, weights| {
        rows.push(weights.to_vec());
    });
    let queries = queries.chunks_exact(layer.head_dim());
    let steps: Vec<(&Vec<f32>, &[f32])> = rows.iter().zip(queries).collect();
    if layer.tokens() < STEPS {
        return Ok(sums);
    }
    for steps in steps.chunks_exact(STEPS) {
        let before = output(layer, head, steps[0].0);
        let (weights, query) = steps[1];
        let now = output(layer, head, weights);
        let apart: Vec<f32> = now.iter().zip(&before).map(|(x, y)| x - y).collect();
        let of_output = dot(&apart, &now);
        let (apart_length, query_length) = (magnitude(&apart), magnitude(query));
        layer.values(head, &mut |page| {
            let to = page.first..page.first + page.slots.len();
            let values = page.values.chunks_exact(page.stride).skip(page.slots.start);
            let pairs = sums[to.clone()].iter_mut().zip(&weights[to]);
            for ((sum, weight), value) in pairs.zip(values) {
                let key = (dot(&apart, value) - of_output).abs() * query_length * scale;
                *sum += weight * (apart_length + key);
            }
        });
    }
    Ok(sums)
}

/// What a row with these weights takes from the values of a head, `[v_dim]`.
fn output(layer: &LayerView<'_>, head: usize, weights: &[f32]) -> Vec<f32> {
    let mut out = vec![0f32; layer.v_dim()];
    layer.values(head, &mut |page| {
        let weights = &weights[page.first..page.first + page.slots.len()];
        let values = page.values.chunks_exact(page.stride).skip(page.slots.start);
        for (weight, value) in weights.iter().zip(values) {
            out.iter_mut()
                .zip(value)
                .for_each(|(out, x)| *out += weight * x);
        }
    });
    out
}

fn dot(x: &[f32], y: &[f32]) -> f32 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// The sum of the magnitudes of the numbers.
fn magnitude(x: &[f32]) -> f32 {
    x.iter().map(|x| x.abs()).sum()
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

    #[test]
    fn gradients_are_those_of_finite_differences() {
        // The toy's values are its keys; row 2 is the last step and row 1 the one before.
        let keys = [[0.3, -0.2f64], [0.5, 0.9], [-0.4, 0.6]];
        let queries = [[0.0, 0.0f64], [0.7, 0.1], [-0.3, 0.8]];
        let output = |keys: &[[f64; 2]; 3], values: &[[f64; 2]; 3], row: usize| -> [f64; 2] {
            let weight =
                |key: &[f64; 2]| (queries[row][0] * key[0] + queries[row][1] * key[1]).exp();
            let all: f64 = keys[..=row].iter().map(weight).sum();
            std::array::from_fn(|d| {
                let pairs = keys[..=row].iter().zip(values);
                pairs
                    .map(|(key, value)| weight(key) * value[d])
                    .sum::<f64>()
                    / all
            })
        };
        // The step before is what it was: only the last one is asked what it depends on.
        let before = output(&keys, &keys, 1);
        let apart = |keys: &[[f64; 2]; 3], values: &[[f64; 2]; 3]| -> f64 {
            let now = output(keys, values, 2);
            now.iter()
                .zip(&before)
                .map(|(x, y)| (x - y) * (x - y))
                .sum()
        };
        let mut wanted = [0f64; 3];
        let step = 1e-5;
        for (pair, wanted) in wanted.iter_mut().enumerate() {
            for d in 0..2 {
                let moved = |by: f64| {
                    let mut moved = keys;
                    moved[pair][d] += by;
                    moved
                };
                let slope = |f: &dyn Fn(f64) -> f64| ((f(step) - f(-step)) / (2.0 * step)).abs();
                *wanted += slope(&|by| apart(&moved(by), &keys));
                *wanted += slope(&|by| apart(&keys, &moved(by)));
            }
        }
        let mut toy = Toy::new(1, 1, 2);
        toy.keep("critic(budget=2, gradient=1, sinks=0, recent=0)", 3);
        toy.read_keys_and_queries(
            &keys.map(|key| key.map(|x| x as f32)),
            &queries.map(|query| query.map(|x| x as f32)),
        );
        let mut got = Vec::new();
        toy.look(&mut |layer| got = gradients(layer, 0).unwrap());
        for (got, wanted) in got.iter().zip(wanted) {
            // G has a factor 2 that all share.
            assert!(
                (2.0 * f64::from(*got) - wanted).abs() < 1e-4,
                "{got} {wanted}"
            );
        }
    }
}
