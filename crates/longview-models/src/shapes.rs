//! Well-known model shapes, and files of random weights in them.
//!
//! Speed and memory depend on a model's shape, not on what its weights say; a file made here is
//! benchmarked as the real model would be, without a download. It says nothing sensible.

use std::path::Path;

use longview_kernels::Pool;
use longview_weights::GgufHeader;
use serde_json::{Value, json};

use crate::arch;
use crate::config::Config;
use crate::convert::{self, OnProgress, Recipe, Report};
use crate::error::ModelError;

/// A model's shape.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Its name, such as `llama-3.2-1b`.
    pub name: &'static str,
    /// Parameters as the model is advertised, in billions.
    pub billions: f32,
    settings: fn() -> Value,
}

/// Every shape, by family.
pub static SHAPES: [Shape; 19] = [
    shape("tinyllama-1.1b", 1.1, || {
        llama(2048, 5632, 22, [32, 4, 64], 32_000, 2048, 1e4)
    }),
    shape("llama-2-7b", 6.7, || {
        llama(4096, 11_008, 32, [32, 32, 128], 32_000, 4096, 1e4)
    }),
    shape("llama-3.1-8b", 8.0, || {
        let plain = llama(4096, 14_336, 32, [32, 8, 128], 128_256, 131_072, 5e5);
        with(plain, json!({"rope_scaling": llama3_scaling(8.0)}))
    }),
    shape("llama-3.2-1b", 1.2, || {
        let plain = llama(2048, 8192, 16, [32, 8, 64], 128_256, 131_072, 5e5);
        let own = json!({"rope_scaling": llama3_scaling(32.0), "tie_word_embeddings": true});
        with(plain, own)
    }),
    shape("llama-3.2-3b", 3.2, || {
        let plain = llama(3072, 8192, 28, [24, 8, 128], 128_256, 131_072, 5e5);
        let own = json!({"rope_scaling": llama3_scaling(32.0), "tie_word_embeddings": true});
        with(plain, own)
    }),
    shape("mistral-7b", 7.2, || {
        let plain = llama(4096, 14_336, 32, [32, 8, 128], 32_768, 32_768, 1e6);
        with(plain, json!({"model_type": "mistral"}))
    }),
    shape("mixtral-8x7b", 46.7, || {
        let plain = llama(4096, 14_336, 32, [32, 8, 128], 32_000, 32_768, 1e6);
        let own =
            json!({"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2});
        with(plain, own)
    }),
    shape("qwen2.5-0.5b", 0.5, || {
        let plain = llama(896, 4864, 24, [14, 2, 64], 151_936, 32_768, 1e6);
        with(plain, qwen("qwen2", true))
    }),
    shape("qwen2.5-1.5b", 1.5, || {
        let plain = llama(1536, 8960, 28, [12, 2, 128], 151_936, 131_072, 1e6);
        with(plain, qwen("qwen2", true))
    }),
    shape("qwen2.5-7b", 7.6, || {
        let plain = llama(3584, 18_944, 28, [28, 4, 128], 152_064, 131_072, 1e6);
        with(plain, qwen("qwen2", false))
    }),
    shape("qwen3-0.6b", 0.6, || {
        let plain = llama(1024, 3072, 28, [16, 8, 128], 151_936, 40_960, 1e6);
        with(plain, qwen("qwen3", true))
    }),
    shape("qwen3-4b", 4.0, || {
        let plain = llama(2560, 9728, 36, [32, 8, 128], 151_936, 40_960, 1e6);
        with(plain, qwen("qwen3", true))
    }),
    shape("qwen3-8b", 8.2, || {
        let plain = llama(4096, 12_288, 36, [32, 8, 128], 151_936, 40_960, 1e6);
        with(plain, qwen("qwen3", false))
    }),
    shape("qwen3-30b-a3b", 30.5, || {
        let plain = llama(2048, 6144, 48, [32, 4, 128], 151_936, 40_960, 1e6);
        let experts = json!({"num_experts": 128, "num_experts_per_tok": 8,
            "moe_intermediate_size": 768, "norm_topk_prob": true});
        with(with(plain, qwen("qwen3_moe", false)), experts)
    }),
    shape("qwen3-next-80b-a3b", 79.7, || {
        let plain = llama(2048, 5120, 48, [16, 2, 256], 151_936, 262_144, 1e7);
        let experts = json!({"num_experts": 512, "num_experts_per_tok": 10,
            "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
            "norm_topk_prob": true});
        with(
            with(plain, qwen("qwen3_next", false)),
            with(delta(16, 32), experts),
        )
    }),
    shape("qwen3.5-0.8b", 0.75, || {
        let plain = llama(1024, 3584, 24, [8, 2, 256], 248_320, 262_144, 1e7);
        with(with(plain, qwen("qwen3_5_text", true)), delta(16, 16))
    }),
    shape("gemma-2-2b", 2.6, || {
        let plain = llama(2304, 9216, 26, [8, 4, 256], 256_000, 8192, 1e4);
        let own = json!({"model_type": "gemma2", "rms_norm_eps": 1e-6,
            "tie_word_embeddings": true, "sliding_window": 4096, "query_pre_attn_scalar": 256,
            "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0});
        with(plain, own)
    }),
    shape("gemma-3-1b", 1.0, || {
        let plain = llama(1152, 6912, 26, [4, 1, 256], 262_144, 32_768, 1e6);
        let own = json!({"model_type": "gemma3_text", "rms_norm_eps": 1e-6,
            "tie_word_embeddings": true, "sliding_window": 512, "sliding_window_pattern": 6,
            "rope_local_base_freq": 1e4, "query_pre_attn_scalar": 256});
        with(plain, own)
    }),
    shape("phi-3.5-mini", 3.8, || {
        let plain = llama(3072, 8192, 32, [32, 32, 96], 32_064, 131_072, 1e4);
        // The trained factors differ pair by pair; these rise as they do, from 1 to 64.
        let long: Vec<f64> = (0..48)
            .map(|pair| 64f64.powf(f64::from(pair) / 47.0))
            .collect();
        let own = json!({"model_type": "phi3", "original_max_position_embeddings": 4096,
            "rope_scaling": {"type": "longrope", "short_factor": vec![1.0; 48],
                "long_factor": long}});
        with(plain, own)
    }),
];

impl Shape {
    /// The shape with this name.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`], which lists the known ones.
    pub fn named(name: &str) -> Result<&'static Shape, ModelError> {
        let found = SHAPES
            .iter()
            .find(|shape| shape.name.eq_ignore_ascii_case(name));
        found.ok_or_else(|| {
            let known: Vec<&str> = SHAPES.iter().map(|shape| shape.name).collect();
            let known = known.join(", ");
            ModelError::Unsupported(format!("unknown shape {name:?}; known shapes: {known}"))
        })
    }

    /// Its settings, in the words of `config.json`.
    pub fn config(&self) -> Config {
        Config::new(self.name, (self.settings)())
    }
}

/// Writes a GGUF file of random weights in `shape` and the formats of `recipe`.
///
/// The same seed makes the same file. Weights have mean 0 and the inverse square root of the row
/// length as their deviation, so activations stay finite at every depth; norms are 1. The
/// vocabulary has the right size and no meaning: bytes, a few merges, and unused places.
///
/// # Errors
/// When the file cannot be written; [`ModelError::Stopped`] when `on_progress` breaks off.
pub fn make_model(
    shape: &Shape,
    recipe: Recipe,
    seed: u64,
    out: &Path,
    pool: &Pool,
    on_progress: &mut OnProgress<'_>,
) -> Result<Report, ModelError> {
    make_from(&shape.config(), recipe, seed, out, pool, on_progress)
}

/// As [`make_model`], for any settings in the words of `config.json`.
///
/// # Errors
/// When the settings are incomplete or have no form in GGUF files, or as [`make_model`].
pub fn make_from(
    config: &Config,
    recipe: Recipe,
    seed: u64,
    out: &Path,
    pool: &Pool,
    on_progress: &mut OnProgress<'_>,
) -> Result<Report, ModelError> {
    let model_type = config.opt_str("model_type")?.unwrap_or_default();
    let architecture = arch::by_model_type(config.file(), model_type)?;
    let blueprint = architecture.blueprint(config)?;
    let head = if config
        .opt_bool("tie_word_embeddings")?
        .unwrap_or(blueprint.embedding_scale != 1.0)
    {
        convert::Head::Tied
    } else {
        convert::Head::Own
    };
    let mut header = GgufHeader::new();
    crate::gguf_config::write(config, architecture, &blueprint, &mut header)?;
    header.str("general.type", "model");
    header.str("general.name", &format!("{} (random)", config.file()));
    convert::put_type(recipe, &mut header);
    convert::put_synthetic_vocabulary(config, blueprint.vocab, &mut header)?;

    let tensors = convert::random_tensors(architecture, &blueprint, head, recipe, seed);
    convert::write(header, &tensors, out, pool, on_progress)
}

const fn shape(name: &'static str, billions: f32, settings: fn() -> Value) -> Shape {
    Shape {
        name,
        billions,
        settings,
    }
}

/// `heads` are query heads, KV heads and channels of a head.
fn llama(
    hidden: usize,
    ffn: usize,
    layers: usize,
    heads: [usize; 3],
    vocab: usize,
    positions: usize,
    theta: f64,
) -> Value {
    json!({"model_type": "llama", "hidden_size": hidden, "intermediate_size": ffn,
        "num_hidden_layers": layers, "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1], "head_dim": heads[2], "vocab_size": vocab,
        "max_position_embeddings": positions, "rope_theta": theta, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": false})
}

fn qwen(model_type: &str, tied: bool) -> Value {
    json!({"model_type": model_type, "rms_norm_eps": 1e-6, "tie_word_embeddings": tied})
}

/// Gated delta layers, three to each attention.
fn delta(key_heads: usize, value_heads: usize) -> Value {
    json!({"linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
        "linear_num_key_heads": key_heads, "linear_num_value_heads": value_heads,
        "full_attention_interval": 4, "partial_rotary_factor": 0.25})
}

fn llama3_scaling(factor: f64) -> Value {
    json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192})
}

/// `plain` with the values of `own` added or put in place of its own.
fn with(mut plain: Value, own: Value) -> Value {
    if let (Value::Object(plain), Value::Object(own)) = (&mut plain, own) {
        plain.extend(own);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use longview_kernels::Format;

    /// Parameters of a shape, from the tensors its file would have.
    fn parameters(shape: &Shape) -> f64 {
        let config = shape.config();
        let model_type = config.opt_str("model_type").unwrap().unwrap();
        let architecture = arch::by_model_type(shape.name, model_type).unwrap();
        let blueprint = architecture.blueprint(&config).unwrap();
        let head = match config
            .opt_bool("tie_word_embeddings")
            .unwrap()
            .unwrap_or(false)
        {
            true => convert::Head::Tied,
            false => convert::Head::Own,
        };
        let tensors = convert::random_tensors(architecture, &blueprint, head, Recipe::Q8_0, 0);
        let count = |shape: &[usize]| shape.iter().product::<usize>() as f64;
        tensors.iter().map(|tensor| count(&tensor.shape)).sum()
    }

    #[test]
    fn every_shape_has_the_parameters_it_is_known_for() {
        for shape in &SHAPES {
            let billions = parameters(shape) / 1e9;
            let advertised = f64::from(shape.billions);
            assert!(
                (billions - advertised).abs() < 0.06 * advertised.max(0.9),
                "{}: {billions}",
                shape.name
            );
        }
    }

    #[test]
    fn unknown_shapes_are_refused_with_the_known_ones() {
        let error = Shape::named("llama-9-1t").unwrap_err().to_string();
        assert!(error.contains("llama-9-1t") && error.contains("llama-3.2-1b"));
        assert_eq!(Shape::named("Llama-3.2-1B").unwrap().name, "llama-3.2-1b");
    }

    #[test]
    fn mixtures_keep_the_logits_exact() {
        let shape = Shape::named("llama-3.2-1b").unwrap();
        let architecture = arch::by_model_type("", "llama").unwrap();
        let blueprint = architecture.blueprint(&shape.config()).unwrap();
        let head = convert::Head::Tied;
        let tensors = convert::random_tensors(architecture, &blueprint, head, Recipe::Q4_0, 0);
        assert_eq!(tensors[0].name, "token_embd.weight");
        assert_eq!(tensors[0].format, Format::Q6_K);
    }
}
