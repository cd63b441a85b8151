//! Qwen3.5, text part (<https://huggingface.co/Qwen/Qwen3.5-27B>): Qwen3-Next's layers with
//! projections of their own, with plain feed-forward parts or with experts in every layer.
//!
//! Its rotary embedding has sections for the places of images; for text all sections have the same
//! positions, which is the plain embedding.

use super::{Architecture, GgufRows, Names, NormWeights, qwen3_next};
use crate::blueprint::{Blueprint, Weighting};
use crate::config::Config;
use crate::delta_rows::DeltaFiles;
use crate::error::ModelError;

pub(super) static QWEN3_5: Architecture = Architecture {
    name: "qwen3.5",
    model_types: &["qwen3_5_text", "qwen3_5"],
    gguf: "qwen35",
    blueprint: |config| qwen3_next::hybrid(config, "qwen3.5"),
    names: NAMES,
    gguf_rows: GgufRows::HalfSplit,
    norm_weights: NormWeights::FactorMinusOne,
    delta: Some(DeltaFiles::Separate),
};

pub(super) static QWEN3_5_MOE: Architecture = Architecture {
    name: "qwen3.5-moe",
    model_types: &["qwen3_5_moe_text", "qwen3_5_moe"],
    gguf: "qwen35moe",
    blueprint: with_experts,
    names: NAMES,
    gguf_rows: GgufRows::HalfSplit,
    norm_weights: NormWeights::FactorMinusOne,
    delta: Some(DeltaFiles::Separate),
};

const NAMES: Names = Names {
    hugging_face: &[],
    gguf: qwen3_next::GGUF_NAMES,
};

fn with_experts(config: &Config) -> Result<Blueprint, ModelError> {
    let mut blueprint = qwen3_next::hybrid(config, "qwen3.5-moe")?;
    let experts = qwen3_next::experts(config, Weighting::Normalised)?;
    for layer in &mut blueprint.layers {
        layer.mlp = experts.clone();
    }
    Ok(blueprint)
}
