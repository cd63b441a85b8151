//! One file a group of endpoints.

pub(crate) mod batches;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod contexts;
mod download;
pub(crate) mod embeddings;
pub(crate) mod files;
pub(crate) mod messages;
pub(crate) mod models;
mod openai;
mod paging;
pub(crate) mod responses;
pub(crate) mod status;
pub(crate) mod tokens;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use crate::app::App;
use crate::error::ApiError;
use crate::{guard, page};

/// All endpoints, behind the door.
pub(crate) fn router(app: &App) -> Router {
    routes(app).layer(middleware::from_fn_with_state(app.clone(), guard::check))
}

/// All endpoints, for those who are in.
pub(crate) fn routes(app: &App) -> Router {
    let contexts = Router::new()
        .route("/", get(contexts::list).post(contexts::create))
        .route("/import", post(contexts::import))
        .route(
            "/{id}",
            get(contexts::show)
                .patch(contexts::change)
                .delete(contexts::delete),
        )
        .route("/{id}/events", get(contexts::events))
        .route("/{id}/append", post(contexts::append))
        .route("/{id}/fork", post(contexts::fork))
        .route("/{id}/cancel", post(contexts::cancel))
        .route("/{id}/resume", post(contexts::resume))
        .route("/{id}/save", post(contexts::save))
        .route("/{id}/export", get(contexts::export));
    Router::new()
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/responses", post(responses::create))
        .route(
            "/v1/responses/{id}",
            get(responses::show).delete(responses::delete),
        )
        .route(
            "/v1/responses/{id}/input_items",
            get(responses::input_items),
        )
        .route("/v1/embeddings", post(embeddings::create))
        .route("/v1/messages", post(messages::create))
        .route("/v1/messages/count_tokens", post(messages::count))
        .route("/v1/models", get(models::list))
        // Names of models may have slashes.
        .route("/v1/models/{*name}", get(models::show))
        .nest("/v1/contexts", contexts)
        .route("/v1/files", get(files::list).post(files::create))
        .route("/v1/files/{id}", get(files::show).delete(files::delete))
        .route("/v1/files/{id}/content", get(files::content))
        .route("/v1/batches", get(batches::list).post(batches::create))
        .route("/v1/batches/{id}", get(batches::show))
        .route("/v1/batches/{id}/cancel", post(batches::cancel))
        .route("/v1/cache/drop", post(status::drop_cache))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/tokenizer_info", get(tokens::info))
        .route("/", get(page::index))
        .route("/page.css", get(page::style))
        .route("/page.js", get(page::script))
        .route("/health", get(status::health))
        .route("/ready", get(status::ready))
        .route("/metrics", get(status::metrics))
        .route("/openapi.json", get(status::openapi))
        .method_not_allowed_fallback(wrong_method)
        .fallback(nothing_here)
        // Bodies are limited where they are read, with both numbers in the refusal.
        .layer(DefaultBodyLimit::disable())
        .with_state(app.clone())
}

async fn nothing_here(method: Method, uri: Uri) -> Response {
    ApiError::not_found(format!(
        "there is nothing at {method} {}; GET /openapi.json lists what there is",
        uri.path()
    ))
    .code("unknown_url")
    .into_response()
}

async fn wrong_method(method: Method, uri: Uri) -> Response {
    ApiError::wrong(format!(
        "{method} cannot be used on {}; GET /openapi.json lists what can",
        uri.path()
    ))
    .code("method_not_allowed")
    .status(StatusCode::METHOD_NOT_ALLOWED)
    .into_response()
}
