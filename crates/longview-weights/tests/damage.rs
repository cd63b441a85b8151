//! Random damage: whatever opens offers only what is inside the file, and nothing panics.

mod common;

use common::{folder, open_bytes, safetensors, small_gguf, touch};
use longview_weights::WeightFile;
use proptest::prelude::*;

/// Flips bits, overwrites eight bytes with an extreme number and cuts the end off.
#[derive(Clone, Debug)]
struct Damage {
    flips: Vec<(prop::sample::Index, u8)>,
    number: Option<(prop::sample::Index, u64)>,
    cut: Option<prop::sample::Index>,
}

fn damage() -> impl Strategy<Value = Damage> {
    let extreme = prop_oneof![
        Just(u64::MAX),
        Just(i64::MAX as u64),
        Just(u64::from(u32::MAX)),
        (0u32..64).prop_map(|bit| 1 << bit),
        any::<u64>(),
        0u64..64,
    ];
    (
        prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 0..4),
        prop::option::of((any::<prop::sample::Index>(), extreme)),
        prop::option::weighted(0.2, any::<prop::sample::Index>()),
    )
        .prop_map(|(flips, number, cut)| Damage { flips, number, cut })
}

impl Damage {
    fn apply(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        for (at, bit) in &self.flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        if let Some((at, number)) = self.number {
            let at = at.index(bytes.len() - 8);
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        if let Some(cut) = self.cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_gguf_never_panics(damage in damage()) {
        if let Ok(model) = open_bytes("a.gguf", &damage.apply(small_gguf())) {
            touch(&model);
        }
    }

    #[test]
    fn a_damaged_safetensors_file_never_panics(damage in damage()) {
        let bytes = safetensors(&[("a", "F16", &[2, 3], 12), ("b", "BF16", &[4], 8)]);
        let folder = folder(&[("model.safetensors", &damage.apply(bytes))]);
        if let Ok(model) = WeightFile::open(folder.path()) {
            touch(&model);
        }
    }

    #[test]
    fn a_damaged_index_never_panics(damage in damage()) {
        let index = br#"{"metadata": {"total_size": 12}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#;
        let a = safetensors(&[("a", "F32", &[1], 4)]);
        let b = safetensors(&[("b", "F32", &[2], 8)]);
        let folder = folder(&[
            ("model.safetensors.index.json", &damage.apply(index.to_vec())),
            ("1.safetensors", &a),
            ("2.safetensors", &b),
        ]);
        if let Ok(model) = WeightFile::open(folder.path()) {
            touch(&model);
        }
    }
}
