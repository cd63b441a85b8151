//! A context of a server: its text, how far it is read, and the open context while there is one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use longview::methods::{Methods, Stage};
use longview::{Context, KvType, Tenant};
use serde::Serialize;
use tokio::sync::watch;
use utoipa::ToSchema;

use super::job::Job;
use super::{Draft, Form, Shown, Status};
use crate::app::App;
use crate::clock::{Times, seconds_since_1970};
use crate::report::Kept;
use crate::settings::CONTEXT_STAGES;

/// A context and what is going on with it.
pub(super) struct Entry {
    pub(super) label: Option<String>,
    pub(super) title: String,
    pub(super) form: Form,
    pub(super) tokens: Arc<Vec<u32>>,
    pub(super) read: usize,
    pub(super) reused: usize,
    pub(super) status: Status,
    pub(super) error: Option<String>,
    /// In seconds since 1970, as shown.
    pub(super) created: u64,
    pub(super) used: u64,
    /// The same by the clock that cannot be set; what its end is counted from.
    last_use: Duration,
    /// Counts up with every request that names it.
    pub(super) seen: u64,
    pub(super) ttl_seconds: Option<u64>,
    pub(super) pinned: bool,
    pub(super) saved: bool,
    /// What it is read under, where that is not what the model defines.
    pub(super) made: Option<Arc<Methods>>,
    /// What another program says of one that it has made approximate.
    pub(super) foreign: String,
    /// The open context; what it holds is read.
    pub(super) context: Option<Context>,
    pub(super) job: Option<Job>,
    pub(super) progress: watch::Sender<Progress>,
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

impl Entry {
    pub(super) fn new(times: &Times, draft: Draft) -> Entry {
        let progress = Progress {
            status: Status::Queued,
            done_tokens: 0,
            total_tokens: draft.tokens.len(),
            reused_tokens: 0,
            tokens_per_second: 0.0,
            seconds_left: None,
            error: None,
        };
        let mut entry = Entry {
            label: draft.label,
            title: draft.title,
            form: draft.form,
            tokens: Arc::new(draft.tokens),
            read: 0,
            reused: 0,
            status: Status::Queued,
            error: None,
            created: times.seconds(),
            used: 0,
            last_use: Duration::ZERO,
            seen: 0,
            ttl_seconds: draft.ttl_seconds,
            pinned: draft.pinned,
            saved: false,
            made: draft.methods,
            foreign: String::new(),
            context: None,
            job: None,
            progress: watch::channel(progress).0,
        };
        entry.use_now(times);
        entry
    }

    /// Another with the same text, which costs no keys or values.
    pub(super) fn fork(&self, times: &Times, label: Option<String>) -> Entry {
        let draft = Draft {
            title: self.title.clone(),
            label,
            form: self.form,
            tokens: Vec::new(),
            ttl_seconds: self.ttl_seconds,
            pinned: false,
            methods: self.made.clone(),
        };
        let mut fork = Entry::new(times, draft);
        fork.tokens = Arc::clone(&self.tokens);
        fork.context = self.context.as_ref().map(Context::fork);
        // One that lives in memory alone is where its fork is.
        fork.read = match (&self.made, &fork.context) {
            (Some(_), None) => 0,
            _ => self.read,
        };
        fork.status = match self.status {
            Status::Ready => Status::Ready,
            _ => Status::Cancelled,
        };
        fork.foreign.clone_from(&self.foreign);
        fork.tell();
        fork
    }

    /// Notes that it is used now.
    pub(super) fn use_now(&mut self, times: &Times) {
        self.last_use = times.running();
        self.used = seconds_since_1970(times.surely_reached());
    }

    /// Whether its time is over.
    pub(super) fn is_over(&self, times: &Times) -> bool {
        let unused = times.running().saturating_sub(self.last_use);
        let over = |life: u64| unused > Duration::from_secs(life);
        !self.pinned && self.job.is_none() && self.ttl_seconds.is_some_and(over)
    }

    /// Whether this server knows how it was made.
    pub(super) fn is_known(&self) -> bool {
        self.foreign.is_empty()
    }

    /// Canonical text of what makes it approximate; empty for an exact one.
    pub(super) fn methods_text(&self) -> String {
        match &self.made {
            None => self.foreign.clone(),
            Some(methods) => methods_text(methods),
        }
    }

    /// Whether all of it is in its record and its store, so that it can be let go of and opened again.
    pub(super) fn is_idle(&self) -> bool {
        let lasts = self.made.is_none() || self.compressed().is_some();
        self.saved && self.job.is_none() && lasts && self.error.is_none()
    }

    /// The open context, where a keep method has dropped pairs of it: what is left is in its record.
    pub(super) fn compressed(&self) -> Option<&Context> {
        let context = self.context.as_ref().filter(|_| self.made.is_some());
        context.filter(|context| context.is_compressed())
    }

    /// Takes `context` back, which was restored from its record.
    pub(super) fn take_back(&mut self, context: Context) {
        self.read = context.len();
        self.context = Some(context);
        self.status = match self.read == self.tokens.len() {
            true => Status::Ready,
            false => Status::Cancelled,
        };
        self.tell();
    }

    /// Tokens that its context is planned for: its own, or with the answer that a request usually has where
    /// that needs other rotary frequencies, so that it can be asked something.
    pub(super) fn planned(&self, app: &App) -> usize {
        planned(app, self.tokens.len())
    }

    /// The open context, with what the store has of its tokens.
    pub(super) fn open(&mut self, app: &App, tenant: &Tenant) -> Option<&Context> {
        let exact = self.made.is_none() && self.is_known();
        if self.context.is_none() && self.job.is_none() && exact {
            let planned = self.planned(app);
            // What cannot be opened now is opened, or refused, by the request that needs it.
            let mut context = app.engine().new_context_of(tenant, planned).ok()?;
            let held = context.attach(&self.tokens).ok()?;
            self.read = self.read.max(held);
            self.context = Some(context);
        }
        self.context.as_ref()
    }

    /// Bytes of keys and values of the open context.
    pub(super) fn bytes(&self) -> u64 {
        self.context.as_ref().map_or(0, Context::kv_bytes)
    }

    pub(super) fn shown(&self, id: &str) -> Shown {
        let context = self.context.as_ref();
        let report = context.and_then(Context::keep_report);
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
            bytes: self.bytes(),
            bytes_by_tier: context.map(Context::bytes_by_place).unwrap_or_default(),
            methods: self.methods_text(),
            notices: self
                .made
                .as_ref()
                .map_or_else(Vec::new, |made| made.notices()),
            keep: report.as_ref().map(Kept::of),
            created: self.created,
            used: self.used,
            ttl_seconds: self.ttl_seconds,
            pinned: self.pinned,
            saved: self.saved,
            error: self.error.clone(),
        }
    }

    /// Tells whoever waits how far it is.
    pub(super) fn tell(&self) {
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

/// Tokens that a context of `tokens` tokens is planned for; see [`Entry::planned`].
pub(super) fn planned(app: &App, tokens: usize) -> usize {
    let model = app.engine().model();
    let answer = app.options().usual_answer_tokens;
    let asked = tokens
        .saturating_add(answer)
        .min(model.blueprint().max_positions);
    let set = |tokens| model.file().rope_set(tokens).ok();
    match set(tokens) == set(asked) {
        true => tokens.max(1),
        false => asked,
    }
}

/// What was chosen of `methods`, by stage.
pub(super) fn chosen(methods: &Methods) -> BTreeMap<String, String> {
    let usual = Methods::new();
    let text = |stage: Stage| methods.text(stage, KvType::F16);
    let is_chosen = |stage: &Stage| match stage {
        // The usual form is the engine's, which is not known here.
        Stage::Store => methods.kv_forms().is_some(),
        stage => text(*stage) != usual.text(*stage, KvType::F16),
    };
    let stages = CONTEXT_STAGES.into_iter().filter(is_chosen);
    stages
        .map(|stage| (stage.name().to_owned(), text(stage)))
        .collect()
}

fn methods_text(methods: &Methods) -> String {
    let stages = chosen(methods).into_iter();
    let texts: Vec<String> = stages
        .map(|(stage, text)| format!("{stage} {text}"))
        .collect();
    texts.join("; ")
}
