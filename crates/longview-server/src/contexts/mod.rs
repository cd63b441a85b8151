//! Contexts as things that clients name: one tenant's.
//!
//! A context here is a list of tokens with a name, how much of it was read, and, while there is memory,
//! the open context itself. Its blocks are found by content, so nothing is lost when the open one goes
//! or the server ends: reading it again takes over what is stored. What makes it known after a restart
//! is a record in the contexts' folder with all its text, written before it is read, when reading ends, and
//! whenever something about it changes.
//!
//! A context may be read under methods of its own. Such a one is not what the model defines, so nothing else
//! finds it. It lives in memory; its record knows its text and methods, and what a keep method has left of it,
//! which is taken up after a restart. Where nothing was dropped it is read again then, when someone says so.

mod entry;
mod job;
mod limits;
mod names;
mod saved;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use longview::methods::Methods;
use longview::records::Records;
use longview::schedule::Start;
use longview::tier::StoreFolder;
use longview::{Context, ContextMethods, Tenant};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use utoipa::ToSchema;

use crate::app::App;
use crate::clock::Times;
use crate::error::ApiError;
use crate::report::Kept;

use entry::Entry;
pub(crate) use limits::MOST_CONTEXTS;
pub(crate) use names::check_title;
use names::{check_free, unknown};
pub(crate) use saved::temporary;

/// The contexts of one tenant.
pub(crate) struct Contexts {
    tenant: Arc<Tenant>,
    records: Option<Records>,
    entries: Mutex<BTreeMap<String, Entry>>,
    /// Held while a record is written or removed, and locked before the entries: nobody sees the record
    /// of a context that was deleted while it was being written.
    recording: Mutex<()>,
    /// What takes the news of contexts that are being read.
    following: Mutex<Vec<JoinHandle<()>>>,
    /// How often contexts were named.
    named: AtomicU64,
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
    /// What should be known of what was dropped, merged or estimated: nothing, for exact ones.
    pub(crate) notices: Vec<String>,
    /// What its keep method has dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) keep: Option<Kept>,
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

/// What a request takes from a context that it names.
pub(crate) struct Held {
    pub(crate) tokens: Arc<Vec<u32>>,
    /// A fork of the open context.
    context: Option<Context>,
    /// What it was read under, where that is not what the model defines.
    pub(crate) methods: Option<Arc<Methods>>,
}

impl Held {
    /// What a prompt that begins with it starts from.
    pub(crate) fn start(&self) -> Start {
        match (&self.context, &self.methods) {
            (None, _) => Start::Nothing,
            (Some(context), None) => Start::Beginning(context.fork()),
            (Some(context), Some(_)) => Start::Made(context.fork()),
        }
    }
}

/// What a new context is made from.
pub(crate) struct Draft {
    pub(crate) title: String,
    pub(crate) label: Option<String>,
    pub(crate) form: Form,
    pub(crate) tokens: Vec<u32>,
    pub(crate) ttl_seconds: Option<u64>,
    pub(crate) pinned: bool,
    /// What it is read under, where that is not what the model defines.
    pub(crate) methods: Option<Arc<Methods>>,
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

impl Contexts {
    /// Those of `tenant`, kept in `folder` under `salt`.
    pub(crate) fn new(tenant: Arc<Tenant>, folder: Option<&StoreFolder>, salt: &str) -> Contexts {
        let folder = folder.filter(|folder| !folder.read_only());
        Contexts {
            tenant,
            records: folder.map(|folder| Records::open(folder, salt.as_bytes())),
            entries: Mutex::default(),
            recording: Mutex::default(),
            following: Mutex::default(),
            named: AtomicU64::new(0),
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
        if let Some(methods) = &draft.methods {
            self.check_room(app, methods, count)?;
        }
        let id = self.insert(Entry::new(app.times(), draft))?;
        if let Err(error) = self.read(app, &id) {
            self.lock().remove(&id);
            return Err(error);
        }
        Ok(id)
    }

    /// All of them, the last used first.
    pub(crate) fn list(&self, times: &Times) -> Result<Vec<Shown>, ApiError> {
        self.let_go(times);
        let mut shown: Vec<Shown> = self
            .lock()
            .iter()
            .map(|(id, entry)| entry.shown(id))
            .collect();
        for summary in self.saved_summaries()? {
            let is_over = summary.is_expired(times.surely_past());
            if !is_over && !shown.iter().any(|one| one.id == summary.id) {
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
        let (held, saved) = self.with(&id, |entry| {
            if !entry.is_known() {
                return Err(ApiError::conflict(format!(
                    "context {name:?} is approximate ({}) and was not made by this server, so what it was made \
                     of cannot be told; read its text anew",
                    entry.methods_text()
                )));
            }
            if entry.made.is_some() && entry.status != Status::Ready {
                return Err(ApiError::conflict(format!(
                    "context {name:?} was made under methods of its own ({}) and is not read: POST \
                     /v1/contexts/{id}/resume reads it, and its events say when that is done",
                    entry.methods_text()
                ))
                .code("context_not_ready"));
            }
            entry.use_now(app.times());
            // While it is being read, the request waits for what it shares with it.
            let context = match entry.status {
                Status::Ready => entry.open(app, &self.tenant).map(Context::fork),
                _ => None,
            };
            let held = Held {
                tokens: Arc::clone(&entry.tokens),
                context,
                methods: entry.made.clone(),
            };
            Ok((held, entry.saved))
        })?;
        if let Some(records) = self.records.as_ref().filter(|_| saved) {
            records.touch(&id, app.times().surely_reached());
        }
        Ok(held)
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
        let fork = self.with(&id, |entry| {
            entry.open(app, &self.tenant);
            Ok(entry.fork(app.times(), label))
        })?;
        let new = self.insert(fork)?;
        // It is there; that it is not kept shows in what is said of it.
        let _ = self.save(app, &new);
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
        self.read_more(app, &id, |entry| {
            let count = entry.tokens.len() + tokens.len();
            if count >= limit {
                return Err(ApiError::wrong(format!(
                    "the context would have {count} tokens, but the model reads at most {limit}"
                ))
                .code("context_length_exceeded"));
            }
            Ok([&entry.tokens[..], tokens].concat())
        })?;
        Ok(id)
    }

    /// Changes what is said about a context.
    pub(crate) fn change(&self, app: &App, name: &str, change: Change) -> Result<Shown, ApiError> {
        let id = self.find(app, name)?;
        let label = change.label.as_deref().filter(|label| !label.is_empty());
        self.check_label(label, Some(&id))?;
        check_title(change.title.as_deref())?;
        {
            let mut entries = self.lock();
            check_free(&entries, label, Some(&id))?;
            let entry = entries.get_mut(&id).ok_or_else(|| unknown(&id))?;
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
            entry.use_now(app.times());
            entry.saved = false;
        }
        self.save(app, &id)?;
        self.show(app, &id)
    }

    /// Removes a context. Its blocks stay until there is no room for them.
    pub(crate) fn delete(&self, app: &App, name: &str) -> Result<String, ApiError> {
        let id = self.find(app, name)?;
        let _recording = self.record_alone();
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

    /// Lets go of those whose time is over, and of their records.
    pub(crate) fn expire(&self, times: &Times) {
        self.let_go(times);
        if let Some(records) = &self.records {
            // What cannot be removed now is tried again soon.
            let _ = records.expire(times.surely_past());
        }
    }

    /// Lets go of open ones whose time is over.
    fn let_go(&self, times: &Times) {
        let mut over = Vec::new();
        self.lock().retain(|id, entry| {
            let is_over = entry.is_over(times);
            if is_over {
                over.push(id.clone());
            }
            !is_over
        });
        for (records, id) in self
            .records
            .iter()
            .flat_map(|records| over.iter().map(move |id| (records, id)))
        {
            // One that cannot be removed now expires by its own time.
            let _ = records.remove(id);
        }
    }

    /// Takes an entry in under a new id.
    fn insert(&self, mut entry: Entry) -> Result<String, ApiError> {
        self.check_count()?;
        let mut entries = self.lock();
        // Another may have taken the label since it was looked for among the saved ones.
        check_free(&entries, entry.label.as_deref(), None)?;
        let id = std::iter::repeat_with(fresh_id).find(|id| !entries.contains_key(id));
        let id = id.expect("ids do not end");
        self.see(&mut entry);
        entries.insert(id.clone(), entry);
        self.let_idle_go(&mut entries);
        Ok(id)
    }

    /// Bytes of contexts that live in memory alone.
    fn made_bytes(&self) -> u64 {
        let entries = self.lock();
        let made = entries.values().filter(|entry| entry.made.is_some());
        made.map(Entry::bytes).sum()
    }

    /// Refuses a context of `tokens` tokens under methods of its own when those that are there leave no room:
    /// they cannot leave memory for others, so all of them have half of what is for keys and values.
    fn check_room(&self, app: &App, methods: &Methods, tokens: usize) -> Result<(), ApiError> {
        let engine = app.engine();
        let plan = engine.plan_with(&acting(app, methods), tokens, tokens)?;
        if !plan.fits() {
            return Err(longview::EngineError::DoesNotFit(Box::new(plan)).into());
        }
        let Some(limit) = plan.limit else {
            return Ok(());
        };
        let half =
            limit.saturating_sub(plan.program + plan.index + plan.weights + plan.scratch) / 2;
        let held: u64 = app
            .tenancies()
            .map(|tenancy| tenancy.contexts.made_bytes())
            .sum();
        if held + plan.kv <= half {
            return Ok(());
        }
        Err(ApiError::conflict(format!(
            "contexts with methods of their own live in memory; those there are hold {held} bytes, this one takes up \
             to {}, and all of them may have {half}: delete some, or start the server with more --memory",
            plan.kv
        ))
        .code("insufficient_memory"))
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

    /// Waits for the record that is being written or removed.
    fn record_alone(&self) -> MutexGuard<'_, ()> {
        lock(&self.recording)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        lock(&self.entries)
    }
}

impl Form {
    /// As it is written.
    fn name(self) -> &'static str {
        match self {
            Form::Document => "document",
            Form::Plain => "plain",
        }
    }

    /// The one that is written so; another program's contexts are documents.
    fn named(name: &str) -> Form {
        match name == Form::Plain.name() {
            true => Form::Plain,
            false => Form::Document,
        }
    }
}

/// What the lists here hold is whole at every unlock, so a panic elsewhere does not spoil it.
fn lock<T>(list: &Mutex<T>) -> MutexGuard<'_, T> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What acts on a context that is read under `methods`.
fn acting(app: &App, methods: &Methods) -> ContextMethods {
    let engine = app.engine();
    let forms = methods
        .kv_forms()
        .filter(|&forms| forms != engine.kv_forms());
    ContextMethods {
        store: forms,
        ..methods.acting()
    }
}

/// Twelve hexadecimal digits, as records have.
fn fresh_id() -> String {
    crate::app::new_id("")[..12].to_owned()
}
