//! Files of requests in OpenAI's batch format, answered for throughput.
//!
//! A line is `{"custom_id": …, "method": "POST", "url": "/v1/chat/completions", "body": {…}}`; its answer is
//! a line with the same `custom_id`. Requests go to the same endpoints and the same scheduler as any
//! others, at the lowest rank, and in an order that serves all of them: those that begin alike one after
//! another, so that their beginning is read once and need not stay longer than they do; and of such
//! groups first those that write much and read little, so that the long prompts of the others fill
//! passes that are otherwise about writing.

use std::io::{BufRead, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode, header};
use axum::{Extension, Router};
use longview::{Control, Engine};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};
use tower::ServiceExt;

use crate::api;
use crate::app::{App, Guest, new_id};
use crate::error::ServerError;
use crate::options::ServerOptions;

/// Endpoints that a line may name.
pub(crate) const ENDPOINTS: [&str; 4] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
];

/// Bytes that two bodies must begin with in common to count as one group.
const GROUP_BYTES: usize = 256;

/// Tokens of an answer where a line does not say.
const USUAL_ANSWER: u64 = 256;

/// How long a request waits before it asks again when the queue is full.
const FULL_QUEUE_PAUSE: Duration = Duration::from_millis(250);

/// How long it waits when memory was short, and how often it asks again.
const MEMORY_PAUSE: Duration = Duration::from_secs(2);
const MOST_TRIES: usize = 10;

/// The largest answer that is taken in.
const MOST_BYTES: usize = 1 << 30;

/// What became of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct BatchSummary {
    /// Lines with a request.
    pub total: usize,
    /// Lines answered well.
    pub completed: usize,
    /// Lines that were refused or failed; their answers say why.
    pub failed: usize,
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Those of them taken over from work done before, in this file or earlier.
    pub reused_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// How long it took.
    pub seconds: f64,
}

/// One line.
#[derive(Debug, Deserialize)]
struct Line {
    custom_id: String,
    #[serde(default)]
    method: Option<String>,
    url: String,
    body: Value,
}

/// A line that can be asked, or why it cannot.
pub(crate) struct Job {
    pub(crate) custom_id: Value,
    asked: Result<(String, Value), String>,
}

/// Answers every line of `input` on `engine` and writes one line for each to `output`, in the order in
/// which they are done. `on` hears of each, and may stop it: what is answered then is written, and what
/// was read is kept.
///
/// # Errors
/// When `input` cannot be read, `output` cannot be written, or two lines have the same `custom_id`.
pub fn run_batch(
    engine: impl Into<Arc<Engine>>,
    mut options: ServerOptions,
    input: impl BufRead,
    mut output: impl Write,
    on: &mut dyn FnMut(&BatchSummary) -> Control,
) -> Result<BatchSummary, ServerError> {
    let system = |what| move |source| ServerError::System { what, source };
    let jobs = read(input)?;
    let most_at_once = options.schedule.most_running * 2;
    // Nobody is refused: what waits here waits in the file.
    options.queue = most_at_once.max(1) * 2;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(system("the threads cannot be started"))?;
    let app = App::new(engine.into(), options)?;
    let tenancy = app.tenancies().next().cloned();
    let guest = Guest(tenancy.expect("a server without keys has one tenant"));
    let router = api::routes(&app).layer(Extension(guest));
    let begun = Instant::now();
    let mut summary = BatchSummary::of(jobs.len());
    let done = runtime.block_on(async {
        let mut answers = submit(router, order(jobs), most_at_once, || false);
        while let Some(answer) = answers.recv().await {
            summary.add(&answer);
            summary.seconds = begun.elapsed().as_secs_f64();
            writeln!(output, "{answer}").map_err(system("the answers cannot be written"))?;
            if on(&summary) == Control::Stop {
                app.worker().cancel_all();
                break;
            }
        }
        output
            .flush()
            .map_err(system("the answers cannot be written"))
    });
    app.worker().stop();
    done?;
    summary.seconds = begun.elapsed().as_secs_f64();
    Ok(summary)
}

/// Reads all lines; those that make no sense become jobs that say so.
pub(crate) fn read(input: impl BufRead) -> Result<Vec<Job>, ServerError> {
    let mut jobs = Vec::new();
    let mut seen = std::collections::HashMap::new();
    for (at, line) in input.lines().enumerate() {
        let number = at + 1;
        let line = line.map_err(|source| ServerError::System {
            what: "the file of requests cannot be read",
            source,
        })?;
        if line.trim().is_empty() {
            continue;
        }
        let job = match serde_json::from_str::<Line>(&line) {
            Err(error) => Job {
                custom_id: format!("line {number}").into(),
                asked: Err(format!("line {number} is no request: {error}")),
            },
            Ok(line) => {
                if let Some(before) = seen.insert(line.custom_id.clone(), number) {
                    return Err(ServerError::Setting(format!(
                        "lines {before} and {number} have the same custom_id {:?}; answers could not be told \
                         apart",
                        line.custom_id
                    )));
                }
                Job {
                    custom_id: line.custom_id.clone().into(),
                    asked: asked(line),
                }
            }
        };
        jobs.push(job);
    }
    Ok(jobs)
}

fn asked(line: Line) -> Result<(String, Value), String> {
    if line
        .method
        .as_deref()
        .is_some_and(|method| method != "POST")
    {
        return Err("the method of a request in a file is POST".to_owned());
    }
    if !ENDPOINTS.contains(&line.url.as_str()) {
        return Err(format!(
            "{:?} cannot be asked in a file; {} can",
            line.url,
            ENDPOINTS.join(", ")
        ));
    }
    let mut body = line.body;
    let Some(fields) = body.as_object_mut() else {
        return Err("the body of a request is a JSON object".to_owned());
    };
    if fields.get("stream").and_then(Value::as_bool) == Some(true) {
        return Err("answers in a file cannot be streamed; leave \"stream\" out".to_owned());
    }
    if line.url != "/v1/embeddings" {
        let extras = fields.entry("longview").or_insert_with(|| json!({}));
        if let Some(extras) = extras.as_object_mut() {
            extras.entry("priority").or_insert_with(|| "low".into());
        }
    }
    Ok((line.url, body))
}

/// The order in which requests are asked; see the [module](self).
pub(crate) fn order(jobs: Vec<Job>) -> Vec<Job> {
    let text = |job: &Job| match &job.asked {
        // The prompt alone: what else a body says would stand before it.
        Ok((url, body)) => {
            let prompt = ["messages", "prompt", "input"]
                .iter()
                .find_map(|name| body.get(*name));
            format!(
                "{url} {} {}",
                body.get("instructions").unwrap_or(&Value::Null),
                prompt.unwrap_or(&Value::Null)
            )
        }
        Err(_) => String::new(),
    };
    let mut keyed: Vec<(String, Job)> = jobs.into_iter().map(|job| (text(&job), job)).collect();
    keyed.sort_by(|a, b| a.0.cmp(&b.0));
    let mut groups: Vec<Vec<(String, Job)>> = Vec::new();
    for (text, job) in keyed {
        let begins_alike = |group: &Vec<(String, Job)>| {
            let (a, b) = (group[0].0.as_bytes(), text.as_bytes());
            let common = a.iter().zip(b).take_while(|(a, b)| a == b).count();
            common >= GROUP_BYTES
        };
        match groups.last_mut().filter(|group| begins_alike(group)) {
            Some(group) => group.push((text, job)),
            None => groups.push(vec![(text, job)]),
        }
    }
    // Tokens written for each byte read, of a whole group: its beginning is read once.
    let ratio = |group: &Vec<(String, Job)>| {
        let written: u64 = group.iter().map(|(_, job)| longest_answer(job)).sum();
        let longest = group.iter().map(|(text, _)| text.len()).max().unwrap_or(0);
        written as f64 / longest.max(1) as f64
    };
    groups.sort_by(|a, b| ratio(b).total_cmp(&ratio(a)));
    groups.into_iter().flatten().map(|(_, job)| job).collect()
}

fn longest_answer(job: &Job) -> u64 {
    let Ok((_, body)) = &job.asked else { return 0 };
    let names = ["max_completion_tokens", "max_tokens", "max_output_tokens"];
    let said = names.iter().find_map(|name| body.get(*name)?.as_u64());
    let texts = body.get("n").and_then(Value::as_u64).unwrap_or(1);
    said.unwrap_or(USUAL_ANSWER).saturating_mul(texts)
}

/// Asks all requests, so many at once; answers come as they are done. When `is_stopping`, no more are
/// asked, and one that cannot be answered for that reason has no answer.
pub(crate) fn submit(
    router: Router,
    jobs: Vec<Job>,
    most_at_once: usize,
    is_stopping: impl Fn() -> bool + Clone + Send + Sync + 'static,
) -> mpsc::Receiver<Value> {
    let (sender, receiver) = mpsc::channel(16);
    let permits = Arc::new(Semaphore::new(most_at_once.max(1)));
    tokio::spawn(async move {
        for job in jobs {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                return;
            };
            if sender.is_closed() || is_stopping() {
                return;
            }
            let (router, sender, is_stopping) =
                (router.clone(), sender.clone(), is_stopping.clone());
            tokio::spawn(async move {
                let answer = tokio::select! {
                    answer = answer(router, job, is_stopping) => answer,
                    // Whoever wanted it has gone.
                    () = sender.closed() => return,
                };
                drop(permit);
                if let Some(answer) = answer {
                    let _ = sender.send(answer).await;
                }
            });
        }
    });
    receiver
}

async fn answer(router: Router, job: Job, is_stopping: impl Fn() -> bool) -> Option<Value> {
    let (status, body) = match job.asked {
        Err(message) => (
            StatusCode::BAD_REQUEST,
            json!({ "error": { "message": message, "type": "invalid_request_error", "param": null, "code": "invalid_line" } }),
        ),
        Ok((url, body)) => {
            let text = body.to_string();
            let mut tries = MOST_TRIES;
            loop {
                let request = Request::builder()
                    .method(Method::POST)
                    .uri(&url)
                    .header(header::CONTENT_TYPE, "application/json")
                    // A body of unknown length takes the room of the longest.
                    .header(header::CONTENT_LENGTH, text.len())
                    .body(Body::from(text.clone()))
                    .expect("the parts of the request are well-formed");
                let Ok(response) = router.clone().oneshot(request).await;
                let status = response.status();
                let body = to_bytes(response.into_body(), MOST_BYTES)
                    .await
                    .unwrap_or_default();
                let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
                let pause = match status {
                    // Others are before it.
                    StatusCode::TOO_MANY_REQUESTS => FULL_QUEUE_PAUSE,
                    StatusCode::SERVICE_UNAVAILABLE if is_stopping() => return None,
                    // Others may leave some memory.
                    StatusCode::SERVICE_UNAVAILABLE
                        if body["error"]["code"] == "insufficient_memory" && tries > 0 =>
                    {
                        tries -= 1;
                        MEMORY_PAUSE
                    }
                    _ => break (status, body),
                };
                if is_stopping() {
                    return None;
                }
                tokio::time::sleep(pause).await;
            }
        }
    };
    Some(json!({
        "id": new_id("batch_req_"),
        "custom_id": job.custom_id,
        "response": { "status_code": status.as_u16(), "request_id": new_id("req_"), "body": body },
        "error": null,
    }))
}

/// Whether a line was answered well.
pub(crate) fn is_good(answer: &Value) -> bool {
    matches!(answer["response"]["status_code"].as_u64(), Some(200..=299))
}

impl BatchSummary {
    pub(crate) fn of(total: usize) -> BatchSummary {
        BatchSummary {
            total,
            ..BatchSummary::default()
        }
    }

    /// Takes one answer in.
    pub(crate) fn add(&mut self, answer: &Value) {
        let response = &answer["response"];
        match is_good(answer) {
            true => self.completed += 1,
            false => self.failed += 1,
        }
        let usage = &response["body"]["usage"];
        let count = |names: &[&str]| {
            names
                .iter()
                .find_map(|name| usage.pointer(name)?.as_u64())
                .unwrap_or(0)
        };
        self.prompt_tokens += count(&["/prompt_tokens", "/input_tokens"]);
        self.generated_tokens += count(&["/completion_tokens", "/output_tokens"]);
        self.reused_tokens += count(&[
            "/prompt_tokens_details/cached_tokens",
            "/input_tokens_details/cached_tokens",
        ]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(id: &str, prompt: &str, max_tokens: u64) -> String {
        json!({
            "custom_id": id, "method": "POST", "url": "/v1/completions",
            "body": { "prompt": prompt, "max_tokens": max_tokens }
        })
        .to_string()
    }

    #[test]
    fn those_that_begin_alike_stand_together_and_long_answers_come_first() {
        let (a, b) = ("a".repeat(400), "b".repeat(400));
        let lines = [
            line("a1", &format!("{a}1"), 10),
            line("b1", &format!("{b}1"), 10),
            line("a2", &format!("{a}2"), 10),
            line("short", "x", 500),
            line("b2", &format!("{b}2"), 900),
        ]
        .join("\n");
        let ordered = order(read(lines.as_bytes()).unwrap());
        let ids: Vec<&str> = ordered
            .iter()
            .map(|job| job.custom_id.as_str().unwrap())
            .collect();
        assert_eq!(ids, ["short", "b1", "b2", "a1", "a2"]);
    }

    #[test]
    fn lines_that_make_no_sense_say_so_and_twins_are_refused() {
        let bad = [
            "{\"custom_id\": 1}".to_owned(),
            json!({"custom_id": "x", "url": "/v1/models", "body": {}}).to_string(),
            json!({"custom_id": "y", "url": "/v1/completions", "body": {"stream": true}})
                .to_string(),
            json!({"custom_id": "z", "url": "/v1/completions", "body": 3}).to_string(),
        ]
        .join("\n");
        let jobs = read(bad.as_bytes()).unwrap();
        assert_eq!(jobs.len(), 4);
        assert!(jobs.iter().all(|job| job.asked.is_err()));
        let twins = [line("a", "x", 1), line("a", "y", 1)].join("\n");
        assert!(read(twins.as_bytes()).is_err());
    }
}
