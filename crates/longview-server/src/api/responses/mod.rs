//! `/v1/responses`: OpenAI's newer protocol. A response is stored unless the request says otherwise, so that
//! the next one can go on from it by its id; what they have in common is taken over by content either way.

mod items;
mod log;
mod output;
mod stored;

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::paging::{Lengths, Page, PageQuery};
use crate::app::{App, Guest, Tenancy, blocking};
use crate::conversation::Conversation;
use crate::error::ApiError;
use crate::input::Input;
use crate::prompt::{ChatMessage, Truncate};
use crate::reading::Reading;
use crate::run::{self, Begun, Finished};
use crate::settings::{Extras, Wishes};
use crate::sse;

use items::add;
use output::{Frame, Keep, Output};
pub(crate) use stored::Responses;
use stored::{Chain, Draft};

/// How many items are listed at a time.
const LENGTHS: Lengths = Lengths {
    usual: 20,
    most: 100,
};

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
    Input { value, ignored, .. }: Input<ResponsesRequest>,
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
    let reading = || Reading::new(toolbox.as_ref()).at_most(several_calls);
    let keep = stored.then(|| Keep {
        app: app.clone(),
        tenancy: Arc::clone(&tenancy),
        draft,
    });
    let mut output = Output::new(frame, keep);
    if stream {
        return Ok(sse::respond(&app, running, output, reading, &ignored));
    }
    let Finished { texts, total, meta } = running.finish(&app).await?;
    let text = texts.into_iter().next().unwrap_or_default();
    let fields = output.whole(reading(), &text, &total, &meta);
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
    params(("id" = String, Path), PageQuery),
    responses(
        (status = 200, description = "The items"),
        (status = 400, description = "The query is wrong"),
        (status = 404, description = "The response is not stored")
    )
)]
pub(crate) async fn input_items(
    Extension(Guest(tenancy)): Extension<Guest>,
    Path(id): Path<String>,
    query: Result<Query<PageQuery>, QueryRejection>,
) -> Result<Json<Page<Value>>, ApiError> {
    let query = PageQuery::of(query)?;
    let items = tenancy.responses.input_items(&id)?;
    let page = query.cut(items, LENGTHS, |item| {
        item["id"].as_str().unwrap_or_default()
    });
    Ok(Json(page?))
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
    let deleted = blocking(move || {
        let line = tenancy.responses.delete(&id)?;
        tenancy.responses.write(&line)?;
        Ok(json!({ "id": id, "object": "response", "deleted": true }))
    });
    Ok(Json(deleted.await?))
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
