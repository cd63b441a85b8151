//! Paper: <https://arxiv.org/abs/2407.01082> (Nguyen et al., 2024).
//!
//! A token stays when its probability is at least p times that of the most likely one, so the set
//! is small where the model is sure and large where it is not.

use longview_engine::sampling::{Candidates, Sampler, math};

use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `min-p(p)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Decode,
    name: "min-p",
    exact: true,
    paper: Some("https://arxiv.org/abs/2407.01082"),
    claim: None,
    doc: "keeps the tokens at least p times as likely as the most likely one",
    parameters: &[Parameter {
        name: "p",
        default: "0.05",
        unit: "share of the highest probability",
        doc: "the least that stays",
        domain: Domain::Share,
    }],
    build: Build::Sampler(|arguments| {
        Box::new(MinP {
            p: arguments.number("p"),
        })
    }),
};

struct MinP {
    p: f64,
}

impl Sampler for MinP {
    fn apply(&mut self, candidates: &mut Candidates, _history: &[u32]) {
        // probability ≥ p · highest probability  ⇔  logit ≥ highest logit + ln p
        if self.p > 0.0 {
            candidates.keep_at_least(candidates.highest() + math::ln(self.p) as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_moves_with_the_most_likely_token() {
        // Probabilities 0.6, 0.25, 0.15: shares of the highest are 1, 0.417 and 0.25.
        let logits = [0.15_f32.ln(), 0.6_f32.ln(), 0.25_f32.ln()];
        for (p, want) in [(0.5, 1), (0.4, 2), (0.2, 3), (0.0, 3), (1.0, 1)] {
            let mut candidates = Candidates::from_logits(&logits).unwrap();
            MinP { p }.apply(&mut candidates, &[]);
            assert_eq!(candidates.len(), want, "p = {p}");
        }
    }
}
