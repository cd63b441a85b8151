//! Records of contexts: what makes them known after a restart, and bundles that take them elsewhere.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::sync::Arc;

use longview::bundle::{self, BundleError};
use longview::records::{Listed, Record, Records, Summary};
use longview::tier::{Origin, TierError};
use serde::{Deserialize, Serialize};

use super::{Contexts, Draft, Entry, Form, Shown, Status, unknown};
use crate::app::App;
use crate::error::ApiError;

/// What a record says for the server, beside tokens and blocks.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Extra {
    #[serde(default)]
    form: Form,
    /// Tokens that are still to be read.
    #[serde(default)]
    rest: Vec<u32>,
}

impl Contexts {
    /// Writes the record of a context. `false` when contexts are not kept here.
    pub(crate) fn save(&self, app: &App, name: &str) -> Result<bool, ApiError> {
        let Some(records) = &self.records else {
            return Ok(false);
        };
        let id = self.find(app, name)?;
        let record = self.with(&id, |entry| {
            entry.open(app, &self.tenant);
            Ok(entry.record(&id))
        })?;
        let Some(record) = record else {
            return Ok(false);
        };
        records.save(&record)?;
        if let Some(store) = app.engine().store() {
            store.sync()?;
        }
        self.with(&id, |entry| {
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
        if !self.save(app, &id)? {
            return Err(not_kept());
        }
        let record = self.records()?.load(&id)?;
        let store = app.engine().store().ok_or_else(not_kept)?;
        let mut file = temporary()?;
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
        let origin = self.origin(app)?;
        let ledger = app.engine().ledger();
        let imported =
            bundle::import(bundle, &**tier, records, ledger, Some(&origin)).map_err(of_bundle)?;
        let id = imported.record.summary.id.clone();
        let entry = Entry::of_record(imported.record);
        self.lock().insert(id.clone(), entry);
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
        record.summary.check_origin(&*self.origin(app)?)?;
        records.touch(&record.summary.id);
        let id = record.summary.id.clone();
        self.lock()
            .entry(id.clone())
            .or_insert_with(|| Entry::of_record(record));
        Ok(id)
    }

    fn records(&self) -> Result<&Records, ApiError> {
        self.records.as_ref().ok_or_else(not_kept)
    }

    fn origin(&self, app: &App) -> Result<Arc<Origin>, ApiError> {
        let context = app.engine().new_context_of(&self.tenant, 1)?;
        context.origin().cloned().ok_or_else(not_kept)
    }
}

impl Entry {
    /// Its record; `None` when nothing of it is kept.
    fn record(&self, id: &str) -> Option<Record> {
        let context = self.context.as_ref()?;
        let origin = context.origin()?;
        let held = context.len();
        let extra = Extra {
            form: self.form,
            rest: self.tokens[held.min(self.tokens.len())..].to_vec(),
        };
        let mut record = Record::new(origin, context.tokens().to_vec(), context.keys());
        let summary = &mut record.summary;
        summary.id = id.to_owned();
        summary.label.clone_from(&self.label);
        summary.title.clone_from(&self.title);
        summary.methods.clone_from(&self.methods);
        summary.bytes = context.kv_bytes();
        summary.created = self.created;
        summary.used = self.used;
        summary.time_to_live = self.ttl_seconds;
        summary.pinned = self.pinned;
        record.pieces = serde_json::to_vec(&extra).ok()?;
        Some(record)
    }

    fn of_record(record: Record) -> Entry {
        // Records of other makers hold something else here, or nothing.
        let extra: Extra = serde_json::from_slice(&record.pieces).unwrap_or_default();
        let summary = record.summary;
        let read = record.tokens.len();
        let mut entry = Entry::new(Draft {
            title: summary.title,
            label: summary.label,
            form: extra.form,
            tokens: [record.tokens, extra.rest].concat(),
            ttl_seconds: summary.time_to_live,
            pinned: summary.pinned,
        });
        entry.read = read;
        entry.status = match read == entry.tokens.len() {
            true => Status::Ready,
            false => Status::Cancelled,
        };
        entry.created = summary.created;
        entry.used = summary.used;
        entry.saved = true;
        entry.methods = summary.methods;
        entry.tell();
        entry
    }
}

/// A saved context that is not open.
pub(super) fn shown(summary: &Summary) -> Shown {
    let tokens = summary.tokens as usize;
    Shown {
        id: summary.id.clone(),
        object: "context",
        label: summary.label.clone(),
        title: summary.title.clone(),
        form: Form::Document,
        status: Status::Ready,
        tokens,
        read_tokens: tokens,
        reused_tokens: 0,
        bytes: summary.bytes,
        bytes_by_tier: BTreeMap::new(),
        methods: summary.methods.clone(),
        notices: Vec::new(),
        created: summary.created,
        used: summary.used,
        ttl_seconds: summary.time_to_live,
        pinned: summary.pinned,
        saved: true,
        error: None,
    }
}

/// A file that is gone when it is closed.
pub(crate) fn temporary() -> Result<File, ApiError> {
    tempfile::tempfile().map_err(io)
}

fn io(error: std::io::Error) -> ApiError {
    ApiError::failed(format!("a temporary file cannot be used: {error}"))
}

fn of_bundle(error: BundleError) -> ApiError {
    match error {
        BundleError::NotABundle(_) | BundleError::Version(_) | BundleError::Damaged(_) => {
            ApiError::wrong(error.to_string()).code("invalid_bundle")
        }
        BundleError::Tier(error) => error.into(),
        other => ApiError::failed(other.to_string()),
    }
}

fn not_kept() -> ApiError {
    ApiError::conflict(
        "contexts are not kept here: the server was started without a folder for them (--cache-dir)",
    )
}
