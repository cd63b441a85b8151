//! A clock that jumps ends nothing early, and lets nothing go on for ever.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use longview::Engine;
use longview_server::{Clock, ServerOptions};
use serde_json::{Value, json};

use crate::contexts::settled;
use crate::support::{
    ANSWER, DOCUMENT, QUESTION, Running, STAND_IN, ask, engine, open, options, text, with, words,
};

const DAY: Duration = Duration::from_secs(86_400);
const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// A clock that the test sets.
#[derive(Debug)]
struct Set(Mutex<(SystemTime, Duration)>);

impl Set {
    fn new(wall: SystemTime) -> Arc<Set> {
        Arc::new(Set(Mutex::new((wall, DAY))))
    }

    /// Time passes, which both clocks see.
    fn pass(&self, time: Duration) {
        let mut clock = self.0.lock().unwrap();
        clock.0 += time;
        clock.1 += time;
    }

    /// Somebody sets the wall.
    fn set(&self, wall: SystemTime) {
        self.0.lock().unwrap().0 = wall;
    }
}

impl Clock for Set {
    fn wall(&self) -> SystemTime {
        self.0.lock().unwrap().0
    }

    fn steady(&self) -> Duration {
        self.0.lock().unwrap().1
    }
}

/// The stand-in in `model`, with a chat template that writes the date and the time.
fn dated(model: &Path, folder: &Path) -> Engine {
    let stand_in = Path::new(STAND_IN);
    for name in ["tokenizer.json", "config.json", "model.safetensors"] {
        std::fs::copy(stand_in.join(name), model.join(name)).unwrap();
    }
    let config = std::fs::read(stand_in.join("tokenizer_config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["chat_template"] = concat!(
        "{{ bos_token }}Today is {{ strftime_now('%d %B %Y, %H:%M') }}.",
        "{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|> {{ m['content'] }}",
        "{{ eos_token }}{% else %}<|user|> {{ m['content'] }}{% endif %}{% endfor %}",
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    .into();
    std::fs::write(model.join("tokenizer_config.json"), config.to_string()).unwrap();
    open(model, folder)
}

#[test]
fn a_conversation_keeps_the_day_on_which_it_began() {
    let (model, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let clock = Set::new(SystemTime::now());
    let options = ServerOptions {
        clock: clock.clone(),
        ..options(folder.path())
    };
    let server = Running::start(dated(model.path(), folder.path()), options);
    let mut messages = vec![json!({ "role": "user", "content": words(5, 500) })];
    let ask = |messages: &[Value], more: Value| {
        let request = with(json!({ "messages": messages, "max_tokens": 8 }), more);
        let answer = server.post("/v1/chat/completions", &request).good();
        let reused = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
        let notices = answer["longview"]["notices"].to_string();
        (text(&answer).to_owned(), reused.unwrap(), notices)
    };
    let nothing = || json!({});
    let (said, _, _) = ask(&messages, nothing());
    let first = messages.clone();
    messages.push(json!({ "role": "assistant", "content": said }));
    messages.push(json!({ "role": "user", "content": QUESTION }));
    // Midnight, and the night after the next.
    for days in [1, 2] {
        clock.pass(DAY * days);
        let (said, reused, notices) = ask(&messages, nothing());
        assert!(
            reused > 1000 && notices.contains("began on"),
            "{reused} {notices}"
        );
        messages.push(json!({ "role": "assistant", "content": said }));
        messages.push(json!({ "role": "user", "content": QUESTION }));
    }
    // What begins is of its own day, whatever is known of the same words, and so is what asks for it.
    let (_, reused, notices) = ask(&first, nothing());
    assert!(
        reused < 64 && !notices.contains("began on"),
        "{reused} {notices}"
    );
    let other_day = json!({ "longview": { "date": "2020-02-29" } });
    let (_, reused, notices) = ask(&messages, other_day);
    assert!(
        reused < 64 && !notices.contains("began on"),
        "{reused} {notices}"
    );
    let wrong = json!({ "messages": messages, "longview": { "date": "soon" } });
    let refused = server.post("/v1/chat/completions", &wrong);
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json()["error"]["param"], "longview.date");
}

fn names(server: &Running) -> Vec<String> {
    let list = server.get("/v1/contexts").good();
    let label = |one: &Value| one["label"].as_str().unwrap().to_owned();
    let mut labels: Vec<String> = list["data"].as_array().unwrap().iter().map(label).collect();
    labels.sort();
    labels
}

fn create(server: &Running, label: &str, ttl: Duration, pinned: bool) {
    let request = json!({
        "text": format!("{DOCUMENT} {label}"), "label": label, "ttl_seconds": ttl.as_secs(), "pinned": pinned
    });
    server.post("/v1/contexts", &request).good();
    settled(server, label);
}

#[test]
fn what_has_an_end_ends_when_its_time_has_passed_whatever_the_wall_shows() {
    let folder = tempfile::tempdir().unwrap();
    // The store's own clock is the system's, so the wall begins there.
    let now = SystemTime::now();
    let clock = Set::new(now);
    let with_clock = |clock: &Arc<Set>| ServerOptions {
        clock: clock.clone(),
        ..options(folder.path())
    };
    let mut server = Running::start(engine(folder.path()), with_clock(&clock));
    create(&server, "short", Duration::from_secs(1000), false);
    create(&server, "long", DAY * 10, false);
    create(&server, "pinned", Duration::from_secs(1), true);
    let stored = json!({ "input": QUESTION, "max_output_tokens": 4 });
    let stored = server.post("/v1/responses", &stored).good();
    let stored = format!("/v1/responses/{}", stored["id"].as_str().unwrap());
    clock.pass(Duration::from_secs(900));
    // Before 1970, a year back, a year ahead, and as it was: nothing has ended, and everything is answered.
    for wall in [UNIX_EPOCH - DAY, now - YEAR, now + YEAR, now] {
        clock.set(wall);
        assert_eq!(names(&server), ["long", "pinned", "short"], "{wall:?}");
        let answer = server.post("/v1/chat/completions", &ask(QUESTION)).good();
        assert_eq!(text(&answer), ANSWER);
        assert_eq!(server.get(&stored).status, 200);
        let metric = server.metric("longview_uptime_seconds");
        assert_eq!(metric, 900.0);
    }
    // To be asked is to be used, at whatever time the wall shows.
    clock.set(now - YEAR);
    let question = json!({
        "messages": [{ "role": "user", "content": QUESTION }], "max_tokens": 4,
        "longview": { "context": "short" }
    });
    server.post("/v1/chat/completions", &question).good();
    clock.set(now);
    clock.pass(Duration::from_secs(900));
    assert_eq!(names(&server), ["long", "pinned", "short"]);
    // Its time passes although the wall goes back meanwhile.
    clock.set(now - YEAR);
    clock.pass(Duration::from_secs(200));
    assert_eq!(names(&server), ["long", "pinned"]);
    assert_eq!(server.get("/v1/contexts/short").status, 404);
    assert_eq!(server.post("/v1/chat/completions", &question).status, 404);
    server.stop();
    server.wait().unwrap();

    // The next server counts from its own start: a wall that is ahead then ends what is written, one that
    // is set ahead later does not.
    let clock = Set::new(now + DAY);
    let mut server = Running::start(engine(folder.path()), with_clock(&clock));
    clock.set(now + YEAR);
    assert_eq!(names(&server), ["long", "pinned"]);
    assert_eq!(server.get(&stored).status, 200);
    clock.set(now - YEAR);
    assert_eq!(settled(&server, "long")["status"], "ready");
    clock.pass(DAY * 11);
    assert_eq!(names(&server), ["pinned"]);
    server.stop();
    server.wait().unwrap();
}

#[test]
fn a_full_queue_says_how_long_to_wait_by_what_was_measured() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Set::new(SystemTime::now());
    let options = ServerOptions {
        clock: clock.clone(),
        queue: 1,
        schedule: longview::schedule::ScheduleOptions {
            most_running: 1,
            ..Default::default()
        },
        ..options(folder.path())
    };
    let server = Running::start(engine(folder.path()), options);
    let long =
        json!({ "prompt": "one two", "max_tokens": 1500, "ignore_eos": true, "stream": true });
    let mut running = server.events("/v1/completions", &long);
    running.next().unwrap();
    let waiting = server.events("/v1/completions", &long);
    let short = json!({ "prompt": "one two", "max_tokens": 1 });
    for wall in [UNIX_EPOCH, SystemTime::now() + YEAR] {
        clock.set(wall);
        let refused = server.post("/v1/completions", &short);
        assert_eq!(refused.status, 429);
        let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=120).contains(&seconds), "{seconds}");
    }
    drop((running, waiting));
}
