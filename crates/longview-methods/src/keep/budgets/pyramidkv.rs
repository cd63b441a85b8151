//! Paper: <https://arxiv.org/abs/2406.02069> (Cai et al., PyramidKV: Dynamic KV Cache Compression based
//! on Pyramidal Information Funneling, 2024).
//!
//! Lower layers spread their attention and keep more, upper ones keep less, falling evenly from layer
//! to layer. The steepest pyramid leaves the last layer `1/beta` of the average; where the first
//! layer could not use its part, the pyramid is flatter. What always stays is beside the pyramid, as in the
//! published code, or part of it, as in kvpress (`protected=inside`), where a pyramid whose last layer
//! would not hold it is given up for an even budget. For a prompt below twice the budget the published
//! code gives every layer the same; here the pyramid is as flat as it must be, as in kvpress. The published
//! code divides whole numbers and overspends; here the total is exact.

use longview_kv::keep::{Allocate, Allocation, Scope};

use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `pyramidkv(beta, protected)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "pyramidkv",
    exact: false,
    paper: Some("https://arxiv.org/abs/2406.02069"),
    claim: Some("equals the whole cache on LongBench with 12 % of it"),
    doc: "lower layers keep more, falling evenly to the last",
    parameters: &[
        Parameter {
            name: "beta",
            default: "20",
            unit: "",
            doc: "the last layer keeps the average divided by this; from 1, an even budget",
            domain: Domain::Positive,
        },
        Parameter {
            name: "protected",
            default: "beside",
            unit: "",
            doc: "beside or inside: whether what always stays comes on top of a layer's part of the pyramid",
            domain: Domain::Word(&["beside", "inside"]),
        },
    ],
    build: Build::Allocate(|arguments| {
        Box::new(PyramidKv {
            beta: arguments.number("beta").max(1.0),
            inside: arguments.word("protected") == "inside",
        })
    }),
};

struct PyramidKv {
    beta: f64,
    /// Whether what always stays is part of the pyramid.
    inside: bool,
}

impl Allocate for PyramidKv {
    fn scope(&self) -> Scope {
        Scope::Model
    }

    fn wanted(&self, ask: &Allocation<'_>) -> Vec<Vec<f64>> {
        let heads: usize = ask.protected.iter().map(Vec::len).sum();
        let held: usize = ask.protected.iter().flatten().sum();
        let held = held as f64 / heads.max(1) as f64;
        let beside = if self.inside { 0.0 } else { held };
        let average = (ask.slots as f64 - beside).max(0.0);
        let longest = ask.scores.iter().map(|scores| scores.head(0).len()).max();
        let room = (longest.unwrap_or(0) as f64 - held).max(0.0);
        let mut least = average / self.beta;
        if 2.0 * average - least > room {
            least = 2.0 * average - room;
        }
        if self.inside && least < held {
            least = average;
        }
        let last = ask.protected.len().saturating_sub(1).max(1) as f64;
        let layers = ask.protected.iter().enumerate();
        layers
            .map(|(layer, protected)| {
                let share = 2.0 * average - least - (layer as f64 / last) * 2.0 * (average - least);
                // A single layer has the average.
                let share = if ask.protected.len() == 1 {
                    average
                } else {
                    share
                };
                let of_head = |&held: &usize| match self.inside {
                    true => share,
                    false => held as f64 + share,
                };
                protected.iter().map(of_head).collect()
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::layer_counts;

    #[test]
    fn layers_fall_evenly_and_the_total_is_exact() {
        let layers: Vec<Vec<Vec<f32>>> = vec![vec![vec![0.0; 4000]; 2]; 32];
        let counts = layer_counts("pyramidkv(beta=20)", &layers, 120);
        let of_head: Vec<usize> = counts.iter().map(|heads| heads[0]).collect();
        assert!(of_head.is_sorted_by(|a, b| a >= b), "{of_head:?}");
        assert_eq!((of_head[0], of_head[31]), (234, 6));
        assert_eq!(counts.iter().flatten().sum::<usize>(), 120 * 64);
        let even = layer_counts("pyramidkv(beta=1)", &layers, 120);
        assert!(even.iter().flatten().all(|&count| count == 120));
        // The first layer cannot have more than there is.
        let short: Vec<Vec<Vec<f32>>> = vec![vec![vec![0.0; 150]]; 3];
        assert_eq!(layer_counts("pyramidkv", &short, 100), [[150], [100], [50]]);
        assert_eq!(layer_counts("pyramidkv", &short[..1], 100), [[100]]);
    }

    #[test]
    fn what_always_stays_is_beside_the_pyramid_or_part_of_it() {
        let mut scores = vec![0.0; 400];
        scores[390..].fill(f32::INFINITY);
        let layers: Vec<Vec<Vec<f32>>> = vec![vec![scores]; 3];
        // Ten stay in each layer. Of 70: a pyramid of 60 beside them, from 90 to 30, or one of 70 in all.
        let beside = layer_counts("pyramidkv(beta=2)", &layers, 70);
        assert_eq!(beside, [[100], [70], [40]]);
        let inside = layer_counts("pyramidkv(beta=2, protected=inside)", &layers, 70);
        assert_eq!(inside, [[105], [70], [35]]);
        // The last layer would have 3: even.
        let even = layer_counts("pyramidkv(beta=20, protected=inside)", &layers, 70);
        assert_eq!(even, [[70], [70], [70]]);
    }
}
