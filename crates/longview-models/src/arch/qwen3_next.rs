//! Qwen3-Next (<https://huggingface.co/Qwen/Qwen3-Next-80B-A3B-Instruct>): three layers of the gated
//! delta rule (<https://arxiv.org/abs/2412.06464>) to each layer of attention, whose heads turn in
//! part and pass a gate; many small experts and one that every row uses.

use serde_json::json;

use super::{Architecture, GgufRows, Names, NormWeights, llama};
use crate::blueprint::{
    Activation, Blueprint, DeltaShape, Mixer, MlpBlueprint, OutputGate, QkNorm, Weighting,
};
use crate::config::Config;
use crate::delta_rows::DeltaFiles;
use crate::error::ModelError;
use crate::names::{NameTable, Role};
use longview_kernels::recurrent::MOST_TAPS;

pub(super) static QWEN3_NEXT: Architecture = Architecture {
    name: "qwen3-next",
    model_types: &["qwen3_next"],
    gguf: "qwen3next",
    blueprint,
    names: Names {
        hugging_face: &[],
        gguf: GGUF_NAMES,
    },
    gguf_rows: GgufRows::HalfSplit,
    norm_weights: NormWeights::FactorMinusOne,
    delta: Some(DeltaFiles::Fused),
};

/// In GGUF files the norm before the feed-forward part has the name that folders give it.
pub(super) const GGUF_NAMES: NameTable = &[(Role::FfnNorm, "blk.{l}.post_attention_norm")];

/// Numbers in the states of one layer that no published model comes near.
const MOST_STATE: usize = 1 << 26;

fn blueprint(config: &Config) -> Result<Blueprint, ModelError> {
    let mut blueprint = hybrid(config, "qwen3-next")?;
    let weighting = if config.opt_bool("norm_topk_prob")?.unwrap_or(true) {
        Weighting::Normalised
    } else {
        Weighting::Softmax
    };
    let experts = experts(config, weighting)?;
    let step = config.opt_usize("decoder_sparse_step")?.unwrap_or(1);
    let dense = config.layer_list("mlp_only_layers")?;
    for (index, layer) in blueprint.layers.iter_mut().enumerate() {
        if step != 0 && (index + 1) % step == 0 && !dense.contains(&index) {
            layer.mlp = experts.clone();
        }
    }
    Ok(blueprint)
}

/// The decoder that Qwen3-Next and Qwen3.5 share, with plain feed-forward parts.
pub(super) fn hybrid(config: &Config, architecture: &'static str) -> Result<Blueprint, ModelError> {
    // What checkpoints leave out.
    let config = &config.with_defaults(json!({"partial_rotary_factor": 0.25,
        "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
        "linear_num_key_heads": 16, "linear_num_value_heads": 32}));
    if !config.opt_bool("attn_output_gate")?.unwrap_or(true) {
        let problem = "false is unknown: in this family every attention has a gate";
        return Err(config.error("attn_output_gate", problem));
    }
    let layers = config.sizes()?.layers;
    let mut blueprint = llama::with_windows(config, architecture, vec![None; layers])?;
    let (qkv_bias, output_bias) = llama::biases(config)?;
    for attention in blueprint.attentions_mut() {
        attention.qk_norm = QkNorm::PerHead;
        attention.output_gate = OutputGate::Sigmoid;
        attention.qkv_bias = qkv_bias;
        attention.output_bias = output_bias;
    }
    let delta = delta(config)?;
    let recurrent = config.recurrent_layers(layers)?;
    for (layer, recurrent) in blueprint.layers.iter_mut().zip(recurrent) {
        if recurrent {
            layer.mixer = Mixer::GatedDelta(delta);
        }
    }
    Ok(blueprint)
}

/// Experts of which a row uses some, and one that it always uses.
pub(super) fn experts(config: &Config, weighting: Weighting) -> Result<MlpBlueprint, ModelError> {
    let experts = config.within("num_experts", 1, 4096)?;
    Ok(MlpBlueprint::Experts {
        ffn: config.within("moe_intermediate_size", 1, 1 << 22)?,
        activation: Activation::Silu,
        experts,
        used: config.within("num_experts_per_tok", 1, experts)?,
        weighting,
        shared: Some(config.within("shared_expert_intermediate_size", 1, 1 << 22)?),
    })
}

fn delta(config: &Config) -> Result<DeltaShape, ModelError> {
    let shape = DeltaShape {
        key_heads: config.within("linear_num_key_heads", 1, 4096)?,
        value_heads: config.within("linear_num_value_heads", 1, 4096)?,
        key_dim: config.within("linear_key_head_dim", 1, 1024)?,
        value_dim: config.within("linear_value_head_dim", 1, 1024)?,
        taps: config.within("linear_conv_kernel_dim", 1, MOST_TAPS)?,
    };
    if !shape.value_heads.is_multiple_of(shape.key_heads) {
        let problem = format!(
            "{} does not divide the {} value heads",
            shape.key_heads, shape.value_heads
        );
        return Err(config.error("linear_num_key_heads", problem));
    }
    if shape.state() > MOST_STATE {
        let problem = format!("{shape:?} would keep {} numbers a layer", shape.state());
        return Err(config.error("linear_value_head_dim", problem));
    }
    Ok(shape)
}
