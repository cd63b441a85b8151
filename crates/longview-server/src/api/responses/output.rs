//! A response as it comes about: its items, and the events that tell of them.

use std::sync::Arc;

use longview::FinishReason;
use longview::schedule::Token;
use serde_json::{Map, Value, json};

use super::stored::Draft;
use super::{ResponsesRequest, Truncation};
use crate::app::{App, Tenancy, new_id};
use crate::error::ApiError;
use crate::outbox::Text;
use crate::reading::Reading;
use crate::report::{Meta, Total};
use crate::sse::{End, Message, Protocol};
use crate::tools::{Call, Piece};

/// What stays the same in every event about a response.
pub(super) struct Frame {
    id: String,
    created: u64,
    model: String,
    echoed: Map<String, Value>,
}

impl Frame {
    /// Of the response to `request`.
    pub(super) fn new(app: &App, request: &ResponsesRequest) -> Frame {
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
            "truncation": request.truncation.unwrap_or(Truncation::Disabled),
            "previous_response_id": request.previous_response_id,
            "store": request.store.unwrap_or(true),
        });
        let Value::Object(echoed) = echoed else {
            unreachable!("it was written as an object");
        };
        Frame {
            id: new_id("resp_"),
            created: app.times().seconds(),
            model: app.model().to_owned(),
            echoed,
        }
    }
}

/// What the answer consists of so far, and the events that tell of it.
pub(super) struct Output {
    frame: Frame,
    /// Where it is stored when it is complete, if it is.
    keep: Option<Keep>,
    /// Complete items.
    items: Vec<Value>,
    /// The text item that is open: its id and text.
    open: Option<(String, String)>,
    reason: Option<FinishReason>,
    sequence: u64,
}

/// Where a response is stored.
pub(super) struct Keep {
    pub(super) app: App,
    pub(super) tenancy: Arc<Tenancy>,
    pub(super) draft: Draft,
}

impl Output {
    /// Of an answer that is stored if `keep` says where.
    pub(super) fn new(frame: Frame, keep: Option<Keep>) -> Output {
        Output {
            frame,
            keep,
            items: Vec::new(),
            open: None,
            reason: None,
            sequence: 0,
        }
    }

    /// The whole response to a request that did not want a stream.
    pub(super) fn whole(
        &mut self,
        mut reading: Reading,
        text: &Text,
        total: &Total,
        meta: &Meta,
    ) -> Map<String, Value> {
        let mut events = Vec::new();
        self.pieces(0, reading.whole(&text.text), &[], &mut events);
        let end = End {
            reason: text.reason.unwrap_or(FinishReason::Length),
            stop: None,
            calls: reading.calls,
        };
        self.finished(0, &end, &mut events);
        self.complete(total, meta)
    }

    /// The complete response, which is stored where that was asked for.
    fn complete(&mut self, total: &Total, meta: &Meta) -> Map<String, Value> {
        let response = self.response("completed", Some((total, meta)));
        if let Some(Keep {
            app,
            tenancy,
            draft,
        }) = self.keep.take()
        {
            let line = tenancy
                .responses
                .keep(&self.frame.id, draft, &self.items, &response);
            if let Some(line) = line {
                // The client does not wait for the disk; who asks for it is answered from memory.
                tokio::task::spawn_blocking(move || {
                    if let Err(error) = tenancy.responses.write(&line) {
                        app.warn(format!("a response is not kept: {}", error.message));
                    }
                });
            }
        }
        response
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
                    "truncated_tokens": meta.truncated,
                }),
            );
            put("longview", json!(total.report(meta)));
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

    fn pieces(
        &mut self,
        _answer: usize,
        pieces: Vec<Piece>,
        _tokens: &[Token],
        out: &mut Vec<Message>,
    ) {
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

    fn finished(&mut self, _answer: usize, end: &End, out: &mut Vec<Message>) {
        self.close(out);
        self.reason = Some(end.reason);
    }

    fn end(&mut self, total: &Total, meta: &Meta, out: &mut Vec<Message>) {
        let response = self.complete(total, meta);
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
