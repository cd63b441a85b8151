//! What `--keep` has left of a context, under a name: gone on with in another process.

mod common;

use common::{Folder, STAND_IN, longview, longview_reading, story};
use serde_json::Value;

const FALCON: &str = "What is the special magic number for amber falcon?";
const KETTLE: &str = "What is the code of the silver kettle?";

/// Checks that a command's notices have these words.
#[track_caller]
fn says(json: &Value, words: &str) {
    assert!(json["notices"].to_string().contains(words), "{json}");
}

#[test]
fn what_is_left_of_documents_is_asked_again_by_name() {
    let folder = Folder::new();
    let book = folder.write("book.txt", story(1200));
    let store = folder.path("store");
    let stored = |arguments: &[&str]| {
        let place = ["--cache-dir", &store, "--cache-max", "1GiB"];
        longview(&[arguments, &place].concat())
    };
    let method = "kvzip(budget=50%)";
    let ask = |more: &[&str]| {
        let model = ["ask", "--json", "--model", STAND_IN, "-n", "24"];
        stored(&[&model[..], more, &[KETTLE]].concat())
    };
    let first = ask(&["--file", &book, "--label", "half", "--keep", method])
        .done()
        .json();
    let text = first["methods"]["keep"].as_str().unwrap().to_owned();
    assert!(text.starts_with("kvzip(budget=50%"), "{first}");

    // Another process answers from what is left, and says so.
    let again = ask(&["--load", "half"]).done().json();
    for field in ["answer", "generated_ids", "kv_bytes", "prompt_tokens"] {
        assert_eq!(again[field], first[field], "{field}");
    }
    assert_eq!(again["methods"]["keep"], text.as_str());
    let kept = again["reuse"]["kept"].as_u64().unwrap();
    assert!(
        kept > 1000 && again["computed_tokens"].as_u64().unwrap() < 100,
        "{again}"
    );
    assert_eq!(again["keep"]["pairs_kept"], first["keep"]["pairs_kept"]);
    says(&again, "answers are approximate");
    let listed = stored(&["contexts", "ls", "--json"]).done().json();
    assert!(listed.to_string().contains("kvzip(budget=50%"), "{listed}");

    // It answers for nobody else: the same documents are read whole, and keep a record of their own.
    let whole = ask(&["--file", &book]).done().json();
    assert!(
        whole["reuse"]["kept"].is_null() && whole["keep"].is_null(),
        "{whole}"
    );
    let pairs = (&whole["kv_bytes"], &first["kv_bytes"]);
    assert!(pairs.0.as_u64() > pairs.1.as_u64(), "{whole}");
    let still = ask(&["--load", "half"]).done().json();
    assert_eq!(still["generated_ids"], first["generated_ids"]);
    // Nor is it gone on with by another method, nor its name by what another has left.
    ask(&["--load", "half", "--keep", "knorm(budget=50%)"])
        .refused(2, &["kvzip(budget=50%", "leave --keep out"]);
    ask(&["--load", "half", "--keep", "all"]).refused(2, &["leave --keep out"]);
    ask(&["--file", &book, "--label", "half"]).refused(2, &["labelled \"half\" already"]);
    ask(&["--load", "half", "--store", "q8"]).refused(2, &["kv=f16", "kv=q8"]);
    // One that goes on to decide by what it was told while they were read goes on with that, too.
    let method = "h2o(budget=50%)";
    let first = ask(&["--file", &book, "--label", "more", "--keep", method])
        .done()
        .json();
    let again = ask(&["--load", "more"]).done().json();
    for field in ["answer", "generated_ids", "kv_bytes"] {
        assert_eq!(again[field], first[field], "{field}");
    }
    assert_eq!(again["keep"]["pairs_kept"], first["keep"]["pairs_kept"]);
}

#[test]
fn a_compressed_conversation_goes_on_by_name_as_if_it_had_not_ended() {
    let folder = Folder::new();
    let store = folder.path("store");
    let said = [
        format!("{} {FALCON}\n", story(400).replace('\n', " ")),
        format!("{KETTLE}\n"),
        format!("{FALCON}\n"),
    ];
    for keep in ["snapkv(budget=128)", "h2o(budget=160)", "kvzip(budget=128)"] {
        let chat = |name: &str, more: &[&str], lines: &[String]| {
            let arguments = [
                "chat",
                "--json",
                "--max-tokens",
                "24",
                "--cache-dir",
                &store,
                "--cache-max",
                "1GiB",
                "--label",
                name,
            ];
            longview_reading(&[&arguments[..], more].concat(), lines.concat().as_bytes())
                .done()
                .json()
        };
        let name = keep.split_once('(').unwrap().0;
        let whole = chat(&format!("{name}-whole"), &["--keep", keep], &said);
        let first = chat(name, &["--keep", keep], &said[..2]);
        assert!(
            !first["notices"]
                .to_string()
                .contains("the context is not kept"),
            "{first}"
        );
        // In another process, which is not told the method again.
        let then = chat(name, &[], &said[2..]);
        let (last, expected) = (&then["answers"][0], &whole["answers"][2]);
        for field in ["answer", "generated_ids", "prompt_tokens", "kv_bytes"] {
            assert_eq!(last[field], expected[field], "{keep}: {field} {then}");
        }
        assert_eq!(last["keep"]["pairs_kept"], expected["keep"]["pairs_kept"]);
        says(&then, "answers are approximate");
        assert!(last["computed_tokens"].as_u64().unwrap() < 150, "{then}");
        // Another method has what was said read anew, and so has none.
        let other = chat(name, &["--keep", "all"], &said[1..2]);
        says(&other, "read anew, exactly");
        assert!(other["answers"][0]["keep"].is_null(), "{other}");
    }
}

#[test]
fn what_is_left_of_a_text_is_continued_by_name() {
    let folder = Folder::new();
    let store = folder.path("store");
    let text = story(600);
    let run = |more: &[&str]| {
        let arguments = [
            "run",
            "--json",
            "--model",
            STAND_IN,
            "--max-tokens",
            "16",
            "--cache-dir",
            &store,
            "--cache-max",
            "1GiB",
        ];
        longview(&[&arguments[..], more].concat())
    };
    let window = "streaming-llm(budget=200, block=64)";
    let first = run(&["--label", "text", "--keep", window, "--prompt", &text])
        .done()
        .json();
    assert!(
        !first["notices"]
            .to_string()
            .contains("the context is not kept"),
        "{first}"
    );
    for more in [&["--prompt", " And then"][..], &[]] {
        let then = run(&[&["--load", "text"], more].concat()).done().json();
        let kept = then["reuse"]["kept"].as_u64().unwrap();
        assert!(
            kept + 1 >= first["prompt_tokens"].as_u64().unwrap(),
            "{then}"
        );
        assert_eq!(then["methods"]["keep"], first["methods"]["keep"]);
        let held = then["kv_bytes"].as_u64().unwrap();
        assert!(held < 2 * first["kv_bytes"].as_u64().unwrap(), "{then}");
    }
    longview(&[
        "contexts",
        "truncate",
        "text",
        "100",
        "--cache-dir",
        &store,
        "--cache-max",
        "1GiB",
        "--model",
        STAND_IN,
    ])
    .refused(
        2,
        &["streaming-llm(budget=200", "save the shorter text anew"],
    );
    // What counts all rows cannot take the last one back.
    run(&[
        "--label",
        "sums",
        "--keep",
        "h2o(budget=200)",
        "--prompt",
        &text,
    ])
    .done();
    run(&["--load", "sums"]).refused(2, &["--prompt"]);
    run(&["--load", "sums", "--prompt", " And then"]).done();
    // Without a name nothing of it lasts, which is said.
    let unnamed = run(&["--keep", window, "--prompt", &text]).done().json();
    assert_eq!(unnamed["keep"]["pairs_kept"], first["keep"]["pairs_kept"]);
}
