//! Qwen3 (<https://arxiv.org/abs/2505.09388>): llama with a norm on every query and key head.

use super::llama::biases;
use super::{Architecture, GgufRows, Names, NormWeights, qwen2};
use crate::blueprint::{Blueprint, QkNorm};
use crate::config::Config;
use crate::error::ModelError;

pub(super) static QWEN3: Architecture = Architecture {
    name: "qwen3",
    model_types: &["qwen3"],
    gguf: "qwen3",
    blueprint: |config| with_head_norms(config, "qwen3"),
    names: Names::COMMON,
    gguf_rows: GgufRows::HalfSplit,
    norm_weights: NormWeights::Factor,
    delta: None,
};

/// The decoder that the dense and the expert version of Qwen3 share.
pub(super) fn with_head_norms(
    config: &Config,
    architecture: &'static str,
) -> Result<Blueprint, ModelError> {
    let mut blueprint = qwen2::with_late_windows(config, architecture)?;
    let (bias, output_bias) = biases(config)?;
    for attention in blueprint.attentions_mut() {
        attention.qk_norm = QkNorm::PerHead;
        attention.qkv_bias = bias;
        attention.output_bias = output_bias;
    }
    Ok(blueprint)
}
