//! `POST /v1/embeddings`: a text as a vector.
//!
//! The vector is the mean of the last hidden states of the text's tokens, after the model's last norm,
//! scaled to length 1. Models made for embeddings may want another reading of their states; this one is
//! stated, and the same for all.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use axum::{Extension, Json};
use longview::ContextMethods;
use longview::schedule::{Goal, Observe, Priority, Request, Start};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::app::{App, Guest};
use crate::error::ApiError;
use crate::input::Input;
use crate::outbox::{Detail, Inbox};
use crate::prompt;
use crate::run::{CancelGuard, timed_out};

/// The most texts in one request.
const MOST_TEXTS: usize = 256;

/// Texts to be turned into vectors.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct EmbeddingRequest {
    /// The model's name; left out, it is the one this server runs.
    model: Option<String>,
    /// A text or several, as they are or as token ids.
    input: EmbeddingInput,
    /// `float` or `base64` (little-endian 32-bit floats).
    encoding_format: Option<String>,
    /// Vectors have the model's own size; anything else is refused.
    dimensions: Option<usize>,
    /// Says who asks; not used.
    #[allow(dead_code, reason = "known to the protocol, and nothing is made of it")]
    user: Option<String>,
}

/// One text or several.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum EmbeddingInput {
    /// A text.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
    /// Texts.
    Texts(Vec<String>),
    /// Several lists of token ids.
    Lists(Vec<Vec<u32>>),
}

/// The vectors.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EmbeddingResponse {
    object: &'static str,
    data: Vec<Embedding>,
    model: String,
    usage: Value,
}

/// One vector.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Embedding {
    object: &'static str,
    index: usize,
    /// A list of numbers, or their bytes in base64.
    embedding: Value,
}

/// Turns texts into vectors.
#[utoipa::path(
    post, path = "/v1/embeddings", tag = "OpenAI", request_body = EmbeddingRequest,
    responses(
        (status = 200, description = "The vectors", body = EmbeddingResponse),
        (status = 400, description = "The request is wrong")
    )
)]
pub(crate) async fn create(
    State(app): State<App>,
    Extension(Guest(tenancy)): Extension<Guest>,
    Input { value, ignored, .. }: Input<EmbeddingRequest>,
) -> Result<Response, ApiError> {
    app.check_model(value.model.as_deref())?;
    let size = app.engine().model().blueprint().hidden;
    if value
        .dimensions
        .is_some_and(|dimensions| dimensions != size)
    {
        return Err(ApiError::field(
            "dimensions",
            format!("this model's vectors have {size} numbers, and they cannot be shortened"),
        ));
    }
    let base64 = match value.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            return Err(ApiError::field(
                "encoding_format",
                format!("{other:?} is not float or base64"),
            ));
        }
    };
    let counting = app.clone();
    let lists = app.prepare(move || tokens(&counting, value.input)).await?;
    let all = lists.iter().map(Vec::len).sum();
    // One request has one place, however many texts it has.
    let permit = app.enter(all, Priority::Normal)?;
    let mut inboxes = Vec::with_capacity(lists.len());
    let mut requests = Vec::with_capacity(lists.len());
    for list in lists {
        let inbox = Inbox::new();
        let permit = Arc::clone(&permit);
        requests.push(Request {
            tenant: tenancy.tenant.clone(),
            planned_tokens: list.len(),
            prompt: list,
            start: Start::Nothing,
            goal: Goal::Embed,
            methods: ContextMethods::default(),
            moved: None,
            prompt_logprobs: None,
            observe: Observe::Nothing,
            priority: Priority::Normal,
            listener: Box::new(inbox.ear(Detail::Text, 0, permit)),
        });
        inboxes.push(inbox);
    }
    // Those that are begun are all that hold it.
    drop(permit);
    for request in requests {
        app.worker().submit(request)?;
    }
    let guard = CancelGuard(Some(&app));
    let gathered = gather(&app, inboxes, base64);
    let (data, count) = match app.options().request_timeout {
        None => gathered.await,
        Some(limit) => tokio::time::timeout(limit, gathered)
            .await
            .map_err(|_| timed_out(limit))?,
    }?;
    guard.done();
    Ok(ignored.on(Json(EmbeddingResponse {
        object: "list",
        data,
        model: app.model().to_owned(),
        usage: json!({ "prompt_tokens": count, "total_tokens": count }),
    })))
}

/// Waits for all vectors; returns them and the tokens of their texts.
async fn gather(
    app: &App,
    inboxes: Vec<Inbox>,
    base64: bool,
) -> Result<(Vec<Embedding>, usize), ApiError> {
    let (mut data, mut count) = (Vec::with_capacity(inboxes.len()), 0);
    for (index, inbox) in inboxes.into_iter().enumerate() {
        let ended = inbox.collect(0).await.ended.pop();
        let ended = ended.ok_or_else(|| ApiError::unavailable("the server is shutting down"))?;
        app.metrics().ended(&ended.summary);
        if let Some(error) = ended.error {
            return Err(error.into());
        }
        let vector = ended
            .embedding
            .ok_or_else(|| ApiError::unavailable("the text was not read to its end; ask again"))?;
        count += ended.summary.prompt_tokens;
        data.push(Embedding {
            object: "embedding",
            index,
            embedding: match base64 {
                false => json!(vector),
                true => in_base64(&vector).into(),
            },
        });
    }
    Ok((data, count))
}

fn tokens(app: &App, input: EmbeddingInput) -> Result<Vec<Vec<u32>>, ApiError> {
    let engine = app.engine();
    let lists: Vec<Vec<u32>> = match input {
        EmbeddingInput::Text(text) => vec![prompt::plain(engine, &text)?],
        EmbeddingInput::Tokens(tokens) => vec![tokens],
        EmbeddingInput::Texts(texts) => {
            let of_text = |text: &String| prompt::plain(engine, text);
            texts
                .iter()
                .take(MOST_TEXTS + 1)
                .map(of_text)
                .collect::<Result<_, _>>()?
        }
        EmbeddingInput::Lists(lists) => lists,
    };
    if !(1..=MOST_TEXTS).contains(&lists.len()) {
        return Err(ApiError::field(
            "input",
            format!(
                "there are {} texts or more; give from 1 to {MOST_TEXTS}",
                lists.len()
            ),
        ));
    }
    let (vocabulary, limit) = {
        let blueprint = engine.model().blueprint();
        (blueprint.vocab, blueprint.max_positions)
    };
    for list in &lists {
        if list.is_empty() {
            return Err(ApiError::field("input", "a text is empty; give some"));
        }
        if list.len() > limit {
            return Err(ApiError::field(
                "input",
                format!(
                    "a text has {} tokens, but the model reads at most {limit}",
                    list.len()
                ),
            )
            .code("context_length_exceeded"));
        }
        if let Some(id) = list.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(ApiError::field(
                "input",
                format!(
                    "token {id} is not in the model's vocabulary, whose ids go from 0 to {}",
                    vocabulary - 1
                ),
            ));
        }
    }
    Ok(lists)
}

/// The bytes of the numbers, little-endian, six bits a character.
fn in_base64(vector: &[f32]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = vector
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits = three
            .iter()
            .fold(0u32, |bits, &byte| bits << 8 | u32::from(byte));
        let bits = bits << (8 * (3 - three.len()));
        for at in 0..4 {
            let sextet = (bits >> (18 - 6 * at)) & 63;
            text.push(match at <= three.len() {
                true => char::from(ALPHABET[sextet as usize]),
                false => '=',
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_base64() {
        // 1.0 is 00 00 80 3f.
        assert_eq!(in_base64(&[1.0]), "AACAPw==");
        assert_eq!(in_base64(&[1.0, 1.0]), "AACAPwAAgD8=");
        assert_eq!(in_base64(&[1.0, 1.0, 1.0]), "AACAPwAAgD8AAIA/");
        assert_eq!(in_base64(&[]), "");
    }
}
