//! Paper: <https://arxiv.org/abs/1805.04833> (Fan, Lewis and Dauphin, 2018).
//!
//! Only the k most likely tokens stay.

use longview_engine::sampling::{Candidates, Sampler};

use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `top-k(k)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Decode,
    name: "top-k",
    exact: true,
    paper: Some("https://arxiv.org/abs/1805.04833"),
    claim: None,
    doc: "keeps the k most likely tokens",
    parameters: &[Parameter {
        name: "k",
        default: "40",
        unit: "tokens",
        doc: "how many stay",
        domain: Domain::Count,
    }],
    build: Build::Sampler(|arguments| {
        Box::new(TopK {
            k: arguments.count("k"),
        })
    }),
};

struct TopK {
    k: usize,
}

impl Sampler for TopK {
    fn apply(&mut self, candidates: &mut Candidates, _history: &[u32]) {
        candidates.keep_top(self.k);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_k_most_likely_stay_and_ties_go_to_the_lower_id() {
        let mut candidates = Candidates::from_logits(&[1.0, 3.0, 2.0, 2.0, 0.0]).unwrap();
        TopK { k: 2 }.apply(&mut candidates, &[]);
        let ids: Vec<u32> = candidates.iter().map(|item| item.id).collect();
        assert_eq!(ids, [1, 2]);
        TopK { k: 9 }.apply(&mut candidates, &[]);
        assert_eq!(candidates.len(), 2);
    }
}
