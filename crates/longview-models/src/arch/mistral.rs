//! Mistral (<https://arxiv.org/abs/2310.06825>): llama with a sliding window where the settings
//! have one.

use super::{Architecture, GgufRows, Names, NormWeights, llama};

pub(super) static MISTRAL: Architecture = Architecture {
    name: "mistral",
    model_types: &["mistral"],
    gguf: "llama",
    blueprint: |config| llama::plain(config, "mistral", |_| true),
    names: Names::COMMON,
    gguf_rows: GgufRows::Interleaved,
    norm_weights: NormWeights::Factor,
    delta: None,
};
