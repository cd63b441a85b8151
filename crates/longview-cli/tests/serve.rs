//! `longview serve` and `longview batch` as processes.

#![cfg(unix)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use common::{STAND_IN, command, longview};
use serde_json::{Value, json};

/// A server of its own, which ends with the test.
struct Served {
    child: Child,
    address: String,
}

impl Served {
    fn start(arguments: &[&str]) -> Served {
        Served::start_as(command, arguments)
    }

    /// The same by a program that `program` makes of the arguments.
    fn start_as(program: impl FnOnce(&[&str]) -> Command, arguments: &[&str]) -> Served {
        let all = [&["--json", "serve", "--port", "0"], arguments].concat();
        let mut child = program(&all).stdout(Stdio::piped()).spawn().unwrap();
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

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let host = &self.address;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
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

/// Tokens of a prompt that a server has said to have read when it is killed are there for the next one, but
/// for the block that was being filled.
#[test]
fn a_killed_server_loses_at_most_the_unfinished_block() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = [
        "--model",
        STAND_IN,
        "--cache-dir",
        folder.path().to_str().unwrap(),
        "--cache-max",
        "1GiB",
        "--memory",
        "1GiB",
    ];
    let mut server = Served::start(&arguments);
    let prompt = "Once upon a time there was a king who had three daughters. ".repeat(300);
    let mut body = json!({
        "prompt": prompt, "max_tokens": 2, "temperature": 0, "stream": true, "longview": { "progress": true }
    });
    let mut stream = TcpStream::connect(&server.address).unwrap();
    let text = body.to_string();
    write!(
        stream,
        "POST /v1/completions HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: \
         application/json\r\ncontent-length: {}\r\n\r\n{text}",
        server.address,
        text.len()
    )
    .unwrap();
    let done = BufReader::new(stream)
        .lines()
        .filter_map(|line| {
            let chunk: Value = serde_json::from_str(line.unwrap().strip_prefix("data: ")?).ok()?;
            chunk["longview"]["progress"]["done_tokens"].as_u64()
        })
        .find(|&done| done >= 2000)
        .unwrap();
    server.child.kill().unwrap();
    server.child.wait().unwrap();

    let server = Served::start(&arguments);
    body["stream"] = json!(false);
    let (status, answer) = server.post("/v1/completions", &body);
    assert_eq!(status, "200", "{answer}");
    let usage = &answer["usage"];
    let reused = usage["prompt_tokens_details"]["cached_tokens"]
        .as_u64()
        .unwrap();
    assert!(
        reused + 64 > done && reused < usage["prompt_tokens"].as_u64().unwrap(),
        "{reused} of {done}"
    );
}

/// As many connections as this process may have, up to ten thousand, that say nothing.
#[test]
fn idle_connections_by_the_thousand_hold_nobody_up() {
    let server = Served::start(&["--cache-max", "0"]);
    let limit = nix::sys::resource::Resource::RLIMIT_NOFILE;
    let (_, most) = nix::sys::resource::getrlimit(limit).unwrap();
    nix::sys::resource::setrlimit(limit, most, most).unwrap();
    // Other tests of this process need some as well.
    let count = usize::try_from(most.saturating_sub(500))
        .unwrap()
        .min(10_000);
    println!("{count} idle connections (this process may have {most} files open)");
    let connect = |_| TcpStream::connect(&server.address).unwrap();
    let idle: Vec<TcpStream> = (0..count).map(connect).collect();
    let body = json!({ "prompt": "one two three", "max_tokens": 4, "temperature": 0 });
    let (status, answer) = server.post("/v1/completions", &body);
    assert_eq!(status, "200", "{answer}");
    assert!(server.get("/health").starts_with("HTTP/1.1 200"));
    // They are still there, and one of them may ask.
    let mut last = idle.last().unwrap();
    let host = &server.address;
    write!(
        last,
        "GET /health HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    last.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    drop(idle);
    let (status, again) = server.post("/v1/completions", &body);
    assert_eq!(
        (status.as_str(), &again["choices"]),
        ("200", &answer["choices"])
    );
}

/// A disk on which no file may grow beyond a few kilobytes stands for one that is full.
#[test]
fn a_full_disk_costs_time_and_is_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let cache = cache.to_str().unwrap();
    let said = folder.path().join("said");
    let limited = |serve: &[&str]| {
        let mut shell = Command::new("sh");
        shell.stderr(std::fs::File::create(&said).unwrap());
        // Blocks of 512 bytes or of 1024, by shell.
        shell.args([
            "-c",
            "trap '' XFSZ; ulimit -f 64; exec \"$@\"",
            "sh",
            env!("CARGO_BIN_EXE_longview"),
        ]);
        shell.args(serve);
        shell
    };
    let mut server = Served::start_as(
        limited,
        &[
            "--model",
            STAND_IN,
            "--cache-dir",
            cache,
            "--cache-max",
            "1GiB",
            "--memory",
            "1GiB",
        ],
    );
    let prompt = "Once upon a time there was a king who had three daughters. ".repeat(200);
    let body = json!({ "prompt": prompt, "max_tokens": 8, "temperature": 0 });
    let (status, first) = server.post("/v1/completions", &body);
    assert_eq!(status, "200", "{first}");
    let (status, second) = server.post("/v1/completions", &body);
    assert_eq!(
        (status.as_str(), &second["choices"]),
        ("200", &first["choices"])
    );
    // What could not be written is in memory, as long as there is room.
    let reused = &second["usage"]["prompt_tokens_details"]["cached_tokens"];
    assert!(reused.as_u64().unwrap() > 1000, "{second}");
    let made = json!({ "text": prompt, "label": "king" });
    let (status, made) = server.post("/v1/contexts", &made);
    assert_eq!(status, "202", "{made}");
    let file = "x".repeat(200_000);
    let form =
        format!("--b\r\ncontent-disposition: form-data; name=\"file\"\r\n\r\n{file}\r\n--b--\r\n");
    let mut stream = TcpStream::connect(&server.address).unwrap();
    write!(
        stream,
        "POST /v1/files HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: multipart/form-data; \
         boundary=b\r\ncontent-length: {}\r\n\r\n{form}",
        server.address,
        form.len()
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(
        text.starts_with("HTTP/1.1 507") && text.contains("make room"),
        "{text}"
    );
    let (status, third) = server.post("/v1/completions", &body);
    assert_eq!(
        (status.as_str(), &third["choices"]),
        ("200", &first["choices"])
    );
    // That what was read is not kept is said at the end.
    server.terminate();
    let said = std::fs::read_to_string(&said).unwrap();
    assert!(
        said.contains("note: ") && said.contains("File too large"),
        "{said}"
    );
}
