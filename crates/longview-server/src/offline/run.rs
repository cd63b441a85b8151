//! Batches under way.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::sync::Arc;

use axum::Extension;
use serde_json::Value;
use tokio::sync::Notify;

use super::{BatchObject, BatchStatus, Offline};
use crate::api::routes;
use crate::app::{App, Guest, Tenancy, blocking};
use crate::batch::{self, BatchSummary, Job};
use crate::error::ApiError;
use crate::folder::{append_line, io_error};

/// What is still to be done for a batch.
struct Work {
    /// Lines without an answer.
    jobs: Vec<Job>,
    /// The answers there are.
    summary: BatchSummary,
    /// Where further ones go.
    files: Outcomes,
    cancel: Arc<Notify>,
}

/// Where the answers of a batch go, and where what became of the other lines.
struct Outcomes {
    answers: File,
    errors: File,
}

impl Outcomes {
    fn add(&self, answer: &Value) -> std::io::Result<()> {
        let file = match batch::is_good(answer) {
            true => &self.answers,
            false => &self.errors,
        };
        append_line(file, &answer.to_string())
    }
}

/// Begins a batch; returns it as it is shown.
pub(crate) async fn start(
    app: &App,
    guest: Guest,
    shown: BatchObject,
) -> Result<BatchObject, ApiError> {
    let tenancy = Arc::clone(&guest.0);
    let id = shown.id.clone();
    let (work, shown) = blocking(move || {
        // Lines that answers could not be told apart by are refused before anything begins.
        let (input, _) = tenancy.offline.content(&shown.input_file_id)?;
        batch::read(BufReader::new(input))
            .map_err(|error| ApiError::field("input_file_id", error.to_string()))?;
        let id = shown.id.clone();
        tenancy.offline.begin(shown)?;
        let work = tenancy.offline.work(&id);
        if let Err(error) = &work {
            tenancy.offline.end(&id, BatchStatus::Failed, Some(error));
        }
        Ok((work?, tenancy.offline.batch(&id)?))
    })
    .await?;
    tokio::spawn(run(app.clone(), guest, id, work));
    Ok(shown)
}

/// Goes on with the batches that were not done when a server ended.
pub(crate) fn resume_all(app: &App) {
    for tenancy in app.tenancies() {
        for (id, status) in tenancy.offline.unfinished() {
            match (tenancy.offline.work(&id), status) {
                (Ok(_), BatchStatus::Cancelling) => {
                    tenancy.offline.end(&id, BatchStatus::Cancelled, None);
                }
                (Ok(work), _) => {
                    let guest = Guest(Arc::clone(tenancy));
                    tokio::spawn(run(app.clone(), guest, id, work));
                }
                (Err(error), _) => tenancy.offline.end(&id, BatchStatus::Failed, Some(&error)),
            }
        }
    }
}

impl Offline {
    fn unfinished(&self) -> Vec<(String, BatchStatus)> {
        let held = self.lock();
        let batches = held.batches.iter();
        batches
            .map(|(id, batch)| (id.clone(), batch.facts.shown.status))
            .filter(|(_, status)| !status.is_over())
            .collect()
    }

    /// What is still to be done for a batch; what is answered is counted.
    fn work(&self, id: &str) -> Result<Work, ApiError> {
        let (facts, cancel) = self.change(id, |batch| {
            Ok((batch.facts.clone(), Arc::clone(&batch.cancel)))
        })?;
        let (input, _) = self.content(&facts.shown.input_file_id)?;
        let mut jobs = batch::read(BufReader::new(input))
            .map_err(|error| ApiError::field("input_file_id", error.to_string()))?;
        let files = Outcomes {
            answers: self.folder.open_growing(&facts.answers)?,
            errors: self.folder.open_growing(&facts.errors)?,
        };
        let mut summary = BatchSummary::of(jobs.len());
        let mut done = HashSet::new();
        for file in [&files.answers, &files.errors] {
            answered(file, &mut summary, &mut done).map_err(io_error)?;
        }
        jobs.retain(|job| !done.contains(&job.custom_id));
        self.tell(id, &summary);
        Ok(Work {
            jobs,
            summary,
            files,
            cancel,
        })
    }
}

/// Takes in the answers that a file holds and notes whose they are. A line that was torn is cut off.
fn answered(
    file: &File,
    summary: &mut BatchSummary,
    done: &mut HashSet<Value>,
) -> std::io::Result<()> {
    let mut whole = 0;
    let mut lines = BufReader::new(file);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        let answer = serde_json::from_slice::<Value>(&line);
        let Some(answer) = answer.ok().filter(|_| line.ends_with(b"\n")) else {
            break;
        };
        summary.add(&answer);
        done.insert(answer["custom_id"].clone());
        whole += line.len() as u64;
        line.clear();
    }
    file.set_len(whole)
}

/// Answers what is not answered, line by line, and ends the batch; unless the server ends first, after
/// which the rest is for the next one.
async fn run(app: App, guest: Guest, id: String, work: Work) {
    let Work {
        jobs,
        mut summary,
        mut files,
        cancel,
    } = work;
    let tenancy: Arc<Tenancy> = Arc::clone(&guest.0);
    let router = routes(&app).layer(Extension(guest));
    let most_at_once = app.options().schedule.most_running;
    let mut answers = batch::submit(router, batch::order(jobs), most_at_once, {
        let app = app.clone();
        move || app.is_stopping()
    });
    let mut ends_as = BatchStatus::Completed;
    let (status, trouble) = loop {
        let answer = tokio::select! {
            answer = answers.recv() => answer,
            () = cancel.notified() => {
                // What is answered by now still comes.
                ends_as = BatchStatus::Cancelled;
                answers.close();
                continue;
            }
        };
        let Some(answer) = answer else {
            break (ends_as, None);
        };
        summary.add(&answer);
        let written = blocking(move || {
            files.add(&answer).map_err(io_error)?;
            Ok(files)
        });
        match written.await {
            Ok(back) => files = back,
            Err(error) => break (BatchStatus::Failed, Some(error)),
        }
        tenancy.offline.tell(&id, &summary);
    };
    // Requests under way end when nobody waits for them.
    drop(answers);
    let is_done = summary.completed + summary.failed == summary.total;
    if app.is_stopping() && status == BatchStatus::Completed && !is_done {
        return;
    }
    let ended = blocking(move || {
        tenancy.offline.end(&id, status, trouble.as_ref());
        Ok(())
    });
    // The server is ending if it was not done; then the next one does it.
    let _ = ended.await;
}
