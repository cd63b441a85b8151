//! Qwen3 with experts (<https://arxiv.org/abs/2505.09388>).

use super::{Architecture, GgufRows, Names, NormWeights, qwen3};
use crate::blueprint::{Activation, Blueprint, MlpBlueprint, Weighting};
use crate::config::Config;
use crate::error::ModelError;

pub(super) static QWEN3_MOE: Architecture = Architecture {
    name: "qwen3-moe",
    model_types: &["qwen3_moe"],
    gguf: "qwen3moe",
    blueprint,
    names: Names::COMMON,
    gguf_rows: GgufRows::HalfSplit,
    norm_weights: NormWeights::Factor,
    delta: None,
};

fn blueprint(config: &Config) -> Result<Blueprint, ModelError> {
    let mut blueprint = qwen3::with_head_norms(config, "qwen3-moe")?;
    let experts = config.opt_usize("num_experts")?.map_or_else(
        || config.within("num_local_experts", 1, 4096),
        |_| config.within("num_experts", 1, 4096),
    )?;
    let used = config.within("num_experts_per_tok", 1, experts)?;
    let ffn = config.within("moe_intermediate_size", 1, 1 << 22)?;
    let step = config.opt_usize("decoder_sparse_step")?.unwrap_or(1);
    let weighting = if config.opt_bool("norm_topk_prob")?.unwrap_or(false) {
        Weighting::Normalised
    } else {
        Weighting::Softmax
    };
    let dense = config.layer_list("mlp_only_layers")?;
    for (index, layer) in blueprint.layers.iter_mut().enumerate() {
        if step != 0 && (index + 1) % step == 0 && !dense.contains(&index) {
            layer.mlp = MlpBlueprint::Experts {
                ffn,
                activation: Activation::Silu,
                experts,
                used,
                weighting,
                shared: None,
            };
        }
    }
    Ok(blueprint)
}
