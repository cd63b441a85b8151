//! Temperature: logits divided by a number before the softmax.
//!
//! Below 1 the likely tokens become likelier, above 1 the unlikely ones do; at 0 only the most
//! likely is left.

use longview_engine::sampling::{Candidates, Sampler};

use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `temperature(t)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Decode,
    name: "temperature",
    exact: true,
    paper: None,
    claim: None,
    doc: "divides the logits; below 1 the likely tokens become likelier, at 0 only one is left",
    parameters: &[Parameter {
        name: "t",
        default: "0.7",
        unit: "",
        doc: "what the logits are divided by",
        domain: Domain::NotNegative,
    }],
    build: Build::Sampler(|arguments| {
        Box::new(Temperature {
            t: arguments.number("t"),
        })
    }),
};

struct Temperature {
    t: f64,
}

impl Sampler for Temperature {
    fn apply(&mut self, candidates: &mut Candidates, _history: &[u32]) {
        let factor = (1.0 / self.t) as f32;
        // Also for a temperature so small that its inverse is beyond f32.
        if factor.is_infinite() {
            candidates.keep_top(1);
        } else if factor != 1.0 {
            candidates.scale(factor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(t: f64) -> Vec<f32> {
        let mut candidates = Candidates::from_logits(&[1.0, -2.0, 3.0]).unwrap();
        Temperature { t }.apply(&mut candidates, &[]);
        candidates.iter().map(|item| item.logit).collect()
    }

    #[test]
    fn logits_are_divided() {
        assert_eq!(logits(0.5), [2.0, -4.0, 6.0]);
        assert_eq!(logits(1.0), [1.0, -2.0, 3.0]);
    }

    #[test]
    fn zero_leaves_the_most_likely() {
        assert_eq!(logits(0.0), [3.0]);
        assert_eq!(logits(1e-300), [3.0]);
    }
}
