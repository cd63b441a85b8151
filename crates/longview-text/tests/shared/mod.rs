//! Vocabularies of `fixtures/vocab`, as the files they are and as the `tokenizer.json` they came from.

use std::path::Path;

use longview_text::Vocabulary;
use longview_weights::GgufFile;
use serde_json::{Map, Value, json};

/// The vocabulary of a GGUF file.
pub(crate) fn vocabulary(name: &str) -> Vocabulary {
    let file = format!("tests/fixtures/vocab/ggml-vocab-{name}.gguf");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    Vocabulary::from_gguf(&GgufFile::open(file).unwrap()).unwrap()
}

/// A byte-level vocabulary as a `tokenizer.json`, with these steps before merging.
pub(crate) fn tokenizer_json(name: &str, normalizer: &Value, pre_tokenizer: &Value) -> String {
    let vocabulary = vocabulary(name);
    let ids = vocabulary.tokens.iter().zip(0..);
    let ids = ids.map(|(token, id)| (token.clone(), Value::from(id)));
    json!({
        "version": "1.0",
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
            "use_regex": true},
        "model": {
            "type": "BPE",
            "ignore_merges": name == "llama-bpe",
            "vocab": ids.collect::<Map<_, _>>(),
            "merges": vocabulary.merges,
        },
    })
    .to_string()
}

/// The step that spells words in the byte alphabet.
pub(crate) fn byte_level(add_prefix_space: bool, use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true,
        "use_regex": use_regex})
}
