//! Anthropic's protocol: `POST /v1/messages` and `POST /v1/messages/count_tokens`.

use axum::extract::State;
use axum::response::Response;
use axum::{Extension, Json};
use longview::FinishReason;
use longview::schedule::Token;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::chat::{self, ChatRequest, Prepared, Reading};
use crate::app::{App, Guest, Tenancy, new_id};
use crate::error::ApiError;
use crate::input::Input;
use crate::prompt::{self, ChatMessage, Content, Part, TemplateExtras};
use crate::run::{self, Finished, Meta, Total};
use crate::settings::{Extras, Stop};
use crate::sse::{self, Message, Protocol};
use crate::tools::Piece;

/// A conversation to be gone on with.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct MessagesRequest {
    /// The model's name.
    model: Option<String>,
    /// Turns of `user` and `assistant`; the last is the user's.
    messages: Vec<Turn>,
    /// What stands before everything.
    system: Option<Blocks>,
    /// The most tokens of the answer.
    max_tokens: Option<u64>,
    stop_sequences: Option<Vec<String>>,
    stream: Option<bool>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<u64>,
    /// Functions that the model may call.
    tools: Option<Vec<Value>>,
    /// `auto`, `any`, `tool` with a name, or `none`.
    tool_choice: Option<Value>,
    /// Says who asks; not used.
    #[allow(dead_code, reason = "known to the protocol, and nothing is made of it")]
    metadata: Option<Value>,
    /// What only this server understands.
    longview: Option<Extras>,
}

/// One turn.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct Turn {
    role: String,
    content: Blocks,
}

/// A text, or blocks.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Blocks {
    /// A text.
    Text(String),
    /// Blocks: `text`, `tool_use`, `tool_result`.
    List(Vec<Value>),
}

/// An answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct MessagesResponse {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    role: &'static str,
    model: String,
    content: Vec<Value>,
    stop_reason: &'static str,
    stop_sequence: Option<String>,
    usage: Value,
    /// What was measured.
    longview: Value,
}

/// How many tokens a conversation has.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CountResponse {
    input_tokens: usize,
}

/// Answers a conversation.
#[utoipa::path(
    post, path = "/v1/messages", tag = "Anthropic", request_body = MessagesRequest,
    responses(
        (status = 200, description = "The answer, or a stream of events", body = MessagesResponse),
        (status = 400, description = "The request is wrong; the message says what to do"),
        (status = 429, description = "Too many requests wait; `Retry-After` says for how long")
    )
)]
pub(crate) async fn create(
    State(app): State<App>,
    Extension(Guest(tenancy)): Extension<Guest>,
    input: Result<Input<MessagesRequest>, ApiError>,
) -> Response {
    let answer = match input {
        Ok(input) => answer(&app, &tenancy, input).await,
        Err(error) => Err(error),
    };
    answer.unwrap_or_else(|error| error.response(error.anthropic()))
}

/// Counts the tokens of a conversation.
#[utoipa::path(
    post, path = "/v1/messages/count_tokens", tag = "Anthropic", request_body = MessagesRequest,
    responses(
        (status = 200, description = "The number of tokens", body = CountResponse),
        (status = 400, description = "The request is wrong")
    )
)]
pub(crate) async fn count(
    State(app): State<App>,
    Extension(Guest(tenancy)): Extension<Guest>,
    input: Result<Input<MessagesRequest>, ApiError>,
) -> Response {
    let answer = match input {
        Ok(Input { value, ignored }) => {
            let counted = tokio::task::spawn_blocking(move || {
                app.check_model(value.model.as_deref())?;
                let extras = value.longview.clone().unwrap_or_default();
                let request = value.converted()?;
                chat::prepare(&app, &tenancy, &request, &extras)
            });
            let counted = counted
                .await
                .map_err(|_| ApiError::failed("the prompt could not be made"));
            counted.and_then(|counted| counted).map(|prepared| {
                ignored.on(Json(CountResponse {
                    input_tokens: prepared.prompt.tokens.len(),
                }))
            })
        }
        Err(error) => Err(error),
    };
    answer.unwrap_or_else(|error| error.response(error.anthropic()))
}

async fn answer(
    app: &App,
    tenancy: &std::sync::Arc<Tenancy>,
    Input { value, ignored }: Input<MessagesRequest>,
) -> Result<Response, ApiError> {
    app.check_model(value.model.as_deref())?;
    if value.max_tokens.is_none() {
        return Err(ApiError::field(
            "max_tokens",
            "max_tokens is missing; say how long the answer may be",
        ));
    }
    let extras = value.longview.clone().unwrap_or_default();
    let stream = value.stream.unwrap_or(false);
    let stops = value.stop_sequences.clone().unwrap_or_default();
    let (prepared, breakpoint) = {
        let (app, tenancy, extras) = (app.clone(), tenancy.clone(), extras.clone());
        tokio::task::spawn_blocking(move || {
            let request = value.converted()?;
            let prepared = chat::prepare(&app, &tenancy, &request, &extras)?;
            let breakpoint = breakpoint(&app, &request.messages, &prepared.prompt.tokens);
            Ok::<_, ApiError>((prepared, breakpoint))
        })
        .await
        .map_err(|_| ApiError::failed("the prompt could not be made"))??
    };
    let Prepared {
        prompt,
        settings,
        toolbox,
        grammar,
    } = prepared;
    let prompt_tokens = prompt.tokens.len();
    let restrict = || {
        grammar
            .as_ref()
            .map(crate::grammar::Grammar::sampler)
            .transpose()
    };
    let running = run::start(app, tenancy, vec![prompt], &settings, &extras, &restrict)?;
    let id = new_id("msg_");
    if stream {
        let protocol = Events {
            id,
            model: app.model().to_owned(),
            prompt_tokens,
            breakpoint,
            reading: Reading::new(toolbox.as_ref()),
            block: Block::None,
            index: 0,
            reason: None,
            stops,
            progress: extras.progress,
        };
        return Ok(sse::respond(app, running, protocol, &ignored));
    }
    let Finished { texts, total, meta } = running.finish(app).await?;
    let text = texts.into_iter().next().unwrap_or_default();
    let mut reading = Reading::new(toolbox.as_ref());
    let mut pieces = reading.push(&text.text);
    pieces.extend(reading.finish());
    let mut content: Vec<Value> = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Text(more) => match content.last_mut() {
                Some(Value::Object(last)) if last["type"] == "text" => {
                    let so_far = last["text"].as_str().unwrap_or_default().to_owned();
                    last["text"] = (so_far + &more).into();
                }
                _ => content.push(json!({ "type": "text", "text": more })),
            },
            Piece::Call(call) => content.push(json!({
                "type": "tool_use",
                "id": call.id,
                "name": call.name,
                "input": arguments(&call.arguments),
            })),
        }
    }
    let reason = text.reason.unwrap_or(FinishReason::Length);
    let response = MessagesResponse {
        id,
        kind: "message",
        role: "assistant",
        model: app.model().to_owned(),
        content,
        stop_reason: stop_reason(reason, reading.calls),
        stop_sequence: stop_sequence(reason, &stops),
        usage: usage(&total, breakpoint),
        longview: total.report(&meta),
    };
    Ok(ignored.on(Json(response)))
}

impl MessagesRequest {
    /// The same in the other protocol's words.
    fn converted(self) -> Result<ChatRequest, ApiError> {
        if self.messages.is_empty() {
            return Err(
                ApiError::field("messages", "there are no messages; give at least one")
                    .code("empty_messages"),
            );
        }
        let mut messages = Vec::new();
        if let Some(system) = &self.system {
            let parts = system.parts("system")?;
            messages.push(ChatMessage {
                content: Some(Content::Parts(parts)),
                ..ChatMessage::new("system", "")
            });
        }
        for (at, turn) in self.messages.iter().enumerate() {
            turn.add(at, &mut messages)?;
        }
        if self
            .messages
            .last()
            .is_some_and(|turn| turn.role == "assistant")
        {
            return Err(ApiError::field(
                "messages",
                "the last message is the assistant's; answers cannot be begun for the model here, so end \
                 with a user's message",
            ));
        }
        let tools = self.tools.map(|tools| {
            let of_tool = |tool: Value| json!({ "type": "function", "function": tool });
            tools.into_iter().map(of_tool).collect()
        });
        let tool_choice = match &self.tool_choice {
            None => None,
            Some(choice) => Some(match choice.get("type").and_then(Value::as_str) {
                Some(word @ ("auto" | "any" | "none")) => json!(word),
                Some("tool") => json!({ "function": { "name": choice.get("name") } }),
                _ => {
                    return Err(ApiError::field(
                        "tool_choice.type",
                        "tool_choice is of type auto, any, tool or none",
                    ));
                }
            }),
        };
        Ok(ChatRequest {
            model: self.model,
            messages,
            stream: self.stream,
            stream_options: None,
            n: None,
            max_tokens: self.max_tokens,
            max_completion_tokens: None,
            stop: self.stop_sequences.map(Stop::Many),
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: None,
            seed: None,
            presence_penalty: None,
            frequency_penalty: None,
            repetition_penalty: None,
            logit_bias: None,
            logprobs: None,
            top_logprobs: None,
            tools,
            tool_choice,
            parallel_tool_calls: None,
            response_format: None,
            chat_template_kwargs: None,
            ignore_eos: None,
            truncate: None,
            user: None,
            longview: self.longview,
        })
    }
}

impl Turn {
    /// Adds what it says to a conversation: results of calls are messages of their own.
    fn add(&self, at: usize, messages: &mut Vec<ChatMessage>) -> Result<(), ApiError> {
        let param = format!("messages[{at}]");
        if !matches!(self.role.as_str(), "user" | "assistant") {
            return Err(ApiError::field(
                format!("{param}.role"),
                format!(
                    "{:?} is not a role; known are user and assistant",
                    self.role
                ),
            ));
        }
        let blocks = match &self.content {
            Blocks::Text(text) => {
                messages.push(ChatMessage::new(&self.role, text));
                return Ok(());
            }
            Blocks::List(blocks) => blocks,
        };
        let (mut parts, mut calls) = (Vec::new(), Vec::new());
        for (block_at, block) in blocks.iter().enumerate() {
            let param = format!("{param}.content[{block_at}]");
            let field = |name: &str| block.get(name).and_then(Value::as_str);
            match field("type") {
                Some("tool_use") => calls.push(json!({
                    "id": field("id"),
                    "type": "function",
                    "function": {
                        "name": field("name"),
                        "arguments": block.get("input").cloned().unwrap_or_else(|| json!({})),
                    },
                })),
                Some("tool_result") => {
                    let text = match block.get("content") {
                        None | Some(Value::Null) => String::new(),
                        Some(Value::String(text)) => text.clone(),
                        Some(Value::Array(list)) => {
                            let parts = parts_of(list, &format!("{param}.content"))?;
                            Content::Parts(parts).text(&param)?
                        }
                        Some(_) => {
                            return Err(ApiError::field(
                                format!("{param}.content"),
                                "a tool's result is a text or blocks of text",
                            ));
                        }
                    };
                    messages.push(ChatMessage {
                        tool_call_id: field("tool_use_id").map(str::to_owned),
                        ..ChatMessage::new("tool", text)
                    });
                }
                // What the model thought is no part of what is said again.
                Some("thinking" | "redacted_thinking") => {}
                _ => parts.extend(parts_of(std::slice::from_ref(block), &param)?),
            }
        }
        if !parts.is_empty() || !calls.is_empty() {
            messages.push(ChatMessage {
                content: Some(Content::Parts(parts)),
                tool_calls: Some(calls).filter(|calls| !calls.is_empty()),
                ..ChatMessage::new(&self.role, "")
            });
        }
        Ok(())
    }
}

impl Blocks {
    fn parts(&self, param: &str) -> Result<Vec<Part>, ApiError> {
        match self {
            Blocks::Text(text) => Ok(vec![Part {
                kind: "text".to_owned(),
                text: Some(text.clone()),
                cache_control: None,
            }]),
            Blocks::List(blocks) => parts_of(blocks, param),
        }
    }
}

fn parts_of(blocks: &[Value], param: &str) -> Result<Vec<Part>, ApiError> {
    let part = |(at, block): (usize, &Value)| {
        serde_json::from_value(block.clone()).map_err(|error| {
            ApiError::field(
                format!("{param}[{at}]"),
                format!("this is no block: {error}"),
            )
        })
    };
    blocks.iter().enumerate().map(part).collect()
}

/// Tokens up to the last `cache_control` breakpoint, counted to the end of its message.
fn breakpoint(app: &App, messages: &[ChatMessage], tokens: &[u32]) -> usize {
    let marked = |message: &ChatMessage| match &message.content {
        Some(Content::Parts(parts)) => parts.iter().any(|part| part.cache_control.is_some()),
        _ => false,
    };
    let Some(last) = messages.iter().rposition(marked) else {
        return 0;
    };
    // A template that refuses half a conversation tells nothing; then nothing is counted.
    let extras = TemplateExtras::default();
    let head = prompt::chat(
        app.engine(),
        app.specials(),
        &messages[..=last],
        &extras,
        None,
    );
    let head = head.unwrap_or_default();
    let common = head.iter().zip(tokens).take_while(|(a, b)| a == b);
    common.count()
}

fn arguments(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| json!({}))
}

fn stop_reason(reason: FinishReason, calls: usize) -> &'static str {
    match reason {
        _ if calls > 0 => "tool_use",
        FinishReason::Stop => "stop_sequence",
        FinishReason::Length | FinishReason::ContextFull => "max_tokens",
        FinishReason::EndOfText | FinishReason::Cancelled => "end_turn",
    }
}

/// The stop string that ended the text, where it can only be one.
fn stop_sequence(reason: FinishReason, stops: &[String]) -> Option<String> {
    match stops {
        [only] if reason == FinishReason::Stop => Some(only.clone()),
        _ => None,
    }
}

/// Tokens as Anthropic counts: those read from the cache and those written up to a breakpoint apart
/// from the rest.
fn usage(total: &Total, breakpoint: usize) -> Value {
    let sum = &total.sum;
    let created = breakpoint.saturating_sub(sum.reused_tokens);
    json!({
        "input_tokens": sum.prompt_tokens.saturating_sub(sum.reused_tokens + created),
        "cache_creation_input_tokens": created,
        "cache_read_input_tokens": sum.reused_tokens,
        "output_tokens": sum.generated_tokens,
    })
}

/// The stream of events.
struct Events {
    id: String,
    model: String,
    prompt_tokens: usize,
    breakpoint: usize,
    reading: Reading,
    block: Block,
    index: usize,
    reason: Option<FinishReason>,
    stops: Vec<String>,
    progress: bool,
}

/// The content block that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    None,
    Text,
}

impl Events {
    fn close(&mut self, out: &mut Vec<Message>) {
        if self.block == Block::Text {
            let stop = json!({ "type": "content_block_stop", "index": self.index });
            out.push(Message::typed("content_block_stop", &stop));
            self.block = Block::None;
            self.index += 1;
        }
    }

    fn pieces(&mut self, pieces: Vec<Piece>, out: &mut Vec<Message>) {
        for piece in pieces {
            match piece {
                Piece::Text(text) => {
                    if self.block == Block::None {
                        self.start(&json!({ "type": "text", "text": "" }), out);
                        self.block = Block::Text;
                    }
                    self.delta(&json!({ "type": "text_delta", "text": text }), out);
                }
                Piece::Call(call) => {
                    self.close(out);
                    let block = json!({
                        "type": "tool_use", "id": call.id, "name": call.name, "input": {}
                    });
                    self.start(&block, out);
                    let delta = json!({
                        "type": "input_json_delta", "partial_json": call.arguments
                    });
                    self.delta(&delta, out);
                    self.block = Block::Text;
                    self.close(out);
                }
            }
        }
    }

    fn start(&self, block: &Value, out: &mut Vec<Message>) {
        let start = json!({
            "type": "content_block_start", "index": self.index, "content_block": block
        });
        out.push(Message::typed("content_block_start", &start));
    }

    fn delta(&self, delta: &Value, out: &mut Vec<Message>) {
        let delta = json!({ "type": "content_block_delta", "index": self.index, "delta": delta });
        out.push(Message::typed("content_block_delta", &delta));
    }
}

impl Protocol for Events {
    fn begin(&mut self, out: &mut Vec<Message>) {
        let start = json!({
            "type": "message_start",
            "message": {
                "id": self.id,
                "type": "message",
                "role": "assistant",
                "model": self.model,
                "content": [],
                "stop_reason": null,
                "stop_sequence": null,
                "usage": { "input_tokens": self.prompt_tokens, "output_tokens": 0 },
            },
        });
        out.push(Message::typed("message_start", &start));
        out.push(Message::typed("ping", &json!({ "type": "ping" })));
    }

    fn progress(&mut self, reused: usize, done: usize, total: usize, out: &mut Vec<Message>) {
        if self.progress {
            let progress = json!({
                "type": "ping",
                "longview": {
                    "progress": { "reused_tokens": reused, "done_tokens": done, "total_tokens": total }
                },
            });
            out.push(Message::typed("ping", &progress));
        }
    }

    fn text(&mut self, _answer: usize, text: &str, _tokens: &[Token], out: &mut Vec<Message>) {
        let pieces = self.reading.push(text);
        self.pieces(pieces, out);
    }

    fn finished(&mut self, _answer: usize, reason: FinishReason, out: &mut Vec<Message>) {
        let pieces = self.reading.finish();
        self.pieces(pieces, out);
        self.close(out);
        self.reason = Some(reason);
    }

    fn end(&mut self, total: &Total, meta: &Meta, out: &mut Vec<Message>) {
        let reason = self.reason.unwrap_or(FinishReason::Length);
        let delta = json!({
            "type": "message_delta",
            "delta": {
                "stop_reason": stop_reason(reason, self.reading.calls),
                "stop_sequence": stop_sequence(reason, &self.stops),
            },
            "usage": usage(total, self.breakpoint),
            "longview": total.report(meta),
        });
        out.push(Message::typed("message_delta", &delta));
        let stop = json!({ "type": "message_stop" });
        out.push(Message::typed("message_stop", &stop));
    }

    fn failed(&mut self, error: &ApiError, out: &mut Vec<Message>) {
        out.push(Message::typed("error", &error.anthropic()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::Toolbox;

    #[test]
    fn turns_become_messages_and_results_their_own() {
        let request: MessagesRequest = serde_json::from_value(json!({
            "max_tokens": 5,
            "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {"role": "user", "content": "Weather?"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "hm"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Paris"}}
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "rain"}]},
                    {"type": "text", "text": "And?"}
                ]}
            ],
            "tools": [{"name": "weather", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "any"}
        }))
        .unwrap();
        let converted = request.converted().unwrap();
        let roles: Vec<&str> = converted.messages.iter().map(|m| m.role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool", "user"]);
        assert_eq!(converted.messages[3].tool_call_id.as_deref(), Some("t1"));
        let toolbox = Toolbox::new(converted.tools.as_deref(), converted.tool_choice.as_ref());
        assert!(toolbox.unwrap().unwrap().forced().is_some());
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_place() {
        let refused = |value: Value| {
            let request: MessagesRequest = serde_json::from_value(value).unwrap();
            request.converted().err().unwrap().param.unwrap()
        };
        assert_eq!(refused(json!({"messages": []})), "messages");
        let user = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
        assert_eq!(
            refused(user(json!([{"no": "type"}]))),
            "messages[0].content[0][0]"
        );
        assert_eq!(
            refused(json!({"messages": [{"role": "robot", "content": "x"}]})),
            "messages[0].role"
        );
        assert_eq!(
            refused(json!({"messages": [{"role": "assistant", "content": "x"}]})),
            "messages"
        );
    }
}
