//! What methods read from files, made for the world of these tests.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

use crate::world::{DIM, HEADS, KV_HEADS, LAYERS};

/// Numbers between the two matrices of a retaining head.
const MIDDLE: usize = 16;

/// The parameters that the method called `name` needs beside a budget, where it reads a file.
pub(crate) fn of(name: &str) -> Option<String> {
    match name {
        "duo-attention" => Some(format!("scores=\"{}\", sinks=4, recent=16", duo())),
        "locret" => Some(format!("{}, local=9", heads())),
        _ => None,
    }
}

/// A locret method with these parameters more.
pub(crate) fn locret(rest: &str) -> String {
    format!("locret({}, {rest})", heads())
}

/// A file with this text, which lasts as long as the tests.
pub(crate) fn write(text: &str) -> String {
    static WRITTEN: AtomicUsize = AtomicUsize::new(0);
    let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
    let path = folder().join(format!("{number}.tsv"));
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn duo() -> &'static str {
    static FILE: OnceLock<String> = OnceLock::new();
    FILE.get_or_init(|| write("# model fingerprint: the world\n0.9 0.1\n0 0\n0.2 0.8\n0.3 0.4\n"))
}

fn heads() -> &'static str {
    static FILE: OnceLock<String> = OnceLock::new();
    FILE.get_or_init(|| {
        let inputs = (HEADS + 2 * KV_HEADS) * DIM;
        let numbers = |seed: usize, count: usize| -> Vec<u8> {
            let number = |at: usize| ((at * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0;
            (0..count).flat_map(|at| number(at).to_le_bytes()).collect()
        };
        let mut tensors: Vec<(String, [usize; 2], Vec<u8>)> = Vec::new();
        for layer in 0..LAYERS {
            for (name, shape) in [("fc1", [MIDDLE, inputs]), ("fc2", [KV_HEADS, MIDDLE])] {
                let name = format!("model.layers.{layer}.self_attn.{name}.weight");
                let bytes = numbers(tensors.len(), shape[0] * shape[1]);
                tensors.push((name, shape, bytes));
            }
        }
        let views = tensors.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap();
            (name.as_str(), view)
        });
        let about = HashMap::from([("fingerprint".to_owned(), "the world".to_owned())]);
        let path = folder().join("heads.safetensors");
        safetensors::serialize_to_file(views, Some(about), &path).unwrap();
        format!("heads=\"{}\"", path.display())
    })
}

fn folder() -> PathBuf {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    FOLDER
        .get_or_init(|| tempfile::tempdir().unwrap())
        .path()
        .to_owned()
}
