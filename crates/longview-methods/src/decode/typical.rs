//! Paper: <https://arxiv.org/abs/2202.00666> (Meister et al., 2022), locally typical sampling.
//!
//! The tokens whose surprise −ln p is nearest to the entropy of the step stay, until their
//! probabilities sum to p. The most likely token may go, which is the point.

use longview_engine::sampling::{Candidates, Sampler, math};

use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `typical(p)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Decode,
    name: "typical",
    exact: true,
    paper: Some("https://arxiv.org/abs/2202.00666"),
    claim: None,
    doc: "keeps the tokens whose surprise is nearest to the expected one",
    parameters: &[Parameter {
        name: "p",
        default: "0.95",
        unit: "probability",
        doc: "the sum that is reached",
        domain: Domain::Share,
    }],
    build: Build::Sampler(|arguments| {
        Box::new(Typical {
            p: arguments.number("p"),
        })
    }),
};

struct Typical {
    p: f64,
}

impl Sampler for Typical {
    fn apply(&mut self, candidates: &mut Candidates, _history: &[u32]) {
        let highest = candidates.highest();
        if self.p >= 1.0 || highest == f32::NEG_INFINITY {
            return;
        }
        let total = candidates.total_weight();
        let log_total = math::ln(total);
        // Nats of a candidate: −ln p = ln total − (logit − highest).
        let surprise = |logit: f32| log_total - f64::from(logit - highest);
        let entropy: f64 = candidates
            .iter()
            .map(|item| (Candidates::weight(item, highest) / total, item.logit))
            .filter(|&(probability, _)| probability > 0.0)
            .map(|(probability, logit)| probability * surprise(logit))
            .sum();
        candidates.keep_mass_by_key(self.p, |item| (surprise(item.logit) - entropy).abs());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_typical_tokens_stay() {
        // Probabilities 0.5, 0.25, 0.125, 0.125: entropy 1.75 ln 2, surprises 1, 2, 3, 3 times
        // ln 2, so token 1 (off by 0.25) comes first, then 0 (0.75), then 2 and 3 (1.25).
        let logits = [0.5_f32.ln(), 0.25_f32.ln(), 0.125_f32.ln(), 0.125_f32.ln()];
        for (p, want) in [(0.2, vec![1]), (0.3, vec![0, 1]), (0.8, vec![0, 1, 2])] {
            let mut candidates = Candidates::from_logits(&logits).unwrap();
            Typical { p }.apply(&mut candidates, &[]);
            let mut ids: Vec<u32> = candidates.iter().map(|item| item.id).collect();
            ids.sort_unstable();
            assert_eq!(ids, want, "p = {p}");
        }
    }

    #[test]
    fn forbidden_tokens_do_not_disturb() {
        let mut candidates =
            Candidates::from_logits(&[f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY]).unwrap();
        Typical { p: 0.9 }.apply(&mut candidates, &[]);
        assert_eq!(candidates.top(1)[0].id, 1);
        assert_eq!(candidates.len(), 1);
    }
}
