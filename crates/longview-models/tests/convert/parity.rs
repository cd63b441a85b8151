//! Every architecture's fixture, from its folder and from the GGUF file made of it.

use longview_models::Recipe;
use tempfile::TempDir;

use crate::fixtures::{all, convert, error, logits, named, open};

/// Fixtures with other bits in GGUF files, most for a setting that those hold in f32 where
/// `config.json` has it in decimals: the
/// factors of llama 3.1's frequencies, and longrope's factor on sine and cosine.
const ROUNDED: [&str; 6] = [
    "llama31",
    "llama31_bias",
    "phi3_longrope",
    "phi3_longrope_partial",
    // Value heads in another order: their results are summed in that order.
    "qwen3_5",
    "qwen3_5_moe",
];

#[test]
fn a_converted_model_computes_what_its_folder_does() {
    for (name, folder) in all() {
        let temporary = TempDir::new().unwrap();
        let (file, report) = convert(&folder, Recipe::F32, &temporary).unwrap();
        assert_eq!(report.bytes, file.metadata().unwrap().len(), "{name}");
        let vocab = open(&folder).blueprint().vocab;
        // Planned lengths on both sides of longrope's limit of 128.
        for planned in [100, 140] {
            let (got, expected) = (logits(&file, planned), logits(&folder, planned));
            if ROUNDED.contains(&name.as_str()) {
                let error = error(&got, &expected, vocab);
                assert!(error < 2e-5, "{name}, {planned} tokens: {error:e}");
            } else {
                assert!(got == expected, "{name}, {planned} tokens: other bits");
            }
        }
    }
}

#[test]
fn sixteen_bit_models_keep_every_bit_in_their_own_format() {
    for (name, recipe) in [("mistral", Recipe::F16), ("mistral_window", Recipe::BF16)] {
        let temporary = TempDir::new().unwrap();
        let (file, _) = convert(&named(name), recipe, &temporary).unwrap();
        assert!(logits(&file, 140) == logits(&named(name), 140), "{name}");
        let model = open(&file);
        let query = model.weight_file().tensor("blk.0.attn_q.weight").unwrap();
        assert_eq!(query.format, recipe.base());
    }
}

#[test]
fn settings_survive_the_round_trip() {
    for (name, folder) in all() {
        let temporary = TempDir::new().unwrap();
        let (file, _) = convert(&folder, Recipe::F32, &temporary).unwrap();
        let (there, back) = (open(&folder), open(&file));
        let (there, back) = (there.blueprint(), back.blueprint());
        assert_eq!(there.layers, back.layers, "{name}");
        assert_eq!(there.max_positions, back.max_positions, "{name}");
        assert_eq!(there.norm_eps, back.norm_eps, "{name}");
        assert_eq!(there.final_softcap, back.final_softcap, "{name}");
        assert_eq!(there.embedding_scale, back.embedding_scale, "{name}");
        for (there, back) in there.ropes.iter().zip(&back.ropes) {
            assert_eq!(there.theta, back.theta, "{name}");
            assert_eq!(there.rotary_dim, back.rotary_dim, "{name}");
            if !ROUNDED.contains(&name.as_str()) {
                assert_eq!(there.scaling, back.scaling, "{name}");
            }
        }
    }
}
