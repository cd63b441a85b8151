//! Bad requests and bad input: a clear message, the right exit code, never a panic.

mod common;

use common::{Folder, command, longview, longview_reading, ran, story};
#[cfg(target_os = "linux")]
use common::{as_reader, set_mode};

#[test]
fn wrong_arguments_are_refused_with_two() {
    for (arguments, words) in [
        (&["ask", "--file", "x"][..], &["no question"][..]),
        (&["ask", "Why?"], &["--file"]),
        (
            &["ask", "--file", "/no/such/book.txt", "Why?"],
            &["book.txt", "no such file"],
        ),
        (
            &["ask", "--file", "/no/such/*.txt", "Why?"],
            &["no file matches"],
        ),
        (&["ask", "--file", "/dev/null", ""], &["question is empty"]),
        (
            &["ask", "--file", "-", "--file", "-", "Why?"],
            &["once only"],
        ),
        (&["run"], &["--prompt"]),
        (&["run", "--prompt", ""], &["prompt is empty"]),
        (
            &["run", "--prompt", "x", "--model", "/no/such.gguf"],
            &["/no/such.gguf", "longview models"],
        ),
        (
            &["run", "--prompt", "x", "--memory", "lots"],
            &["not a size", "8GiB"],
        ),
        (&["run", "--prompt", "x", "--threads", "0"], &["threads"]),
        (
            &["run", "--prompt", "x", "--store", "f61"],
            &["f61", "did you mean", "f16"],
        ),
        (
            &["run", "--prompt", "x", "--keep", "snapkw"],
            &["snapkw", "did you mean \"snapkv\"?", "known: all"],
        ),
        (
            &["run", "--prompt", "x", "--keep", "snapkv(budget=20)"],
            &["is below the 0 first and 32 last", "at least 32"],
        ),
        (
            &["run", "--prompt", "x", "--read", "quesst(page=16)"],
            &["quesst", "\"quest\"", "known: dense, quest"],
        ),
        (
            &["run", "--prompt", "x", "--prefill", "dense(x=1)"],
            &["no parameter \"x\""],
        ),
        (
            &["run", "--prompt", "x", "--prompt-method", "half"],
            &["known: whole"],
        ),
        (
            &["run", "--prompt", "x", "--decode", "top-k("],
            &["--decode", "character 7"],
        ),
        (
            &["run", "--prompt", "x", "--top-p", "7"],
            &["top-p", "from 0 to 1"],
        ),
        (&["bench", "--rounds", "0"], &["--rounds 0"]),
        (
            &["bench", "--streams", "1,0"],
            &["--streams", "--generate 0"],
        ),
        (
            &["bench", "--streams", "1000000"],
            &["--streams", "from 1 to 1024"],
        ),
        (
            &[
                "quantize",
                "x",
                "y.gguf",
                "--type",
                "q8_0",
                "--threads",
                "0",
            ],
            &["--threads", "from 1 to 1024"],
        ),
        (&["bench", "--depth", "2M"], &["2097152", "1048576"]),
        (
            &["quantize", "/no/such", "out.gguf", "--type", "q4_0"],
            &["/no/such"],
        ),
        (
            &["quantize", "x", "out.gguf", "--type", "q9"],
            &["q9", "Q4_K_M"],
        ),
        (
            &["make-model", "--shape", "llama-9", "/tmp/never.gguf"],
            &["llama-9", "llama-3.2-1b"],
        ),
        (&["frobnicate"], &["frobnicate"]),
    ] {
        let ran = longview(arguments);
        assert_eq!(ran.code, Some(2), "{arguments:?}: {ran:?}");
        ran.refused(2, words);
    }
}

#[test]
fn unreadable_documents_are_named_with_place_and_remedy() {
    let folder = Folder::new();
    for (name, bytes, words) in [
        (
            "latin.txt",
            &b"caf\xe9"[..],
            &["latin.txt", "byte 3", "iconv"][..],
        ),
        ("paper.pdf", b"%PDF-1.7", &["paper.pdf", "PDF", "pdftotext"]),
        (
            "letter.docx",
            b"PK\x03\x04...word/",
            &["letter.docx", "pandoc"],
        ),
        ("page.html", b"<html>", &["page.html", "HTML"]),
        ("program", b"\x7fELF\0\0", &["program", "binary"]),
        ("empty.txt", b"", &["empty.txt", "empty"]),
    ] {
        let path = folder.write(name, bytes);
        longview(&["ask", "--file", &path, "Why?"]).refused(2, words);
    }
    let bad = folder.write("questions.txt", b"Why?\nW\xff?");
    let book = folder.write("book.txt", "A book.");
    longview(&["ask", "--file", &book, "--questions", &bad])
        .refused(2, &["questions.txt", "byte 6"]);
    longview_reading(&["run", "--prompt-file", "-"], b"a\xffb").refused(2, &["byte 1"]);
    std::fs::create_dir(folder.path("nothing")).unwrap();
    longview(&["ask", "--file", &folder.path("nothing"), "Why?"]).refused(2, &["no text found"]);
    longview(&["ask", "--file", &format!("{book}/x"), "Why?"])
        .refused(2, &["book.txt/x", "a part of this path is a file"]);
    longview(&["ask", "--file", &format!("{book}/*"), "Why?"]).refused(2, &["no file matches"]);
}

#[cfg(unix)]
#[test]
fn variables_that_are_not_utf_8_are_not_passed_over() {
    use std::os::unix::ffi::OsStrExt;
    for name in ["LONGVIEW_CACHE_MAX", "LONGVIEW_CACHE_REMOTE"] {
        let mut command = command(&["run", "--prompt", "x"]);
        command.env(name, std::ffi::OsStr::from_bytes(b"10GiB\xe9"));
        // The first is asked for before the second.
        if name == "LONGVIEW_CACHE_REMOTE" {
            command.env("LONGVIEW_CACHE_MAX", "1GiB");
        }
        ran(command.output().unwrap()).refused(2, &[name, "not UTF-8"]);
    }
}

#[test]
fn models_that_are_none_are_refused() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("empty")).unwrap();
    let run = |model: &str| longview(&["run", "--prompt", "x", "--model", model]);
    let ran = run(&folder.path("empty"));
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stderr.contains("the folder is empty"), "{ran:?}");
    let torn = folder.write(
        "torn.gguf",
        b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
    );
    let ran = run(&torn);
    assert!(
        ran.code == Some(2) && ran.stderr.contains("torn.gguf"),
        "{ran:?}"
    );
    let text = folder.write("model.gguf", b"not a model at all");
    let ran = run(&text);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(
        ran.stderr.contains("not a GGUF file") && !ran.stderr.contains("panicked"),
        "{ran:?}"
    );
}

#[test]
fn a_prompt_longer_than_the_context_is_refused_with_both_numbers() {
    let folder = Folder::new();
    // The reference model reads 1,048,576 tokens: digits are tokenised one by one.
    let book = folder.write("digits.txt", "7".repeat(1_050_000));
    let ran = longview(&["ask", "--file", &book, "Why?"]);
    ran.refused(2, &["1048576", "10500", "shorter documents"]);
}

#[test]
fn what_does_not_fit_the_memory_is_refused_with_a_table() {
    let folder = Folder::new();
    let book = folder.write("book.txt", story(300));
    longview(&["ask", "--file", &book, "--memory", "1MiB", "Why?"])
        .refused(2, &["weights", "total", "does not fit"]);
    // What memory has no room for goes to disk, and that is said before work starts.
    let plan = ["--planned-tokens", "900k", "-n", "1"];
    let ran = longview(&[&["run", "--prompt", "x", "--memory", "300MiB"][..], &plan].concat());
    let ran = ran.done();
    assert!(ran.stderr.contains("on disk and read back"), "{ran:?}");
    longview(&["ask", "--file", &book, "--memory", "1GiB", "Why?"]).done();
}

#[test]
fn a_text_that_cannot_be_tokenised_in_the_memory_is_refused_before_it_is() {
    let folder = Folder::new();
    let library = folder.write("library.txt", "Nothing is written here. ".repeat(1 << 20));
    let words = ["25.0 MiB", "turned into tokens", "--memory"];
    for arguments in [
        &["ask", "--file", &library, "Why?"][..],
        &["run", "--prompt-file", &library],
        &["eval", "perplexity", "--file", &library],
    ] {
        longview(&[arguments, &["--memory", "300MiB"]].concat()).refused(2, &words);
    }
}

#[test]
fn output_files_are_not_overwritten_and_folders_must_exist() {
    let folder = Folder::new();
    let taken = folder.write("taken.gguf", "something dear");
    let make = |path: &str| longview(&["make-model", "--shape", "llama-3.2-1b", path]);
    make(&taken).refused(2, &["taken.gguf", "--force"]);
    assert_eq!(std::fs::read(&taken).unwrap(), b"something dear");
    make(&folder.path("no/such/out.gguf")).refused(2, &["no such folder"]);
    // Hours later would be late to find out.
    let results = folder.path("results");
    let page = folder.path("no/such/page.md");
    longview(&["eval", "leaderboard", "--output", &results, "--page", &page])
        .refused(2, &["no such folder"]);
}

#[test]
fn a_batch_loses_neither_its_requests_nor_earlier_answers() {
    let folder = Folder::new();
    let requests = folder.write("requests.jsonl", "{}\n");
    let answers = folder.write("answers.jsonl", "yesterday's");
    let batch = |flags: &[&str]| longview(&[&["batch", &requests][..], flags].concat());
    let beside = folder.path("./requests.jsonl");
    for itself in [&requests, &beside] {
        batch(&["--output", itself, "--force"]).refused(2, &["requests.jsonl", "another file"]);
    }
    batch(&["--output", &answers]).refused(2, &["answers.jsonl", "--force"]);
    // A request that is wrong in another way changes nothing either.
    let typo = ["--output", &answers, "--force", "--model", "/no/such.gguf"];
    batch(&typo).refused(2, &["/no/such.gguf"]);
    assert_eq!(std::fs::read(&requests).unwrap(), b"{}\n");
    assert_eq!(std::fs::read(&answers).unwrap(), b"yesterday's");
    let ran = batch(&["--output", &answers, "--force"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let written = std::fs::read_to_string(&answers).unwrap();
    assert!(
        !written.contains("yesterday") && written.contains("error"),
        "{written}"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn where_nothing_may_be_written_is_said_before_the_work() {
    let folder = Folder::new();
    let requests = folder.write("requests.jsonl", "{}\n");
    let taken = folder.write("taken.gguf", "something dear");
    let (locked, report) = (folder.path("locked"), folder.path("locked/report"));
    std::fs::create_dir(&locked).unwrap();
    set_mode(folder.path("").as_ref(), 0o755);
    set_mode(locked.as_ref(), 0o555);
    set_mode(taken.as_ref(), 0o444);
    let needle = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../models/needle/needle-f16.gguf"
    );
    let out = folder.path("locked/out");
    for arguments in [
        &["make-model", "--shape", "llama-3.2-1b", &out][..],
        &["quantize", needle, &out, "--type", "q8_0"],
        &["quantize", needle, &taken, "--type", "q8_0", "--force"],
        &["batch", &requests, "--output", &out],
        &["calibrate", "--output", &out],
        &["eval", "leaderboard", "--output", &report, "--page", &out],
        &[
            "eval",
            "vt",
            "--output",
            &report,
            "--samples",
            "1",
            "--lengths",
            "500",
        ],
    ] {
        let Some(ran) = as_reader(command(arguments)) else {
            return;
        };
        ran.refused(2, &["no permission"]);
    }
    assert_eq!(std::fs::read_dir(&locked).unwrap().count(), 0);
    assert_eq!(std::fs::read(&taken).unwrap(), b"something dear");
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_are_no_documents() {
    let folder = Folder::new();
    folder.write("notes/a.txt", "The code of the harbor is 4711.");
    let pipe = folder.path("notes/pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    for path in [pipe.as_str(), "/dev/zero"] {
        longview(&["ask", "--file", path, "Why?"]).refused(2, &[path, "a pipe or a device"]);
    }
    let all = folder.path("notes/*");
    let question = "What is the code of the harbor?";
    let ran = longview(&["ask", "--file", &all, question]).done();
    assert_eq!(ran.stdout, "The code of the harbor is 4711.\n");
    assert!(ran.stderr.contains(&pipe), "{ran:?}");
    longview_reading(&["chat"], b"a\xffb\n").refused(2, &["standard input", "not UTF-8"]);
}

#[test]
fn a_vocabulary_alone_is_only_good_for_tokenize() {
    let vocabulary = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../longview-text/tests/fixtures/vocab/ggml-vocab-gpt-2.gguf"
    );
    for arguments in [&["run", "--prompt", "x"][..], &["doctor"]] {
        longview(&[arguments, &["--model", vocabulary]].concat())
            .refused(2, &["a vocabulary and no tensors", "longview tokenize"]);
    }
    longview(&["tokenize", "--model", vocabulary, "a b"]).done();
}

#[test]
fn architectures_and_tokens_that_are_unknown_are_refused() {
    let folder = Folder::new();
    let reference = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/needle");
    let config = std::fs::read_to_string(format!("{reference}/config.json")).unwrap();
    for name in ["tokenizer.json", "model.safetensors"] {
        let bytes = std::fs::read(format!("{reference}/{name}")).unwrap();
        folder.write(&format!("model/{name}"), bytes);
    }
    folder.write("model/config.json", config.replace("\"llama\"", "\"lama\""));
    longview(&["run", "--prompt", "x", "--model", &folder.path("model")])
        .refused(2, &["unknown architecture", "lama"]);
    for bias in [
        &["--logit-bias", "4096=1"][..],
        &["--decode", "logit-bias(4096=1), greedy"],
    ] {
        longview(&[&["run", "--prompt", "x"], bias].concat()).refused(2, &["4096", "0 to 4095"]);
    }
    let ran = longview(&["quantize", "nofile", "out.gguf", "--type", "q8_0"]);
    let ran = ran.refused(2, &["longview: nofile: there is no such file"]);
    assert!(!ran.stderr.contains("--model"), "{ran:?}");
}
