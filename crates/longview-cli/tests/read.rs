//! `--read` and `--prefill`: every command that writes text takes them, and says what they did.

mod common;

use common::{Folder, STAND_IN, longview, longview_reading, story};

const FALCON: &str = "What is the special magic number for amber falcon?";
const KETTLE: &str = "What is the code of the silver kettle?";

#[test]
fn documents_are_kept_whole_and_answers_read_a_part_of_them() {
    let folder = Folder::new();
    let book = folder.write("book.txt", story(900));
    let store = folder.path("store");
    let ask = |read: &str| {
        let fixed = [
            "ask",
            "--json",
            "--cache-dir",
            &store,
            "--cache-max",
            "1GiB",
        ];
        let rest = ["--read", read, "--file", &book, FALCON, KETTLE];
        longview(&[&fixed[..], &rest[..]].concat()).done().json()
    };
    let read = ask("quest(budget=320, dense=0)");
    let reused = |json: &serde_json::Value| json["answers"][0]["reused_tokens"].as_u64().unwrap();
    assert_eq!(reused(&read), 0, "{read}");
    let answers = ["48213", "5182"];
    for (answer, number) in read["answers"].as_array().unwrap().iter().zip(answers) {
        assert!(answer["answer"].to_string().contains(number), "{read}");
        let count = |key: &str| answer["read"][key].as_u64().unwrap();
        // Five blocks of about 15, of every step but the first, which is the prompt's.
        let steps = answer["generated_tokens"].as_u64().unwrap() - 1;
        assert_eq!(count("pages_read"), steps * 8 * 5, "{read}");
        assert!(
            count("pages_read") * 5 < count("pages_present") * 2,
            "{read}"
        );
        assert!(count("index_bytes") > 0);
    }
    assert_eq!(
        read["methods"]["read"],
        "quest(budget=320, page=16, dense=0)"
    );
    let notices = read["notices"].to_string();
    for words in [
        "read quest is approximate",
        "to choose by",
        "pages for the answer",
    ] {
        assert!(notices.contains(words), "{words}: {notices}");
    }

    // What was read of the documents is exact, and found by any method; a budget for all is one.
    let (dense, all) = (ask("dense"), ask("quest(budget=100%, dense=0)"));
    for json in [&dense, &all] {
        assert!(reused(json) > 850, "{json}");
    }
    let ids = |json: &serde_json::Value| json["generated_ids"].clone();
    assert_eq!(ids(&all), ids(&dense));
    let first = &all["answers"][0]["read"];
    assert_eq!(first["pages_read"], first["pages_present"]);
    assert!(dense.get("read").is_none());
}

#[test]
fn every_command_that_writes_takes_both_stages() {
    let prompt = story(500);
    let (prefill, read) = ("a-shape(sinks=64, local=128)", "quest(budget=192, dense=0)");
    let stages = ["--prefill", prefill, "--read", read, "--json"];
    let methods = [&["--model", STAND_IN][..], &stages].concat();
    let canonical = |json: &serde_json::Value| {
        assert_eq!(json["methods"]["prefill"], prefill, "{json}");
        assert_eq!(
            json["methods"]["read"], "quest(budget=192, page=16, dense=0)",
            "{json}"
        );
    };
    let run = [
        "run",
        "--prompt",
        &prompt,
        "--max-tokens",
        "6",
        "--ignore-eos",
    ];
    let json = longview(&[&run[..], &methods].concat()).done().json();
    canonical(&json);
    let pages = |json: &serde_json::Value| json["read"]["pages_read"].as_u64();
    // Five steps, four layers with two KV heads each, three blocks.
    assert_eq!(pages(&json), Some(5 * 8 * 3), "{json}");
    // Every token of the prompt: the first block, the window's two, and its own.
    let blocks = |most: u64| -> u64 {
        let tokens = 0..json["prompt_tokens"].as_u64().unwrap();
        tokens.map(|token| (token / 64 + 1).min(most)).sum()
    };
    let counts =
        serde_json::json!({ "pages_read": 8 * blocks(4), "pages_present": 8 * blocks(u64::MAX) });
    assert_eq!(json["prefill"], counts, "{json}");
    let told = json["notices"].to_string();
    assert!(told.contains("pages for the prompt"), "{told}");

    let said = format!("{prompt} {FALCON}\n{KETTLE}\n");
    let chat = ["chat", "--max-tokens", "4", "--ignore-eos"];
    let json = longview_reading(&[&chat[..], &methods].concat(), said.as_bytes())
        .done()
        .json();
    canonical(&json);
    for turn in json["answers"]
        .as_array()
        .unwrap_or_else(|| panic!("{json}"))
    {
        // Each turn's own steps are counted.
        assert_eq!(pages(turn), Some(3 * 8 * 3), "{json}");
    }

    let bench = [
        "bench",
        "--prompt",
        "64",
        "--generate",
        "4",
        "--depth",
        "1024",
    ];
    let more = ["--synthetic-kv", "--rounds", "1"];
    let json = longview(&[&bench[..], &more, &methods].concat())
        .done()
        .json();
    canonical(&json);
    assert_eq!(json["runs"].as_array().unwrap().len(), 2, "{json}");

    let folder = Folder::new();
    let line = serde_json::json!({
        "custom_id": "a", "method": "POST", "url": "/v1/completions",
        "body": { "prompt": prompt, "max_tokens": 6, "ignore_eos": true }
    });
    let file = folder.write("requests.jsonl", line.to_string());
    let answers = folder.path("answers.jsonl");
    let batch = ["batch", &file, "--output", &answers];
    longview(&[&batch[..], &methods].concat()).done();
    let answer: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&answers).unwrap()).unwrap();
    let report = &answer["response"]["body"]["longview"];
    canonical(report);
    assert_eq!(pages(report), Some(5 * 8 * 3), "{answer}");
}

#[test]
fn a_read_method_chooses_among_what_a_keep_method_has_left() {
    let folder = Folder::new();
    let book = folder.write("book.txt", story(900));
    let (keep, read) = (
        "streaming-llm(budget=640)",
        "quest(budget=192, page=16, dense=0)",
    );
    let stages = ["--keep", keep, "--read", read, "--json"];
    let ask = ["ask", "--file", &book, FALCON, "--ignore-eos"];
    let json = longview(&[&ask[..], &["--max-tokens", "6"], &stages].concat())
        .done()
        .json();
    assert_eq!(json["methods"]["read"], read, "{json}");
    let answer = &json["answers"][0];
    // Five steps, four layers with two KV heads each, three pages of ten and the blocks that came after them.
    let count = |key: &str| answer["read"][key].as_u64().unwrap();
    assert_eq!(count("pages_read"), 5 * 8 * 3, "{json}");
    assert!(
        (5 * 8 * 10..5 * 8 * 15).contains(&count("pages_present")),
        "{json}"
    );
    assert!(answer["keep"]["pairs_dropped"].as_u64() > Some(0), "{json}");
    let notices = json["notices"].to_string();
    assert!(
        notices.contains("beside the keys and values that are kept, to choose by"),
        "{notices}"
    );

    // A conversation is kept by name, and goes on to the bit.
    let store = folder.path("store");
    let talk = |turns: &str, label: &str| {
        let fixed = ["chat", "--label", label, "--cache-dir", &store];
        let rest = ["--cache-max", "1GiB", "--max-tokens", "6", "--ignore-eos"];
        longview_reading(&[&fixed[..], &rest, &stages].concat(), turns.as_bytes())
            .done()
            .json()
    };
    let prompt = story(900).replace('\n', " ");
    let first = format!("{prompt} {FALCON}\n");
    let whole = talk(&format!("{first}{KETTLE}\n"), "whole");
    talk(&first, "parts");
    let parts = talk(&format!("{KETTLE}\n"), "parts");
    let last = |json: &serde_json::Value| json["answers"].as_array().unwrap().last().cloned();
    let text = |json: &serde_json::Value| last(json).unwrap()["answer"].clone();
    assert_eq!(text(&parts), text(&whole), "{parts}");
    let pages = |json: &serde_json::Value| last(json).unwrap()["read"]["pages_read"].clone();
    assert_eq!(pages(&parts), pages(&whole));

    let bench = [
        "bench",
        "--prompt",
        "0",
        "--generate",
        "4",
        "--depth",
        "1024",
    ];
    let more = ["--synthetic-kv", "--rounds", "1"];
    let json = longview(&[&bench[..], &more, &stages].concat())
        .done()
        .json();
    assert_eq!(json["runs"].as_array().unwrap().len(), 1, "{json}");
}

#[test]
fn what_does_not_go_together_is_refused_before_anything_is_read() {
    let folder = Folder::new();
    let book = folder.write("book.txt", story(300));
    let ask =
        |arguments: &[&str]| longview(&[&["ask", "--file", &book, FALCON], arguments].concat());
    ask(&["--read", "quset"]).refused(2, &["did you mean \"quest\"?"]);
    ask(&["--read", "quest(budget=0)"]).refused(2, &["budget = 0"]);
    ask(&[
        "--prefill",
        "a-shape",
        "--keep",
        "knorm(budget=100, block=64)",
    ])
    .refused(2, &["--prefill a-shape", "block=never"]);
    longview(&["eval", "perplexity", "--file", &book, "--read", "quest"])
        .refused(2, &["no use for --read quest(budget=2048"]);
}

#[test]
fn an_answer_can_say_where_its_attention_rested() {
    let folder = Folder::new();
    let book = folder.write("book.txt", story(600));
    let ask = |more: &[&str]| {
        let fixed = ["ask", "--json", "--file", &book, FALCON];
        longview(&[&fixed[..], more].concat())
    };
    let plain = ask(&[]).done().json();
    assert!(plain.get("attention").is_none());
    let read = ["--attention", "--read", "quest(budget=320, dense=0)"];
    for (more, chosen) in [(&["--attention"][..], false), (&read, true)] {
        let json = ask(more).done().json();
        let picture = &json["attention"];
        let list = |key: &str| -> Vec<f64> {
            let values = picture[key].as_array().unwrap();
            values.iter().map(|value| value.as_f64().unwrap()).collect()
        };
        let mass = list("mass");
        let tokens = picture["tokens"].as_u64().unwrap();
        assert_eq!(mass.len() as u64, tokens.div_ceil(64), "{json}");
        assert!((mass.iter().sum::<f64>() - 1.0).abs() < 1e-3, "{json}");
        assert_eq!(list("read").iter().any(|&share| share < 0.5), chosen);
        // The reference model looks at the fact that it was asked for.
        let most = picture["most"].as_array().unwrap();
        let told = most
            .iter()
            .any(|part| part["text"].to_string().contains("falcon"));
        assert!(most.len() == 5 && told, "{json}");
        if !chosen {
            assert_eq!(json["generated_ids"], plain["generated_ids"]);
        }
    }
    ask(&["--attention", "--keep", "knorm(budget=100)"])
        .refused(2, &["cannot be observed under --keep knorm"]);
}
