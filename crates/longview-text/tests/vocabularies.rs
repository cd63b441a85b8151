//! Real vocabularies, and the ids that llama.cpp gives for their test lines.
//!
//! The files in `fixtures/vocab` are llama.cpp's (MIT, licence beside them): a GGUF without
//! tensors, texts separated by a marker line, and one line of ids for each text.

use std::path::{Path, PathBuf};

use longview_text::{Specials, Tokenizer, Vocabulary};
use longview_weights::GgufFile;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/vocab")
        .join(name)
}

fn open(name: &str) -> Tokenizer {
    let file = GgufFile::open(fixture(&format!("ggml-vocab-{name}.gguf"))).unwrap();
    Tokenizer::from_vocabulary(Vocabulary::from_gguf(&file).unwrap()).unwrap()
}

fn check_every_line(name: &str) {
    let tokenizer = open(name);
    let texts = std::fs::read_to_string(fixture(&format!("ggml-vocab-{name}.gguf.inp"))).unwrap();
    let ids = std::fs::read_to_string(fixture(&format!("ggml-vocab-{name}.gguf.out"))).unwrap();
    let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
    let lines: Vec<&str> = ids.lines().collect();
    assert_eq!(
        texts.len() - 1,
        lines.len(),
        "{name}: one line of ids a text"
    );
    assert!(lines.len() > 40, "{name}: only {} lines", lines.len());
    for (text, line) in texts.iter().zip(&lines) {
        let expected: Vec<u32> = line
            .split_whitespace()
            .map(|id| id.parse().unwrap())
            .collect();
        let got = tokenizer.encode(text, Specials::AsText).unwrap();
        assert_eq!(got, expected, "{name}: {text:?}");
        assert_eq!(
            tokenizer.encode(text, Specials::Parse).unwrap(),
            expected,
            "{name}: {text:?}"
        );
        assert_eq!(tokenizer.decode(&got).unwrap(), *text, "{name}");
    }
}

#[test]
fn gpt_2() {
    check_every_line("gpt-2");
}

#[test]
fn llama_bpe() {
    check_every_line("llama-bpe");
}

#[test]
fn llama_spm() {
    check_every_line("llama-spm");
}

#[test]
fn phi_3() {
    check_every_line("phi-3");
}

#[test]
fn qwen2() {
    check_every_line("qwen2");
}
