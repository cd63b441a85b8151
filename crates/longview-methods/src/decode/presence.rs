//! Presence penalty: a fixed amount off the logit of every token that occurred among the last ones.

use longview_engine::sampling::{Candidates, Sampler};

use super::window::counts;
use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `presence(penalty, last)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Decode,
    name: "presence",
    exact: true,
    paper: None,
    claim: None,
    doc: "takes a fixed amount off the logits of tokens that occurred",
    parameters: &[
        Parameter {
            name: "penalty",
            default: "0.5",
            unit: "logit",
            doc: "what is taken off, once for each token; below 0 it is added",
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
        Box::new(Presence {
            penalty,
            last: arguments.count("last"),
        })
    }),
};

struct Presence {
    penalty: f32,
    last: usize,
}

impl Sampler for Presence {
    fn apply(&mut self, candidates: &mut Candidates, history: &[u32]) {
        for (id, _) in counts(history, self.last) {
            candidates.change(id, |logit| logit - self.penalty);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_that_occurred_pays_once() {
        let mut candidates = Candidates::from_logits(&[2.0, -2.0, 1.0]).unwrap();
        Presence {
            penalty: 0.5,
            last: 64,
        }
        .apply(&mut candidates, &[0, 1, 0]);
        let logits: Vec<f32> = candidates.iter().map(|item| item.logit).collect();
        assert_eq!(logits, [1.5, -2.5, 1.0]);
    }
}
