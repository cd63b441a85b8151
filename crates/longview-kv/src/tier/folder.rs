//! The folder that a store lives in.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files::{Access, Files, SystemFiles};
use super::{Notices, TierError};

/// Where extents lie, in folders by the first two digits of their names.
pub(crate) const EXTENTS: &str = "extents";
/// Where files are written before they get their names.
pub(crate) const TEMPORARY: &str = "tmp";
/// Where processes say which extents they hold.
pub(crate) const HOLDS: &str = "holds";
/// Where the records of contexts lie.
pub(crate) const CONTEXTS: &str = "contexts";
/// Where a server keeps files of requests and their answers.
const REQUESTS: &str = "requests";
/// Locked while extents are evicted or begin to be held.
pub(crate) const LOCK: &str = "LOCK";
/// The file that says that a folder is a store.
const MARKER: &str = "STORE";
const MARKER_TEXT: &str = "longview store, format ";
const FORMAT: u32 = 1;

/// A folder that is a store: it exists, is of this version, and can at least be read.
pub struct StoreFolder {
    root: PathBuf,
    files: Arc<dyn Files>,
    read_only: bool,
    notices: Notices,
}

impl StoreFolder {
    /// Opens a folder, and makes it when it does not exist, so that only the user may enter it. A
    /// folder that cannot be written to is opened for reading, with a notice.
    ///
    /// # Errors
    /// [`TierError::NotAStore`] for a folder with other things in it, [`TierError::Version`] for
    /// a store of another version, [`TierError::Io`] when it cannot be read. Nothing is changed
    /// then.
    pub fn open(root: &Path) -> Result<StoreFolder, TierError> {
        StoreFolder::open_in(root, Arc::new(SystemFiles))
    }

    pub(crate) fn open_in(root: &Path, files: Arc<dyn Files>) -> Result<StoreFolder, TierError> {
        let mut folder = StoreFolder {
            root: root.to_owned(),
            files,
            read_only: false,
            notices: Notices::default(),
        };
        match folder.files.create_folder(root) {
            Ok(()) => {}
            Err(source) => match folder.files.stat(root) {
                // On a read-only file system even a folder that exists may be refused.
                Ok(stat) if stat.folder => {}
                Ok(_) => return Err(folder.error("open", io::ErrorKind::NotADirectory.into())),
                Err(_) => return Err(folder.error("make the folder", source)),
            },
        }
        if !folder.check_marker()? {
            folder.attempt(StoreFolder::write_marker)?;
        }
        folder.attempt(StoreFolder::prepare)?;
        if folder.read_only {
            folder.notices.push(format!(
                "{} cannot be written to: contexts are read from it, new ones are not kept; \
                 give a folder of your own with --cache-dir",
                root.display()
            ));
        }
        Ok(folder)
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder in it for files of requests and their answers, which is the server's affair and may
    /// not exist.
    pub fn requests(&self) -> PathBuf {
        self.root.join(REQUESTS)
    }

    /// Whether it can only be read.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// What is to be told about it.
    pub fn notices(&self) -> &Notices {
        &self.notices
    }

    pub(crate) fn files(&self) -> &Arc<dyn Files> {
        &self.files
    }

    /// Whether the folder says it is a store; `false` for an empty one.
    fn check_marker(&self) -> Result<bool, TierError> {
        let path = self.root.join(MARKER);
        let file = match self.files.open(&path, Access::Read) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let entries = self.files.list(&self.root);
                let entries = entries.map_err(|error| self.error("list", error))?;
                // Another process may be writing the marker, and a power loss may have taken it.
                let ours = |path: &PathBuf| {
                    let name = path.file_name().unwrap_or_default();
                    name.to_string_lossy().starts_with(MARKER)
                        || [EXTENTS, TEMPORARY, HOLDS, CONTEXTS, REQUESTS, LOCK]
                            .iter()
                            .any(|own| name == *own)
                };
                return match entries.iter().find(|entry| !ours(entry)) {
                    None => Ok(false),
                    Some(_) => Err(TierError::NotAStore {
                        place: self.root.display().to_string(),
                    }),
                };
            }
            Err(error) => return Err(self.error("read", error)),
        };
        let mut text = [0; 64];
        let read = file.read_at(&mut text, 0);
        let read = read.map_err(|error| self.error("read", error))?;
        let text = String::from_utf8_lossy(&text[..read]);
        match text
            .strip_prefix(MARKER_TEXT)
            .map(|rest| rest.trim().parse())
        {
            Some(Ok(FORMAT)) => Ok(true),
            Some(Ok(found)) => Err(TierError::Version {
                place: self.root.display().to_string(),
                found,
                ours: FORMAT,
            }),
            // Empty after a power loss: written anew.
            _ if text.trim_matches('\0').is_empty() => Ok(false),
            _ => Err(TierError::NotAStore {
                place: self.root.display().to_string(),
            }),
        }
    }

    fn write_marker(&self) -> io::Result<()> {
        let path = self.root.join(MARKER);
        let temporary = self.root.join(format!("{MARKER}.{}", std::process::id()));
        let file = match self.files.create(&temporary) {
            // Left by a process of that number which was killed.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.files.open(&temporary, Access::Write)?
            }
            other => other?,
        };
        file.write_all_at(format!("{MARKER_TEXT}{FORMAT}\n").as_bytes(), 0)?;
        file.sync()?;
        self.files.replace(&temporary, &path)?;
        self.files.sync_folder(&self.root)
    }

    /// Makes the folders, and sees whether files can be made.
    fn prepare(&self) -> io::Result<()> {
        for name in [EXTENTS, TEMPORARY, HOLDS, CONTEXTS] {
            let path = self.root.join(name);
            if self.files.stat(&path).is_err() {
                self.files.create_folder(&path)?;
            }
        }
        let probe = temporary_path(&self.root);
        self.files.create(&probe)?;
        self.files.remove(&probe)
    }

    /// Does what needs writing, or notes that the folder can only be read.
    fn attempt(&mut self, what: fn(&StoreFolder) -> io::Result<()>) -> Result<(), TierError> {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        match what(self) {
            Err(error) if matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem) => {
                self.read_only = true;
                Ok(())
            }
            // Opening a full disk must work: what is on it can be read, and evicted.
            Err(error) if super::files::is_full(&error) => Ok(()),
            other => other.map_err(|error| self.error("prepare", error)),
        }
    }

    fn error(&self, action: &'static str, source: io::Error) -> TierError {
        TierError::Io {
            place: self.root.display().to_string(),
            action,
            source,
        }
    }
}

/// A name for a new file that no other process or thread uses.
pub(crate) fn temporary_path(root: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    // The time tells this process from one of another machine or container with its number.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanos = now.map_or(0, |now| now.as_nanos());
    let name = format!("{}-{nanos:x}-{next}", std::process::id());
    root.join(TEMPORARY).join(name)
}
