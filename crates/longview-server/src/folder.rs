//! The folder that a tenant's files, batches and responses lie in.
//!
//! | name | what |
//! |---|---|
//! | `responses.jsonl` | stored responses; `api/responses/log.rs` has its lines |
//! | `file-….jsonl`, `file-….json` | the bytes of a file, and what is known of it; without the second it is not listed |
//! | `batch_….json` | what is known of a batch |
//! | `lock` | locked by the process whose folder it is |
//!
//! Facts are written anew as a whole, and get their names when they are on disk. Answers of a batch
//! are put behind one another as they come; a line that was torn by the end of a process is cut off.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::{NamedTempFile, TempDir};

use crate::error::ApiError;
use crate::offline::{BatchFacts, FileObject};

/// The largest file of facts that is read.
const MOST_FACTS: u64 = 1 << 20;

/// Where a tenant's things lie.
pub(crate) enum Folder {
    /// In a folder that is there after a restart; the lock is held as long as this is.
    Kept { root: PathBuf, _lock: File },
    /// In a folder that ends with the server, made when something is to be kept.
    Temporary(Mutex<Option<TempDir>>),
}

impl Folder {
    /// The folder of a salt's tenant under `requests`, or a temporary one and why.
    pub(crate) fn open(requests: Option<&Path>, salt: &str) -> (Folder, Option<String>) {
        let temporary = || Folder::Temporary(Mutex::default());
        let Some(requests) = requests else {
            return (temporary(), None);
        };
        let tag = blake3::derive_key("longview 1 folder of a tenant's requests", salt.as_bytes());
        let tag: String = tag
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let root = requests.join(tag);
        let kept = (|| {
            create_private(&root)?;
            let lock = private()
                .write(true)
                .create(true)
                .truncate(false)
                .open(root.join("lock"))?;
            match lock.try_lock() {
                Ok(()) => Ok(Some(lock)),
                Err(TryLockError::WouldBlock) => Ok(None),
                Err(TryLockError::Error(error)) => Err(error),
            }
        })();
        match kept {
            Ok(Some(lock)) => (Folder::Kept { root, _lock: lock }, None),
            Ok(None) => (
                temporary(),
                Some(format!(
                    "another server keeps files of requests in {}; those of this one end with it",
                    requests.display()
                )),
            ),
            Err(error) => (
                temporary(),
                Some(format!(
                    "files of requests cannot be kept in {} ({error}); they end with the server",
                    requests.display()
                )),
            ),
        }
    }

    /// All files whose data are as long as is said of them.
    pub(crate) fn files(&self) -> Vec<FileObject> {
        let is_whole =
            |file: &FileObject| self.data_bytes(&file.id).is_ok_and(|len| len == file.bytes);
        let mut files = self.facts("file-", |file: &FileObject| &file.id);
        files.retain(is_whole);
        files
    }

    /// All batches.
    pub(crate) fn batches(&self) -> Vec<BatchFacts> {
        let mut batches = self.facts("batch_", |batch: &BatchFacts| &batch.shown.id);
        // Both are made into names of files.
        batches.retain(|batch| {
            let ids = [&batch.answers, &batch.errors, &batch.shown.input_file_id];
            ids.iter().all(|id| is_id(id, "file-"))
        });
        batches
    }

    /// The data of a file, to be read.
    pub(crate) fn open_data(&self, id: &str) -> Result<File, ApiError> {
        File::open(self.data(id)?).map_err(io_error)
    }

    /// The data of a file that grows, to be read and written at its end.
    pub(crate) fn open_growing(&self, id: &str) -> Result<File, ApiError> {
        let mut options = private();
        options.read(true).append(true).create(true);
        options.open(self.data(id)?).map_err(io_error)
    }

    /// How large the data of a file are.
    pub(crate) fn data_bytes(&self, id: &str) -> Result<u64, ApiError> {
        Ok(fs::metadata(self.data(id)?).map_err(io_error)?.len())
    }

    /// Removes the data of a file that nobody knows of if there are none.
    pub(crate) fn remove_empty(&self, id: &str) -> Result<(), ApiError> {
        match self.data_bytes(id) {
            Ok(0) => remove(&self.data(id)?),
            _ => Ok(()),
        }
    }

    /// Where the log of responses lies, if it is there after a restart.
    pub(crate) fn responses(&self) -> Option<PathBuf> {
        match self {
            Folder::Kept { root, .. } => Some(root.join("responses.jsonl")),
            Folder::Temporary(_) => None,
        }
    }

    pub(crate) fn write_data(&self, id: &str, bytes: &[u8]) -> Result<(), ApiError> {
        self.write(&self.data(id)?, bytes)
    }

    pub(crate) fn write_file(&self, file: &FileObject) -> Result<(), ApiError> {
        self.write_facts(&file.id, file)
    }

    pub(crate) fn write_batch(&self, batch: &BatchFacts) -> Result<(), ApiError> {
        self.write_facts(&batch.shown.id, batch)
    }

    pub(crate) fn remove_file(&self, id: &str) -> Result<(), ApiError> {
        // First what makes it known.
        remove(&self.facts_of(id)?)?;
        remove(&self.data(id)?)
    }

    pub(crate) fn remove_batch(&self, id: &str) -> Result<(), ApiError> {
        remove(&self.facts_of(id)?)
    }

    fn root(&self) -> Result<PathBuf, ApiError> {
        match self {
            Folder::Kept { root, .. } => Ok(root.clone()),
            Folder::Temporary(made) => {
                let mut made = made.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                if made.is_none() {
                    *made = Some(TempDir::with_prefix("longview-requests-").map_err(io_error)?);
                }
                let made = made.as_ref().expect("it was made above");
                Ok(made.path().to_owned())
            }
        }
    }

    fn data(&self, id: &str) -> Result<PathBuf, ApiError> {
        Ok(self.root()?.join(format!("{id}.jsonl")))
    }

    fn facts_of(&self, id: &str) -> Result<PathBuf, ApiError> {
        Ok(self.root()?.join(format!("{id}.json")))
    }

    fn write_facts(&self, id: &str, facts: &impl Serialize) -> Result<(), ApiError> {
        let bytes = serde_json::to_vec(facts).map_err(|error| io_error(error.into()))?;
        self.write(&self.facts_of(id)?, &bytes)
    }

    /// Writes a file as a whole or not at all.
    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), ApiError> {
        let root = self.root()?;
        let written = (|| {
            let mut file = NamedTempFile::new_in(root)?;
            file.write_all(bytes)?;
            file.as_file().sync_all()?;
            file.persist(path)?;
            Ok(())
        })();
        written.map_err(io_error)
    }

    /// Everything that is known of what begins so. What cannot be read is left where it is.
    fn facts<T: DeserializeOwned>(&self, prefix: &str, id: impl Fn(&T) -> &String) -> Vec<T> {
        let Folder::Kept { root, .. } = self else {
            return Vec::new();
        };
        let Ok(entries) = fs::read_dir(root) else {
            return Vec::new();
        };
        let read = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            let stem = name
                .strip_suffix(".json")
                .filter(|stem| is_id(stem, prefix))?;
            let small = entry.metadata().ok()?.len() <= MOST_FACTS;
            let facts: T =
                serde_json::from_slice(&fs::read(entry.path()).ok().filter(|_| small)?).ok()?;
            (id(&facts) == stem).then_some(facts)
        };
        entries.filter_map(Result::ok).filter_map(read).collect()
    }
}

/// Whether a name is one that was made here.
fn is_id(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix)
        .is_some_and(|rest| rest.len() == 24 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// How files are opened that only the user may read.
pub(crate) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

fn create_private(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

fn remove(path: &Path) -> Result<(), ApiError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(error)),
        _ => Ok(()),
    }
}

/// Puts a line behind others as a whole or not at all.
pub(crate) fn append_line(mut file: &File, line: &str) -> io::Result<()> {
    let before = file.metadata()?.len();
    let written = file
        .write_all(line.as_bytes())
        .and_then(|()| file.write_all(b"\n"));
    if written.is_err() {
        // Half of it would be taken for the beginning of the next.
        let _ = file.set_len(before);
    }
    written
}

pub(crate) fn io_error(error: io::Error) -> ApiError {
    let message = format!("the folder of files of requests cannot be used: {error}");
    ApiError::of_io(error.kind(), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_made_here_are_read() {
        assert!(is_id(&crate::app::new_id("file-"), "file-"));
        for name in [
            "file-",
            "file-../../../../../../../etc",
            "file-0123456789abcdef0123456",
            "batch_x",
        ] {
            assert!(!is_id(name, "file-"), "{name}");
        }
    }

    #[test]
    fn one_process_has_a_tenants_folder_and_strange_files_are_left_alone() {
        let place = tempfile::tempdir().unwrap();
        let (folder, notice) = Folder::open(Some(place.path()), "ann");
        assert!(notice.is_none());
        let root = folder.root().unwrap();
        let id = crate::app::new_id("file-");
        std::fs::write(root.join(format!("{id}.json")), "{").unwrap();
        std::fs::write(root.join("batch_x.json"), "{}").unwrap();
        assert!(folder.files().is_empty() && folder.batches().is_empty());
        let (second, notice) = Folder::open(Some(place.path()), "ann");
        assert!(matches!(second, Folder::Temporary(_)));
        assert!(notice.unwrap().contains("another server"));
        let (other, notice) = Folder::open(Some(place.path()), "bob");
        assert!(notice.is_none() && other.root().unwrap() != root);
        drop(folder);
        assert!(Folder::open(Some(place.path()), "ann").1.is_none());
        assert!(root.join(format!("{id}.json")).exists());
    }
}
