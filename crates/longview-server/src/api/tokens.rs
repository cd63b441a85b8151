//! `POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use longview::Specials;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::App;
use crate::error::ApiError;
use crate::input::Input;
use crate::prompt::{self, ChatMessage, TemplateExtras};

/// A text or a conversation.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct TokenizeRequest {
    /// A text.
    content: Option<String>,
    /// The same by the name that others use.
    prompt: Option<String>,
    /// A conversation, in place of a text.
    messages: Option<Vec<ChatMessage>>,
    /// Whether special tokens written out in the text are meant as such.
    #[serde(default)]
    parse_special: Option<bool>,
    /// Whether the tokens in front that the model expects before every text are added.
    #[serde(default)]
    add_special: Option<bool>,
    /// The same by the name that others use, for whom special tokens written out are always meant as such: so
    /// they are where this is said, unless `parse_special` says otherwise.
    #[serde(default)]
    add_special_tokens: Option<bool>,
    /// Whether the tokens come with their texts.
    #[serde(default)]
    with_pieces: Option<bool>,
}

/// Token ids.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TokenizeResponse {
    tokens: Vec<u32>,
    count: usize,
    /// The most tokens that the model reads.
    max_model_len: usize,
    /// The text of each token; bytes that are no text show as U+FFFD.
    #[serde(skip_serializing_if = "Option::is_none")]
    pieces: Option<Vec<String>>,
}

/// Token ids to be turned into text.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct DetokenizeRequest {
    tokens: Vec<u32>,
}

/// A text.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DetokenizeResponse {
    content: String,
    /// The same by the name that others use.
    prompt: String,
}

/// What clients that turn text into tokens by this server need to know beside.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TokenizerInfo {
    /// The text of the token that begins a text, if there is one.
    bos_token: Option<String>,
    /// The text of the token that ends one.
    eos_token: Option<String>,
    /// Token ids; special ones among them.
    vocab_size: usize,
    /// The most tokens that the model reads.
    model_max_length: usize,
    /// How the model shows a conversation, in Jinja.
    chat_template: String,
}

/// Turns a text into token ids.
#[utoipa::path(
    post, path = "/tokenize", tag = "Tokens", request_body = TokenizeRequest,
    responses(
        (status = 200, description = "The tokens", body = TokenizeResponse),
        (status = 400, description = "The request is wrong")
    )
)]
pub(crate) async fn tokenize(
    State(app): State<App>,
    Input { value, ignored, .. }: Input<TokenizeRequest>,
) -> Result<Response, ApiError> {
    let counting = app.clone();
    let response = app.prepare(move || tokens(&counting, &value)).await?;
    Ok(ignored.on(Json(response)))
}

fn tokens(app: &App, request: &TokenizeRequest) -> Result<TokenizeResponse, ApiError> {
    let engine = app.engine();
    let text = request.content.as_ref().or(request.prompt.as_ref());
    let tokens = match (text, &request.messages) {
        (Some(text), None) => {
            engine.check_text(text)?;
            let theirs = request.add_special_tokens;
            let specials = match request.parse_special.unwrap_or(theirs.is_some()) {
                true => Specials::Parse,
                false => Specials::AsText,
            };
            let tokens = engine.tokenizer().encode(text, specials)?;
            match request.add_special.or(theirs).unwrap_or(false) {
                true => engine.text().with_prefix(tokens),
                false => tokens,
            }
        }
        (None, Some(messages)) => {
            let extras = TemplateExtras::default();
            prompt::chat(engine, app.specials(), messages, &extras, None, app.today())?.tokens
        }
        _ => {
            return Err(ApiError::wrong(
                "give either \"content\" (a text) or \"messages\" (a conversation)",
            ));
        }
    };
    let piece = |&id: &u32| {
        let bytes = engine.tokenizer().token_bytes(id).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let pieces = request.with_pieces.unwrap_or(false);
    Ok(TokenizeResponse {
        count: tokens.len(),
        max_model_len: engine.model().blueprint().max_positions,
        pieces: pieces.then(|| tokens.iter().map(piece).collect()),
        tokens,
    })
}

/// Turns token ids into a text.
#[utoipa::path(
    post, path = "/detokenize", tag = "Tokens", request_body = DetokenizeRequest,
    responses(
        (status = 200, description = "The text", body = DetokenizeResponse),
        (status = 400, description = "The request is wrong")
    )
)]
pub(crate) async fn detokenize(
    State(app): State<App>,
    Input { value, ignored, .. }: Input<DetokenizeRequest>,
) -> Result<Response, ApiError> {
    let reading = app.clone();
    let content = app
        .prepare(move || Ok(reading.engine().tokenizer().decode(&value.tokens)?))
        .await?;
    Ok(ignored.on(Json(DetokenizeResponse {
        prompt: content.clone(),
        content,
    })))
}

/// Tells of the tokenizer.
#[utoipa::path(
    get, path = "/tokenizer_info", tag = "Tokens",
    responses((status = 200, description = "The tokenizer", body = TokenizerInfo))
)]
pub(crate) async fn info(State(app): State<App>) -> Json<TokenizerInfo> {
    let engine = app.engine();
    let vars = engine.text().template_vars(app.today());
    let written = |token: String| (!token.is_empty()).then_some(token);
    Json(TokenizerInfo {
        bos_token: written(vars.bos_token),
        eos_token: written(vars.eos_token),
        vocab_size: engine.vocabulary(),
        model_max_length: engine.model().blueprint().max_positions,
        chat_template: engine.template().source().to_owned(),
    })
}
