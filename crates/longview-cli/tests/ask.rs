//! `longview ask`: documents in, answers out.

mod common;

use common::{Folder, STAND_IN, command, longview, longview_reading, ran, story};

const FALCON: &str = "What is the special magic number for amber falcon?";
const KETTLE: &str = "What is the code of the silver kettle?";

#[test]
fn a_fact_is_found_and_the_answer_stands_alone_on_standard_output() {
    let folder = Folder::new();
    let book = folder.write("book.txt", story(700));
    let ran = longview(&["ask", "--file", &book, FALCON]).done();
    assert_eq!(
        ran.stdout,
        "The special magic number for amber falcon is 48213.\n"
    );
    // No terminal, no progress.
    assert_eq!(ran.stderr, "");
}

#[test]
fn the_json_object_has_every_field_of_the_contract() {
    let folder = Folder::new();
    let book = folder.write("book.txt", story(600));
    let json = longview(&["ask", "--json", "--file", &book, FALCON])
        .done()
        .json();
    assert_eq!(
        json["answer"],
        "The special magic number for amber falcon is 48213."
    );
    let count = |key: &str| {
        json[key]
            .as_u64()
            .unwrap_or_else(|| panic!("{key} in {json}"))
    };
    assert!((500..900).contains(&count("prompt_tokens")), "{json}");
    assert_eq!(count("reused_tokens"), 0);
    assert_eq!(count("computed_tokens"), count("prompt_tokens"));
    let ids = json["generated_ids"].as_array().unwrap();
    assert_eq!(ids.len() as u64, count("generated_tokens"));
    assert!(ids.iter().all(|id| id.as_u64().is_some_and(|id| id < 4096)));
    for key in [
        "seconds_to_first_token",
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
    ] {
        assert!(
            json[key].as_f64().is_some_and(|number| number > 0.0),
            "{key} in {json}"
        );
    }
    // At least the weights, and 2,048 bytes of keys and values a token.
    assert!(count("peak_memory_bytes") > 10 << 20);
    assert!(count("kv_bytes") >= 2048 * count("prompt_tokens"));
    for (stage, text) in [
        ("prompt", "whole"),
        ("prefill", "dense"),
        ("keep", "all"),
        ("store", "f16"),
        ("read", "dense"),
        ("reuse", "prefix"),
        ("decode", "greedy"),
    ] {
        assert_eq!(json["methods"][stage], text);
    }
    assert_eq!(json["notices"].as_array().unwrap().len(), 0);
    assert_eq!(json["finish"], "end_of_text");
}

#[test]
fn several_questions_share_the_reading_of_the_documents() {
    let folder = Folder::new();
    let book = folder.write("book.txt", story(300));
    let more = folder.write("questions.txt", format!("\n{KETTLE}\n\n"));
    let arguments = ["ask", "--file", &book, FALCON, KETTLE, "--questions", &more];
    let ran = longview(&arguments).done();
    let kettle = format!("> {KETTLE}\nThe code of the silver kettle is 5182.\n");
    let falcon = format!("> {FALCON}\nThe special magic number for amber falcon is 48213.\n");
    assert_eq!(ran.stdout, format!("{falcon}\n{kettle}\n{kettle}"));

    let json = longview(&[&arguments[..], &["--json"]].concat())
        .done()
        .json();
    let answers = json["answers"].as_array().unwrap();
    assert_eq!(answers.len(), 3);
    let number = |index: usize, key: &str| answers[index][key].as_u64().unwrap();
    assert_eq!(number(0, "reused_tokens"), 0);
    assert!(number(1, "reused_tokens") > 270);
    assert!(number(1, "computed_tokens") < 40);
    // The order of the questions changes nothing.
    assert_eq!(answers[1]["generated_ids"], answers[2]["generated_ids"]);
    assert_eq!(answers[1]["question"], KETTLE);
    let sum: u64 = (0..3).map(|index| number(index, "computed_tokens")).sum();
    assert_eq!(json["computed_tokens"], sum);
    assert_eq!(json["finish"], "end_of_text");
    // The one that did not end by itself shows.
    let arguments = [&arguments[..], &["--json", "--stop", "silver"]].concat();
    let json = longview(&arguments).done().json();
    assert_eq!(json["answers"][0]["finish"], "end_of_text");
    assert_eq!(json["finish"], "stop");
}

#[test]
fn documents_come_from_files_folders_globs_and_standard_input() {
    let folder = Folder::new();
    folder.write("notes/a.txt", "The code of the harbor is 4711.\n");
    folder.write("notes/deep/b.md", story(300));
    folder.write("notes/deep/photo.png", b"\x89PNG\r\n\x1a\n\0\0\0");
    folder.write("notes/.gitignore", "secret.txt\n");
    folder.write("notes/secret.txt", "The code of the harbor is 9999.\n");
    let notes = folder.path("notes");
    let question = "What is the code of the harbor?";
    let json = longview(&["ask", "--json", "--file", &notes, question])
        .done()
        .json();
    assert_eq!(json["answer"], "The code of the harbor is 4711.");
    let notices = json["notices"].to_string();
    assert!(
        notices.contains("photo.png") && notices.contains("binary"),
        "{notices}"
    );
    assert!(notices.contains("named by .gitignore"), "{notices}");

    let shown = longview(&["ask", "--file", &notes, "--print-prompt", "Q?"]).done();
    assert!(shown.stderr.contains("photo.png"), "{shown:?}");
    let shown = longview(&["ask", "--file", &notes, "--print-prompt", "Q?", "--json"]).done();
    assert!(shown.json()["notices"].to_string().contains("photo.png"));

    let ran = longview(&[
        "ask",
        "--file",
        &folder.path("notes/*.txt"),
        "--print-prompt",
        "Q?",
    ]);
    let ran = ran.done();
    let (a, secret) = (folder.path("notes/a.txt"), folder.path("notes/secret.txt"));
    // A glob names files: the folder's .gitignore has no say.
    let first = ran
        .stdout
        .find(&format!("File: {a}\nThe code of the harbor is 4711.\n"));
    let second = ran.stdout.find(&format!(
        "File: {secret}\nThe code of the harbor is 9999.\n"
    ));
    assert!(first.is_some() && first < second, "{}", ran.stdout);

    let text = story(300);
    let ran = longview_reading(&["ask", "--file", "-", KETTLE], text.as_bytes()).done();
    assert_eq!(ran.stdout, "The code of the silver kettle is 5182.\n");
}

#[cfg(unix)]
#[test]
fn paths_need_not_be_utf_8() {
    use std::os::unix::ffi::OsStrExt;
    let folder = Folder::new();
    let path = |name: &[u8]| {
        let path = std::path::PathBuf::from(folder.path(""));
        path.join(std::ffi::OsStr::from_bytes(name))
    };
    let (model, book, questions) = (path(b"mod\xe8le"), path(b"B\xfccher"), path(b"fragen\xe4"));
    let needle = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/needle");
    std::os::unix::fs::symlink(needle, &model).unwrap();
    std::fs::create_dir(&book).unwrap();
    std::fs::write(book.join("a.txt"), "A book.").unwrap();
    std::fs::write(&questions, "Why?").unwrap();
    let mut ask = command(&["ask", "--print-prompt", "--model"]);
    ask.arg(&model).arg("--questions").arg(&questions);
    ask.arg("--file").arg(book.join("*.txt"));
    let asked = ran(ask.output().unwrap()).done();
    assert!(asked.stdout.contains("A book.<|user|> Why?"), "{asked:?}");
    let mut run = command(&["run", "--print-prompt", "--prompt-file"]);
    let printed = ran(run.arg(&questions).output().unwrap()).done();
    assert_eq!(printed.stdout, "<|bos|>Why?\n");
    let mut missing = command(&["run", "--prompt-file"]);
    missing.arg(path(b"fehlt\xe4"));
    ran(missing.output().unwrap()).refused(2, &["fehlt", "no such file"]);
}

#[test]
fn print_prompt_shows_exactly_what_the_model_would_read() {
    let folder = Folder::new();
    let book = folder.write("book.txt", "A <|eos|> of one line.");
    let ran = longview(&["ask", "--file", &book, "--print-prompt", "Why?"]).done();
    // A special token written in a document is text, not a token.
    assert_eq!(
        ran.stdout,
        "<|bos|> A <|eos|> of one line.<|user|> Why?<|assistant|>\n"
    );
    let json = longview(&["ask", "--file", &book, "--print-prompt", "Why?", "--json"]);
    let json = json.done().json();
    let ids = json["prompt_ids"].as_array().unwrap();
    assert_eq!(json["prompt_tokens"].as_u64().unwrap(), ids.len() as u64);
    // Begin, user and assistant; the end written in the document is not among them.
    for (id, times) in [(0, 1), (1, 0), (2, 1), (3, 1)] {
        assert_eq!(
            ids.iter().filter(|found| **found == id).count(),
            times,
            "{id} in {ids:?}"
        );
    }
}

#[test]
fn the_documents_tokens_do_not_depend_on_the_question() {
    let folder = Folder::new();
    let book = folder.write("book.txt", "Some text");
    let ids = |question: &str| {
        let json = longview(&["ask", "--file", &book, "--print-prompt", question, "--json"]);
        json.done().json()["prompt_ids"].as_array().unwrap().clone()
    };
    let (one, other) = (ids("Why?"), ids("ual things are there?"));
    let user = |ids: &[serde_json::Value]| ids.iter().position(|id| *id == 2).unwrap();
    assert_eq!(one[..=user(&one)], other[..=user(&other)]);
}

#[test]
fn an_answer_that_is_cut_says_so() {
    let folder = Folder::new();
    let book = folder.write("book.txt", story(200));
    let ran = longview(&[
        "ask",
        "--model",
        STAND_IN,
        "--file",
        &book,
        "--max-tokens",
        "3",
        FALCON,
    ])
    .done();
    assert!(ran.stderr.contains("cut at --max-tokens 3"), "{ran:?}");
    let json = longview(&[
        "ask", "--model", STAND_IN, "--file", &book, "-n", "3", FALCON, "--json",
    ])
    .done()
    .json();
    assert_eq!(json["generated_tokens"], 3);
    assert_eq!(json["finish"], "length");
    assert!(
        json["notices"].to_string().contains("--max-tokens"),
        "{json}"
    );
}

#[test]
fn the_store_and_the_numerics_can_be_chosen() {
    let folder = Folder::new();
    let book = folder.write("book.txt", story(100));
    let ask = |more: &[&str]| {
        longview(&[&["ask", "--json", "--file", &book, FALCON], more].concat())
            .done()
            .json()
    };
    let f16 = ask(&[]);
    let f32 = ask(&["--store", "f32"]);
    let all_f32 = ask(&["--numerics", "f32", "--threads", "1"]);
    assert_eq!(f32["methods"]["store"], "f32");
    assert_eq!(all_f32["methods"]["store"], "f32");
    assert_eq!(all_f32["numerics"], "f32");
    assert_eq!(
        f32["kv_bytes"].as_u64().unwrap(),
        2 * f16["kv_bytes"].as_u64().unwrap()
    );
    assert_eq!(all_f32["answer"], f16["answer"]);
    assert_eq!(f16["notices"].as_array().unwrap().len(), 0, "{f16}");

    let q8 = ask(&["--store", "q8"]);
    assert_eq!(q8["methods"]["store"], "q8");
    assert!(
        q8["notices"]
            .to_string()
            .contains("store q8 is approximate"),
        "{q8}"
    );
    // 8.5 bits a number instead of 16.
    assert_eq!(
        32 * q8["kv_bytes"].as_u64().unwrap(),
        17 * f16["kv_bytes"].as_u64().unwrap()
    );
    assert_eq!(q8["answer"], f16["answer"]);
}

#[test]
fn the_reference_model_for_whole_books_is_read_from_its_folder() {
    let folder = Folder::new();
    let file = folder.write("story.txt", story(500));
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/needle-long");
    let question = "What is the special magic number for amber falcon?";
    let ran = longview(&["ask", "--model", model, "--file", &file, question]).done();
    assert!(ran.stdout.contains("48213"), "{ran:?}");
}
