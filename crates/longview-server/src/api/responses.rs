//! `POST /v1/responses`: OpenAI's newer protocol, without a memory of its own: every request brings the
//! whole conversation, and what it has in common with earlier ones is taken over by content.

use axum::extract::State;
use axum::response::Response;
use axum::{Extension, Json};
use longview::FinishReason;
use longview::schedule::Token;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::chat::{self, ChatRequest, Prepared, Reading};
use crate::app::{App, Guest, new_id, unix_seconds};
use crate::error::ApiError;
use crate::input::Input;
use crate::prompt::{ChatMessage, Content, Part};
use crate::run::{self, Finished, Meta, Total};
use crate::settings::Extras;
use crate::sse::{self, Message, Protocol};
use crate::tools::{Call, Piece};

/// A conversation to be gone on with.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct ResponsesRequest {
    /// The model's name; left out, it is the one this server runs.
    model: Option<String>,
    /// A text, or the items of a conversation.
    input: ResponsesInput,
    /// What stands before everything.
    instructions: Option<String>,
    /// The most tokens of the answer.
    max_output_tokens: Option<u64>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    stream: Option<bool>,
    /// Functions that the model may call.
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    /// `format` says what the answer looks like.
    text: Option<Value>,
    /// Cannot be had: responses are not stored here.
    previous_response_id: Option<String>,
    /// Whether to store the response; it is not.
    #[allow(
        dead_code,
        reason = "known to the protocol; the response says that it is not stored"
    )]
    store: Option<bool>,
    metadata: Option<Map<String, Value>>,
    /// Says who asks; not used.
    #[allow(dead_code, reason = "known to the protocol, and nothing is made of it")]
    user: Option<String>,
    /// What only this server understands.
    longview: Option<Extras>,
}

/// A text, or items.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum ResponsesInput {
    /// What the user says.
    Text(String),
    /// Messages, calls and their results.
    Items(Vec<Value>),
}

/// An answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ResponsesResponse {
    #[serde(flatten)]
    #[schema(value_type = Object)]
    fields: Map<String, Value>,
}

/// Answers a conversation.
#[utoipa::path(
    post, path = "/v1/responses", tag = "OpenAI", request_body = ResponsesRequest,
    responses(
        (status = 200, description = "The answer, or a stream of events", body = ResponsesResponse),
        (status = 400, description = "The request is wrong; the message says what to do"),
        (status = 429, description = "Too many requests wait; `Retry-After` says for how long")
    )
)]
pub(crate) async fn create(
    State(app): State<App>,
    Extension(Guest(tenancy)): Extension<Guest>,
    Input { value, ignored }: Input<ResponsesRequest>,
) -> Result<Response, ApiError> {
    app.check_model(value.model.as_deref())?;
    let extras = value.longview.clone().unwrap_or_default();
    let stream = value.stream.unwrap_or(false);
    let frame = Frame::new(&app, &value);
    let prepared = {
        let (app, extras) = (app.clone(), extras.clone());
        tokio::task::spawn_blocking(move || {
            let request = value.converted()?;
            chat::prepare(&app, &tenancy, &request, &extras).map(|prepared| (prepared, tenancy))
        })
        .await
        .map_err(|_| ApiError::failed("the prompt could not be made"))??
    };
    let (
        Prepared {
            prompt,
            settings,
            toolbox,
            grammar,
        },
        tenancy,
    ) = prepared;
    let restrict = || {
        grammar
            .as_ref()
            .map(crate::grammar::Grammar::sampler)
            .transpose()
    };
    let running = run::start(&app, &tenancy, vec![prompt], &settings, &extras, &restrict)?;
    let reading = Reading::new(toolbox.as_ref()).at_most(frame.several_calls);
    let mut output = Output::new(frame, reading);
    if stream {
        return Ok(sse::respond(&app, running, output, &ignored));
    }
    let Finished { texts, total, meta } = running.finish(&app).await?;
    let text = texts.into_iter().next().unwrap_or_default();
    let mut events = Vec::new();
    output.text(0, &text.text, &[], &mut events);
    output.finished(0, text.reason.unwrap_or(FinishReason::Length), &mut events);
    let fields = output.response("completed", Some((&total, &meta)));
    Ok(ignored.on(Json(ResponsesResponse { fields })))
}

impl ResponsesRequest {
    /// The same in the older protocol's words.
    fn converted(self) -> Result<ChatRequest, ApiError> {
        if self.previous_response_id.is_some() {
            return Err(ApiError::field(
                "previous_response_id",
                "responses are not stored here; send the whole conversation as input (what was read of it \
                 before is taken over)",
            ));
        }
        let mut messages = Vec::new();
        if let Some(instructions) = self.instructions {
            messages.push(ChatMessage::new("system", instructions));
        }
        match self.input {
            ResponsesInput::Text(text) => messages.push(ChatMessage::new("user", text)),
            ResponsesInput::Items(items) => {
                for (at, item) in items.iter().enumerate() {
                    messages.push(message(at, item)?);
                }
            }
        }
        let format = self.text.and_then(|text| text.get("format").cloned());
        Ok(ChatRequest {
            model: self.model,
            messages,
            stream: self.stream,
            stream_options: None,
            n: None,
            max_tokens: self.max_output_tokens,
            max_completion_tokens: None,
            stop: None,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: None,
            min_p: None,
            seed: None,
            presence_penalty: None,
            frequency_penalty: None,
            repetition_penalty: None,
            logit_bias: None,
            logprobs: None,
            top_logprobs: None,
            tools: self.tools,
            tool_choice: self.tool_choice,
            parallel_tool_calls: self.parallel_tool_calls,
            response_format: format,
            chat_template_kwargs: None,
            ignore_eos: None,
            truncate: None,
            user: None,
            longview: self.longview,
        })
    }
}

/// A message of an item of the input.
fn message(at: usize, item: &Value) -> Result<ChatMessage, ApiError> {
    let param = |name: &str| format!("input[{at}].{name}");
    let field = |name: &str| item.get(name).and_then(Value::as_str).map(str::to_owned);
    match field("type").as_deref() {
        None | Some("message") => {
            let role = field("role")
                .ok_or_else(|| ApiError::field(param("role"), "a message needs a role"))?;
            let content = item.get("content").cloned().unwrap_or_default();
            let content: Content = serde_json::from_value(content).map_err(|_| {
                ApiError::field(
                    param("content"),
                    "a message's content is a text or a list of parts",
                )
            })?;
            Ok(ChatMessage {
                content: Some(content),
                ..ChatMessage::new(&role, "")
            })
        }
        Some("function_call") => Ok(ChatMessage {
            content: None,
            tool_calls: Some(vec![json!({
                "id": field("call_id"),
                "type": "function",
                "function": { "name": field("name"), "arguments": field("arguments") },
            })]),
            ..ChatMessage::new("assistant", "")
        }),
        Some("function_call_output") => {
            let output = match item.get("output") {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Array(parts)) => {
                    let parts: Vec<Part> =
                        serde_json::from_value(parts.clone().into()).map_err(|_| {
                            ApiError::field(
                                param("output"),
                                "an output is a text or a list of parts",
                            )
                        })?;
                    Content::Parts(parts).text(&param("output"))?
                }
                _ => {
                    return Err(ApiError::field(
                        param("output"),
                        "an output is a text or a list of parts",
                    ));
                }
            };
            Ok(ChatMessage {
                tool_call_id: field("call_id"),
                ..ChatMessage::new("tool", output)
            })
        }
        // What the model thought is no part of what is said again.
        Some("reasoning") => Ok(ChatMessage {
            content: None,
            ..ChatMessage::new("assistant", "")
        }),
        Some(other) => Err(ApiError::field(
            param("type"),
            format!("items of type {other:?} cannot be read here"),
        )),
    }
}

/// What stays the same in every event about a response.
struct Frame {
    id: String,
    created: u64,
    model: String,
    echoed: Map<String, Value>,
    several_calls: Option<bool>,
}

impl Frame {
    fn new(app: &App, request: &ResponsesRequest) -> Frame {
        let echoed = json!({
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "tools": request.tools.clone().unwrap_or_default(),
            "tool_choice": request.tool_choice.clone().unwrap_or_else(|| json!("auto")),
            "parallel_tool_calls": request.parallel_tool_calls.unwrap_or(true),
            "text": request.text.clone().unwrap_or_else(|| json!({ "format": { "type": "text" } })),
            "metadata": request.metadata.clone().unwrap_or_default(),
            "previous_response_id": null,
            "store": false,
        });
        let Value::Object(echoed) = echoed else {
            unreachable!("it was written as an object");
        };
        Frame {
            id: new_id("resp_"),
            created: unix_seconds(),
            model: app.model().to_owned(),
            echoed,
            several_calls: request.parallel_tool_calls,
        }
    }
}

/// What the answer consists of so far, and the events that tell of it.
struct Output {
    frame: Frame,
    reading: Reading,
    /// Complete items.
    items: Vec<Value>,
    /// The text item that is open: its id and text.
    open: Option<(String, String)>,
    reason: Option<FinishReason>,
    sequence: u64,
}

impl Output {
    fn new(frame: Frame, reading: Reading) -> Output {
        Output {
            frame,
            reading,
            items: Vec::new(),
            open: None,
            reason: None,
            sequence: 0,
        }
    }

    fn response(&self, status: &str, done: Option<(&Total, &Meta)>) -> Map<String, Value> {
        let cut = matches!(
            self.reason,
            Some(FinishReason::Length | FinishReason::ContextFull)
        );
        let mut fields = Map::new();
        let mut put = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        put("id", self.frame.id.clone().into());
        put("object", "response".into());
        put("created_at", self.frame.created.into());
        put("model", self.frame.model.clone().into());
        put(
            "status",
            match status {
                "completed" if cut => "incomplete",
                status => status,
            }
            .into(),
        );
        put("error", Value::Null);
        put(
            "incomplete_details",
            match cut {
                true => json!({ "reason": "max_output_tokens" }),
                false => Value::Null,
            },
        );
        put("output", self.items.clone().into());
        put("usage", Value::Null);
        if let Some((total, meta)) = done {
            let sum = &total.sum;
            put(
                "usage",
                json!({
                    "input_tokens": sum.prompt_tokens,
                    "input_tokens_details": { "cached_tokens": sum.reused_tokens },
                    "output_tokens": sum.generated_tokens,
                    "output_tokens_details": { "reasoning_tokens": 0 },
                    "total_tokens": sum.prompt_tokens + sum.generated_tokens,
                }),
            );
            put("longview", total.report(meta));
        }
        fields.extend(self.frame.echoed.clone());
        fields
    }

    fn event(&mut self, name: &'static str, mut value: Value, out: &mut Vec<Message>) {
        value["type"] = name.into();
        value["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        out.push(Message::typed(name, &value));
    }

    fn pieces(&mut self, pieces: Vec<Piece>, out: &mut Vec<Message>) {
        for piece in pieces {
            match piece {
                Piece::Text(text) => self.more(&text, out),
                Piece::Call(call) => {
                    self.close(out);
                    self.call(call, out);
                }
            }
        }
    }

    fn more(&mut self, text: &str, out: &mut Vec<Message>) {
        let index = self.items.len();
        let id = match &mut self.open {
            Some((id, so_far)) => {
                so_far.push_str(text);
                id.clone()
            }
            None => {
                let id = new_id("msg_");
                self.open = Some((id.clone(), text.to_owned()));
                let item = text_item(&id, "in_progress", None);
                self.event(
                    "response.output_item.added",
                    json!({ "output_index": index, "item": item }),
                    out,
                );
                let part = json!({ "type": "output_text", "text": "", "annotations": [] });
                self.event(
                    "response.content_part.added",
                    json!({ "item_id": id, "output_index": index, "content_index": 0, "part": part }),
                    out,
                );
                id
            }
        };
        let delta = json!({
            "item_id": id, "output_index": index, "content_index": 0, "delta": text, "logprobs": []
        });
        self.event("response.output_text.delta", delta, out);
    }

    /// Completes the text item that is open.
    fn close(&mut self, out: &mut Vec<Message>) {
        let Some((id, text)) = self.open.take() else {
            return;
        };
        let index = self.items.len();
        let place = || json!({ "item_id": id, "output_index": index, "content_index": 0 });
        let mut done = place();
        done["text"] = text.clone().into();
        done["logprobs"] = json!([]);
        self.event("response.output_text.done", done, out);
        let mut done = place();
        done["part"] = json!({ "type": "output_text", "text": text, "annotations": [] });
        self.event("response.content_part.done", done, out);
        let item = text_item(&id, "completed", Some(&text));
        self.event(
            "response.output_item.done",
            json!({ "output_index": index, "item": item }),
            out,
        );
        self.items.push(item);
    }

    fn call(&mut self, call: Call, out: &mut Vec<Message>) {
        let index = self.items.len();
        let id = new_id("fc_");
        let item = |status: &str, arguments: &str| {
            json!({
                "id": id, "type": "function_call", "status": status, "call_id": call.id,
                "name": call.name, "arguments": arguments,
            })
        };
        self.event(
            "response.output_item.added",
            json!({ "output_index": index, "item": item("in_progress", "") }),
            out,
        );
        self.event(
            "response.function_call_arguments.delta",
            json!({ "item_id": id, "output_index": index, "delta": call.arguments }),
            out,
        );
        self.event(
            "response.function_call_arguments.done",
            json!({ "item_id": id, "output_index": index, "arguments": call.arguments, "name": call.name }),
            out,
        );
        let item = item("completed", &call.arguments);
        self.event(
            "response.output_item.done",
            json!({ "output_index": index, "item": item }),
            out,
        );
        self.items.push(item);
    }
}

impl Protocol for Output {
    fn begin(&mut self, out: &mut Vec<Message>) {
        for name in ["response.created", "response.in_progress"] {
            let response = self.response("in_progress", None);
            self.event(name, json!({ "response": response }), out);
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
        let response = self.response("completed", Some((total, meta)));
        let name = match response["status"].as_str() {
            Some("incomplete") => "response.incomplete",
            _ => "response.completed",
        };
        self.event(name, json!({ "response": response }), out);
    }

    fn failed(&mut self, error: &ApiError, out: &mut Vec<Message>) {
        let mut response = self.response("failed", None);
        response.insert(
            "error".to_owned(),
            json!({ "code": error.code.unwrap_or("server_error"), "message": error.message }),
        );
        self.event("response.failed", json!({ "response": response }), out);
    }
}

fn text_item(id: &str, status: &str, text: Option<&str>) -> Value {
    let content = match text {
        None => json!([]),
        Some(text) => {
            json!([{ "type": "output_text", "text": text, "annotations": [], "logprobs": [] }])
        }
    };
    json!({ "id": id, "type": "message", "role": "assistant", "status": status, "content": content })
}
