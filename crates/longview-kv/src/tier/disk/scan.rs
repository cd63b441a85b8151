//! Finding extents: at opening, when something is missed, and when others may have changed files.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{Disk, age, io_error};
use crate::hash::BlockHash;
use crate::tier::extent::{Header, Slot, SlotState, Unreadable};
use crate::tier::files::{Access, OpenFile};
use crate::tier::folder::TEMPORARY;
use crate::tier::{BlockInfo, BlockKey, TierError};

/// File systems note times of change this coarsely at worst: a file may have changed again
/// without showing it when it was read so soon after a change.
const COARSEST_TIME: Duration = Duration::from_secs(2);
/// Temporary files of processes that live are younger, or locked.
const STALE_SECONDS: f64 = 60.0;
/// Read at once from the beginning of a file; most headers are shorter.
const FIRST_READ: usize = 1024;

/// What a file says.
pub(super) struct Contents {
    pub(super) header: Arc<Header>,
    pub(super) table: Vec<SlotState>,
    pub(super) modified: SystemTime,
}

/// Why a file's contents are not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unknown {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("skipped: {0}")]
    Unreadable(#[from] Unreadable),
    #[error("skipped: its name is not that of its contents; rename it back or remove it")]
    WrongName,
}

impl Disk {
    /// Makes the index say what the files say now.
    pub(super) fn scan(&self) -> Result<(), TierError> {
        let mut there = HashSet::new();
        for path in self.extent_files()? {
            match key_of_file(&path) {
                Some(key) => {
                    there.insert(key);
                    self.reload_if_changed(&key);
                }
                None => {
                    let what = format!("{}: skipped: {}", path.display(), Unreadable::Foreign);
                    self.notices.push_about(&path, what);
                }
            }
        }
        let mut state = self.state();
        let known = state
            .index
            .extents()
            .map(|(key, extent)| (*key, extent.ours));
        // A file of ours that was published after the folder was listed is not gone.
        let gone: Vec<_> = known
            .filter(|(key, ours)| !ours && !there.contains(key))
            .map(|(key, _)| key)
            .collect();
        for key in gone {
            if self.files.stat(&self.path_of(&key)).is_err() {
                state.index.forget(&key);
                state.handles.close(&key);
            }
        }
        Ok(())
    }

    /// All files that lie where extents do.
    pub(super) fn extent_files(&self) -> Result<Vec<std::path::PathBuf>, TierError> {
        let root = self.extents_folder();
        let list = |folder: &Path| match self.files.list(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            other => other.map_err(io_error(folder, "list")),
        };
        let mut found = Vec::new();
        for folder in list(&root)? {
            if self.files.stat(&folder).is_ok_and(|stat| stat.folder) {
                found.extend(list(&folder)?);
            } else {
                found.push(folder);
            }
        }
        Ok(found)
    }

    /// Looks for a block that may have been added by another process; `true` when it is held.
    pub(super) fn locate(&self, key: &BlockKey) -> bool {
        if self.state().index.place(key).is_some() {
            return true;
        }
        self.reload_if_changed(key);
        if self.state().index.place(key).is_some() {
            return true;
        }
        // Others write to extents with room left.
        let growing: Vec<_> = {
            let state = self.state();
            let extents = state.index.extents();
            extents
                .filter(|(name, extent)| {
                    name.group == key.group
                        && !extent.ours
                        && extent.slots.iter().any(Option::is_none)
                })
                .map(|(name, _)| *name)
                .collect()
        };
        growing.iter().any(|name| {
            self.reload_if_changed(name);
            self.state().index.place(key).is_some()
        })
    }

    /// The same of a block of which the one before is known: others put it behind that one, or into
    /// an extent that begins with it.
    pub(super) fn locate_behind(&self, info: &BlockInfo) -> bool {
        let parent = BlockKey {
            hash: info.parent,
            group: info.key.group,
        };
        let held = || self.state().index.place(&info.key).is_some();
        if held() {
            return true;
        }
        self.reload_if_changed(&info.key);
        if held() {
            return true;
        }
        let behind = self.state().index.place(&parent);
        behind.is_some_and(|place| {
            self.reload_if_changed(&place.extent);
            held()
        })
    }

    /// Reads an extent's records, unless they are known and cannot have changed.
    pub(super) fn reload_if_changed(&self, extent: &BlockKey) {
        let path = self.path_of(extent);
        let stat = match self.files.stat(&path) {
            Ok(stat) => stat,
            Err(error) => {
                if error.kind() == io::ErrorKind::NotFound {
                    let mut state = self.state();
                    state.index.forget(extent);
                    state.handles.close(extent);
                }
                return;
            }
        };
        if let Some(known) = self.state().index.extent(extent) {
            let settled = known.modified + COARSEST_TIME < known.checked;
            if known.ours || known.modified == stat.modified && settled {
                return;
            }
        }
        self.reload(extent);
    }

    /// Reads an extent's records. Files that cannot be used are told of and skipped.
    pub(super) fn reload(&self, extent: &BlockKey) {
        let path = self.path_of(extent);
        let contents = self
            .files
            .open(&path, Access::Read)
            .map_err(Unknown::from)
            .and_then(|file| {
                let contents = contents(&*file, extent)?;
                // A record that another process is writing now is not torn.
                let torn = contents.table.contains(&SlotState::Torn);
                if torn && file.try_lock().unwrap_or(false) {
                    let what = format!(
                        "{}: a block that was being written when the power went is left out and \
                         computed again",
                        path.display()
                    );
                    self.notices.push_about(&path, what);
                }
                Ok(contents)
            });
        let mut state = self.state();
        match contents {
            Ok(contents) => {
                let Contents {
                    header,
                    table,
                    modified,
                } = contents;
                // Not while this process writes: what it knows is newer.
                if state.index.extent(extent).is_none_or(|known| !known.ours) {
                    state.index.load(&header, &table, modified);
                    state.handles.close(extent);
                }
            }
            Err(error) => {
                state.index.forget(extent);
                state.handles.close(extent);
                if !matches!(&error, Unknown::Io(error) if error.kind() == io::ErrorKind::NotFound)
                {
                    self.notices
                        .push_about(&path, format!("{}: {error}", path.display()));
                }
            }
        }
    }

    /// Removes what processes that were killed have left.
    pub(super) fn sweep_temporary_files(&self) {
        if self.read_only {
            return;
        }
        let now = SystemTime::now();
        // Whatever cannot be listed, opened or removed stays; it does no harm.
        for path in self
            .files
            .list(&self.root.join(TEMPORARY))
            .unwrap_or_default()
        {
            let stale = |file: Arc<dyn OpenFile>| {
                let old = age(now, file.stat()?.modified) > STALE_SECONDS;
                Ok::<_, io::Error>(old && file.try_lock()?)
            };
            let file = self.files.open(&path, Access::Read);
            if file.and_then(stale).unwrap_or(false) {
                let _ = self.files.remove(&path);
            }
        }
    }
}

/// Reads header and slot records of the file that should be `extent`.
pub(super) fn contents(file: &dyn OpenFile, extent: &BlockKey) -> Result<Contents, Unknown> {
    let modified = file.stat()?.modified;
    let mut bytes = read_up_to(file, FIRST_READ, 0)?;
    let len = Header::encoded_len_of(&bytes)?;
    if len > bytes.len() {
        bytes = read_up_to(file, len, 0)?;
    }
    let header = Header::decode(&bytes)?;
    if header.key() != *extent {
        return Err(Unknown::WrongName);
    }
    let table = read_up_to(file, header.table_bytes(), header.table_offset())?;
    let table = Slot::decode_table(&header, &table);
    Ok(Contents {
        header: Arc::new(header),
        table,
        modified,
    })
}

/// Reads `len` bytes, or fewer where the file ends.
fn read_up_to(file: &dyn OpenFile, len: usize, offset: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut filled = 0;
    while filled < len {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// The extent that a file's name says it is.
pub(super) fn key_of_file(path: &Path) -> Option<BlockKey> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".kv")?;
    let folder = path.parent()?.file_name()?.to_str()?;
    let key = key_of_name(stem)?;
    (stem.starts_with(folder) && folder.len() == 2).then_some(key)
}

/// The extent of a name without folder and ending.
pub(super) fn key_of_name(name: &str) -> Option<BlockKey> {
    let (hash, group) = name.split_once('-')?;
    let key = BlockKey {
        hash: BlockHash::from_hex(hash)?,
        group: group.parse().ok()?,
    };
    // Only the one spelling that a name is written in.
    (format!("{}-{}", key.hash, key.group) == name).then_some(key)
}
