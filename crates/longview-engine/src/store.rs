//! Where contexts are kept, and what they are found by.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use longview_kernels::{Exec, Numerics};
use longview_kv::records::Records;
use longview_kv::tier::{DiskOptions, DiskTier, Origin, SpillTier, StoreFolder, Tier};
use longview_kv::{BlockHash, KvForms, RopeSet};
use longview_weights::{WeightFile, WeightPart, WeightsError};
use serde_json::{Value, json};

use crate::error::EngineError;

/// Changed whenever the same tokens begin to give other bits: what was computed before must then
/// no longer be found. A test in `store/bits.rs` fails when that was forgotten.
const BITS: &[u8] = b"6";

/// Remembers the hashes of weight files that were read whole once.
const KNOWN_FILES: &str = "models.json";

/// Bytes read at a time while a weight file is hashed.
const READ_BYTES: usize = 1 << 20;

/// Where contexts are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// The place.
    pub place: StorePlace,
    /// An object store that other machines share, such as `s3://bucket/folder`, beside the place. Needs
    /// the cargo feature `remote`.
    pub remote: Option<String>,
    /// The most bytes to keep on disk; what is least worth keeping goes first.
    pub max_bytes: u64,
    /// Keeps apart what must not be shared: contexts are found only under the salt they were
    /// computed under.
    pub salt: String,
}

impl StoreOptions {
    /// At `place` alone, of at most `max_bytes` on disk, without a salt.
    pub fn new(place: StorePlace, max_bytes: u64) -> StoreOptions {
        StoreOptions {
            place,
            remote: None,
            max_bytes,
            salt: String::new(),
        }
    }
}

/// The place of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorePlace {
    /// A folder, which keeps contexts from one run to the next. Made when it does not exist.
    Folder(PathBuf),
    /// None: only what memory has no room for is on disk, and gone when the engine is dropped.
    Temporary,
}

/// An open place.
pub(crate) struct OpenPlace {
    /// Its tiers, fastest first.
    pub(crate) tiers: Vec<Arc<dyn Tier>>,
    /// The folder that keeps contexts; `None` when nothing is kept.
    pub(crate) folder: Option<PathBuf>,
}

impl OpenPlace {
    /// Bytes that its tiers can take, together.
    pub(crate) fn room(&self) -> u64 {
        let of_tiers = self.tiers.iter().map(|tier| tier.room());
        of_tiers.fold(0, u64::saturating_add)
    }
}

/// Opens the place where contexts are kept. What memory has no room for and that place does not take,
/// because it can only be read or is full, goes to a folder for temporary files.
pub(crate) fn open_place(options: &StoreOptions) -> Result<OpenPlace, EngineError> {
    let remote = options.remote.as_deref().map(open_remote).transpose()?;
    let spill: Arc<dyn Tier> = Arc::new(SpillTier::temporary());
    let below = remote.into_iter().chain([spill]);
    let StorePlace::Folder(root) = &options.place else {
        return Ok(OpenPlace {
            tiers: below.collect(),
            folder: None,
        });
    };
    let folder = StoreFolder::open(root)?;
    // Those of every salt are asked for, so it does not matter which is given.
    let records = Records::open(&folder, &[]);
    let disk = DiskOptions {
        max_bytes: Some(options.max_bytes),
        pinned: Some(Arc::new(move || records.pinned())),
        ..DiskOptions::default()
    };
    let disk: Arc<dyn Tier> = Arc::new(DiskTier::open(&folder, disk)?);
    Ok(OpenPlace {
        tiers: std::iter::once(disk).chain(below).collect(),
        folder: Some(root.clone()),
    })
}

#[cfg(feature = "remote")]
fn open_remote(url: &str) -> Result<Arc<dyn Tier>, EngineError> {
    Ok(Arc::new(longview_kv::tier::RemoteTier::open(url, [])?))
}

#[cfg(not(feature = "remote"))]
fn open_remote(url: &str) -> Result<Arc<dyn Tier>, EngineError> {
    Err(EngineError::NoRemote {
        url: url.to_owned(),
    })
}

/// What the seeds of a model's contexts are made of, beside the salt.
pub(crate) struct Ingredients {
    weights: blake3::Hash,
    model: String,
    numerics: &'static str,
    kv: String,
    isa: String,
}

impl Ingredients {
    /// Those of the model `model` in `file`, whose hash is remembered in the folder `known`.
    pub(crate) fn new(
        file: &WeightFile,
        model: String,
        exec: &Exec,
        kv_forms: KvForms,
        known: Option<&Path>,
    ) -> Result<Ingredients, EngineError> {
        Ok(Ingredients {
            weights: weights_hash(file, known)?,
            model,
            numerics: match exec.numerics {
                Numerics::Default => "default",
                Numerics::F32 => "f32",
            },
            kv: kv_forms.to_string(),
            isa: exec.isa.to_string(),
        })
    }

    /// What contexts under `salt` are found by, one for each rotary set.
    pub(crate) fn origins(&self, salt: &str) -> [Arc<Origin>; 2] {
        [RopeSet::Short, RopeSet::Long].map(|set| Arc::new(self.origin(set, salt)))
    }

    fn origin(&self, set: RopeSet, salt: &str) -> Origin {
        let rope = match set {
            RopeSet::Short => "short",
            RopeSet::Long => "long",
        };
        let seed = BlockHash::seed(&[
            ("bits", BITS),
            ("weights", self.weights.as_bytes()),
            ("numerics", self.numerics.as_bytes()),
            ("kv", self.kv.as_bytes()),
            ("isa", self.isa.as_bytes()),
            ("rope", rope.as_bytes()),
            ("salt", salt.as_bytes()),
        ]);
        let Ingredients {
            numerics, kv, isa, ..
        } = self;
        let mut identity = format!("numerics={numerics}, kv={kv}, isa={isa}");
        if set == RopeSet::Long {
            identity.push_str(", rope=long");
        }
        if !salt.is_empty() {
            identity.push_str(", salted");
        }
        Origin {
            seed,
            model: self.model.clone(),
            identity,
        }
    }
}

/// A hash of everything in the weight files and of a folder's settings. Files are read once and
/// then known in the folder `known` by path, size, inode and time.
fn weights_hash(file: &WeightFile, known: Option<&Path>) -> Result<blake3::Hash, EngineError> {
    let known = known.map(|folder| folder.join(KNOWN_FILES));
    let mut table = known.as_deref().map(read_table).unwrap_or_default();
    let before = table.len();
    let mut hasher = blake3::Hasher::new();
    if let WeightFile::HuggingFace(folder) = file {
        hasher.update(folder.config().to_string().as_bytes());
    }
    for part in file.parts() {
        let hash = match part {
            WeightPart::Memory(bytes) => blake3::hash(bytes),
            WeightPart::File(path) => {
                let stamp = stamp(&path)?;
                match table.get(&stamp) {
                    Some(&hash) => hash,
                    None => {
                        let hash = hash_file(&path).map_err(|error| unreadable(&path, error))?;
                        table.insert(stamp, hash);
                        hash
                    }
                }
            }
        };
        hasher.update(hash.as_bytes());
    }
    // Hashing weights inside the program brought all of them into memory.
    file.release_all();
    if let Some(known) = known
        && table.len() > before
    {
        // Not being able to remember costs time only.
        let _ = write_table(&known, &table);
    }
    Ok(hasher.finalize())
}

/// What tells that a file is still the one it was.
fn stamp(path: &Path) -> Result<String, EngineError> {
    let path = fs::canonicalize(path).map_err(|error| unreadable(path, error))?;
    let about = fs::metadata(&path).map_err(|error| unreadable(&path, error))?;
    let modified = about.modified().ok();
    let time = modified.and_then(|time| Some(time.duration_since(UNIX_EPOCH).ok()?.as_nanos()));
    #[cfg(unix)]
    let inode = std::os::unix::fs::MetadataExt::ino(&about);
    #[cfg(not(unix))]
    let inode = 0;
    Ok(format!(
        "{}|{}|{inode}|{}",
        path.display(),
        about.len(),
        time.unwrap_or_default()
    ))
}

/// Read and not mapped: a mapping of gigabytes would count as memory in use.
fn hash_file(path: &Path) -> std::io::Result<blake3::Hash> {
    let mut file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize()),
            count => hasher.update(&buffer[..count]),
        };
    }
}

fn read_table(path: &Path) -> BTreeMap<String, blake3::Hash> {
    let text = fs::read(path).unwrap_or_default();
    let Ok(Value::Object(entries)) = serde_json::from_slice(&text) else {
        return BTreeMap::new();
    };
    let entry = |(stamp, hash): (String, Value)| {
        Some((stamp, blake3::Hash::from_hex(hash.as_str()?).ok()?))
    };
    entries.into_iter().filter_map(entry).collect()
}

fn write_table(path: &Path, table: &BTreeMap<String, blake3::Hash>) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let entries: BTreeMap<&String, String> = table
        .iter()
        .map(|(stamp, hash)| (stamp, hash.to_hex().to_string()))
        .collect();
    let file = tempfile::NamedTempFile::new_in(folder)?;
    fs::write(file.path(), json!(entries).to_string())?;
    file.persist(path)?;
    Ok(())
}

fn unreadable(path: &Path, source: std::io::Error) -> EngineError {
    EngineError::Weights(WeightsError::Io {
        path: path.display().to_string(),
        action: "read",
        source,
    })
}

#[cfg(test)]
mod bits;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_hashed_once_and_again_when_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (file, known) = (folder.path().join("a"), folder.path().join("k"));
        fs::write(&file, vec![7; 3 * READ_BYTES / 2]).unwrap();
        let first = stamp(&file).unwrap();
        let hash = hash_file(&file).unwrap();
        assert_eq!(hash, blake3::hash(&vec![7; 3 * READ_BYTES / 2]));
        write_table(&known, &[(first.clone(), hash)].into()).unwrap();
        assert_eq!(read_table(&known)[&first], hash);
        fs::write(&file, "other").unwrap();
        assert_ne!(stamp(&file).unwrap(), first);
        fs::write(&known, "{\"x\": 3, broken").unwrap();
        assert!(read_table(&known).is_empty());
    }
}
