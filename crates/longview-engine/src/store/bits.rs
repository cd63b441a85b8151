//! That [`BITS`] is raised when the same tokens begin to give other bits.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use longview_kernels::{Exec, Isa, Numerics, Pool};
use longview_kv::tier::{DiskOptions, DiskTier, Origin, StoreFolder, Syncing, Tier};
use longview_kv::{BlockHash, KvForm, KvType, Ledger, Segment, Store, Wanted};
use longview_models::shapes::make_from;
use longview_models::{Config, ModelFile, Recipe, Workspace};
use longview_weights::WeightFile;
use serde_json::{Value, json};

use super::BITS;

/// What logits and sealed blocks hash to under these bits, by instruction set: those that were at hand when they were raised
/// last.
const KNOWN: (&[u8], &[(&str, &str)]) = (
    b"6",
    &[
        ("scalar", "a2d8f36b78bcce83"),
        ("avx2", "d8731666ed3db920"),
        ("avxvnni", "d8731666ed3db920"),
        ("avx512", "2d8fd10f5588b5c2"),
    ],
);

/// Tokens read: two blocks, and some of a third.
const TOKENS: u32 = 150;

/// Attention alone, a state beside it, and rows of whole blocks of 256.
fn models() -> [Value; 3] {
    let plain = json!({"model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        "vocab_size": 320, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": false});
    let mut hybrid = plain.clone();
    let own = json!({"model_type": "qwen3_5_text", "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 32, "linear_value_head_dim": 32, "linear_num_key_heads": 1,
        "linear_num_value_heads": 2, "full_attention_interval": 2, "partial_rotary_factor": 0.5});
    if let (Value::Object(hybrid), Value::Object(own)) = (&mut hybrid, own) {
        hybrid.extend(own);
    }
    let mut wide = plain.clone();
    wide["hidden_size"] = json!(256);
    wide["intermediate_size"] = json!(512);
    [plain, hybrid, wide]
}

/// Adds the logits of all tokens and the bytes of all blocks that seal.
fn add(model: &Path, exec: &Exec, form: KvForm, to: &mut blake3::Hasher) {
    let home = tempfile::tempdir().unwrap();
    let folder = StoreFolder::open(home.path()).unwrap();
    let options = DiskOptions {
        sync: Syncing::Never,
        ..DiskOptions::default()
    };
    let tier = Arc::new(DiskTier::open(&folder, options).unwrap());
    let ledger = Ledger::unlimited();
    let tiers: Vec<Arc<dyn Tier>> = vec![Arc::clone(&tier) as Arc<dyn Tier>];
    let store = Arc::new(Store::new(ledger.clone(), tiers));
    let file = ModelFile::new(WeightFile::open(model).unwrap()).unwrap();
    let model = file.load(exec, form, &ledger, &mut |_, _| {}).unwrap();
    let origin = Arc::new(Origin {
        seed: BlockHash::seed(&[]),
        model: String::new(),
        identity: String::new(),
    });
    let origins = [Arc::clone(&origin), origin];
    let mut context = model.new_context_in(200, &store, &origins).unwrap();
    let tokens: Vec<u32> = (0..TOKENS).map(|i| (i * 37 + i / 11) % 320).collect();
    let mut workspace = Workspace::new();
    // Up to an edge, so that states are kept there.
    for tokens in [&tokens[..128], &tokens[128..]] {
        let segment = Segment {
            context: &mut context,
            tokens,
            wanted: Wanted::All,
        };
        model.forward(exec, [segment], &mut workspace).unwrap();
        context.checkpoint();
        for logit in workspace.logits() {
            to.update(&logit.to_bits().to_le_bytes());
        }
    }
    let mut infos = Vec::new();
    tier.for_each(&mut |info| infos.push(info.clone()));
    infos.sort_by_key(|info| (info.key.group, info.index));
    assert!(infos.len() >= 2, "full blocks are sealed");
    for info in infos {
        let mut slice = vec![0; info.shape.layer_bytes];
        for layer in 0..info.shape.layers {
            tier.read(&[info.key], layer, &mut slice).unwrap();
            to.update(&slice);
        }
    }
}

#[test]
fn other_bits_have_another_name() {
    let folder = tempfile::tempdir().unwrap();
    let made = [
        (0, Recipe::Q8_0),
        (1, Recipe::Q8_0),
        (2, Recipe::Q4_K_M),
        // Rows of parts of a block of 256.
        (0, Recipe::Q4_0),
    ];
    let files = made.map(|(model, recipe)| {
        let file = folder.path().join(format!("{model}-{recipe}.gguf"));
        let config = Config::new("tiny", models()[model].clone());
        make_from(&config, recipe, 1, &file, &Pool::new(1), &mut |_| {
            ControlFlow::Continue(())
        })
        .unwrap();
        file
    });
    let plain = [KvType::F16, KvType::Q8, KvType::Q4].map(KvForm::from);
    let whole = [KvType::ALL[5], KvType::WHOLE[0], KvType::WHOLE[3]].map(KvForm::from);
    let mut found = Vec::new();
    for isa in Isa::available() {
        let mut hash = blake3::Hasher::new();
        let exec = Exec::new(1, isa, Numerics::Default);
        for form in plain.into_iter().chain(whole) {
            add(&files[0], &exec, form, &mut hash);
        }
        for file in &files[1..] {
            add(file, &exec, KvType::F16.into(), &mut hash);
        }
        let exec = Exec::new(1, isa, Numerics::F32);
        add(&files[0], &exec, KvType::F32.into(), &mut hash);
        let hash = hash.finalize().to_hex();
        found.push((isa.to_string(), hash[..16].to_owned()));
    }
    let (bits, known) = KNOWN;
    for (isa, hash) in &found {
        let Some((_, known)) = known.iter().find(|(name, _)| name == isa) else {
            continue;
        };
        assert!(
            hash == known && bits == BITS,
            "the same tokens give other bits than those that {:?} stands for: raise BITS in store.rs, so \
             that kept contexts of before are no longer taken over, and write down what is found now: \
             {found:?}",
            String::from_utf8_lossy(bits)
        );
    }
}
