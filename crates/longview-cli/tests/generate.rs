//! `longview run` and `longview chat`: samplers, stops and conversations.

mod common;

use common::{Folder, longview, longview_reading};
use serde_json::Value;

const PROMPT: &str = "It was the best of times, it was the worst of times, it was the";

fn run(more: &[&str]) -> Value {
    let base = ["run", "--json", "--prompt", PROMPT];
    let length: &[&str] = if more.contains(&"-n") {
        &[]
    } else {
        &["-n", "24"]
    };
    longview(&[&base[..], length, more].concat()).done().json()
}

#[test]
fn a_continuation_has_every_field_of_the_contract() {
    let json = run(&[]);
    for key in [
        "answer",
        "prompt_tokens",
        "reused_tokens",
        "computed_tokens",
        "generated_tokens",
        "generated_ids",
        "seconds_to_first_token",
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
        "peak_memory_bytes",
        "kv_bytes",
        "methods",
        "notices",
    ] {
        assert!(!json[key].is_null(), "{key} in {json}");
    }
    // The reference model's own recommendation.
    assert_eq!(json["methods"]["decode"], "greedy");
    let text = longview(&["run", "--prompt", PROMPT, "-n", "24"])
        .done()
        .stdout;
    assert_eq!(text, format!("{}\n", json["answer"].as_str().unwrap()));
    // `longview run` puts the begin token before the text.
    let ids = longview(&["tokenize", PROMPT, "--json"]).done().json();
    let length = ids["ids"].as_array().unwrap().len() as u64;
    assert_eq!(json["prompt_tokens"].as_u64().unwrap(), length + 1);
}

#[test]
fn a_seed_gives_the_same_text_again_and_is_reported() {
    let hot = ["--temperature", "1.2", "--seed", "7"];
    let (first, second) = (run(&hot), run(&hot));
    assert_eq!(first["generated_ids"], second["generated_ids"]);
    assert_eq!(
        first["methods"]["decode"],
        "temperature(t=1.2), draw(seed=7)"
    );
    let other = run(&["--temperature", "1.2", "--seed", "8"]);
    assert_ne!(first["generated_ids"], other["generated_ids"]);
    // A seed nobody gave can be given back.
    let fresh = run(&["--temperature", "1.2"]);
    let decode = fresh["methods"]["decode"].as_str().unwrap();
    assert_eq!(
        run(&["--decode", decode])["generated_ids"],
        fresh["generated_ids"]
    );
}

#[test]
fn every_sampling_flag_reaches_the_chain() {
    let json = run(&[
        "--temperature",
        "0.8",
        "--top-k",
        "40",
        "--top-p",
        "0.9",
        "--min-p",
        "0.01",
        "--typical",
        "0.95",
        "--repeat-penalty",
        "1.1",
        "--repeat-last",
        "32",
        "--presence-penalty",
        "0.2",
        "--frequency-penalty",
        "0.1",
        "--logit-bias",
        "5=-2",
        "--seed",
        "3",
    ]);
    assert_eq!(
        json["methods"]["decode"],
        "logit-bias(5=-2), repetition(penalty=1.1, last=32), presence(penalty=0.2, last=32), \
         frequency(penalty=0.1, last=32), temperature(t=0.8), top-k(k=40), top-p(p=0.9), \
         min-p(p=0.01), typical(p=0.95), draw(seed=3)"
    );
    // The most likely token alone, whatever the dice say.
    let greedy = run(&[]);
    let one = run(&["--temperature", "1", "--top-k", "1", "--seed", "5"]);
    assert_eq!(one["generated_ids"], greedy["generated_ids"]);
    // A forbidden token does not come.
    let first = greedy["generated_ids"][0].as_u64().unwrap();
    let without = run(&["--logit-bias", &format!("{first}=-inf")]);
    let ids = without["generated_ids"].as_array().unwrap();
    assert!(ids.iter().all(|id| id.as_u64() != Some(first)), "{without}");
}

#[test]
fn stop_texts_end_an_answer_before_them() {
    let whole = run(&[]);
    let text = whole["answer"].as_str().unwrap();
    let word = text.split_whitespace().nth(2).unwrap();
    let cut = run(&["--stop", word, "--stop", "never to be found"]);
    assert_eq!(cut["finish"], "stop");
    assert_eq!(
        cut["answer"].as_str().unwrap(),
        &text[..text.find(word).unwrap()]
    );
}

#[test]
fn ignoring_the_end_goes_on_to_the_last_token() {
    let json = run(&["--special-tokens", "--ignore-eos", "--logit-bias", "1=100"]);
    assert_eq!(json["generated_tokens"], 24);
    let ended = run(&["--logit-bias", "1=100"]);
    assert_eq!(ended["generated_ids"].to_string(), "[1]");
    assert_eq!(ended["finish"], "end_of_text");
    assert_eq!(ended["answer"], "");
}

#[test]
fn prompts_come_from_files_and_standard_input() {
    let folder = Folder::new();
    let file = folder.write("prompt.txt", PROMPT);
    let want = run(&[])["generated_ids"].clone();
    let from = |source: &str| {
        let arguments = ["run", "--json", "--prompt-file", source, "-n", "24"];
        longview_reading(&arguments, PROMPT.as_bytes())
            .done()
            .json()["generated_ids"]
            .clone()
    };
    assert_eq!(from(&file), want);
    assert_eq!(from("-"), want);
    let ran = longview(&[
        "run",
        "--prompt",
        "a<|eos|>b",
        "--print-prompt",
        "--special-tokens",
    ]);
    assert_eq!(ran.done().stdout, "<|bos|>a<|eos|>b\n");
}

#[test]
fn a_conversation_remembers_what_was_said() {
    let turns = "The code of the harbor is 4711.\n\nWhat is the code of the harbor?\n";
    let arguments = ["chat", "--json", "-n", "16"];
    let json = longview_reading(&arguments, turns.as_bytes()).done().json();
    let answers = json["answers"].as_array().unwrap();
    assert_eq!(answers.len(), 2);
    assert_eq!(answers[1]["answer"], "The code of the harbor is 4711.");
    // The second turn reads only what is new.
    let number = |key: &str| answers[1][key].as_u64().unwrap();
    assert_eq!(
        number("reused_tokens") + number("computed_tokens"),
        number("prompt_tokens")
    );
    assert!(
        number("reused_tokens") > number("computed_tokens"),
        "{json}"
    );
}

#[test]
fn a_conversation_can_begin_anew() {
    let turns = "The code of the harbor is 4711.\n/reset\nHello\n/exit\nnever read\n";
    let json = longview_reading(&["chat", "--json", "-n", "4"], turns.as_bytes())
        .done()
        .json();
    let answers = json["answers"].as_array().unwrap();
    assert_eq!(answers.len(), 2);
    assert_eq!(answers[1]["reused_tokens"], 0);
}

/// The reference model as one whose layers see only so many tokens back.
fn with_window(folder: &Folder, tokens: usize) -> String {
    let reference = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/needle");
    for entry in std::fs::read_dir(reference).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name.ends_with(".json") || name.ends_with(".safetensors") || name.ends_with(".jinja") {
            folder.write(
                &format!("window/{name}"),
                std::fs::read(entry.path()).unwrap(),
            );
        }
    }
    let path = folder.path("window/config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["model_type"] = "mistral".into();
    config["architectures"] = serde_json::json!(["MistralForCausalLM"]);
    config["sliding_window"] = tokens.into();
    folder.write("window/config.json", config.to_string());
    folder.path("window")
}

#[test]
fn a_conversation_that_cannot_go_back_is_read_again() {
    let folder = Folder::new();
    let model = with_window(&folder, 32);
    let long = common::story(200);
    let chat = |more: &[&str]| {
        let base = [
            "chat",
            "--json",
            "--model",
            &model,
            "-n",
            "200",
            "--ignore-eos",
        ];
        let turns = format!("{long}\nWhat is the code of the silver kettle?\n");
        longview_reading(
            &[&base[..], &["--temperature", "0"], more].concat(),
            turns.as_bytes(),
        )
        .done()
        .json()
    };
    let plain = chat(&[]);
    assert_eq!(
        plain["notices"].to_string().matches("read again").count(),
        0
    );
    assert!(
        plain["answers"][1]["reused_tokens"].as_u64().unwrap() > 200,
        "{plain}"
    );
    // A stop text drops what was generated of it, and window layers have passed what comes before.
    let words = plain["answers"][0]["answer"].as_str().unwrap();
    let length = words.chars().count();
    let stop: String = words
        .chars()
        .skip(length / 5)
        .take(length * 3 / 4)
        .collect();
    let stopped = chat(&["--stop", &stop]);
    assert_eq!(stopped["answers"][0]["finish"], "stop");
    assert_eq!(stopped["answers"].as_array().unwrap().len(), 2);
    let notices = stopped["notices"].to_string();
    assert_eq!(stopped["answers"][1]["reused_tokens"], 0, "{stopped}");
    for words in [
        "ended before a stop text",
        "the conversation is read again from its start",
    ] {
        assert!(notices.contains(words), "{stopped}");
    }
}

#[test]
fn a_plan_bounds_prompt_and_answer_together() {
    let length = run(&[])["prompt_tokens"].as_u64().unwrap();
    let planned = (length + 5).to_string();
    let cut = run(&["--planned-tokens", &planned]);
    assert_eq!(cut["generated_tokens"], 5);
    assert!(
        cut["notices"].to_string().contains("--planned-tokens"),
        "{cut}"
    );
    let planned = (length - 1).to_string();
    let refused = ["run", "--prompt", PROMPT, "--planned-tokens", &planned];
    longview(&refused).refused(2, &["--planned-tokens", &length.to_string()]);
    let refused = ["chat", "--planned-tokens", "12"];
    let turn = format!("{PROMPT}\n");
    longview_reading(&refused, turn.as_bytes()).refused(2, &["--planned-tokens 12"]);
    let turns = "Hello\n";
    let json = longview_reading(
        &["chat", "--json", "--planned-tokens", "12", "--ignore-eos"],
        turns.as_bytes(),
    );
    let json = json.done().json();
    let answer = &json["answers"][0];
    let number = |key: &str| answer[key].as_u64().unwrap();
    assert_eq!(
        number("prompt_tokens") + number("generated_tokens"),
        12,
        "{json}"
    );
}

#[test]
fn a_prompt_that_is_not_generated_from_is_not_counted_as_read() {
    let json = run(&["-n", "0", "--planned-tokens", "100"]);
    assert_eq!(json["computed_tokens"], 0);
    assert!(json["prompt_tokens"].as_u64().unwrap() > 0);
}
