//! `POST /v1/chat/completions`.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::Response;
use axum::{Extension, Json};
use longview::methods::Stage;
use longview::sampling::Sampler;
use longview::schedule::Token;
use longview::{FinishReason, ShowSpecials};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::app::{App, Guest, new_id, unix_seconds};
use crate::edges::Trimmer;
use crate::error::ApiError;
use crate::grammar;
use crate::input::Input;
use crate::outbox::Text;
use crate::prompt::{ChatMessage, TemplateExtras, Truncate, chat};
use crate::run::{self, Finished, Meta, Total, Usage, finish_reason};
use crate::settings::{Extras, Settings, Stop, Wishes};
use crate::sse::{self, Message, Protocol};
use crate::tools::{Piece, Reader, Toolbox};

/// A conversation to be gone on with.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct ChatRequest {
    /// The model's name; left out, it is the one this server runs.
    pub(crate) model: Option<String>,
    /// The conversation so far; the last message is usually the user's.
    pub(crate) messages: Vec<ChatMessage>,
    /// Whether the answer comes as a stream of events.
    #[serde(default)]
    pub(crate) stream: Option<bool>,
    pub(crate) stream_options: Option<StreamOptions>,
    /// Texts wanted, 1 to 16. They differ by their seeds, which count up.
    pub(crate) n: Option<u32>,
    /// The most tokens of the answer.
    pub(crate) max_tokens: Option<u64>,
    /// The same by its newer name.
    pub(crate) max_completion_tokens: Option<u64>,
    pub(crate) stop: Option<Stop>,
    pub(crate) temperature: Option<f64>,
    pub(crate) top_p: Option<f64>,
    pub(crate) top_k: Option<u64>,
    pub(crate) min_p: Option<f64>,
    /// The same seed gives the same text, whatever else runs.
    pub(crate) seed: Option<i64>,
    pub(crate) presence_penalty: Option<f64>,
    pub(crate) frequency_penalty: Option<f64>,
    pub(crate) repetition_penalty: Option<f64>,
    /// From token ids to what is added to their logits, −100 to 100.
    pub(crate) logit_bias: Option<BTreeMap<String, f64>>,
    /// Whether the probabilities of tokens are reported.
    pub(crate) logprobs: Option<bool>,
    /// How many alternatives are reported with each token, at most 20.
    pub(crate) top_logprobs: Option<usize>,
    /// Functions that the model may call.
    pub(crate) tools: Option<Vec<Value>>,
    /// `none`, `auto`, `required`, or one function by name.
    pub(crate) tool_choice: Option<Value>,
    /// Whether several calls may be made at once.
    pub(crate) parallel_tool_calls: Option<bool>,
    /// `text`, `json_object`, or `json_schema` with a schema that the answer follows.
    pub(crate) response_format: Option<Value>,
    /// Further variables for the chat template, such as `enable_thinking`.
    pub(crate) chat_template_kwargs: Option<Map<String, Value>>,
    /// Whether end-of-text tokens are written like any other.
    pub(crate) ignore_eos: Option<bool>,
    /// Cut a prompt that is too long instead of refusing it.
    pub(crate) truncate: Option<Truncate>,
    /// Says who asks; not used.
    #[allow(dead_code, reason = "known to the protocol, and nothing is made of it")]
    pub(crate) user: Option<String>,
    /// What only this server understands.
    pub(crate) longview: Option<Extras>,
}

/// How a stream is to be.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct StreamOptions {
    /// Whether a last chunk says what was used.
    pub(crate) include_usage: Option<bool>,
}

/// An answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatResponse {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: String,
    choices: Vec<Choice>,
    usage: Usage,
    /// What was measured.
    longview: Value,
}

/// One of the texts wanted.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Choice {
    index: usize,
    message: Value,
    logprobs: Option<Value>,
    finish_reason: &'static str,
}

/// Answers a conversation.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "OpenAI", request_body = ChatRequest,
    responses(
        (status = 200, description = "The answer, or a stream of `text/event-stream` chunks", body = ChatResponse),
        (status = 400, description = "The request is wrong; the message says what to do"),
        (status = 429, description = "Too many requests wait; `Retry-After` says for how long")
    )
)]
pub(crate) async fn create(
    State(app): State<App>,
    Extension(Guest(tenancy)): Extension<Guest>,
    Input { value, ignored }: Input<ChatRequest>,
) -> Result<Response, ApiError> {
    app.check_model(value.model.as_deref())?;
    let stream = value.stream.unwrap_or(false);
    let include_usage = value
        .stream_options
        .as_ref()
        .and_then(|options| options.include_usage)
        .unwrap_or(false);
    let extras = value.longview.clone().unwrap_or_default();
    let prepared = {
        let (app, value, extras) = (app.clone(), value.clone(), extras.clone());
        let tenancy = tenancy.clone();
        // Rendering and tokenising a long conversation takes a while.
        tokio::task::spawn_blocking(move || prepare(&app, &tenancy, &value, &extras))
            .await
            .map_err(|_| ApiError::failed("the prompt could not be made"))??
    };
    let Prepared {
        prompt,
        settings,
        toolbox,
        grammar,
    } = prepared;
    let restrict = || -> Result<Option<Box<dyn Sampler>>, ApiError> {
        match &grammar {
            Some(grammar) => Ok(Some(grammar.sampler()?)),
            None => Ok(None),
        }
    };
    let running = run::start(&app, &tenancy, vec![prompt], &settings, &extras, &restrict)?;
    let head = Head {
        id: new_id("chatcmpl-"),
        created: unix_seconds(),
        model: app.model().to_owned(),
        fingerprint: fingerprint(&app),
    };
    if stream {
        let protocol = Chunks {
            head,
            include_usage,
            report: value.longview.is_some(),
            progress: extras.progress,
            logprobs: value.logprobs.unwrap_or(false),
            readers: (0..running.answers)
                .map(|_| Reading::new(toolbox.as_ref()).at_most(value.parallel_tool_calls))
                .collect(),
            app: app.clone(),
        };
        return Ok(sse::respond(&app, running, protocol, &ignored));
    }
    let Finished { texts, total, meta } = running.finish(&app).await?;
    let choices = texts
        .into_iter()
        .enumerate()
        .map(|(index, text)| choice(&app, index, text, toolbox.as_ref(), &value))
        .collect();
    let response = ChatResponse {
        id: head.id,
        object: "chat.completion",
        created: head.created,
        model: head.model,
        system_fingerprint: head.fingerprint,
        choices,
        usage: total.usage(&meta),
        longview: total.report(&meta),
    };
    Ok(ignored.on(Json(response)))
}

/// Everything that is checked before the engine is asked.
pub(crate) struct Prepared {
    pub(crate) prompt: run::Prompt,
    pub(crate) settings: Settings,
    pub(crate) toolbox: Option<Toolbox>,
    pub(crate) grammar: Option<grammar::Grammar>,
}

/// Checks a request and makes its prompt.
pub(crate) fn prepare(
    app: &App,
    tenancy: &crate::app::Tenancy,
    request: &ChatRequest,
    extras: &Extras,
) -> Result<Prepared, ApiError> {
    let toolbox = Toolbox::new(request.tools.as_deref(), request.tool_choice.as_ref())?;
    let grammar = grammar::of_request(app, request.response_format.as_ref(), toolbox.as_ref())?;
    let settings = Wishes {
        answers: request.n,
        max_tokens: request.max_completion_tokens.or(request.max_tokens),
        stop: request.stop.clone(),
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: request.top_k,
        min_p: request.min_p,
        seed: request.seed.map(i64::cast_unsigned),
        presence_penalty: request.presence_penalty,
        frequency_penalty: request.frequency_penalty,
        repetition_penalty: request.repetition_penalty,
        logit_bias: request.logit_bias.clone(),
        ignore_eos: request.ignore_eos.unwrap_or(false),
        logprobs: request.logprobs.unwrap_or(false),
        top_logprobs: request.top_logprobs.unwrap_or(0),
        // Some models mark calls with special tokens.
        specials: toolbox.as_ref().map(|_| ShowSpecials::Show),
    }
    .settle(app, extras)?;
    if request.top_logprobs.unwrap_or(0) > 0 && !request.logprobs.unwrap_or(false) {
        return Err(ApiError::field(
            "top_logprobs",
            "top_logprobs needs \"logprobs\": true",
        ));
    }
    let mut template = TemplateExtras {
        tools: None,
        variables: request.chat_template_kwargs.clone().unwrap_or_default(),
    };
    let mut messages = request.messages.clone();
    if let Some(toolbox) = &toolbox {
        toolbox.show(app, &mut messages, &mut template);
    }
    let engine = app.engine();
    let (held, start) = match &extras.context {
        None => (None, None),
        Some(name) => {
            let held = tenancy.contexts.for_request(app, name)?;
            (Some(held.tokens), held.context)
        }
    };
    let tokens = chat(
        engine,
        app.specials(),
        &messages,
        &template,
        held.as_ref().map(|held| held.as_slice()),
    )?;
    let truncate = request.truncate.or(extras.truncate);
    let prompt = run::fitted(app, tokens, start, truncate, &settings)?;
    Ok(Prepared {
        prompt,
        settings,
        toolbox,
        grammar,
    })
}

/// What runs, so that a client can tell when answers may change.
pub(crate) fn fingerprint(app: &App) -> String {
    let exec = app.engine().exec();
    let store = Stage::Store;
    format!(
        "longview-{}-{}-{}",
        env!("CARGO_PKG_VERSION"),
        exec.numerics,
        app.options().methods.text(store, app.engine().kv_type())
    )
}

fn choice(
    app: &App,
    index: usize,
    text: Text,
    toolbox: Option<&Toolbox>,
    request: &ChatRequest,
) -> Choice {
    let reason = text.reason.unwrap_or(FinishReason::Length);
    let mut reading = Reading::new(toolbox).at_most(request.parallel_tool_calls);
    let mut pieces = reading.push(&text.text);
    pieces.extend(reading.finish());
    let (mut content, mut calls) = (String::new(), Vec::new());
    for piece in pieces {
        match piece {
            Piece::Text(text) => content.push_str(&text),
            Piece::Call(call) => calls.push(call.openai()),
        }
    }
    let finish_reason = match calls.is_empty() {
        true => finish_reason(reason),
        false => "tool_calls",
    };
    let mut message = json!({ "role": "assistant", "content": content, "refusal": null });
    if !calls.is_empty() {
        if content.is_empty() {
            message["content"] = Value::Null;
        }
        message["tool_calls"] = calls.into();
    }
    let logprobs = request
        .logprobs
        .unwrap_or(false)
        .then(|| json!({ "content": logprobs(app, &text.tokens) }));
    Choice {
        index,
        message,
        logprobs,
        finish_reason,
    }
}

/// Probabilities of tokens, as OpenAI writes them.
pub(crate) fn logprobs(app: &App, tokens: &[Token]) -> Vec<Value> {
    let one = |id: u32, logprob: f32| {
        let bytes = app.engine().tokenizer().token_bytes(id).unwrap_or_default();
        json!({
            "token": String::from_utf8_lossy(&bytes),
            "logprob": finite(logprob),
            "bytes": bytes,
        })
    };
    let with_top = |token: &Token| {
        let mut value = one(token.id, token.logprob);
        let top = token.top.iter().map(|&(id, logprob)| one(id, logprob));
        value["top_logprobs"] = top.collect();
        value
    };
    tokens.iter().map(with_top).collect()
}

/// JSON knows no infinity; a token that cannot be has −9999, as clients expect.
pub(crate) fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

/// What every chunk begins with.
#[derive(Clone)]
pub(crate) struct Head {
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) fingerprint: String,
}

/// A text on its way to a client: calls are taken out, and spaces around it.
pub(crate) struct Reading {
    reader: Option<Reader>,
    trimmer: Trimmer,
    pub(crate) calls: usize,
    most_calls: usize,
}

impl Reading {
    pub(crate) fn new(toolbox: Option<&Toolbox>) -> Reading {
        Reading {
            reader: toolbox.map(Toolbox::reader),
            trimmer: Trimmer::default(),
            calls: 0,
            most_calls: usize::MAX,
        }
    }

    /// The same, of which one call is the most.
    pub(crate) fn at_most(mut self, several: Option<bool>) -> Reading {
        if several == Some(false) {
            self.most_calls = 1;
        }
        self
    }

    pub(crate) fn push(&mut self, text: &str) -> Vec<Piece> {
        match &mut self.reader {
            None => self.trim(vec![Piece::Text(text.to_owned())]),
            Some(reader) => {
                let pieces = reader.push(text);
                self.trim(pieces)
            }
        }
    }

    pub(crate) fn finish(&mut self) -> Vec<Piece> {
        match &mut self.reader {
            None => Vec::new(),
            Some(reader) => {
                let pieces = reader.finish();
                self.trim(pieces)
            }
        }
    }

    fn trim(&mut self, pieces: Vec<Piece>) -> Vec<Piece> {
        let mut out = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Text(text) => {
                    let text = self.trimmer.push(&text);
                    if !text.is_empty() {
                        out.push(Piece::Text(text));
                    }
                }
                Piece::Call(_) if self.calls == self.most_calls => {}
                Piece::Call(call) => {
                    self.calls += 1;
                    out.push(Piece::Call(call));
                }
            }
        }
        out
    }
}

/// The stream of chunks.
struct Chunks {
    head: Head,
    include_usage: bool,
    report: bool,
    progress: bool,
    logprobs: bool,
    readers: Vec<Reading>,
    app: App,
}

impl Chunks {
    fn chunk(&self, choices: Value) -> Value {
        json!({
            "id": self.head.id,
            "object": "chat.completion.chunk",
            "created": self.head.created,
            "model": self.head.model,
            "system_fingerprint": self.head.fingerprint,
            "choices": choices,
        })
    }

    fn delta(&self, index: usize, delta: &Value, logprobs: Option<Value>) -> Message {
        let mut choice = json!({ "index": index, "delta": delta, "finish_reason": null });
        if self.logprobs {
            choice["logprobs"] = logprobs.unwrap_or(Value::Null);
        }
        Message::data(&self.chunk(json!([choice])))
    }

    fn pieces(
        &mut self,
        answer: usize,
        pieces: Vec<Piece>,
        tokens: &[Token],
        out: &mut Vec<Message>,
    ) {
        let mut logprobs = (self.logprobs && !tokens.is_empty())
            .then(|| json!({ "content": logprobs(&self.app, tokens) }));
        let before = self.readers[answer].calls;
        let count = pieces
            .iter()
            .filter(|piece| matches!(piece, Piece::Call(_)))
            .count();
        let mut index = before - count.min(before);
        for piece in pieces {
            let delta = match piece {
                Piece::Text(text) => json!({ "content": text }),
                Piece::Call(call) => {
                    let mut call = call.openai();
                    call["index"] = index.into();
                    index += 1;
                    json!({ "tool_calls": [call] })
                }
            };
            out.push(self.delta(answer, &delta, logprobs.take()));
        }
        if let Some(logprobs) = logprobs {
            out.push(self.delta(answer, &json!({ "content": "" }), Some(logprobs)));
        }
    }
}

impl Protocol for Chunks {
    fn begin(&mut self, out: &mut Vec<Message>) {
        for index in 0..self.readers.len() {
            let delta = json!({ "role": "assistant", "content": "" });
            out.push(self.delta(index, &delta, None));
        }
    }

    fn progress(&mut self, reused: usize, done: usize, total: usize, out: &mut Vec<Message>) {
        if self.progress {
            let mut chunk = self.chunk(json!([]));
            chunk["longview"] = json!({
                "progress": { "reused_tokens": reused, "done_tokens": done, "total_tokens": total }
            });
            out.push(Message::data(&chunk));
        }
    }

    fn text(&mut self, answer: usize, text: &str, tokens: &[Token], out: &mut Vec<Message>) {
        let Some(reading) = self.readers.get_mut(answer) else {
            return;
        };
        let pieces = reading.push(text);
        self.pieces(answer, pieces, tokens, out);
    }

    fn finished(&mut self, answer: usize, reason: FinishReason, out: &mut Vec<Message>) {
        let Some(reading) = self.readers.get_mut(answer) else {
            return;
        };
        let pieces = reading.finish();
        self.pieces(answer, pieces, &[], out);
        let reason = match self.readers[answer].calls {
            0 => finish_reason(reason),
            _ => "tool_calls",
        };
        let choice = json!({ "index": answer, "delta": {}, "finish_reason": reason });
        out.push(Message::data(&self.chunk(json!([choice]))));
    }

    fn end(&mut self, total: &Total, meta: &Meta, out: &mut Vec<Message>) {
        // Who has asked for none of it may not expect a chunk without choices.
        if self.include_usage || self.report {
            let mut chunk = self.chunk(json!([]));
            chunk["usage"] = json!(total.usage(meta));
            chunk["longview"] = total.report(meta);
            out.push(Message::data(&chunk));
        }
        out.push(done());
    }

    fn failed(&mut self, error: &ApiError, out: &mut Vec<Message>) {
        out.push(Message::data(&error.openai()));
        out.push(done());
    }
}

/// The last line of OpenAI's streams.
pub(crate) fn done() -> Message {
    Message {
        event: None,
        data: "[DONE]".to_owned(),
    }
}
