//! `/v1/responses`: OpenAI's newer protocol. A response is stored unless the request says otherwise, so that
//! the next one can go on from it by its id; what they have in common is taken over by content either way.

mod items;
mod output;
mod stored;

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::{IntoParams, ToSchema};

use crate::app::{App, Guest, Tenancy};
use crate::conversation::Conversation;
use crate::error::ApiError;
use crate::input::Input;
use crate::prompt::{ChatMessage, Truncate};
use crate::reading::Reading;
use crate::run::{self, Begun, Finished};
use crate::settings::{Extras, Wishes};
use crate::sse;

use items::add;
use output::{Frame, Output};
pub(crate) use stored::Responses;
use stored::{Chain, Draft};

/// A conversation to be gone on with.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct ResponsesRequest {
    /// The model's name; left out, it is the one this server runs.
    model: Option<String>,
    /// A text, or the items of a conversation.
    input: ResponsesInput,
    /// What stands before everything.
    pub(super) instructions: Option<String>,
    /// The most tokens of the answer.
    pub(super) max_output_tokens: Option<u64>,
    pub(super) temperature: Option<f64>,
    pub(super) top_p: Option<f64>,
    stream: Option<bool>,
    /// Functions that the model may call.
    pub(super) tools: Option<Vec<Value>>,
    pub(super) tool_choice: Option<Value>,
    pub(super) parallel_tool_calls: Option<bool>,
    /// `format` says what the answer looks like.
    pub(super) text: Option<Value>,
    /// A stored response whose conversation this one goes on with: its input, its output, and those
    /// of the responses before it. Instructions are not carried on.
    pub(super) previous_response_id: Option<String>,
    /// Whether the response can be asked for and gone on with later; it can, if this is not said.
    store: Option<bool>,
    /// `auto` takes tokens out of the middle of a prompt that is too long; `disabled`, which is usual,
    /// refuses it.
    pub(super) truncation: Option<Truncation>,
    /// Cannot be had: a conversation is known here by its last response.
    #[schema(value_type = Option<Object>)]
    conversation: Option<Value>,
    pub(super) metadata: Option<Map<String, Value>>,
    /// Says who asks; not used.
    #[allow(dead_code, reason = "known to the protocol, and nothing is made of it")]
    user: Option<String>,
    /// What only this server understands.
    longview: Option<Extras>,
}

/// Which items of a stored response.
#[derive(Debug, Deserialize, IntoParams)]
pub(crate) struct ItemsQuery {
    /// At most so many, 1 to 100; 20 if it is not said.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<usize>,
    /// The newest first, unless this is `asc`.
    #[param(inline)]
    order: Option<Order>,
    /// Only those after the one with this id.
    after: Option<String>,
}

/// Which comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Order {
    /// The oldest.
    Asc,
    /// The newest.
    Desc,
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

/// What becomes of a prompt that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Truncation {
    /// Tokens are taken out of its middle.
    Auto,
    /// It is refused.
    Disabled,
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
    let stored = value.store.unwrap_or(true);
    let several_calls = value.parallel_tool_calls;
    let Begun {
        running,
        toolbox,
        more: draft,
    } = run::begin(&app, &tenancy, extras, move |app, tenancy, extras| {
        let (conversation, draft) = value.conversation(tenancy)?;
        Ok((conversation.prepare(app, tenancy, extras)?, draft))
    })
    .await?;
    let reading = Reading::new(toolbox.as_ref()).at_most(several_calls);
    let keep = stored.then(|| (Arc::clone(&tenancy), draft));
    let mut output = Output::new(frame, reading, keep);
    if stream {
        return Ok(sse::respond(&app, running, output, &ignored));
    }
    let Finished { texts, total, meta } = running.finish(&app).await?;
    let text = texts.into_iter().next().unwrap_or_default();
    let fields = output.whole(&text, &total, &meta);
    Ok(ignored.on(Json(ResponsesResponse { fields })))
}

/// Shows a stored response.
#[utoipa::path(
    get, path = "/v1/responses/{id}", tag = "OpenAI", params(("id" = String, Path)),
    responses(
        (status = 200, description = "The response", body = ResponsesResponse),
        (status = 404, description = "It is not stored")
    )
)]
pub(crate) async fn show(
    Extension(Guest(tenancy)): Extension<Guest>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(tenancy.responses.show(&id)?))
}

/// Lists what a stored response answers.
#[utoipa::path(
    get, path = "/v1/responses/{id}/input_items", tag = "OpenAI",
    params(("id" = String, Path), ItemsQuery),
    responses(
        (status = 200, description = "The items"),
        (status = 400, description = "The query is wrong"),
        (status = 404, description = "The response is not stored")
    )
)]
pub(crate) async fn input_items(
    Extension(Guest(tenancy)): Extension<Guest>,
    Path(id): Path<String>,
    query: Result<Query<ItemsQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::wrong(error.body_text()))?;
    let limit = query.limit.unwrap_or(20);
    if !(1..=100).contains(&limit) {
        return Err(ApiError::field(
            "limit",
            format!("limit is {limit}, but must be from 1 to 100"),
        ));
    }
    let mut items = tenancy.responses.input_items(&id)?;
    if query.order != Some(Order::Asc) {
        items.reverse();
    }
    if let Some(after) = &query.after {
        let at = items.iter().position(|item| item["id"] == after.as_str());
        let at = at.ok_or_else(|| {
            ApiError::field("after", format!("the response has no item {after:?}"))
        })?;
        items.drain(..=at);
    }
    let more = items.len() > limit;
    items.truncate(limit);
    let of = |item: Option<&Value>| item.map_or(Value::Null, |item| item["id"].clone());
    Ok(Json(json!({
        "object": "list",
        "first_id": of(items.first()),
        "last_id": of(items.last()),
        "has_more": more,
        "data": items,
    })))
}

/// Forgets a stored response. Those that went on from it keep what they need.
#[utoipa::path(
    delete, path = "/v1/responses/{id}", tag = "OpenAI", params(("id" = String, Path)),
    responses(
        (status = 200, description = "It is forgotten"),
        (status = 404, description = "It is not stored")
    )
)]
pub(crate) async fn delete(
    Extension(Guest(tenancy)): Extension<Guest>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    tenancy.responses.delete(&id)?;
    Ok(Json(
        json!({ "id": id, "object": "response", "deleted": true }),
    ))
}

impl ResponsesRequest {
    /// The same in the words that all protocols share, after what the responses before it said, and
    /// what is to be stored of it.
    fn conversation(self, tenancy: &Tenancy) -> Result<(Conversation, Draft), ApiError> {
        if self.conversation.is_some_and(|given| !given.is_null()) {
            return Err(ApiError::field(
                "conversation",
                "conversations have no names of their own here; go on from the last response with \
                 previous_response_id",
            ));
        }
        let previous = match &self.previous_response_id {
            None => None,
            Some(id) => Some(tenancy.responses.chain(id)?),
        };
        let items = match self.input {
            ResponsesInput::Text(text) => vec![json!({
                "type": "message", "role": "user",
                "content": [{ "type": "input_text", "text": text }],
            })],
            ResponsesInput::Items(items) => items,
        };
        let mut messages = Vec::new();
        if let Some(instructions) = self.instructions {
            messages.push(ChatMessage::new("system", instructions));
        }
        for item in previous.iter().flat_map(Chain::items) {
            // It was read before, so nothing about it is wrong.
            add("previous_response_id", &item, &mut messages)?;
        }
        for (at, item) in items.iter().enumerate() {
            add(&format!("input[{at}]"), item, &mut messages)?;
        }
        let format = self.text.and_then(|text| text.get("format").cloned());
        let conversation = Conversation {
            messages,
            wishes: Wishes {
                max_tokens: self.max_output_tokens,
                temperature: self.temperature,
                top_p: self.top_p,
                ..Wishes::default()
            },
            tools: self.tools,
            tool_choice: self.tool_choice,
            format,
            truncate: match self.truncation {
                Some(Truncation::Auto) => Some(Truncate::Middle),
                Some(Truncation::Disabled) | None => None,
            },
            ..Conversation::default()
        };
        Ok((conversation, Draft::new(previous, items)))
    }
}
