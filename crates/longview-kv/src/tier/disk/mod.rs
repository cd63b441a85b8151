//! Sealed blocks on disk: extents in a folder that several processes may share.
//!
//! There is no index but the files: opening a store reads their headers and slot records. A block
//! is put by writing its slices and then its slot record into an extent that this process has
//! locked, or into a new file that is given its name when it is complete. So a process that is
//! killed loses nothing it has put, and after a power loss checksums tell what did not reach the
//! disk.

mod evict;
mod fsck;
mod holds;
mod index;
mod put;
mod read;
mod scan;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use super::files::Files;
use super::folder::StoreFolder;
use super::{BlockInfo, BlockKey, Hold, Notices, Tier, TierError, TierUsage};
use crate::block::Block;
use crate::hash::BlockHash;
pub use fsck::{Fate, Fsck, Problem, Repair};
use holds::Holds;
use index::Index;
use put::Writing;
use read::{Handles, Meter};

/// How a disk tier behaves.
#[derive(Clone)]
pub struct DiskOptions {
    /// Bytes it may take; beyond them the least valuable blocks go. `None`: as many as there are.
    pub max_bytes: Option<u64>,
    /// When what was put is made to survive a power loss.
    pub sync: Syncing,
    /// Says which contexts are pinned, by the hashes of their last blocks: they are never evicted.
    /// Asked anew for every eviction, since other processes pin as well.
    pub pinned: Option<Arc<dyn Fn() -> Vec<BlockHash> + Send + Sync>>,
    /// How long to wait for another process that evicts blocks or takes some over, which takes
    /// milliseconds: one that was stopped in the middle of it must not stop the others.
    pub patience: Duration,
}

/// When what was put is made to survive a power loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syncing {
    /// After this time at the latest, when [`Tier::sync`] says so, and at the end.
    Every(Duration),
    /// When [`Tier::sync`] says so, and at the end.
    WhenAsked,
    /// Never: what is put is for this process alone.
    Never,
}

impl Default for DiskOptions {
    /// No limit, a sync every two seconds, nothing pinned, half a minute of patience.
    fn default() -> DiskOptions {
        DiskOptions {
            max_bytes: None,
            sync: Syncing::Every(Duration::from_secs(2)),
            pinned: None,
            patience: Duration::from_secs(30),
        }
    }
}

/// A tier on disk.
pub struct DiskTier {
    disk: Arc<Disk>,
    syncer: Option<(Arc<Bell>, JoinHandle<()>)>,
}

/// What the tier shares with its syncing thread.
struct Disk {
    name: String,
    root: PathBuf,
    files: Arc<dyn Files>,
    options: DiskOptions,
    read_only: bool,
    notices: Notices,
    /// Held for short times only, never while files are read or written.
    state: Mutex<State>,
    /// Held while blocks are put or removed. Taken before `state` where both are.
    writing: Mutex<Writing>,
    meter: Mutex<Meter>,
    holds: Arc<Mutex<Holds>>,
    refused: AtomicU64,
    /// Whether another process was waited for in vain.
    is_stuck: AtomicBool,
}

#[derive(Default)]
struct State {
    index: Index,
    handles: Handles,
}

/// Tells the syncing thread to end.
#[derive(Default)]
struct Bell {
    ended: Mutex<bool>,
    rung: Condvar,
}

impl DiskTier {
    /// Opens the blocks of a store and finds what is there.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn open(folder: &StoreFolder, options: DiskOptions) -> Result<DiskTier, TierError> {
        let sync = options.sync;
        let disk = Arc::new(Disk {
            name: "disk".to_owned(),
            root: folder.root().to_owned(),
            files: Arc::clone(folder.files()),
            options,
            read_only: folder.read_only(),
            notices: folder.notices().clone(),
            state: Mutex::default(),
            writing: Mutex::default(),
            meter: Mutex::default(),
            holds: Arc::default(),
            refused: AtomicU64::new(0),
            is_stuck: AtomicBool::new(false),
        });
        disk.sweep_temporary_files();
        disk.scan()?;
        if !disk.read_only && sync != Syncing::Never {
            disk.adopt_unsynced();
        }
        let syncer = match sync {
            Syncing::Every(every) if !disk.read_only => Some(start_syncer(&disk, every)?),
            _ => None,
        };
        Ok(DiskTier { disk, syncer })
    }

    /// Blocks that were not put because the folder is read-only.
    pub fn refused(&self) -> u64 {
        self.disk.refused.load(Ordering::Relaxed)
    }

    /// Finds blocks that other processes have added or removed since.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn refresh(&self) -> Result<(), TierError> {
        self.disk.scan()
    }

    /// Evicts the least valuable blocks until at most `max_bytes` bytes are held, or only what is
    /// pinned, held or being written is left. Returns the bytes freed.
    ///
    /// # Errors
    /// When the folder cannot be read or written to.
    pub fn gc(&self, max_bytes: u64) -> Result<u64, TierError> {
        self.disk.gc(max_bytes)
    }

    /// Reads every byte and compares every checksum.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn fsck(&self, repair: Repair) -> Result<Fsck, TierError> {
        self.disk.fsck(repair)
    }
}

impl Tier for DiskTier {
    fn name(&self) -> &str {
        &self.disk.name
    }

    fn put(&self, info: &BlockInfo, block: &Arc<Block>) -> Result<(), TierError> {
        self.disk.put(info, block.bytes())
    }

    fn find(&self, key: &BlockKey) -> Option<BlockInfo> {
        self.disk.locate(key);
        self.disk.state().index.info(key)
    }

    fn knows(&self, key: &BlockKey) -> bool {
        self.disk.state().index.place(key).is_some()
    }

    fn after(&self, parent: &BlockHash) -> Vec<BlockInfo> {
        // Others may have added some; what cannot be read is not there.
        let _ = self.disk.scan();
        let state = self.disk.state();
        let followers = state.index.followers(parent).iter();
        followers
            .filter(|key| key.group == 0)
            .filter_map(|key| state.index.info(key))
            .collect()
    }

    fn read(&self, keys: &[BlockKey], layer: usize, out: &mut [u8]) -> Result<(), TierError> {
        self.disk.read(keys, layer, out)
    }

    fn prefetch(&self, keys: &[BlockKey], layer: usize) {
        self.disk.prefetch(keys, layer);
    }

    fn touch(&self, keys: &[BlockKey]) {
        self.disk.touch(keys);
    }

    fn hold(&self, keys: &[BlockKey]) -> Result<Hold, TierError> {
        self.disk.hold(keys)
    }

    fn remove(&self, key: &BlockKey) -> Result<(), TierError> {
        self.disk.remove(key)
    }

    fn sync(&self) -> Result<(), TierError> {
        self.disk.sync()?;
        self.disk.take_lost()
    }

    fn usage(&self) -> TierUsage {
        self.disk.state().index.usage()
    }

    fn room(&self) -> u64 {
        if self.disk.read_only {
            return 0;
        }
        // A disk that does not say tells when it is full.
        let free = self.disk.files.free_bytes(&self.disk.root);
        let most = self.usage().bytes.saturating_add(free.unwrap_or(u64::MAX));
        most.min(self.disk.options.max_bytes.unwrap_or(u64::MAX))
    }

    fn for_each(&self, visit: &mut dyn FnMut(&BlockInfo)) {
        let infos = self.disk.state().index.infos();
        infos.iter().for_each(visit);
    }

    fn read_rate(&self) -> Option<f64> {
        self.disk.meter().rate()
    }

    fn read_only(&self) -> bool {
        self.disk.read_only
    }

    fn take_notices(&self) -> Vec<String> {
        self.disk.notices.take()
    }
}

impl Drop for DiskTier {
    fn drop(&mut self) {
        if let Some((bell, thread)) = self.syncer.take() {
            *bell.lock() = true;
            bell.rung.notify_all();
            // The thread does not panic; were it to, there is nothing left to do here.
            let _ = thread.join();
        }
        // What fails here was told of before, or the system is about to write it by itself.
        let _ = self.disk.sync();
    }
}

impl Disk {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held can leave the index behind the files, never ahead.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> MutexGuard<'_, Writing> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn meter(&self) -> MutexGuard<'_, Meter> {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn extents_folder(&self) -> PathBuf {
        self.root.join(super::folder::EXTENTS)
    }

    /// The folder that an extent lies in.
    fn folder_of(&self, extent: &BlockKey) -> PathBuf {
        self.extents_folder().join(&extent.hash.to_string()[..2])
    }

    fn path_of(&self, extent: &BlockKey) -> PathBuf {
        self.folder_of(extent)
            .join(format!("{}-{}.kv", extent.hash, extent.group))
    }
}

impl Bell {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for `time`; `true` when it is time to end.
    fn wait(&self, time: Duration) -> bool {
        let ended = self.lock();
        let waited = self.rung.wait_timeout_while(ended, time, |ended| !*ended);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

fn start_syncer(
    disk: &Arc<Disk>,
    every: Duration,
) -> Result<(Arc<Bell>, JoinHandle<()>), TierError> {
    let bell = Arc::<Bell>::default();
    let (disk, waiting) = (Arc::clone(disk), Arc::clone(&bell));
    let place = disk.root.display().to_string();
    let run = move || {
        while !waiting.wait(every) {
            if let Err(error) = disk.sync() {
                disk.notices.push(error.to_string());
            }
        }
    };
    let thread = std::thread::Builder::new().name("longview-sync".to_owned());
    match thread.spawn(run) {
        Ok(thread) => Ok((bell, thread)),
        Err(source) => Err(TierError::Io {
            place,
            action: "start the thread that syncs",
            source,
        }),
    }
}

/// The error for a file.
fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> TierError {
    let place = path.display().to_string();
    move |source| TierError::Io {
        place,
        action,
        source,
    }
}

/// Seconds since `then`; 0 when the clock has been set back.
fn age(now: SystemTime, then: SystemTime) -> f64 {
    now.duration_since(then)
        .map_or(0.0, |age| age.as_secs_f64())
}

#[cfg(test)]
mod tests;
