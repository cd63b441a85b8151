//! The language part of a model that also sees or hears.
//!
//! Such folders nest the settings under `text_config`, and the text model's tensors lie under a
//! prefix beside those of the other parts. What is taken out here reads like a text model of its
//! own, so nothing else knows of the nesting.

use std::collections::BTreeSet;

use longview_weights::HuggingFaceFolder;
use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::error::ModelError;

/// Where the settings of the language part are.
const SECTION: &str = "text_config";

/// Prefixes of a text model's tensors, and what they stand for in a text model of its own. The
/// first two are those of published files, the third is how transformers spells them in memory.
const PREFIXES: [(&str, &str); 3] = [
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
];

/// A folder's settings. Where the folder holds a model that also sees or hears, it is narrowed to
/// the language part, and a notice says what is left out.
///
/// # Errors
/// When a tensor of the language part is there twice.
pub(crate) fn settings(
    folder: &mut HuggingFaceFolder,
    notices: &mut Vec<String>,
) -> Result<Config, ModelError> {
    let file = folder.path().display().to_string();
    let Some(section) = folder.config().get(SECTION).and_then(Value::as_object) else {
        return Ok(Config::new(file, folder.config().clone()));
    };
    let values = complete(section, folder.config());
    let left_out = folder.select(name_by_itself)?;
    if !left_out.is_empty() {
        notices.push(notice(&left_out));
    }
    Ok(Config::new(file, values))
}

/// The settings of the language part with what the section leaves out: nested sections name only
/// what differs from transformers' defaults.
fn complete(section: &Map<String, Value>, whole: &Value) -> Value {
    let mut values = section.clone();
    if let Some(usual) = usual_model_type(whole["model_type"].as_str().unwrap_or_default()) {
        let model_type = values.entry("model_type");
        model_type.or_insert_with(|| usual.into());
    }
    if let Some(tied) = whole.get("tie_word_embeddings") {
        let own = values.entry("tie_word_embeddings");
        own.or_insert_with(|| tied.clone());
    }
    let model_type = values.get("model_type").and_then(Value::as_str);
    if let Value::Object(defaults) = defaults(model_type.unwrap_or_default()) {
        for (key, value) in defaults {
            values.entry(key).or_insert(value);
        }
    }
    values.into()
}

/// The text model inside a model of this `model_type`, for sections that do not say.
fn usual_model_type(whole: &str) -> Option<&'static str> {
    match whole {
        "gemma3" => Some("gemma3_text"),
        "llava" | "llava_next" => Some("llama"),
        "mistral3" => Some("mistral"),
        "qwen3_5" => Some("qwen3_5_text"),
        "qwen3_5_moe" => Some("qwen3_5_moe_text"),
        _ => None,
    }
}

/// What transformers takes for settings that are absent, where that is not what the architectures
/// take by themselves.
fn defaults(model_type: &str) -> Value {
    match model_type {
        "gemma3_text" => json!({
            "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216,
            "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
            "head_dim": 256, "max_position_embeddings": 131_072, "query_pre_attn_scalar": 256,
            "rope_theta": 1e6, "sliding_window": 4096, "tie_word_embeddings": true,
        }),
        "llama" => json!({
            "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008,
            "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 2048,
        }),
        "mistral" => json!({
            "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 14_336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
            "max_position_embeddings": 131_072, "sliding_window": 4096,
        }),
        "qwen2" => json!({
            "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22_016,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
            "max_position_embeddings": 32_768,
        }),
        "qwen3_5_text" => json!({
            "vocab_size": 248_320, "hidden_size": 4096, "intermediate_size": 12_288,
            "num_hidden_layers": 32, "num_attention_heads": 16, "num_key_value_heads": 4,
            "head_dim": 256, "max_position_embeddings": 32_768,
        }),
        "qwen3_5_moe_text" => json!({
            "vocab_size": 248_320, "hidden_size": 2048, "num_hidden_layers": 40,
            "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256,
            "max_position_embeddings": 32_768, "num_experts": 256, "num_experts_per_tok": 8,
            "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
        }),
        _ => Value::Null,
    }
}

/// The name that a tensor of the language part has in a text model of its own; `None` for tensors
/// of other parts.
fn name_by_itself(name: &str) -> Option<String> {
    for (nested, own) in PREFIXES {
        if let Some(rest) = name.strip_prefix(nested) {
            return Some(format!("{own}{rest}"));
        }
    }
    let own = [
        "model.layers.",
        "model.embed_tokens.",
        "model.norm.",
        "lm_head.",
    ];
    own.iter()
        .any(|prefix| name.starts_with(prefix))
        .then(|| name.to_owned())
}

fn notice(left_out: &[String]) -> String {
    let part = |name: &String| {
        let name = name.strip_prefix("model.").unwrap_or(name);
        name.split('.').next().unwrap_or(name).to_owned()
    };
    let parts: BTreeSet<String> = left_out.iter().map(part).collect();
    let parts = Vec::from_iter(parts).join(", ");
    format!(
        "only the language part of this model is read; {} tensors of other parts ({parts}) are left \
         out",
        left_out.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_the_prefix_leads_to_the_same_names() {
        for name in [
            "language_model.model.layers.0.mlp.up_proj.weight",
            "model.language_model.layers.0.mlp.up_proj.weight",
            "model.layers.0.mlp.up_proj.weight",
        ] {
            let own = name_by_itself(name);
            assert_eq!(own.as_deref(), Some("model.layers.0.mlp.up_proj.weight"));
        }
        for name in ["language_model.lm_head.weight", "lm_head.weight"] {
            assert_eq!(name_by_itself(name).as_deref(), Some("lm_head.weight"));
        }
        for name in [
            "vision_tower.vision_model.encoder.layers.0.layer_norm1.weight",
            "model.vision_tower.encoder.layers.0.layer_norm1.weight",
            "multi_modal_projector.mm_input_projection_weight",
        ] {
            assert_eq!(name_by_itself(name), None);
        }
    }

    #[test]
    fn what_a_section_says_wins_over_what_is_usual() {
        let section = json!({"hidden_size": 2560, "sliding_window": null});
        let section = section.as_object().unwrap();
        let values = complete(section, &json!({"model_type": "gemma3"}));
        assert_eq!(values["model_type"], "gemma3_text");
        assert_eq!(values["hidden_size"], 2560);
        assert_eq!(values["sliding_window"], Value::Null);
        assert_eq!(values["head_dim"], 256);
        assert_eq!(values["tie_word_embeddings"], true);
        let whole = json!({"model_type": "llava", "tie_word_embeddings": true});
        let values = complete(&Map::new(), &whole);
        assert_eq!(
            (&values["model_type"], &values["hidden_size"]),
            (&json!("llama"), &json!(4096))
        );
        assert_eq!(values["tie_word_embeddings"], true);
    }

    #[test]
    fn parts_left_out_are_named_once() {
        let left_out = [
            "vision_tower.a",
            "vision_tower.b",
            "model.multi_modal_projector.c",
        ];
        let text = notice(&left_out.map(str::to_owned));
        assert!(
            text.contains("3 tensors") && text.contains("(multi_modal_projector, vision_tower)")
        );
    }
}
