//! Records of contexts: which of them someone wants kept, and under which name.

use std::sync::Arc;
use std::time::SystemTime;

use longview::records::{Listed, Record, Records, Summary};
use longview::text::Moment;
use longview::tier::{Origin, TierError};
use longview::{Context, EngineError};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// Seconds after which a context that nobody named and nobody used is no longer listed: 30 days.
const UNNAMED_LIFE: u64 = 30 * 24 * 60 * 60;

/// What a record says beside tokens and blocks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entry {
    /// What the context is about.
    pub(crate) title: String,
    /// Its name, where someone gave it one.
    pub(crate) label: Option<String>,
    /// Canonical text of the methods that make it approximate; empty for exact ones.
    pub(crate) methods: String,
    /// What a keep method has left of it, where one has dropped the rest.
    pub(crate) left: Option<Vec<u8>>,
    /// What else its maker needs to go on.
    pub(crate) pieces: Vec<u8>,
}

/// What a context was made from, which says how it can be gone on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Documents that `ask` has read.
    Documents,
    /// A plain text.
    Text,
    /// A conversation.
    Conversation,
}

/// The pieces of a record of documents.
#[derive(Deserialize, Serialize)]
struct DocumentPieces {
    /// The date that the chat template may have written.
    documents: Moment,
}

/// How the pieces of documents begin; those of a conversation begin otherwise.
const DOCUMENT_PIECES: &[u8] = b"{\"documents\":";

/// The pieces of documents that were saved without a date.
const UNDATED: &[u8] = b"\"documents\"";

/// The pieces of a record of documents that were read at `now`.
pub(crate) fn document_pieces(now: Moment) -> Vec<u8> {
    serde_json::to_vec(&DocumentPieces { documents: now }).expect("a date is text")
}

/// The date with which the documents of a record were read, if it is known.
pub(crate) fn document_date(record: &Record) -> Option<Moment> {
    let pieces: DocumentPieces = serde_json::from_slice(record.said()).ok()?;
    Some(pieces.documents)
}

impl Kind {
    /// Of a record, as its pieces say.
    pub(crate) fn of(record: &Record) -> Kind {
        match record.said() {
            b"" => Kind::Text,
            pieces if pieces == UNDATED || pieces.starts_with(DOCUMENT_PIECES) => Kind::Documents,
            _ => Kind::Conversation,
        }
    }

    /// Refuses a record of another kind, with the command that goes on with it.
    ///
    /// # Errors
    /// When it is not of this kind.
    pub(crate) fn check(self, name: &str, record: &Record) -> Result<(), Failure> {
        let (what, how) = match Kind::of(record) {
            kind if kind == self => return Ok(()),
            Kind::Documents => ("documents", "`longview ask --load` asks about them"),
            Kind::Text => ("a text", "`longview run --load` continues it"),
            Kind::Conversation => ("a conversation", "`longview chat --load` goes on with it"),
        };
        Err(Failure::wrong(format!(
            "context {name:?} ({}) is {what}: {how}",
            record.summary.title
        )))
    }
}

/// The records of one salt in a folder that can be written to.
pub(crate) struct Saved {
    records: Records,
}

impl Saved {
    pub(crate) fn new(records: Records) -> Saved {
        Saved { records }
    }

    /// Forgets what is over. What cannot be forgotten stays listed.
    pub(crate) fn expire(&self) {
        let _ = self.records.expire(SystemTime::now());
    }

    /// The context called `name`, made under one of `origins`.
    pub(crate) fn open(&self, name: &str, origins: &[Arc<Origin>]) -> Result<Record, Failure> {
        let record = self.find(name)?;
        self.check(&record, origins)?;
        Ok(record)
    }

    /// The context called `name`, of whatever model.
    pub(crate) fn find(&self, name: &str) -> Result<Record, Failure> {
        self.records.find(name).map_err(failure)
    }

    /// Notes that a context is used, which must have been made under one of `origins`.
    pub(crate) fn check(&self, record: &Record, origins: &[Arc<Origin>]) -> Result<(), Failure> {
        record.summary.check_origins(origins).map_err(failure)?;
        self.records.touch(&record.summary.id, SystemTime::now());
        Ok(())
    }

    /// The context with this label.
    pub(crate) fn labelled(&self, label: &str) -> Result<Option<Record>, Failure> {
        let summary = self.records.labelled(label).map_err(failure)?;
        let record = summary.map(|summary| self.records.load(&summary.id));
        record.transpose().map_err(failure)
    }

    /// The context that is to be saved under `label` in place of the one that has it already, if one
    /// has, made under one of `origins`: `may_go_on` says whether what is about to be read goes on with
    /// that.
    ///
    /// # Errors
    /// When another context has the label, or none can.
    pub(crate) fn claim(
        &self,
        label: &str,
        origins: &[Arc<Origin>],
        may_go_on: impl FnOnce(&Record) -> bool,
    ) -> Result<Option<Record>, Failure> {
        let Some(record) = self.labelled(label)? else {
            return Ok(None);
        };
        let summary = &record.summary;
        let what = match summary.check_origins(origins) {
            Ok(()) if may_go_on(&record) => return Ok(Some(record)),
            Ok(()) => "with another text".to_owned(),
            Err(_) => format!("read by {} ({})", summary.model, summary.identity),
        };
        Err(Failure::wrong(format!(
            "there is a context labelled {label:?} already ({}), {what}: give another name, or remove it \
             first",
            summary.title
        )))
    }

    /// The dates with which documents were read under one of `origins`, those used last first.
    pub(crate) fn document_dates(&self, origins: &[Arc<Origin>]) -> Vec<Moment> {
        let mut dates = Vec::new();
        for summary in self.summaries().unwrap_or_default() {
            // What is left of documents serves nobody who reads them.
            if summary.methods.is_empty()
                && summary.check_origins(origins).is_ok()
                && let Ok(record) = self.records.load(&summary.id)
                && Kind::of(&record) == Kind::Documents
                && let Some(date) = document_date(&record)
                && !dates.contains(&date)
            {
                dates.push(date);
            }
        }
        dates
    }

    /// Takes the label off a context, which stays.
    pub(crate) fn unlabel(&self, id: &str) -> Result<(), Failure> {
        let mut record = self.records.load(id).map_err(failure)?;
        record.summary.label = None;
        record.summary.time_to_live = Some(UNNAMED_LIFE);
        self.records.save(&record).map_err(failure)
    }

    /// Saves what `context` has read as `id`, or as a new record, or as the one that already has
    /// these tokens. Returns its id; `None` for a context that no store holds.
    pub(crate) fn save(
        &self,
        context: &Context,
        id: Option<&str>,
        entry: Entry,
    ) -> Result<Option<String>, Failure> {
        let Some(origin) = context.origin() else {
            return Ok(None);
        };
        let before = match id {
            Some(id) => self.records.load(id).ok(),
            None => self.same(context, origin, &entry)?,
        };
        let keys = context.keys();
        if keys.is_empty() && entry.label.is_none() {
            // Nothing of it lasts, and nobody asked for it.
            return Ok(None);
        }
        let mut record = Record::new(origin, context.tokens().to_vec(), keys);
        let summary = &mut record.summary;
        summary.title = entry.title;
        summary.methods = entry.methods;
        summary.bytes = context.kv_bytes();
        summary.label = entry.label;
        if let Some(Record { summary: old, .. }) = before {
            summary.id = old.id;
            summary.created = old.created;
            summary.pinned = old.pinned;
            summary.time_to_live = old.time_to_live;
            summary.label = summary.label.take().or(old.label);
        } else if summary.label.is_none() {
            summary.time_to_live = Some(UNNAMED_LIFE);
        }
        if summary.label.is_some() && summary.time_to_live == Some(UNNAMED_LIFE) {
            summary.time_to_live = None;
        }
        record.pieces = entry.pieces;
        if let Some(left) = entry.left {
            record.set_left(&left);
        }
        self.records.save(&record).map_err(failure)?;
        Ok(Some(record.summary.id))
    }

    /// The record of a context with the same tokens, origin and methods.
    fn same(
        &self,
        context: &Context,
        origin: &Origin,
        entry: &Entry,
    ) -> Result<Option<Record>, Failure> {
        let is_alike = |summary: &Summary| {
            summary.tokens == context.len() as u64
                && summary.methods == entry.methods
                && summary.check_origin(origin).is_ok()
        };
        let alike = self.summaries()?.into_iter().filter(is_alike);
        let mut loaded = alike.filter_map(|summary| self.records.load(&summary.id).ok());
        Ok(loaded.find(|record| context.tokens() == record.tokens))
    }

    fn summaries(&self) -> Result<Vec<Summary>, Failure> {
        let listed = self.records.list().map_err(failure)?;
        let open = listed.into_iter().filter_map(|listed| match listed {
            Listed::Open(summary) => Some(*summary),
            Listed::Locked { .. } => None,
        });
        Ok(open.collect())
    }
}

/// What was named is wrong, or the store failed.
pub(crate) fn failure(error: TierError) -> Failure {
    match error {
        TierError::NoContext { .. }
        | TierError::Ambiguous { .. }
        | TierError::LabelTaken { .. }
        | TierError::BadLabel { .. }
        | TierError::OtherModel { .. }
        | TierError::Unreadable { .. } => Failure::wrong(error),
        other => EngineError::from(other).into(),
    }
}
