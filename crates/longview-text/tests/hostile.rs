//! Broken and hostile files end in errors that say what is wrong, never in a panic.

use longview_text::{ShowSpecials, Specials, Start, TextError, TokenKind, Tokenizer, Vocabulary};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A small SentencePiece-like `tokenizer.json` as Llama 2 has it.
fn llama_like() -> Value {
    let mut vocab = serde_json::Map::new();
    let words = ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁ab", "!"];
    for (id, word) in words.iter().enumerate() {
        vocab.insert((*word).into(), id.into());
    }
    for byte in 0..256 {
        vocab.insert(format!("<0x{byte:02X}>"), (words.len() + byte).into());
    }
    let added = |id: u32, content: &str| json!({"id": id, "content": content, "special": true});
    json!({
        "version": "1.0",
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "vocab": vocab, "merges": ["a b", "▁ ab"]}
    })
}

fn load(file: &Value) -> Result<Tokenizer, TextError> {
    Tokenizer::from_huggingface(&serde_json::to_vec(file).unwrap(), None, None)
}

#[test]
fn the_unbroken_file_works() {
    fn shareable<T: Send + Sync>(_: &T) {}
    shareable(&load(&llama_like()).unwrap());
    let tokenizer = load(&llama_like()).unwrap();
    assert_eq!(
        tokenizer.encode("ab ab!", Specials::AsText).unwrap(),
        [7, 7, 8]
    );
    assert_eq!(
        tokenizer.encode("é", Specials::AsText).unwrap(),
        [3, 9 + 0xC3, 9 + 0xA9]
    );
    assert_eq!(
        tokenizer.decode(&[1, 7, 7, 9 + 0xC3, 9 + 0xA9]).unwrap(),
        "ab abé"
    );
    assert_eq!(tokenizer.prefix_ids(), [1]);
    assert_eq!(tokenizer.eos_ids(), [2]);
    // The second of two parts continues the first: no space is put before it.
    let parts = [("ab", Specials::AsText), ("ab", Specials::AsText)];
    assert_eq!(tokenizer.encode_parts(&parts).unwrap(), [vec![7], vec![6]]);
    let mut stream = tokenizer.stream(Start::Continuation, ShowSpecials::Hide);
    assert_eq!(stream.push(7).unwrap(), " ab");
}

#[test]
fn configuration_names_special_tokens_and_endings() {
    let file = serde_json::to_vec(&llama_like()).unwrap();
    let config = json!({
        "bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": false,
        "added_tokens_decoder": {"265": {"content": "<|im_end|>", "special": true}},
        "chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}],
    });
    let generation = json!({"eos_token_id": [2, 4, 99_999_999], "bos_token_id": 1});
    let tokenizer = Tokenizer::from_huggingface(&file, Some(&config), Some(&generation)).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
    assert_eq!(tokenizer.eos_ids(), [2, 4, 265]);
    assert!(tokenizer.prefix_ids().is_empty());
    assert_eq!(tokenizer.chat_template(), Some("D"));
    assert_eq!(
        tokenizer.encode("<|im_end|>", Specials::Parse).unwrap(),
        [265]
    );
}

#[test]
fn broken_files_are_refused_with_the_reason() {
    /// What is broken, how, and what the error must name.
    type Case = (&'static str, fn(&mut Value), &'static str);
    let cases: Vec<Case> = vec![
        (
            "no model",
            |f| {
                f.as_object_mut().unwrap().shift_remove("model");
            },
            "model",
        ),
        (
            "no tokens",
            |f| {
                let file = f.as_object_mut().unwrap();
                file.shift_remove("added_tokens");
                file.shift_remove("post_processor");
                f["model"] = json!({"type": "BPE", "vocab": {}, "merges": []});
            },
            "it has no tokens",
        ),
        (
            "unigram",
            |f| f["model"]["type"] = "Unigram".into(),
            "Unigram",
        ),
        (
            "no merges",
            |f| {
                f["model"].as_object_mut().unwrap().shift_remove("merges");
            },
            "merges",
        ),
        (
            "merge of a missing token",
            |f| f["model"]["merges"] = json!(["a q"]),
            "\"q\"",
        ),
        (
            "merge into a missing token",
            |f| f["model"]["merges"] = json!([["ab", "▁ab"]]),
            "ab▁ab",
        ),
        (
            "merge of three",
            |f| f["model"]["merges"] = json!(["a b ab"]),
            "not a pair",
        ),
        (
            "vocab as list",
            |f| f["model"]["vocab"] = json!(["a"]),
            "JSON",
        ),
        (
            "negative id",
            |f| f["model"]["vocab"]["a"] = json!(-1),
            "JSON",
        ),
        (
            "far id",
            |f| f["model"]["vocab"]["a"] = json!(4_000_000_000_u32),
            "ids reach",
        ),
        (
            "missing unk",
            |f| f["model"]["unk_token"] = "<oov>".into(),
            "<oov>",
        ),
        (
            "prefix",
            |f| f["model"]["continuing_subword_prefix"] = "##".into(),
            "affixes",
        ),
        (
            "unknown normalizer",
            |f| f["normalizer"] = json!({"type": "Precompiled"}),
            "Precompiled",
        ),
        (
            "inner normalizer",
            |f| f["normalizer"]["normalizers"][0]["type"] = "Magic".into(),
            "Magic",
        ),
        (
            "broken regex",
            |f| {
                f["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "("},
            "behavior": "Isolated", "invert": false})
            },
            "JSON",
        ),
        (
            "unknown pre-tokenizer",
            |f| f["pre_tokenizer"] = json!({"type": "FixedLength", "length": 0}),
            "FixedLength",
        ),
        (
            "empty pattern",
            |f| f["normalizer"]["normalizers"][1]["pattern"]["String"] = "".into(),
            "empty",
        ),
        ("no decoder", |f| f["decoder"] = Value::Null, "decoder"),
        (
            "unknown decoder",
            |f| f["decoder"] = json!({"type": "CTC"}),
            "CTC",
        ),
        (
            "decoder by regex",
            |f| f["decoder"]["decoders"][0]["pattern"] = json!({"Regex": "a"}),
            "Replace",
        ),
    ];
    for (name, break_it, reason) in cases {
        let mut file = llama_like();
        break_it(&mut file);
        let error = load(&file).map(|_| ()).expect_err(name).to_string();
        assert!(error.contains(reason), "{name}: {error}");
    }
    for bytes in [
        &b""[..],
        b"{",
        b"[]",
        b"\xff\xfe",
        b"null",
        b"{\"model\": {\"type\": 3}}",
    ] {
        assert!(
            Tokenizer::from_huggingface(bytes, None, None).is_err(),
            "{bytes:?}"
        );
    }
    let deep = "[".repeat(100_000);
    assert!(Tokenizer::from_huggingface(deep.as_bytes(), None, None).is_err());
}

#[test]
fn a_truncated_file_never_panics() {
    let file = serde_json::to_vec(&llama_like()).unwrap();
    for end in (0..file.len()).step_by(7) {
        assert!(Tokenizer::from_huggingface(&file[..end], None, None).is_err());
    }
}

#[test]
fn a_changed_file_is_refused_or_works() {
    let file = serde_json::to_string(&llama_like()).unwrap();
    let changes = [
        ("\"a\"", "\"\""),
        ("true", "false"),
        ("null", "7"),
        ("BPE", "WordLevel"),
        ("\"▁\"", "\"\""),
        ("Sequence", "Fuse"),
        ("ab", "é"),
        (":0", ":1"),
        ("[", "{"),
        ("1.0", "9"),
    ];
    for (from, to) in changes {
        if let Ok(tokenizer) =
            Tokenizer::from_huggingface(file.replace(from, to).as_bytes(), None, None)
        {
            let ids = tokenizer
                .encode("ab <s> é\n", Specials::Parse)
                .unwrap_or_default();
            tokenizer.decode(&ids).unwrap();
        }
    }
}

proptest! {
    /// Pieces of the file moved over other pieces of it: often still JSON, seldom still sensible.
    #[test]
    fn a_scrambled_file_is_refused_or_works(
        moves in prop::collection::vec((0usize..3_000, 0usize..3_000, 1usize..12), 1..4),
        text in "[ab é!<s>]{0,12}",
    ) {
        let mut file = serde_json::to_vec(&llama_like()).unwrap();
        // The interesting parts are at both ends; the byte tokens fill the middle.
        let place = |at: usize, len: usize| if at < 1_500 { at } else { len - 1 - (at - 1_500) };
        for (from, to, len) in moves {
            let (from, to) = (place(from, file.len()), place(to, file.len()));
            let piece = file[from..(from + len).min(file.len())].to_vec();
            let end = (to + piece.len()).min(file.len());
            file.splice(to..end, piece);
        }
        if let Ok(tokenizer) = Tokenizer::from_huggingface(&file, None, None) {
            for specials in [Specials::Parse, Specials::AsText] {
                if let Ok(ids) = tokenizer.encode(&text, specials) {
                    tokenizer.decode(&ids).unwrap();
                }
            }
        }
    }
}

#[test]
fn byte_level_lists_without_a_byte_refuse_what_they_cannot_write() {
    let vocabulary = Vocabulary {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        tokens: ["a", "b", "ab"].map(String::from).to_vec(),
        merges: vec!["a b".into()],
        ..Vocabulary::default()
    };
    let tokenizer = Tokenizer::from_vocabulary(vocabulary).unwrap();
    assert_eq!(tokenizer.encode("aba", Specials::AsText).unwrap(), [2, 0]);
    // Merging passes over what is no token, and the text would lose it in silence.
    for text in ["abc", "c", "a b", "é"] {
        let error = tokenizer.encode(text, Specials::AsText).unwrap_err();
        assert!(matches!(error, TextError::Encode(_)), "{text:?}: {error}");
    }
}

#[test]
fn sentencepiece_lists_that_disagree_are_refused() {
    let good = || Vocabulary {
        model: "llama".into(),
        tokens: vec!["<unk>".into(), "a".into(), "<0x41>".into()],
        scores: vec![0.0, -1.0, 0.0],
        kinds: vec![TokenKind::Unknown, TokenKind::Normal, TokenKind::Byte],
        unk: Some(0),
        add_space_prefix: Some(false),
        ..Vocabulary::default()
    };
    let tokenizer = Tokenizer::from_vocabulary(good()).unwrap();
    assert_eq!(
        tokenizer.encode("aAé", Specials::AsText).unwrap(),
        [1, 2, 0]
    );
    let broken: [fn(&mut Vocabulary); 4] = [
        |v| v.scores[1] = f32::NAN,
        |v| v.scores.truncate(1),
        |v| v.kinds[1] = TokenKind::Byte,
        |v| v.unk = Some(3),
    ];
    for (index, break_it) in broken.into_iter().enumerate() {
        let mut vocabulary = good();
        break_it(&mut vocabulary);
        assert!(
            Tokenizer::from_vocabulary(vocabulary).is_err(),
            "case {index}"
        );
    }
    let mut silent = good();
    silent.unk = None;
    let tokenizer = Tokenizer::from_vocabulary(silent).unwrap();
    let error = tokenizer.encode("é", Specials::AsText).unwrap_err();
    assert!(matches!(error, TextError::Encode(_)), "{error}");
}

#[test]
fn thousands_of_patterns_and_of_overlapping_tokens_are_no_danger() {
    let split = json!({"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Isolated", "invert": false});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let mut file = llama_like();
    file["normalizer"] = Value::Null;
    let mut steps = vec![split; 3_000];
    steps.push(bytes);
    file["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": steps});
    let tokenizer = load(&file).unwrap();
    assert_eq!(tokenizer.encode("ab", Specials::AsText).unwrap(), [4, 5]);

    // Every place of the text begins thousands of them, of which none is there.
    let mut file = llama_like();
    let added =
        (1..1_000).map(|count| json!({"id": 0, "content": format!("{}b", "a".repeat(count))}));
    file["added_tokens"] = added.collect();
    let tokenizer = load(&file).unwrap();
    let text = "a".repeat(300_000);
    assert_eq!(
        tokenizer.encode(&text, Specials::AsText).unwrap().len(),
        300_001
    );
}
