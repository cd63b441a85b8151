//! The records of contexts in a store's folder.

use std::cmp::Reverse;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::format::{self, Unreadable};
use super::{Listed, Record, Summary, is_id, seconds};
use crate::hash::BlockHash;
use crate::tier::files::{Access, Files, OpenFile};
use crate::tier::folder::{CONTEXTS, temporary_path};
use crate::tier::{Fate, Notices, Problem, Repair, StoreFolder, TierError};

/// The records of a store that belong to one salt.
#[derive(Clone)]
pub struct Records {
    root: PathBuf,
    files: Arc<dyn Files>,
    notices: Notices,
    salt: Option<String>,
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
        if let Some(label) = label
            && let Some(other) = self.labelled(label)?
            && other.id != *id
        {
            return Err(TierError::LabelTaken {
                label: label.clone(),
                id: other.id,
            });
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
        // Within a second the times of the files tell.
        summaries.sort_by_cached_key(|one| {
            let path = self.path_of(&one.id);
            let noted = path.and_then(|path| self.files.stat(&path).ok());
            let noted = noted.map(|stat| stat.modified);
            (Reverse((one.used, noted)), one.id.clone())
        });
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

    /// What is listed of the context that has this label, if one has.
    ///
    /// # Errors
    /// [`TierError::BadLabel`] when none can have it, or when the folder cannot be read.
    pub fn labelled(&self, label: &str) -> Result<Option<Summary>, TierError> {
        check_label(label)?;
        let mut summaries = self.open_summaries()?.into_iter();
        Ok(summaries.find(|summary| summary.label.as_deref() == Some(label)))
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

    /// Notes that a context was used at `time`.
    pub fn touch(&self, id: &str, time: SystemTime) {
        if let Some(path) = self.path_of(id) {
            // When it cannot be noted the context only seems older than it is.
            let _ = self.files.set_modified(&path, time);
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

    /// Checks every record whole, of all salts, and returns what is wrong. A repair removes what is
    /// damaged or no record, and gives a record that was renamed its name back; records of newer
    /// versions and files that cannot be read stay.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn check(&self, repair: Repair) -> Result<Vec<Problem>, TierError> {
        let mut problems = Vec::new();
        for path in self.record_files()? {
            let found = self.files.open(&path, Access::Read).map_err(Unreadable::Io);
            let what = match found.and_then(|file| format::read(&*file)) {
                Ok(record) if id_of(&path).as_ref() == Some(&record.summary.id) => continue,
                Ok(record) => Wrong::Name(record.summary.id),
                // Removed by another process since the folder was listed.
                Err(Unreadable::Io(error)) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => Wrong::Contents(error),
            };
            problems.push(Problem {
                fate: match repair {
                    Repair::Report => Fate::Left,
                    Repair::Remove => self.repair(&path, &what),
                },
                what: what.to_string(),
                file: path,
            });
        }
        Ok(problems)
    }

    fn repair(&self, path: &Path, wrong: &Wrong) -> Fate {
        match wrong {
            Wrong::Name(id) => {
                let name = self.path_of(id);
                match name.map(|name| self.files.publish(path, &name)) {
                    Some(Ok(())) => Fate::Renamed,
                    _ => Fate::Left,
                }
            }
            Wrong::Contents(Unreadable::Damaged | Unreadable::Foreign) => {
                match self.files.remove(path) {
                    Ok(()) => Fate::Removed,
                    Err(_) => Fate::Left,
                }
            }
            Wrong::Contents(Unreadable::Future(_) | Unreadable::Io(_)) => Fate::Left,
        }
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
    pub(super) fn path_of(&self, id: &str) -> Option<PathBuf> {
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
                Err(error) => self.notices.push_about(&path, error.to_string()),
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

    fn open_file(&self, path: &Path, id: &str) -> Result<Arc<dyn OpenFile>, TierError> {
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

/// What is wrong with a file among the records.
#[derive(Debug, thiserror::Error)]
enum Wrong {
    #[error("its name is not that of its contents, which are context {0}")]
    Name(String),
    #[error("{0}")]
    Contents(Unreadable),
}

fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> TierError {
    let place = path.display().to_string();
    move |source| TierError::Io {
        place,
        action,
        source,
    }
}

fn unreadable(path: &Path) -> impl FnOnce(Unreadable) -> TierError {
    let place = path.display().to_string();
    move |what| TierError::Unreadable {
        place,
        what: format!("skipped: {what}"),
    }
}

fn foreign(path: &Path) -> TierError {
    unreadable(path)(Unreadable::Foreign)
}

fn no_context(name: &str) -> TierError {
    TierError::NoContext {
        name: name.to_owned(),
    }
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
