//! OpenAI's protocol over a real socket.

mod support;

use std::io::Read;
use std::time::{Duration, Instant};

use longview::schedule::ScheduleOptions;
use longview::{Control, GenerateOptions, Specials};
use longview_server::{ApiKeys, ServerOptions};
use serde_json::{Value, json};
use support::{Running, engine, options};

const DOCUMENT: &str =
    "The code of the harbor is 4711. The sea was grey. The code of the tower is 88.";

/// A text of so many words that do not repeat themselves.
fn words(seed: u32, count: usize) -> String {
    let mut x = seed;
    let mut next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let word: String = (0..4)
            .map(|at| char::from(b'a' + ((x >> (8 + 5 * at)) % 26) as u8))
            .collect();
        word
    };
    (0..count).map(|_| next() + " ").collect()
}

fn ask(question: &str) -> Value {
    json!({
        "messages": [
            { "role": "system", "content": DOCUMENT },
            { "role": "user", "content": question }
        ],
        "max_tokens": 24
    })
}

fn with(mut value: Value, more: Value) -> Value {
    for (name, field) in more.as_object().unwrap() {
        value[name] = field.clone();
    }
    value
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

#[test]
fn questions_are_answered_alike_streamed_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::usual(folder.path());
    let question = "What is the code of the harbor?";
    let answer = server.post("/v1/chat/completions", &ask(question)).good();
    assert_eq!(text(&answer), "The code of the harbor is 4711.");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["object"], "chat.completion");
    let usage = &answer["usage"];
    let count = |name: &str| usage[name].as_u64().unwrap();
    assert_eq!(
        count("total_tokens"),
        count("prompt_tokens") + count("completion_tokens")
    );
    assert_eq!(answer["longview"]["methods"]["keep"], "all");

    let streamed = with(
        ask(question),
        json!({ "stream": true, "stream_options": { "include_usage": true } }),
    );
    let events = server.events("/v1/chat/completions", &streamed);
    assert_eq!(events.status, 200);
    let (mut said, mut reasons, mut used, mut ended) = (String::new(), Vec::new(), None, false);
    for event in events {
        assert!(!ended, "nothing follows [DONE]");
        if event.data == "[DONE]" {
            ended = true;
            continue;
        }
        let chunk = event.json();
        assert_eq!(chunk["object"], "chat.completion.chunk");
        match chunk["choices"].as_array().unwrap().first() {
            None => used = Some(chunk["usage"].clone()),
            Some(choice) => {
                said.push_str(choice["delta"]["content"].as_str().unwrap_or(""));
                reasons.extend(choice["finish_reason"].as_str().map(str::to_owned));
            }
        }
    }
    assert!(ended);
    assert_eq!(said, text(&answer));
    assert_eq!(reasons, ["stop"]);
    assert_eq!(
        used.unwrap()["completion_tokens"],
        usage["completion_tokens"]
    );
    // Who does not ask for usage gets no chunk without choices.
    let plain = with(ask(question), json!({ "stream": true }));
    let events = server.events("/v1/chat/completions", &plain);
    assert!(
        events
            .filter(|event| event.data != "[DONE]")
            .all(|event| { event.json()["choices"].as_array().unwrap().len() == 1 })
    );
}

#[test]
fn a_text_is_continued_as_the_engine_alone_does_it() {
    let folder = tempfile::tempdir().unwrap();
    let alone = engine(folder.path(), None);
    let prompt = words(3, 150);
    let tokens = alone.tokenizer().encode(&prompt, Specials::AsText).unwrap();
    let tokens = alone.text().with_prefix(tokens);
    let decode = |seed: u64| -> longview::methods::Decode {
        format!("temperature(0.9), top-k(40), draw(seed={seed})")
            .parse()
            .unwrap()
    };
    let wanted: Vec<String> = (7..10)
        .map(|seed| {
            let mut context = alone.new_context(tokens.len() + 20).unwrap();
            let mut options = GenerateOptions::greedy(20);
            options.chain = decode(seed).chain();
            let go_on = &mut |_: longview::Event<'_>| Control::Continue;
            alone
                .generate(&mut context, &tokens, &mut options, go_on)
                .unwrap()
                .text
        })
        .collect();
    drop(alone);
    let server = Running::usual(folder.path());
    let request = json!({
        "prompt": prompt, "max_tokens": 20, "n": 3, "seed": 7, "temperature": 0.9, "top_k": 40
    });
    // Others are at work beside it.
    let busy = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            server.post(
                "/v1/completions",
                &json!({
                    "prompt": words(4, 900), "max_tokens": 40, "ignore_eos": true
                }),
            )
        });
        let answer = server.post("/v1/completions", &request).good();
        let texts: Vec<&str> = answer["choices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|choice| choice["text"].as_str().unwrap())
            .collect();
        assert_eq!(texts, wanted);
        other.join().unwrap().good()
    });
    assert_eq!(busy["usage"]["completion_tokens"], 40);
    // The same by token ids, and the texts in front.
    let echoed = json!({ "prompt": tokens, "max_tokens": 3, "echo": true, "temperature": 0 });
    let answer = server.post("/v1/completions", &echoed).good();
    assert!(
        answer["choices"][0]["text"]
            .as_str()
            .unwrap()
            .starts_with(&prompt)
    );
    let two =
        json!({ "prompt": ["one two", "three four"], "n": 2, "max_tokens": 2, "temperature": 0 });
    let choices = server.post("/v1/completions", &two).good()["choices"].clone();
    let indices: Vec<u64> = choices
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["index"].as_u64().unwrap())
        .collect();
    assert_eq!(indices, [0, 1, 2, 3]);
    assert_eq!(choices[0]["text"], choices[1]["text"]);
}

#[test]
fn a_keep_method_is_a_requests_own_and_does_what_it_does_alone() {
    let folder = tempfile::tempdir().unwrap();
    let prompt = words(5, 400);
    let methods = [
        "snapkv(budget=128, window=16)",
        "streaming-llm(budget=128, block=64, decode=8)",
    ];
    let alone = engine(folder.path(), None);
    let tokens = alone.tokenizer().encode(&prompt, Specials::AsText).unwrap();
    let tokens = alone.text().with_prefix(tokens);
    let wanted = methods.map(|text| {
        let mut chosen = longview::methods::Methods::new();
        chosen.set(longview::methods::Stage::Keep, text).unwrap();
        let (methods, count) = (chosen.acting(), tokens.len());
        let mut context = alone.new_context_with(&methods, count, count + 24).unwrap();
        let mut options = GenerateOptions::greedy(24);
        let go_on = &mut |_: longview::Event<'_>| Control::Continue;
        let generated = alone.generate(&mut context, &tokens, &mut options, go_on);
        (generated.unwrap().text, context.keep_report().unwrap())
    });
    drop(alone);
    let server = Running::usual(folder.path());
    let ask = |keep: Option<&str>| {
        let mut request = json!({ "prompt": prompt, "max_tokens": 24, "temperature": 0 });
        if let Some(keep) = keep {
            request["longview"] = json!({ "keep": keep });
        }
        server.post("/v1/completions", &request).good()
    };
    let whole = ask(None);
    for (method, (text, report)) in methods.iter().zip(&wanted) {
        std::thread::scope(|scope| {
            let beside = scope.spawn(|| ask(None));
            let answer = ask(Some(method));
            assert_eq!(answer["choices"][0]["text"], text.as_str(), "{method}");
            let kept = &answer["longview"]["keep"];
            assert_eq!(kept["pairs_kept"], report.pairs_kept, "{method}");
            assert!(kept["pairs_dropped"].as_u64().unwrap() > 0);
            assert_eq!(
                answer["longview"]["methods"]["keep"],
                report.method.as_str()
            );
            // Whoever keeps everything gets the same text beside it.
            assert_eq!(beside.join().unwrap()["choices"], whole["choices"]);
        });
    }
    assert!(whole["longview"]["keep"].is_null());
}

#[test]
fn stops_probabilities_and_biases_do_what_they_say() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::usual(folder.path());
    let question = "What is the code of the harbor?";
    let stopped = with(ask(question), json!({ "stop": [" harbor", "never"] }));
    let answer = server.post("/v1/chat/completions", &stopped).good();
    assert_eq!(text(&answer), "The code of the");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");

    let probable = with(
        ask(question),
        json!({ "logprobs": true, "top_logprobs": 2, "max_tokens": 4 }),
    );
    let answer = server.post("/v1/chat/completions", &probable).good();
    let content = answer["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    assert_eq!(content.len(), 4);
    for token in content {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 2);
        // Greedy: the one chosen is the most likely.
        assert_eq!(top[0]["logprob"], token["logprob"]);
        assert!(token["logprob"].as_f64().unwrap() <= 0.0);
    }
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let streamed = with(probable, json!({ "stream": true }));
    let events = server.events("/v1/chat/completions", &streamed);
    let counted: usize = events
        .filter(|event| event.data != "[DONE]")
        .map(|event| {
            let content = &event.json()["choices"][0]["logprobs"]["content"];
            content.as_array().map_or(0, Vec::len)
        })
        .sum();
    assert_eq!(counted, 4);

    let first = server
        .post(
            "/tokenize",
            &json!({ "content": " The", "with_pieces": true }),
        )
        .good();
    let id = first["tokens"][0].as_u64().unwrap();
    let biased = with(
        ask(question),
        json!({ "logit_bias": { id.to_string(): -100 } }),
    );
    let answer = server.post("/v1/chat/completions", &biased).good();
    assert!(!text(&answer).starts_with("The"), "{}", text(&answer));
    let back = server
        .post("/detokenize", &json!({ "tokens": first["tokens"] }))
        .good();
    assert_eq!(back["content"], " The");
}

#[test]
fn whoever_leaves_finds_the_work_done() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::usual(folder.path());
    let request = json!({
        "prompt": words(11, 3000), "max_tokens": 4, "stream": true,
        "longview": { "progress": true, "explain": true }
    });
    let mut events = server.events("/v1/completions", &request);
    // Gone in the middle of the prompt.
    let done = events
        .find_map(|event| event.json()["longview"]["progress"]["done_tokens"].as_u64())
        .unwrap();
    drop(events);
    assert!(done > 0);
    // The engine notices in its next pass.
    let begun = Instant::now();
    while metric(&server, "longview_sequences_running") > 0.0 {
        assert!(begun.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(20));
    }
    let again = with(request, json!({ "stream": false }));
    let answer = server.post("/v1/completions", &again).good();
    let reused = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        .as_u64()
        .unwrap();
    let all = answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(
        reused >= done / 64 * 64 && reused < all,
        "{reused} of {all}, {done} seen"
    );
    assert!(
        answer["longview"]["explain"]["reusable_tokens"]
            .as_u64()
            .unwrap()
            >= done / 64 * 64
    );
    assert!(metric(&server, "longview_requests_cancelled_total") >= 1.0);
    // The third time all of it but the end is there.
    let third = server.post("/v1/completions", &again).good();
    let reused = third["usage"]["prompt_tokens_details"]["cached_tokens"]
        .as_u64()
        .unwrap();
    assert!(all - reused <= 64, "{reused} of {all}");
    assert_eq!(third["choices"][0]["text"], answer["choices"][0]["text"]);
}

#[test]
fn a_long_prompt_does_not_stop_a_running_answer() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path());
    options.schedule.decode_gap = Duration::from_millis(50);
    let server = Running::start(engine(folder.path(), None), options);
    let short = json!({
        "prompt": "one two three", "max_tokens": 400, "ignore_eos": true, "stream": true,
        "longview": {}
    });
    let mut events = server.events("/v1/completions", &short);
    events.next().unwrap();
    std::thread::scope(|scope| {
        let long = scope.spawn(|| {
            let begun = Instant::now();
            let prompt = words(5, 2500);
            server
                .post(
                    "/v1/completions",
                    &json!({ "prompt": prompt, "max_tokens": 1 }),
                )
                .good();
            begun.elapsed()
        });
        let mut longest = 0.0;
        for event in events {
            if let Ok(chunk) = serde_json::from_str::<Value>(&event.data)
                && let Some(gap) = chunk["longview"]["longest_gap_seconds"].as_f64()
            {
                longest = gap;
            }
        }
        let took = long.join().unwrap().as_secs_f64();
        assert!(longest > 0.0);
        // The answer went on while the prompt was read: had it waited, the gap would be all of that.
        assert!(longest < took / 2.0, "{longest} s of {took} s");
    });
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let options = ServerOptions {
        queue: 1,
        schedule: ScheduleOptions {
            most_running: 1,
            ..ScheduleOptions::default()
        },
        ..options(folder.path())
    };
    let server = Running::start(engine(folder.path(), None), options);
    let long = |seed| json!({ "prompt": words(seed, 2500), "max_tokens": 200, "ignore_eos": true });
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..6)
            .map(|seed| {
                scope.spawn({
                    let server = &server;
                    move || server.post("/v1/completions", &long(seed))
                })
            })
            .collect();
        let answers: Vec<_> = all.into_iter().map(|one| one.join().unwrap()).collect();
        let refused: Vec<_> = answers
            .iter()
            .filter(|answer| answer.status == 429)
            .collect();
        assert!(!refused.is_empty());
        for answer in &answers {
            assert!(matches!(answer.status, 200 | 429), "{}", answer.status);
        }
        for answer in refused {
            let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
            assert!((1..=120).contains(&seconds));
            assert_eq!(answer.json()["error"]["code"], "queue_full");
        }
    });
    // What was refused leaves no place taken.
    assert_eq!(server.get("/ready").status, 200);
    server
        .post(
            "/v1/completions",
            &json!({ "prompt": "a", "max_tokens": 1 }),
        )
        .good();
}

#[test]
fn keys_open_for_their_tenants_only() {
    let folder = tempfile::tempdir().unwrap();
    let options = ServerOptions {
        keys: ApiKeys::parse("ann=secret-of-ann\nbob=secret-of-bob").unwrap(),
        ..options(folder.path())
    };
    let server = Running::start(engine(folder.path(), None), options);
    let body = json!({ "prompt": words(9, 400), "max_tokens": 2 }).to_string();
    let ask =
        |header: &[(&str, &str)]| server.send("POST", "/v1/completions", header, body.as_bytes());
    let cached = |answer: &support::Answer| {
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
    let server = Running::start(engine(folder.path(), None), options);
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

#[test]
fn wrong_requests_are_told_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let options = ServerOptions {
        max_body_bytes: 100_000,
        max_prompt_tokens: Some(2000),
        ..options(folder.path())
    };
    let server = Running::start(engine(folder.path(), None), options);
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
            json!({ "messages": hello, "longview": { "store": "q4" } }),
            400,
            "one request",
            Some("longview.store"),
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
            json!({ "prompt": words(1, 3000) }),
            400,
            "at most 2000",
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
    let long = server.post("/v1/completions", &json!({ "prompt": words(1, 3000) }));
    assert_eq!(long.json()["error"]["code"], "context_length_exceeded");
    let cut = json!({ "prompt": words(1, 3000), "truncate": "middle", "max_tokens": 2 });
    let answer = server.post("/v1/completions", &cut).good();
    assert!(answer["usage"]["truncated_tokens"].as_u64().unwrap() > 0);
    assert_eq!(answer["usage"]["prompt_tokens"], 2000);
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
    assert_eq!(
        server
            .send("PUT", "/v1/chat/completions", &[], b"")
            .refusal()
            .0,
        405
    );
    // Fields that mean nothing are named and harmless.
    let odd =
        json!({ "messages": hello, "max_tokens": 1, "colour": "blue", "longview": { "sauce": 1 } });
    let answer = server.post("/v1/chat/completions", &odd);
    answer.good();
    assert_eq!(
        answer.header("x-longview-ignored-fields"),
        Some("colour, longview.sauce")
    );
}

#[test]
fn no_body_makes_the_server_fail() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::usual(folder.path());
    let mut x = 1u64;
    let mut below = |n: usize| {
        x = x
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (x >> 33) as usize % n
    };
    let good = json!({
        "messages": [{ "role": "user", "content": "hi", "tool_calls": [{ "id": "x" }] }],
        "max_tokens": 1, "n": 1, "stop": ["a"], "temperature": 0.5, "top_p": 0.9, "seed": 1,
        "logit_bias": { "5": 1 }, "tools": [{ "type": "function", "function": { "name": "f", "parameters": {} } }],
        "tool_choice": "auto", "response_format": { "type": "json_object" },
        "longview": { "priority": "low", "explain": true, "decode": "greedy" }, "system": "s", "prompt": "p",
        "input": "i", "text": "t", "tokens": [1, 2], "content": "c"
    });
    let odd = [
        Value::Null,
        json!(true),
        json!(-1),
        json!(1e308),
        json!(""),
        json!("\u{0}\u{fffd}"),
        json!([]),
        json!({}),
        json!([[[]]]),
        json!(u64::MAX),
        json!({ "type": "function" }),
        json!([null]),
        json!({ "$ref": "#/nowhere" }),
        json!("999999999999999999999"),
    ];
    let paths = [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/tokenize",
        "/detokenize",
        "/v1/contexts",
    ];
    let names: Vec<String> = good.as_object().unwrap().keys().cloned().collect();
    for round in 0..220 {
        let mut body = good.clone();
        for _ in 0..=below(2) {
            let name = &names[below(names.len())];
            body[name] = odd[below(odd.len())].clone();
        }
        let mut bytes = body.to_string().into_bytes();
        if round % 4 == 0 {
            let at = below(bytes.len());
            bytes[at] = below(256) as u8;
        }
        let path = paths[below(paths.len())];
        let answer = server.send("POST", path, &[], &bytes);
        assert!(
            answer.status < 500,
            "{path} {}: {} {}",
            String::from_utf8_lossy(&bytes),
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
    }
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn stopping_lets_answers_finish_and_begins_nothing_new() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Running::usual(folder.path());
    let request = json!({
        "prompt": "one two three", "max_tokens": 300, "ignore_eos": true, "stream": true,
        "stream_options": { "include_usage": true }
    });
    let mut events = server.events("/v1/completions", &request);
    events.next().unwrap();
    server.stop();
    let rest: Vec<_> = events.collect();
    assert_eq!(rest.last().unwrap().data, "[DONE]");
    let usage = &rest[rest.len() - 2].json()["usage"];
    assert_eq!(usage["completion_tokens"], 300);
    server.wait().unwrap();
    assert!(std::net::TcpStream::connect(server.address).is_err());
}

/// The value of a counter.
fn metric(server: &Running, name: &str) -> f64 {
    let answer = server.get("/metrics");
    assert_eq!(answer.status, 200);
    let text = String::from_utf8(answer.body).unwrap();
    let line = text
        .lines()
        .find(|line| line.split(' ').next() == Some(name));
    let value = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    value.rsplit(' ').next().unwrap().parse().unwrap()
}

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
    let answer = server
        .post(
            "/v1/chat/completions",
            &ask("What is the code of the harbor?"),
        )
        .good();
    assert_eq!(text(&answer), "The code of the harbor is 4711.");
    let begun = Instant::now();
    while metric(&server, "longview_sequences_running") > 0.0 {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(20));
    }
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
    let mut server = Running::usual(folder.path());
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
fn texts_become_vectors_and_files_of_requests_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::usual(folder.path());
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

    let line = |id: &str, url: &str, body: Value| {
        json!({ "custom_id": id, "method": "POST", "url": url, "body": body }).to_string()
    };
    let shared = words(8, 300);
    let mut lines: Vec<String> = (0..5)
        .map(|at| {
            let body =
                json!({ "prompt": format!("{shared} {at}"), "max_tokens": 4, "temperature": 0 });
            line(&format!("p{at}"), "/v1/completions", body)
        })
        .collect();
    lines.push(line(
        "chat",
        "/v1/chat/completions",
        ask("What is the code of the harbor?"),
    ));
    lines.push(line(
        "wrong",
        "/v1/chat/completions",
        json!({ "messages": [] }),
    ));
    let form = format!(
        "--b\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--b\r\ncontent-disposition: \
         form-data; name=\"file\"; filename=\"a.jsonl\"\r\n\r\n{}\r\n--b--\r\n",
        lines.join("\n")
    );
    let kind = [("content-type", "multipart/form-data; boundary=b")];
    let file = server
        .send("POST", "/v1/files", &kind, form.as_bytes())
        .good();
    let batch = json!({
        "input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"
    });
    let mut batch = server.post("/v1/batches", &batch).good();
    let begun = Instant::now();
    while batch["status"] == "in_progress" {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(20));
        batch = server
            .get(&format!("/v1/batches/{}", batch["id"].as_str().unwrap()))
            .good();
    }
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
    let said = &find("chat")["response"]["body"]["choices"][0]["message"]["content"];
    assert_eq!(said, "The code of the harbor is 4711.");
    assert_eq!(find("wrong")["response"]["status_code"], 400);
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
