//! `longview serve` and `longview batch` as processes.

#![cfg(unix)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use common::{command, longview};
use serde_json::{Value, json};

/// A server of its own, which ends with the test.
struct Served {
    child: Child,
    address: String,
}

impl Served {
    fn start(arguments: &[&str]) -> Served {
        let all = [&["--json", "serve", "--port", "0"], arguments].concat();
        let mut child = command(&all).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.as_mut().unwrap());
        let mut text = String::new();
        let started: Value = loop {
            assert!(lines.read_line(&mut text).unwrap() > 0, "no server: {text}");
            if let Ok(value) = serde_json::from_str(&text) {
                break value;
            }
        };
        let url = started["urls"][0].as_str().unwrap();
        Served {
            address: url.strip_prefix("http://").unwrap().to_owned(),
            child,
        }
    }

    fn post(&self, path: &str, body: &Value) -> (String, Value) {
        let body = body.to_string();
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let status = text.split(' ').nth(1).unwrap().to_owned();
        let body = text.split("\r\n\r\n").nth(1).unwrap();
        (status, serde_json::from_str(body).unwrap_or_default())
    }

    fn terminate(&mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        let killed = Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        assert!(killed.success());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_server_says_what_run_says_and_keeps_what_it_read() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().to_str().unwrap();
    let mut server = Served::start(&[
        "--cache-dir",
        cache,
        "--cache-max",
        "1GiB",
        "--memory",
        "1GiB",
    ]);
    let prompt = "Once upon a time there was a king who had three daughters. ".repeat(20);
    let body =
        json!({ "prompt": prompt, "max_tokens": 24, "seed": 5, "temperature": 0.8, "top_p": 0.9 });
    let (status, answer) = server.post("/v1/completions", &body);
    assert_eq!(status, "200", "{answer}");
    let text = answer["choices"][0]["text"].as_str().unwrap();
    assert_eq!(server.terminate(), Some(0));

    let flags = [
        "run",
        "--json",
        "-n",
        "24",
        "--seed",
        "5",
        "--temperature",
        "0.8",
        "--top-p",
        "0.9",
    ];
    let run = longview(
        &[
            &flags[..],
            &[
                "--cache-dir",
                cache,
                "--cache-max",
                "1GiB",
                "--prompt",
                &prompt,
            ],
        ]
        .concat(),
    );
    let run: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(run["answer"], text);
    // What the server read is there after its end.
    assert!(run["reused_tokens"].as_u64().unwrap() > 200, "{run}");
}

#[test]
fn beyond_this_machine_it_wants_keys() {
    let refused = longview(&["serve", "--host", "0.0.0.0", "--port", "0"]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("--api-keys"), "{refused:?}");
    let refused = longview(&["serve", "--api-keys", "/nowhere/keys"]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
}

#[test]
fn a_file_of_requests_is_answered_line_by_line() {
    let folder = tempfile::tempdir().unwrap();
    let (requests, answers) = (
        folder.path().join("in.jsonl"),
        folder.path().join("out.jsonl"),
    );
    let shared = "The code of the harbor is 4711. The sea was grey. ".repeat(20);
    let line = |id: &str, body: Value| {
        json!({ "custom_id": id, "method": "POST", "url": "/v1/completions", "body": body })
            .to_string()
    };
    let good: Vec<String> = (0..4)
        .map(|at| {
            line(
                &at.to_string(),
                json!({ "prompt": format!("{shared}{at}"), "max_tokens": 3, "temperature": 0 }),
            )
        })
        .collect();
    std::fs::write(&requests, good.join("\n")).unwrap();
    let paths = [
        requests.to_str().unwrap(),
        "--output",
        answers.to_str().unwrap(),
    ];
    let batch = longview(&[&["--json", "batch", "--cache-max", "0"], &paths[..]].concat());
    assert_eq!(batch.code, Some(0), "{batch:?}");
    let summary: Value = serde_json::from_str(&batch.stdout).unwrap();
    assert_eq!(
        (
            summary["completed"].as_u64(),
            summary["generated_tokens"].as_u64()
        ),
        (Some(4), Some(12))
    );
    assert!(
        summary["reused_tokens"].as_u64().unwrap() >= 3 * 200,
        "{summary}"
    );
    let text = std::fs::read_to_string(&answers).unwrap();
    let mut ids: Vec<String> = text
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["custom_id"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    ids.sort();
    assert_eq!(ids, ["0", "1", "2", "3"]);

    // One that fails is told of, by its line and by the exit code.
    std::fs::write(&requests, line("x", json!({ "prompt": 3 }))).unwrap();
    let batch = longview(&[&["batch", "--cache-max", "0"], &paths[..1]].concat());
    assert_eq!(batch.code, Some(1), "{batch:?}");
    assert!(batch.stdout.contains("\"status_code\":400"), "{batch:?}");
}
