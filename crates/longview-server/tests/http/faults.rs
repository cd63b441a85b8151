//! What goes wrong around a server costs time, not answers.

use std::io::{Seek, SeekFrom, Write};

use longview::{Engine, EngineOptions, ModelSource};
use serde_json::json;

use crate::support::{ANSWER, QUESTION, Running, ask, options, text, words};

#[test]
fn slow_readers_and_idle_connections_hold_nobody_up() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::usual(folder.path());
    let idle: Vec<_> = (0..200)
        .map(|_| std::net::TcpStream::connect(server.address).unwrap())
        .collect();
    // More than sockets hold, and nobody reads it.
    let slow = json!({
        "prompt": "one two three", "max_tokens": 600, "n": 4, "ignore_eos": true, "temperature": 1,
        "logprobs": 20, "stream": true
    });
    let unread = server.events("/v1/completions", &slow);
    let answer = server.post("/v1/chat/completions", &ask(QUESTION)).good();
    assert_eq!(text(&answer), ANSWER);
    server.rest();
    let mut tokens = 0;
    for event in unread.filter(|event| event.data != "[DONE]") {
        let choice = event.json()["choices"][0].clone();
        tokens += choice["logprobs"]["tokens"].as_array().map_or(0, Vec::len);
    }
    assert_eq!(tokens, 4 * 600);
    drop(idle);
}

#[test]
fn a_store_deleted_under_the_server_costs_time_only() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Running::stand_in(folder.path());
    let request = json!({ "prompt": words(21, 700), "max_tokens": 6, "temperature": 0 });
    let before = server.post("/v1/completions", &request).good();
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let gone = match path.is_dir() {
            true => std::fs::remove_dir_all(&path),
            false => std::fs::remove_file(&path),
        };
        gone.unwrap();
    }
    server.post("/v1/cache/drop", &json!({})).good();
    let after = server.post("/v1/completions", &request).good();
    assert_eq!(after["choices"][0]["text"], before["choices"][0]["text"]);
    let again = server.post("/v1/completions", &request).good();
    assert_eq!(again["choices"][0]["text"], before["choices"][0]["text"]);
    // That what was read could not be kept is said at the end.
    server.stop();
    let error = server.wait().unwrap_err();
    assert!(error.contains("No such file"), "{error}");
}

#[test]
fn a_model_that_is_replaced_is_none_of_the_servers_affair_and_one_that_is_overwritten_is_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let original = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../models/needle/needle-f16.gguf"
    );
    std::fs::copy(original, &path).unwrap();
    let engine = Engine::open(&EngineOptions {
        model: ModelSource::Path(path.clone()),
        threads: Some(2),
        ..EngineOptions::default()
    });
    let cache = folder.path().join("cache");
    let server = Running::start(engine.unwrap(), options(&cache));
    let answer = || server.post("/v1/chat/completions", &ask(QUESTION));
    assert_eq!(text(&answer().good()), ANSWER);
    // As programs do that download a model: the file that is open stays what it was.
    let new = folder.path().join("new");
    std::fs::write(&new, "no model at all").unwrap();
    let kept = folder.path().join("kept");
    std::fs::hard_link(&path, &kept).unwrap();
    std::fs::rename(&new, &path).unwrap();
    assert_eq!(text(&answer().good()), ANSWER);
    assert_eq!(server.get("/ready").status, 200);
    // Written into, it is neither the old model nor a new one.
    let mut file = std::fs::File::options().write(true).open(&kept).unwrap();
    file.seek(SeekFrom::Start(14_000_000)).unwrap();
    file.write_all(&[0; 4096]).unwrap();
    for refused in [answer(), server.get("/ready")] {
        let (status, message, _) = refused.refusal();
        assert_eq!(status, 503);
        assert!(
            message.contains("was changed while") && message.contains("model.gguf"),
            "{message}"
        );
    }
    assert_eq!(server.get("/health").status, 200);
}
