//! Tokenizers from `tokenizer.json` and from the GGUF file made of it give the same ids.

use std::path::Path;

use longview_models::Recipe;
use longview_text::{Specials, Tokenizer, Vocabulary};
use longview_weights::{GgufFile, HuggingFaceFolder};
use tempfile::TempDir;

use crate::fixtures::{convert, llama_folder};

const TEXTS: [&str; 9] = [
    "",
    "Hello world, it's the 1234th time we've met.",
    "  two  spaces and   three\n\nlines\t\ttabs ",
    "naïve café 漢字かな 🙂👩‍👩‍👧 Ελληνικά",
    "<s>a</s> b<|im_end|>c <|pad|>",
    "DON'T SHOUT; it'll do: x_1 += 3.14159e-10;",
    "the the the theory of the thing",
    "a\u{a0}b\u{3000}c\u{200b}d",
    "ﬁn ½ ① \u{1}\u{7f}\u{85}",
];

/// Converts a model with the tokenizer in `tests/data/tokenizers/NAME` and compares.
fn agree(name: &str) -> (Tokenizer, Tokenizer, GgufFile) {
    let data = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/tokenizers")
        .join(name);
    let folder = llama_folder(720, |_, _, _| {});
    for file in std::fs::read_dir(&data).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let source = HuggingFaceFolder::open(folder.path()).unwrap();
    let original = Tokenizer::from_huggingface(
        &source.tokenizer_json().unwrap(),
        source.tokenizer_config(),
        source.generation_config(),
    )
    .unwrap();

    let temporary = TempDir::new().unwrap();
    let (path, _) = convert(folder.path(), Recipe::F16, &temporary).unwrap();
    let file = GgufFile::open(&path).unwrap();
    let converted = Tokenizer::from_vocabulary(Vocabulary::from_gguf(&file).unwrap()).unwrap();
    for text in TEXTS {
        for specials in [Specials::Parse, Specials::AsText] {
            let ids = converted.encode(text, specials).unwrap();
            assert_eq!(
                ids,
                original.encode(text, specials).unwrap(),
                "{name}: {text:?}"
            );
            assert_eq!(
                converted.decode(&ids).unwrap(),
                original.decode(&ids).unwrap(),
                "{name}: {text:?}"
            );
        }
    }
    assert_eq!(converted.bos(), original.bos(), "{name}");
    assert_eq!(converted.eos(), original.eos(), "{name}");
    assert_eq!(converted.prefix_ids(), original.prefix_ids(), "{name}");
    assert_eq!(converted.suffix_ids(), original.suffix_ids(), "{name}");
    assert_eq!(converted.eos_ids(), original.eos_ids(), "{name}");
    assert_eq!(
        converted.chat_template(),
        original.chat_template(),
        "{name}"
    );
    assert_eq!(
        converted.vocab_size(),
        720,
        "every row of the embedding has its token"
    );
    (original, converted, file)
}

#[test]
fn byte_level_bpe_is_carried_over() {
    let (_, _, file) = agree("byte_level");
    assert_eq!(file.str("tokenizer.ggml.model").unwrap(), "gpt2");
    assert_eq!(file.str("tokenizer.ggml.pre").unwrap(), "llama-bpe");
    let kinds = file.i32s("tokenizer.ggml.token_type").unwrap();
    assert_eq!(kinds[719], 5, "rows beyond the vocabulary are unused");
}

#[test]
fn byte_fallback_bpe_becomes_sentencepiece_again() {
    let (_, _, file) = agree("byte_fallback");
    assert_eq!(file.str("tokenizer.ggml.model").unwrap(), "llama");
    assert!(file.bool("tokenizer.ggml.add_space_prefix").unwrap());
    let kinds = file.i32s("tokenizer.ggml.token_type").unwrap();
    assert_eq!(
        kinds[..4],
        [2, 3, 3, 6],
        "unknown, begin, end, the first byte"
    );
}
