//! The loops that talk with a person, under a pseudo terminal.

#![cfg(target_os = "linux")]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use common::{Folder, command, story};

/// Long enough for a loaded machine; a test that fails waits this long once.
const PATIENCE: Duration = Duration::from_secs(60);

/// The program on a terminal of its own.
struct Terminal {
    child: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    /// What was shown since the last [`Terminal::wait_for`].
    shown: String,
}

impl Terminal {
    fn start(arguments: &[&str]) -> Terminal {
        let pty = nix::pty::openpty(None, None).unwrap();
        let program = command(arguments);
        // A session of its own, whose terminal this is: Ctrl-C reaches the program as from a person.
        let mut session = Command::new("setsid");
        session.args(["--ctty", "--wait"]);
        session.arg(program.get_program()).args(program.get_args());
        for (key, value) in program.get_envs() {
            match value {
                Some(value) => session.env(key, value),
                None => session.env_remove(key),
            };
        }
        let child = session
            .env("TERM", "xterm")
            .stdin(pty.slave.try_clone().unwrap())
            .stdout(pty.slave.try_clone().unwrap())
            .stderr(pty.slave)
            .spawn()
            .unwrap();
        let keyboard = File::from(pty.master);
        let mut master = keyboard.try_clone().unwrap();
        let (send, screen) = channel();
        // Ends with an error when the program has closed its side.
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = master.read(&mut bytes) {
                if send.send(bytes[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Terminal {
            child,
            keyboard,
            screen,
            shown: String::new(),
        }
    }

    /// Types a line.
    fn say(&mut self, line: &str) {
        self.press(&format!("{line}\n"));
    }

    /// Types characters as they are: `\x03` is Ctrl-C, `\x04` Ctrl-D.
    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until `text` is shown, and returns everything up to it.
    #[track_caller]
    fn wait_for(&mut self, text: &str) -> String {
        let start = Instant::now();
        loop {
            if let Some(at) = self.shown.find(text) {
                let rest = self.shown.split_off(at + text.len());
                return std::mem::replace(&mut self.shown, rest);
            }
            match self
                .screen
                .recv_timeout(PATIENCE.saturating_sub(start.elapsed()))
            {
                Ok(bytes) => self.shown.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("{text:?} was not shown, but {:?}", self.shown)
                }
            }
        }
    }

    /// Waits for the end, and returns the exit code and what was shown until then.
    fn end(mut self) -> (Option<i32>, String) {
        while let Ok(bytes) = self.screen.recv_timeout(PATIENCE) {
            self.shown.push_str(&String::from_utf8_lossy(&bytes));
        }
        let code = self.child.wait().unwrap().code();
        assert!(!self.shown.contains("panicked"), "{}", self.shown);
        (code, std::mem::take(&mut self.shown))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn ask_without_a_question_asks_for_questions() {
    let folder = Folder::new();
    let file = folder.write("story.txt", story(1000));
    let mut terminal = Terminal::start(&["ask", "--file", &file]);
    let before = terminal.wait_for("ask about the documents");
    assert!(
        before.contains("reading"),
        "a bar while reading: {before:?}"
    );
    terminal.wait_for("> ");
    terminal.say("What is the special magic number for amber falcon?");
    terminal.wait_for("48213");
    let line = terminal.wait_for(" numerics");
    assert!(line.contains("(0 reused)"), "{line}");
    terminal.wait_for("> ");
    terminal.say("What is the code of the silver kettle?");
    terminal.wait_for("5182");
    let line = terminal.wait_for(" numerics");
    assert!(!line.contains("(0 reused)"), "read once: {line}");
    terminal.wait_for("> ");
    terminal.say("");
    assert_eq!(terminal.end().0, Some(0));
}

#[test]
fn chat_keeps_a_conversation_until_it_is_told_to_end() {
    let mut terminal = Terminal::start(&["chat", "-n", "8"]);
    terminal.wait_for("talk with the model");
    terminal.wait_for("> ");
    terminal.say("Remember: jolly urchin is 264907.");
    terminal.wait_for(" numerics");
    terminal.wait_for("> ");
    terminal.say("What is jolly urchin?");
    let line = terminal.wait_for(" numerics");
    assert!(
        !line.contains("(0 reused)"),
        "the first turn is kept: {line}"
    );
    terminal.wait_for("> ");
    terminal.say("/reset");
    terminal.wait_for("> ");
    terminal.say("What is jolly urchin?");
    let line = terminal.wait_for(" numerics");
    assert!(line.contains("(0 reused)"), "begun anew: {line}");
    terminal.wait_for("> ");
    terminal.say("/exit");
    assert_eq!(terminal.end().0, Some(0));
}

#[test]
fn ctrl_c_stops_an_answer_and_not_the_conversation() {
    let mut terminal = Terminal::start(&["chat", "-n", "500000", "--ignore-eos"]);
    terminal.wait_for("> ");
    terminal.say("Once upon a time");
    // The line as the terminal echoes it, then the answer.
    terminal.wait_for("time\r\n");
    terminal.wait_for(" ");
    terminal.press("\x03");
    terminal.wait_for("Ctrl-C");
    terminal.wait_for("> ");
    terminal.press("\x04");
    assert_eq!(terminal.end().0, Some(0));
}

#[test]
fn ctrl_c_at_the_prompt_leaves() {
    let mut terminal = Terminal::start(&["chat"]);
    terminal.wait_for("> ");
    terminal.press("\x03");
    assert_eq!(terminal.end().0, Some(130));
}
