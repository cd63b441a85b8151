//! Quantised files: the formats they hold, and how far their logits are from the source's.

use std::ops::ControlFlow::Continue;

use longview_kernels::{Format, Pool};
use longview_models::shapes::make_from;
use longview_models::{Config, Recipe};
use serde_json::json;
use tempfile::TempDir;

use crate::fixtures::{all, convert, distance, logits, open};

#[test]
fn every_architecture_takes_every_recipe() {
    for (name, folder) in all() {
        let expected = logits(&folder, 140);
        // Logits that have nothing to do with each other are 1.4 apart. Rows of 32 fill no block of 256, so the K mixtures fall back to blocks of 32 here.
        let bounds = [
            (Recipe::F16, 0.01),
            (Recipe::BF16, 0.05),
            (Recipe::Q8_0, 0.12),
            (Recipe::Q6_K, 0.12),
            (Recipe::Q5_K_M, 0.5),
            (Recipe::Q4_K_M, 0.55),
            (Recipe::Q4_0, 0.85),
        ];
        // Where a rounding sends one row to other experts, states carry that to all rows after it.
        let hybrid = name == "qwen3_5_moe" || name.starts_with("qwen3_next");
        let slack = if hybrid { 3.0 } else { 1.0 };
        let mut line = format!("{name:22}");
        for (recipe, most) in bounds {
            let most = f32::min(most * slack, 1.0);
            let temporary = TempDir::new().unwrap();
            let (file, _) = convert(&folder, recipe, &temporary).unwrap();
            let distance = distance(&logits(&file, 140), &expected);
            line += &format!(" {recipe} {distance:.1e}");
            assert!(distance < most, "{name} in {recipe}: {distance:e}");
        }
        println!("{line}");
    }
}

/// A llama of random weights whose rows fill blocks of 256.
fn wide(folder: &TempDir) -> std::path::PathBuf {
    let config = Config::new(
        "wide",
        json!({"model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 320, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": false}),
    );
    let out = folder.path().join("wide.gguf");
    let pool = Pool::new(2);
    make_from(&config, Recipe::F32, 5, &out, &pool, &mut |_| Continue(())).unwrap();
    out
}

#[test]
fn more_bits_mean_smaller_errors_and_mixtures_hold_what_they_promise() {
    let folder = TempDir::new().unwrap();
    let source = wide(&folder);
    let expected = logits(&source, 140);
    let mut last = f32::INFINITY;
    let rising = [
        (Recipe::Q4_0, 0.4),
        (Recipe::Q4_K_M, 0.35),
        (Recipe::Q5_K_M, 0.2),
        (Recipe::Q6_K, 0.09),
        (Recipe::Q8_0, 0.03),
        (Recipe::BF16, 0.02),
        (Recipe::F16, 0.004),
    ];
    for (recipe, most) in rising {
        let (file, report) = convert(&source, recipe, &folder).unwrap();
        let distance = distance(&logits(&file, 140), &expected);
        println!("{recipe}: {distance:.1e}, {:?}", report.formats);
        assert!(
            distance < most && distance < last,
            "{recipe}: {distance:e} after {last:e}"
        );
        last = distance;
    }
    let (file, _) = convert(&source, Recipe::Q4_K_M, &folder).unwrap();
    let model = open(&file);
    let format = |name: &str| model.weight_file().find_tensor(name).unwrap().format;
    assert_eq!(format("token_embd.weight"), Format::Q4_K);
    assert_eq!(format("output.weight"), Format::Q6_K);
    assert_eq!(format("blk.0.attn_v.weight"), Format::Q6_K);
    assert_eq!(format("blk.1.attn_v.weight"), Format::Q4_K);
    assert_eq!(format("blk.3.ffn_down.weight"), Format::Q6_K);
    assert_eq!(format("blk.7.ffn_down.weight"), Format::Q6_K);
    assert_eq!(format("blk.0.ffn_up.weight"), Format::Q4_K);
    assert_eq!(format("blk.0.attn_norm.weight"), Format::F32);
}
