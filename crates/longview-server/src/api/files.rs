//! `/v1/files`: files of requests, and files of their answers.

use axum::extract::multipart::{Multipart, MultipartRejection};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::json;
use utoipa::IntoParams;

use super::download;
use super::paging::{Lengths, PageQuery, in_words};
use crate::app::{App, Guest, blocking};
use crate::error::ApiError;
use crate::input;
use crate::offline::FileObject;

/// The most bytes of a file's name, and of its purpose.
const MOST_NAME: usize = 1000;

/// How many are listed at a time.
const LENGTHS: Lengths = Lengths {
    usual: 10_000,
    most: 10_000,
};

/// Which files are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct PurposeQuery {
    /// Only those of this purpose, such as `batch` or `batch_output`.
    purpose: Option<String>,
}

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
    headers: HeaderMap,
    form: Result<Multipart, MultipartRejection>,
) -> Answer {
    let _room = input::room(&app, &headers).await?;
    let limit = app.options().max_body_bytes;
    let upload = input::in_time(received(form, limit)).await??;
    let Upload {
        filename,
        purpose,
        bytes,
    } = upload;
    let shown = blocking(move || tenancy.offline.store(&filename, &purpose, &bytes)).await?;
    Ok(Json(shown).into_response())
}

/// What a form brought.
struct Upload {
    filename: String,
    purpose: String,
    bytes: Vec<u8>,
}

/// Takes a form in whose fields have at most `limit` bytes together.
async fn received(
    form: Result<Multipart, MultipartRejection>,
    limit: usize,
) -> Result<Upload, ApiError> {
    let wrong = |error: String| ApiError::wrong(format!("the form cannot be read: {error}"));
    let mut form = form.map_err(|error| wrong(error.body_text()))?;
    let (mut purpose, mut received) = ("batch".to_owned(), None);
    let mut left = limit;
    loop {
        let field = form
            .next_field()
            .await
            .map_err(|error| wrong(error.body_text()))?;
        let Some(mut field) = field else { break };
        let name = field.name().unwrap_or_default().to_owned();
        let filename = field.file_name().map(str::to_owned);
        let mut bytes = Vec::new();
        while let Some(piece) = field
            .chunk()
            .await
            .map_err(|error| wrong(error.body_text()))?
        {
            left = left.checked_sub(piece.len()).ok_or_else(|| {
                ApiError::too_large(format!(
                    "the form has more than the {limit} bytes that are read; send less, or start the server \
                     with a larger --max-body"
                ))
            })?;
            bytes.extend_from_slice(&piece);
        }
        match name.as_str() {
            "file" => received = Some((filename, bytes)),
            "purpose" => purpose = String::from_utf8_lossy(&bytes).into_owned(),
            _ => {}
        }
    }
    let (filename, bytes) =
        received.ok_or_else(|| ApiError::field("file", "the form has no file"))?;
    for (field, text) in [("purpose", Some(&purpose)), ("file", filename.as_ref())] {
        if text.is_some_and(|text| text.len() > MOST_NAME) {
            return Err(ApiError::field(
                field,
                format!("a name or a purpose has at most {MOST_NAME} bytes"),
            ));
        }
    }
    Ok(Upload {
        filename: filename.unwrap_or_else(|| "requests.jsonl".to_owned()),
        purpose,
        bytes,
    })
}

/// Lists files, the newest first.
#[utoipa::path(
    get, path = "/v1/files", tag = "Files of requests", params(PageQuery, PurposeQuery),
    responses(
        (status = 200, description = "The files"),
        (status = 400, description = "The query is wrong")
    )
)]
pub(crate) async fn list(
    Extension(Guest(tenancy)): Extension<Guest>,
    query: Result<Query<PageQuery>, QueryRejection>,
    purpose: Result<Query<PurposeQuery>, QueryRejection>,
) -> Answer {
    let Query(PurposeQuery { purpose }) = in_words(purpose)?;
    let mut files = tenancy.offline.files();
    files.retain(|file| {
        purpose
            .as_ref()
            .is_none_or(|purpose| file.purpose == *purpose)
    });
    let page = PageQuery::of(query)?.cut(files, LENGTHS, |file| &file.id)?;
    Ok(Json(page).into_response())
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
