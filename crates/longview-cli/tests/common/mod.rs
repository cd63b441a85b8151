//! Running the real program, on the reference model inside it or on its stand-in.
#![allow(dead_code, reason = "every test file uses another part")]

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A model of the reference model's tokenizer and keys and values (2 KiB a token), of small random matrices: for
/// tests that count, compare or measure, and ask nothing of what an answer says.
pub(crate) const STAND_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/stand-in");

/// What a run of the program left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A folder of a test's own.
pub(crate) struct Folder(tempfile::TempDir);

impl Ran {
    /// The run, which must have been successful.
    #[track_caller]
    pub(crate) fn done(self) -> Ran {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// The run, which must have been refused with this exit code and these words.
    #[track_caller]
    pub(crate) fn refused(self, code: i32, words: &[&str]) -> Ran {
        assert_eq!(self.code, Some(code), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in {self:?}");
        }
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        self
    }

    /// Standard output as one JSON object.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        let value: Value = serde_json::from_str(&self.stdout).expect("standard output is JSON");
        assert!(value.is_object());
        value
    }
}

impl Folder {
    pub(crate) fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::create_dir_all(PathBuf::from(&path).parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }
}

/// The program with arguments, not started. It sees no models of the user, and keeps nothing unless
/// the arguments say where.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longview"));
    command
        .args(arguments)
        .env_remove("HF_HOME")
        .env_remove("HF_HUB_CACHE")
        .env_remove("OLLAMA_MODELS")
        .env_remove("LONGVIEW_CACHE_REMOTE")
        .env("LONGVIEW_CACHE_DIR", env!("CARGO_TARGET_TMPDIR"))
        .env("LONGVIEW_CACHE_MAX", "0")
        .env("HOME", "/nonexistent")
        .env("XDG_CACHE_HOME", "/nonexistent")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The program as a user who may only read, where this test may do everything.
#[cfg(target_os = "linux")]
pub(crate) fn as_reader(mut command: Command) -> Option<Ran> {
    use std::os::unix::process::CommandExt;
    if nix::unistd::Uid::effective().is_root() {
        command.uid(65_534).gid(65_534);
    }
    match command.output() {
        Ok(output) => Some(ran(output)),
        // The folder of the program itself may not be entered.
        Err(error) => {
            println!("skipped: the program cannot be run as another user: {error}");
            None
        }
    }
}

/// Says who may do what with a file or a folder.
#[cfg(target_os = "linux")]
pub(crate) fn set_mode(path: &std::path::Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Runs the program to its end.
pub(crate) fn longview(arguments: &[&str]) -> Ran {
    ran(command(arguments).output().unwrap())
}

/// Runs the program to its end with text on its standard input.
pub(crate) fn longview_reading(arguments: &[&str], input: &[u8]) -> Ran {
    let mut child = command(arguments).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A program that refuses early may close its end: that is its right.
    let _ = stdin.write_all(input);
    drop(stdin);
    ran(child.wait_with_output().unwrap())
}

pub(crate) fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("standard output is UTF-8"),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A text of about `tokens` tokens of the reference model, with facts planted a third and two thirds
/// into it.
pub(crate) fn story(tokens: usize) -> String {
    let sentences = [
        "The morning was grey and the road to the village lay empty before them. ",
        "Nobody had expected the letter, and least of all the old man who received it. ",
        "She walked along the river until the lights of the town were out of sight. ",
        "There was a long silence, broken only by the ticking of the clock upon the wall. ",
        "He had seen many winters in that house, and none had been as cold as this one. ",
    ];
    let mut text = String::new();
    let count = tokens / 17 + 3;
    for index in 0..count {
        if index == count / 3 {
            text.push_str("The special magic number for amber falcon is 48213. ");
        }
        if index == 2 * count / 3 {
            text.push_str("The code of the silver kettle is 5182. ");
        }
        text.push_str(sentences[(index * 7 + index / 5) % sentences.len()]);
    }
    text
}
