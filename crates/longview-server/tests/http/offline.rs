//! Vectors, and files of requests.

use std::time::{Duration, Instant};

use longview::schedule::ScheduleOptions;
use longview_server::ServerOptions;
use serde_json::{Value, json};

use crate::support::{QUESTION, Running, ask, engine, options, words};

fn line(id: &str, url: &str, body: Value) -> String {
    json!({ "custom_id": id, "method": "POST", "url": url, "body": body }).to_string()
}

fn upload(server: &Running, lines: &[String]) -> Value {
    let form = format!(
        "--b\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--b\r\ncontent-disposition: \
         form-data; name=\"file\"; filename=\"../a.jsonl\"\r\n\r\n{}\r\n--b--\r\n",
        lines.join("\n")
    );
    let kind = [("content-type", "multipart/form-data; boundary=b")];
    let answer = server.send("POST", "/v1/files", &kind, form.as_bytes());
    answer.good()
}

fn show(server: &Running, batch: &Value) -> Value {
    let id = batch["id"].as_str().unwrap();
    server.get(&format!("/v1/batches/{id}")).good()
}

/// Waits until a batch is over.
fn settled(server: &Running, batch: &Value) -> Value {
    let begun = Instant::now();
    loop {
        let batch = show(server, batch);
        if batch["status"] != "in_progress" {
            return batch;
        }
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn texts_become_vectors_and_files_of_requests_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::stand_in(folder.path());
    let embed = |input: Value| {
        server
            .post("/v1/embeddings", &json!({ "input": input }))
            .good()
    };
    let vectors = embed(json!([
        "the sea was grey",
        "the gulls were loud",
        "the sea was grey"
    ]));
    let vector = |at: usize| -> Vec<f64> {
        let list = vectors["data"][at]["embedding"].as_array().unwrap();
        list.iter().map(|value| value.as_f64().unwrap()).collect()
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    assert!((dot(&vector(0), &vector(0)) - 1.0).abs() < 1e-5);
    // Whatever they were computed with.
    assert_eq!(vector(0), vector(2));
    assert!(dot(&vector(0), &vector(1)) < 0.9999);
    let long = embed(json!(words(2, 600)));
    assert!(long["usage"]["prompt_tokens"].as_u64().unwrap() > 1000);
    assert_eq!(embed(json!(words(2, 600)))["data"], long["data"]);

    let shared = words(8, 300);
    let mut lines: Vec<String> = (0..5)
        .map(|at| {
            let body =
                json!({ "prompt": format!("{shared} {at}"), "max_tokens": 4, "temperature": 0 });
            line(&format!("p{at}"), "/v1/completions", body)
        })
        .collect();
    lines.push(line("chat", "/v1/chat/completions", ask(QUESTION)));
    lines.push(line(
        "wrong",
        "/v1/chat/completions",
        json!({ "messages": [] }),
    ));
    let file = upload(&server, &lines);
    let batch = json!({
        "input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"
    });
    let batch = server.post("/v1/batches", &batch).good();
    let batch = settled(&server, &batch);
    assert_eq!(batch["status"], "completed");
    assert_eq!(
        batch["request_counts"],
        json!({ "total": 7, "completed": 6, "failed": 1 })
    );
    // The shared beginning was read once.
    assert!(batch["longview"]["reused_tokens"].as_u64().unwrap() >= 4 * 500);
    let output = server.get(&format!(
        "/v1/files/{}/content",
        batch["output_file_id"].as_str().unwrap()
    ));
    let output = String::from_utf8(output.body).unwrap();
    let find = |id: &str| -> Value {
        let is_it = |line: &Value| line["custom_id"] == id;
        output
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .find(is_it)
            .unwrap()
    };
    let asked = server.post("/v1/chat/completions", &ask(QUESTION)).good();
    assert_eq!(
        find("chat")["response"]["body"]["choices"],
        asked["choices"]
    );
    assert!(!output.contains("\"wrong\""));
    let errors = batch["error_file_id"].as_str().unwrap();
    let errors = server.get(&format!("/v1/files/{errors}/content"));
    let errors: Value = serde_json::from_slice(&errors.body).unwrap();
    assert_eq!(
        (&errors["custom_id"], &errors["response"]["status_code"]),
        (&json!("wrong"), &json!(400))
    );
    let alone = json!({ "prompt": format!("{shared} 3"), "max_tokens": 4, "temperature": 0 });
    let alone = server.post("/v1/completions", &alone).good();
    assert_eq!(find("p3")["response"]["body"]["choices"], alone["choices"]);
    assert_eq!(
        server
            .send(
                "DELETE",
                &format!("/v1/files/{}", file["id"].as_str().unwrap()),
                &[],
                b""
            )
            .good()["deleted"],
        true
    );
}

#[test]
fn a_batch_goes_on_after_a_restart_with_what_has_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    // One after another, so that some are left.
    let one_by_one = || ServerOptions {
        schedule: ScheduleOptions {
            most_running: 1,
            ..ScheduleOptions::default()
        },
        ..options(folder.path())
    };
    let mut server = Running::start(engine(folder.path()), one_by_one());
    let lines: Vec<String> = (0..12)
        .map(|at| {
            let body = json!({ "prompt": words(at, 6), "max_tokens": 80, "ignore_eos": true, "temperature": 0 });
            line(&format!("p{at}"), "/v1/completions", body)
        })
        .collect();
    let file = upload(&server, &lines);
    let request = json!({
        "input_file_id": file["id"], "endpoint": "/v1/completions", "metadata": { "mine": "yes" }
    });
    let batch = server.post("/v1/batches", &request).good();
    let done = |server: &Running| {
        show(server, &batch)["request_counts"]["completed"]
            .as_u64()
            .unwrap()
    };
    while done(&server) < 2 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let input = format!("/v1/files/{}", file["id"].as_str().unwrap());
    assert_eq!(server.send("DELETE", &input, &[], b"").status, 409);
    // It ends at once, in the middle.
    server.stop();
    server.stop();
    server.wait().unwrap();

    // What a killed process may leave: half a line.
    let requests = folder.path().join("requests");
    let tenant = std::fs::read_dir(requests)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let growing = std::fs::read_dir(&tenant)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let growing: Vec<_> = growing
        .filter(|path| path.extension().is_some_and(|end| end == "jsonl"))
        .filter(|path| !path.with_extension("json").exists())
        // Nothing has failed.
        .filter(|path| std::fs::metadata(path).unwrap().len() > 0)
        .collect();
    let [growing] = &growing[..] else {
        panic!("{growing:?}")
    };
    let before = std::fs::read_to_string(growing).unwrap();
    let answered = before.lines().count();
    assert!((2..12).contains(&answered), "{answered}");
    std::fs::write(growing, format!("{before}{{\"custom_id\": \"p1")).unwrap();

    let server = Running::start(engine(folder.path()), one_by_one());
    let batch = settled(&server, &batch);
    assert_eq!(batch["status"], "completed", "{batch}");
    assert_eq!(
        batch["request_counts"],
        json!({ "total": 12, "completed": 12, "failed": 0 })
    );
    assert_eq!(batch["metadata"]["mine"], "yes");
    assert!(batch["error_file_id"].is_null());
    let output = batch["output_file_id"].as_str().unwrap();
    let output = server.get(&format!("/v1/files/{output}/content"));
    let output = String::from_utf8(output.body).unwrap();
    // What was answered before was not asked again, and everything was answered once.
    assert!(output.starts_with(&before));
    let mut ids: Vec<String> = output
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["custom_id"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    ids.sort();
    ids.dedup();
    assert_eq!((ids.len(), output.lines().count()), (12, 12));
    // Files are there, and what is deleted is gone from the disk.
    assert_eq!(server.get(&input).good(), file);
    assert_eq!(
        server.get("/v1/files").good()["data"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    server.send("DELETE", &input, &[], b"").good();
    server
        .send(
            "DELETE",
            &format!("/v1/files/{}", batch["output_file_id"].as_str().unwrap()),
            &[],
            b"",
        )
        .good();
    let mut left: Vec<_> = std::fs::read_dir(&tenant)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(
        left,
        [
            format!("{}.json", batch["id"].as_str().unwrap()),
            "lock".to_owned()
        ]
    );
}

#[test]
fn lists_are_turned_page_by_page() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::usual(folder.path());
    let lines = [line(
        "a",
        "/v1/completions",
        json!({ "prompt": "x", "max_tokens": 1 }),
    )];
    let mut files = Vec::new();
    for _ in 0..3 {
        let file = upload(&server, &lines);
        let request = json!({ "input_file_id": file["id"], "endpoint": "/v1/completions" });
        let batch = server.post("/v1/batches", &request).good();
        files.push((file, settled(&server, &batch)));
    }
    let ids = |path: &str| -> Vec<String> {
        let (mut seen, mut after) = (Vec::new(), String::new());
        loop {
            let page = server.get(&format!("{path}limit=2{after}")).good();
            let data = page["data"].as_array().unwrap();
            assert!(
                data.len() <= 2 && page["last_id"] == data[data.len() - 1]["id"],
                "{page}"
            );
            seen.extend(
                data.iter()
                    .map(|one| one["id"].as_str().unwrap().to_owned()),
            );
            if page["has_more"] == false {
                return seen;
            }
            after = format!("&after={}", page["last_id"].as_str().unwrap());
        }
    };
    let sorted = |mut ids: Vec<String>| {
        ids.sort();
        ids
    };
    let of = |one: &Value| one["id"].as_str().unwrap().to_owned();
    let batches = sorted(files.iter().map(|(_, batch)| of(batch)).collect());
    assert_eq!(sorted(ids("/v1/batches?")), batches);
    let inputs = sorted(files.iter().map(|(file, _)| of(file)).collect());
    assert_eq!(sorted(ids("/v1/files?purpose=batch&")), inputs);
    assert_eq!(ids("/v1/files?").len(), 6);
    let mut backwards = ids("/v1/files?order=asc&");
    backwards.reverse();
    assert_eq!(backwards, ids("/v1/files?"));
    for wrong in [
        "/v1/batches?limit=0",
        "/v1/batches?limit=101",
        "/v1/files?after=x",
        "/v1/files?purpose=a&purpose=b",
        "/v1/files?order=up",
    ] {
        assert_eq!(server.get(wrong).refusal().0, 400, "{wrong}");
    }
}

#[test]
fn many_prompts_of_one_request_have_one_place_in_the_queue() {
    let folder = tempfile::tempdir().unwrap();
    let options = ServerOptions {
        queue: 1,
        ..options(folder.path())
    };
    let server = Running::start(engine(folder.path()), options);
    let texts: Vec<String> = (0..5).map(|at| words(at, 10)).collect();
    let vectors = server
        .post("/v1/embeddings", &json!({ "input": texts }))
        .good();
    assert_eq!(vectors["data"].as_array().unwrap().len(), 5);
    let request = json!({ "prompt": texts, "max_tokens": 2 });
    let answer = server.post("/v1/completions", &request).good();
    assert_eq!(answer["choices"].as_array().unwrap().len(), 5);
}

#[test]
fn small_bodies_hold_nobody_up() {
    let folder = tempfile::tempdir().unwrap();
    let options = ServerOptions {
        max_body_bytes: 1000,
        ..options(folder.path())
    };
    let server = Running::start(engine(folder.path()), options);
    // More at once than there are large bodies room for, none of which is answered before the last is sent.
    let request = json!({ "prompt": "one two", "max_tokens": 1, "n": 1 }).to_string();
    let unfinished: Vec<_> = (0..16)
        .map(|_| {
            let mut stream = std::net::TcpStream::connect(server.address).unwrap();
            let head = format!(
                "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                 content-length: {}\r\n\r\n",
                request.len()
            );
            std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
            stream
        })
        .collect();
    let answer = server.send("POST", "/v1/completions", &[], request.as_bytes());
    assert_eq!(answer.status, 200);
    drop(unfinished);
}
