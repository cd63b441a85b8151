//! Mixtral (<https://arxiv.org/abs/2401.04088>): mistral with several experts in every layer.

use super::{Architecture, GgufRows, Names, NormWeights, llama};
use crate::blueprint::{Activation, Blueprint, MlpBlueprint, Weighting};
use crate::config::Config;
use crate::error::ModelError;
use crate::names::Role;

pub(super) static MIXTRAL: Architecture = Architecture {
    name: "mixtral",
    model_types: &["mixtral"],
    gguf: "llama",
    blueprint,
    names: Names::hugging_face(&[
        (Role::Router, "model.layers.{l}.block_sparse_moe.gate"),
        (
            Role::ExpertGate,
            "model.layers.{l}.block_sparse_moe.experts.{e}.w1",
        ),
        (
            Role::ExpertUp,
            "model.layers.{l}.block_sparse_moe.experts.{e}.w3",
        ),
        (
            Role::ExpertDown,
            "model.layers.{l}.block_sparse_moe.experts.{e}.w2",
        ),
    ]),
    gguf_rows: GgufRows::Interleaved,
    norm_weights: NormWeights::Factor,
    delta: None,
};

fn blueprint(config: &Config) -> Result<Blueprint, ModelError> {
    let mut blueprint = llama::plain(config, "mixtral", |_| true)?;
    let experts = config.within("num_local_experts", 1, 4096)?;
    let used = config.within("num_experts_per_tok", 1, experts)?;
    let ffn = config.sizes()?.ffn;
    for layer in &mut blueprint.layers {
        layer.mlp = MlpBlueprint::Experts {
            ffn,
            activation: Activation::Silu,
            experts,
            used,
            weighting: Weighting::Normalised,
            shared: None,
        };
    }
    Ok(blueprint)
}
