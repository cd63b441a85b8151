//! Qwen2 and Qwen2.5 (<https://arxiv.org/abs/2407.10671>): llama with biases on the query, key and
//! value projections, and optionally a sliding window in the later layers.

use super::{Architecture, GgufRows, Names, NormWeights, llama};
use crate::blueprint::{Bias, Blueprint};
use crate::config::Config;
use crate::error::ModelError;

pub(super) static QWEN2: Architecture = Architecture {
    name: "qwen2",
    model_types: &["qwen2"],
    gguf: "qwen2",
    blueprint,
    names: Names::COMMON,
    gguf_rows: GgufRows::HalfSplit,
    norm_weights: NormWeights::Factor,
    delta: None,
};

fn blueprint(config: &Config) -> Result<Blueprint, ModelError> {
    let mut blueprint = with_late_windows(config, "qwen2")?;
    for attention in blueprint.attentions_mut() {
        attention.qkv_bias = Bias::Present;
    }
    Ok(blueprint)
}

/// The plain decoder with Qwen's rule for windows: when `use_sliding_window` is set, layers from
/// `max_window_layers` on have one.
pub(super) fn with_late_windows(
    config: &Config,
    architecture: &'static str,
) -> Result<Blueprint, ModelError> {
    let windows = config.opt_bool("use_sliding_window")?.unwrap_or(false);
    let first = config.opt_usize("max_window_layers")?.unwrap_or(28);
    llama::plain(config, architecture, |layer| windows && layer >= first)
}
