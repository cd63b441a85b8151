//! Methods of single requests.

use longview::methods::{Methods, Stage};
use longview::{Control, Engine, EngineOptions, GenerateOptions, ModelSource, Specials};
use serde_json::{Value, json};

use crate::contexts::settled;
use crate::support::{Running, STAND_IN, stand_in, words};

#[test]
fn a_keep_method_is_a_requests_own_and_does_what_it_does_alone() {
    let folder = tempfile::tempdir().unwrap();
    let prompt = words(5, 400);
    let methods = [
        "snapkv(budget=128, window=16)",
        "streaming-llm(budget=128, block=64, decode=8)",
    ];
    let alone = stand_in(folder.path());
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
    let server = Running::stand_in(folder.path());
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
            assert_ne!(whole["choices"][0]["text"], text.as_str(), "{method}");
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
fn every_stage_that_is_a_requests_own_does_what_it_does_alone() {
    let folder = tempfile::tempdir().unwrap();
    let prompt = words(6, 300);
    let chosen = [
        json!({ "store": "q8" }),
        json!({ "store": "k=q8, v=q4" }),
        json!({ "store": "q8", "keep": "streaming-llm(budget=128)" }),
        json!({ "prefill": "a-shape" }),
        json!({ "read": "quest" }),
    ];
    let generated = |alone: &Engine, chosen: &Value| {
        let mut methods = Methods::new();
        for stage in Stage::ALL {
            if let Some(text) = chosen[stage.name()].as_str() {
                methods.set(stage, text).unwrap();
            }
        }
        let tokens = alone.tokenizer().encode(&prompt, Specials::AsText).unwrap();
        let tokens = alone.text().with_prefix(tokens);
        let count = tokens.len();
        let mut context = alone
            .new_context_with(&methods.acting(), count, count + 24)
            .unwrap();
        let mut options = GenerateOptions::greedy(24);
        let go_on = &mut |_: longview::Event<'_>| Control::Continue;
        alone
            .generate(&mut context, &tokens, &mut options, go_on)
            .unwrap()
            .text
    };
    let wanted: Vec<String> = chosen
        .iter()
        .map(|chosen| {
            // An engine whose own form it is.
            let forms = chosen["store"].as_str().map(|text| {
                let mut methods = Methods::new();
                methods.set(Stage::Store, text).unwrap();
                methods.kv_forms().unwrap()
            });
            let alone = Engine::open(&EngineOptions {
                model: ModelSource::Path(STAND_IN.into()),
                chunk_tokens: 256,
                threads: Some(2),
                kv_forms: forms,
                ..EngineOptions::default()
            });
            generated(&alone.unwrap(), chosen)
        })
        .collect();
    let server = Running::stand_in(folder.path());
    let ask = |chosen: &Value| {
        let request =
            json!({ "prompt": prompt, "max_tokens": 24, "temperature": 0, "longview": chosen });
        server.post("/v1/completions", &request).good()
    };
    let whole = ask(&json!({}));
    std::thread::scope(|scope| {
        let beside: Vec<_> = chosen
            .iter()
            .map(|chosen| scope.spawn(|| ask(chosen)))
            .collect();
        let plain = scope.spawn(|| ask(&json!({})));
        for ((answer, wanted), chosen) in beside.into_iter().zip(&wanted).zip(&chosen) {
            let answer = answer.join().unwrap();
            assert_eq!(answer["choices"][0]["text"], wanted.as_str(), "{chosen}");
            if chosen["store"].is_string() || chosen["prefill"].is_string() {
                assert_eq!(answer["longview"]["reused_tokens"], 0, "{chosen}");
            }
        }
        // Nobody else is touched.
        assert_eq!(plain.join().unwrap()["choices"], whole["choices"]);
    });
    // What is held in fewer bits is smaller, and says what it is.
    let small = ask(&chosen[0]);
    assert!(small["longview"]["kv_bytes"].as_u64() < whole["longview"]["kv_bytes"].as_u64());
    assert_eq!(small["longview"]["methods"]["store"], "q8");
    assert!(!small["longview"]["notices"].as_array().unwrap().is_empty());
}

#[test]
fn a_request_may_choose_what_it_reads_and_see_where_its_attention_rests() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::stand_in(folder.path());
    let prompt = words(5, 400);
    let ask = |longview: Value| {
        let request = json!({
            "prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": true, "longview": longview
        });
        server.post("/v1/completions", &request)
    };
    let whole = ask(json!({})).good();
    assert!(whole["longview"]["read"].is_null() && whole["longview"]["attention"].is_null());
    let read = "quest(budget=192, page=16, dense=0)";
    let answer = ask(json!({ "read": read, "attention": true })).good();
    let report = &answer["longview"];
    assert_eq!(report["methods"]["read"], read);
    // Seven steps after the prompt's, four layers of two KV heads, three blocks; the prompt was found.
    assert_eq!(report["read"]["pages_read"], 7 * 8 * 3, "{report}");
    assert!(report["reused_tokens"].as_u64().unwrap() >= 320, "{report}");
    let picture = &report["attention"];
    assert_eq!(picture["block_tokens"], 64);
    let tokens = picture["tokens"].as_u64().unwrap();
    let blocks = picture["mass"].as_array().unwrap().len() as u64;
    assert_eq!(blocks, (tokens - 1).div_ceil(64), "{picture}");
    assert_eq!(picture["most"].as_array().unwrap().len(), 5, "{picture}");
    // What answers computed from less is not found, and the exact text comes again.
    assert_eq!(ask(json!({})).good()["choices"], whole["choices"]);

    // It chooses among what a keep method has left: five pages of each of eight heads, and the block after them.
    let both = ask(json!({ "keep": "knorm(budget=256)", "read": read })).good();
    let (kept, pages) = (&both["longview"]["keep"], &both["longview"]["read"]);
    assert_eq!(kept["pairs_kept"], 8 * (256 + 7), "{kept}");
    assert_eq!(pages["pages_read"], 7 * 8 * 3, "{pages}");
    assert!(
        pages["pages_present"].as_u64() >= Some(7 * 8 * 5),
        "{pages}"
    );

    let sparse = ask(json!({ "prefill": "a-shape(sinks=64, local=128)" })).good();
    assert_eq!(sparse["longview"]["reused_tokens"], 0, "{sparse}");
    let pages = &sparse["longview"]["prefill"];
    assert!(
        pages["pages_read"].as_u64().unwrap() < pages["pages_present"].as_u64().unwrap(),
        "{pages}"
    );
    for (methods, words) in [
        (
            json!({ "keep": "knorm(budget=128)", "attention": true }),
            "cannot be shown under keep",
        ),
        (json!({ "read": "quset" }), "did you mean"),
    ] {
        let (status, message, _) = ask(methods).refusal();
        assert!(
            status == 400 && message.contains(words),
            "{status}: {message}"
        );
    }
}

/// What the engine alone writes after `text` read under `chosen`, and `more`.
fn alone(engine: &Engine, chosen: &Value, text: &str, more: &str) -> String {
    let mut methods = Methods::new();
    for stage in Stage::ALL {
        if let Some(text) = chosen[stage.name()].as_str() {
            methods.set(stage, text).unwrap();
        }
    }
    let mut acting = methods.acting();
    acting.store = methods.kv_forms();
    let parts = [(text, Specials::AsText), (more, Specials::AsText)];
    let parts = engine.tokenizer().encode_parts(&parts).unwrap();
    let held = engine.text().with_prefix(parts[0].clone());
    let go_on = &mut |_: longview::PrefillProgress| Control::Continue;
    let mut context = engine
        .new_context_with(&acting, held.len(), held.len() + 64)
        .unwrap();
    engine.prefill(&mut context, &held, go_on).unwrap();
    engine.compress_document(&mut context).unwrap();
    let mut options = GenerateOptions::greedy(16);
    context.answer_from(held.len() + parts[1].len());
    let go_on = &mut |_: longview::Event<'_>| Control::Continue;
    let generated = engine.generate(&mut context, &parts[1], &mut options, go_on);
    generated.unwrap().text
}

#[test]
fn a_context_may_be_made_under_methods_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let (text, more) = (words(11, 400), words(12, 20));
    let all = [
        json!({ "keep": "knorm(budget=128)" }),
        json!({ "keep": "streaming-llm(budget=128, block=64)", "store": "q8" }),
        json!({ "prefill": "a-shape(sinks=64, local=128)", "store": "k=q8, v=q4" }),
        json!({ "read": "quest(budget=192, page=16, dense=0)" }),
    ];
    let by_itself = stand_in(folder.path());
    let wanted: Vec<String> = all
        .iter()
        .map(|chosen| alone(&by_itself, chosen, &text, &more))
        .collect();
    let plain = alone(&by_itself, &json!({}), &text, &more);
    // What is dropped shows, so that the texts say under which methods they were written.
    assert!(wanted[..2].iter().all(|text| *text != plain));
    drop(by_itself);
    let mut server = Running::stand_in(folder.path());
    let create = |server: &Running, label: &str, methods: Value| {
        let request = json!({ "text": text, "form": "plain", "label": label, "methods": methods });
        server.post("/v1/contexts", &request)
    };
    let go_on = |server: &Running, label: &str, extras: Value| {
        let mut longview = json!({ "context": label });
        for (name, value) in extras.as_object().unwrap() {
            longview[name] = value.clone();
        }
        let request =
            json!({ "prompt": more, "max_tokens": 16, "temperature": 0, "longview": longview });
        server.post("/v1/completions", &request)
    };
    create(&server, "whole", json!({})).good();
    let whole = settled(&server, "whole");
    assert_eq!(whole["methods"], "");
    for (at, (chosen, wanted)) in all.iter().zip(&wanted).enumerate() {
        let label = format!("c{at}");
        assert_eq!(create(&server, &label, chosen.clone()).status, 202);
        let shown = settled(&server, &label);
        assert_eq!(shown["status"], "ready", "{shown}");
        let methods = shown["methods"].as_str().unwrap();
        for (stage, _) in chosen.as_object().unwrap() {
            assert!(methods.contains(stage.as_str()), "{methods}");
        }
        assert!(!shown["notices"].as_array().unwrap().is_empty());
        if chosen["keep"].is_string() {
            assert!(shown["bytes"].as_u64() < whole["bytes"].as_u64(), "{shown}");
            assert!(
                shown["keep"]["pairs_dropped"].as_u64().unwrap() > 0,
                "{shown}"
            );
        }
        // Twice, beside each other: each goes on in a fork of its own.
        std::thread::scope(|scope| {
            let twin = scope.spawn(|| go_on(&server, &label, json!({})).good());
            for answer in [
                go_on(&server, &label, json!({})).good(),
                twin.join().unwrap(),
            ] {
                assert_eq!(answer["choices"][0]["text"], wanted.as_str(), "{chosen}");
                let report = &answer["longview"];
                assert_eq!(report["reused_tokens"], shown["tokens"], "{report}");
                for (stage, _) in chosen.as_object().unwrap() {
                    assert_ne!(
                        report["methods"][stage],
                        Methods::new().text(
                            Stage::ALL
                                .into_iter()
                                .find(|one| one.name() == stage)
                                .unwrap(),
                            longview::KvType::F16,
                        )
                    );
                }
            }
        });
    }
    // Nobody finds in the store what is no model's: the whole text gives what it gives alone.
    let answer = go_on(&server, "whole", json!({})).good();
    assert_eq!(answer["choices"][0]["text"], plain.as_str());

    // What acts on it is settled; what the answer reads may be chosen.
    for (label, extras, words) in [
        ("c0", json!({ "keep": "all" }), "was made under keep knorm"),
        ("c2", json!({ "store": "f16" }), "was made under store"),
        ("c0", json!({ "read": "quest" }), ""),
        ("c0", json!({ "truncate": "middle" }), ""),
    ] {
        let answer = go_on(&server, label, extras);
        match words {
            "" => assert_eq!(answer.status, 200),
            words => {
                let (status, message, _) = answer.refusal();
                assert!(
                    status == 400 && message.contains(words),
                    "{status}: {message}"
                );
                assert!(!message.contains("--"), "{message}");
            }
        }
    }
    let nothing = json!({ "prompt": "", "max_tokens": 4, "longview": { "context": "c0" } });
    assert_eq!(server.post("/v1/completions", &nothing).status, 400);
    // What a keep method has left may go elsewhere; what lives in memory alone may not.
    assert_eq!(server.get("/v1/contexts/c2/export").status, 409);
    let bundle = server.get("/v1/contexts/c0/export");
    assert_eq!(bundle.status, 200);
    for (methods, param, words) in [
        (
            json!({ "keep": "snapkv" }),
            Some("methods.keep"),
            "looks at the question",
        ),
        (
            json!({ "keep": "knrom" }),
            Some("methods.keep"),
            "methods.keep: there is no keep method",
        ),
        (
            json!({ "kepe": "knorm" }),
            Some("methods.kepe"),
            "unknown field",
        ),
        (
            json!({ "keep": "locret(heads=\"/etc/passwd\")" }),
            Some("methods.keep"),
            "names a file",
        ),
    ] {
        let (status, message, found) = create(&server, "wrong", methods).refusal();
        assert!(
            status == 400 && message.contains(words),
            "{status}: {message}"
        );
        assert_eq!(found.as_deref(), param, "{message}");
    }

    // More is put behind it, and a fork stays what it was.
    server
        .post("/v1/contexts/c0/fork", &json!({ "label": "fork" }))
        .good();
    server
        .post("/v1/contexts/c0/append", &json!({ "text": words(13, 100) }))
        .good();
    assert_eq!(settled(&server, "c0")["status"], "ready");
    let forked = go_on(&server, "fork", json!({})).good();
    assert_eq!(forked["choices"][0]["text"], wanted[0].as_str());

    let grown = settled(&server, "c0");

    // After a restart what a keep method has left is there, to the bit.
    server.stop();
    server.wait().unwrap();
    let server = Running::stand_in(folder.path());
    let listed = server.get("/v1/contexts").good();
    let of = |label: &str| {
        let all = listed["data"].as_array().unwrap().iter();
        all.clone()
            .find(|one| one["label"] == label)
            .unwrap()
            .clone()
    };
    for (label, at) in [("c1", 1), ("fork", 0)] {
        assert_eq!(of(label)["status"], "ready", "{listed}");
        let shown = server.get(&format!("/v1/contexts/{label}")).good();
        assert_eq!(shown["status"], "ready", "{shown}");
        let again = go_on(&server, label, json!({})).good();
        assert_eq!(again["choices"][0]["text"], wanted[at].as_str(), "{label}");
        assert_eq!(again["longview"]["reused_tokens"], shown["tokens"]);
    }
    let shown = server.get("/v1/contexts/c0").good();
    for field in ["tokens", "read_tokens", "bytes", "methods"] {
        assert_eq!(shown[field], grown[field], "{field}");
    }
    assert_eq!(shown["keep"]["pairs_kept"], grown["keep"]["pairs_kept"]);
    // What it is called may change before anybody has used it.
    let renamed = json!({ "label": "renamed" }).to_string();
    let renamed = server.send("PATCH", "/v1/contexts/c1", &[], renamed.as_bytes());
    assert_eq!(renamed.status, 200);

    // Where nothing was dropped it has to be read again.
    let shown = server.get("/v1/contexts/c2").good();
    assert_eq!(
        (&shown["status"], &shown["read_tokens"]),
        (&json!("cancelled"), &json!(0))
    );
    let refused = go_on(&server, "c2", json!({}));
    assert_eq!(refused.status, 409);
    assert_eq!(refused.json()["error"]["code"], "context_not_ready");
    server.post("/v1/contexts/c2/resume", &json!({})).good();
    assert_eq!(settled(&server, "c2")["status"], "ready");
    let again = go_on(&server, "c2", json!({})).good();
    assert_eq!(again["choices"][0]["text"], wanted[2].as_str());
    drop(server);
    let server = Running::stand_in(folder.path());
    let again = go_on(&server, "renamed", json!({})).good();
    assert_eq!(again["choices"][0]["text"], wanted[1].as_str());

    // So it goes elsewhere.
    let other = tempfile::tempdir().unwrap();
    let there = Running::stand_in(other.path());
    there.import("there", &bundle.body);
    let answer = go_on(&there, "there", json!({})).good();
    assert_eq!(answer["choices"][0]["text"], wanted[0].as_str());
}

#[test]
fn text_behind_a_change_is_taken_over_where_a_request_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::stand_in(folder.path());
    let ask = |date: &str, question: &str, longview: Value| {
        let request = json!({
            "messages": [
                { "role": "system", "content": format!("Today is {date}. {}", words(3, 300)) },
                { "role": "user", "content": question },
            ],
            "max_tokens": 8, "temperature": 0, "longview": longview
        });
        server.post("/v1/chat/completions", &request).good()
    };
    let shift = || json!({ "reuse": "shift(least=32)" });
    let number = |answer: &Value, name: &str| answer["longview"][name].as_u64().unwrap();
    let first = ask("Monday", "One?", shift());
    assert_eq!(number(&first, "moved_tokens"), 0);
    let second = ask("Tuesday", "Two?", shift());
    let moved = number(&second, "moved_tokens");
    assert!(moved > 200, "{second}");
    assert_eq!(
        second["usage"]["prompt_tokens_details"]["cached_tokens"],
        number(&second, "reused_tokens")
    );
    assert!(number(&second, "reused_tokens") >= moved);
    assert!(number(&second, "computed_tokens") < 120, "{second}");
    assert_eq!(second["longview"]["methods"]["reuse"], "shift(least=32)");
    let notices = second["longview"]["notices"].to_string();
    assert!(notices.contains("reuse shift is approximate"), "{notices}");
    // Others get what the model defines, whatever was moved before.
    let exact = ask("Tuesday", "Two?", json!({}));
    assert_eq!(number(&exact, "moved_tokens"), 0);
    assert!(number(&exact, "computed_tokens") > 200);
    let again = ask("Tuesday", "Two?", json!({ "reuse": "prefix" }));
    assert_eq!(again["choices"], exact["choices"]);
    // With all of it read as it stands there is nothing to move.
    assert_eq!(number(&ask("Tuesday", "Two?", shift()), "moved_tokens"), 0);
    assert_eq!(server.metric("longview_moved_tokens_total"), moved as f64);
    assert_eq!(server.post("/v1/cache/drop", &json!({})).status, 200);
}
