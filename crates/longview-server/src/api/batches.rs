//! `/v1/batches`: files of requests, answered beside everything else at the lowest rank.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::paging::{Lengths, PageQuery};
use crate::app::{App, Guest, blocking};
use crate::batch::ENDPOINTS;
use crate::error::ApiError;
use crate::input::Input;
use crate::offline::{self, BatchObject};

/// How many are listed at a time.
const LENGTHS: Lengths = Lengths {
    usual: 20,
    most: 100,
};

/// The most bytes of what a client notes about a batch.
const MOST_METADATA: usize = 16 << 10;

/// A batch to be run.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct BatchRequest {
    /// A file that was uploaded.
    input_file_id: String,
    /// The endpoint that every line names.
    endpoint: String,
    /// Said back; batches here begin at once.
    completion_window: Option<String>,
    metadata: Option<Value>,
}

type Answer = Result<Response, ApiError>;

/// Begins to answer a file of requests.
#[utoipa::path(
    post, path = "/v1/batches", tag = "Files of requests", request_body = BatchRequest,
    responses(
        (status = 200, description = "The batch", body = BatchObject),
        (status = 400, description = "The request is wrong"),
        (status = 404, description = "There is no such file")
    )
)]
pub(crate) async fn create(
    State(app): State<App>,
    Extension(guest): Extension<Guest>,
    Input { value, ignored, .. }: Input<BatchRequest>,
) -> Answer {
    if !ENDPOINTS.contains(&value.endpoint.as_str()) {
        return Err(ApiError::field(
            "endpoint",
            format!(
                "{:?} cannot be asked in a file; {} can",
                value.endpoint,
                ENDPOINTS.join(", ")
            ),
        ));
    }
    if value
        .metadata
        .as_ref()
        .is_some_and(|noted| noted.to_string().len() > MOST_METADATA)
    {
        return Err(ApiError::field(
            "metadata",
            format!("metadata may have at most {MOST_METADATA} bytes"),
        ));
    }
    let BatchRequest {
        input_file_id,
        endpoint,
        completion_window,
        metadata,
    } = value;
    let now = app.times().seconds();
    let shown = BatchObject::new(now, input_file_id, endpoint, completion_window, metadata);
    Ok(ignored.on(Json(offline::start(&app, guest, shown).await?)))
}

/// Lists batches, the newest first.
#[utoipa::path(
    get, path = "/v1/batches", tag = "Files of requests", params(PageQuery),
    responses(
        (status = 200, description = "The batches"),
        (status = 400, description = "The query is wrong")
    )
)]
pub(crate) async fn list(
    Extension(Guest(tenancy)): Extension<Guest>,
    query: Result<Query<PageQuery>, QueryRejection>,
) -> Answer {
    let batches = tenancy.offline.batches();
    let page = PageQuery::of(query)?.cut(batches, LENGTHS, |batch| &batch.id)?;
    Ok(Json(page).into_response())
}

/// Shows a batch.
#[utoipa::path(
    get, path = "/v1/batches/{id}", tag = "Files of requests", params(("id" = String, Path)),
    responses(
        (status = 200, description = "The batch", body = BatchObject),
        (status = 404, description = "There is no such batch")
    )
)]
pub(crate) async fn show(
    Extension(Guest(tenancy)): Extension<Guest>,
    Path(id): Path<String>,
) -> Answer {
    Ok(Json(tenancy.offline.batch(&id)?).into_response())
}

/// Ends a batch; what is answered by then is in its output.
#[utoipa::path(
    post, path = "/v1/batches/{id}/cancel", tag = "Files of requests", params(("id" = String, Path)),
    responses(
        (status = 200, description = "The batch", body = BatchObject),
        (status = 404, description = "There is no such batch"),
        (status = 409, description = "It is over")
    )
)]
pub(crate) async fn cancel(
    Extension(Guest(tenancy)): Extension<Guest>,
    Path(id): Path<String>,
) -> Answer {
    let shown = blocking(move || tenancy.offline.cancel(&id)).await?;
    Ok(Json(shown).into_response())
}
