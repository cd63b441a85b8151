//! Records of contexts: what `longview contexts ls` lists.
//!
//! Blocks are found by content and need no list. A record says that someone wants a context to be
//! kept, under which name, until when, and which blocks it consists of. Each is a file of its own,
//! written whole and then given its name.
//!
//! Records belong to a *salt*, as blocks do: under another salt a record shows as locked, with its
//! size and dates and nothing of what it says. This separates tenants of one program; who can
//! read the files can read what is in them.

mod format;

pub(crate) use format::{decode as decode_record, encode as encode_record};

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::hash::BlockHash;
use crate::tier::files::{Access, Files};
use crate::tier::folder::{CONTEXTS, temporary_path};
use crate::tier::{BlockKey, Notices, Origin, StoreFolder, TierError};

/// A saved context.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// What is listed.
    pub summary: Summary,
    /// All tokens it has read.
    pub tokens: Vec<u32>,
    /// Every block it consists of, of all groups, in the order of the context.
    pub keys: Vec<BlockKey>,
    /// What else is needed to open a derived context, in a form its maker knows.
    pub pieces: Vec<u8>,
}

/// What is listed of a context without reading its tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Its name for programs: 12 hexadecimal digits.
    pub id: String,
    /// Its name for people.
    pub label: Option<String>,
    /// What it is about, such as names of files or the first words.
    pub title: String,
    /// The model's name.
    pub model: String,
    /// The rest of the identity as text, as in [`Origin`].
    pub identity: String,
    /// Tells contexts of one identity from others without giving the seed away.
    seed_check: String,
    /// Canonical text of the methods it was made with; empty for exact contexts.
    pub methods: String,
    /// Tokens read.
    pub tokens: u64,
    /// Bytes of its blocks, shared ones included.
    pub bytes: u64,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// When it was last used, in seconds since 1970.
    pub used: u64,
    /// It may be removed when it was not used for so many seconds.
    pub time_to_live: Option<u64>,
    /// Whether it is never evicted and never expires.
    pub pinned: bool,
    /// Of which salt it is; `None` without one.
    salt: Option<String>,
}

/// A context in a list.
#[derive(Clone, Debug, PartialEq)]
pub enum Listed {
    /// One that may be opened.
    Open(Box<Summary>),
    /// One of another salt.
    Locked {
        /// Its id.
        id: String,
        /// Bytes of its blocks.
        bytes: u64,
        /// When it was last used, in seconds since 1970.
        used: u64,
        /// Whether it is pinned.
        pinned: bool,
    },
}

/// The records of a store that belong to one salt.
#[derive(Clone)]
pub struct Records {
    root: PathBuf,
    files: Arc<dyn Files>,
    notices: Notices,
    salt: Option<String>,
}

impl Record {
    /// A record of a context of `origin` that was made now, with a new id and no label.
    pub fn new(origin: &Origin, tokens: Vec<u32>, keys: Vec<BlockKey>) -> Record {
        let now = seconds(SystemTime::now());
        Record {
            summary: Summary {
                id: new_id(),
                label: None,
                title: String::new(),
                model: origin.model.clone(),
                identity: origin.identity.clone(),
                seed_check: seed_check(origin),
                methods: String::new(),
                tokens: tokens.len() as u64,
                bytes: 0,
                created: now,
                used: now,
                time_to_live: None,
                pinned: false,
                salt: None,
            },
            tokens,
            keys,
            pieces: Vec::new(),
        }
    }
}

impl Summary {
    /// Whether the context was made under `origin`: the same weights, settings and salt.
    ///
    /// # Errors
    /// [`TierError::OtherModel`] when it was not.
    pub fn check_origin(&self, origin: &Origin) -> Result<(), TierError> {
        if self.seed_check == seed_check(origin) {
            return Ok(());
        }
        Err(TierError::OtherModel {
            id: self.id.clone(),
            found: Box::new((self.model.clone(), self.identity.clone())),
            wanted: Box::new((origin.model.clone(), origin.identity.clone())),
        })
    }

    /// Whether its time is over. A clock that was set back makes nothing expire.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        let unused = seconds(now).saturating_sub(self.used);
        !self.pinned && self.time_to_live.is_some_and(|life| unused > life)
    }
}

impl Records {
    /// The records of a store that belong to `salt`; an empty one is none.
    pub fn open(folder: &StoreFolder, salt: &[u8]) -> Records {
        let tag = BlockHash::seed(&[("salt", salt)]).derived("record");
        Records {
            root: folder.root().to_owned(),
            files: Arc::clone(folder.files()),
            notices: folder.notices().clone(),
            salt: (!salt.is_empty()).then(|| tag.to_string()),
        }
    }

    /// Writes a record, in place of the one that has its id.
    ///
    /// # Errors
    /// [`TierError::LabelTaken`], [`TierError::BadLabel`], or when the system refuses. What was
    /// there is then still there.
    pub fn save(&self, record: &Record) -> Result<(), TierError> {
        let mut record = record.clone();
        record.summary.salt = self.salt.clone();
        record.summary.tokens = record.tokens.len() as u64;
        let Summary { id, label, .. } = &record.summary;
        if let Some(label) = label {
            check_label(label)?;
            for other in self.open_summaries()? {
                if other.label.as_ref() == Some(label) && other.id != *id {
                    return Err(TierError::LabelTaken {
                        label: label.clone(),
                        id: other.id,
                    });
                }
            }
        }
        let path = self.path_of(id).ok_or_else(|| no_context(id))?;
        let bytes = format::encode(&record);
        let temporary = temporary_path(&self.root);
        let written = (|| {
            let file = self.files.create(&temporary)?;
            file.write_all_at(&bytes, 0)?;
            file.sync()?;
            self.files.replace(&temporary, &path)?;
            self.files.sync_folder(&self.folder())
        })();
        written.map_err(|source| {
            // It may never have been made.
            let _ = self.files.remove(&temporary);
            io_error(&path, "write")(source)
        })
    }

    /// All contexts, the last used first. Files that cannot be read are told of and skipped.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>, TierError> {
        let mut summaries = self.summaries()?;
        summaries.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.id.cmp(&b.id)));
        let listed = summaries.into_iter().map(|summary| {
            if summary.salt == self.salt {
                Listed::Open(Box::new(summary))
            } else {
                Listed::Locked {
                    id: summary.id,
                    bytes: summary.bytes,
                    used: summary.used,
                    pinned: summary.pinned,
                }
            }
        });
        Ok(listed.collect())
    }

    /// The context with this label, or the only one whose id begins so.
    ///
    /// # Errors
    /// [`TierError::NoContext`], [`TierError::Ambiguous`], or when it cannot be read.
    pub fn find(&self, name: &str) -> Result<Record, TierError> {
        let summaries = self.open_summaries()?;
        let labelled = |summary: &&Summary| summary.label.as_deref() == Some(name);
        let mut found: Vec<_> = summaries.iter().filter(labelled).collect();
        if found.is_empty() && !name.is_empty() {
            let begins = |summary: &&Summary| summary.id.starts_with(name);
            found = summaries.iter().filter(begins).collect();
        }
        match found[..] {
            [] => Err(no_context(name)),
            [only] => self.load(&only.id),
            _ => Err(TierError::Ambiguous {
                name: name.to_owned(),
                ids: found.iter().map(|summary| summary.id.clone()).collect(),
            }),
        }
    }

    /// The context with this id.
    ///
    /// # Errors
    /// [`TierError::NoContext`], also for those of another salt, or when it cannot be read.
    pub fn load(&self, id: &str) -> Result<Record, TierError> {
        let record = self.read(id)?;
        if record.summary.salt == self.salt {
            Ok(record)
        } else {
            Err(no_context(id))
        }
    }

    /// Notes that a context was used now.
    pub fn touch(&self, id: &str) {
        if let Some(path) = self.path_of(id) {
            // When it cannot be noted the context only seems older than it is.
            let _ = self.files.set_modified(&path, SystemTime::now());
        }
    }

    /// Removes a record. Its blocks stay until there is no room for them.
    ///
    /// # Errors
    /// [`TierError::NoContext`], also for those of another salt, or when the system refuses.
    pub fn remove(&self, id: &str) -> Result<(), TierError> {
        let own = self
            .open_summaries()?
            .iter()
            .any(|summary| summary.id == id);
        let path = self
            .path_of(id)
            .filter(|_| own)
            .ok_or_else(|| no_context(id))?;
        self.files.remove(&path).map_err(io_error(&path, "remove"))
    }

    /// Removes the records, of all salts, whose time is over. Returns their ids.
    ///
    /// # Errors
    /// When the folder cannot be read or written to.
    pub fn expire(&self, now: SystemTime) -> Result<Vec<String>, TierError> {
        let mut gone = Vec::new();
        for summary in self.summaries()? {
            if let Some(path) = self
                .path_of(&summary.id)
                .filter(|_| summary.is_expired(now))
            {
                self.files
                    .remove(&path)
                    .map_err(io_error(&path, "remove"))?;
                gone.push(summary.id);
            }
        }
        Ok(gone)
    }

    /// The blocks of pinned contexts, of all salts: what a disk tier asks before it evicts.
    pub fn pinned(&self) -> Vec<BlockHash> {
        let summaries = self.summaries().unwrap_or_default();
        let pinned = summaries.iter().filter(|summary| summary.pinned);
        let records = pinned.filter_map(|summary| self.read(&summary.id).ok());
        records
            .flat_map(|record| record.keys)
            .map(|key| key.hash)
            .collect()
    }

    /// Checks every record whole and returns those that cannot be used, with the reason.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn check(&self) -> Result<Vec<(PathBuf, TierError)>, TierError> {
        let mut bad = Vec::new();
        for path in self.record_files()? {
            let error = match id_of(&path) {
                None => foreign(&path),
                Some(id) => match self.read(&id) {
                    Ok(_) => continue,
                    Err(error) => error,
                },
            };
            bad.push((path, error));
        }
        Ok(bad)
    }

    /// Whether a record that comes from elsewhere belongs to this salt.
    ///
    /// # Errors
    /// [`TierError::Unreadable`] when it does not.
    pub(crate) fn check_salt(&self, record: &Record) -> Result<(), TierError> {
        if record.summary.salt == self.salt {
            return Ok(());
        }
        Err(TierError::Unreadable {
            place: format!("context {}", record.summary.id),
            what: "it was saved under another salt; give the one it was saved with".to_owned(),
        })
    }

    /// Whether there is a file for this id, of whatever salt.
    pub(crate) fn exists(&self, id: &str) -> bool {
        let path = self.path_of(id);
        path.is_some_and(|path| self.files.stat(&path).is_ok())
    }

    fn folder(&self) -> PathBuf {
        self.root.join(CONTEXTS)
    }

    /// Where the record with this id lies; `None` when it is no id.
    fn path_of(&self, id: &str) -> Option<PathBuf> {
        is_id(id).then(|| self.folder().join(format!("{id}.ctx")))
    }

    fn record_files(&self) -> Result<Vec<PathBuf>, TierError> {
        match self.files.list(&self.folder()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            other => other.map_err(io_error(&self.folder(), "list")),
        }
    }

    /// Of all salts.
    fn summaries(&self) -> Result<Vec<Summary>, TierError> {
        let mut summaries = Vec::new();
        for path in self.record_files()? {
            let read = match id_of(&path) {
                None => Err(foreign(&path)),
                Some(id) => self.read_summary(&path, &id),
            };
            match read {
                Ok(summary) => summaries.push(summary),
                // Removed by another process since the folder was listed.
                Err(TierError::NoContext { .. }) => {}
                Err(error) => self.notices.push(error.to_string()),
            }
        }
        Ok(summaries)
    }

    fn open_summaries(&self) -> Result<Vec<Summary>, TierError> {
        let mut summaries = self.summaries()?;
        summaries.retain(|summary| summary.salt == self.salt);
        Ok(summaries)
    }

    fn read_summary(&self, path: &Path, id: &str) -> Result<Summary, TierError> {
        let file = self.open_file(path, id)?;
        let summary = format::read_summary(&*file).map_err(unreadable(path))?;
        self.with_use(path, id, summary)
    }

    /// A record of whatever salt.
    fn read(&self, id: &str) -> Result<Record, TierError> {
        let path = self.path_of(id).ok_or_else(|| no_context(id))?;
        let file = self.open_file(&path, id)?;
        let mut record = format::read(&*file).map_err(unreadable(&path))?;
        record.summary = self.with_use(&path, id, record.summary)?;
        Ok(record)
    }

    fn open_file(
        &self,
        path: &Path,
        id: &str,
    ) -> Result<Arc<dyn crate::tier::files::OpenFile>, TierError> {
        self.files.open(path, Access::Read).map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                no_context(id)
            } else {
                io_error(path, "read")(error)
            }
        })
    }

    /// Checks a summary against its file's name, and adds when it was last used: uses after the
    /// file was written only show in its time.
    fn with_use(&self, path: &Path, id: &str, mut summary: Summary) -> Result<Summary, TierError> {
        if summary.id != id {
            return Err(TierError::Unreadable {
                place: path.display().to_string(),
                what: "its name is not that of its contents; rename it back or remove it".into(),
            });
        }
        if let Ok(stat) = self.files.stat(path) {
            summary.used = summary.used.max(seconds(stat.modified));
        }
        Ok(summary)
    }
}

fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> TierError {
    let place = path.display().to_string();
    move |source| TierError::Io {
        place,
        action,
        source,
    }
}

fn unreadable(path: &Path) -> impl FnOnce(format::Unreadable) -> TierError {
    let place = path.display().to_string();
    move |what| TierError::Unreadable {
        place,
        what: format!("skipped: {what}"),
    }
}

fn foreign(path: &Path) -> TierError {
    unreadable(path)(format::Unreadable::Foreign)
}

fn no_context(name: &str) -> TierError {
    TierError::NoContext {
        name: name.to_owned(),
    }
}

fn seed_check(origin: &Origin) -> String {
    origin.seed.derived("record").to_string()
}

/// Seconds since 1970; 0 for earlier.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// An id that no other context has.
pub(crate) fn new_id() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanos = now.map_or(0, |now| now.as_nanos());
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let hash = BlockHash::seed(&[
        ("time", &nanos.to_le_bytes()),
        ("process", &std::process::id().to_le_bytes()),
        ("count", &count.to_le_bytes()),
    ]);
    hash.to_string()[..ID_DIGITS].to_owned()
}

const ID_DIGITS: usize = 12;

fn is_id(text: &str) -> bool {
    text.len() == ID_DIGITS
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn id_of(path: &Path) -> Option<String> {
    let id = path.file_name()?.to_str()?.strip_suffix(".ctx")?;
    is_id(id).then(|| id.to_owned())
}

fn check_label(label: &str) -> Result<(), TierError> {
    let what = if label.trim() != label || label.is_empty() {
        "it is empty or begins or ends with a space"
    } else if label.len() > 200 {
        "it is longer than 200 bytes"
    } else if label.chars().any(char::is_control) {
        "it has control characters"
    } else {
        return Ok(());
    };
    Err(TierError::BadLabel {
        label: label.to_owned(),
        what,
    })
}

#[cfg(test)]
mod tests;
