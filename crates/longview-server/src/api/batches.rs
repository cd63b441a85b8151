//! `/v1/files` and `/v1/batches`: files of requests, answered beside everything else at the lowest rank.
//!
//! Files and batches are a tenant's own and live as long as the server does.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Seek, Write};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::Body;
use axum::extract::{Multipart, Path, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Notify;
use utoipa::ToSchema;

use super::routes;
use crate::app::{App, Guest, new_id, unix_seconds};
use crate::batch::{self, BatchSummary};
use crate::error::ApiError;
use crate::input::Input;

/// The most files of a tenant.
const MOST_FILES: usize = 256;

/// The most batches of a tenant, those that are done included.
const MOST_BATCHES: usize = 256;

/// Bytes of a file sent at a time.
const PIECE: usize = 1 << 18;

/// A tenant's files and batches.
#[derive(Default)]
pub(crate) struct Offline(Mutex<Held>);

#[derive(Default)]
struct Held {
    files: BTreeMap<String, Stored>,
    batches: BTreeMap<String, Batch>,
}

/// A file; it has no name in the file system.
struct Stored {
    file: Arc<File>,
    shown: FileObject,
}

/// What is known of a file.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct FileObject {
    id: String,
    object: &'static str,
    bytes: u64,
    created_at: u64,
    filename: String,
    purpose: String,
}

struct Batch {
    shown: BatchObject,
    cancel: Arc<Notify>,
}

/// What is known of a batch.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct BatchObject {
    id: String,
    object: &'static str,
    endpoint: String,
    errors: Option<Value>,
    input_file_id: String,
    completion_window: String,
    /// `validating`, `in_progress`, `completed`, `cancelling`, `cancelled` or `failed`.
    status: &'static str,
    output_file_id: Option<String>,
    error_file_id: Option<String>,
    created_at: u64,
    in_progress_at: Option<u64>,
    completed_at: Option<u64>,
    cancelled_at: Option<u64>,
    request_counts: Value,
    metadata: Option<Value>,
    /// What was measured.
    longview: Value,
}

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
pub(crate) async fn upload(
    State(app): State<App>,
    Extension(Guest(tenancy)): Extension<Guest>,
    form: Result<Multipart, axum::extract::multipart::MultipartRejection>,
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
    let shown = tenancy.offline.store(&filename, &purpose, &bytes)?;
    Ok(Json(shown).into_response())
}

/// Lists all files.
#[utoipa::path(
    get, path = "/v1/files", tag = "Files of requests",
    responses((status = 200, description = "The files"))
)]
pub(crate) async fn list_files(Extension(Guest(tenancy)): Extension<Guest>) -> Json<Value> {
    let held = tenancy.offline.lock();
    let files: Vec<&FileObject> = held.files.values().map(|stored| &stored.shown).collect();
    Json(json!({ "object": "list", "data": files }))
}

/// Shows a file.
#[utoipa::path(
    get, path = "/v1/files/{id}", tag = "Files of requests", params(("id" = String, Path)),
    responses(
        (status = 200, description = "The file", body = FileObject),
        (status = 404, description = "There is no such file")
    )
)]
pub(crate) async fn show_file(
    Extension(Guest(tenancy)): Extension<Guest>,
    Path(id): Path<String>,
) -> Answer {
    let (_, shown) = tenancy.offline.file(&id)?;
    Ok(Json(shown).into_response())
}

/// Sends what is in a file.
#[utoipa::path(
    get, path = "/v1/files/{id}/content", tag = "Files of requests", params(("id" = String, Path)),
    responses(
        (status = 200, description = "Its content"),
        (status = 404, description = "There is no such file")
    )
)]
pub(crate) async fn content(
    Extension(Guest(tenancy)): Extension<Guest>,
    Path(id): Path<String>,
) -> Answer {
    let (file, shown) = tenancy.offline.file(&id)?;
    let pieces = stream::unfold(Some((file, 0)), |state| async move {
        let (file, from) = state?;
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; PIECE];
            let count = read_at(&file, &mut piece, from)?;
            piece.truncate(count);
            Ok::<_, std::io::Error>((piece, file))
        });
        match read.await {
            Ok(Ok((piece, _))) if piece.is_empty() => None,
            Ok(Ok((piece, file))) => {
                let next = from + piece.len() as u64;
                Some((Ok(piece), Some((file, next))))
            }
            Ok(Err(error)) => Some((Err(error), None)),
            Err(error) => Some((Err(std::io::Error::other(error)), None)),
        }
    });
    let mut response = Body::from_stream(pieces).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/jsonl"),
    );
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(shown.bytes));
    Ok(response)
}

/// Removes a file.
#[utoipa::path(
    delete, path = "/v1/files/{id}", tag = "Files of requests", params(("id" = String, Path)),
    responses(
        (status = 200, description = "It is removed"),
        (status = 404, description = "There is no such file")
    )
)]
pub(crate) async fn delete_file(
    Extension(Guest(tenancy)): Extension<Guest>,
    Path(id): Path<String>,
) -> Answer {
    match tenancy.offline.lock().files.remove(&id) {
        None => Err(unknown("file", &id)),
        Some(_) => Ok(Json(json!({ "id": id, "object": "file", "deleted": true })).into_response()),
    }
}

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
    Input { value, ignored }: Input<BatchRequest>,
) -> Answer {
    if !batch::ENDPOINTS.contains(&value.endpoint.as_str()) {
        return Err(ApiError::field(
            "endpoint",
            format!(
                "{:?} cannot be asked in a file; {} can",
                value.endpoint,
                batch::ENDPOINTS.join(", ")
            ),
        ));
    }
    let (file, _) = guest.0.offline.file(&value.input_file_id)?;
    let input = {
        let mut file = file.try_clone().map_err(io)?;
        file.rewind().map_err(io)?;
        BufReader::new(file)
    };
    let jobs =
        batch::read(input).map_err(|error| ApiError::field("input_file_id", error.to_string()))?;
    let shown = BatchObject {
        id: new_id("batch_"),
        object: "batch",
        endpoint: value.endpoint,
        errors: None,
        input_file_id: value.input_file_id,
        completion_window: value.completion_window.unwrap_or_else(|| "24h".to_owned()),
        status: "in_progress",
        output_file_id: None,
        error_file_id: None,
        created_at: unix_seconds(),
        in_progress_at: Some(unix_seconds()),
        completed_at: None,
        cancelled_at: None,
        request_counts: json!({ "total": jobs.len(), "completed": 0, "failed": 0 }),
        metadata: value.metadata,
        longview: Value::Null,
    };
    let cancel = Arc::new(Notify::new());
    {
        let mut held = guest.0.offline.lock();
        if held.batches.len() >= MOST_BATCHES {
            let done = held
                .batches
                .iter()
                .find(|(_, batch)| batch.shown.status != "in_progress");
            let done = done.map(|(id, _)| id.clone()).ok_or_else(|| {
                ApiError::busy(format!("{MOST_BATCHES} batches are in progress"), 60)
            })?;
            held.batches.remove(&done);
        }
        let batch = Batch {
            shown: shown.clone(),
            cancel: Arc::clone(&cancel),
        };
        held.batches.insert(shown.id.clone(), batch);
    }
    tokio::spawn(run(app, guest, shown.id.clone(), jobs, cancel));
    Ok(ignored.on(Json(shown)))
}

/// Lists all batches, the newest first.
#[utoipa::path(
    get, path = "/v1/batches", tag = "Files of requests",
    responses((status = 200, description = "The batches"))
)]
pub(crate) async fn list(Extension(Guest(tenancy)): Extension<Guest>) -> Json<Value> {
    let held = tenancy.offline.lock();
    let mut batches: Vec<&BatchObject> = held.batches.values().map(|batch| &batch.shown).collect();
    batches.sort_by_key(|batch| std::cmp::Reverse(batch.created_at));
    Json(json!({ "object": "list", "data": batches, "has_more": false }))
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
    match tenancy.offline.lock().batches.get(&id) {
        None => Err(unknown("batch", &id)),
        Some(batch) => Ok(Json(&batch.shown).into_response()),
    }
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
    let mut held = tenancy.offline.lock();
    let batch = held
        .batches
        .get_mut(&id)
        .ok_or_else(|| unknown("batch", &id))?;
    if batch.shown.status != "in_progress" {
        return Err(ApiError::conflict(format!(
            "the batch is {}",
            batch.shown.status
        )));
    }
    batch.shown.status = "cancelling";
    batch.cancel.notify_one();
    Ok(Json(&batch.shown).into_response())
}

/// Answers all requests of a batch and puts the answers into a file.
async fn run(app: App, guest: Guest, id: String, jobs: Vec<batch::Job>, cancel: Arc<Notify>) {
    let offline = Arc::clone(&guest.0);
    let router = routes(&app).layer(Extension(guest));
    let most_at_once = app.options().schedule.most_running;
    let mut summary = BatchSummary::of(jobs.len());
    let mut answers = batch::submit(router, batch::order(jobs), most_at_once);
    let mut output = Vec::new();
    let cancelled = loop {
        tokio::select! {
            answer = answers.recv() => match answer {
                None => break false,
                Some(answer) => {
                    summary.add(&answer);
                    output.extend_from_slice(answer.to_string().as_bytes());
                    output.push(b'\n');
                    offline.offline.tell(&id, &summary);
                }
            },
            () = cancel.notified() => break true,
        }
    };
    // Requests under way end when nobody waits for them.
    drop(answers);
    let stored = offline
        .offline
        .store(&format!("{id}_output.jsonl"), "batch_output", &output);
    let mut held = offline.offline.lock();
    let Some(batch) = held.batches.get_mut(&id) else {
        return;
    };
    let shown = &mut batch.shown;
    match stored {
        Ok(file) => {
            shown.output_file_id = Some(file.id);
            shown.status = if cancelled { "cancelled" } else { "completed" };
        }
        Err(error) => {
            shown.errors =
                Some(json!({ "object": "list", "data": [{ "message": error.message }] }));
            shown.status = "failed";
        }
    }
    let now = Some(unix_seconds());
    match cancelled {
        true => shown.cancelled_at = now,
        false => shown.completed_at = now,
    }
}

impl Offline {
    fn store(&self, filename: &str, purpose: &str, bytes: &[u8]) -> Result<FileObject, ApiError> {
        let mut file = crate::contexts::temporary()?;
        file.write_all(bytes).map_err(io)?;
        let mut held = self.lock();
        if held.files.len() >= MOST_FILES {
            return Err(ApiError::conflict(format!(
                "there are {MOST_FILES} files already; delete some"
            )));
        }
        let shown = FileObject {
            id: new_id("file-"),
            object: "file",
            bytes: bytes.len() as u64,
            created_at: unix_seconds(),
            filename: filename.to_owned(),
            purpose: purpose.to_owned(),
        };
        let stored = Stored {
            file: Arc::new(file),
            shown: shown.clone(),
        };
        held.files.insert(shown.id.clone(), stored);
        Ok(shown)
    }

    fn file(&self, id: &str) -> Result<(Arc<File>, FileObject), ApiError> {
        let held = self.lock();
        let stored = held.files.get(id).ok_or_else(|| unknown("file", id))?;
        Ok((Arc::clone(&stored.file), stored.shown.clone()))
    }

    fn tell(&self, id: &str, summary: &BatchSummary) {
        if let Some(batch) = self.lock().batches.get_mut(id) {
            batch.shown.request_counts = json!({
                "total": summary.total, "completed": summary.completed, "failed": summary.failed
            });
            batch.shown.longview = json!({
                "prompt_tokens": summary.prompt_tokens,
                "reused_tokens": summary.reused_tokens,
                "generated_tokens": summary.generated_tokens,
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Entries are whole at every unlock, so a panic elsewhere does not spoil them.
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Reads without moving a place that others share.
fn read_at(file: &File, out: &mut [u8], from: u64) -> std::io::Result<usize> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_at(file, out, from);
    #[cfg(not(unix))]
    {
        let mut file = file.try_clone()?;
        file.seek(std::io::SeekFrom::Start(from))?;
        std::io::Read::read(&mut file, out)
    }
}

fn unknown(what: &str, id: &str) -> ApiError {
    ApiError::not_found(format!("there is no {what} {id:?}"))
}

fn io(error: std::io::Error) -> ApiError {
    ApiError::failed(format!("a temporary file cannot be used: {error}"))
}
