//! Small weight files to open, damage and open again.
#![allow(dead_code)] // Each test file uses its part.

use std::path::Path;
use std::sync::OnceLock;

use longview_kernels::Format;
use longview_weights::{GgufHeader, WeightFile, WeightsError};

/// A GGUF file with a value of every common type and three tensors, as bytes.
pub(crate) fn small_gguf() -> Vec<u8> {
    static MADE: OnceLock<Vec<u8>> = OnceLock::new();
    MADE.get_or_init(make_small_gguf).clone()
}

fn make_small_gguf() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.gguf");
    let mut header = GgufHeader::new();
    header
        .str("general.architecture", "llama")
        .u32("llama.block_count", 2)
        .u32s("llama.attention.head_count_kv", &[4, 2])
        .f32("llama.rope.freq_base", 1e4)
        .bool("tokenizer.ggml.add_bos_token", true)
        .strings("tokenizer.ggml.tokens", &["<s>", "a", "", "ä"])
        .f32s("tokenizer.ggml.scores", &[0.0, -1.5, 2.0, f32::INFINITY])
        .i32s("tokenizer.ggml.token_type", &[3, 1, 1, -1])
        .bools("llama.windowed", &[true, false]);
    header
        .tensor("token_embd.weight", Format::F16, &[4, 8])
        .unwrap();
    header
        .tensor("blk.0.attn_q.weight", Format::Q8_0, &[3, 64])
        .unwrap();
    header
        .tensor("output_norm.weight", Format::F32, &[5])
        .unwrap();
    let mut writer = header.create(&path).unwrap();
    writer.append("token_embd.weight", &pattern(64)).unwrap();
    writer.append("blk.0.attn_q.weight", &pattern(100)).unwrap();
    writer
        .append("blk.0.attn_q.weight", &pattern(204)[100..])
        .unwrap();
    writer.append("output_norm.weight", &pattern(20)).unwrap();
    writer.finish().unwrap();
    std::fs::read(path).unwrap()
}

/// Bytes that differ from each other.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + 1) as u8).collect()
}

/// The bytes of a safetensors file with these tensors: name, dtype, shape, bytes.
pub(crate) fn safetensors(tensors: &[(&str, &str, &[usize], usize)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [end, end + bytes];
        let info = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
        header.insert((*name).into(), info);
        end += bytes;
    }
    with_header(&serde_json::Value::Object(header).to_string(), end)
}

/// A safetensors file with this header and so many bytes of data.
pub(crate) fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&pattern(data));
    bytes
}

/// Writes `bytes` as a file and opens it.
pub(crate) fn open_bytes(name: &str, bytes: &[u8]) -> Result<WeightFile, WeightsError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    WeightFile::open(&path)
}

/// A Hugging Face folder with a minimal configuration and these files.
pub(crate) fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "config.json", br#"{"model_type": "llama"}"#);
    for (name, bytes) in files {
        write(folder.path(), name, bytes);
    }
    folder
}

pub(crate) fn write(folder: &Path, name: &str, bytes: &[u8]) {
    std::fs::write(folder.join(name), bytes).unwrap();
}

/// Reads everything a model offers, so that a tensor outside its file would be noticed.
pub(crate) fn touch(model: &WeightFile) {
    for tensor in model.tensors() {
        assert_eq!(
            tensor.format.bytes_for(tensor.elements()),
            Some(tensor.data.len())
        );
        assert!(tensor.data.len() as u64 <= model.file_bytes());
        let sum: u64 = tensor.data.iter().map(|&byte| u64::from(byte)).sum();
        std::hint::black_box(sum);
        std::hint::black_box(model.tensor(tensor.name).unwrap().to_f32());
        model.release(tensor.name, 0..tensor.data.len());
    }
    if let WeightFile::Gguf(file) = model {
        for (key, value) in file.metadata() {
            std::hint::black_box(format!("{value}"));
            if let Some(array) = value.array() {
                assert_eq!(array.iter().count(), array.len(), "{key}");
            }
            let _ = (file.u32(key), file.f32(key), file.str(key), file.bool(key));
            let _ = (
                file.strings(key),
                file.u32s(key),
                file.i32s(key),
                file.f32s(key),
            );
        }
    }
}
