//! What llama.cpp and programs built on it will not read from a file that Longview writes.

use crate::blueprint::{AttentionBlueprint, Blueprint, LayerBlueprint, MlpBlueprint, Weighting};
use crate::model::ModelFile;

/// One sentence for each setting that such a program computes otherwise, or not at all.
pub(super) fn notices(model: &ModelFile) -> Vec<String> {
    let blueprint = model.blueprint();
    let gguf = model.architecture().gguf;
    let mut notices = Vec::new();
    let windowed = |attention: &AttentionBlueprint| {
        let window = attention.window;
        window.is_some_and(|tokens| tokens < blueprint.max_positions)
    };
    if blueprint.attentions().any(windowed) {
        match gguf {
            "gemma3" if alternates(blueprint, 0) => {}
            "gemma2" if alternates(blueprint, 2) => {}
            "gemma2" | "gemma3" => notices.push(
                "the model's sliding windows do not follow its architecture's usual pattern; \
                 llama.cpp will apply that pattern"
                    .to_owned(),
            ),
            _ => notices.push(format!(
                "the model has sliding windows; llama.cpp reads none in {gguf} models, and will \
                 attend to everything beyond them"
            )),
        }
    }
    if gguf.starts_with("gemma") {
        let usual = |attention: &AttentionBlueprint| {
            let largest = match gguf {
                "gemma2" => 46,
                _ => 62,
            };
            let width = if blueprint.layers.len() == largest {
                blueprint.hidden / attention.heads
            } else {
                attention.head_dim
            };
            attention.scale == 1.0 / (width as f32).sqrt()
        };
        if !blueprint.attentions().all(usual) {
            notices.push(
                "query_pre_attn_scalar is not the width of a head; llama.cpp will scale scores \
                 by that width"
                    .to_owned(),
            );
        }
    }
    if let Some(delta) = blueprint.delta()
        && delta.key_dim != delta.value_dim
    {
        notices.push(
            "linear_value_head_dim is not linear_key_head_dim; llama.cpp takes it to be".to_owned(),
        );
    }
    if matches!(gguf, "qwen3moe" | "qwen3next") {
        let dense = |layer: &LayerBlueprint| matches!(layer.mlp, MlpBlueprint::Gated { .. });
        if blueprint.layers.iter().any(dense) {
            notices
                .push("some layers have no experts; llama.cpp will not load the file".to_owned());
        }
        let softmax = |layer: &LayerBlueprint| {
            matches!(
                layer.mlp,
                MlpBlueprint::Experts {
                    weighting: Weighting::Softmax,
                    ..
                }
            )
        };
        if blueprint.layers.iter().any(softmax) {
            notices.push(
                "norm_topk_prob is false; llama.cpp will normalise the experts' weights".to_owned(),
            );
        }
    }
    notices
}

/// Whether every `period`-th layer is full and the others are windowed; for period 0, whether that
/// holds for any period.
fn alternates(blueprint: &Blueprint, period: usize) -> bool {
    let windows: Vec<bool> = blueprint
        .attentions()
        .map(|attention| attention.window.is_some())
        .collect();
    match (crate::gguf_config::period(&windows), period) {
        (Some(_), 0) => true,
        (found, wanted) => found == Some(wanted),
    }
}
