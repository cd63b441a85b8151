//! Paper: <https://arxiv.org/abs/2312.07104> (Zheng et al., SGLang, 2023), whose radix tree of
//! prefixes is here a table of chain hashes over blocks of 64 tokens.
//!
//! What a prompt begins with is taken over, in whole blocks, if anyone has read it before: another
//! question, another context, an earlier run. The logits stay the same to the bit.

use longview_engine::Reuse;

use crate::method::{Build, Method, Stage};

/// `prefix`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Reuse,
    name: "prefix",
    exact: true,
    paper: Some("https://arxiv.org/abs/2312.07104"),
    claim: None,
    doc: "what a prompt begins with is taken over from what was read before, found by content",
    parameters: &[],
    build: Build::Reuse(|_| Reuse::Prefix),
};
