//! Whether the server lives and is ready, what it counts, and what it offers.

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::app::App;
use crate::error::ApiError;
use crate::{metrics, openapi};

/// Says that the server lives.
#[utoipa::path(
    get, path = "/health", tag = "Status",
    responses((status = 200, description = "It lives"))
)]
pub(crate) async fn health() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// Says whether requests are taken.
#[utoipa::path(
    get, path = "/ready", tag = "Status",
    responses(
        (status = 200, description = "Requests are taken"),
        (status = 503, description = "The server is shutting down, the queue is full, or the model's file was overwritten")
    )
)]
pub(crate) async fn ready(State(app): State<App>) -> Response {
    let queue = app.queue();
    if let Err(error) = app.check_weights() {
        return error.into_response();
    }
    if app.is_stopping() {
        return ApiError::unavailable("the server is shutting down").into_response();
    }
    if queue.waiting() >= queue.limit() {
        return ApiError::unavailable("the queue is full").into_response();
    }
    Json(json!({
        "status": "ready",
        "model": app.model(),
        "waiting": queue.waiting(),
        "running": app.worker().counts().running,
    }))
    .into_response()
}

/// Counters for Prometheus.
#[utoipa::path(
    get, path = "/metrics", tag = "Status",
    responses((status = 200, description = "Counters in Prometheus's text format", body = String))
)]
pub(crate) async fn metrics(State(app): State<App>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (kind, metrics::text(&app)).into_response()
}

/// Lets go of what is in memory only to be found again: blocks that no request and no open context
/// needs, and contexts with moved text that no request owns. What a tier holds is still found there.
#[utoipa::path(
    post, path = "/v1/cache/drop", tag = "Status",
    responses((status = 200, description = "Bytes of keys and values that stay"))
)]
pub(crate) async fn drop_cache(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    app.worker().forget().await?;
    let ledger = app.engine().ledger();
    if let Some(store) = app.engine().store() {
        store.make_space(ledger.limit());
    }
    Ok(Json(json!({ "kv_bytes": ledger.usage().kv })))
}

/// This document.
#[utoipa::path(
    get, path = "/openapi.json", tag = "Status",
    responses((status = 200, description = "What the server offers, in OpenAPI"))
)]
pub(crate) async fn openapi() -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, openapi::document()).into_response()
}
