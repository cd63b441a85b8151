//! Frequency penalty: an amount off a token's logit for every time it occurred among the last ones.

use longview_engine::sampling::{Candidates, Sampler};

use super::window::counts;
use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `frequency(penalty, last)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Decode,
    name: "frequency",
    exact: true,
    paper: None,
    claim: None,
    doc: "takes an amount off the logits of tokens for every time they occurred",
    parameters: &[
        Parameter {
            name: "penalty",
            default: "0.5",
            unit: "logit",
            doc: "what is taken off for each occurrence; below 0 it is added",
            domain: Domain::Number,
        },
        Parameter {
            name: "last",
            default: "64",
            unit: "tokens",
            doc: "how far back tokens count, prompt included",
            domain: Domain::Count,
        },
    ],
    build: Build::Sampler(|arguments| {
        let penalty = arguments.number("penalty") as f32;
        Box::new(Frequency {
            penalty,
            last: arguments.count("last"),
        })
    }),
};

struct Frequency {
    penalty: f32,
    last: usize,
}

impl Sampler for Frequency {
    fn apply(&mut self, candidates: &mut Candidates, history: &[u32]) {
        for (id, count) in counts(history, self.last) {
            candidates.change(id, |logit| logit - self.penalty * count as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_occurrence_inside_the_window_counts() {
        let mut candidates = Candidates::from_logits(&[2.0, -2.0, 1.0]).unwrap();
        Frequency {
            penalty: 0.5,
            last: 3,
        }
        .apply(&mut candidates, &[0, 0, 1, 0]);
        let logits: Vec<f32> = candidates.iter().map(|item| item.logit).collect();
        assert_eq!(logits, [1.0, -2.5, 1.0]);
    }
}
