//! Reading a context: a job of the context, not of whoever asked for it.

use std::sync::Arc;
use std::time::Instant;

use longview::ContextMethods;
use longview::schedule::{Goal, Observe, Priority, Request, Start};
use tokio::sync::{Notify, watch};

use super::entry::{Entry, Progress, planned};
use super::{Contexts, Status, acting, lock};
use crate::app::App;
use crate::error::ApiError;
use crate::outbox::{Detail, Inbox, News};

/// A reading under way.
#[derive(Clone)]
pub(crate) struct Job(Arc<Notify>);

impl Job {
    /// Ends it; what is read stays.
    pub(crate) fn cancel(&self) {
        self.0.notify_one();
    }
}

impl Contexts {
    /// Begins to read what of a context is not read.
    pub(crate) fn read(self: &Arc<Contexts>, app: &App, id: &str) -> Result<(), ApiError> {
        self.read_more(app, id, |entry| Ok(entry.tokens.to_vec()))
    }

    /// Begins to read a context whose tokens are to be those that `grown` says. Where that is refused, the
    /// context stays what it was.
    pub(super) fn read_more(
        self: &Arc<Contexts>,
        app: &App,
        id: &str,
        grown: impl FnOnce(&Entry) -> Result<Vec<u32>, ApiError>,
    ) -> Result<(), ApiError> {
        let inbox = Inbox::new();
        let job = Job(Arc::new(Notify::new()));
        // Its record is written before that of the end of the job.
        let _recording = self.record_alone();
        let before = self.with(id, |entry| {
            if entry.job.is_some() {
                return Err(ApiError::conflict(
                    "the context is being read; go on when it is ready, or cancel that first",
                ));
            }
            if !entry.is_known() {
                return Err(ApiError::conflict(format!(
                    "the context is approximate ({}) and was not made by this server, so it cannot be gone on \
                     with; read its text anew",
                    entry.methods_text()
                )));
            }
            let tokens = grown(entry)?;
            let methods = match &entry.made {
                // Named contexts are whole; a question's own method works on its fork.
                None => ContextMethods::default(),
                Some(made) => acting(app, made),
            };
            let plan = app.engine().plan_with(&methods, tokens.len(), tokens.len())?;
            if !plan.fits() {
                return Err(longview::EngineError::DoesNotFit(Box::new(plan)).into());
            }
            let permit = app.enter(tokens.len(), Priority::Normal)?;
            // The engine has its context from now on.
            let before = match entry.context {
                // What is left of one under methods of its own is in the record that is there.
                Some(_) if entry.made.is_none() => self.record(app, id, entry, None),
                _ => None,
            };
            let start = match (entry.context.take(), &entry.made) {
                (None, _) => Start::Nothing,
                (Some(context), None) => Start::Beginning(context),
                (Some(context), Some(_)) => Start::Made(context),
            };
            app.worker().submit(Request {
                tenant: Arc::clone(&self.tenant),
                planned_tokens: planned(app, tokens.len()),
                prompt: tokens.clone(),
                start,
                goal: Goal::Read,
                methods,
                moved: None,
                prompt_logprobs: None,
                observe: Observe::Nothing,
                priority: Priority::Normal,
                listener: Box::new(inbox.ear(Detail::Text, 0, permit)),
            })?;
            entry.tokens = Arc::new(tokens);
            entry.job = Some(job.clone());
            entry.status = Status::Queued;
            entry.error = None;
            entry.tell();
            Ok(before)
        })?;
        // From now on its text survives whatever ends the process. What stands in the way is told when it is
        // saved by name.
        let _ = self.write_record(app, id, before);
        let contexts = Arc::clone(self);
        let following = tokio::spawn(follow(app.clone(), contexts, id.to_owned(), inbox, job));
        let mut jobs = lock(&self.following);
        jobs.retain(|job| !job.is_finished());
        jobs.push(following);
        Ok(())
    }

    /// Waits until what the engine has handed back of the contexts that were being read is in their entries
    /// and records. Nothing more may begin.
    pub(crate) async fn settle(&self) {
        let following = std::mem::take(&mut *lock(&self.following));
        for job in following {
            // A panic was told of when it happened.
            let _ = job.await;
        }
    }

    /// Ends the reading of a context; what is read stays.
    pub(crate) fn cancel(&self, app: &App, name: &str) -> Result<String, ApiError> {
        let id = self.find(app, name)?;
        self.with(&id, |entry| match &entry.job {
            Some(job) => {
                job.cancel();
                Ok(())
            }
            None => Err(ApiError::conflict("the context is not being read")),
        })?;
        Ok(id)
    }

    /// Goes on with the reading of a context.
    pub(crate) fn resume(self: &Arc<Contexts>, app: &App, name: &str) -> Result<String, ApiError> {
        let id = self.find(app, name)?;
        let ready = self.with(&id, |entry| Ok(entry.status == Status::Ready))?;
        if !ready {
            self.read(app, &id)?;
        }
        Ok(id)
    }

    /// How far a context is read, now and from now on.
    pub(crate) fn watch(
        &self,
        app: &App,
        name: &str,
    ) -> Result<watch::Receiver<Progress>, ApiError> {
        let id = self.find(app, name)?;
        self.with(&id, |entry| Ok(entry.progress.subscribe()))
    }
}

/// Takes the news of a reading until it ends.
async fn follow(app: App, contexts: Arc<Contexts>, id: String, mut inbox: Inbox, job: Job) {
    let mut begun = (Instant::now(), 0);
    let mut cancelled = false;
    loop {
        let news = tokio::select! {
            news = inbox.next() => news,
            () = job.0.notified(), if !cancelled => {
                cancelled = true;
                inbox.leave();
                continue;
            }
        };
        let Some(news) = news else { break };
        // It may have been deleted meanwhile; then nobody is told.
        let _ = contexts.with(&id, |entry| {
            match news {
                News::Started { reused } => {
                    entry.status = Status::Reading;
                    entry.reused = reused;
                    entry.read = reused;
                    begun = (Instant::now(), reused);
                }
                News::Read { done, .. } => {
                    entry.read = done;
                    let seconds = begun.0.elapsed().as_secs_f64().max(1e-9);
                    let rate = done.saturating_sub(begun.1) as f64 / seconds;
                    let left = entry.tokens.len() - done;
                    entry.progress.send_modify(|progress| {
                        progress.tokens_per_second = rate;
                        progress.seconds_left = (rate > 0.0).then(|| left as f64 / rate);
                    });
                }
                News::Ended(ended) => {
                    app.metrics().ended(&ended.summary);
                    entry.job = None;
                    entry.use_now(app.times());
                    let ended = *ended;
                    match (ended.context, &entry.made) {
                        (Some(context), None) => {
                            entry.read = context.len().max(entry.read.min(entry.tokens.len()));
                            entry.context = Some(context);
                        }
                        // What lives in memory alone is read as far as it is there.
                        (Some(context), Some(_)) => {
                            entry.read = context.len();
                            entry.context = Some(context);
                        }
                        (None, None) => {}
                        (None, Some(_)) => entry.read = 0,
                    }
                    entry.status = match ended.error {
                        Some(error) => {
                            entry.error = Some(error.to_string());
                            Status::Failed
                        }
                        None if entry.read == entry.tokens.len() => Status::Ready,
                        None => Status::Cancelled,
                    };
                }
                News::Scored { .. } | News::Text { .. } | News::Finished { .. } => {}
            }
            entry.tell();
            Ok(())
        });
    }
    // The engine may have given it up without a word.
    let _ = contexts.with(&id, |entry| {
        if entry.job.take().is_some() {
            entry.status = Status::Failed;
            entry.error = Some("the engine gave up reading; resume it".to_owned());
            entry.tell();
        }
        Ok(())
    });
    let saving = tokio::task::spawn_blocking(move || {
        // What stands in the way is told when it is saved by name.
        let _ = contexts.save(&app, &id);
    });
    let _ = saving.await;
}
