//! Every KV head of every layer keeps the same number of pairs.

use longview_kv::keep::{Allocate, Allocation};

use crate::method::{Build, Method, Stage};

/// `uniform`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "uniform",
    exact: false,
    paper: None,
    claim: None,
    doc: "every KV head of every layer keeps the same number of pairs",
    parameters: &[],
    build: Build::Allocate(|_| Box::new(Uniform)),
};

pub(in super::super) struct Uniform;

impl Allocate for Uniform {
    fn wanted(&self, ask: &Allocation<'_>) -> Vec<Vec<f64>> {
        let of_layer = |heads: &Vec<usize>| vec![ask.slots as f64; heads.len()];
        ask.protected.iter().map(of_layer).collect()
    }
}
