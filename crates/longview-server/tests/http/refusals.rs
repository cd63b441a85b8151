//! Wrong requests are told what to do.

use longview_server::ServerOptions;
use serde_json::{Value, json};

use crate::support::{Running, engine, options, words};

#[test]
fn wrong_requests_are_told_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let options = ServerOptions {
        max_body_bytes: 100_000,
        max_prompt_tokens: Some(500),
        ..options(folder.path())
    };
    let server = Running::start(engine(folder.path()), options);
    let hello = json!([{ "role": "user", "content": "hello" }]);
    let cases: Vec<(&str, Value, u16, &str, Option<&str>)> = vec![
        ("/v1/chat/completions", json!({}), 400, "messages", None),
        (
            "/v1/chat/completions",
            json!({ "messages": [] }),
            400,
            "no messages",
            Some("messages"),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": "x" }),
            400,
            "expected a sequence",
            Some("messages"),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": [{ "role": "robot", "content": "x" }] }),
            400,
            "not a role",
            Some("messages[0].role"),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": [{ "role": "user" }] }),
            400,
            "needs content",
            Some("messages[0].content"),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }] }),
            400,
            "reads text only",
            Some("messages[0].content[0].type"),
        ),
        (
            "/v1/responses",
            json!({ "input": [{ "role": "user", "content": [{ "type": "input_image", "image_url": "x" }] }] }),
            400,
            "reads text only",
            None,
        ),
        (
            "/v1/messages",
            json!({ "max_tokens": 1, "messages": [{ "role": "user", "content": [{ "type": "image", "source": {} }] }] }),
            400,
            "reads text only",
            None,
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "model": "gpt-9" }),
            404,
            "no model",
            Some("model"),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "n": 99 }),
            400,
            "from 1 to 16",
            Some("n"),
        ),
        (
            "/v1/completions",
            json!({ "prompt": "x", "echo": true, "logprobs": 21 }),
            400,
            "logprobs is 21, but at most 20",
            Some("logprobs"),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "logprobs": true, "top_logprobs": 21 }),
            400,
            "top_logprobs is 21, but at most 20",
            Some("top_logprobs"),
        ),
        (
            "/v1/completions",
            json!({ "prompt": [] }),
            400,
            "prompt is empty",
            Some("prompt"),
        ),
        (
            "/v1/completions",
            json!({ "prompt": vec!["x"; 20], "n": 7 }),
            400,
            "140 texts",
            Some("n"),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "max_tokens": 0 }),
            400,
            "at least 1",
            Some("max_tokens"),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "max_tokens": -5 }),
            400,
            "max_tokens",
            Some("max_tokens"),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "temperature": -1 }),
            400,
            "temperature",
            Some("temperature"),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "top_p": 2 }),
            400,
            "not a share",
            Some("top_p"),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "min_p": -1 }),
            400,
            "min-p",
            Some("min_p"),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "repetition_penalty": 0 }),
            400,
            "penalt",
            Some("repetition_penalty"),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "temperature": "hot" }),
            400,
            "expected f64",
            Some("temperature"),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "top_logprobs": 3 }),
            400,
            "logprobs",
            Some("top_logprobs"),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "logit_bias": { "99999999": 1 } }),
            400,
            "vocabulary",
            Some("logit_bias"),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "logit_bias": { "x": 1 } }),
            400,
            "not a token id",
            Some("logit_bias"),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "response_format": { "type": "xml" } }),
            400,
            "json_schema",
            Some("response_format.type"),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "response_format": { "type": "json_schema", "json_schema": { "schema": { "type": "nothing" } } } }),
            400,
            "schema cannot be followed",
            Some("response_format"),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "tools": [{ "type": "function" }] }),
            400,
            "needs a name",
            Some("tools[0].function.name"),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "longview": { "keep": "snapkvv" } }),
            400,
            "snapkvv",
            Some("longview.keep"),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "longview": { "kep": "all" } }),
            400,
            "did you mean \"keep\"?",
            Some("longview.kep"),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "longview": { "store": "q44" } }),
            400,
            "did you mean \"q4\"?",
            Some("longview.store"),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "longview": { "keep": "duo-attention(scores=\"/etc/passwd\")" } }),
            400,
            "names a file",
            Some("longview.keep"),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "longview": { "reuse": "shift", "keep": "knorm" } }),
            400,
            "keep knorm",
            Some("longview.reuse"),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "longview": { "reuse": "shft" } }),
            400,
            "did you mean \"shift\"?",
            Some("longview.reuse"),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "longview": { "prompt": "lazyllm" } }),
            400,
            "whole",
            Some("longview.prompt"),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "longview": { "context": "none" } }),
            404,
            "no context",
            None,
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": hello, "longview": { "memory": 10 } }),
            400,
            "allows 10",
            Some("longview.memory"),
        ),
        (
            "/v1/completions",
            json!({ "prompt": "" , "max_tokens": 1, "suffix": "x" }),
            400,
            "suffix",
            Some("suffix"),
        ),
        (
            "/v1/completions",
            json!({ "prompt": [] }),
            400,
            "empty",
            None,
        ),
        (
            "/v1/completions",
            json!({ "prompt": [4_000_000] }),
            400,
            "vocabulary",
            Some("prompt"),
        ),
        (
            "/v1/completions",
            json!({ "prompt": words(1, 300) }),
            400,
            "at most 500",
            None,
        ),
        ("/tokenize", json!({}), 400, "content", None),
        (
            "/detokenize",
            json!({ "tokens": [4_000_000] }),
            400,
            "4000000",
            None,
        ),
        (
            "/v1/contexts",
            json!({ "text": "a", "files": ["b"] }),
            400,
            "one of",
            None,
        ),
        (
            "/v1/contexts",
            json!({ "files": ["../etc/passwd"] }),
            400,
            "--folder",
            Some("files[0]"),
        ),
        ("/v1/contexts", json!({ "text": "  " }), 400, "empty", None),
        (
            "/v1/contexts",
            json!({ "text": "a", "label": "a/b" }),
            400,
            "slash",
            Some("label"),
        ),
        ("/v1/contexts/none/fork", json!({}), 404, "no context", None),
        ("/v1/nothing", json!({}), 404, "nothing at", None),
    ];
    for (path, body, status, said, param) in cases {
        let answer = server.post(path, &body);
        let (found, message, place) = answer.refusal();
        assert_eq!(found, status, "{path} {body}: {message}");
        assert!(message.contains(said), "{path} {body}: {message}");
        if let Some(param) = param {
            assert_eq!(place.as_deref(), Some(param), "{path} {body}: {message}");
        }
    }
    // Both numbers.
    let long = server.post("/v1/completions", &json!({ "prompt": words(1, 300) }));
    assert_eq!(long.json()["error"]["code"], "context_length_exceeded");
    let cut = json!({ "prompt": words(1, 300), "truncate": "middle", "max_tokens": 2 });
    let answer = server.post("/v1/completions", &cut).good();
    assert!(answer["usage"]["truncated_tokens"].as_u64().unwrap() > 0);
    assert_eq!(answer["usage"]["prompt_tokens"], 500);
    // Bodies.
    let send = |headers: &[(&str, &str)], body: &[u8]| {
        server
            .send("POST", "/v1/chat/completions", headers, body)
            .refusal()
    };
    assert_eq!(send(&[], b"{\"messages\": [").0, 400);
    assert_eq!(send(&[], b"\xff\xfe").0, 400);
    assert_eq!(send(&[], &vec![b' '; 200_000]).0, 413);
    assert_eq!(send(&[("content-type", "text/plain")], b"{}").0, 415);
    assert_eq!(send(&[("content-encoding", "gzip")], b"\x1f\x8b").0, 415);
    assert!(send(&[], b"[null, []]").1.contains("a JSON list"));
    assert_eq!(
        server
            .send("PUT", "/v1/chat/completions", &[], b"")
            .refusal()
            .0,
        405
    );
    // Fields that mean nothing are named and harmless.
    let odd = json!({ "messages": hello, "max_tokens": 1, "colour": "blue", "stream_options": { "x": 1 } });
    let answer = server.post("/v1/chat/completions", &odd);
    answer.good();
    assert_eq!(
        answer.header("x-longview-ignored-fields"),
        Some("colour, stream_options.x")
    );
}
