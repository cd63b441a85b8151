//! Anthropic's protocol: `POST /v1/messages` and `POST /v1/messages/count_tokens`.

mod events;
mod turns;

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use axum::{Extension, Json};
use longview::FinishReason;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::app::{App, Guest, Tenancy, new_id};
use crate::conversation::Conversation;
use crate::error::ApiError;
use crate::input::Input;
use crate::prompt::{ChatMessage, Content};
use crate::reading::Reading;
use crate::report::Report;
use crate::run::{self, Begun, Finished};
use crate::settings::{Extras, Stop, Wishes};
use crate::sse;
use crate::tools::Piece;

use events::{Counts, Events, stop_reason, usage};
use turns::{Blocks, Turn, cut_before, cut_in, is_breakpoint};

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
    longview: Report,
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
        Ok(Input { value, ignored, .. }) => {
            let counting = app.clone();
            let counted = app.prepare(move || {
                counting.check_model(value.model.as_deref())?;
                let extras = value.longview.clone().unwrap_or_default();
                value.conversation()?.prepare(&counting, &tenancy, &extras)
            });
            counted.await.map(|prepared| {
                ignored.on(Json(CountResponse {
                    input_tokens: prepared.prompt_tokens(),
                }))
            })
        }
        Err(error) => Err(error),
    };
    answer.unwrap_or_else(|error| error.response(error.anthropic()))
}

async fn answer(
    app: &App,
    tenancy: &Arc<Tenancy>,
    Input { value, ignored, .. }: Input<MessagesRequest>,
) -> Result<Response, ApiError> {
    app.check_model(value.model.as_deref())?;
    if value.max_tokens.is_none() {
        return Err(ApiError::field(
            "max_tokens",
            "max_tokens is missing; say how long the answer may be",
        ));
    }
    let extras = value.longview.clone().unwrap_or_default();
    let progress = extras.progress;
    let stream = value.stream.unwrap_or(false);
    let one_call = value
        .tool_choice
        .as_ref()
        .and_then(|choice| choice.get("disable_parallel_tool_use")?.as_bool());
    let conversation = value.conversation()?;
    let Begun {
        running,
        toolbox,
        more: counts,
    } = run::begin(app, tenancy, extras, move |app, tenancy, extras| {
        let prepared = conversation.prepare(app, tenancy, extras)?;
        let counts = Counts {
            prompt: prepared.prompt_tokens(),
            breakpoint: prepared.cached,
        };
        Ok((prepared, counts))
    })
    .await?;
    let id = new_id("msg_");
    let reading = || Reading::new(toolbox.as_ref()).at_most(one_call.map(|one| !one));
    if stream {
        let model = app.model().to_owned();
        let protocol = Events::new(id, model, counts, progress);
        return Ok(sse::respond(app, running, protocol, reading, &ignored));
    }
    let mut reading = reading();
    let Finished { texts, total, meta } = running.finish(app).await?;
    let text = texts.into_iter().next().unwrap_or_default();
    let mut content: Vec<Value> = Vec::new();
    for piece in reading.whole(&text.text) {
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
        stop_sequence: text.stop,
        usage: usage(&total, &counts, &meta),
        longview: total.report(&meta),
    };
    Ok(ignored.on(Json(response)))
}

impl MessagesRequest {
    /// The same in the words that all protocols share.
    fn conversation(self) -> Result<Conversation, ApiError> {
        if self.messages.is_empty() {
            return Err(
                ApiError::field("messages", "there are no messages; give at least one")
                    .code("empty_messages"),
            );
        }
        let mut messages = Vec::new();
        // Templates show tools in the system message or behind it, so a breakpoint at the end of either is
        // where the conversation begins.
        let mut ends_before = self.tools.iter().flatten().any(is_breakpoint);
        if let Some(system) = &self.system {
            let parts = system.parts("system")?;
            ends_before |= parts
                .last()
                .is_some_and(|last| last.cache_control.is_some());
            messages.push(ChatMessage {
                cut: cut_in(&parts),
                content: Some(Content::Parts(parts)),
                ..ChatMessage::new("system", "")
            });
        }
        for (at, turn) in self.messages.iter().enumerate() {
            let first = messages.len();
            let ends_in_call = turn.add(at, &mut messages)?;
            if let Some(first) = messages.get_mut(first).filter(|_| ends_before) {
                first.cut = first.cut.or_else(|| cut_before(first));
                ends_before = false;
            }
            ends_before |= ends_in_call;
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
        Ok(Conversation {
            messages,
            wishes: Wishes {
                max_tokens: self.max_tokens,
                stop: self.stop_sequences.map(Stop::Many),
                temperature: self.temperature,
                top_p: self.top_p,
                top_k: self.top_k,
                ..Wishes::default()
            },
            tools,
            tool_choice,
            ..Conversation::default()
        })
    }
}

fn arguments(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| json!({}))
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
        let conversation = request.conversation().unwrap();
        // The system message's breakpoint is where the conversation begins.
        let cuts: Vec<_> = conversation.messages.iter().map(|m| m.cut).collect();
        assert_eq!(cuts, [Some("Be brief.".len()), Some(0), None, None, None]);
        let roles: Vec<&str> = conversation
            .messages
            .iter()
            .map(|m| m.role.as_str())
            .collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool", "user"]);
        assert_eq!(conversation.messages[3].tool_call_id.as_deref(), Some("t1"));
        let toolbox = Toolbox::new(
            conversation.tools.as_deref(),
            conversation.tool_choice.as_ref(),
        );
        assert!(toolbox.unwrap().unwrap().forced().is_some());
    }

    #[test]
    fn breakpoints_on_tools_calls_and_results_are_found() {
        let marked = json!({"type": "ephemeral"});
        let cuts = |tools: Value, call: Value, result: Value| {
            let mut blocks = [
                json!({"type": "tool_use", "id": "t1", "name": "f", "input": {}}),
                json!({"type": "tool_result", "tool_use_id": "t1", "content": " rain \n"}),
            ];
            for (block, control) in blocks.iter_mut().zip([call, result]) {
                block["cache_control"] = control;
            }
            let [call, result] = blocks;
            let request: MessagesRequest = serde_json::from_value(json!({
                "messages": [
                    {"role": "user", "content": " x"},
                    {"role": "assistant", "content": [call]},
                    {"role": "user", "content": [result]},
                ],
                "tools": [{"name": "f", "cache_control": tools}],
            }))
            .unwrap();
            let messages = request.conversation().unwrap().messages;
            messages.iter().map(|m| m.cut).collect::<Vec<_>>()
        };
        let none = || Value::Null;
        assert_eq!(cuts(none(), none(), none()), [None, None, None]);
        assert_eq!(cuts(marked.clone(), none(), none()), [Some(1), None, None]);
        assert_eq!(cuts(none(), marked.clone(), none()), [None, None, Some(1)]);
        assert_eq!(cuts(none(), none(), marked), [None, None, Some(5)]);
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_place() {
        let refused = |value: Value| {
            let request: MessagesRequest = serde_json::from_value(value).unwrap();
            request.conversation().err().unwrap().param.unwrap()
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
