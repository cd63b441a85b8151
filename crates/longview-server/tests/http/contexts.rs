//! Contexts as things with names.

use std::path::Path;
use std::time::{Duration, Instant};

use longview_server::ServerOptions;
use serde_json::{Value, json};

use crate::support::{ANSWER, DOCUMENT, QUESTION, Running, engine, longrope, options, text};

/// A document so long, with one fact in it.
pub(crate) fn long_document(sentences: usize) -> String {
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

/// Waits until a context is read, or reading has ended otherwise.
pub(crate) fn settled(server: &Running, id: &str) -> Value {
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
    let page = server.get("/v1/contexts?limit=1").good();
    assert_eq!(
        (&page["data"][0], &page["has_more"]),
        (&listed["data"][0], &json!(true))
    );
    let rest = page["last_id"].as_str().unwrap();
    let rest = server.get(&format!("/v1/contexts?after={rest}")).good();
    assert_eq!(
        (&rest["data"][0], &rest["has_more"]),
        (&listed["data"][1], &json!(false))
    );

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
    let server = Running::stand_in(folder.path());
    let document = long_document(250);
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
    assert_eq!(text(&answer), undisturbed(&document, None));
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

/// The answer to the question where nothing came between the reading.
fn undisturbed(document: &str, more: Option<&str>) -> String {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::stand_in(folder.path());
    let create = json!({ "text": document, "label": "calm" });
    server.post("/v1/contexts", &create).good();
    settled(&server, "calm");
    if let Some(more) = more {
        let append = json!({ "text": more });
        server.post("/v1/contexts/calm/append", &append).good();
        settled(&server, "calm");
    }
    text(&ask(&server, "calm", QUESTION)).to_owned()
}

/// What a disk holds at one moment.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, name) = entry
            .map(|entry| (entry.path(), entry.file_name()))
            .unwrap();
        match path.is_dir() {
            true => copy(&path, &to.join(name)),
            // A file that is given its name meanwhile is there under that one.
            false => drop(std::fs::copy(&path, to.join(name))),
        }
    }
}

fn only(server: &Running) -> Value {
    let listed = server.get("/v1/contexts").good();
    assert_eq!(listed["data"].as_array().unwrap().len(), 1);
    listed["data"][0].clone()
}

#[test]
fn a_context_that_is_being_read_survives_a_crash_and_an_end() {
    let (folder, crashed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut server = Running::stand_in(folder.path());
    let create = json!({ "text": DOCUMENT, "label": "harbor", "title": "A harbor" });
    server.post("/v1/contexts", &create).good();
    let begun = settled(&server, "harbor")["tokens"].clone();
    let more = "The sea was grey and the gulls were loud that day. ".repeat(400);
    let append = json!({ "text": more });
    let grown = server.post("/v1/contexts/harbor/append", &append).good();
    let total = &grown["tokens"];
    // Whatever ends the process now.
    copy(folder.path(), crashed.path());
    assert_eq!(
        server.post("/v1/contexts/harbor/save", &json!({})).good()["saved"],
        true
    );
    let refused = server.get("/v1/contexts/harbor/export");
    assert_eq!(refused.status, 409);
    assert!(
        refused.json()["error"]["message"]
            .as_str()
            .unwrap()
            .contains("being read")
    );
    let read = |shown: &Value| shown["read_tokens"].as_u64().unwrap();
    let mut events = server.get_events("/v1/contexts/harbor/events");
    events
        .find(|event| event.json()["done_tokens"].as_u64() > begun.as_u64())
        .unwrap();
    server.stop();
    drop(events);
    server.wait().unwrap();
    let ended = Running::stand_in(folder.path());
    let shown = only(&ended);
    assert_eq!(
        (&shown["tokens"], &shown["label"]),
        (total, &json!("harbor"))
    );
    assert!(read(&shown) > begun.as_u64().unwrap(), "{shown}");
    drop(ended);

    let server = Running::stand_in(crashed.path());
    let shown = only(&server);
    assert_eq!(
        (&shown["tokens"], &shown["title"]),
        (total, &json!("A harbor"))
    );
    assert_eq!(
        (&shown["status"], &shown["read_tokens"]),
        (&json!("cancelled"), &begun)
    );
    server.post("/v1/contexts/harbor/resume", &json!({})).good();
    assert_eq!(settled(&server, "harbor")["status"], "ready");
    let answer = ask(&server, "harbor", QUESTION);
    assert_eq!(text(&answer), undisturbed(DOCUMENT, Some(&more)));
}

#[test]
fn contexts_of_both_rotary_sets_are_opened_again_and_outgrown() {
    let (folder, model) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let start = || {
        let options = ServerOptions {
            usual_answer_tokens: 24,
            ..options(folder.path())
        };
        Running::start(longrope(model.path(), folder.path()), options)
    };
    let mut server = start();
    for (label, sentences) in [("short", 4), ("long", 60)] {
        let create = json!({ "text": long_document(sentences), "label": label });
        server.post("/v1/contexts", &create).good();
        assert_eq!(settled(&server, label)["status"], "ready");
    }
    server.stop();
    server.wait().unwrap();
    let server = start();
    for label in ["short", "long"] {
        let answer = ask(&server, label, QUESTION);
        let total = settled(&server, label)["tokens"].as_u64().unwrap();
        let reused = answer["longview"]["reused_tokens"].as_u64().unwrap();
        assert!(reused + 64 > total, "{label}: {reused} of {total}");
    }
    let question = "The sea was grey. ".repeat(60);
    let answer = ask(&server, "short", &question);
    assert_eq!(
        answer["choices"][0]["finish_reason"].as_str(),
        Some("length"),
        "{answer}"
    );
    assert_eq!(answer["usage"]["completion_tokens"], 24);
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
    let server = Running::start(engine(folder.path()), options);
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
    there.import("there", &bundle.body);
    let kind = [("content-type", "application/x-tar")];
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
    let server = Running::stand_in(folder.path());
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
fn what_is_refused_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let options = ServerOptions {
        queue: 1,
        schedule: longview::schedule::ScheduleOptions {
            most_running: 1,
            ..Default::default()
        },
        ..options(folder.path())
    };
    let server = Running::start(engine(folder.path()), options);
    server
        .post("/v1/contexts", &json!({ "text": DOCUMENT, "label": "d" }))
        .good();
    let before = settled(&server, "d");
    // One runs and one waits, so there is no place for another.
    let long =
        json!({ "prompt": "one two", "max_tokens": 1500, "ignore_eos": true, "stream": true });
    let mut running = server.events("/v1/completions", &long);
    running.next().unwrap();
    let waiting = server.events("/v1/completions", &long);
    let more = json!({ "text": "The code of the gate is 12." });
    for _ in 0..2 {
        let refused = server.post("/v1/contexts/d/append", &more);
        assert_eq!(refused.status, 429);
    }
    drop((running, waiting));
    let unchanged = settled(&server, "d");
    for field in ["tokens", "read_tokens", "status"] {
        assert_eq!(unchanged[field], before[field], "{field}");
    }
    server.rest();
    // The server may hear a moment later that those who waited are gone.
    let until = Instant::now() + Duration::from_secs(20);
    let taken = loop {
        let answer = server.post("/v1/contexts/d/append", &more);
        if answer.status != 429 || Instant::now() > until {
            break answer;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    taken.good();
    let after = settled(&server, "d");
    assert_eq!(after["status"], "ready");
    // Once, not three times.
    let grown = after["tokens"].as_u64().unwrap() - before["tokens"].as_u64().unwrap();
    assert!((1..20).contains(&grown), "{grown}");
    for (label, title) in [
        (" d", "x"),
        (&"y".repeat(201)[..], "x"),
        ("e", &"z".repeat(2000)[..]),
    ] {
        let request = json!({ "text": DOCUMENT, "label": label, "title": title });
        assert_eq!(server.post("/v1/contexts", &request).status, 400);
    }
}

#[test]
fn one_label_is_one_contexts_however_many_ask_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::stand_in(folder.path());
    let ask = |at: usize| {
        let request = json!({ "text": format!("{at} {DOCUMENT}"), "label": "one" });
        server.post("/v1/contexts", &request).status
    };
    let ask = &ask;
    let made = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|at| scope.spawn(move || ask(at))).collect();
        let statuses = threads.into_iter().map(|thread| thread.join().unwrap());
        statuses.filter(|&status| status == 202).count()
    });
    assert_eq!(made, 1);
    // Deleted while it is read or saved, it does not come back.
    for _ in 0..3 {
        server.send("DELETE", "/v1/contexts/one", &[], b"").good();
        let request = json!({ "text": long_document(60), "label": "one" });
        assert_eq!(server.post("/v1/contexts", &request).status, 202);
    }
    server.send("DELETE", "/v1/contexts/one", &[], b"").good();
    server.rest();
    assert_eq!(server.get("/v1/contexts").good()["data"], json!([]));
}
