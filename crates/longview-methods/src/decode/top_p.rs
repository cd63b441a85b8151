//! Paper: <https://arxiv.org/abs/1904.09751> (Holtzman et al., 2019), nucleus sampling.
//!
//! The most likely tokens stay until their probabilities sum to p; the token that passes the sum is
//! among them.

use longview_engine::sampling::{Candidates, Sampler};

use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `top-p(p)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Decode,
    name: "top-p",
    exact: true,
    paper: Some("https://arxiv.org/abs/1904.09751"),
    claim: None,
    doc: "keeps the most likely tokens whose probabilities sum to p",
    parameters: &[Parameter {
        name: "p",
        default: "0.95",
        unit: "probability",
        doc: "the sum that is reached",
        domain: Domain::Share,
    }],
    build: Build::Sampler(|arguments| {
        Box::new(TopP {
            p: arguments.number("p"),
        })
    }),
};

struct TopP {
    p: f64,
}

impl Sampler for TopP {
    fn apply(&mut self, candidates: &mut Candidates, _history: &[u32]) {
        if self.p < 1.0 {
            candidates.keep_top_mass(self.p);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_that_passes_the_sum_stays() {
        // Probabilities 0.5, 0.3, 0.2.
        let logits = [0.3_f32.ln(), 0.5_f32.ln(), 0.2_f32.ln()];
        for (p, want) in [(0.4, 1), (0.6, 2), (0.9, 3), (1.0, 3), (0.0, 1)] {
            let mut candidates = Candidates::from_logits(&logits).unwrap();
            TopP { p }.apply(&mut candidates, &[]);
            assert_eq!(candidates.len(), want, "p = {p}");
            assert_eq!(candidates.top(1)[0].id, 1);
        }
    }
}
