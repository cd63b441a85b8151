//! Logit bias: a number added to the logits of chosen tokens; −∞ forbids them.

use longview_engine::sampling::{Candidates, Sampler};

use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `logit-bias(ID=±x, …)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Decode,
    name: "logit-bias",
    exact: true,
    paper: None,
    claim: None,
    doc: "adds a number to the logits of chosen tokens; -inf forbids them",
    parameters: &[Parameter {
        name: "TOKEN",
        default: "",
        unit: "logit",
        doc: "what is added for this token id, as in 123=-5",
        domain: Domain::PerToken,
    }],
    build: Build::Sampler(|arguments| {
        Box::new(LogitBias {
            biases: arguments.per_token().to_vec(),
        })
    }),
};

struct LogitBias {
    biases: Vec<(u32, f32)>,
}

impl Sampler for LogitBias {
    fn apply(&mut self, candidates: &mut Candidates, _history: &[u32]) {
        for &(id, bias) in &self.biases {
            candidates.change(id, |logit| logit + bias);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn biases_are_added_and_unknown_tokens_ignored() {
        let mut candidates = Candidates::from_logits(&[2.0, -2.0, 1.0]).unwrap();
        let biases = vec![(0, f32::NEG_INFINITY), (1, 5.5), (900, 1.0)];
        LogitBias { biases }.apply(&mut candidates, &[]);
        let logits: Vec<f32> = candidates.iter().map(|item| item.logit).collect();
        assert_eq!(logits, [f32::NEG_INFINITY, 3.5, 1.0]);
    }
}
