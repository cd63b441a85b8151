//! Paper: <https://arxiv.org/abs/2510.00636> (Devoto et al., Expected Attention: KV Cache Compression
//! by Estimating Attention from Future Queries Distribution, 2025).
//!
//! Queries still to come are taken to be spread like those seen, turned to the positions that follow.
//! Mean and covariance of the prompt's queries, averaged over the next `future` rotations, give the
//! expected attention of each key in closed form, and a value's length says how much it can move. No
//! question is needed. Values are weighed by their own length, as the authors' library does, and not by
//! what the output projection makes of them. A covariance of fewer queries than a head has channels is
//! not known well enough, and does not count.

use longview_kv::KvError;
use longview_kv::keep::{Gather, LayerView, Needs, Question, Score, Scores};

use super::{keep, parameter};
use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `expected-attention(budget, future, covariance, values, epsilon, sinks, recent, alloc, merge, decode, chunks)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "expected-attention",
    exact: false,
    paper: Some("https://arxiv.org/abs/2510.00636"),
    claim: Some("better than snapkv and tova where the question is not known while compressing"),
    doc: "the pairs that queries like those seen are expected to attend to stay",
    parameters: &[
        parameter::budget("20%"),
        Parameter {
            name: "future",
            default: "512",
            unit: "tokens",
            doc: "positions that queries are expected at",
            domain: Domain::Count,
        },
        Parameter {
            name: "covariance",
            default: "used",
            unit: "",
            doc: "whether how queries vary counts, beside their mean",
            domain: Domain::Word(&["used", "unused"]),
        },
        Parameter {
            name: "values",
            default: "norm",
            unit: "",
            doc: "norm: attention is multiplied by the length of the value; unused: it is not",
            domain: Domain::Word(&["norm", "unused"]),
        },
        Parameter {
            name: "epsilon",
            default: "0",
            unit: "",
            doc: "added to the attention before values count",
            domain: Domain::NotNegative,
        },
        parameter::sinks("4"),
        parameter::recent("0"),
        parameter::alloc("uniform"),
        parameter::MERGE,
        parameter::decode("never"),
        parameter::CHUNKS,
    ],
    build: Build::Keep(|arguments| {
        let score = ExpectedAttention {
            future: arguments.count("future"),
            covariance: arguments.word("covariance") == "used",
            norms: arguments.word("values") == "norm",
            epsilon: arguments.number("epsilon") as f32,
            sinks: arguments.count("sinks"),
        };
        keep(arguments, Question::Unseen, score)
    }),
};

struct ExpectedAttention {
    future: usize,
    covariance: bool,
    norms: bool,
    epsilon: f32,
    sinks: usize,
}

impl Score for ExpectedAttention {
    fn needs(&self) -> Needs {
        Needs {
            query_moments: Gather::Yes,
            moments_from: self.sinks,
            ..Needs::default()
        }
    }

    fn score(&self, layer: &LayerView<'_>, scores: &mut Scores) -> Result<(), KvError> {
        let dim = layer.head_dim();
        let group = layer.shape().heads / layer.heads();
        let turn = mean_rotation(layer, self.future);
        for head in 0..layer.heads() {
            let pairs = layer.pairs(head);
            let first = layer.first_from(head, self.sinks).min(pairs);
            let mut sums = vec![0f32; pairs];
            for member in head * group..(head + 1) * group {
                let (first_sum, second_sum, count) = layer.query_moments(member)?;
                let expected = Expected::new(first_sum, second_sum, count, &turn, dim);
                let spread = self.covariance && count >= dim;
                let mut logits = self.logits(layer, head, &expected, spread);
                layer.softmax(&mut logits[first..]);
                logits[..first].fill(0.0);
                layer.add(&mut sums, &logits);
            }
            let scores = scores.head_mut(head);
            for (score, sum) in scores.iter_mut().zip(&sums) {
                *score = sum / group as f32 + self.epsilon;
            }
            if self.norms {
                layer.values(head, &mut |page| {
                    let to = &mut scores[page.first..page.first + page.slots.len()];
                    let rows = page.values.chunks_exact(page.stride).skip(page.slots.start);
                    for (score, value) in to.iter_mut().zip(rows) {
                        let value = &value[..layer.v_dim()];
                        *score *= value.iter().map(|x| x * x).sum::<f32>().sqrt();
                    }
                });
            }
        }
        Ok(())
    }
}

impl ExpectedAttention {
    /// The logarithm of what `exp` of a logit is on average, for every pair of a head.
    /// With the covariance where queries `spread`.
    fn logits(
        &self,
        layer: &LayerView<'_>,
        head: usize,
        expected: &Expected,
        spread: bool,
    ) -> Vec<f32> {
        let scale = layer.shape().scale;
        let mut logits = Vec::new();
        layer.products(head, &expected.mean, &mut logits);
        logits.iter_mut().for_each(|logit| *logit *= scale);
        if !spread {
            return logits;
        }
        let dim = layer.head_dim();
        let mut product = [0f32; 64];
        layer.keys(head, &mut |page| {
            let to = &mut logits[page.first..page.first + page.slots.len()];
            for (row, key) in expected
                .covariance
                .chunks_exact(dim)
                .zip(page.keys.chunks_exact(64))
            {
                product.fill(0.0);
                for (&x, column) in row.iter().zip(page.keys.chunks_exact(64)) {
                    layer.add_scaled(&mut product, column, x);
                }
                let half = 0.5 * scale * scale;
                for (logit, slot) in to.iter_mut().zip(page.slots.clone()) {
                    *logit += half * product[slot] * key[slot];
                }
            }
        });
        logits
    }
}

/// Queries to come of one query head.
struct Expected {
    /// `[head_dim]`
    mean: Vec<f32>,
    /// `[head_dim][head_dim]`
    covariance: Vec<f32>,
}

impl Expected {
    /// From sums over `count` queries, turned by the matrix `turn [head_dim][head_dim]`.
    fn new(first: &[f32], second: &[f32], count: usize, turn: &[f32], dim: usize) -> Expected {
        let mean: Vec<f32> = first.iter().map(|x| x / count as f32).collect();
        let central = |(at, x): (usize, &f32)| x / count as f32 - mean[at / dim] * mean[at % dim];
        let covariance: Vec<f32> = second.iter().enumerate().map(central).collect();
        let turned = product(turn, &covariance, dim);
        // (T C) Tᵀ = (T (T C)ᵀ)ᵀ, and the result is symmetric.
        Expected {
            mean: (0..dim)
                .map(|i| {
                    turn[i * dim..][..dim]
                        .iter()
                        .zip(&mean)
                        .map(|(t, m)| t * m)
                        .sum()
                })
                .collect(),
            covariance: product(turn, &transposed(&turned, dim), dim),
        }
    }
}

/// The matrix that turns a vector by the mean of the rotations of the next `future` positions,
/// `[head_dim][head_dim]`.
fn mean_rotation(layer: &LayerView<'_>, future: usize) -> Vec<f32> {
    let dim = layer.head_dim();
    let mut sum = vec![0f64; dim * dim];
    let mut turned = vec![0f32; dim * dim];
    for position in layer.tokens()..layer.tokens() + future {
        turned.fill(0.0);
        (0..dim).for_each(|i| turned[i * dim + i] = 1.0);
        layer.rotate(position as isize, &mut turned);
        sum.iter_mut()
            .zip(&turned)
            .for_each(|(sum, &x)| *sum += f64::from(x));
    }
    // Row `i` of what was turned is what becomes of unit vector `i`: a column of the matrix.
    let rows: Vec<f32> = sum.iter().map(|x| (x / future as f64) as f32).collect();
    transposed(&rows, dim)
}

fn product(a: &[f32], b: &[f32], dim: usize) -> Vec<f32> {
    let mut out = vec![0f32; dim * dim];
    for (row, out) in a.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
        for (&x, b) in row.iter().zip(b.chunks_exact(dim)) {
            out.iter_mut().zip(b).for_each(|(out, y)| *out += x * y);
        }
    }
    out
}

fn transposed(a: &[f32], dim: usize) -> Vec<f32> {
    (0..dim * dim)
        .map(|at| a[at % dim * dim + at / dim])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::Toy;
    use super::*;

    #[test]
    fn the_expectation_is_what_sampling_gives() {
        // Queries of two channels with mean (0.5, −0.2) and a covariance given by a factor.
        let (mean, factor) = ([0.5, -0.2f64], [[0.6, 0.0], [0.3, 0.4f64]]);
        let key = [0.7, -0.9f64];
        let mut state = 12345u64;
        let mut normal = || {
            let mut sum = -6.0;
            for _ in 0..12 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                sum += (state >> 11) as f64 / (1u64 << 53) as f64;
            }
            sum
        };
        let mut total = 0.0;
        let (mut first, mut second) = ([0f64; 2], [0f64; 4]);
        let samples = 200_000;
        for _ in 0..samples {
            let z = [normal(), normal()];
            let q = [
                mean[0] + factor[0][0] * z[0],
                mean[1] + factor[1][0] * z[0] + factor[1][1] * z[1],
            ];
            total += (q[0] * key[0] + q[1] * key[1]).exp();
            (0..2).for_each(|i| first[i] += q[i]);
            (0..4).for_each(|i| second[i] += q[i / 2] * q[i % 2]);
        }
        let floats = |x: &[f64]| -> Vec<f32> { x.iter().map(|&x| x as f32).collect() };
        let same = [1.0, 0.0, 0.0, 1.0];
        let expected = Expected::new(&floats(&first), &floats(&second), samples, &same, 2);
        let (mean, cov) = (&expected.mean, &expected.covariance);
        let quadratic: f64 = (0..4)
            .map(|i| f64::from(cov[i]) * key[i / 2] * key[i % 2])
            .sum();
        let linear = f64::from(mean[0]) * key[0] + f64::from(mean[1]) * key[1];
        let closed = (linear + quadratic / 2.0).exp();
        let sampled = total / samples as f64;
        assert!((closed / sampled - 1.0).abs() < 0.02, "{closed} {sampled}");
    }

    #[test]
    fn with_one_query_repeated_it_is_that_query_s_attention() {
        let mut toy = Toy::new(1, 1, 2);
        toy.keep(
            "expected-attention(budget=2, sinks=0, values=unused, future=1)",
            5,
        );
        let keys = [[0.0, 1.0], [2.0, 0.0], [-1.0, 0.0], [3.0, 0.5], [0.1, 0.0]];
        toy.read_keys_and_queries(&keys, &[[1.0, 0.0]; 5]);
        toy.compress();
        assert_eq!(toy.positions(0, 0), [1, 3]);
    }

    #[test]
    fn long_values_count_for_more() {
        let kept = |values: &str| {
            let mut toy = Toy::new(1, 1, 2);
            toy.keep(
                &format!(
                    "expected-attention(budget=1, sinks=0, values={values}, covariance=unused)"
                ),
                3,
            );
            // The toy's values are its keys: the second is long, and looked at less.
            toy.read_keys_and_queries(&[[0.5, 0.0], [0.0, 9.0], [0.1, 0.0]], &[[1.0, 0.0]; 3]);
            toy.compress();
            toy.positions(0, 0)
        };
        assert_eq!(kept("unused"), [0]);
        assert_eq!(kept("norm"), [1]);
    }

    #[test]
    fn matrices_by_hand() {
        let (a, b) = ([1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 1.0, 0.0]);
        assert_eq!(product(&a, &b, 2), [2.0, 1.0, 4.0, 3.0]);
        assert_eq!(transposed(&a, 2), [1.0, 3.0, 2.0, 4.0]);
    }
}
