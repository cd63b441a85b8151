//! Settings and tensors that do not fit together are refused, by name.

use std::path::Path;

use longview_kernels::{Exec, Isa, Numerics};
use longview_kv::{KvType, Ledger, RopeSet, Segment, Wanted};
use longview_models::{Config, ModelError, ModelFile, Workspace, arch};
use longview_weights::WeightFile;
use serde_json::{Value, json};

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// The settings of a fixture with some of them changed; null removes one.
fn changed(name: &str, changes: &Value) -> Value {
    let text = std::fs::read_to_string(fixture(name).join("config.json")).unwrap();
    let mut settings: Value = serde_json::from_str(&text).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        settings[key] = value.clone();
    }
    settings
}

fn blueprint_error(name: &str, changes: Value) -> String {
    let settings = changed(name, &changes);
    let model_type = settings["model_type"].as_str().unwrap().to_owned();
    let config = Config::new("tiny", settings);
    arch::by_model_type("tiny", &model_type)
        .and_then(|architecture| architecture.blueprint(&config))
        .unwrap_err()
        .to_string()
}

#[test]
fn settings_outside_their_domain_are_named() {
    for (changes, part) in [
        (json!({"rms_norm_eps": -5.0}), "rms_norm_eps"),
        (json!({"hidden_act": "relu9"}), "relu9"),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 0.0}}),
            "factor",
        ),
        (
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}),
            "high_freq_factor",
        ),
        (json!({"num_key_value_heads": 3}), "does not divide"),
        (
            json!({"model_type": "mamba9"}),
            "known architectures: llama",
        ),
    ] {
        let error = blueprint_error("llama2", changes);
        assert!(error.contains("tiny") && error.contains(part), "{error}");
    }
}

#[test]
fn activations_and_yarn_lengths_are_what_the_settings_say() {
    let of = |changes: Value| {
        let config = Config::new("tiny", changed("llama_yarn", &changes));
        arch::by_model_type("tiny", "llama")
            .unwrap()
            .blueprint(&config)
            .unwrap()
    };
    let gelu = of(json!({"hidden_act": "gelu"}));
    assert_ne!(gelu.layers[0].mlp, of(json!({})).layers[0].mlp);
    // 256 positions of training, four times as many by YaRN.
    assert_eq!(
        of(json!({"max_position_embeddings": 256})).max_positions,
        1024
    );
}

/// A copy of a fixture's folder with changed settings.
fn folder_with(name: &str, changes: Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let model = fixture(name).join("model.safetensors");
    std::fs::copy(model, folder.path().join("model.safetensors")).unwrap();
    let settings = changed(name, &changes).to_string();
    std::fs::write(folder.path().join("config.json"), settings).unwrap();
    folder
}

fn load_error(folder: &Path) -> ModelError {
    let exec = Exec::new(1, Isa::best(), Numerics::F32);
    let file = ModelFile::new(WeightFile::open(folder).unwrap()).unwrap();
    file.load(&exec, KvType::F32, &Ledger::unlimited(), &mut |_, _| {})
        .err()
        .unwrap()
}

#[test]
fn a_tensor_that_no_layer_uses_is_refused() {
    // The checkpoint has biases that these settings deny.
    let folder = folder_with("llama31_bias", json!({"attention_bias": false}));
    let error = load_error(folder.path());
    assert!(matches!(error, ModelError::Unread { .. }), "{error}");
    assert!(error.to_string().contains("bias"), "{error}");
    // And one that is asked for but missing.
    let folder = folder_with("llama2", json!({"attention_bias": true}));
    assert!(
        load_error(folder.path())
            .to_string()
            .contains("q_proj.bias")
    );
    let folder = folder_with("llama2", json!({"intermediate_size": 96}));
    let error = load_error(folder.path()).to_string();
    assert!(
        error.contains("[64, 32]") && error.contains("[96, 32]"),
        "{error}"
    );
}

#[test]
fn a_longrope_context_planned_short_does_not_outgrow_its_factors() {
    let exec = Exec::new(1, Isa::best(), Numerics::F32);
    let file = ModelFile::new(WeightFile::open(fixture("phi3_longrope")).unwrap()).unwrap();
    let model = file
        .load(&exec, KvType::F32, &Ledger::unlimited(), &mut |_, _| {})
        .unwrap();
    let ledger = Ledger::unlimited();
    let mut short = model.new_context(128, &ledger).unwrap();
    assert_eq!(short.identity().rope, RopeSet::Short);
    let read = |context: &mut _, tokens: &[u32]| {
        let segment = Segment {
            context,
            tokens,
            wanted: Wanted::Nothing,
        };
        model.forward(&exec, vec![segment], &mut Workspace::new())
    };
    read(&mut short, &[1; 128]).unwrap();
    let error = read(&mut short, &[1]).unwrap_err();
    assert!(
        matches!(
            error,
            ModelError::TooLong {
                wanted: 129,
                limit: 128
            }
        ),
        "{error}"
    );
    let mut long = model.new_context(129, &ledger).unwrap();
    read(&mut long, &[1; 200]).unwrap();
}
