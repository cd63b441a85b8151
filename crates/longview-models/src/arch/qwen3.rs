//! Qwen3 (<https://arxiv.org/abs/2505.09388>): llama with a norm on every query and key head.

use super::{Architecture, GgufRows, NormWeights, qwen2};
use crate::blueprint::{Bias, Blueprint, QkNorm};
use crate::config::Config;
use crate::error::ModelError;

pub(super) static QWEN3: Architecture = Architecture {
    name: "qwen3",
    model_types: &["qwen3"],
    gguf: "qwen3",
    blueprint: |config| with_head_norms(config, "qwen3"),
    names: &[],
    gguf_rows: GgufRows::HalfSplit,
    norm_weights: NormWeights::Factor,
};

/// The decoder that the dense and the expert version of Qwen3 share.
pub(super) fn with_head_norms(
    config: &Config,
    architecture: &'static str,
) -> Result<Blueprint, ModelError> {
    let mut blueprint = qwen2::with_late_windows(config, architecture)?;
    let bias = if config.flag("attention_bias", false)? {
        Bias::Present
    } else {
        Bias::Absent
    };
    let output_bias = config.flag("attention_output_bias", bias == Bias::Present)?;
    let output_bias = if output_bias {
        Bias::Present
    } else {
        Bias::Absent
    };
    for layer in &mut blueprint.layers {
        layer.attention.qk_norm = QkNorm::PerHead;
        layer.attention.qkv_bias = bias;
        layer.attention.output_bias = output_bias;
    }
    Ok(blueprint)
}
