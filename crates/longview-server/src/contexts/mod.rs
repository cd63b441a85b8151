//! Contexts as things that clients name: one tenant's.
//!
//! A context here is a list of tokens with a name, how much of it was read, and, while there is memory,
//! the open context itself. Its blocks are found by content, so nothing is lost when the open one goes
//! or the server ends: reading it again takes over what is stored. What makes it known after a restart
//! is a record in the contexts' folder, written whenever reading ends and whenever something about it
//! changes.

mod job;
mod saved;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use longview::records::Records;
use longview::tier::StoreFolder;
use longview::{Context, Tenant};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::ToSchema;

use crate::app::{App, seconds_since_1970, unix_seconds};
use crate::error::ApiError;

use job::Job;
pub(crate) use saved::temporary;

/// The contexts of one tenant.
pub(crate) struct Contexts {
    tenant: Arc<Tenant>,
    records: Option<Records>,
    entries: Mutex<BTreeMap<String, Entry>>,
}

/// What text a context's tokens are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Form {
    /// A document inside the model's chat template, to be asked about.
    #[default]
    Document,
    /// A plain text, to be continued.
    Plain,
}

/// How far the reading of a context is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// It waits for others.
    Queued,
    /// It is being read.
    Reading,
    /// All of it is read.
    Ready,
    /// Reading was stopped; it can be gone on with.
    Cancelled,
    /// Reading has failed; it can be tried again.
    Failed,
}

/// What is known of a context.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Shown {
    /// Its name for programs.
    pub(crate) id: String,
    /// Always `context`.
    pub(crate) object: &'static str,
    /// Its name for people.
    pub(crate) label: Option<String>,
    /// What it is about.
    pub(crate) title: String,
    pub(crate) form: Form,
    pub(crate) status: Status,
    /// Tokens in all.
    pub(crate) tokens: usize,
    /// Tokens read.
    pub(crate) read_tokens: usize,
    /// Tokens that were taken over from work done before, of those read last.
    pub(crate) reused_tokens: usize,
    /// Bytes of its keys and values, shared ones included.
    pub(crate) bytes: u64,
    /// Bytes of them by where they are now; a block may be in memory and on disk.
    #[schema(value_type = Object)]
    pub(crate) bytes_by_tier: BTreeMap<String, u64>,
    /// Canonical text of the methods that make it approximate; empty for exact ones.
    pub(crate) methods: String,
    /// What was dropped, merged or estimated: nothing, for exact ones.
    pub(crate) notices: Vec<String>,
    /// When it was made and last used, in seconds since 1970.
    pub(crate) created: u64,
    pub(crate) used: u64,
    /// It goes when it was not used for so many seconds.
    pub(crate) ttl_seconds: Option<u64>,
    /// Whether it never goes by itself.
    pub(crate) pinned: bool,
    /// Whether it will be known after a restart.
    pub(crate) saved: bool,
    /// Why reading failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// How far a context is read, for whoever waits.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Progress {
    pub(crate) status: Status,
    pub(crate) done_tokens: usize,
    pub(crate) total_tokens: usize,
    pub(crate) reused_tokens: usize,
    pub(crate) tokens_per_second: f64,
    /// Seconds left at this pace.
    pub(crate) seconds_left: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// What a chat request takes from a context.
pub(crate) struct Held {
    pub(crate) tokens: Arc<Vec<u32>>,
    /// A fork of the open context.
    pub(crate) context: Option<Context>,
}

/// What a new context is made from.
pub(crate) struct Draft {
    pub(crate) title: String,
    pub(crate) label: Option<String>,
    pub(crate) form: Form,
    pub(crate) tokens: Vec<u32>,
    pub(crate) ttl_seconds: Option<u64>,
    pub(crate) pinned: bool,
}

/// What may be changed about a context; what is absent stays.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub(crate) struct Change {
    /// A new name for people; empty for none.
    pub(crate) label: Option<String>,
    pub(crate) title: Option<String>,
    pub(crate) pinned: Option<bool>,
    /// Seconds without use after which it goes; 0 for never.
    pub(crate) ttl_seconds: Option<u64>,
}

/// A context and what is going on with it.
struct Entry {
    label: Option<String>,
    title: String,
    form: Form,
    tokens: Arc<Vec<u32>>,
    read: usize,
    reused: usize,
    status: Status,
    error: Option<String>,
    created: u64,
    used: u64,
    ttl_seconds: Option<u64>,
    pinned: bool,
    saved: bool,
    methods: String,
    /// The open context; what it holds is read.
    context: Option<Context>,
    job: Option<Job>,
    progress: watch::Sender<Progress>,
}

impl Contexts {
    /// Those of `tenant`, kept in `folder` under `salt`.
    pub(crate) fn new(tenant: Arc<Tenant>, folder: Option<&StoreFolder>, salt: &str) -> Contexts {
        let folder = folder.filter(|folder| !folder.read_only());
        Contexts {
            tenant,
            records: folder.map(|folder| Records::open(folder, salt.as_bytes())),
            entries: Mutex::default(),
        }
    }

    /// Makes a context and begins to read it.
    pub(crate) fn create(
        self: &Arc<Contexts>,
        app: &App,
        draft: Draft,
    ) -> Result<String, ApiError> {
        self.check_label(draft.label.as_deref(), None)?;
        let limit = app.engine().model().blueprint().max_positions;
        let count = draft.tokens.len();
        if count == 0 {
            return Err(ApiError::wrong("the context is empty; give some text"));
        }
        if count >= limit {
            return Err(ApiError::wrong(format!(
                "the context has {count} tokens, but the model reads at most {limit} with the question; \
                 give less text"
            ))
            .code("context_length_exceeded"));
        }
        let id = fresh_id();
        let entry = Entry::new(draft);
        self.lock().insert(id.clone(), entry);
        if let Err(error) = self.read(app, &id) {
            self.lock().remove(&id);
            return Err(error);
        }
        Ok(id)
    }

    /// All of them, the last used first.
    pub(crate) fn list(&self) -> Result<Vec<Shown>, ApiError> {
        let mut shown: Vec<Shown> = self
            .lock()
            .iter()
            .map(|(id, entry)| entry.shown(id))
            .collect();
        for summary in self.saved_summaries()? {
            if !shown.iter().any(|one| one.id == summary.id) {
                shown.push(saved::shown(&summary));
            }
        }
        shown.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.id.cmp(&b.id)));
        Ok(shown)
    }

    /// One of them, opened.
    pub(crate) fn show(&self, app: &App, name: &str) -> Result<Shown, ApiError> {
        let id = self.find(app, name)?;
        self.with(&id, |entry| {
            entry.open(app, &self.tenant);
            Ok(entry.shown(&id))
        })
    }

    /// What a request that names it takes of it; it counts as used.
    pub(crate) fn for_request(&self, app: &App, name: &str) -> Result<Held, ApiError> {
        let id = self.find(app, name)?;
        self.with(&id, |entry| {
            if !entry.methods.is_empty() {
                return Err(ApiError::conflict(format!(
                    "context {name:?} is approximate ({}), and this server asks exact ones only",
                    entry.methods
                )));
            }
            entry.used = unix_seconds();
            // While it is being read, the request waits for what it shares with it.
            Ok(Held {
                tokens: Arc::clone(&entry.tokens),
                context: match entry.status {
                    Status::Ready => entry.open(app, &self.tenant).map(Context::fork),
                    _ => None,
                },
            })
        })
    }

    /// Another context with the same text, which costs no keys or values.
    pub(crate) fn fork(
        &self,
        app: &App,
        name: &str,
        label: Option<String>,
    ) -> Result<String, ApiError> {
        self.check_label(label.as_deref(), None)?;
        let id = self.find(app, name)?;
        let new = fresh_id();
        let entry = self.with(&id, |entry| {
            entry.open(app, &self.tenant);
            let draft = Draft {
                title: entry.title.clone(),
                label,
                form: entry.form,
                tokens: Vec::new(),
                ttl_seconds: entry.ttl_seconds,
                pinned: false,
            };
            let mut fork = Entry::new(draft);
            fork.tokens = Arc::clone(&entry.tokens);
            fork.read = entry.read;
            fork.context = entry.context.as_ref().map(Context::fork);
            fork.status = match entry.status {
                Status::Ready => Status::Ready,
                _ => Status::Cancelled,
            };
            fork.methods.clone_from(&entry.methods);
            fork.tell();
            Ok(fork)
        })?;
        self.lock().insert(new.clone(), entry);
        self.save(app, &new)?;
        Ok(new)
    }

    /// Puts text behind a context and begins to read it.
    pub(crate) fn append(
        self: &Arc<Contexts>,
        app: &App,
        name: &str,
        tokens: &[u32],
    ) -> Result<String, ApiError> {
        let id = self.find(app, name)?;
        let limit = app.engine().model().blueprint().max_positions;
        self.with(&id, |entry| {
            if entry.job.is_some() {
                return Err(ApiError::conflict(
                    "the context is being read; append when it is ready, or cancel it first",
                ));
            }
            let count = entry.tokens.len() + tokens.len();
            if count >= limit {
                return Err(ApiError::wrong(format!(
                    "the context would have {count} tokens, but the model reads at most {limit}"
                ))
                .code("context_length_exceeded"));
            }
            Arc::make_mut(&mut entry.tokens).extend_from_slice(tokens);
            Ok(())
        })?;
        self.read(app, &id)?;
        Ok(id)
    }

    /// Changes what is said about a context.
    pub(crate) fn change(&self, app: &App, name: &str, change: Change) -> Result<Shown, ApiError> {
        let id = self.find(app, name)?;
        let label = change.label.as_deref().filter(|label| !label.is_empty());
        self.check_label(label, Some(&id))?;
        self.with(&id, |entry| {
            if let Some(label) = change.label {
                entry.label = Some(label).filter(|label| !label.is_empty());
            }
            if let Some(title) = change.title {
                entry.title = title;
            }
            if let Some(pinned) = change.pinned {
                entry.pinned = pinned;
            }
            if let Some(seconds) = change.ttl_seconds {
                entry.ttl_seconds = Some(seconds).filter(|&seconds| seconds > 0);
            }
            entry.used = unix_seconds();
            Ok(())
        })?;
        self.save(app, &id)?;
        self.show(app, &id)
    }

    /// Removes a context. Its blocks stay until there is no room for them.
    pub(crate) fn delete(&self, app: &App, name: &str) -> Result<String, ApiError> {
        let id = self.find(app, name)?;
        if let Some(entry) = self.lock().remove(&id)
            && let Some(job) = entry.job
        {
            job.cancel();
        }
        if let Some(records) = &self.records {
            match records.remove(&id) {
                Ok(()) | Err(longview::tier::TierError::NoContext { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(id)
    }

    /// Lets go of those whose time is over, when it is `time`.
    pub(crate) fn expire(&self, time: SystemTime) {
        let now = seconds_since_1970(time);
        let over = |entry: &Entry| {
            let unused = now.saturating_sub(entry.used);
            !entry.pinned
                && entry.job.is_none()
                && entry.ttl_seconds.is_some_and(|life| unused > life)
        };
        self.lock().retain(|_, entry| !over(entry));
        if let Some(records) = &self.records {
            // What cannot be removed now is tried again soon.
            let _ = records.expire(time);
        }
    }

    /// The id of a context by its id, the beginning of it, or its label.
    fn find(&self, app: &App, name: &str) -> Result<String, ApiError> {
        {
            let entries = self.lock();
            if entries.contains_key(name) {
                return Ok(name.to_owned());
            }
            let labelled = entries
                .iter()
                .find(|(_, entry)| entry.label.as_deref() == Some(name));
            if let Some((id, _)) = labelled {
                return Ok(id.clone());
            }
            let mut begins = entries
                .keys()
                .filter(|id| name.len() >= 4 && id.starts_with(name));
            if let (Some(id), None) = (begins.next(), begins.next()) {
                return Ok(id.clone());
            }
        }
        self.load(app, name)
    }

    /// Refuses a name that another context has.
    fn check_label(&self, label: Option<&str>, own: Option<&str>) -> Result<(), ApiError> {
        let Some(label) = label else { return Ok(()) };
        let plain = !label.is_empty()
            && label.len() <= 100
            && !label
                .chars()
                .any(|c| c.is_control() || c == '/' || c == '\\');
        if !plain {
            return Err(ApiError::field(
                "label",
                "a label has 1 to 100 characters, none of them a slash or a control character",
            ));
        }
        let taken = |id: &str| {
            ApiError::conflict(format!(
                "context {id} is labelled {label:?} already; choose another"
            ))
            .code("label_taken")
        };
        for (id, entry) in self.lock().iter() {
            if entry.label.as_deref() == Some(label) && own != Some(id) {
                return Err(taken(id));
            }
        }
        for summary in self.saved_summaries()? {
            let known = self.lock().contains_key(&summary.id);
            if !known && summary.label.as_deref() == Some(label) && own != Some(&summary.id) {
                return Err(taken(&summary.id));
            }
        }
        Ok(())
    }

    fn with<T>(
        &self,
        id: &str,
        work: impl FnOnce(&mut Entry) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        match self.lock().get_mut(id) {
            Some(entry) => work(entry),
            None => Err(unknown(id)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        // Entries are whole at every unlock, so a panic elsewhere does not spoil them.
        self.entries
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Entry {
    fn new(draft: Draft) -> Entry {
        let now = unix_seconds();
        let progress = Progress {
            status: Status::Queued,
            done_tokens: 0,
            total_tokens: draft.tokens.len(),
            reused_tokens: 0,
            tokens_per_second: 0.0,
            seconds_left: None,
            error: None,
        };
        Entry {
            label: draft.label,
            title: draft.title,
            form: draft.form,
            tokens: Arc::new(draft.tokens),
            read: 0,
            reused: 0,
            status: Status::Queued,
            error: None,
            created: now,
            used: now,
            ttl_seconds: draft.ttl_seconds,
            pinned: draft.pinned,
            saved: false,
            methods: String::new(),
            context: None,
            job: None,
            progress: watch::channel(progress).0,
        }
    }

    /// The open context, with what the store has of its tokens.
    fn open(&mut self, app: &App, tenant: &Tenant) -> Option<&Context> {
        if self.context.is_none() && self.job.is_none() && self.methods.is_empty() {
            let planned = self.tokens.len().max(1);
            // What cannot be opened now is opened, or refused, by the request that needs it.
            let mut context = app.engine().new_context_of(tenant, planned).ok()?;
            let held = context.attach(&self.tokens).ok()?;
            self.read = self.read.max(held);
            self.context = Some(context);
        }
        self.context.as_ref()
    }

    fn shown(&self, id: &str) -> Shown {
        let context = self.context.as_ref();
        Shown {
            id: id.to_owned(),
            object: "context",
            label: self.label.clone(),
            title: self.title.clone(),
            form: self.form,
            status: self.status,
            tokens: self.tokens.len(),
            read_tokens: self.read,
            reused_tokens: self.reused,
            bytes: context.map_or(0, Context::kv_bytes),
            bytes_by_tier: context.map(Context::bytes_by_place).unwrap_or_default(),
            methods: self.methods.clone(),
            notices: Vec::new(),
            created: self.created,
            used: self.used,
            ttl_seconds: self.ttl_seconds,
            pinned: self.pinned,
            saved: self.saved,
            error: self.error.clone(),
        }
    }

    /// Tells whoever waits how far it is.
    fn tell(&self) {
        self.progress.send_modify(|progress| {
            progress.status = self.status;
            progress.done_tokens = self.read;
            progress.total_tokens = self.tokens.len();
            progress.reused_tokens = self.reused;
            progress.error.clone_from(&self.error);
            if self.status != Status::Reading {
                progress.seconds_left = None;
            }
        });
    }
}

fn unknown(name: &str) -> ApiError {
    ApiError::not_found(format!(
        "there is no context {name:?}; GET /v1/contexts lists those there are"
    ))
    .code("context_not_found")
}

/// Twelve hexadecimal digits, as records have.
fn fresh_id() -> String {
    crate::app::new_id("")[..12].to_owned()
}
