//! Contexts as things with names, Anthropic's protocol, calls of functions and answers by schema.

mod support;

use std::time::{Duration, Instant};

use longview_server::ServerOptions;
use serde_json::{Value, json};
use support::{Running, engine, options};

const DOCUMENT: &str =
    "The code of the harbor is 4711. The sea was grey. The code of the tower is 88.";
const QUESTION: &str = "What is the code of the harbor?";
const ANSWER: &str = "The code of the harbor is 4711.";

/// A document so long, with one fact in it.
fn long_document(sentences: usize) -> String {
    let grey = "The sea was grey and the gulls were loud that day. ";
    let half = grey.repeat(sentences / 2);
    format!("{half}The code of the harbor is 4711. {half}")
}

fn ask(server: &Running, context: &str, question: &str) -> Value {
    let request = json!({
        "messages": [{ "role": "user", "content": question }], "max_tokens": 24,
        "longview": { "context": context }
    });
    server.post("/v1/chat/completions", &request).good()
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

/// Waits until a context is read, or reading has ended otherwise.
fn settled(server: &Running, id: &str) -> Value {
    let begun = Instant::now();
    loop {
        let shown = server.get(&format!("/v1/contexts/{id}")).good();
        match shown["status"].as_str().unwrap() {
            "queued" | "reading" => assert!(begun.elapsed() < Duration::from_secs(60)),
            _ => return shown,
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_context_is_made_asked_forked_grown_and_found_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Running::usual(folder.path());
    let create = json!({ "text": DOCUMENT, "label": "harbor", "title": "A harbor" });
    let answer = server.post("/v1/contexts", &create);
    assert_eq!(answer.status, 202);
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    let mut last = None;
    for event in server.get_events(&format!("/v1/contexts/{id}/events")) {
        last = event.name.clone();
        assert!(event.json()["done_tokens"].as_u64() <= event.json()["total_tokens"].as_u64());
    }
    assert_eq!(last.as_deref(), Some("done"));
    let shown = settled(&server, "harbor");
    assert_eq!(shown["status"], "ready");
    assert_eq!(shown["read_tokens"], shown["tokens"]);
    assert!(shown["bytes"].as_u64().unwrap() > 0);
    assert!(shown["bytes_by_tier"]["memory"].as_u64().unwrap() > 0);

    // All of it but the last token of the prompt is there: nothing of the document is computed.
    let answer = ask(&server, "harbor", QUESTION);
    assert_eq!(text(&answer), ANSWER);
    let reused = answer["longview"]["reused_tokens"].as_u64().unwrap();
    assert_eq!(Some(reused), shown["tokens"].as_u64());
    // What a system message says comes after the context.
    let request = json!({
        "messages": [{ "role": "system", "content": "" }, { "role": "user", "content": QUESTION }],
        "max_tokens": 24, "longview": { "context": id }
    });
    let again = server.post("/v1/chat/completions", &request).good();
    assert_eq!(again["longview"]["reused_tokens"], reused);

    let fork = server.post("/v1/contexts/harbor/fork", &json!({ "label": "more" }));
    assert_eq!(fork.status, 201);
    assert_eq!(fork.json()["status"], "ready");
    let taken = server.post("/v1/contexts/harbor/fork", &json!({ "label": "more" }));
    assert_eq!(
        (taken.status, taken.json()["error"]["code"].as_str()),
        (409, Some("label_taken"))
    );
    let more = json!({ "text": " The code of the bridge is 333." });
    assert_eq!(server.post("/v1/contexts/more/append", &more).status, 202);
    assert_eq!(settled(&server, "more")["status"], "ready");
    let answer = ask(&server, "more", "What is the code of the bridge?");
    assert_eq!(text(&answer), "The code of the bridge is 333.");
    assert!(
        settled(&server, "harbor")["tokens"].as_u64() < settled(&server, "more")["tokens"].as_u64()
    );

    let change = json!({ "label": "port", "pinned": true, "ttl_seconds": 0 });
    let changed = server
        .send(
            "PATCH",
            "/v1/contexts/harbor",
            &[],
            change.to_string().as_bytes(),
        )
        .good();
    assert_eq!(
        (changed["label"].as_str(), changed["pinned"].as_bool()),
        (Some("port"), Some(true))
    );
    assert_eq!(server.get("/v1/contexts/harbor").status, 404);
    assert_eq!(
        server.post("/v1/contexts/port/save", &json!({})).good()["saved"],
        true
    );
    let listed = server.get("/v1/contexts").good();
    assert_eq!(listed["data"].as_array().unwrap().len(), 2);

    server.stop();
    server.wait().unwrap();
    let server = Running::usual(folder.path());
    let listed = server.get("/v1/contexts").good();
    assert_eq!(listed["data"].as_array().unwrap().len(), 2);
    let answer = ask(&server, "port", QUESTION);
    assert_eq!(text(&answer), ANSWER);
    let deleted = server.send("DELETE", "/v1/contexts/port", &[], b"").good();
    assert_eq!(
        (deleted["id"].as_str(), deleted["deleted"].as_bool()),
        (Some(id.as_str()), Some(true))
    );
    assert_eq!(server.get("/v1/contexts/port").status, 404);
    assert_eq!(
        server.get("/v1/contexts").good()["data"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn reading_is_a_job_of_the_context() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::usual(folder.path());
    let document = long_document(600);
    let made = server
        .post(
            "/v1/contexts",
            &json!({ "text": document, "label": "long" }),
        )
        .good();
    let total = made["tokens"].as_u64().unwrap();
    // Stopped in the middle, and gone on with.
    let mut events = server.get_events("/v1/contexts/long/events");
    events
        .find(|event| event.json()["done_tokens"].as_u64().unwrap() > 0)
        .unwrap();
    assert_eq!(
        server.post("/v1/contexts/long/cancel", &json!({})).status,
        202
    );
    let shown = settled(&server, "long");
    let read = shown["read_tokens"].as_u64().unwrap();
    if shown["status"] == "cancelled" {
        assert!(read > 0 && read < total);
        // A question reads the rest.
        let resumed = server.post("/v1/contexts/long/resume", &json!({}));
        assert_eq!(resumed.status, 202);
    }
    let shown = settled(&server, "long");
    assert_eq!(
        (shown["status"].as_str(), shown["read_tokens"].as_u64()),
        (Some("ready"), Some(total))
    );
    assert!(shown["reused_tokens"].as_u64().unwrap() >= read / 64 * 64 || read == total);
    let answer = ask(&server, "long", QUESTION);
    assert_eq!(text(&answer), ANSWER);
    assert_eq!(answer["longview"]["reused_tokens"].as_u64(), Some(total));
    // The same text under another name is taken over.
    server
        .post(
            "/v1/contexts",
            &json!({ "text": document, "label": "twin" }),
        )
        .good();
    let twin = settled(&server, "twin");
    assert!(twin["reused_tokens"].as_u64().unwrap() + 64 >= total);
}

#[test]
fn contexts_travel_and_expire_and_come_from_declared_folders() {
    let (folder, other, files) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    std::fs::write(files.path().join("harbor.txt"), DOCUMENT).unwrap();
    let options = ServerOptions {
        folders: vec![files.path().to_owned()],
        ..options(folder.path())
    };
    let server = Running::start(engine(folder.path(), None), options);
    let create = json!({ "files": ["harbor.txt"], "label": "harbor" });
    server.post("/v1/contexts", &create).good();
    let shown = settled(&server, "harbor");
    assert_eq!(shown["title"], "harbor.txt");
    let bundle = server.get("/v1/contexts/harbor/export");
    assert_eq!(bundle.status, 200);
    assert_eq!(
        bundle.header("content-length").unwrap(),
        bundle.body.len().to_string()
    );

    let there = Running::usual(other.path());
    let kind = [("content-type", "application/x-tar")];
    let came = there.send(
        "POST",
        "/v1/contexts/import?label=there",
        &kind,
        &bundle.body,
    );
    assert_eq!(came.status, 201, "{}", String::from_utf8_lossy(&came.body));
    let answer = ask(&there, "there", QUESTION);
    assert_eq!(text(&answer), ANSWER);
    assert!(answer["longview"]["computed_tokens"].as_u64().unwrap() < 64 + 20);
    let damaged = there.send(
        "POST",
        "/v1/contexts/import",
        &kind,
        &bundle.body[..bundle.body.len() / 2],
    );
    assert_eq!(damaged.status, 400);
    assert_eq!(
        there
            .send("POST", "/v1/contexts/import", &kind, b"no tar")
            .status,
        400
    );
}

#[test]
fn nothing_is_left_in_memory_when_everybody_has_gone() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::usual(folder.path());
    let kv = || {
        let text = String::from_utf8(server.get("/metrics").body).unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with("longview_memory_bytes{purpose=\"kv\"}"));
        line.unwrap()
            .rsplit(' ')
            .next()
            .unwrap()
            .parse::<f64>()
            .unwrap()
    };
    std::thread::scope(|scope| {
        for seed in 0..8 {
            let server = &server;
            scope.spawn(move || {
                let shared = long_document(40);
                let request = json!({
                    "prompt": format!("{shared} {seed}"), "max_tokens": 6, "n": 2, "stream": seed % 2 == 0
                });
                if seed % 4 == 0 {
                    // Leaves after the first piece.
                    server.events("/v1/completions", &request).next();
                } else {
                    let body = request.to_string();
                    assert_eq!(server.send("POST", "/v1/completions", &[], body.as_bytes()).status, 200);
                }
            });
        }
    });
    server
        .post("/v1/contexts", &json!({ "text": DOCUMENT, "label": "d" }))
        .good();
    settled(&server, "d");
    server.send("DELETE", "/v1/contexts/d", &[], b"").good();
    let begun = Instant::now();
    // What is cached may stay; it goes when it is asked to.
    let freed = || {
        server.post("/v1/cache/drop", &json!({})).good()["kv_bytes"]
            .as_f64()
            .unwrap()
    };
    while freed() > 0.0 {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "{} bytes are left",
            kv()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(kv(), 0.0);
}

#[test]
fn anthropics_protocol_is_spoken() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::usual(folder.path());
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

#[test]
fn the_page_and_the_documents_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::usual(folder.path());
    for (path, kind) in [
        ("/", "text/html"),
        ("/page.css", "text/css"),
        ("/page.js", "text/javascript"),
    ] {
        let answer = server.get(path);
        assert_eq!(answer.status, 200);
        assert!(answer.header("content-type").unwrap().starts_with(kind));
        assert!(
            answer
                .header("content-security-policy")
                .unwrap()
                .contains("default-src 'none'")
        );
    }
    let models = server.get("/v1/models").good();
    let name = models["data"][0]["id"].as_str().unwrap();
    assert_eq!(server.get(&format!("/v1/models/{name}")).good()["id"], name);
    assert_eq!(server.get("/v1/models/gpt-9").status, 404);
    let document = server.get("/openapi.json").good();
    for path in ["/v1/chat/completions", "/v1/contexts/{id}", "/v1/messages"] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
}

#[test]
fn the_committed_openapi_document_is_the_servers() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
    let made = longview_server::openapi_document() + "\n";
    if std::env::var_os("LONGVIEW_BLESS").is_some() {
        std::fs::write(path, &made).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == made,
        "docs/openapi.json is not what the types say; LONGVIEW_BLESS=1 cargo test -p longview-server renews it"
    );
}
