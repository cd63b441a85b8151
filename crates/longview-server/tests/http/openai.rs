//! OpenAI's protocol over a real socket.

use longview::{Control, GenerateOptions, Specials};
use serde_json::{Value, json};

use crate::support::{ANSWER, QUESTION, Running, ask, stand_in, text, with, words};

#[test]
fn questions_are_answered_alike_streamed_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::usual(folder.path());
    let question = QUESTION;
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
    let alone = stand_in(folder.path());
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
    let server = Running::stand_in(folder.path());
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
fn stops_probabilities_and_biases_do_what_they_say() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::usual(folder.path());
    let question = QUESTION;
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
    // Forbidding the only one that is left is the request's fault.
    let decode = format!("top-k(1), logit-bias({id}=-inf)");
    let nothing = with(ask(question), json!({ "longview": { "decode": decode } }));
    let refused = server.post("/v1/chat/completions", &nothing);
    assert_eq!(
        (refused.status, refused.json()["error"]["code"].as_str()),
        (400, Some("no_token_left"))
    );
    // All of an answer's tokens, and not the one that says that it is over.
    let whole = with(ask(question), json!({ "logprobs": true }));
    let answer = server.post("/v1/chat/completions", &whole).good();
    let tokens = answer["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    let joined: String = tokens
        .iter()
        .map(|one| one["token"].as_str().unwrap())
        .collect();
    assert_eq!(joined.trim_start(), ANSWER);
    let back = server
        .post("/detokenize", &json!({ "tokens": first["tokens"] }))
        .good();
    assert_eq!(back["content"], " The");
}

#[test]
fn whoever_has_no_tokenizer_uses_the_servers() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::usual(folder.path());
    let info = server.get("/tokenizer_info").good();
    let end = info["eos_token"].as_str().unwrap();
    let ids = |body: Value| server.post("/tokenize", &body).good()["tokens"].clone();
    // Written out it is text here, and one token for clients of the protocol that says it so.
    assert!(ids(json!({ "prompt": end })).as_array().unwrap().len() > 1);
    let theirs = ids(json!({ "prompt": end, "add_special_tokens": false }));
    assert_eq!(theirs.as_array().unwrap().len(), 1, "{theirs}");
    let as_text = json!({ "prompt": end, "add_special_tokens": false, "parse_special": false });
    assert!(ids(as_text).as_array().unwrap().len() > 1);
    let begun = ids(json!({ "prompt": "x", "add_special_tokens": true }));
    let by_our_name = ids(json!({ "prompt": "x", "add_special": true }));
    assert_eq!(begun, by_our_name);
    let template = info["chat_template"].as_str().unwrap();
    assert!(template.contains("messages"), "{template}");
}
