//! Records of contexts: what makes them known after a restart, and bundles that take them elsewhere.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::sync::Arc;

use longview::Context;
use longview::bundle::{self, BundleError};
use longview::methods::{Methods, Stage};
use longview::records::{Listed, Record, Records, Summary};
use longview::tier::{Origin, TierError};
use serde::{Deserialize, Serialize};

use super::entry::{self, Entry};
use super::{Contexts, Draft, Form, Shown, Status, acting, unknown};
use crate::app::App;
use crate::clock::Times;
use crate::error::ApiError;

/// What a record says for the server, beside tokens and blocks.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Extra {
    #[serde(default)]
    form: Form,
    /// Tokens that are still to be read.
    #[serde(default)]
    rest: Vec<u32>,
    /// What it is read under, by stage, where that is not what the model defines.
    #[serde(default)]
    made: BTreeMap<String, String>,
}

impl Contexts {
    /// Writes the record of a context. `false` when contexts are not kept here.
    pub(crate) fn save(&self, app: &App, name: &str) -> Result<bool, ApiError> {
        if self.records.is_none() {
            return Ok(false);
        }
        let id = self.find(app, name)?;
        {
            let _recording = self.record_alone();
            self.with(&id, |entry| {
                entry.open(app, &self.tenant);
                Ok(())
            })?;
            if !self.write_record(app, &id, None)? {
                return Ok(false);
            }
        }
        if let Some(store) = app.engine().store() {
            store.sync()?;
        }
        Ok(true)
    }

    /// Writes the record of a context as it is known now, with all its text, whether or not it is read;
    /// whoever calls it has [`Contexts::record_alone`]. What is read of one that is with the engine is what
    /// `before` says, or the record that is there. `false` when contexts are not kept here.
    pub(super) fn write_record(
        &self,
        app: &App,
        id: &str,
        before: Option<Record>,
    ) -> Result<bool, ApiError> {
        let (Some(records), Some(_)) = (&self.records, self.tenant.origins()) else {
            return Ok(false);
        };
        let is_away = self.with(id, |entry| Ok(entry.context.is_none()))?;
        let before = before.or_else(|| is_away.then(|| records.load(id).ok()).flatten());
        let record = self.with(id, |entry| {
            let fork = entry.compressed().map(Context::fork);
            Ok(self
                .record(app, id, entry, before)
                .map(|record| (record, fork)))
        })?;
        let Some((mut record, fork)) = record else {
            return Ok(false);
        };
        if let Some(mut fork) = fork {
            // Apart from the list, which others wait for.
            let left = fork.save_kept().map_err(longview::EngineError::from)?;
            record.set_left(&left);
        }
        records.save(&record)?;
        self.with(id, |entry| {
            entry.saved = true;
            Ok(())
        })?;
        Ok(true)
    }

    /// Writes the records of all contexts, when the server ends.
    pub(crate) fn save_all(&self, app: &App) {
        let ids: Vec<String> = self.lock().keys().cloned().collect();
        for id in ids {
            // The others are still tried; what was read is found by content all the same.
            let _ = self.save(app, &id);
        }
    }

    /// Writes a context with its blocks into a file that goes when it is closed.
    pub(crate) fn export(&self, app: &App, name: &str) -> Result<(String, File, u64), ApiError> {
        let id = self.find(app, name)?;
        self.with(&id, |entry| match entry.made {
            Some(_) if entry.compressed().is_none() => Err(ApiError::conflict(format!(
                "the context was made under methods of its own ({}) that have dropped nothing of it, and lives in \
                 memory; only whole ones and what a keep method has left are exported",
                entry.methods_text()
            ))),
            _ => Ok(()),
        })?;
        self.with(&id, |entry| match entry.job {
            None => Ok(()),
            Some(_) => Err(ApiError::conflict(
                "the context is being read; export it when it is ready, or cancel that first",
            )),
        })?;
        if !self.save(app, &id)? {
            return Err(not_kept());
        }
        let record = self.records()?.load(&id)?;
        let store = app.engine().store().ok_or_else(not_kept)?;
        let mut file = temporary(app)?;
        bundle::export(&record, store.tiers(), &mut file).map_err(of_bundle)?;
        let bytes = file.stream_position().map_err(io)?;
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        Ok((id, file, bytes))
    }

    /// Takes a context in that was exported elsewhere.
    pub(crate) fn import(
        &self,
        app: &App,
        bundle: File,
    ) -> Result<(String, Option<String>), ApiError> {
        let records = self.records()?;
        let store = app.engine().store().ok_or_else(not_kept)?;
        let tier = store.tiers().first().ok_or_else(not_kept)?;
        let origins = self.tenant.origins().ok_or_else(not_kept)?;
        self.check_count()?;
        let ledger = app.engine().ledger();
        let imported =
            bundle::import(bundle, &**tier, records, ledger, origins).map_err(of_bundle)?;
        let id = imported.record.summary.id.clone();
        let mut entry = self.opened(app, imported.record);
        let mut entries = self.lock();
        self.see(&mut entry);
        entries.insert(id.clone(), entry);
        self.let_idle_go(&mut entries);
        drop(entries);
        Ok((id, imported.label_taken))
    }

    /// Summaries of this tenant's records.
    pub(super) fn saved_summaries(&self) -> Result<Vec<Summary>, ApiError> {
        let Some(records) = &self.records else {
            return Ok(Vec::new());
        };
        let open = |listed| match listed {
            Listed::Open(summary) => Some(*summary),
            Listed::Locked { .. } => None,
        };
        Ok(records.list()?.into_iter().filter_map(open).collect())
    }

    /// Loads a record of this model; returns its id.
    pub(super) fn load(&self, app: &App, name: &str) -> Result<String, ApiError> {
        let Some(records) = &self.records else {
            return Err(unknown(name));
        };
        let record = match records.find(name) {
            Err(TierError::NoContext { .. }) => return Err(unknown(name)),
            other => other?,
        };
        let times = app.times();
        if record.summary.is_expired(times.surely_past()) {
            return Err(unknown(name));
        }
        let origins = self.tenant.origins().ok_or_else(not_kept)?;
        record.summary.check_origins(origins)?;
        records.touch(&record.summary.id, times.surely_reached());
        let id = record.summary.id.clone();
        // Another request may have opened it meanwhile.
        let opened = self.opened(app, record);
        let mut entries = self.lock();
        let entry = entries.entry(id.clone());
        self.see(entry.or_insert(opened));
        self.let_idle_go(&mut entries);
        Ok(id)
    }

    /// The entry of a record, with what a keep method has left of the context, where that was saved and there
    /// is memory for it. Otherwise it is read again when someone says so.
    fn opened(&self, app: &App, record: Record) -> Entry {
        let left = record.left().map(<[u8]>::to_vec);
        let tokens = record.tokens.len();
        let mut entry = Entry::of_record(app.times(), record);
        let (Some(left), Some(made)) = (left, entry.made.clone()) else {
            return entry;
        };
        let all = entry.tokens.len();
        let context = self.check_room(app, &made, all).ok().and_then(|()| {
            let methods = acting(app, &made);
            let engine = app.engine();
            let context = engine.new_context_with_of(&self.tenant, &methods, all, all);
            let mut context = context.ok()?;
            context.restore_kept(&entry.tokens[..tokens], &left).ok()?;
            Some(context)
        });
        if let Some(context) = context {
            entry.take_back(context);
        }
        entry
    }

    fn records(&self) -> Result<&Records, ApiError> {
        self.records.as_ref().ok_or_else(not_kept)
    }

    /// The record of an entry as it is now; see [`Entry::record`].
    pub(super) fn record(
        &self,
        app: &App,
        id: &str,
        entry: &Entry,
        before: Option<Record>,
    ) -> Option<Record> {
        let origin = self.origin(app, entry.planned(app)).ok()?;
        entry.record(id, origin, before)
    }

    /// What contexts planned for `tokens` tokens are found by.
    fn origin(&self, app: &App, tokens: usize) -> Result<&Origin, ApiError> {
        let origin = app.engine().origin_of(&self.tenant, tokens)?;
        origin.map(|origin| &**origin).ok_or_else(not_kept)
    }
}

impl Entry {
    /// Whether what is read of it is nowhere in this entry: the engine has it, or only the store.
    fn is_away(&self) -> bool {
        self.made.is_none() && self.context.is_none()
    }

    /// Its record among those of `origin`. What is read of a context that is away is what `before` says,
    /// the record that is there; `None` when nothing is known of one that another program has made.
    fn record(&self, id: &str, origin: &Origin, before: Option<Record>) -> Option<Record> {
        let nothing = || Record::new(origin, Vec::new(), Vec::new());
        let mut made = BTreeMap::new();
        let mut record = match (&self.made, &self.context) {
            // One under methods of its own is known by its text and by what makes it, and by what a keep
            // method has left of it, which is put behind.
            (Some(methods), context) => {
                made = entry::chosen(methods);
                let left = before.filter(|before| {
                    let same = said(before).made == made;
                    let of_it = self.tokens.starts_with(&before.tokens);
                    context.is_none() && same && of_it && before.left().is_some()
                });
                match (left, self.compressed()) {
                    (Some(left), _) => left,
                    (None, Some(context)) => {
                        Record::new(origin, context.tokens().to_vec(), Vec::new())
                    }
                    (None, None) => Record::new(origin, self.tokens.to_vec(), Vec::new()),
                }
            }
            (None, Some(context)) => {
                Record::new(context.origin()?, context.tokens().to_vec(), context.keys())
            }
            (None, None) if !self.is_known() => before?,
            (None, None) => before
                .filter(|before| self.tokens.starts_with(&before.tokens))
                .unwrap_or_else(nothing),
        };
        let held = record.tokens.len().min(self.tokens.len());
        let extra = Extra {
            form: self.form,
            rest: self.tokens[held..].to_vec(),
            made,
        };
        let summary = &mut record.summary;
        summary.id = id.to_owned();
        summary.label.clone_from(&self.label);
        summary.title.clone_from(&self.title);
        summary.methods = self.methods_text();
        summary.rest = extra.rest.len() as u64;
        summary.form = self.form.name().to_owned();
        if !self.is_away() {
            summary.bytes = match (&self.made, self.compressed()) {
                (None, _) | (_, Some(_)) => self.bytes(),
                (Some(_), None) => summary.bytes,
            };
        }
        summary.created = self.created;
        summary.used = self.used;
        summary.time_to_live = self.ttl_seconds;
        summary.pinned = self.pinned;
        // What another program says of its own stays as it is.
        if self.is_known() {
            let left = record.left().map(<[u8]>::to_vec);
            record.pieces = serde_json::to_vec(&extra).ok()?;
            if let Some(left) = left {
                record.set_left(&left);
            }
        }
        Some(record)
    }

    fn of_record(times: &Times, record: Record) -> Entry {
        let extra = said(&record);
        let summary = record.summary;
        let made = methods_of(&extra.made).filter(|_| !extra.made.is_empty());
        let read = match made {
            None => record.tokens.len(),
            Some(_) => 0,
        };
        let foreign = match made {
            None => summary.methods,
            Some(_) => String::new(),
        };
        let mut entry = Entry::new(
            times,
            Draft {
                title: summary.title,
                label: summary.label,
                form: extra.form,
                tokens: [record.tokens, extra.rest].concat(),
                ttl_seconds: summary.time_to_live,
                pinned: summary.pinned,
                methods: made.map(Arc::new),
            },
        );
        entry.read = read;
        entry.status = match read == entry.tokens.len() {
            true => Status::Ready,
            false => Status::Cancelled,
        };
        entry.created = summary.created;
        entry.saved = true;
        entry.foreign = foreign;
        entry.tell();
        entry
    }
}

/// What a record says for the server; those of other makers hold something else there, or nothing.
fn said(record: &Record) -> Extra {
    serde_json::from_slice(record.said()).unwrap_or_default()
}

/// Methods by their texts; `None` where this program does not know one of them.
fn methods_of(texts: &BTreeMap<String, String>) -> Option<Methods> {
    let mut methods = Methods::new();
    for (name, text) in texts {
        let stage = Stage::ALL.into_iter().find(|stage| stage.name() == name)?;
        methods.set(stage, text).ok()?;
    }
    Some(methods)
}

/// A saved context that is not open.
pub(super) fn shown(summary: &Summary) -> Shown {
    let (held, rest) = (summary.tokens as usize, summary.rest as usize);
    // What makes one approximate is in no store; what a keep method has left of it is in its record.
    let read = match summary.methods.is_empty() || summary.bytes > 0 {
        true => held,
        false => 0,
    };
    Shown {
        id: summary.id.clone(),
        object: "context",
        label: summary.label.clone(),
        title: summary.title.clone(),
        form: Form::named(&summary.form),
        status: match read == held + rest {
            true => Status::Ready,
            false => Status::Cancelled,
        },
        tokens: held + rest,
        read_tokens: read,
        reused_tokens: 0,
        bytes: summary.bytes,
        bytes_by_tier: BTreeMap::new(),
        methods: summary.methods.clone(),
        notices: Vec::new(),
        keep: None,
        created: summary.created,
        used: summary.used,
        ttl_seconds: summary.time_to_live,
        pinned: summary.pinned,
        saved: true,
        error: None,
    }
}

/// A file that is gone when it is closed: beside the contexts, which are as large, where they are kept.
pub(crate) fn temporary(app: &App) -> Result<File, ApiError> {
    match &app.options().contexts_folder {
        Some(folder) => tempfile::tempfile_in(folder).or_else(|_| tempfile::tempfile()),
        None => tempfile::tempfile(),
    }
    .map_err(io)
}

fn io(error: std::io::Error) -> ApiError {
    ApiError::of_io(
        error.kind(),
        format!("a temporary file cannot be used: {error}"),
    )
}

fn of_bundle(error: BundleError) -> ApiError {
    match error {
        BundleError::NotABundle(_) | BundleError::Version(_) | BundleError::Damaged(_) => {
            ApiError::wrong(error.to_string()).code("invalid_bundle")
        }
        BundleError::Tier(error) => error.into(),
        BundleError::Io(error) => io(error),
        other => ApiError::failed(other.to_string()),
    }
}

fn not_kept() -> ApiError {
    ApiError::conflict(
        "contexts are not kept here: the server was started without a folder for them (--cache-dir)",
    )
}
