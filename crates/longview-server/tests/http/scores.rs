//! Probabilities of the tokens of prompts, as harnesses ask for them.

use longview::{Control, Specials};
use longview_eval::perplexity;
use serde_json::{Value, json};

use crate::support::{Running, stand_in, words};

/// The probabilities of an answer's tokens; `None` for the first of all.
fn logprobs(choice: &Value) -> Vec<Option<f64>> {
    let all = choice["logprobs"]["token_logprobs"].as_array().unwrap();
    all.iter().map(Value::as_f64).collect()
}

#[test]
fn an_echo_says_how_likely_the_model_held_the_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let text = words(7, 260);
    let alone = stand_in(folder.path());
    let tokens = alone.tokenizer().encode(&text, Specials::AsText).unwrap();
    let measured = perplexity(&alone, &tokens, 8192, &mut |_| Control::Continue).unwrap();
    let ids = alone.text().with_prefix(tokens);
    drop(alone);
    let server = Running::stand_in(folder.path());
    let ask = |more: Value| {
        let mut request = json!({
            "prompt": text, "echo": true, "logprobs": 1, "max_tokens": 0, "temperature": 0
        });
        let fields = request.as_object_mut().unwrap();
        fields.extend(more.as_object().unwrap().clone());
        server.post("/v1/completions", &request).good()
    };

    // As `eval perplexity` says, by another way through the engine.
    let answer = ask(json!({}));
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], text.as_str());
    let told = logprobs(choice);
    assert_eq!((told.len(), told[0]), (ids.len(), None));
    assert!(choice["logprobs"]["top_logprobs"][0].is_null());
    let sum: f64 = told[1..].iter().map(|logprob| logprob.unwrap()).sum();
    let mean = -sum / (told.len() - 1) as f64;
    assert!(
        (mean - measured.nats_per_token).abs() < 1e-5,
        "{mean}, {measured:?}"
    );
    assert_eq!(measured.tokens, told.len() - 1);
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    assert_eq!(answer["usage"]["prompt_tokens"], ids.len());

    // Harnesses give token ids, ask for one token more, and look whether each was the most likely one.
    let written = ask(json!({ "echo": false, "max_tokens": 6 }));
    let again = ask(json!({ "prompt": ids, "max_tokens": 6, "n": 2 }));
    assert_eq!(again["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    for choice in again["choices"].as_array().unwrap() {
        let all = logprobs(choice);
        assert_eq!(all[..ids.len()], told);
        assert_eq!(all[ids.len()..], logprobs(&written["choices"][0]));
        assert_eq!(
            all.len(),
            choice["logprobs"]["tokens"].as_array().unwrap().len()
        );
        for (place, logprob) in all.iter().enumerate().skip(1) {
            let top = choice["logprobs"]["top_logprobs"][place]
                .as_object()
                .unwrap();
            let most = top
                .values()
                .filter_map(Value::as_f64)
                .fold(f64::MIN, f64::max);
            assert!((1..=2).contains(&top.len()) && logprob.unwrap() <= most);
            assert!(place < ids.len() || *logprob == Some(most));
        }
    }

    // The same in pieces, the prompt's first.
    let request = json!({
        "prompt": [ids, ids[..40]], "echo": true, "logprobs": 1, "max_tokens": 6, "temperature": 0, "stream": true
    });
    let mut pieces = [Vec::new(), Vec::new()];
    let mut texts = [String::new(), String::new()];
    for event in server.events("/v1/completions", &request) {
        if event.data == "[DONE]" {
            continue;
        }
        for choice in event.json()["choices"].as_array().unwrap() {
            let index = choice["index"].as_u64().unwrap() as usize;
            texts[index].push_str(choice["text"].as_str().unwrap());
            if !choice["logprobs"].is_null() {
                pieces[index].extend(logprobs(choice));
            }
        }
    }
    assert_eq!(pieces[0], logprobs(&again["choices"][0]));
    assert_eq!(pieces[1][..40], told[..40]);
    assert_eq!(texts[0], again["choices"][0]["text"].as_str().unwrap());

    // Nothing but the prompt, and more than one response can say.
    let bare = server.post(
        "/v1/completions",
        &json!({ "prompt": text, "echo": true, "max_tokens": 0 }),
    );
    assert_eq!(bare.good()["choices"][0]["text"], text.as_str());
    let many = json!({
        "prompt": vec![vec![300; 2_000]; 33], "echo": true, "logprobs": 1, "max_tokens": 0
    });
    let (status, message, field) = server.post("/v1/completions", &many).refusal();
    assert!(
        status == 400 && message.contains("66000") && message.contains("65536"),
        "{message}"
    );
    assert_eq!(field.as_deref(), Some("logprobs"));
}
