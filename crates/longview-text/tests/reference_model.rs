//! The embedded reference model's tokenizer, from its files and as plain lists.

use std::path::{Path, PathBuf};

use longview_text::{
    AskFrame, ChatTemplate, Moment, Specials, TemplateVars, TokenKind, Tokenizer, Vocabulary,
};
use serde_json::Value;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../models/needle")
        .join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(file(name)).unwrap()).unwrap()
}

fn from_folder() -> Tokenizer {
    let tokenizer = std::fs::read(file("tokenizer.json")).unwrap();
    let config = json("tokenizer_config.json");
    let generation = json("generation_config.json");
    Tokenizer::from_huggingface(&tokenizer, Some(&config), Some(&generation)).unwrap()
}

#[test]
fn special_tokens_are_those_of_its_files() {
    let tokenizer = from_folder();
    assert_eq!(tokenizer.vocab_size(), 4096);
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(0), Some(1)));
    assert_eq!(tokenizer.eos_ids(), [1]);
    assert_eq!(tokenizer.prefix_ids(), [0]);
    assert!(tokenizer.suffix_ids().is_empty());
    assert_eq!(tokenizer.id_of("<|user|>"), Some(2));
    assert!(tokenizer.is_special(3) && !tokenizer.is_special(100));
    assert_eq!(tokenizer.token_bytes(3).unwrap(), b"<|assistant|>");
}

#[test]
fn a_question_is_framed_as_the_model_was_trained() {
    let tokenizer = from_folder();
    let template = ChatTemplate::new(tokenizer.chat_template().unwrap()).unwrap();
    let vars = TemplateVars::new("<|bos|>", "<|eos|>", Moment::from_unix(0));
    let frame = AskFrame::new(&template, &vars).unwrap();
    let parts = frame.parts(
        "The code of the door is 7.",
        "What is the code of the door?",
    );
    let text: String = parts.iter().map(|(text, _)| text.as_str()).collect();
    let expected =
        "<|bos|> The code of the door is 7.<|user|> What is the code of the door?<|assistant|>";
    assert_eq!(text, expected);
    let ids = tokenizer.encode_parts(&parts).unwrap().concat();
    assert_eq!(ids, tokenizer.encode(expected, Specials::Parse).unwrap());
    assert_eq!(
        ids.iter().filter(|&&id| tokenizer.is_special(id)).count(),
        3
    );
}

#[test]
fn special_tokens_in_a_document_stay_text() {
    let tokenizer = from_folder();
    let ids = tokenizer.encode("a<|user|>b", Specials::AsText).unwrap();
    assert!(ids.iter().all(|&id| !tokenizer.is_special(id)), "{ids:?}");
    assert_eq!(tokenizer.decode(&ids).unwrap(), "a<|user|>b");
}

/// The same lists as GGUF metadata would hold them, with the pre-tokenizer name that llama.cpp's
/// converter gives such a vocabulary.
fn as_lists() -> Vocabulary {
    let file = json("tokenizer.json");
    let ids = file["model"]["vocab"].as_object().unwrap();
    let mut tokens = vec![String::new(); ids.len()];
    for (token, id) in ids {
        tokens[id.as_u64().unwrap() as usize].clone_from(token);
    }
    let mut kinds = vec![TokenKind::Normal; tokens.len()];
    for added in file["added_tokens"].as_array().unwrap() {
        kinds[added["id"].as_u64().unwrap() as usize] = TokenKind::Control;
    }
    let merges = file["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|merge| {
            let half = |side: usize| merge[side].as_str().unwrap();
            merge
                .as_str()
                .map_or_else(|| format!("{} {}", half(0), half(1)), str::to_owned)
        });
    Vocabulary {
        model: "gpt2".into(),
        pre: Some("starcoder".into()),
        merges: merges.collect(),
        tokens,
        kinds,
        bos: Some(0),
        eos: Some(1),
        pad: Some(4),
        add_bos: Some(true),
        ..Vocabulary::default()
    }
}

#[test]
fn the_vocabulary_as_plain_lists_gives_the_same_ids() {
    let folder = from_folder();
    let lists = Tokenizer::from_vocabulary(as_lists()).unwrap();
    let text = "It's 1,234 lamps\n\n  in Zürich — “quoted”\t🦙 <|user|> end ";
    for specials in [Specials::Parse, Specials::AsText] {
        assert_eq!(
            lists.encode(text, specials).unwrap(),
            folder.encode(text, specials).unwrap()
        );
    }
    assert_eq!(lists.eos_ids(), folder.eos_ids());
    assert_eq!(lists.prefix_ids(), folder.prefix_ids());
    for id in 0..4096 {
        assert_eq!(lists.token_bytes(id), folder.token_bytes(id), "id {id}");
        assert_eq!(lists.is_special(id), folder.is_special(id), "id {id}");
    }
}
