//! Gemma 2 (<https://arxiv.org/abs/2408.00118>): norms before and after each part, soft caps on
//! scores and logits, every other layer with a sliding window.

use super::{Architecture, GgufRows, Names, NormWeights, llama};
use crate::blueprint::{Activation, Blueprint, MlpBlueprint, Norms};
use crate::config::Config;
use crate::error::ModelError;
use crate::names::{NameTable, Role};

pub(super) static GEMMA2: Architecture = Architecture {
    name: "gemma2",
    model_types: &["gemma2"],
    gguf: "gemma2",
    blueprint,
    names: Names::hugging_face(NAMES),
    gguf_rows: GgufRows::HalfSplit,
    norm_weights: NormWeights::FactorMinusOne,
    delta: None,
};

/// Gemma's name for the norm after attention is other models' name for the one before the
/// feed-forward part.
pub(super) const NAMES: NameTable = &[
    (
        Role::PostAttentionNorm,
        "model.layers.{l}.post_attention_layernorm",
    ),
    (Role::FfnNorm, "model.layers.{l}.pre_feedforward_layernorm"),
];

fn blueprint(config: &Config) -> Result<Blueprint, ModelError> {
    let mut blueprint = gemma(config, "gemma2", |layer| layer % 2 == 0)?;
    let softcap = config.opt_f64("attn_logit_softcapping")?.unwrap_or(0.0) as f32;
    blueprint.final_softcap = config.opt_f64("final_logit_softcapping")?.unwrap_or(0.0) as f32;
    for attention in blueprint.attentions_mut() {
        attention.softcap = softcap;
    }
    Ok(blueprint)
}

/// What Gemma 2 and 3 share.
pub(super) fn gemma(
    config: &Config,
    architecture: &'static str,
    windowed: impl Fn(usize) -> bool,
) -> Result<Blueprint, ModelError> {
    let mut blueprint = llama::plain(config, architecture, windowed)?;
    blueprint.embedding_scale = (blueprint.hidden as f32).sqrt();
    let activation = match config.opt_str("hidden_activation")? {
        None | Some("gelu_pytorch_tanh") => Activation::GeluTanh,
        Some(other) => {
            let problem = format!("{other:?} is unknown; gelu_pytorch_tanh is known");
            return Err(config.error("hidden_activation", problem));
        }
    };
    let scalar = config.opt_f64("query_pre_attn_scalar")?;
    for attention in blueprint.attentions_mut() {
        let scalar = scalar.unwrap_or(attention.head_dim as f64);
        attention.scale = (1.0 / scalar.sqrt()) as f32;
    }
    for layer in &mut blueprint.layers {
        layer.norms = Norms::BeforeAndAfter;
        if let MlpBlueprint::Gated {
            activation: chosen, ..
        } = &mut layer.mlp
        {
            *chosen = activation;
        }
    }
    Ok(blueprint)
}
