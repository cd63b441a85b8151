//! Models to convert, and their logits.

use std::ops::ControlFlow::Continue;
use std::path::{Path, PathBuf};

use longview_kernels::{Exec, Isa, Numerics, Pool};
use longview_kv::{KvType, Ledger, Segment, Wanted};
use longview_models::convert::Report;
use longview_models::{ModelError, ModelFile, Recipe, Workspace, quantize};
use longview_weights::WeightFile;
use serde_json::Value;
use tempfile::TempDir;

/// Every parity fixture, by name.
pub(crate) fn all() -> Vec<(String, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut folders: Vec<(String, PathBuf)> = std::fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .map(|path| {
            (
                path.file_name().unwrap().to_string_lossy().into_owned(),
                path,
            )
        })
        .collect();
    folders.sort();
    assert!(folders.len() >= 20, "every architecture has its fixture");
    folders
}

/// The fixture called `name`.
pub(crate) fn named(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

pub(crate) fn open(path: &Path) -> ModelFile {
    ModelFile::new(WeightFile::open(path).unwrap()).unwrap()
}

/// Converts `source` to a file in `folder` and returns its path.
pub(crate) fn convert(
    source: &Path,
    recipe: Recipe,
    folder: &TempDir,
) -> Result<(PathBuf, Report), ModelError> {
    let out = folder.path().join(format!("{recipe}.gguf"));
    let model = ModelFile::new(WeightFile::open(source)?)?;
    let report = quantize(&model, recipe, &out, &Pool::new(2), &mut |_| Continue(()))?;
    Ok((out, report))
}

/// All logits of 140 tokens under `--numerics f32`, in a context planned for `planned`.
pub(crate) fn logits(path: &Path, planned: usize) -> Vec<f32> {
    let exec = Exec::new(2, Isa::best(), Numerics::F32);
    let ledger = Ledger::unlimited();
    let model = open(path)
        .load(&exec, KvType::F32, &ledger, &mut |_, _| {})
        .unwrap();
    let vocab = model.blueprint().vocab as u32;
    let ids: Vec<u32> = (0..140u32)
        .map(|i| (i * i * 7 + i * 13 + 5) % vocab)
        .collect();
    let mut context = model.new_context(planned, &ledger).unwrap();
    let mut workspace = Workspace::new();
    let segment = Segment {
        context: &mut context,
        tokens: &ids[..planned.min(ids.len())],
        wanted: Wanted::All,
    };
    model.forward(&exec, vec![segment], &mut workspace).unwrap();
    workspace.logits().to_vec()
}

/// The largest max|a−b| ÷ max|b| of any position.
pub(crate) fn error(got: &[f32], expected: &[f32], vocab: usize) -> f32 {
    assert_eq!(got.len(), expected.len());
    assert!(got.iter().all(|value| value.is_finite()));
    let largest = |values: &mut dyn Iterator<Item = f32>| values.map(f32::abs).fold(0.0, f32::max);
    got.chunks(vocab)
        .zip(expected.chunks(vocab))
        .map(|(got, expected)| {
            let difference = largest(&mut got.iter().zip(expected).map(|(a, b)| a - b));
            difference / largest(&mut expected.iter().copied())
        })
        .fold(0.0, f32::max)
}

/// Root mean square of the difference ÷ that of what was expected, over all logits: how far a
/// quantised model is from its source, where single positions of such small models go far.
pub(crate) fn distance(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    assert!(got.iter().all(|value| value.is_finite()));
    let sum = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>();
    let difference = sum(&mut got.iter().zip(expected).map(|(a, b)| a - b));
    (difference / sum(&mut expected.iter().copied())).sqrt()
}

/// A llama folder of one layer with `vocab` tokens, whose tensors `change` may alter before they
/// are written: name, shape, values.
pub(crate) fn llama_folder(
    vocab: usize,
    change: impl Fn(&str, &mut Vec<usize>, &mut Vec<f32>),
) -> TempDir {
    let folder = TempDir::new().unwrap();
    let config = serde_json::json!({"model_type": "llama", "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": vocab, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": true});
    write_json(&folder, "config.json", &config);
    let layer = "model.layers.0";
    let tensors = [
        ("model.embed_tokens.weight".to_owned(), vec![vocab, 32]),
        ("model.norm.weight".to_owned(), vec![32]),
        (format!("{layer}.input_layernorm.weight"), vec![32]),
        (format!("{layer}.post_attention_layernorm.weight"), vec![32]),
        (format!("{layer}.self_attn.q_proj.weight"), vec![32, 32]),
        (format!("{layer}.self_attn.k_proj.weight"), vec![16, 32]),
        (format!("{layer}.self_attn.v_proj.weight"), vec![16, 32]),
        (format!("{layer}.self_attn.o_proj.weight"), vec![32, 32]),
        (format!("{layer}.mlp.gate_proj.weight"), vec![64, 32]),
        (format!("{layer}.mlp.up_proj.weight"), vec![64, 32]),
        (format!("{layer}.mlp.down_proj.weight"), vec![32, 64]),
    ];
    let mut stored = Vec::new();
    for (number, (name, mut shape)) in tensors.into_iter().enumerate() {
        let count: usize = shape.iter().product();
        let value = |i: usize| ((i * 37 + number * 11) % 101) as f32 / 100.0 - 0.5;
        let mut values: Vec<f32> = (0..count).map(value).collect();
        change(&name, &mut shape, &mut values);
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        if !bytes.is_empty() {
            stored.push((name, shape, bytes));
        }
    }
    let views = stored.iter().map(|(name, shape, bytes)| {
        let dtype = safetensors::Dtype::F32;
        let view = safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes).unwrap();
        (name.as_str(), view)
    });
    let file = safetensors::serialize(views, None).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), file).unwrap();
    folder
}

pub(crate) fn write_json(folder: &TempDir, name: &str, value: &Value) {
    std::fs::write(folder.path().join(name), value.to_string()).unwrap();
}
