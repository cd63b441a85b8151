//! What cannot be converted or opened, and what the message says.

use std::ops::ControlFlow::Continue;

use longview_models::{ModelError, ModelFile, Recipe};
use longview_weights::{GgufFile, GgufHeader, WeightFile};
use serde_json::json;
use tempfile::TempDir;

use crate::fixtures::{convert, llama_folder, named, open, write_json};

/// The message of a failed conversion, after which no file may be left.
fn refused(source: &std::path::Path, recipe: Recipe) -> String {
    let folder = TempDir::new().unwrap();
    let error = match convert(source, recipe, &folder) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{} was converted", source.display()),
    };
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?} was left behind after: {error}");
    error
}

#[track_caller]
fn names(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{part:?} is missing from: {error}");
    }
}

#[test]
fn quantised_models_are_not_quantised_again() {
    let folder = TempDir::new().unwrap();
    let (path, _) = convert(&named("llama2"), Recipe::Q8_0, &folder).unwrap();
    let error = refused(&path, Recipe::Q4_0);
    names(
        &error,
        &["Q8_0.gguf", ".weight", "already quantised (Q8_0)", "F16"],
    );
}

#[test]
fn a_missing_tensor_or_one_of_another_shape_is_named() {
    let up = "model.layers.0.mlp.up_proj.weight";
    let without = llama_folder(300, |name, _, values| {
        if name == up {
            values.clear();
        }
    });
    names(&refused(without.path(), Recipe::F16), &[up]);
    let wide = llama_folder(300, |name, shape, _| {
        if name == up {
            *shape = vec![32, 64];
        }
    });
    names(
        &refused(wide.path(), Recipe::F16),
        &[up, "[32, 64]", "[64, 32]"],
    );
}

#[test]
fn values_that_do_not_fit_are_named_with_a_way_out() {
    let norm = "model.layers.0.self_attn.v_proj.weight";
    let with = |value: f32| {
        llama_folder(300, move |name, _, values| {
            if name == norm {
                values[100] = value;
            }
        })
    };
    let large = with(1e6);
    names(&refused(large.path(), Recipe::F16), &[norm, "1e6", "bf16"]);
    let folder = TempDir::new().unwrap();
    convert(large.path(), Recipe::BF16, &folder).unwrap();
    names(
        &refused(with(f32::NAN).path(), Recipe::Q8_0),
        &[norm, "NaN", "damaged"],
    );
}

#[test]
fn tokenizers_that_gguf_cannot_hold_are_refused() {
    let folder = llama_folder(300, |_, _, _| {});
    let tokenizer = |value: serde_json::Value| {
        write_json(&folder, "tokenizer.json", &value);
        refused(folder.path(), Recipe::F16)
    };
    let unigram = tokenizer(json!({"model": {"type": "Unigram", "vocab": []}}));
    names(&unigram, &["tokenizer.json", "Unigram"]);
    let vocab = json!({"a": 0, "b": 1, "ab": 300});
    let bpe = json!({"type": "BPE", "vocab": vocab, "merges": ["a b"]});
    let beyond = tokenizer(json!({"model": bpe, "decoder": {"type": "ByteLevel"}}));
    names(&beyond, &["tokenizer.json", "\"ab\"", "300 rows"]);
    let bpe = json!({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]});
    let split = json!({"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated"});
    let odd = json!({"model": bpe, "decoder": {"type": "ByteLevel"}, "pre_tokenizer": split});
    names(&tokenizer(odd), &["tokenizer.json", "x+", "llama-bpe"]);
    names(
        &tokenizer(json!({"model": 7})),
        &["tokenizer.json", "broken"],
    );
}

#[test]
fn settings_that_gguf_has_no_form_for_are_named() {
    let folder = llama_folder(300, |_, _, _| {});
    let text = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
    let with = |key: &str, value: serde_json::Value| {
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config[key] = value;
        write_json(&folder, "config.json", &config);
        refused(folder.path(), Recipe::F16)
    };
    let part = with("partial_rotary_factor", json!(0.5));
    names(&part, &["partial_rotary_factor", "turn in part"]);
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "truncate": false});
    names(&with("rope_scaling", yarn), &["truncate", "no form"]);
}

/// A copy of a GGUF file with other metadata or tensors.
fn copied(
    source: &std::path::Path,
    folder: &TempDir,
    prepare: impl Fn(&mut GgufHeader),
    keep: impl Fn(&str) -> bool,
    shape: impl Fn(&str, &[usize]) -> Vec<usize>,
) -> std::path::PathBuf {
    let source = GgufFile::open(source).unwrap();
    let out = folder.path().join("copy.gguf");
    let mut header = GgufHeader::new();
    prepare(&mut header);
    for (key, value) in source.metadata() {
        header.value(key, value);
    }
    let kept: Vec<_> = source
        .tensors()
        .filter(|tensor| keep(tensor.name))
        .collect();
    for tensor in &kept {
        let shape = shape(tensor.name, tensor.shape);
        header.tensor(tensor.name, tensor.format, &shape).unwrap();
    }
    let mut writer = header.create(&out).unwrap();
    for tensor in &kept {
        writer.append(tensor.name, tensor.data).unwrap();
    }
    writer.finish().unwrap();
    out
}

fn message<T>(result: Result<T, ModelError>) -> String {
    match result {
        Err(error) => error.to_string(),
        Ok(_) => panic!("it was accepted"),
    }
}

#[test]
fn damaged_gguf_models_are_refused_by_file_and_tensor() {
    use longview_kernels::{Exec, Isa, Numerics};
    use longview_kv::{KvType, Ledger};

    let folder = TempDir::new().unwrap();
    let (good, _) = convert(&named("llama2"), Recipe::F32, &folder).unwrap();
    let (all, as_is) = (|_: &str| true, |_: &str, shape: &[usize]| shape.to_vec());
    let exec = Exec::new(1, Isa::best(), Numerics::F32);
    let load = |path: &std::path::Path| {
        let model = ModelFile::new(WeightFile::open(path).unwrap())?;
        model.load(&exec, KvType::F32, &Ledger::unlimited(), &mut |_, _| {})
    };

    let renamed = |header: &mut GgufHeader| {
        header.str("general.architecture", "hyperllama");
    };
    let path = copied(&good, &folder, renamed, all, as_is);
    names(
        &message(load(&path)),
        &["copy.gguf", "hyperllama", "llama, mistral"],
    );

    let tensor = "blk.1.ffn_up.weight";
    let path = copied(&good, &folder, |_| {}, |name| name != tensor, as_is);
    names(&message(load(&path)), &["copy.gguf", tensor]);

    let turned = |name: &str, shape: &[usize]| {
        let mut shape = shape.to_vec();
        if name == tensor {
            shape.reverse();
        }
        shape
    };
    let path = copied(&good, &folder, |_| {}, all, turned);
    names(
        &message(load(&path)),
        &["copy.gguf", tensor, "[32, 64]", "[64, 32]"],
    );
    names(
        &refused(&path, Recipe::F16),
        &["copy.gguf", tensor, "[32, 64]", "[64, 32]"],
    );

    let rows = open(&good).blueprint().vocab;
    let tokens: Vec<String> = (0..rows + 3).map(|id| format!("t{id}")).collect();
    let longer = |header: &mut GgufHeader| {
        header.str("tokenizer.ggml.model", "gpt2");
        header.strings("tokenizer.ggml.tokens", &tokens);
    };
    let path = copied(&good, &folder, longer, all, as_is);
    let error = message(load(&path));
    let counts = [(rows + 3).to_string(), rows.to_string()];
    names(
        &error,
        &["copy.gguf", "token_embd.weight", &counts[0], &counts[1]],
    );

    let absurd = |header: &mut GgufHeader| {
        header.u32("llama.block_count", u32::MAX);
    };
    let path = copied(&good, &folder, absurd, all, as_is);
    names(
        &message(load(&path)),
        &["copy.gguf", "num_hidden_layers", "4294967295"],
    );
}

#[test]
fn a_file_that_cannot_be_written_is_named() {
    let model = open(&named("llama2"));
    let out = std::path::Path::new("/nonexistent-folder/out.gguf");
    let pool = longview_kernels::Pool::new(1);
    let error = longview_models::quantize(&model, Recipe::F16, out, &pool, &mut |_| Continue(()));
    names(
        &message(error),
        &["/nonexistent-folder/out.gguf", "create the folder"],
    );
}
