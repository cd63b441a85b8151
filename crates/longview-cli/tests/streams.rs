//! Closed pipes, full disks and Ctrl-C.

#![cfg(unix)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Folder, STAND_IN, command, longview, longview_reading, ran, story};

#[test]
fn a_reader_that_has_enough_ends_the_program_quietly() {
    let mut child = command(&[
        "run",
        "--prompt",
        "Once upon a time",
        "-n",
        "4000",
        "--ignore-eos",
    ])
    .spawn()
    .unwrap();
    let mut first = [0_u8; 1];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    // The pipe is closed here.
    let ran = ran(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(ran.stderr, "");
    let pipe = format!("{} methods | head -n 1", env!("CARGO_BIN_EXE_longview"));
    let output = Command::new("sh").args(["-c", &pipe]).output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_device_is_an_error() {
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = command(&["methods"]).stdout(full).output().unwrap();
    let ran = ran(output);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("standard output"), "{ran:?}");
}

fn interrupt(child: &std::process::Child) {
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn ctrl_c_keeps_what_was_generated_and_leaves() {
    let arguments = [
        "run",
        "--prompt",
        "Once upon a time",
        "-n",
        "200000",
        "--ignore-eos",
    ];
    let mut child = command(&arguments).spawn().unwrap();
    let mut first = [0_u8; 1];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut first).unwrap();
    interrupt(&child);
    let start = Instant::now();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    let ran = ran(child.wait_with_output().unwrap());
    assert!(start.elapsed() < Duration::from_secs(20));
    assert_eq!(ran.code, Some(130), "{ran:?}");
    assert!(rest.ends_with('\n'), "the line is ended: {rest:?}");
    assert!(
        ran.stderr.contains("Ctrl-C") && !ran.stderr.contains("panicked"),
        "{ran:?}"
    );
}

#[test]
fn ctrl_c_while_reading_says_how_far_it_came_and_keeps_it() {
    let folder = Folder::new();
    let store = folder.path("store");
    let keep = [
        "--model",
        STAND_IN,
        "--cache-dir",
        &store,
        "--cache-max",
        "1GiB",
    ];
    let ask = [&["ask", "--file", "-", "--chunk", "64", "Why?"][..], &keep].concat();
    let mut child = command(&ask).stdin(Stdio::piped()).spawn().unwrap();
    // More than a pipe holds: once it is written, the program is up and reading. Prefilling 120,000
    // tokens takes far longer than the pause.
    let text = story(120_000);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    std::thread::sleep(Duration::from_millis(1500));
    interrupt(&child);
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let ran = ran(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(130), "{line} {ran:?}");
    assert_eq!(ran.stdout, "");
    if !line.contains("tokens were read and are kept") {
        // So slow a machine that not even the model was loaded.
        assert!(line.contains("stopped"), "{line}");
        return;
    }
    let read: String = line.split(" of ").next().unwrap().replace(',', "");
    let explain = [&["explain", "--json", "--file", "-", "Why?"][..], &keep].concat();
    let kept = longview_reading(&explain, text.as_bytes()).done().json();
    assert_eq!(kept["reused_tokens"].to_string(), read, "{line}{kept}");
}

#[test]
fn a_closed_standard_output_is_no_panic() {
    for arguments in [
        &["methods"][..],
        &["models", "--json"],
        &["tokenize", "a b c"],
    ] {
        let shell = format!(
            "{} {} >&-",
            env!("CARGO_BIN_EXE_longview"),
            arguments.join(" ")
        );
        let output = Command::new("sh")
            .args(["-c", &shell])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let ran = ran(output);
        assert!(!ran.stderr.contains("panicked"), "{ran:?}");
    }
    longview(&["methods"]).done();
}

/// A limit on the size of files stands for a disk that is full: the error is that of a write.
#[test]
fn a_disk_that_fills_up_leaves_no_half_model() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/needle");
    for arguments in [
        &["quantize", model, "out.gguf", "--type", "q8_0"][..],
        &[
            "make-model",
            "--shape",
            "llama-3.2-1b",
            "--type",
            "q4_0",
            "out.gguf",
        ],
    ] {
        let folder = tempfile::tempdir().unwrap();
        let shell = "trap '' XFSZ; ulimit -f 2000; exec \"$0\" \"$@\"";
        let output = Command::new("sh")
            .args(["-c", shell, env!("CARGO_BIN_EXE_longview")])
            .args(arguments)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let ran = ran(output);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.stderr.contains("out.gguf: cannot write"), "{ran:?}");
        let left = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 0, "nothing is left behind");
    }
}
