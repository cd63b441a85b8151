//! `POST /v1/chat/completions`.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::Response;
use axum::{Extension, Json};
use longview::FinishReason;
use longview::schedule::Token;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::openai::{Frame, Head, StreamOptions, logprobs};
use crate::app::{App, Guest};
use crate::conversation::Conversation;
use crate::error::ApiError;
use crate::input::Input;
use crate::outbox::Text;
use crate::prompt::{ChatMessage, Truncate};
use crate::reading::Reading;
use crate::report::{Meta, Report, Total, Usage};
use crate::run::{self, Begun, Finished, finish_reason};
use crate::settings::{Extras, Stop, Wishes, alternatives};
use crate::sse::{self, End, Message, Protocol};
use crate::tools::{Piece, Toolbox};

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
    longview: Report,
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
    Input { value, ignored, .. }: Input<ChatRequest>,
) -> Result<Response, ApiError> {
    app.check_model(value.model.as_deref())?;
    let extras = value.longview.clone().unwrap_or_default();
    let conversation = value.clone().conversation()?;
    let Begun {
        running, toolbox, ..
    } = run::begin(&app, &tenancy, extras, move |app, tenancy, extras| {
        Ok((conversation.prepare(app, tenancy, extras)?, ()))
    })
    .await?;
    let head = Head::new(&app, "chatcmpl-");
    if value.stream.unwrap_or(false) {
        let (options, extras) = (value.stream_options.as_ref(), value.longview.as_ref());
        let protocol = Chunks {
            frame: Frame::new("chat.completion.chunk", head, options, extras),
            logprobs: value.logprobs.unwrap_or(false),
            calls: vec![0; running.answers],
            app: app.clone(),
        };
        let reading = || Reading::new(toolbox.as_ref()).at_most(value.parallel_tool_calls);
        return Ok(sse::respond(&app, running, protocol, reading, &ignored));
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

impl ChatRequest {
    /// The same in the words that all protocols share.
    fn conversation(self) -> Result<Conversation, ApiError> {
        let logprobs = self.logprobs.unwrap_or(false);
        let top_logprobs = alternatives("top_logprobs", self.top_logprobs)?;
        if top_logprobs > 0 && !logprobs {
            return Err(ApiError::field(
                "top_logprobs",
                "top_logprobs needs \"logprobs\": true",
            ));
        }
        Ok(Conversation {
            messages: self.messages,
            wishes: Wishes {
                answers: self.n,
                max_tokens: self.max_completion_tokens.or(self.max_tokens),
                stop: self.stop,
                temperature: self.temperature,
                top_p: self.top_p,
                top_k: self.top_k,
                min_p: self.min_p,
                seed: self.seed.map(i64::cast_unsigned),
                presence_penalty: self.presence_penalty,
                frequency_penalty: self.frequency_penalty,
                repetition_penalty: self.repetition_penalty,
                logit_bias: self.logit_bias,
                ignore_eos: self.ignore_eos.unwrap_or(false),
                logprobs,
                top_logprobs,
                specials: None,
                echo: false,
            },
            tools: self.tools,
            tool_choice: self.tool_choice,
            format: self.response_format,
            variables: self.chat_template_kwargs.unwrap_or_default(),
            truncate: self.truncate,
        })
    }
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
    let (mut content, mut calls) = (String::new(), Vec::new());
    for piece in reading.whole(&text.text) {
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

/// The stream of chunks.
struct Chunks {
    frame: Frame,
    logprobs: bool,
    /// Calls of each text so far.
    calls: Vec<usize>,
    app: App,
}

impl Chunks {
    fn delta(&self, index: usize, delta: &Value, logprobs: Option<Value>) -> Message {
        let mut choice = json!({ "index": index, "delta": delta, "finish_reason": null });
        if self.logprobs {
            choice["logprobs"] = logprobs.unwrap_or(Value::Null);
        }
        Message::data(&self.frame.chunk(json!([choice])))
    }
}

impl Protocol for Chunks {
    fn begin(&mut self, out: &mut Vec<Message>) {
        for index in 0..self.calls.len() {
            let delta = json!({ "role": "assistant", "content": "" });
            out.push(self.delta(index, &delta, None));
        }
    }

    fn progress(&mut self, reused: usize, done: usize, total: usize, out: &mut Vec<Message>) {
        self.frame.progress(reused, done, total, out);
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
        for piece in pieces {
            let delta = match piece {
                Piece::Text(text) => json!({ "content": text }),
                Piece::Call(call) => {
                    let mut call = call.openai();
                    call["index"] = self.calls[answer].into();
                    self.calls[answer] += 1;
                    json!({ "tool_calls": [call] })
                }
            };
            out.push(self.delta(answer, &delta, logprobs.take()));
        }
        if let Some(logprobs) = logprobs {
            out.push(self.delta(answer, &json!({ "content": "" }), Some(logprobs)));
        }
    }

    fn finished(&mut self, answer: usize, end: &End, out: &mut Vec<Message>) {
        let reason = match end.calls {
            0 => finish_reason(end.reason),
            _ => "tool_calls",
        };
        let choice = json!({ "index": answer, "delta": {}, "finish_reason": reason });
        out.push(Message::data(&self.frame.chunk(json!([choice]))));
    }

    fn end(&mut self, total: &Total, meta: &Meta, out: &mut Vec<Message>) {
        self.frame.end(total, meta, out);
    }

    fn failed(&mut self, error: &ApiError, out: &mut Vec<Message>) {
        self.frame.failed(error, out);
    }
}
