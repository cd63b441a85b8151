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

#[test]
fn special_tokens_are_parsed_or_kept_as_text() {
    let spm = open("llama-spm");
    let parsed = spm.encode("<s>a</s>", Specials::Parse).unwrap();
    assert_eq!((parsed.first(), parsed.last()), (Some(&1), Some(&2)));
    let text = spm.encode("<s>a<0x41></s>", Specials::AsText).unwrap();
    assert!(text.iter().all(|&id| !spm.is_special(id)), "{text:?}");
    assert_eq!(spm.decode(&text).unwrap(), "<s>a<0x41></s>");
    assert_eq!((spm.prefix_ids(), spm.eos_ids()), (&[1][..], &[2][..]));

    let llama = open("llama-bpe");
    let ids = llama.encode("<|eot_id|>", Specials::Parse).unwrap();
    assert_eq!(ids, [128_009]);
    assert!(llama.encode("<|eot_id|>", Specials::AsText).unwrap().len() > 1);
    assert!(llama.eos_ids().contains(&128_009) && llama.eos_ids().contains(&128_001));
    assert_eq!(llama.prefix_ids(), [128_000]);

    // Phi-3 swallows white space after a special token.
    let phi = open("phi-3");
    let spaced = phi.encode("<|user|>\n Hi", Specials::Parse).unwrap();
    assert_eq!(spaced, phi.encode("<|user|>Hi", Specials::Parse).unwrap());
    // Its file marks the end of sequence as ordinary added text, which it is not.
    let text = phi.encode("a</s>", Specials::AsText).unwrap();
    assert!(!text.contains(&2), "{text:?}");
    assert_eq!(phi.eos_ids(), [2, 32_000, 32_007]);
}

#[test]
fn parts_are_tokenised_apart_with_one_prefix_space() {
    let spm = open("llama-spm");
    let parts = [("Hello", Specials::Parse), ("world", Specials::AsText)];
    let ids = spm.encode_parts(&parts).unwrap().concat();
    let bytes: Vec<u8> = ids
        .iter()
        .flat_map(|&id| spm.token_bytes(id).unwrap())
        .collect();
    assert_eq!(bytes, b" Helloworld");
}

/// A text of `bytes` bytes made by repeating `unit`.
fn long(unit: &str, bytes: usize) -> String {
    unit.repeat(bytes / unit.len())
}

#[test]
fn long_texts_take_time_in_proportion_and_lose_nothing() {
    let units = [
        "the quick brown fox, 12 lamps.\n\n",
        " ",
        "a",
        "\n",
        "é",
        "!",
    ];
    for name in ["gpt-2", "llama-spm"] {
        let tokenizer = open(name);
        for unit in units {
            let text = long(unit, 1 << 18);
            let start = std::time::Instant::now();
            let ids = tokenizer.encode(&text, Specials::AsText).unwrap();
            let seconds = start.elapsed().as_secs_f32();
            assert!(seconds < 30.0, "{name}: {unit:?} took {seconds} s");
            assert_eq!(tokenizer.decode(&ids).unwrap(), text, "{name}: {unit:?}");
        }
    }
}
