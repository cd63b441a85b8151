//! Contexts that outlive a run: kept in a folder, found by content, and never read twice.

mod common;

use common::{Folder, STAND_IN, command, longview, ran, story};
use serde_json::Value;

const FALCON: &str = "What is the special magic number for amber falcon?";
const KETTLE: &str = "What is the code of the silver kettle?";

/// Runs a command that keeps contexts in `store`.
fn keeping(store: &str, arguments: &[&str]) -> common::Ran {
    let flags = ["--cache-dir", store, "--cache-max", "1GiB"];
    longview(&[arguments, &flags].concat())
}

fn number(json: &Value, key: &str) -> u64 {
    json[key]
        .as_u64()
        .unwrap_or_else(|| panic!("{key} in {json}"))
}

#[test]
fn a_document_is_read_once_for_all_runs() {
    let folder = Folder::new();
    let book = folder.write("book.txt", story(400));
    let store = folder.path("store");
    let ask = |questions: &[&str], flags: &[&str]| {
        let command = ["ask", "--json", "--file", &book];
        keeping(&store, &[&command[..], questions, flags].concat())
            .done()
            .json()
    };
    let first = ask(&[FALCON], &[]);
    let prompt = number(&first, "prompt_tokens");
    assert_eq!(number(&first, "reused_tokens"), 0);
    assert_eq!(first["reuse"], serde_json::json!({}));

    // In another process: other questions to the same text, then the same one.
    let both = ask(&[KETTLE, FALCON], &[]);
    let [kettle, falcon] = [0, 1].map(|index| &both["answers"][index]);
    assert_eq!(kettle["answer"], "The code of the silver kettle is 5182.");
    assert_eq!(falcon["generated_ids"], first["generated_ids"]);
    let found = number(&kettle["reuse"], "disk");
    assert!(found.is_multiple_of(64) && found + 128 > prompt, "{both}");
    assert_eq!(number(kettle, "reused_tokens"), found);
    assert_eq!(
        number(kettle, "computed_tokens"),
        number(kettle, "prompt_tokens") - found
    );
    assert!(number(kettle, "store_read_bytes") >= 2048 * found);
    assert!(number(&falcon["reuse"], "context") >= found);
    assert_eq!(
        number(falcon, "computed_tokens") + number(falcon, "reused_tokens"),
        prompt
    );
    let notices = both["notices"].to_string();
    assert!(notices.contains("from disk"), "{notices}");

    explains(&folder, &store, &book, prompt);

    let salted = ask(&[FALCON], &["--salt", "tenant"]);
    assert_eq!(number(&salted, "reused_tokens"), 0);
    assert_eq!(salted["generated_ids"], first["generated_ids"]);
    let f32 = ask(&[FALCON], &["--store", "f32"]);
    assert_eq!(number(&f32, "reused_tokens"), 0);
}

/// What `explain` says where the text is kept, where another parts from it, and where nobody read it.
fn explains(folder: &Folder, store: &str, book: &str, prompt: u64) {
    let explain = |arguments: &[&str]| {
        let command = ["explain", "--json"];
        keeping(store, &[&command[..], arguments].concat())
            .done()
            .json()
    };
    let same = explain(&["--file", book, FALCON]);
    let reused = number(&same, "reused_tokens");
    assert_eq!(number(&same, "prompt_tokens"), prompt);
    assert!(reused.is_multiple_of(64) && reused + 64 >= prompt, "{same}");
    assert_eq!(
        same["reuse"],
        serde_json::json!([{ "from": 0, "to": reused, "place": "disk" }])
    );
    assert_eq!(same["end"]["reason"], "tail");
    assert!(same["seconds_it_took_to_compute"].as_f64() > same["seconds_to_read"].as_f64());

    let changed = std::fs::read_to_string(book).unwrap();
    let changed = folder.write("changed.txt", changed.replace("48213", "99999"));
    let other = explain(&["--file", &changed, FALCON]);
    let end = &other["end"];
    assert_eq!(end["reason"], "differs", "{other}");
    let token = number(end, "token");
    let reused = number(&other, "reused_tokens");
    assert!(reused <= token && token < reused + 64, "{other}");
    let text = |key: &str| end[key].as_str().unwrap();
    assert!(
        text("text_before").trim_end().ends_with("amber falcon is"),
        "{end}"
    );
    assert!(
        text("stored_text").trim_start().starts_with("48213"),
        "{end}"
    );
    assert!(
        text("prompt_text").trim_start().starts_with("99999"),
        "{end}"
    );
    let shown = keeping(store, &["explain", "--file", &changed])
        .done()
        .stdout;
    assert!(
        shown.contains("from disk") && shown.contains("99999"),
        "{shown}"
    );

    let salted = explain(&["--file", book, "--salt", "x"]);
    assert_eq!(salted["end"]["reason"], "other_identity", "{salted}");
    let new = explain(&["--prompt", "Nobody has read this."]);
    assert_eq!(number(&new, "reused_tokens"), 0);
    longview(&["explain", "--prompt", "x"]).refused(2, &["--cache-max is 0"]);
    longview(&["explain", "Why?"]).refused(2, &["--file"]);
}

#[test]
fn completions_and_conversations_are_found_again() {
    let folder = Folder::new();
    let store = folder.path("store");
    let prompt = folder.write("prompt.txt", story(300));
    let run = || {
        let command = ["run", "--json", "--prompt-file", &prompt, "-n", "70"];
        keeping(&store, &[&command[..], &["--temperature", "0"]].concat())
            .done()
            .json()
    };
    let (first, second) = (run(), run());
    assert_eq!(second["answer"], first["answer"]);
    assert_eq!(number(&first, "reused_tokens"), 0);
    assert!(number(&second, "computed_tokens") <= 64, "{second}");

    let talk = || {
        let mut child = command(&[
            "chat",
            "--json",
            "--cache-dir",
            &store,
            "--cache-max",
            "1GiB",
        ])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
        let said = format!("{}\nWhat is it?\n", story(300));
        let mut stdin = child.stdin.take().unwrap();
        std::io::Write::write_all(&mut stdin, said.as_bytes()).unwrap();
        drop(stdin);
        ran(child.wait_with_output().unwrap()).done().json()
    };
    let (first, second) = (talk(), talk());
    assert!(number(&first["answers"][1]["reuse"], "context") > 300);
    assert_eq!(number(&first["answers"][0], "reused_tokens"), 0);
    assert!(
        number(&second["answers"][0]["reuse"], "disk") > 200,
        "{second}"
    );
    for turn in [0, 1] {
        let ids = |talk: &Value| talk["answers"][turn]["generated_ids"].clone();
        assert_eq!(ids(&first), ids(&second));
    }
}

#[test]
fn contexts_are_listed_named_checked_moved_and_removed() {
    let folder = Folder::new();
    let book = folder.write("book.txt", story(300));
    let (store, other) = (folder.path("store"), folder.path("other"));
    let ask = |store: &str| {
        keeping(
            store,
            &["ask", "--json", "--file", &book, "-n", "1", KETTLE],
        )
        .done()
        .json()
    };
    let contexts = |arguments: &[&str]| keeping(&store, &[&["contexts"][..], arguments].concat());
    ask(&store);
    ask(&store);
    let listed = contexts(&["ls", "--json"]).done().json();
    let all = listed["contexts"].as_array().unwrap();
    assert_eq!(all.len(), 1, "the same text is one context: {listed}");
    assert!(all[0]["title"].as_str().unwrap().ends_with("book.txt"));
    assert_eq!(all[0]["complete"], true, "{listed}");
    assert_eq!(number(&all[0], "blocks"), number(&all[0], "tokens") / 64);
    let id = all[0]["id"].as_str().unwrap();

    contexts(&["label", id, "the kettle"]).done();
    contexts(&["ttl", &id[..6], "12h"]).done();
    let pinned = contexts(&["pin", "the kettle", "--json"]).done().json();
    assert_eq!(
        (&pinned["pinned"], number(&pinned, "time_to_live")),
        (&true.into(), 43_200)
    );
    let shown = contexts(&["show", "the kettle"]).done().stdout;
    for words in [
        "the kettle",
        "grey and the road",
        "complete",
        "it is pinned",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    // What is pinned stays, however little room there is.
    contexts(&["gc", "--max", "1"]).done();
    contexts(&["fsck"]).done();
    let table = contexts(&["ls"]).done().stdout;
    assert!(
        table.contains("complete, pinned") && table.contains("KiB"),
        "{table}"
    );

    let bundle = folder.path("kettle.bundle");
    let neighbour = folder.write("kettle.bundle.part", "mine");
    contexts(&["export", "the kettle", &bundle]).done();
    assert_eq!(std::fs::read(neighbour).unwrap(), b"mine");
    contexts(&["export", "the kettle", &bundle]).refused(2, &["--force"]);
    keeping(&other, &["contexts", "import", &bundle]).done();
    let there = ask(&other);
    assert!(number(&there["reuse"], "disk") > 250, "{there}");
    keeping(&other, &["contexts", "import", &book]).refused(2, &["book.txt", "bundle"]);
    contexts(&["show", "watson"]).refused(2, &["watson", "contexts ls"]);

    contexts(&["rm", "the kettle"]).done();
    assert_eq!(
        contexts(&["ls", "--json"]).done().json()["contexts"],
        serde_json::json!([])
    );
    assert_eq!(number(&ask(&store), "reused_tokens"), 0);
    damage(&store);
    let checked = contexts(&["fsck"]);
    assert_eq!(checked.code, Some(1), "{checked:?}");
    assert!(checked.stdout.contains(".kv: "), "{checked:?}");
    contexts(&["fsck", "--repair"]).done();
    contexts(&["fsck"]).done();
    assert_eq!(ask(&store)["generated_ids"], there["generated_ids"]);
    let whole = ask(&store);
    // What turns out to be damaged while it is read is counted as computed.
    damage(&store);
    let again = ask(&store);
    assert_eq!(again["generated_ids"], there["generated_ids"]);
    let of = |name: &str| number(&again, name);
    assert_eq!(
        of("reused_tokens") + of("computed_tokens"),
        of("prompt_tokens")
    );
    assert!(
        of("reused_tokens") < number(&whole, "reused_tokens"),
        "{again}"
    );
}

/// Turns bits all over every extent, since not every byte of one is used.
fn damage(store: &str) {
    let folders = std::fs::read_dir(format!("{store}/extents")).unwrap();
    let files = folders.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
    for file in files {
        let path = file.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let step = bytes.len() / 9;
        (1..9).for_each(|place| bytes[place * step] ^= 4);
        std::fs::write(path, bytes).unwrap();
    }
}

#[test]
fn a_conversation_with_a_name_goes_on_in_another_process() {
    let folder = Folder::new();
    let store = folder.path("store");
    let talk = |flags: &[&str], said: &str| {
        let command_line = [
            "chat",
            "--json",
            "-n",
            "8",
            "--cache-dir",
            &store,
            "--cache-max",
            "1GiB",
        ];
        let mut child = command(&[&command_line[..], flags].concat())
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        std::io::Write::write_all(&mut stdin, said.as_bytes()).unwrap();
        drop(stdin);
        ran(child.wait_with_output().unwrap())
    };
    let (first, second) = (story(200), "What is it?\n");
    let whole = talk(&[], &format!("{first}\n{second}")).done().json();
    talk(&["--label", "a talk"], &first).done();
    let later = talk(&["--label", "a talk"], second).done().json();
    let (went_on, expected) = (&later["answers"][0], &whole["answers"][1]);
    for key in ["prompt_tokens", "reused_tokens", "generated_ids"] {
        assert_eq!(went_on[key], expected[key], "{key}: {later}");
    }
    // From there under another name; and not with another model's settings.
    let branch = talk(&["--load", "a talk", "--label", "b"], second)
        .done()
        .json();
    assert!(number(&branch["answers"][0], "prompt_tokens") > number(went_on, "prompt_tokens"));
    talk(&["--load", "a talk", "--store", "f32"], second).refused(2, &["made by", "f16"]);
    talk(&["--load", "nobody"], second).refused(2, &["nobody"]);
}

#[test]
fn a_folder_that_was_named_must_be_a_store_and_the_usual_one_may_be_missing() {
    let folder = Folder::new();
    let file = folder.write("file", "dear");
    folder.write("things/letter.txt", "dear");
    folder.write("future/STORE", "longview store, format 99\n");
    let run = ["run", "--prompt", "Once", "-n", "1"];
    for (place, words) in [
        (file.as_str(), &["cannot be kept", "file"][..]),
        (
            &folder.path("things"),
            &["not a Longview store", "--cache-dir"],
        ),
        (
            &folder.path("future"),
            &["format 99", "nothing was changed"],
        ),
    ] {
        keeping(place, &run).refused(2, words);
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"dear");
    assert_eq!(std::fs::read_dir(folder.path("things")).unwrap().count(), 1);
    assert_eq!(std::fs::read_dir(folder.path("future")).unwrap().count(), 1);

    // Nobody named a folder, and the usual place cannot have one.
    let mut unnamed = command(&run);
    unnamed
        .env_remove("LONGVIEW_CACHE_DIR")
        .env_remove("LONGVIEW_CACHE_MAX")
        .env("XDG_CACHE_HOME", &file)
        .env("HOME", &file);
    let unnamed = ran(unnamed.output().unwrap()).done();
    assert!(
        unnamed.stderr.contains("is not kept for the next time"),
        "{unnamed:?}"
    );
    keeping(
        &folder.path("s"),
        &["run", "--prompt", "x", "--cache-max", "much"],
    )
    .code
    .filter(|&code| code == 2)
    .expect("a size that is none is refused");
}

#[test]
fn a_method_goes_on_from_a_context_on_disk_or_says_why_not() {
    let folder = Folder::new();
    let book = folder.write("book.txt", story(1000));
    let store = folder.path("store");
    let ask = |more: &[&str]| {
        let place = ["--cache-dir", &store, "--cache-max", "1GiB"];
        let model = ["ask", "--json", "--model", STAND_IN, "-n", "4"];
        let whole = [&model[..], &place, more, &[KETTLE]].concat();
        longview(&whole).done().json()
    };
    let read = ask(&["--file", &book, "--label", "book"]);
    let prompt = read["prompt_tokens"].as_u64().unwrap();
    let computed = |json: &serde_json::Value| json["computed_tokens"].as_u64().unwrap();
    // The last queries are computed again, and no more: whole blocks of 64 are left out of what is taken.
    for (method, most) in [
        ("knorm(budget=25%, block=never)", 64),
        ("snapkv(budget=25%, window=32)", 96),
        ("snapkv(budget=25%, window=100)", 164),
    ] {
        let json = ask(&["--load", "book", "--keep", method]);
        assert!(computed(&json) <= most, "{method}: {json}");
        assert!(json["keep"]["pairs_dropped"].as_u64() > Some(0), "{json}");
        // What the same method leaves of the same text, read at once.
        let anew = longview(&[
            "ask", "--json", "--model", STAND_IN, "-n", "4", "--file", &book, "--keep", method,
            KETTLE,
        ]);
        let anew = anew.done().json();
        assert_eq!(computed(&anew), prompt);
        assert_eq!(json["generated_ids"], anew["generated_ids"], "{method}");
        assert_eq!(json["keep"]["pairs_kept"], anew["keep"]["pairs_kept"]);
    }
    for (method, why) in [
        ("h2o(budget=25%)", "what is gathered of every token"),
        ("keydiff(budget=25%)", "block=never"),
    ] {
        let json = ask(&["--load", "book", "--keep", method]);
        assert_eq!(computed(&json), prompt, "{json}");
        assert!(json["notices"].to_string().contains(why), "{json}");
    }
}
