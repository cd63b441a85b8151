//! Batches under way.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::sync::Arc;

use axum::Extension;
use serde_json::Value;
use tokio::sync::Notify;

use super::folder::io_error;
use super::{BatchObject, BatchStatus, Offline};
use crate::api::routes;
use crate::app::{App, Guest, Tenancy, blocking};
use crate::batch::{self, BatchSummary, Job};
use crate::error::ApiError;

/// What is still to be done for a batch.
struct Work {
    /// Lines without an answer.
    jobs: Vec<Job>,
    /// The answers there are.
    summary: BatchSummary,
    /// Where further ones go.
    answers: File,
    cancel: Arc<Notify>,
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
        let (input, answers, cancel) = self.change(id, |batch| {
            let facts = &batch.facts;
            let input = facts.shown.input_file_id.clone();
            Ok((input, facts.answers.clone(), Arc::clone(&batch.cancel)))
        })?;
        let (input, _) = self.content(&input)?;
        let mut jobs = batch::read(BufReader::new(input))
            .map_err(|error| ApiError::field("input_file_id", error.to_string()))?;
        let answers = self.folder.open_growing(&answers)?;
        let mut summary = BatchSummary::of(jobs.len());
        let done = answered(&answers, &mut summary).map_err(io_error)?;
        jobs.retain(|job| !done.contains(&job.custom_id));
        self.tell(id, &summary);
        Ok(Work {
            jobs,
            summary,
            answers,
            cancel,
        })
    }
}

/// Takes in the answers that a file holds; returns whose they are. A line that was torn is cut off.
fn answered(file: &File, summary: &mut BatchSummary) -> std::io::Result<HashSet<Value>> {
    let mut done = HashSet::new();
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
    file.set_len(whole)?;
    Ok(done)
}

/// Answers what is not answered, line by line, and ends the batch; unless the server ends first, after
/// which the rest is for the next one.
async fn run(app: App, guest: Guest, id: String, work: Work) {
    let Work {
        jobs,
        mut summary,
        answers: mut file,
        cancel,
    } = work;
    let tenancy: Arc<Tenancy> = Arc::clone(&guest.0);
    let router = routes(&app).layer(Extension(guest));
    let most_at_once = app.options().schedule.most_running;
    let mut answers = batch::submit(router, batch::order(jobs), most_at_once, {
        let app = app.clone();
        move || app.is_stopping()
    });
    let (status, trouble) = loop {
        let answer = tokio::select! {
            answer = answers.recv() => answer,
            () = cancel.notified() => break (BatchStatus::Cancelled, None),
        };
        let Some(answer) = answer else {
            break (BatchStatus::Completed, None);
        };
        summary.add(&answer);
        let line = format!("{answer}\n");
        let written = blocking(move || {
            file.write_all(line.as_bytes()).map_err(io_error)?;
            Ok(file)
        });
        match written.await {
            Ok(back) => file = back,
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
