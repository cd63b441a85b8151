//! Answers that follow schemas, and calls of functions.

use serde_json::{Value, json};

use crate::support::Running;

#[test]
fn answers_follow_schemas_and_calls_are_made() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::usual(folder.path());
    let user = json!([{ "role": "user", "content": "What is the code of the harbor?" }]);
    let schema = json!({
        "type": "object",
        "properties": {
            "code": { "type": "integer", "minimum": 0, "maximum": 99 },
            "place": { "enum": ["harbor", "tower"] }
        },
        "required": ["code", "place"],
        "additionalProperties": false
    });
    let request = json!({
        "messages": user, "max_tokens": 60, "n": 3, "temperature": 1.5, "seed": 1,
        "response_format": { "type": "json_schema", "json_schema": { "name": "x", "schema": schema } }
    });
    let answer = server.post("/v1/chat/completions", &request).good();
    for choice in answer["choices"].as_array().unwrap() {
        let text = choice["message"]["content"].as_str().unwrap();
        let value: Value = serde_json::from_str(text).unwrap_or_else(|_| panic!("{text}"));
        assert!(value["code"].as_u64().unwrap() <= 99);
        assert!(["harbor", "tower"].contains(&value["place"].as_str().unwrap()));
        assert_eq!(choice["finish_reason"], "stop");
    }

    let tools = json!([{ "type": "function", "function": {
        "name": "look_up", "description": "Looks a place up",
        "parameters": {
            "type": "object", "properties": { "place": { "enum": ["harbor", "tower"] } },
            "required": ["place"], "additionalProperties": false
        }
    } }]);
    let forced = json!({
        "messages": user, "max_tokens": 60, "tools": tools,
        "tool_choice": { "type": "function", "function": { "name": "look_up" } }
    });
    let answer = server.post("/v1/chat/completions", &forced).good();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(
        (call["type"].as_str(), call["function"]["name"].as_str()),
        (Some("function"), Some("look_up"))
    );
    let arguments: Value =
        serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    assert!(arguments["place"].is_string());

    let mut streamed = forced.clone();
    streamed["stream"] = json!(true);
    let mut calls = Vec::new();
    let mut reasons = Vec::new();
    for event in server.events("/v1/chat/completions", &streamed) {
        if event.data == "[DONE]" {
            continue;
        }
        let choice = event.json()["choices"][0].clone();
        calls.extend(
            choice["delta"]["tool_calls"]
                .as_array()
                .cloned()
                .unwrap_or_default(),
        );
        reasons.extend(choice["finish_reason"].as_str().map(str::to_owned));
    }
    assert_eq!((calls.len(), reasons), (1, vec!["tool_calls".to_owned()]));
    assert_eq!(calls[0]["function"]["name"], "look_up");
    assert_eq!(calls[0]["index"], 0);

    let anthropic = json!({
        "messages": user, "max_tokens": 60,
        "tools": [{ "name": "look_up", "input_schema": tools[0]["function"]["parameters"] }],
        "tool_choice": { "type": "any" }
    });
    let answer = server.post("/v1/messages", &anthropic).good();
    assert_eq!(answer["stop_reason"], "tool_use");
    assert_eq!(answer["content"][0]["type"], "tool_use");
    assert!(answer["content"][0]["input"]["place"].is_string());

    // The result of a call goes on in a conversation.
    let turns = json!([
        { "role": "user", "content": "What is the code?" },
        { "role": "assistant", "tool_calls": [call] },
        { "role": "tool", "tool_call_id": call["id"], "content": "4711" }
    ]);
    let request = json!({ "messages": turns, "max_tokens": 2, "tools": tools });
    server.post("/v1/chat/completions", &request).good();
}
