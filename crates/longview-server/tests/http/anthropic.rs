//! Anthropic's protocol over a real socket.

use longview_server::ServerOptions;
use serde_json::{Value, json};

use crate::support::{ANSWER, DOCUMENT, QUESTION, Running, engine, options, words};

#[test]
fn anthropics_protocol_is_spoken() {
    let folder = tempfile::tempdir().unwrap();
    let options = ServerOptions {
        max_prompt_tokens: Some(600),
        ..options(folder.path())
    };
    let server = Running::start(engine(folder.path()), options);
    let request = json!({
        "max_tokens": 24,
        "system": [{ "type": "text", "text": DOCUMENT, "cache_control": { "type": "ephemeral" } }],
        "messages": [{ "role": "user", "content": [{ "type": "text", "text": QUESTION }] }]
    });
    let answer = server.post("/v1/messages", &request).good();
    assert_eq!(answer["type"], "message");
    assert_eq!(
        answer["content"],
        json!([{ "type": "text", "text": ANSWER }])
    );
    assert_eq!(answer["stop_reason"], "end_turn");
    let count = |usage: &Value, name: &str| usage[name].as_u64().unwrap();
    let usage = &answer["usage"];
    let all = |usage: &Value| {
        [
            "input_tokens",
            "cache_creation_input_tokens",
            "cache_read_input_tokens",
        ]
        .iter()
        .map(|name| count(usage, name))
        .sum::<u64>()
    };
    assert!(count(usage, "cache_creation_input_tokens") > 0);
    let counted = server.post("/v1/messages/count_tokens", &request).good();
    assert_eq!(counted["input_tokens"].as_u64(), Some(all(usage)));

    let mut streamed = request.clone();
    streamed["stream"] = json!(true);
    let events: Vec<_> = server.events("/v1/messages", &streamed).collect();
    let names: Vec<&str> = events
        .iter()
        .map(|event| event.name.as_deref().unwrap())
        .collect();
    assert_eq!(
        &names[..3],
        ["message_start", "ping", "content_block_start"]
    );
    assert_eq!(
        &names[names.len() - 3..],
        ["content_block_stop", "message_delta", "message_stop"]
    );
    let said: String = events
        .iter()
        .filter_map(|event| event.json()["delta"]["text"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(said, ANSWER);
    let delta = events[events.len() - 2].json();
    assert_eq!(delta["delta"]["stop_reason"], "end_turn");
    assert_eq!(all(&delta["usage"]), all(usage));
    // The first event says of the prompt what the last does.
    let begun = events[0].json()["message"]["usage"].clone();
    for name in ["input_tokens", "cache_read_input_tokens"] {
        assert_eq!(begun[name], delta["usage"][name], "{name}");
    }

    // A breakpoint on what a function gave: all up to there is cached, its definition included, and the prompt
    // is the same as without.
    let agent = |control: Value| {
        json!({
            "max_tokens": 2,
            "tools": [{ "name": "look_up", "description": words(5, 40), "input_schema": { "type": "object" } }],
            "messages": [
                { "role": "user", "content": QUESTION },
                { "role": "assistant", "content": [
                    { "type": "tool_use", "id": "t1", "name": "look_up", "input": { "place": "harbor" } }
                ] },
                { "role": "user", "content": [
                    { "type": "tool_result", "tool_use_id": "t1", "content": words(6, 60), "cache_control": control }
                ] }
            ]
        })
    };
    let plain = server
        .post("/v1/messages/count_tokens", &agent(Value::Null))
        .good();
    let marked = server
        .post("/v1/messages", &agent(json!({ "type": "ephemeral" })))
        .good();
    let usage = &marked["usage"];
    assert_eq!(plain["input_tokens"].as_u64(), Some(all(usage)));
    let rest = count(usage, "input_tokens");
    assert!((1..16).contains(&rest), "{usage}");

    let mut stopped = request.clone();
    stopped["stop_sequences"] = json!(["never", " of the"]);
    let answer = server.post("/v1/messages", &stopped).good();
    assert_eq!(answer["content"][0]["text"], "The code");
    assert_eq!(
        (&answer["stop_reason"], &answer["stop_sequence"]),
        (&json!("stop_sequence"), &json!(" of the"))
    );
    stopped["stream"] = json!(true);
    let events: Vec<_> = server.events("/v1/messages", &stopped).collect();
    assert_eq!(
        events[events.len() - 2].json()["delta"]["stop_sequence"],
        " of the"
    );

    let mut long = request.clone();
    long["messages"][0]["content"] = json!(words(3, 300));
    long["longview"] = json!({ "truncate": "middle" });
    let answer = server.post("/v1/messages", &long);
    assert!(answer.header("x-request-id").unwrap().starts_with("req_"));
    assert!(answer.good()["usage"]["truncated_tokens"].as_u64().unwrap() > 0);

    let refused = server.post("/v1/messages", &json!({ "messages": [], "max_tokens": 1 }));
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json()["type"], "error");
    assert_eq!(refused.json()["error"]["type"], "invalid_request_error");
    let refused = server.post(
        "/v1/messages",
        &json!({ "messages": [{ "role": "user", "content": "x" }] }),
    );
    assert!(
        refused.json()["error"]["message"]
            .as_str()
            .unwrap()
            .contains("max_tokens")
    );
}
