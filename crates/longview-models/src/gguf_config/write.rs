//! From settings to a GGUF file's metadata.

use longview_kernels::rope::{YarnRamp, yarn_attention_factor};
use longview_kv::RopeSet;
use longview_weights::gguf::GgufHeader;

use super::{NUMBERS, WHOLE_NUMBERS};
use crate::arch::Architecture;
use crate::blueprint::{Blueprint, MlpBlueprint, Weighting};
use crate::config::Config;
use crate::error::ModelError;
use crate::rope::{Rope, Scaling};

/// Writes the settings of `config` as GGUF keys of `architecture`; `blueprint` is what they make.
///
/// # Errors
/// [`ModelError::Unsupported`] for settings that GGUF has no key for.
pub(crate) fn write(
    config: &Config,
    architecture: &'static Architecture,
    blueprint: &Blueprint,
    header: &mut GgufHeader,
) -> Result<(), ModelError> {
    let gguf = architecture.gguf;
    let key = |name: &str| format!("{gguf}.{name}");
    header.str("general.architecture", gguf);
    let sizes = config.sizes()?;
    let mut written = Vec::new();
    for (name, gguf_name) in WHOLE_NUMBERS {
        if let Some(value) = config.opt_usize(name)? {
            let value = u32::try_from(value)
                .map_err(|_| config.error(name, format!("{value} does not fit a GGUF file")))?;
            if !written.contains(&gguf_name) && name != "sliding_window" {
                header.u32(&key(gguf_name), value);
                written.push(gguf_name);
            }
        }
    }
    let derived = [
        ("attention.head_count_kv", sizes.kv_heads),
        ("attention.key_length", sizes.head_dim),
    ];
    for (gguf_name, value) in derived {
        if !written.contains(&gguf_name) {
            header.u32(&key(gguf_name), value as u32);
        }
    }
    header.u32(&key("attention.value_length"), sizes.head_dim as u32);
    header.u32(&key("vocab_size"), sizes.vocab as u32);
    write_windows(blueprint, gguf, header);
    write_recurrent(config, blueprint, gguf, header);
    write_experts(blueprint, gguf, header);
    for (name, gguf_name) in NUMBERS {
        let value = match name {
            "rms_norm_eps" => Some(f64::from(blueprint.norm_eps)),
            "rope_theta" => blueprint.ropes.first().map(|rope| rope.theta),
            "rope_local_base_freq" => blueprint.ropes.get(1).map(|rope| rope.theta),
            _ => config.opt_f64(name)?,
        };
        if let Some(value) = value {
            header.f32(&key(gguf_name), value as f32);
        }
    }
    if let Some(rope) = blueprint.ropes.first() {
        header.u32(&key("rope.dimension_count"), rope.rotary_dim as u32);
    }
    if config.get("query_pre_attn_scalar").is_some()
        && let Some(attention) = blueprint.attentions().next()
    {
        header.f32(&key("attention.scale"), attention.scale);
    }
    write_scaling(config, blueprint, gguf, header)
}

/// Divisors of rotary frequencies that GGUF stores as tensors: name and values.
pub(crate) fn factor_tensors(blueprint: &Blueprint) -> Vec<(&'static str, Vec<f32>)> {
    let Some(rope) = blueprint.ropes.first() else {
        return Vec::new();
    };
    match &rope.scaling {
        Scaling::LongRope { short, long, .. } => vec![
            ("rope_factors_long.weight", long.clone()),
            ("rope_factors_short.weight", short.clone()),
        ],
        Scaling::Llama3(_) => {
            let plain = Rope::plain(rope.theta, rope.rotary_dim).table(RopeSet::Short);
            let slow = rope.table(RopeSet::Short);
            let pairs = plain
                .inverse_frequencies()
                .iter()
                .zip(slow.inverse_frequencies());
            let factors = pairs.map(|(plain, slow)| (plain / slow) as f32).collect();
            vec![("rope_freqs.weight", factors)]
        }
        Scaling::Factors(factors) => vec![("rope_freqs.weight", factors.clone())],
        Scaling::None | Scaling::Linear { .. } | Scaling::Yarn(_) => Vec::new(),
    }
}

/// The window and the layers that have it, in the words of [`windows`].
fn write_windows(blueprint: &Blueprint, gguf: &str, header: &mut GgufHeader) {
    let windows: Vec<Option<usize>> = blueprint
        .attentions()
        .map(|attention| attention.window)
        .collect();
    let Some(tokens) = windows.iter().flatten().next() else {
        return;
    };
    let key = |name: &str| format!("{gguf}.attention.{name}");
    header.u32(
        &key("sliding_window"),
        u32::try_from(*tokens).unwrap_or(u32::MAX),
    );
    let windowed: Vec<bool> = windows.iter().map(Option::is_some).collect();
    let pattern = key("sliding_window_pattern");
    match (gguf, period(&windowed)) {
        ("gemma2", Some(2)) => {}
        ("gemma3", Some(period)) => {
            header.u32(&pattern, period as u32);
        }
        ("llama" | "phi3", _) if windowed.iter().all(|&windowed| windowed) => {}
        _ => {
            header.bools(&pattern, &windowed);
        }
    }
}

/// The `n` for which every `n`-th layer is full and all others are windowed, if there is one. Where
/// all are windowed that is a layer beyond the last.
pub(crate) fn period(windowed: &[bool]) -> Option<usize> {
    let first_full = windowed.iter().position(|&windowed| !windowed);
    let period = first_full.unwrap_or(windowed.len()) + 1;
    let follows = |(layer, &windowed): (usize, &bool)| windowed == ((layer + 1) % period != 0);
    windowed.iter().enumerate().all(follows).then_some(period)
}

/// The sizes of gated delta layers and which they are, in the words of [`period`].
fn write_recurrent(config: &Config, blueprint: &Blueprint, gguf: &str, header: &mut GgufHeader) {
    let Some(delta) = blueprint.delta() else {
        return;
    };
    let key = |name: &str| format!("{gguf}.{name}");
    for (name, value) in [
        ("ssm.conv_kernel", delta.taps),
        ("ssm.state_size", delta.key_dim),
        ("ssm.group_count", delta.key_heads),
        ("ssm.time_step_rank", delta.value_heads),
        ("ssm.inner_size", delta.value_heads * delta.value_dim),
    ] {
        header.u32(&key(name), value as u32);
    }
    let layers = blueprint.layers.iter();
    let recurrent: Vec<bool> = layers.map(|layer| layer.attention().is_none()).collect();
    match period(&recurrent) {
        Some(period) => {
            header.u32(&key("full_attention_interval"), period as u32);
        }
        None => {
            header.bools(&key("attention.recurrent_layers"), &recurrent);
        }
    }
    if gguf.starts_with("qwen35") {
        header.i32s(&key("rope.dimension_sections"), &rotary_sections(config));
    }
}

/// The sections of a rotary embedding with places in time, height and width. For text they all have
/// the same place, so nothing here looks at them; readers of GGUF files ask for them.
fn rotary_sections(config: &Config) -> [i32; 4] {
    let mut sections = [11, 11, 10, 0];
    let parameters = config
        .section("rope_parameters")
        .or_else(|| config.section("rope_scaling"));
    let told = parameters.as_ref().and_then(|all| all.get("mrope_section"));
    if let Some(told) = told.and_then(serde_json::Value::as_array) {
        let number = |index: usize| told.get(index).and_then(serde_json::Value::as_i64);
        sections = std::array::from_fn(|index| number(index).unwrap_or(0) as i32);
    }
    sections
}

fn write_experts(blueprint: &Blueprint, gguf: &str, header: &mut GgufHeader) {
    let weighting = blueprint.layers.iter().find_map(|layer| match layer.mlp {
        MlpBlueprint::Experts { weighting, .. } => Some(weighting),
        MlpBlueprint::Gated { .. } => None,
    });
    if let Some(weighting) = weighting {
        let normalised = weighting == Weighting::Normalised;
        header.bool(&format!("{gguf}.expert_weights_norm"), normalised);
    }
}

/// Scaling that is a rule; that by factors lies in tensors (see [`factor_tensors`]).
fn write_scaling(
    config: &Config,
    blueprint: &Blueprint,
    gguf: &str,
    header: &mut GgufHeader,
) -> Result<(), ModelError> {
    let key = |name: &str| format!("{gguf}.rope.scaling.{name}");
    match blueprint.ropes.first().map(|rope| &rope.scaling) {
        None | Some(Scaling::None | Scaling::Llama3(_) | Scaling::Factors(_)) => {}
        Some(Scaling::Linear { factor }) => {
            header.str(&key("type"), "linear");
            header.f32(&key("factor"), *factor as f32);
        }
        Some(Scaling::Yarn(yarn)) => {
            if yarn.ramp == YarnRamp::Exact {
                let problem = "false has no form in GGUF files";
                return Err(config.error("truncate", problem));
            }
            header.str(&key("type"), "yarn");
            header.f32(&key("factor"), yarn.factor as f32);
            header.f32(&key("yarn_beta_fast"), yarn.beta_fast as f32);
            header.f32(&key("yarn_beta_slow"), yarn.beta_slow as f32);
            header.u32(
                &key("original_context_length"),
                yarn.original_max_positions as u32,
            );
            // Readers multiply this by the usual factor for such a scaling.
            let usual = yarn_attention_factor(yarn.factor, 1.0, 0.0);
            if yarn.attention_factor != usual {
                header.f32(&key("attn_factor"), (yarn.attention_factor / usual) as f32);
            }
        }
        Some(Scaling::LongRope {
            original_positions,
            attention_factor,
            ..
        }) => {
            header.u32(&key("original_context_length"), *original_positions as u32);
            header.f32(&key("attn_factor"), *attention_factor as f32);
        }
    }
    Ok(())
}
