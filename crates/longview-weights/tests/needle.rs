//! The reference model, as a Hugging Face folder and as GGUF: the same weights under both names.

use std::path::{Path, PathBuf};

use half::f16;
use longview_kernels::Format;
use longview_weights::{Tensor, WeightFile};

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../models/needle")
        .join(name)
}

#[test]
fn the_folder_and_the_gguf_hold_the_same_tensors() {
    let folder = WeightFile::open(model("")).unwrap();
    let gguf = WeightFile::open(model("needle-f16.gguf")).unwrap();
    assert_eq!(folder.names().count(), gguf.names().count());
    let same = |ours: &str, theirs: &str, heads: Option<usize>| {
        let (a, b) = (gguf.tensor(ours).unwrap(), folder.tensor(theirs).unwrap());
        assert_eq!(a.shape, b.shape, "{ours}");
        let b = match heads {
            Some(heads) => rotary_pairs_together(&b, heads),
            None => b.to_f32(),
        };
        // The GGUF keeps norms in f32, the folder everything in f16.
        let a: Vec<f32> = a
            .to_f32()
            .into_iter()
            .map(|v| f16::from_f32(v).to_f32())
            .collect();
        assert!(a == b, "{ours} and {theirs} differ");
    };
    same("token_embd.weight", "model.embed_tokens.weight", None);
    same("output_norm.weight", "model.norm.weight", None);
    same("output.weight", "lm_head.weight", None);
    for layer in 0..4 {
        let pair = |ours: &str, theirs: &str, heads| {
            let ours = format!("blk.{layer}.{ours}.weight");
            same(
                &ours,
                &format!("model.layers.{layer}.{theirs}.weight"),
                heads,
            );
        };
        pair("attn_norm", "input_layernorm", None);
        pair("attn_q", "self_attn.q_proj", Some(8));
        pair("attn_k", "self_attn.k_proj", Some(2));
        pair("attn_v", "self_attn.v_proj", None);
        pair("attn_output", "self_attn.o_proj", None);
        pair("ffn_norm", "post_attention_layernorm", None);
        pair("ffn_gate", "mlp.gate_proj", None);
        pair("ffn_up", "mlp.up_proj", None);
        pair("ffn_down", "mlp.down_proj", None);
    }
}

/// GGUF keeps the two rows that rotate together side by side for llama; the folder keeps the first
/// of all pairs, then the second of all.
fn rotary_pairs_together(tensor: &Tensor<'_>, heads: usize) -> Vec<f32> {
    let (values, k) = (tensor.to_f32(), tensor.row_len());
    let half = tensor.rows() / heads / 2;
    (0..tensor.rows())
        .flat_map(|row| {
            let (head, pair, second) = (row / (2 * half), row / 2 % half, row % 2);
            let from = head * 2 * half + second * half + pair;
            values[from * k..][..k].to_vec()
        })
        .collect()
}

#[test]
fn the_folder_carries_its_configuration() {
    let WeightFile::HuggingFace(folder) = WeightFile::open(model("")).unwrap() else {
        panic!("a folder with config.json and safetensors");
    };
    assert_eq!(folder.config()["model_type"], "llama");
    assert_eq!(folder.generation_config().unwrap()["eos_token_id"], 1);
    assert_eq!(folder.tokenizer_config().unwrap()["bos_token"], "<|bos|>");
    assert!(
        folder
            .chat_template()
            .unwrap()
            .unwrap()
            .contains("<|assistant|>")
    );
    assert!(folder.tokenizer_path().ends_with("tokenizer.json"));
    assert_eq!(
        folder.file_bytes(),
        std::fs::metadata(model("model.safetensors")).unwrap().len()
    );
}

#[test]
fn the_gguf_carries_its_configuration_and_vocabulary() {
    let WeightFile::Gguf(file) = WeightFile::open(model("needle-f16.gguf")).unwrap() else {
        panic!("a GGUF file");
    };
    assert_eq!(file.str("general.architecture").unwrap(), "llama");
    assert_eq!(file.u32("llama.block_count").unwrap(), 4);
    assert_eq!(file.strings("tokenizer.ggml.tokens").unwrap().len(), 4096);
    assert_eq!(file.strings("tokenizer.ggml.merges").unwrap().len(), 3835);
    assert_eq!(
        file.tensor("blk.0.attn_q.weight").unwrap().format,
        Format::F16
    );
    assert_eq!(
        file.tensor("blk.0.ffn_down.weight").unwrap().shape,
        [384, 512]
    );
}
