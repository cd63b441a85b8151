//! Models of random weights.

use std::ops::ControlFlow::Continue;
use std::path::{Path, PathBuf};

use longview_kernels::Pool;
use longview_models::shapes::{SHAPES, make_from};
use longview_models::{Config, Recipe};
use longview_text::{Specials, Tokenizer, Vocabulary};
use longview_weights::{GgufFile, WeightFile};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixtures::{logits, open};

/// A shape's settings, shrunk to four layers and a few hundred tokens.
fn small(shape: &str) -> Config {
    let shape = SHAPES.iter().find(|known| known.name == shape).unwrap();
    let config = shape.config();
    let mut values = serde_json::Map::new();
    for key in [
        "model_type",
        "rms_norm_eps",
        "rope_theta",
        "tie_word_embeddings",
        "max_position_embeddings",
        "rope_scaling",
        "num_local_experts",
        "num_experts",
        "num_experts_per_tok",
        "norm_topk_prob",
        "sliding_window_pattern",
        "rope_local_base_freq",
        "original_max_position_embeddings",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "linear_conv_kernel_dim",
        "linear_key_head_dim",
        "linear_value_head_dim",
        "linear_num_key_heads",
        "linear_num_value_heads",
        "full_attention_interval",
        "partial_rotary_factor",
    ] {
        if let Some(value) = config.get(key) {
            values.insert(key.to_owned(), value.clone());
        }
    }
    let own = json!({"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 300,
        "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
        "sliding_window": 64});
    if let Value::Object(own) = own {
        values.extend(own);
    }
    if let Some(Value::Object(scaling)) = values.get_mut("rope_scaling") {
        for key in ["short_factor", "long_factor"] {
            if let Some(Value::Array(factors)) = scaling.get_mut(key) {
                factors.truncate(16);
            }
        }
    }
    Config::new(shape.name, Value::Object(values))
}

fn make(config: &Config, recipe: Recipe, seed: u64, folder: &Path) -> PathBuf {
    let out = folder.join(format!("{}-{recipe}-{seed}.gguf", config.file()));
    make_from(config, recipe, seed, &out, &Pool::new(2), &mut |_| {
        Continue(())
    })
    .unwrap();
    out
}

#[test]
fn every_shape_loads_and_its_logits_are_finite_and_spread() {
    let folder = TempDir::new().unwrap();
    for shape in &SHAPES {
        let config = small(shape.name);
        for recipe in [Recipe::Q4_0, Recipe::Q8_0, Recipe::F16] {
            let logits = logits(&make(&config, recipe, 1, folder.path()), 140);
            let mean = logits.iter().sum::<f32>() / logits.len() as f32;
            let variance = logits.iter().map(|v| (v - mean).powi(2)).sum::<f32>();
            let deviation = (variance / logits.len() as f32).sqrt();
            let name = shape.name;
            assert!(
                (0.3..10.0).contains(&deviation),
                "{name}, {recipe}: {deviation}"
            );
        }
    }
}

#[test]
fn the_same_seed_makes_the_same_file_on_any_number_of_threads() {
    let folder = TempDir::new().unwrap();
    let config = small("llama-3.2-1b");
    let bytes = |recipe: Recipe, seed: u64, threads: usize| {
        let out = folder.path().join("out.gguf");
        make_from(
            &config,
            recipe,
            seed,
            &out,
            &Pool::new(threads),
            &mut |_| Continue(()),
        )
        .unwrap();
        std::fs::read(out).unwrap()
    };
    for recipe in Recipe::ALL {
        let one = bytes(recipe, 3, 1);
        assert!(one == bytes(recipe, 3, 2), "{recipe}");
        assert!(one != bytes(recipe, 4, 2), "{recipe}");
    }
}

#[test]
fn the_vocabulary_has_the_embeddings_size_and_writes_any_text() {
    let folder = TempDir::new().unwrap();
    let path = make(&small("qwen3-0.6b"), Recipe::Q8_0, 0, folder.path());
    let file = GgufFile::open(&path).unwrap();
    let tokenizer = Tokenizer::from_vocabulary(Vocabulary::from_gguf(&file).unwrap()).unwrap();
    assert_eq!(tokenizer.vocab_size(), 300);
    let text = "The thing and the 10th: naïve 漢字 🙂\n\tend";
    let ids = tokenizer.encode(text, Specials::AsText).unwrap();
    assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    assert!(ids.len() < text.len(), "merges are at work");
    assert!(matches!(open(&path).weight_file(), WeightFile::Gguf(_)));
}

#[test]
fn settings_without_room_for_a_vocabulary_are_refused() {
    let folder = TempDir::new().unwrap();
    let config = Config::new(
        "tiny",
        json!({"model_type": "llama", "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2,
        "vocab_size": 100, "max_position_embeddings": 256}),
    );
    let out = folder.path().join("out.gguf");
    let made = make_from(&config, Recipe::F16, 0, &out, &Pool::new(1), &mut |_| {
        Continue(())
    });
    let error = made.unwrap_err().to_string();
    assert!(error.contains("tiny") && error.contains("vocab_size") && error.contains("100"));
    assert!(!out.exists());
}
