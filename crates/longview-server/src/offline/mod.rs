//! A tenant's files of requests, and the batches that answer them.
//!
//! They lie in a folder beside the store, so they are there after a restart, and a batch that was not
//! done goes on with the lines that have no answer. Every name in that folder is made here: what
//! requests say is only looked up among what is known.

mod run;

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Notify;
use utoipa::ToSchema;

use crate::app::new_id;
use crate::batch::BatchSummary;
use crate::clock::Times;
use crate::error::ApiError;
use crate::folder::Folder;

pub(crate) use run::{resume_all, start};

/// The most files of a tenant.
const MOST_FILES: usize = 256;

/// The most bytes of a tenant's files in all.
const MOST_BYTES: u64 = 4 << 30;

/// The most batches of a tenant, those that are done included.
const MOST_BATCHES: usize = 256;

/// A tenant's files and batches.
pub(crate) struct Offline {
    folder: Arc<Folder>,
    times: Times,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    files: BTreeMap<String, FileObject>,
    batches: BTreeMap<String, Batch>,
}

/// A batch, and what stops it.
struct Batch {
    facts: BatchFacts,
    cancel: Arc<Notify>,
}

/// What is kept of a batch.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BatchFacts {
    pub(crate) shown: BatchObject,
    /// The file that its answers go to, which is listed when all are there.
    pub(crate) answers: String,
    /// The same for refusals and failures.
    #[serde(default = "new_file_id")]
    pub(crate) errors: String,
}

/// What is known of a file.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct FileObject {
    pub(crate) id: String,
    #[serde(skip_deserializing, default = "file_object")]
    object: &'static str,
    pub(crate) bytes: u64,
    created_at: u64,
    filename: String,
    pub(crate) purpose: String,
}

/// What is known of a batch.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct BatchObject {
    pub(crate) id: String,
    #[serde(skip_deserializing, default = "batch_object")]
    object: &'static str,
    endpoint: String,
    errors: Option<Value>,
    pub(crate) input_file_id: String,
    completion_window: String,
    status: BatchStatus,
    output_file_id: Option<String>,
    error_file_id: Option<String>,
    created_at: u64,
    in_progress_at: Option<u64>,
    completed_at: Option<u64>,
    cancelled_at: Option<u64>,
    failed_at: Option<u64>,
    request_counts: Value,
    metadata: Option<Value>,
    /// What was measured.
    longview: Value,
}

/// How far a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum BatchStatus {
    InProgress,
    Completed,
    Cancelling,
    Cancelled,
    Failed,
}

impl BatchStatus {
    /// Whether nothing more happens.
    fn is_over(self) -> bool {
        !matches!(self, BatchStatus::InProgress | BatchStatus::Cancelling)
    }

    fn name(self) -> &'static str {
        match self {
            BatchStatus::InProgress => "in progress",
            BatchStatus::Completed => "completed",
            BatchStatus::Cancelling => "being cancelled",
            BatchStatus::Cancelled => "cancelled",
            BatchStatus::Failed => "failed",
        }
    }
}

impl BatchObject {
    /// One that is about to begin, `now` in seconds since 1970.
    pub(crate) fn new(
        now: u64,
        input_file_id: String,
        endpoint: String,
        completion_window: Option<String>,
        metadata: Option<Value>,
    ) -> BatchObject {
        BatchObject {
            id: new_id("batch_"),
            object: batch_object(),
            endpoint,
            errors: None,
            input_file_id,
            completion_window: completion_window.unwrap_or_else(|| "24h".to_owned()),
            status: BatchStatus::InProgress,
            output_file_id: None,
            error_file_id: None,
            created_at: now,
            in_progress_at: Some(now),
            completed_at: None,
            cancelled_at: None,
            failed_at: None,
            request_counts: json!({ "total": 0, "completed": 0, "failed": 0 }),
            metadata,
            longview: Value::Null,
        }
    }

    fn count(&mut self, summary: &BatchSummary) {
        self.request_counts = json!({
            "total": summary.total, "completed": summary.completed, "failed": summary.failed
        });
        self.longview = json!({
            "prompt_tokens": summary.prompt_tokens,
            "reused_tokens": summary.reused_tokens,
            "generated_tokens": summary.generated_tokens,
        });
    }
}

impl Offline {
    /// Those in a tenant's folder.
    pub(crate) fn open(folder: Arc<Folder>, times: Times) -> Offline {
        let mut held = Held::default();
        for file in folder.files() {
            held.files.insert(file.id.clone(), file);
        }
        for facts in folder.batches() {
            let batch = Batch {
                cancel: Arc::default(),
                facts,
            };
            held.batches.insert(batch.facts.shown.id.clone(), batch);
        }
        Offline {
            folder,
            times,
            held: Mutex::new(held),
        }
    }

    /// All files, the oldest first.
    pub(crate) fn files(&self) -> Vec<FileObject> {
        let mut files: Vec<FileObject> = self.lock().files.values().cloned().collect();
        files.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        files
    }

    /// What is known of a file.
    pub(crate) fn file(&self, id: &str) -> Result<FileObject, ApiError> {
        let held = self.lock();
        let file = held.files.get(id).cloned();
        file.ok_or_else(|| ApiError::missing("file", id))
    }

    /// A file, opened to be read, and its size.
    pub(crate) fn content(&self, id: &str) -> Result<(File, u64), ApiError> {
        let bytes = self.file(id)?.bytes;
        Ok((self.folder.open_data(id)?, bytes))
    }

    /// Takes a file in.
    pub(crate) fn store(
        &self,
        filename: &str,
        purpose: &str,
        bytes: &[u8],
    ) -> Result<FileObject, ApiError> {
        let file = FileObject {
            id: new_id("file-"),
            object: file_object(),
            bytes: bytes.len() as u64,
            created_at: self.times.seconds(),
            filename: filename.to_owned(),
            purpose: purpose.to_owned(),
        };
        self.check_room(file.bytes)?;
        self.folder.write_data(&file.id, bytes)?;
        self.list(file)
    }

    /// Removes a file, unless a batch needs it.
    pub(crate) fn delete(&self, id: &str) -> Result<(), ApiError> {
        let mut held = self.lock();
        let needs = |batch: &&Batch| {
            let shown = &batch.facts.shown;
            shown.input_file_id == id && !shown.status.is_over()
        };
        if let Some(batch) = held.batches.values().find(needs) {
            return Err(ApiError::conflict(format!(
                "batch {} is answering this file; cancel it first",
                batch.facts.shown.id
            )));
        }
        if held.files.remove(id).is_none() {
            return Err(ApiError::missing("file", id));
        }
        self.folder.remove_file(id)
    }

    /// All batches, the oldest first.
    pub(crate) fn batches(&self) -> Vec<BatchObject> {
        let held = self.lock();
        let shown = held.batches.values().map(|batch| &batch.facts.shown);
        let mut batches: Vec<BatchObject> = shown.cloned().collect();
        batches.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        batches
    }

    /// What is known of a batch.
    pub(crate) fn batch(&self, id: &str) -> Result<BatchObject, ApiError> {
        self.change(id, |batch| Ok(batch.facts.shown.clone()))
    }

    /// Stops a batch; what is answered by then is in its output.
    pub(crate) fn cancel(&self, id: &str) -> Result<BatchObject, ApiError> {
        self.change(id, |batch| {
            let shown = &mut batch.facts.shown;
            if shown.status.is_over() {
                let message = format!("the batch is {}", shown.status.name());
                return Err(ApiError::conflict(message));
            }
            shown.status = BatchStatus::Cancelling;
            self.folder.write_batch(&batch.facts)?;
            batch.cancel.notify_one();
            Ok(batch.facts.shown.clone())
        })
    }

    /// Takes a batch in.
    fn begin(&self, shown: BatchObject) -> Result<(), ApiError> {
        let facts = BatchFacts {
            answers: new_file_id(),
            errors: new_file_id(),
            shown,
        };
        let mut held = self.lock();
        if held.batches.len() >= MOST_BATCHES {
            let over = |(id, batch): (&String, &Batch)| {
                let shown = &batch.facts.shown;
                shown
                    .status
                    .is_over()
                    .then(|| (shown.created_at, id.clone()))
            };
            let oldest = held.batches.iter().filter_map(over).min();
            let (_, oldest) = oldest.ok_or_else(|| {
                ApiError::busy(format!("{MOST_BATCHES} batches are in progress"), 60)
            })?;
            held.batches.remove(&oldest);
            self.folder.remove_batch(&oldest)?;
        }
        self.folder.write_batch(&facts)?;
        let batch = Batch {
            cancel: Arc::default(),
            facts,
        };
        held.batches.insert(batch.facts.shown.id.clone(), batch);
        Ok(())
    }

    /// Ends a batch with its answers and its failures as files, or with what went wrong.
    fn end(&self, id: &str, status: BatchStatus, trouble: Option<&ApiError>) {
        let files = self.change(id, |batch| {
            Ok((batch.facts.answers.clone(), batch.facts.errors.clone()))
        });
        // Nobody deletes a batch that is in progress.
        let Ok((answers, errors)) = files else { return };
        let answers = self.list_growing(answers, format!("{id}_output.jsonl"));
        let errors = self.list_growing(errors, format!("{id}_error.jsonl"));
        let told = self.change(id, |batch| {
            let shown = &mut batch.facts.shown;
            let now = Some(self.times.seconds());
            let trouble = trouble.or(answers.as_ref().err()).or(errors.as_ref().err());
            shown.status = if trouble.is_some() { BatchStatus::Failed } else { status };
            match shown.status {
                BatchStatus::Cancelled => shown.cancelled_at = now,
                BatchStatus::Failed => shown.failed_at = now,
                _ => shown.completed_at = now,
            }
            shown.errors = trouble.map(|error| {
                json!({ "object": "list", "data": [{ "message": error.message, "code": error.code }] })
            });
            shown.output_file_id = answers.as_ref().ok().cloned().flatten();
            shown.error_file_id = errors.as_ref().ok().cloned().flatten();
            self.folder.write_batch(&batch.facts)
        });
        // What cannot be written now is in memory, and is done again after a restart.
        drop(told);
    }

    /// Lists a file that a batch has written, unless there is nothing in it; returns its id.
    fn list_growing(&self, id: String, filename: String) -> Result<Option<String>, ApiError> {
        self.folder.remove_empty(&id)?;
        let Ok(bytes) = self.folder.data_bytes(&id) else {
            return Ok(None);
        };
        self.list(FileObject {
            id: id.clone(),
            object: file_object(),
            bytes,
            created_at: self.times.seconds(),
            filename,
            purpose: "batch_output".to_owned(),
        })?;
        Ok(Some(id))
    }

    /// Notes how far a batch is.
    fn tell(&self, id: &str, summary: &BatchSummary) {
        let told = self.change(id, |batch| {
            batch.facts.shown.count(summary);
            Ok(())
        });
        // A batch in progress is not removed.
        debug_assert!(told.is_ok());
    }

    /// Makes a file known whose data are there.
    fn list(&self, file: FileObject) -> Result<FileObject, ApiError> {
        self.folder.write_file(&file)?;
        self.lock().files.insert(file.id.clone(), file.clone());
        Ok(file)
    }

    fn check_room(&self, bytes: u64) -> Result<(), ApiError> {
        let held = self.lock();
        if held.files.len() >= MOST_FILES {
            return Err(ApiError::conflict(format!(
                "there are {MOST_FILES} files already; delete some"
            )));
        }
        let all: u64 = held.files.values().map(|file| file.bytes).sum();
        if all + bytes > MOST_BYTES {
            return Err(ApiError::conflict(format!(
                "there are files of {all} bytes already, and all of them may have {MOST_BYTES}; delete some"
            )));
        }
        Ok(())
    }

    fn change<T>(
        &self,
        id: &str,
        work: impl FnOnce(&mut Batch) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let mut held = self.lock();
        let batch = held.batches.get_mut(id);
        work(batch.ok_or_else(|| ApiError::missing("batch", id))?)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Entries are whole at every unlock, so a panic elsewhere does not spoil them.
        self.held
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn file_object() -> &'static str {
    "file"
}

fn batch_object() -> &'static str {
    "batch"
}

fn new_file_id() -> String {
    new_id("file-")
}
