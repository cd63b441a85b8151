//! Paper: <https://arxiv.org/abs/2306.14048> (Zhang et al., H2O: Heavy-Hitter Oracle for Efficient
//! Generative Inference of Large Language Models, 2023).
//!
//! Pairs that have received the most attention from all queries so far stay, beside the most recent
//! ones, half and half. Sums are in f32, over the query heads of a group, and a pair's goes with it
//! through later compactions. Reading costs a second product of queries and keys. Plain sums favour
//! early tokens, which more rows see: `normalise=rows` divides by how many do. With `block` the budget
//! holds while a prompt is read; what stays then differs from the paper's, which reads it whole, for rows
//! give their attention to what is left.

use longview_kv::KvError;
use longview_kv::keep::{Gather, LayerView, Needs, Question, Score, Scores};

use super::{keep, parameter};
use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `h2o(budget, recent-share, normalise, sinks, alloc, merge, block, decode, chunks)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "h2o",
    exact: false,
    paper: Some("https://arxiv.org/abs/2306.14048"),
    claim: Some(
        "a cache of 20 % answers about as well as the whole one, up to 29 \
             times the throughput",
    ),
    doc: "the pairs that received the most attention stay, with the most recent ones",
    parameters: &[
        parameter::budget("20%"),
        parameter::recent_share("0.5"),
        Parameter {
            name: "normalise",
            default: "none",
            unit: "",
            doc: "none: sums of attention; rows: their means over the rows that could see the pair",
            domain: Domain::Word(&["none", "rows"]),
        },
        parameter::sinks("0"),
        parameter::alloc("uniform"),
        parameter::MERGE,
        parameter::block("never"),
        parameter::decode("16"),
        parameter::CHUNKS,
    ],
    build: Build::Keep(|arguments| {
        let normalise = match arguments.word("normalise") {
            "rows" => Normalise::Rows,
            _ => Normalise::None,
        };
        keep(arguments, Question::Unseen, H2o { normalise })
    }),
};

struct H2o {
    normalise: Normalise,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Normalise {
    None,
    Rows,
}

impl Score for H2o {
    fn needs(&self) -> Needs {
        Needs {
            column_sums: Gather::Yes,
            ..Needs::default()
        }
    }

    fn score(&self, layer: &LayerView<'_>, scores: &mut Scores) -> Result<(), KvError> {
        for head in 0..layer.heads() {
            let sums = layer.column_sums(head)?;
            for (pair, (score, &sum)) in scores.head_mut(head).iter_mut().zip(sums).enumerate() {
                *score = match self.normalise {
                    Normalise::None => sum,
                    Normalise::Rows => sum / (layer.tokens() - layer.position(head, pair)) as f32,
                };
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Toy;

    #[test]
    fn heavy_hitters_by_hand() {
        // Rows of attention (1), (.5, .5), (.2, .1, .7): sums 1.7, .6, .7.
        let mut toy = Toy::new(1, 1, 3);
        toy.keep("h2o(budget=2)", 3);
        let rows = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.1, 0.7f32]];
        let queries = rows.map(|row| row.map(|x| x.max(1e-9).ln()));
        toy.read_keys_and_queries(
            &[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
            &queries,
        );
        let sums = toy.sums(0);
        for (sum, expected) in sums.iter().zip([1.7, 0.6, 0.7]) {
            assert!((sum - expected).abs() < 1e-5, "{sums:?}");
        }
        toy.compress();
        // One heavy hitter and the most recent one.
        assert_eq!(toy.positions(0, 0), [0, 2]);
    }

    #[test]
    fn the_sums_of_a_head_are_its_rows_however_they_were_read() {
        let sums = |chunks: &[usize]| {
            let mut toy = Toy::new(1, 2, 8);
            toy.keep("h2o(budget=500)", 300);
            chunks.iter().for_each(|&count| toy.read(count));
            toy.sums(0)
        };
        let (whole, parts) = (sums(&[300]), sums(&[64, 1, 100, 135]));
        assert!((whole.iter().sum::<f32>() - 300.0).abs() < 0.3);
        for (whole, part) in whole.iter().zip(&parts) {
            assert!(
                (whole - part).abs() < 1e-4 * whole.max(1.0),
                "{whole} {part}"
            );
        }
    }
}
