//! Contexts as things with names: saved, asked about, continued, appended to, cut.

mod common;

use std::io::Write;
use std::process::Stdio;

use common::{Folder, Ran, STAND_IN, command, longview, ran, story};
use serde_json::Value;

const FALCON: &str = "What is the special magic number for amber falcon?";

struct Store {
    folder: Folder,
    store: String,
}

impl Store {
    fn new() -> Store {
        let folder = Folder::new();
        let store = folder.path("store");
        Store { folder, store }
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        let flags = ["--cache-dir", &self.store, "--cache-max", "1GiB"];
        longview(&[arguments, &flags].concat())
    }

    fn json(&self, arguments: &[&str]) -> Value {
        self.run(&[arguments, &["--json"]].concat()).done().json()
    }

    fn talk(&self, flags: &[&str], said: &str) -> Value {
        let arguments = ["chat", "--json", "-n", "6", "--temperature", "0"];
        let place = ["--cache-dir", &self.store, "--cache-max", "1GiB"];
        let mut child = command(&[&arguments[..], flags, &place].concat())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(said.as_bytes())
            .unwrap();
        ran(child.wait_with_output().unwrap()).done().json()
    }
}

fn number(json: &Value, key: &str) -> u64 {
    json[key]
        .as_u64()
        .unwrap_or_else(|| panic!("{key} in {json}"))
}

#[test]
fn documents_are_saved_once_and_asked_about_by_name() {
    let store = Store::new();
    let book = store.folder.write("book.txt", story(400));
    let saved = store.json(&["contexts", "save", "the book", "--file", &book]);
    let tokens = number(&saved, "tokens");
    assert_eq!(number(&saved, "computed_tokens"), tokens);
    assert!(
        saved["title"].as_str().unwrap().ends_with("book.txt"),
        "{saved}"
    );

    let asked = store.json(&["ask", "--load", "the book", "-n", "12", FALCON]);
    let expected = longview(&["ask", "--json", "--file", &book, "-n", "12", FALCON]);
    let expected = expected.done().json();
    assert_eq!(asked["generated_ids"], expected["generated_ids"]);
    assert_eq!(asked["prompt_tokens"], expected["prompt_tokens"]);
    assert!(number(&asked["reuse"], "disk") + 64 > tokens, "{asked}");

    // Again is the same context; another text does not take its name.
    let again = store.json(&["contexts", "save", "the book", "--file", &book]);
    assert_eq!(again["id"], saved["id"]);
    assert!(number(&again, "computed_tokens") < 64, "{again}");
    let other = [
        "contexts",
        "save",
        "the book",
        "--prompt",
        "Something else.",
    ];
    store.run(&other).refused(2, &["the book", "another text"]);
    // Who wants to continue documents is told how to go on with them.
    store
        .run(&["run", "--load", "the book"])
        .refused(2, &["ask --load"]);
    store
        .run(&["chat", "--load", "the book"])
        .refused(2, &["ask --load"]);
    store
        .run(&["ask", "--load", "no book", "x"])
        .refused(2, &["no book", "contexts ls"]);
    longview(&["ask", "--load", "x", "y"]).refused(2, &["nothing is kept"]);
    longview(&["ask", "x"]).refused(2, &["--file"]);
}

#[test]
fn a_name_that_is_taken_is_found_out_before_the_work() {
    let store = Store::new();
    let (book, other) = (
        store.folder.write("book.txt", story(300)),
        store.folder.write("other.txt", "Something else."),
    );
    let ask = |file: &str, label: &str| {
        store.run(&["ask", "--file", file, "--label", label, "-n", "1", FALCON])
    };
    ask(&book, "tale").done();
    // The same text is the same context.
    ask(&book, "tale").done();
    ask(&other, "tale").refused(2, &["tale", "another text", "book.txt"]);
    ask(&other, " tale").refused(2, &["begins or ends with a space"]);
    store
        .run(&["run", "--prompt", "Once", "--label", "tale"])
        .refused(2, &["tale", "another text"]);
    let nothing_kept = longview(&["ask", "--file", &book, "--label", "tale", "Why?"]);
    nothing_kept.refused(2, &["tale", "nothing is kept"]);
    let patterned = [
        "run",
        "--prompt",
        "Once",
        "--label",
        "x",
        "--prefill",
        "a-shape",
    ];
    store.run(&patterned).refused(2, &["--prefill", "not kept"]);

    // What was written under the name may be written again, and nothing else takes it.
    let run = |tokens: &str| {
        let prompt = ["run", "--prompt", "Once upon a time", "--label", "once"];
        store.run(&[&prompt[..], &["-n", tokens, "--temperature", "0"]].concat())
    };
    for (tokens, said) in [("6", false), ("6", false), ("8", true)] {
        let ran = run(tokens).done();
        assert_eq!(ran.stderr.contains("not listed"), said, "{ran:?}");
    }
    run("3").refused(2, &["once", "another text"]);
    let listed = store.json(&["contexts", "ls"]);
    assert_eq!(listed["contexts"].as_array().unwrap().len(), 2, "{listed}");
}

#[test]
fn texts_are_saved_continued_appended_to_and_cut() {
    let store = Store::new();
    let (beginning, more) = (story(200), " And then the rain began.");
    let greedy = ["-n", "8", "--temperature", "0"];
    let file = store.folder.write("text.txt", &beginning);
    let saved = store.json(&["contexts", "save", "tale", "--prompt-file", &file]);
    let tokens = number(&saved, "tokens");
    let run = |arguments: &[&str]| store.json(&[&["run"][..], arguments, &greedy].concat());

    let plain = run(&["--prompt", &beginning]);
    let went_on = run(&["--load", "tale"]);
    assert_eq!(went_on["generated_ids"], plain["generated_ids"]);
    assert_eq!(number(&went_on, "prompt_tokens"), tokens);

    let appended = store.json(&["contexts", "append", "tale", "--prompt", more]);
    assert_eq!(appended["id"], saved["id"]);
    assert!(number(&appended, "tokens") > tokens && number(&appended, "reused_tokens") > 150);
    let whole = run(&["--prompt", &format!("{beginning}{more}")]);
    let by_name = run(&["--load", "tale"]);
    assert_eq!(by_name["generated_ids"], whole["generated_ids"]);
    // The same without saving what was added.
    let extended = run(&["--load", "tale", "--prompt", " It was late."]);
    assert!(number(&extended, "prompt_tokens") > number(&by_name, "prompt_tokens"));

    // The span that was added leaves again, and what follows it is what a fresh reading gives.
    let added = number(&store.json(&["contexts", "show", "tale"]), "tokens");
    store.json(&["contexts", "append", "tale", "--prompt", " The end."]);
    let span = format!("{tokens}..{added}");
    let without = store.json(&["contexts", "cut", "tale", &span]);
    assert!(
        number(&without, "reused_tokens") >= tokens / 64 * 64,
        "{without}"
    );
    let end = format!("{beginning} The end.");
    let fresh = longview(&[&["run", "--json", "--prompt", &end][..], &greedy].concat());
    let cut = run(&["--load", "tale"]);
    assert_eq!(cut["generated_ids"], fresh.done().json()["generated_ids"]);
    for wrong in ["5..5", "9..3", "7", "0..100000", "5..100000"] {
        store
            .run(&["contexts", "cut", "tale", wrong])
            .refused(2, &["span"]);
    }

    let cut = store.json(&["contexts", "truncate", "tale", &tokens.to_string()]);
    assert_eq!(number(&cut, "tokens"), tokens);
    assert_eq!(
        run(&["--load", "tale"])["generated_ids"],
        plain["generated_ids"]
    );
    let shown = store.json(&["contexts", "show", "tale"]);
    assert_eq!(
        (&shown["complete"], number(&shown, "blocks")),
        (&true.into(), tokens / 64)
    );
    // What is over is gone, and pinned ones are never over.
    for name in ["brief", "pinned"] {
        store.json(&[
            "contexts",
            "save",
            name,
            "--prompt",
            &format!("{name} {beginning}"),
        ]);
        store.json(&["contexts", "ttl", name, "1s"]);
    }
    store.json(&["contexts", "pin", "pinned"]);
    std::thread::sleep(std::time::Duration::from_millis(2500));
    store
        .run(&["run", "--load", "brief"])
        .refused(2, &["no context is called"]);
    let listed = store.json(&["contexts", "ls"])["contexts"].to_string();
    assert!(
        listed.contains("pinned") && !listed.contains("brief"),
        "{listed}"
    );
    store.json(&["contexts", "rm", "pinned"]);

    let beyond = ["contexts", "truncate", "tale", "100000"];
    store.run(&beyond).refused(2, &["from 1 to 3"]);
    store
        .run(&["contexts", "append", "tale", "--prompt", ""])
        .refused(2, &["empty"]);

    // What is generated goes on under the name that was loaded, or under a new one.
    let label = ["--load", "tale", "--label", "tale"];
    let longer = run(&label);
    let shown = store.json(&["contexts", "show", "tale"]);
    assert_eq!(
        number(&shown, "tokens"),
        tokens + 7,
        "all but the last: {longer}"
    );
    run(&["--load", "tale", "--label", "branch"]);
    let taken = [&["run", "--load", "tale", "--label", "branch"][..], &greedy].concat();
    store.run(&taken).refused(2, &["branch", "already"]);
    assert_eq!(
        store.json(&["contexts", "ls"])["contexts"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[test]
fn the_last_conversation_gets_a_name_afterwards_and_a_message_is_taken_back() {
    let store = Store::new();
    let save = ["contexts", "save", "our talk"];
    store.run(&save).refused(2, &["no conversation", "--file"]);
    let first = story(200);
    store.talk(&[], &first);
    let named = store.json(&save);
    assert!(
        named["title"].as_str().unwrap().starts_with("The morning"),
        "{named}"
    );
    let whole = store.talk(&[], &format!("{first}\nWhat is it?\n"));
    let later = store.talk(&["--load", "our talk"], "What is it?\n");
    let (went_on, expected) = (&later["answers"][0], &whole["answers"][1]);
    assert_eq!(went_on["generated_ids"], expected["generated_ids"]);

    let undone = store.talk(
        &[],
        &format!("{first}\nWho is there?\n/undo\nWhat is it?\n"),
    );
    let last = undone["answers"].as_array().unwrap().last().unwrap();
    assert_eq!(last["prompt_tokens"], expected["prompt_tokens"]);
    assert_eq!(last["generated_ids"], expected["generated_ids"]);
    store
        .run(&["run", "--load", "our talk"])
        .refused(2, &["chat --load"]);
}

/// `model` with a chat template that writes the date.
fn dated(folder: &Folder, model: &str) -> String {
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        let bytes = std::fs::read(format!("{model}/{name}")).unwrap();
        folder.write(&format!("dated/{name}"), bytes);
    }
    let path = format!("{model}/tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    config["chat_template"] = concat!(
        "{{ bos_token }}Today is {{ strftime_now('%d %B %Y, %H:%M') }}.",
        "{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|> {{ m['content'] }}",
        "{{ eos_token }}{% else %}<|user|> {{ m['content'] }}{% endif %}{% endfor %}",
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    .into();
    folder.write("dated/tokenizer_config.json", config.to_string());
    folder.path("dated")
}

#[test]
fn documents_keep_the_date_they_were_read_with() {
    let store = Store::new();
    let model = dated(&store.folder, STAND_IN);
    let book = store.folder.write("book.txt", story(400));
    let flags = ["--model", &model, "--file", &book];
    let ask = |more: &[&str]| {
        let ask = ["ask", "-n", "8", FALCON];
        store.json(&[&ask[..], &flags, more].concat())
    };
    // A day that will not come again, with a time of day.
    let long_ago = ["--date", "2020-02-29T17:05"];
    let first = ask(&long_ago);
    let tokens = number(&first, "prompt_tokens");
    assert_eq!(number(&first, "computed_tokens"), tokens);
    let shown = ["ask", "--print-prompt", "--json", FALCON];
    let shown = longview(&[&shown[..], &flags, &long_ago].concat()).done();
    assert!(
        shown.stdout.contains("29 February 2020, 17:05"),
        "{shown:?}"
    );

    // What is left over from whole blocks, and the question.
    let again = ask(&[]);
    assert_eq!(again["generated_ids"], first["generated_ids"]);
    assert!(number(&again, "computed_tokens") < 100, "{again}");
    let notices = again["notices"].to_string();
    assert!(notices.contains("2020-02-29T17:05:00"), "{notices}");
    let explained = store.json(&[&["explain", FALCON], &flags[..]].concat());
    assert!(number(&explained, "reused_tokens") >= 512, "{explained}");
    assert!(explained["notices"].to_string().contains("2020-02-29"));
    // Who gives a date gets it, and other documents get today's.
    let other = ask(&["--date", "2020-03-01"]);
    assert_eq!(number(&other, "reused_tokens"), 0);
    assert!(!other["notices"].to_string().contains("were read on"));
    let new = store
        .folder
        .write("new.txt", "Nothing of the kind. ".repeat(40));
    let new = store.json(&["ask", "-n", "1", "--model", &model, "--file", &new, FALCON]);
    assert!(
        !new["notices"].to_string().contains("were read on"),
        "{new}"
    );

    // Of two dates the one that was used last; by name also without the files.
    let kept = [
        "contexts", "save", "old", "--model", &model, "--file", &book,
    ];
    let kept = store.json(&kept);
    assert!(number(&kept, "computed_tokens") < 100, "{kept}");
    let loaded = ["ask", "--load", "old", "--model", &model, "-n", "8", FALCON];
    let loaded = store.json(&loaded);
    assert_eq!(loaded["prompt_tokens"], other["prompt_tokens"]);
    assert_eq!(loaded["generated_ids"], other["generated_ids"]);
}

#[test]
fn documents_whose_reading_nobody_listed_are_found_under_the_date_of_the_last_days() {
    let store = Store::new();
    let model = dated(&store.folder, STAND_IN);
    let book = store.folder.write("book.txt", story(400));
    let now = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap()
        .as_secs();
    let day = longview::text::Moment::from_unix(now.try_into().unwrap()).days_before(3);
    let ask = ["ask", "-n", "4", "--model", &model, "--file", &book, FALCON];
    let first = store.json(&[&ask[..], &["--date", &day.to_string()]].concat());
    std::fs::remove_dir_all(std::path::Path::new(&store.store).join("contexts")).unwrap();
    let again = store.json(&ask);
    assert_eq!(again["generated_ids"], first["generated_ids"]);
    assert!(number(&again, "computed_tokens") < 100, "{again}");
}

#[test]
fn a_conversation_keeps_the_date_it_began_with() {
    let store = Store::new();
    // Its words are read as they were written, which nonsense need not be.
    let reference = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/needle");
    let model = dated(&store.folder, reference);
    let flags = ["--model", &model, "--label", "talk"];
    let first = store.talk(
        &[&flags[..], &["--date", "2020-02-29"]].concat(),
        "Who are you?\n",
    );
    let first = &first["answers"][0];
    let second = store.talk(&flags, "And then?\n");
    let notices = second["notices"].to_string();
    let second = &second["answers"][0];
    let held = number(first, "prompt_tokens") + number(first, "generated_tokens");
    assert!(!notices.contains("read again"), "{notices}");
    assert!(
        number(second, "reused_tokens") + 1 >= held,
        "{first} {second}"
    );
    // The date is the conversation's; another one begins with another.
    let third = store.talk(&[&flags[..], &["--date", "2020-03-01"]].concat(), "Why?\n");
    assert!(third["notices"].to_string().contains("--date is not used"));
    let both = store.talk(
        &["--model", &model, "--load", "talk"],
        "/reset\nWho are you?\n",
    );
    assert_eq!(number(&both["answers"][0], "reused_tokens"), 0, "{both}");
}
