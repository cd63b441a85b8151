//! A GGUF file's metadata, in the words of `config.json`, and back.
//!
//! One table holds both directions: reading a GGUF translates its keys into settings, writing one
//! translates settings into keys.

use longview_weights::gguf::{GgufFile, GgufHeader};
use serde_json::{Map, Value, json};

use crate::arch::Architecture;
use crate::config::Config;
use crate::error::ModelError;

/// Keys that mean the same under two names: `config.json`'s, and GGUF's after the architecture.
const WHOLE_NUMBERS: [(&str, &str); 13] = [
    ("max_position_embeddings", "context_length"),
    ("hidden_size", "embedding_length"),
    ("num_hidden_layers", "block_count"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("sliding_window", "attention.sliding_window"),
    (
        "original_max_position_embeddings",
        "rope.scaling.original_context_length",
    ),
    ("num_experts", "expert_count"),
    ("num_local_experts", "expert_count"),
    ("num_experts_per_tok", "expert_used_count"),
    ("moe_intermediate_size", "expert_feed_forward_length"),
];

/// The same for numbers with a fraction.
const NUMBERS: [(&str, &str); 5] = [
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("rope_theta", "rope.freq_base"),
    ("rope_local_base_freq", "rope.freq_base_swa"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
];

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
    let vocab = file
        .find_tensor("token_embd.weight")
        .map(|tensor| tensor.rows());
    if let Some(rows) = vocab {
        settings.insert("vocab_size".to_owned(), json!(rows));
    }
    settings.insert("model_type".to_owned(), json!(model_type(gguf, &settings)));
    rotary_part(file, gguf, &mut settings)?;
    rope_scaling(file, gguf, &mut settings)?;
    biases(file, gguf, &mut settings);
    gemma(file, gguf, &mut settings)?;
    if settings.contains_key("sliding_window") && gguf.starts_with("qwen") {
        settings.insert("use_sliding_window".to_owned(), json!(true));
    }
    Ok(Config::new(file.name(), Value::Object(settings)))
}

/// Writes the settings of `config` as GGUF keys of `architecture`.
///
/// # Errors
/// [`ModelError::Unsupported`] for settings that GGUF has no key for.
pub(crate) fn write(
    config: &Config,
    architecture: &'static Architecture,
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
            if !written.contains(&gguf_name) && !is_unused_window(config, gguf, name)? {
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
    let (full, local) = rope_sections(config);
    for (name, gguf_name) in NUMBERS {
        let value = match name {
            "rope_theta" => match full.opt_f64(name)?.or(config.opt_f64(name)?) {
                Some(theta) => Some(theta),
                None => Some(10_000.0),
            },
            "rope_local_base_freq" => config.opt_f64(name)?.or(local.opt_f64("rope_theta")?),
            _ => config.opt_f64(name)?,
        };
        if let Some(value) = value {
            header.f32(&key(gguf_name), value as f32);
        }
    }
    let part = full
        .opt_f64("partial_rotary_factor")?
        .or(config.opt_f64("partial_rotary_factor")?)
        .unwrap_or(1.0);
    header.u32(
        &key("rope.dimension_count"),
        (sizes.head_dim as f64 * part) as u32,
    );
    if let Some(scalar) = config.opt_f64("query_pre_attn_scalar")? {
        header.f32(&key("attention.scale"), (1.0 / scalar.sqrt()) as f32);
    }
    write_scaling(config, &full, gguf, header)
}

/// Divisors of rotary frequencies that GGUF stores as tensors: name and values.
pub(crate) fn factor_tensors(config: &Config) -> Result<Vec<(&'static str, Vec<f32>)>, ModelError> {
    let sizes = config.sizes()?;
    let rope = crate::rope::Rope::from_config(
        config,
        sizes.head_dim,
        sizes.max_positions,
        "full_attention",
    )?;
    Ok(match &rope.scaling {
        crate::rope::Scaling::LongRope { short, long, .. } => vec![
            ("rope_factors_long.weight", long.clone()),
            ("rope_factors_short.weight", short.clone()),
        ],
        crate::rope::Scaling::Llama3(_) => {
            let plain = crate::rope::Rope::plain(rope.theta, rope.rotary_dim);
            let set = longview_kv::RopeSet::Short;
            let (slow, base) = (rope.table(set), plain.table(set));
            let factors = base
                .inverse_frequencies()
                .iter()
                .zip(slow.inverse_frequencies());
            vec![(
                "rope_freqs.weight",
                factors.map(|(b, s)| (b / s) as f32).collect(),
            )]
        }
        _ => Vec::new(),
    })
}

fn model_type(gguf: &str, settings: &Map<String, Value>) -> String {
    match gguf {
        "llama" if settings.contains_key("num_local_experts") => "mixtral".to_owned(),
        "llama" if settings.contains_key("sliding_window") => "mistral".to_owned(),
        "qwen3moe" => "qwen3_moe".to_owned(),
        "gemma3" => "gemma3_text".to_owned(),
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
    if let (Some(turning), Some(head_dim)) = (
        file.find_u32(&format!("{gguf}.rope.dimension_count"))?,
        head_dim,
    ) {
        if u64::from(turning) != head_dim {
            let part = f64::from(turning) / head_dim as f64;
            settings.insert("partial_rotary_factor".to_owned(), json!(part));
        }
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
    } else if let Some(kind) = file.find_str(&key("type"))? {
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
    }
    if !scaling.is_empty() {
        settings.insert("rope_scaling".to_owned(), Value::Object(scaling));
    }
    Ok(())
}

/// Optional biases show by their tensors only.
fn biases(file: &GgufFile, gguf: &str, settings: &mut Map<String, Value>) {
    if matches!(gguf, "llama" | "qwen3" | "qwen3moe") {
        let has = |name: &str| file.find_tensor(name).is_some();
        settings.insert(
            "attention_bias".to_owned(),
            json!(has("blk.0.attn_output.bias")),
        );
        settings.insert("mlp_bias".to_owned(), json!(has("blk.0.ffn_down.bias")));
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
        settings.insert("query_pre_attn_scalar".to_owned(), json!(scalar));
    }
    if let Some(pattern) = file
        .find_u32(&format!("{gguf}.attention.sliding_window_pattern"))
        .ok()
        .flatten()
    {
        settings.insert("sliding_window_pattern".to_owned(), json!(pattern));
    }
    Ok(())
}

/// The rotary settings of full and of windowed layers, in whichever spelling the file has.
fn rope_sections(config: &Config) -> (Config, Config) {
    let empty = || Config::new(config.file(), json!({}));
    match config.section("rope_parameters") {
        Some(all) => (
            all.section("full_attention").unwrap_or_else(|| all.clone()),
            all.section("sliding_attention").unwrap_or_else(empty),
        ),
        None => (
            config.section("rope_scaling").unwrap_or_else(empty),
            empty(),
        ),
    }
}

fn write_scaling(
    config: &Config,
    rope: &Config,
    gguf: &str,
    header: &mut GgufHeader,
) -> Result<(), ModelError> {
    let key = |name: &str| format!("{gguf}.rope.scaling.{name}");
    let kind = rope.opt_str("rope_type")?.or(rope.opt_str("type")?);
    match kind {
        // Llama 3.1 and longrope live in tensors; see `factor_tensors`.
        None | Some("default" | "llama3") => {}
        Some("longrope" | "su") => {
            let sizes = config.sizes()?;
            let scaling = crate::rope::Rope::from_config(
                config,
                sizes.head_dim,
                sizes.max_positions,
                "full_attention",
            )?
            .scaling;
            if let crate::rope::Scaling::LongRope {
                attention_factor, ..
            } = scaling
            {
                header.f32(&key("attn_factor"), attention_factor as f32);
            }
        }
        Some(kind @ ("linear" | "yarn")) => {
            header.str(&key("type"), kind);
            for (name, gguf_name) in [
                ("factor", "factor"),
                ("beta_fast", "yarn_beta_fast"),
                ("beta_slow", "yarn_beta_slow"),
            ] {
                if let Some(value) = rope.opt_f64(name)? {
                    header.f32(&key(gguf_name), value as f32);
                }
            }
            let original = "original_max_position_embeddings";
            if let (None, Some(positions)) =
                (config.opt_usize(original)?, rope.opt_usize(original)?)
            {
                header.u32(&key("original_context_length"), positions as u32);
            }
        }
        Some(other) => {
            return Err(ModelError::Unsupported(format!(
                "{}: rotary scaling {other:?} has no form in GGUF files",
                config.file()
            )));
        }
    }
    Ok(())
}

/// Whether `name` is a sliding window that the settings switch off, or that GGUF readers would
/// take for an architecture's own.
fn is_unused_window(config: &Config, gguf: &str, name: &str) -> Result<bool, ModelError> {
    Ok(name == "sliding_window"
        && gguf.starts_with("qwen")
        && !config.flag("use_sliding_window", false)?)
}
