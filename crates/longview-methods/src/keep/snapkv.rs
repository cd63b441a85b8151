//! Paper: <https://arxiv.org/abs/2404.14469> (Li et al., SnapKV: LLM Knows What You are Looking for
//! Before Generation, 2024).
//!
//! The last tokens of a prompt ask; what they look at is what the answer will need. Their attention
//! to every earlier token is summed over the window, averaged over the query heads of a group,
//! pooled along the text so that neighbours come along, and the best stay with the window itself.
//! Tuned to the question at the end of the prompt. The published code repeats KV heads and so keeps
//! a set for every query head; here a KV head has one, as measured on a par with a share of the
//! memory. The group is averaged before pooling, which differs from pooling first for `max` only.

use longview_kv::KvError;
use longview_kv::keep::{LayerView, Needs, Question, Score, Scores, larger};

use super::{keep, parameter};
use crate::arguments::Arguments;
use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `snapkv(budget, window, kernel, pool, sinks, alloc, merge, decode, chunks)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "snapkv",
    exact: false,
    paper: Some("https://arxiv.org/abs/2404.14469"),
    claim: Some(
        "close to the whole cache on LongBench, 8.2 times less memory and 3.6 \
             times as fast at 16,000 tokens",
    ),
    doc: "the pairs that the last tokens of the prompt attend to stay, with the last tokens",
    parameters: &[
        parameter::budget("20%"),
        WINDOW,
        KERNEL,
        POOL,
        parameter::sinks("0"),
        parameter::alloc("uniform"),
        parameter::MERGE,
        parameter::decode("never"),
        parameter::CHUNKS,
    ],
    build: Build::Keep(|arguments| {
        let mut plan = keep(arguments, Question::Seen, SnapKv::new(arguments))?;
        plan.protected.recent = arguments.count("window");
        Ok(plan)
    }),
};

const WINDOW: Parameter = Parameter {
    name: "window",
    default: "32",
    unit: "tokens",
    doc: "last tokens of the prompt whose attention decides, and which stay",
    domain: Domain::Count,
};

const KERNEL: Parameter = Parameter {
    name: "kernel",
    default: "5",
    unit: "tokens",
    doc: "width over which scores are pooled along the text; rounded up to an odd number",
    domain: Domain::Count,
};

const POOL: Parameter = Parameter {
    name: "pool",
    default: "avg",
    unit: "",
    doc: "avg or max: how scores are pooled",
    domain: Domain::Word(&["avg", "max"]),
};

/// Attention of a window of queries, pooled.
pub(super) struct SnapKv {
    window: usize,
    kernel: usize,
    pool: Pool,
}

/// How scores of neighbours are put together.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pool {
    /// Their mean; beyond the ends are zeros.
    Average,
    /// The largest.
    Largest,
}

impl SnapKv {
    fn new(arguments: &Arguments) -> SnapKv {
        SnapKv {
            window: arguments.count("window"),
            kernel: arguments.count("kernel"),
            pool: match arguments.word("pool") {
                "max" => Pool::Largest,
                _ => Pool::Average,
            },
        }
    }
}

impl Score for SnapKv {
    fn needs(&self) -> Needs {
        Needs {
            last_queries: self.window,
            ..Needs::default()
        }
    }

    fn score(&self, layer: &LayerView<'_>, scores: &mut Scores) -> Result<(), KvError> {
        for head in 0..layer.heads() {
            let asked = layer.last_queries(head, self.window)?;
            let rows = asked.positions.len() as f32;
            let earlier = layer.first_from(head, layer.tokens() - self.window.min(layer.tokens()));
            let mut sums = vec![0.0; layer.pairs(head)];
            layer.attention(head, &asked.queries, &asked.positions, &mut |_, weights| {
                layer.add(&mut sums, weights);
            });
            sums.iter_mut().for_each(|sum| *sum /= rows);
            pool(
                &sums[..earlier],
                self.kernel,
                self.pool,
                &mut scores.head_mut(head)[..earlier],
            );
        }
        Ok(())
    }
}

/// Pools `from` over windows of `kernel` neighbours, rounded up to an odd number, into `to`.
pub(super) fn pool(from: &[f32], kernel: usize, how: Pool, to: &mut [f32]) {
    let side = kernel / 2;
    for (at, to) in to.iter_mut().enumerate() {
        let near = &from[at.saturating_sub(side)..from.len().min(at + side + 1)];
        *to = match how {
            Pool::Average => near.iter().sum::<f32>() / (2 * side + 1) as f32,
            Pool::Largest => near.iter().fold(f32::NEG_INFINITY, |m, &x| larger(m, x)),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Toy;
    use super::*;

    #[test]
    fn pooling_by_hand() {
        let scores = [0.0, 0.0, 9.0, 0.0, 0.0];
        let mut pooled = [0.0; 5];
        pool(&scores, 3, Pool::Average, &mut pooled);
        assert_eq!(pooled, [0.0, 3.0, 3.0, 3.0, 0.0]);
        pool(&scores, 3, Pool::Largest, &mut pooled);
        assert_eq!(pooled, [0.0, 9.0, 9.0, 9.0, 0.0]);
        pool(&scores, 1, Pool::Average, &mut pooled);
        assert_eq!(pooled, scores);
        // What is no number stays none, so that it is refused.
        for how in [Pool::Average, Pool::Largest] {
            pool(&[0.0, 1.0, f32::NAN, 1.0, 0.0], 3, how, &mut pooled);
            assert!(pooled[1..4].iter().all(|score| score.is_nan()));
        }
    }

    #[test]
    fn what_the_window_looks_at_stays() {
        // The last two queries point at the key of token 5; nobody else's key is like it.
        let mut toy = Toy::new(1, 1, 2);
        toy.keep("snapkv(budget=3, window=2, kernel=1)", 10);
        let mut keys = [[0.0, 0.1]; 10];
        keys[5] = [9.0, 0.0];
        toy.read_keys_and_queries(&keys, &[[4.0, 0.0]; 10]);
        toy.compress();
        assert_eq!(toy.positions(0, 0), [5, 8, 9]);
    }
}
