//! Paper: <https://arxiv.org/abs/1909.05858> (Keskar et al., 2019), section 4.1.
//!
//! A token that occurred among the last ones has its logit divided by the penalty when it is
//! positive and multiplied by it when it is negative, once however often it occurred.

use longview_engine::sampling::{Candidates, Sampler};

use super::window::counts;
use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `repetition(penalty, last)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Decode,
    name: "repetition",
    exact: true,
    paper: Some("https://arxiv.org/abs/1909.05858"),
    claim: None,
    doc: "makes tokens that occurred less likely by a factor on their logits",
    parameters: &[
        Parameter {
            name: "penalty",
            default: "1.1",
            unit: "",
            doc: "what positive logits are divided by and negative ones multiplied by",
            domain: Domain::Positive,
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
        Box::new(Repetition {
            penalty,
            last: arguments.count("last"),
        })
    }),
};

struct Repetition {
    penalty: f32,
    last: usize,
}

impl Sampler for Repetition {
    fn apply(&mut self, candidates: &mut Candidates, history: &[u32]) {
        let penalty = self.penalty;
        for (id, _) in counts(history, self.last) {
            candidates.change(id, |logit| {
                if logit > 0.0 {
                    logit / penalty
                } else {
                    logit * penalty
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_signs_become_less_likely_once() {
        let mut candidates = Candidates::from_logits(&[2.0, -2.0, 1.0, 4.0]).unwrap();
        // Token 3 is outside the window; token 9 does not exist.
        Repetition {
            penalty: 2.0,
            last: 4,
        }
        .apply(&mut candidates, &[3, 9, 0, 0, 1]);
        let logits: Vec<f32> = candidates.iter().map(|item| item.logit).collect();
        assert_eq!(logits, [1.0, -4.0, 1.0, 4.0]);
    }
}
