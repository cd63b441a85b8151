//! Gemma 3, text part (<https://arxiv.org/abs/2503.19786>): five layers with a sliding window and
//! a rotary base of their own to each full layer, norms on query and key heads.

use super::{Architecture, GgufRows, Names, NormWeights, gemma2};
use crate::blueprint::{Blueprint, QkNorm};
use crate::config::Config;
use crate::error::ModelError;
use crate::rope::Rope;

pub(super) static GEMMA3: Architecture = Architecture {
    name: "gemma3",
    model_types: &["gemma3_text", "gemma3"],
    gguf: "gemma3",
    blueprint,
    names: Names::hugging_face(gemma2::NAMES),
    gguf_rows: GgufRows::HalfSplit,
    norm_weights: NormWeights::FactorMinusOne,
    delta: None,
};

fn blueprint(config: &Config) -> Result<Blueprint, ModelError> {
    let pattern = config
        .opt_usize("sliding_window_pattern")?
        .unwrap_or(6)
        .max(1);
    let mut blueprint = gemma2::gemma(config, "gemma3", |layer| (layer + 1) % pattern != 0)?;
    blueprint.final_softcap = config.opt_f64("final_logit_softcapping")?.unwrap_or(0.0) as f32;
    let sizes = config.sizes()?;
    let local = match config.section("rope_parameters") {
        Some(_) => Rope::from_config(
            config,
            sizes.head_dim,
            sizes.max_positions,
            "sliding_attention",
        )?,
        None => {
            let theta = config.opt_f64("rope_local_base_freq")?.unwrap_or(10_000.0);
            Rope::plain(theta, sizes.head_dim)
        }
    };
    blueprint.ropes.push(local);
    for attention in blueprint.attentions_mut() {
        attention.qk_norm = QkNorm::PerHead;
        attention.rope = usize::from(attention.window.is_some());
    }
    Ok(blueprint)
}
