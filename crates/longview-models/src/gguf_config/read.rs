//! From a GGUF file's metadata to settings.

use longview_kernels::rope::yarn_attention_factor;
use longview_weights::gguf::GgufFile;
use serde_json::{Map, Value, json};

use super::{NUMBERS, WHOLE_NUMBERS};
use crate::config::Config;
use crate::error::ModelError;

/// The settings of a GGUF file.
///
/// # Errors
/// When a key has a value of the wrong type, or the architecture is missing.
pub(crate) fn translate(file: &GgufFile) -> Result<Config, ModelError> {
    let gguf = file.str("general.architecture")?;
    let key = |name: &str| format!("{gguf}.{name}");
    let mut settings = Map::new();
    for (name, gguf_name) in WHOLE_NUMBERS {
        if let Some(value) = file.find_u32(&key(gguf_name))? {
            settings.insert(name.to_owned(), json!(value));
        }
    }
    for (name, gguf_name) in NUMBERS {
        if let Some(value) = file.find_f32(&key(gguf_name))? {
            settings.insert(name.to_owned(), json!(f64::from(value)));
        }
    }
    if let Some(embedding) = file.find_tensor("token_embd.weight") {
        check_vocabulary(file, embedding.rows())?;
        settings.insert("vocab_size".to_owned(), json!(embedding.rows()));
    }
    settings.insert("model_type".to_owned(), json!(model_type(gguf, &settings)));
    rotary_part(file, gguf, &mut settings)?;
    rope_scaling(file, gguf, &mut settings)?;
    biases(file, gguf, &mut settings);
    recurrent(file, gguf, &mut settings)?;
    experts(file, gguf, &mut settings)?;
    windows(file, gguf, &mut settings)?;
    gemma(file, gguf, &mut settings)?;
    Ok(Config::new(file.name(), Value::Object(settings)))
}

fn model_type(gguf: &str, settings: &Map<String, Value>) -> String {
    match gguf {
        "llama" if settings.contains_key("num_local_experts") => "mixtral".to_owned(),
        "llama" if settings.contains_key("sliding_window") => "mistral".to_owned(),
        "qwen3moe" => "qwen3_moe".to_owned(),
        "gemma3" => "gemma3_text".to_owned(),
        "qwen3next" => "qwen3_next".to_owned(),
        "qwen35" => "qwen3_5_text".to_owned(),
        "qwen35moe" => "qwen3_5_moe_text".to_owned(),
        other => other.to_owned(),
    }
}

fn rotary_part(
    file: &GgufFile,
    gguf: &str,
    settings: &mut Map<String, Value>,
) -> Result<(), ModelError> {
    let number = |settings: &Map<String, Value>, key: &str| {
        settings
            .get(key)
            .and_then(Value::as_u64)
            .filter(|&number| number > 0)
    };
    let derived =
        || Some(number(settings, "hidden_size")? / number(settings, "num_attention_heads")?);
    let head_dim = number(settings, "head_dim").or_else(derived);
    let turning = file.find_u32(&format!("{gguf}.rope.dimension_count"))?;
    if let (Some(turning), Some(head_dim)) = (turning.map(u64::from), head_dim)
        && turning != head_dim
    {
        // The middle between two whole numbers of channels: no rounding can reach either.
        let part = (turning as f64 + 0.5) / head_dim as f64;
        settings.insert("partial_rotary_factor".to_owned(), json!(part));
    }
    Ok(())
}

fn rope_scaling(
    file: &GgufFile,
    gguf: &str,
    settings: &mut Map<String, Value>,
) -> Result<(), ModelError> {
    let key = |name: &str| format!("{gguf}.rope.scaling.{name}");
    let factors = |name: &str| file.find_tensor(name).map(|tensor| tensor.to_f32());
    let mut scaling = Map::new();
    if let (Some(long), Some(short)) = (
        factors("rope_factors_long.weight"),
        factors("rope_factors_short.weight"),
    ) {
        scaling.insert("rope_type".to_owned(), json!("longrope"));
        scaling.insert("long_factor".to_owned(), json!(long));
        scaling.insert("short_factor".to_owned(), json!(short));
        if let Some(factor) = file.find_f32(&key("attn_factor"))? {
            scaling.insert("attention_factor".to_owned(), json!(f64::from(factor)));
        }
    } else if let Some(factors) = factors("rope_freqs.weight") {
        scaling.insert("rope_type".to_owned(), json!("factors"));
        scaling.insert("factors".to_owned(), json!(factors));
    } else if let Some(kind) = rope_scaling_type(file, gguf)? {
        scaling.insert(
            "rope_type".to_owned(),
            json!(if kind == "none" { "default" } else { kind }),
        );
        for (name, gguf_name) in [
            ("factor", "factor"),
            ("beta_fast", "yarn_beta_fast"),
            ("beta_slow", "yarn_beta_slow"),
        ] {
            if let Some(value) = file.find_f32(&key(gguf_name))? {
                scaling.insert(name.to_owned(), json!(f64::from(value)));
            }
        }
        if let (false, Some(factor)) = (
            scaling.contains_key("factor"),
            old_linear_factor(file, gguf)?,
        ) {
            scaling.insert("factor".to_owned(), json!(f64::from(factor)));
        }
        let relative = file.find_f32(&key("attn_factor"))?.map(f64::from);
        let factor = scaling.get("factor").and_then(Value::as_f64);
        if let ("yarn", Some(relative), Some(factor)) = (kind, relative, factor) {
            let attention_factor = relative * yarn_attention_factor(factor, 1.0, 0.0);
            scaling.insert("attention_factor".to_owned(), json!(attention_factor));
        }
    }
    if !scaling.is_empty() {
        settings.insert("rope_scaling".to_owned(), Value::Object(scaling));
    }
    Ok(())
}

/// The kind of rotary scaling. A file that names none and has a factor means the linear one.
fn rope_scaling_type<'a>(file: &'a GgufFile, gguf: &str) -> Result<Option<&'a str>, ModelError> {
    if let Some(kind) = file.find_str(&format!("{gguf}.rope.scaling.type"))? {
        return Ok(Some(kind));
    }
    let factor = match file.find_f32(&format!("{gguf}.rope.scaling.factor"))? {
        Some(factor) => Some(factor),
        None => old_linear_factor(file, gguf)?,
    };
    let scales = |&factor: &f32| factor != 0.0 && factor != 1.0;
    Ok(factor.filter(scales).map(|_| "linear"))
}

/// The factor of linear scaling where files had it before there were other kinds.
fn old_linear_factor(file: &GgufFile, gguf: &str) -> Result<Option<f32>, ModelError> {
    Ok(file.find_f32(&format!("{gguf}.rope.scale_linear"))?)
}

/// A vocabulary longer than the embedding would give ids that no row stands for.
fn check_vocabulary(file: &GgufFile, rows: usize) -> Result<(), ModelError> {
    let key = "tokenizer.ggml.tokens";
    let tokens = file.value(key).and_then(|value| value.array());
    match tokens.map(|tokens| tokens.len()) {
        Some(tokens) if tokens > rows => Err(ModelError::Setting {
            file: file.name().to_owned(),
            key: key.to_owned(),
            problem: format!(
                "{tokens} tokens, but tensor token_embd.weight has {rows} rows; the file mixes two \
                 models, so convert it again"
            ),
        }),
        _ => Ok(()),
    }
}

/// How experts are weighted, and which layers have none: those without a router.
fn experts(
    file: &GgufFile,
    gguf: &str,
    settings: &mut Map<String, Value>,
) -> Result<(), ModelError> {
    if !matches!(gguf, "qwen3moe" | "qwen3next") {
        return Ok(());
    }
    let normalised = file.find_bool(&format!("{gguf}.expert_weights_norm"))?;
    settings.insert(
        "norm_topk_prob".to_owned(),
        json!(normalised.unwrap_or(true)),
    );
    let layers = known_layers(settings);
    let routed = |layer: &usize| {
        let router = format!("blk.{layer}.ffn_gate_inp.weight");
        file.find_tensor(&router).is_some()
    };
    let dense: Vec<usize> = (0..layers).filter(|layer| !routed(layer)).collect();
    settings.insert("mlp_only_layers".to_owned(), json!(dense));
    Ok(())
}

/// Which layers have a window: as a period (every so many layers a full one), or a flag a layer.
fn windows(
    file: &GgufFile,
    gguf: &str,
    settings: &mut Map<String, Value>,
) -> Result<(), ModelError> {
    let key = format!("{gguf}.attention.sliding_window_pattern");
    if settings.get("sliding_window") == Some(&json!(0)) {
        settings.remove("sliding_window");
    }
    if !settings.contains_key("sliding_window") {
        return Ok(());
    }
    match file.value(&key) {
        Some(value) if value.array().is_some() => {
            let windowed = file.bools(&key)?;
            let kinds = windowed.iter().map(|&windowed| match windowed {
                true => "sliding_attention",
                false => "full_attention",
            });
            settings.insert("layer_types".to_owned(), kinds.collect());
        }
        Some(_) => {
            let period = file.u32(&key)?;
            settings.insert("sliding_window_pattern".to_owned(), json!(period));
        }
        None => {}
    }
    if gguf.starts_with("qwen") {
        settings.insert("use_sliding_window".to_owned(), json!(true));
    }
    Ok(())
}

/// Gated delta layers: their sizes, and which they are.
fn recurrent(
    file: &GgufFile,
    gguf: &str,
    settings: &mut Map<String, Value>,
) -> Result<(), ModelError> {
    let key = |name: &str| format!("{gguf}.{name}");
    let Some(heads) = file.find_u32(&key("ssm.time_step_rank"))? else {
        return Ok(());
    };
    settings.insert("linear_num_value_heads".to_owned(), json!(heads));
    for (name, gguf_name) in [
        ("linear_conv_kernel_dim", "ssm.conv_kernel"),
        ("linear_key_head_dim", "ssm.state_size"),
        ("linear_num_key_heads", "ssm.group_count"),
        ("full_attention_interval", "full_attention_interval"),
    ] {
        if let Some(value) = file.find_u32(&key(gguf_name))? {
            settings.insert(name.to_owned(), json!(value));
        }
    }
    if let Some(all) = file.find_u32(&key("ssm.inner_size"))?
        && heads > 0
    {
        settings.insert("linear_value_head_dim".to_owned(), json!(all / heads));
    }
    // Where the file names no part of a head, the whole one turns.
    let turning = settings.entry("partial_rotary_factor");
    turning.or_insert(json!(1.0));
    // Layers at the end that guess several tokens at once are no part of the model.
    if let Some(guessing) = file.find_u32(&key("nextn_predict_layers"))? {
        let layers = known_layers(settings).saturating_sub(guessing as usize);
        settings.insert("num_hidden_layers".to_owned(), json!(layers));
    }
    let recurrent = key("attention.recurrent_layers");
    if file.value(&recurrent).is_some() {
        let kinds = file.bools(&recurrent)?;
        let kinds = kinds.iter().take(known_layers(settings));
        let kinds = kinds.map(|&recurrent| match recurrent {
            true => "linear_attention",
            false => "full_attention",
        });
        settings.insert("layer_types".to_owned(), kinds.collect());
    }
    Ok(())
}

/// The number of layers, and 0 where it is not to be believed.
fn known_layers(settings: &Map<String, Value>) -> usize {
    let layers = settings.get("num_hidden_layers").and_then(Value::as_u64);
    layers.filter(|&layers| layers <= 4096).unwrap_or(0) as usize
}

/// Optional biases show by their tensors only.
fn biases(file: &GgufFile, gguf: &str, settings: &mut Map<String, Value>) {
    let known = [
        "llama",
        "qwen3",
        "qwen3moe",
        "qwen3next",
        "qwen35",
        "qwen35moe",
    ];
    if known.contains(&gguf) {
        // Not every layer has an attention, but all that have one are alike.
        let layers = known_layers(settings);
        for (setting, tensor) in [
            ("attention_bias", "attn_q.bias"),
            ("attention_output_bias", "attn_output.bias"),
            ("mlp_bias", "ffn_down.bias"),
        ] {
            let has = |layer: usize| file.find_tensor(&format!("blk.{layer}.{tensor}")).is_some();
            settings.insert(setting.to_owned(), json!((0..layers).any(has)));
        }
    }
}

/// Gemma's converters leave some settings to the program that reads the file.
fn gemma(file: &GgufFile, gguf: &str, settings: &mut Map<String, Value>) -> Result<(), ModelError> {
    if !gguf.starts_with("gemma") {
        return Ok(());
    }
    let number = |key: &str| settings.get(key).and_then(Value::as_u64);
    // The largest models of both generations scale queries by their width, the others by the head.
    let largest = match gguf {
        "gemma2" => Some(46),
        "gemma3" => Some(62),
        _ => None,
    };
    let scalar = match file.find_f32(&format!("{gguf}.attention.scale"))? {
        Some(scale) if scale > 0.0 => Some(1.0 / (f64::from(scale) * f64::from(scale))),
        _ if largest.is_some() && number("num_hidden_layers") == largest => {
            match (number("hidden_size"), number("num_attention_heads")) {
                (Some(hidden), Some(heads)) if heads > 0 => Some(hidden as f64 / heads as f64),
                _ => None,
            }
        }
        _ => None,
    };
    if let Some(scalar) = scalar {
        // The file has the scale in f32; the number it came from is a whole one.
        let whole = scalar.round();
        let scalar = if (scalar - whole).abs() < 1e-4 * scalar {
            whole
        } else {
            scalar
        };
        settings.insert("query_pre_attn_scalar".to_owned(), json!(scalar));
    }
    Ok(())
}
