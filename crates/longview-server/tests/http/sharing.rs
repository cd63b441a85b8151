//! How requests share the machine, and what becomes of the work of those who leave.

use std::time::{Duration, Instant};

use longview::schedule::ScheduleOptions;
use longview_server::ServerOptions;
use serde_json::{Value, json};

use crate::support::{Running, engine, options, stand_in, with, words};

#[test]
fn whoever_leaves_finds_the_work_done() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::stand_in(folder.path());
    let request = json!({
        "prompt": words(11, 1200), "max_tokens": 4, "stream": true,
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
    server.rest();
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
    assert!(server.metric("longview_requests_cancelled_total") >= 1.0);
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
    let server = Running::start(stand_in(folder.path()), options);
    let short = json!({
        "prompt": "one two three", "max_tokens": 400, "ignore_eos": true, "stream": true,
        "longview": {}
    });
    let mut events = server.events("/v1/completions", &short);
    events.next().unwrap();
    std::thread::scope(|scope| {
        let long = scope.spawn(|| {
            let begun = Instant::now();
            let prompt = words(5, 1500);
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
    let server = Running::start(stand_in(folder.path()), options);
    let long = |seed| json!({ "prompt": words(seed, 800), "max_tokens": 200, "ignore_eos": true });
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

#[test]
fn a_stream_that_waits_for_its_prompt_says_that_it_is_alive() {
    let folder = tempfile::tempdir().unwrap();
    let options = ServerOptions {
        keep_alive: Duration::from_millis(20),
        ..options(folder.path())
    };
    let server = Running::start(stand_in(folder.path()), options);
    let request = json!({ "prompt": words(13, 1000), "max_tokens": 1, "stream": true });
    let mut events = server.events("/v1/completions", &request);
    events.next().unwrap();
    assert!(events.comments > 0);
}

#[test]
fn of_those_that_wait_the_higher_rank_comes_first() {
    let folder = tempfile::tempdir().unwrap();
    let options = ServerOptions {
        schedule: ScheduleOptions {
            most_running: 1,
            ..ScheduleOptions::default()
        },
        ..options(folder.path())
    };
    let server = Running::start(engine(folder.path()), options);
    let ask = |rank: &str, count: u32| {
        let request = json!({
            "prompt": rank, "max_tokens": count, "ignore_eos": true, "longview": { "priority": rank }
        });
        server.post("/v1/completions", &request)
    };
    let wait_for = |count: f64| {
        while server.metric("longview_sequences_waiting") < count {
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    std::thread::scope(|scope| {
        let first = scope.spawn(|| ask("normal", 600).good());
        while server.metric("longview_sequences_running") < 1.0 {
            std::thread::sleep(Duration::from_millis(2));
        }
        let low = scope.spawn(|| ask("low", 4).good());
        wait_for(1.0);
        let high = scope.spawn(|| ask("high", 200).good());
        wait_for(2.0);
        let queued = |answer: &Value| answer["longview"]["seconds_queued"].as_f64().unwrap();
        let (low, high) = (low.join().unwrap(), high.join().unwrap());
        // It came later, and whoever came before waited for all of it as well.
        assert!(queued(&low) > queued(&high));
        first.join().unwrap();
    });
    let (status, message, _) = ask("urgent", 1).refusal();
    assert!(status == 400 && message.contains("urgent"), "{message}");
}
