//! Llama 2, 3 and 3.1 (<https://arxiv.org/abs/2302.13971>, <https://arxiv.org/abs/2407.21783>).

use super::{Architecture, GgufRows, Names, NormWeights};
use crate::blueprint::{
    Activation, AttentionBlueprint, Bias, Blueprint, LayerBlueprint, Mixer, MlpBlueprint, Norms,
    OutputGate, Projections, QkNorm,
};
use crate::config::{Config, Sizes};
use crate::error::ModelError;
use crate::rope::Rope;

pub(super) static LLAMA: Architecture = Architecture {
    name: "llama",
    model_types: &["llama"],
    gguf: "llama",
    blueprint,
    names: Names::COMMON,
    gguf_rows: GgufRows::Interleaved,
    norm_weights: NormWeights::Factor,
    delta: None,
};

fn blueprint(config: &Config) -> Result<Blueprint, ModelError> {
    let mut blueprint = plain(config, "llama", |_| false)?;
    let (attention_bias, output_bias) = biases(config)?;
    let mlp_bias = bias(config, "mlp_bias", Bias::Absent)?;
    for attention in blueprint.attentions_mut() {
        attention.qkv_bias = attention_bias;
        attention.output_bias = output_bias;
    }
    for layer in &mut blueprint.layers {
        if let MlpBlueprint::Gated { bias, .. } = &mut layer.mlp {
            *bias = mlp_bias;
        }
    }
    Ok(blueprint)
}

/// Biases on the query, key and value projections, and on the output projection.
pub(super) fn biases(config: &Config) -> Result<(Bias, Bias), ModelError> {
    let qkv = bias(config, "attention_bias", Bias::Absent)?;
    Ok((qkv, bias(config, "attention_output_bias", qkv)?))
}

fn bias(config: &Config, key: &str, default: Bias) -> Result<Bias, ModelError> {
    Ok(
        match config.opt_bool(key)?.unwrap_or(default == Bias::Present) {
            true => Bias::Present,
            false => Bias::Absent,
        },
    )
}

/// The decoder that most architectures vary: RMS norm before attention and before a SiLU-gated
/// feed-forward part, rotary positions, grouped queries. Layers for which `windowed` holds use the
/// settings' sliding window.
pub(super) fn plain(
    config: &Config,
    architecture: &'static str,
    windowed: impl Fn(usize) -> bool,
) -> Result<Blueprint, ModelError> {
    let windows = config.windows(config.sizes()?.layers, windowed)?;
    with_windows(config, architecture, windows)
}

/// The same decoder with the window, if any, of each layer.
pub(super) fn with_windows(
    config: &Config,
    architecture: &'static str,
    windows: Vec<Option<usize>>,
) -> Result<Blueprint, ModelError> {
    let sizes = config.sizes()?;
    let rope = Rope::from_config(
        config,
        sizes.head_dim,
        sizes.max_positions,
        "full_attention",
    )?;
    let activation = match config.opt_str("hidden_act")? {
        None | Some("silu" | "swish") => Activation::Silu,
        Some("gelu") => Activation::Gelu,
        Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_fast") => Activation::GeluTanh,
        Some(other) => {
            let known = "silu, gelu and gelu_pytorch_tanh are known";
            return Err(config.error("hidden_act", format!("{other:?} is unknown; {known}")));
        }
    };
    Ok(Blueprint {
        architecture,
        vocab: sizes.vocab,
        hidden: sizes.hidden,
        max_positions: sizes.max_positions.max(rope.reach()),
        norm_eps: sizes.norm_eps,
        embedding_scale: 1.0,
        final_softcap: 0.0,
        ropes: vec![rope],
        layers: windows
            .into_iter()
            .map(|window| layer(&sizes, activation, window))
            .collect(),
    })
}

fn layer(sizes: &Sizes, activation: Activation, window: Option<usize>) -> LayerBlueprint {
    LayerBlueprint {
        mixer: Mixer::Attention(AttentionBlueprint {
            heads: sizes.heads,
            kv_heads: sizes.kv_heads,
            head_dim: sizes.head_dim,
            scale: 1.0 / (sizes.head_dim as f32).sqrt(),
            softcap: 0.0,
            window,
            rope: 0,
            projections: Projections::Separate,
            qkv_bias: Bias::Absent,
            output_bias: Bias::Absent,
            qk_norm: QkNorm::Absent,
            output_gate: OutputGate::Absent,
        }),
        mlp: MlpBlueprint::Gated {
            ffn: sizes.ffn,
            activation,
            projections: Projections::Separate,
            bias: Bias::Absent,
        },
        norms: Norms::Before,
    }
}
