//! Phi-3 and Phi-3.5 (<https://arxiv.org/abs/2404.14219>): llama with fused projections, a sliding
//! window where the settings have one, and longrope in the long-context versions.

use super::{Architecture, GgufRows, Names, NormWeights, llama};
use crate::blueprint::{Blueprint, MlpBlueprint, Projections};
use crate::config::Config;
use crate::error::ModelError;

pub(super) static PHI3: Architecture = Architecture {
    name: "phi3",
    model_types: &["phi3"],
    gguf: "phi3",
    blueprint,
    names: Names::COMMON,
    gguf_rows: GgufRows::HalfSplit,
    norm_weights: NormWeights::Factor,
    delta: None,
};

fn blueprint(config: &Config) -> Result<Blueprint, ModelError> {
    let mut blueprint = llama::plain(config, "phi3", |_| true)?;
    for attention in blueprint.attentions_mut() {
        attention.projections = Projections::Fused;
    }
    for layer in &mut blueprint.layers {
        if let MlpBlueprint::Gated { projections, .. } = &mut layer.mlp {
            *projections = Projections::Fused;
        }
    }
    Ok(blueprint)
}
