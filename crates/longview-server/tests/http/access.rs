//! Who may come in.

use std::io::Read;

use longview_server::{ApiKeys, ServerOptions};
use serde_json::json;

use crate::support::{Answer, Running, options, stand_in, words};

#[test]
fn keys_open_for_their_tenants_only() {
    let folder = tempfile::tempdir().unwrap();
    let options = ServerOptions {
        keys: ApiKeys::parse("ann=secret-of-ann\nbob=secret-of-bob").unwrap(),
        ..options(folder.path())
    };
    let server = Running::start(stand_in(folder.path()), options);
    let body = json!({ "prompt": words(9, 400), "max_tokens": 2 }).to_string();
    let ask =
        |header: &[(&str, &str)]| server.send("POST", "/v1/completions", header, body.as_bytes());
    let cached = |answer: &Answer| {
        let usage = answer.good()["usage"].clone();
        usage["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
    };
    for wrong in [
        &[][..],
        &[("authorization", "Bearer nobody's")],
        &[("authorization", "Basic x")],
    ] {
        let (status, message, _) = ask(wrong).refusal();
        assert_eq!(status, 401);
        assert!(message.contains("API key"), "{message}");
    }
    assert_eq!(
        cached(&ask(&[("authorization", "Bearer secret-of-ann")])),
        0
    );
    assert!(cached(&ask(&[("x-api-key", "secret-of-ann")])) > 0);
    assert_eq!(
        cached(&ask(&[("authorization", "Bearer secret-of-bob")])),
        0
    );
    // Names of contexts are apart as well.
    let create = json!({ "text": "a text", "label": "mine" }).to_string();
    let ann = [("x-api-key", "secret-of-ann")];
    let bob = [("x-api-key", "secret-of-bob")];
    assert_eq!(
        server
            .send("POST", "/v1/contexts", &ann, create.as_bytes())
            .status,
        202
    );
    assert_eq!(
        server.send("GET", "/v1/contexts/mine", &bob, b"").status,
        404
    );
    assert_eq!(
        server.send("GET", "/v1/contexts", &bob, b"").good()["data"],
        json!([])
    );
    assert_eq!(
        server
            .send("POST", "/v1/contexts", &bob, create.as_bytes())
            .status,
        202
    );
    // What tells nothing of anybody needs none.
    for open in ["/health", "/ready", "/openapi.json"] {
        assert_eq!(server.get(open).status, 200, "{open}");
    }
    assert_eq!(server.get("/metrics").status, 401);
}

#[test]
fn pages_and_names_from_elsewhere_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let options = ServerOptions {
        cors: vec!["https://chat.example".to_owned()],
        hosts: vec!["box.local".to_owned()],
        ..options(folder.path())
    };
    let server = Running::start(stand_in(folder.path()), options);
    let get = |headers: &[(&str, &str)]| server.send("GET", "/v1/models", headers, b"");
    assert_eq!(get(&[("origin", "https://evil.example")]).status, 403);
    let own = format!("http://{}", server.address);
    assert_eq!(get(&[("origin", &own)]).status, 200);
    let allowed = get(&[("origin", "https://chat.example")]);
    assert_eq!(
        allowed.header("access-control-allow-origin"),
        Some("https://chat.example")
    );
    let asked = [
        ("origin", "https://chat.example"),
        ("access-control-request-headers", "authorization"),
    ];
    let preflight = server.send("OPTIONS", "/v1/chat/completions", &asked, b"");
    assert_eq!(preflight.status, 204);
    assert_eq!(
        preflight.header("access-control-allow-headers"),
        Some("authorization")
    );
    // A second host header stands for a foreign name that was made to point here.
    let raw = |host: &str| {
        let mut stream = std::net::TcpStream::connect(server.address).unwrap();
        let request =
            format!("GET /v1/models HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text.split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!(raw("evil.example:80"), "403");
    assert_eq!(raw("box.local"), "200");
    assert_eq!(raw("localhost:1"), "200");
}
