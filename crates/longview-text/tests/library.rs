//! Byte-level BPE gives the ids that the `tokenizers` crate gives for the same `tokenizer.json`.

mod shared;

use longview_text::{Specials, Tokenizer};
use longview_weights::gguf::PRESPLITS;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use shared::{byte_level, tokenizer_json};

/// How the models split words: their own patterns, GPT-2's, digits before them, a space before a text,
/// and normalised first.
fn files() -> Vec<(&'static str, String)> {
    let own = |name: &str| {
        let family = PRESPLITS.iter().find(|family| family.names.contains(&name));
        let split = |pattern: &&str| {
            json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
                "invert": false})
        };
        let mut steps: Vec<Value> = family.unwrap().patterns.iter().map(split).collect();
        steps.push(byte_level(false, false));
        json!({"type": "Sequence", "pretokenizers": steps})
    };
    let digits = |individual| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": individual}, byte_level(false, true)]})
    };
    let nfc = json!({"type": "NFC"});
    let plain = Value::Null;
    vec![
        (
            "llama-bpe",
            tokenizer_json("llama-bpe", &plain, &own("llama-bpe")),
        ),
        ("qwen2", tokenizer_json("qwen2", &nfc, &own("qwen2"))),
        (
            "gpt-2",
            tokenizer_json("gpt-2", &plain, &byte_level(false, true)),
        ),
        ("digits", tokenizer_json("gpt-2", &plain, &digits(true))),
        ("numbers", tokenizer_json("gpt-2", &plain, &digits(false))),
        (
            "prefixed",
            tokenizer_json("gpt-2", &plain, &byte_level(true, true)),
        ),
        (
            "whole",
            tokenizer_json("gpt-2", &plain, &byte_level(false, false)),
        ),
    ]
}

/// Texts of letters, digits, marks, blanks and other scripts, short and long.
fn texts() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        "[a-zA-Z']{1,12}",
        "[0-9]{1,8}",
        "[ \t\r\n]{1,6}",
        "[!-/:-@]{1,5}",
        "(the|The| the|'ll|'S|e\u{301}|\u{e9}|ß|ﬁ|½|Ⅳ|你好|漢字|한국어|Привет|😀|\u{200d}|\u{a0}|\u{3000})",
        "\\PC{1,6}",
        "(ab){1,40}",
    ];
    prop::collection::vec(part, 0..40).prop_map(|parts| parts.concat())
}

/// The same vocabulary with tokens that are matched before splitting: special ones and others, one inside of
/// another, one that is normalised, and one that is listed twice.
fn with_added(file: &str) -> String {
    let mut file: Value = serde_json::from_str(file).unwrap();
    let token = |content: &str, special: bool, normalized: bool| {
        json!({"id": 0, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": normalized, "special": special})
    };
    file["added_tokens"] = json!([
        token("<|a|>", true, false),
        token("|a|", false, false),
        token("[X]", true, false),
        token("[", false, false),
        token("the", false, true),
        token("he", false, false),
        token("\n\n", false, false),
        token("<x>", true, false),
        token("<x>", false, false),
    ]);
    file.to_string()
}

fn check(name: &str, file: &str, texts: impl Strategy<Value = String>) {
    let ours = Tokenizer::from_huggingface(file.as_bytes(), None, None).unwrap();
    let parse = tokenizers::Tokenizer::from_bytes(file.as_bytes()).unwrap();
    let mut as_text = parse.clone();
    as_text.set_encode_special_tokens(true);
    TestRunner::new(Config::with_cases(300))
        .run(&texts, |text| {
            for (specials, theirs) in [(Specials::Parse, &parse), (Specials::AsText, &as_text)] {
                let got = ours.encode(&text, specials).unwrap();
                let expected = theirs.encode_fast(text.as_str(), false).unwrap();
                prop_assert_eq!(
                    got,
                    expected.get_ids(),
                    "{} {:?}: {:?}",
                    name,
                    specials,
                    text
                );
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn ids_are_those_of_the_tokenizers_crate() {
    for (name, file) in files() {
        check(name, &file, texts());
    }
}

#[test]
fn added_tokens_are_found_as_the_tokenizers_crate_finds_them() {
    let marks = prop::sample::select(vec![
        "<|a|>", "|a|", "[X]", "[", "<x>", "the", "he", " ", "\n\n", "\n", "<", "t", "é",
    ]);
    let texts = prop::collection::vec(marks, 0..20).prop_map(|parts| parts.concat());
    for (name, file) in files() {
        if ["gpt-2", "qwen2", "prefixed"].contains(&name) {
            check(name, &with_added(&file), texts.clone());
        }
    }
}
