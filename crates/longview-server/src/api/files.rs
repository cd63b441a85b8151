//! `/v1/files`: files of requests, and files of their answers.

use axum::extract::multipart::{Multipart, MultipartRejection};
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};

use super::download;
use crate::app::{App, Guest, blocking};
use crate::error::ApiError;
use crate::offline::FileObject;

type Answer = Result<Response, ApiError>;

/// Takes a file in.
#[utoipa::path(
    post, path = "/v1/files", tag = "Files of requests",
    request_body(content = String, content_type = "multipart/form-data", description = "`purpose` and `file`"),
    responses(
        (status = 200, description = "The file", body = FileObject),
        (status = 400, description = "The form is wrong"),
        (status = 413, description = "The file is too large")
    )
)]
pub(crate) async fn create(
    State(app): State<App>,
    Extension(Guest(tenancy)): Extension<Guest>,
    form: Result<Multipart, MultipartRejection>,
) -> Answer {
    let wrong = |error: String| ApiError::wrong(format!("the form cannot be read: {error}"));
    let mut form = form.map_err(|error| wrong(error.body_text()))?;
    let limit = app.options().max_body_bytes;
    let (mut purpose, mut received) = ("batch".to_owned(), None);
    loop {
        let field = form
            .next_field()
            .await
            .map_err(|error| wrong(error.body_text()))?;
        let Some(mut field) = field else { break };
        let (name, filename) = (
            field.name().unwrap_or_default().to_owned(),
            field.file_name().map(str::to_owned),
        );
        let mut bytes = Vec::new();
        while let Some(piece) = field
            .chunk()
            .await
            .map_err(|error| wrong(error.body_text()))?
        {
            bytes.extend_from_slice(&piece);
            if bytes.len() > limit {
                return Err(ApiError::too_large(format!(
                    "the file has more than the {limit} bytes that are read; send less, or start the server \
                     with a larger --max-body"
                )));
            }
        }
        match name.as_str() {
            "file" => {
                received = Some((
                    filename.unwrap_or_else(|| "requests.jsonl".to_owned()),
                    bytes,
                ))
            }
            "purpose" => purpose = String::from_utf8_lossy(&bytes).into_owned(),
            _ => {}
        }
    }
    let (filename, bytes) =
        received.ok_or_else(|| ApiError::field("file", "the form has no file"))?;
    let shown = blocking(move || tenancy.offline.store(&filename, &purpose, &bytes)).await?;
    Ok(Json(shown).into_response())
}

/// Lists all files.
#[utoipa::path(
    get, path = "/v1/files", tag = "Files of requests",
    responses((status = 200, description = "The files"))
)]
pub(crate) async fn list(Extension(Guest(tenancy)): Extension<Guest>) -> Json<Value> {
    let files = tenancy.offline.files();
    Json(json!({ "object": "list", "data": files, "has_more": false }))
}

/// Shows a file.
#[utoipa::path(
    get, path = "/v1/files/{id}", tag = "Files of requests", params(("id" = String, Path)),
    responses(
        (status = 200, description = "The file", body = FileObject),
        (status = 404, description = "There is no such file")
    )
)]
pub(crate) async fn show(
    Extension(Guest(tenancy)): Extension<Guest>,
    Path(id): Path<String>,
) -> Answer {
    Ok(Json(tenancy.offline.file(&id)?).into_response())
}

/// Sends what is in a file.
#[utoipa::path(
    get, path = "/v1/files/{id}/content", tag = "Files of requests", params(("id" = String, Path)),
    responses(
        (status = 200, description = "Its content", content_type = "application/jsonl"),
        (status = 404, description = "There is no such file")
    )
)]
pub(crate) async fn content(
    Extension(Guest(tenancy)): Extension<Guest>,
    Path(id): Path<String>,
) -> Answer {
    let (file, bytes) = blocking(move || tenancy.offline.content(&id)).await?;
    Ok(download::respond(file, bytes, "application/jsonl"))
}

/// Removes a file.
#[utoipa::path(
    delete, path = "/v1/files/{id}", tag = "Files of requests", params(("id" = String, Path)),
    responses(
        (status = 200, description = "It is removed"),
        (status = 404, description = "There is no such file"),
        (status = 409, description = "A batch is answering it")
    )
)]
pub(crate) async fn delete(
    Extension(Guest(tenancy)): Extension<Guest>,
    Path(id): Path<String>,
) -> Answer {
    let id = blocking(move || tenancy.offline.delete(&id).map(|()| id)).await?;
    Ok(Json(json!({ "id": id, "object": "file", "deleted": true })).into_response())
}
