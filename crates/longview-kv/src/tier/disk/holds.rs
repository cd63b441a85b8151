//! Holds: extents that a process needs for a while, so that nobody evicts them.
//!
//! A process notes what it holds in a file of its own that it keeps locked; the note dies with the
//! process. Each line of the file is `+` or `-` and the name of an extent.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::scan::key_of_name;
use super::{Disk, io_error};
use crate::tier::files::{Access, Files, OpenFile};
use crate::tier::folder::{HOLDS, LOCK, temporary_path};
use crate::tier::{BlockKey, Hold, TierError};

/// A note longer than this is written anew when most of it has been taken back since.
const LONGEST_NOTE: u64 = 1 << 20;

/// After this part of the time that is waited for another process, people are told of it.
const NOTICED_PART: u32 = 15;

/// What this process holds.
#[derive(Default)]
pub(super) struct Holds {
    counts: HashMap<BlockKey, usize>,
    note: Option<Note>,
}

/// The file that tells others.
struct Note {
    files: Arc<dyn Files>,
    path: PathBuf,
    file: Arc<dyn OpenFile>,
    len: u64,
}

/// Ends the hold on extents.
struct Guard {
    holds: Weak<Mutex<Holds>>,
    extents: Vec<BlockKey>,
}

impl Disk {
    pub(super) fn hold(&self, keys: &[BlockKey]) -> Result<Hold, TierError> {
        // Evictions wait until the hold is noted.
        let _writing = self.writing();
        let _alone = match self.read_only {
            true => None,
            false => Some(self.alone().map_err(io_error(&self.root, "lock"))?),
        };
        let mut seen = HashSet::new();
        let mut extents = Vec::new();
        for key in keys {
            let place = self
                .locate(key)
                .then(|| self.state().index.place(key))
                .flatten();
            let extent = place.ok_or(TierError::Missing(*key))?.extent;
            if seen.insert(extent) {
                // Another process may have evicted it.
                if self.files.stat(&self.path_of(&extent)).is_err() {
                    self.reload_if_changed(&extent);
                    return Err(TierError::Missing(*key));
                }
                extents.push(extent);
            }
        }
        let holds = &self.holds;
        let guard = Guard {
            holds: Arc::downgrade(holds),
            extents,
        };
        {
            let mut holds = holds.lock().unwrap_or_else(PoisonError::into_inner);
            for extent in &guard.extents {
                *holds.counts.entry(*extent).or_default() += 1;
            }
            if !self.read_only {
                let folder = self.root.join(HOLDS);
                holds
                    .tell(&self.files, &self.root, &guard.extents)
                    .map_err(io_error(&folder, "note what is held"))?;
            }
        }
        Ok(Hold::new(guard))
    }

    /// Waits until no other process evicts or begins to hold extents: for as long as the options say, and
    /// not at all while the one that they were waited for in vain still does.
    pub(super) fn alone(&self) -> io::Result<Arc<dyn OpenFile>> {
        let path = self.root.join(LOCK);
        let file = match self.files.create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.files.open(&path, Access::Write)?
            }
            other => other?,
        };
        let (begun, patience) = (Instant::now(), self.options.patience);
        let mut is_told = false;
        while !file.try_lock()? {
            let waited = begun.elapsed();
            if waited >= patience || self.is_stuck.load(Ordering::Relaxed) {
                self.is_stuck.store(true, Ordering::Relaxed);
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "another process has not let go of {} for {} seconds; end it if it is stopped or hangs",
                        path.display(),
                        patience.as_secs()
                    ),
                ));
            }
            if waited >= patience / NOTICED_PART && !is_told {
                is_told = true;
                self.notices.push_urgent(format!(
                    "waiting for another process that has locked {}",
                    path.display()
                ));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.is_stuck.store(false, Ordering::Relaxed);
        Ok(file)
    }

    /// The extents that this or another process holds.
    pub(super) fn held_extents(&self) -> HashSet<BlockKey> {
        let mut held: HashSet<_> = {
            let holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
            holds.counts.keys().copied().collect()
        };
        let notes = self.files.list(&self.root.join(HOLDS)).unwrap_or_default();
        for path in notes {
            let Ok(file) = self.files.open(&path, Access::Read) else {
                continue;
            };
            match file.try_lock() {
                // Of a process that is gone, or one that has not locked it yet and so holds
                // nothing: it writes only after it has the lock.
                Ok(true) => {
                    let _ = self.files.remove(&path);
                }
                _ => held.extend(read_note(&*file)),
            }
        }
        held
    }
}

impl Holds {
    /// Adds lines for extents that are newly held.
    fn tell(
        &mut self,
        files: &Arc<dyn Files>,
        root: &Path,
        extents: &[BlockKey],
    ) -> io::Result<()> {
        let new = extents
            .iter()
            .filter(|extent| self.counts.get(extent) == Some(&1));
        let lines: String = new.map(|extent| line('+', extent)).collect();
        if lines.is_empty() {
            return Ok(());
        }
        let note = match &mut self.note {
            Some(note) => note,
            none => none.insert(Note::create(files, root)?),
        };
        note.append(&lines)?;
        self.shorten(files, root)
    }

    /// Writes the note anew, when what is held now is little of it. Evictions are waiting, so nobody
    /// misses what is in neither for a moment.
    fn shorten(&mut self, files: &Arc<dyn Files>, root: &Path) -> io::Result<()> {
        let Some(note) = self.note.as_ref().filter(|note| note.len > LONGEST_NOTE) else {
            return Ok(());
        };
        let lines: String = self.counts.keys().map(|extent| line('+', extent)).collect();
        if (lines.len() as u64) < note.len / 4 {
            let mut new = Note::create(files, root)?;
            new.append(&lines)?;
            self.note = Some(new);
        }
        Ok(())
    }

    fn release(&mut self, extents: &[BlockKey]) {
        let mut lines = String::new();
        for extent in extents {
            if let Some(count) = self.counts.get_mut(extent) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(extent);
                    lines.push_str(&line('-', extent));
                }
            }
        }
        let Some(note) = &mut self.note else {
            return;
        };
        // When the file cannot be written to, extents stay held until the process ends.
        let _ = if self.counts.is_empty() {
            note.clear()
        } else {
            note.append(&lines)
        };
    }
}

impl Note {
    /// A locked empty file under a name of its own.
    fn create(files: &Arc<dyn Files>, root: &Path) -> io::Result<Note> {
        let temporary = temporary_path(root);
        let file = files.create(&temporary)?;
        file.try_lock()?;
        let name = temporary.file_name().unwrap_or_default();
        let path = root.join(HOLDS).join(name);
        files.publish(&temporary, &path)?;
        Ok(Note {
            files: Arc::clone(files),
            path,
            file,
            len: 0,
        })
    }

    fn append(&mut self, lines: &str) -> io::Result<()> {
        self.file.write_all_at(lines.as_bytes(), self.len)?;
        self.len += lines.len() as u64;
        Ok(())
    }

    fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.len = 0;
        Ok(())
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        // Whoever looks next removes it otherwise.
        let _ = self.files.remove(&self.path);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(holds) = self.holds.upgrade() {
            let mut holds = holds.lock().unwrap_or_else(PoisonError::into_inner);
            holds.release(&self.extents);
        }
    }
}

fn line(sign: char, extent: &BlockKey) -> String {
    format!("{sign}{}-{}\n", extent.hash, extent.group)
}

/// What a note says is held. A last line that is being written does not count yet.
fn read_note(file: &dyn OpenFile) -> HashSet<BlockKey> {
    let len = file.stat().map_or(0, |stat| stat.len) as usize;
    let mut bytes = vec![0; len];
    if file.read_all_at(&mut bytes, 0).is_err() {
        return HashSet::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    let mut held = HashSet::new();
    for line in text.split_inclusive('\n') {
        let name = line.strip_suffix('\n').unwrap_or_default();
        match (name.get(..1), name.get(1..).and_then(key_of_name)) {
            (Some("+"), Some(key)) => {
                held.insert(key);
            }
            (Some("-"), Some(key)) => {
                held.remove(&key);
            }
            _ => {}
        }
    }
    held
}
