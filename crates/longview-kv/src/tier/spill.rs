//! A place on disk for what memory has no room for and nobody else keeps: made when it is first needed,
//! used by one process, and gone with it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::files::{Files, SystemFiles};
use super::{
    BlockInfo, BlockKey, DiskOptions, DiskTier, Hold, Notices, StoreFolder, Syncing, Tier,
    TierError, TierUsage,
};
use crate::block::Block;
use crate::hash::BlockHash;

/// Names of the folders begin so.
const PREFIX: &str = "longview-spill-";
/// A file that a process keeps locked as long as it uses its folder.
const OWNER: &str = "OWNER";
/// The store inside.
const STORE: &str = "store";
/// Whoever makes a folder has locked its file sooner.
const SETTLED: Duration = Duration::from_secs(60);

/// A tier in a temporary folder of this process.
pub struct SpillTier {
    parent: PathBuf,
    /// Whether files there take memory, so that nothing is gained.
    in_memory: bool,
    notices: Notices,
    opened: OnceLock<Opened>,
    /// Held while the folder is made.
    opening: Mutex<()>,
}

/// In the order in which they are given up.
struct Opened {
    tier: DiskTier,
    _owner: File,
    _home: TempDir,
}

impl SpillTier {
    /// A place in the system's folder for temporary files, or in `/var/tmp` where that folder is in memory,
    /// as many systems have it.
    pub fn temporary() -> SpillTier {
        let places = [std::env::temp_dir(), PathBuf::from("/var/tmp")];
        SpillTier::new(first_on_disk(places, is_in_memory))
    }

    /// A place in a folder for temporary files, in which nothing is made yet.
    pub fn new(parent: PathBuf) -> SpillTier {
        SpillTier {
            in_memory: is_in_memory(&parent),
            parent,
            notices: Notices::default(),
            opened: OnceLock::new(),
            opening: Mutex::default(),
        }
    }

    fn opened(&self) -> Option<&DiskTier> {
        self.opened.get().map(|opened| &opened.tier)
    }

    fn open(&self) -> Result<&DiskTier, TierError> {
        let _opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tier) = self.opened() {
            return Ok(tier);
        }
        remove_abandoned(&self.parent);
        let made = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(&self.parent)
            .and_then(|home| {
                let owner = File::create_new(home.path().join(OWNER))?;
                owner.try_lock()?;
                Ok((home, owner))
            });
        let (home, owner) = made.map_err(|source| TierError::Io {
            place: self.parent.display().to_string(),
            action: "make a folder",
            source,
        })?;
        let options = DiskOptions {
            // Nobody looks for it after a power loss, nor after the program.
            sync: Syncing::Never,
            ..DiskOptions::default()
        };
        let tier = DiskTier::open(&StoreFolder::open(&home.path().join(STORE))?, options)?;
        self.notices.push(format!(
            "what --memory has no room for is in {} until the program ends",
            home.path().display()
        ));
        if self.in_memory {
            self.notices.push(format!(
                "{} is in memory itself, beside what --memory counts: name a folder on disk with TMPDIR",
                self.parent.display()
            ));
        }
        let opened = Opened {
            tier,
            _owner: owner,
            _home: home,
        };
        Ok(&self.opened.get_or_init(|| opened).tier)
    }
}

/// The first of `places` that is there and not in memory, or else the first.
fn first_on_disk(places: [PathBuf; 2], in_memory: impl Fn(&Path) -> bool) -> PathBuf {
    let on_disk = places
        .iter()
        .find(|place| place.is_dir() && !in_memory(place));
    on_disk.unwrap_or(&places[0]).clone()
}

/// Whether what is written to a folder takes memory; `false` where the system does not say.
#[cfg(target_os = "linux")]
fn is_in_memory(folder: &Path) -> bool {
    /// Numbers of `tmpfs` and `ramfs`, as `statfs` gives them.
    const IN_MEMORY: [u32; 2] = [0x0102_1994, 0x8584_58f6];
    // The field is as wide as the system's words.
    rustix::fs::statfs(folder).is_ok_and(|about| IN_MEMORY.contains(&(about.f_type as u32)))
}

#[cfg(not(target_os = "linux"))]
fn is_in_memory(_folder: &Path) -> bool {
    false
}

/// Removes the folders of processes that were killed. What cannot be looked at or removed stays.
fn remove_abandoned(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        // A link is no folder, so nothing outside is ever reached.
        if ours && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let abandoned = || -> io::Result<bool> {
                let age = SystemTime::now().duration_since(entry.metadata()?.modified()?);
                let owner = File::open(entry.path().join(OWNER))?;
                Ok(age.is_ok_and(|age| age > SETTLED) && owner.try_lock().is_ok())
            };
            if abandoned().unwrap_or(false) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

impl Tier for SpillTier {
    fn name(&self) -> &str {
        "disk"
    }

    fn lasts(&self) -> bool {
        false
    }

    fn put(&self, info: &BlockInfo, block: &Arc<Block>) -> Result<(), TierError> {
        self.open()?.put(info, block)
    }

    fn find(&self, key: &BlockKey) -> Option<BlockInfo> {
        self.opened()?.find(key)
    }

    fn knows(&self, key: &BlockKey) -> bool {
        self.opened().is_some_and(|tier| tier.knows(key))
    }

    fn after(&self, parent: &BlockHash) -> Vec<BlockInfo> {
        self.opened().map_or(Vec::new(), |tier| tier.after(parent))
    }

    fn read(&self, keys: &[BlockKey], layer: usize, out: &mut [u8]) -> Result<(), TierError> {
        match (self.opened(), keys) {
            (Some(tier), _) => tier.read(keys, layer, out),
            (None, [first, ..]) => Err(TierError::Missing(*first)),
            (None, []) => Ok(()),
        }
    }

    fn prefetch(&self, keys: &[BlockKey], layer: usize) {
        if let Some(tier) = self.opened() {
            tier.prefetch(keys, layer);
        }
    }

    fn touch(&self, keys: &[BlockKey]) {
        if let Some(tier) = self.opened() {
            tier.touch(keys);
        }
    }

    fn hold(&self, keys: &[BlockKey]) -> Result<Hold, TierError> {
        match (self.opened(), keys) {
            (Some(tier), _) => tier.hold(keys),
            (None, [first, ..]) => Err(TierError::Missing(*first)),
            (None, []) => Ok(Hold::new(())),
        }
    }

    fn remove(&self, key: &BlockKey) -> Result<(), TierError> {
        self.opened().map_or(Ok(()), |tier| tier.remove(key))
    }

    fn sync(&self) -> Result<(), TierError> {
        // It is not meant to last.
        Ok(())
    }

    fn usage(&self) -> TierUsage {
        self.opened().map_or(TierUsage::default(), DiskTier::usage)
    }

    fn room(&self) -> u64 {
        if self.in_memory {
            // It takes what it is given, but no plan is to count on it.
            return 0;
        }
        let free = || SystemFiles.free_bytes(&self.parent).unwrap_or(u64::MAX);
        self.opened().map_or_else(free, DiskTier::room)
    }

    fn for_each(&self, visit: &mut dyn FnMut(&BlockInfo)) {
        if let Some(tier) = self.opened() {
            tier.for_each(visit);
        }
    }

    fn read_rate(&self) -> Option<f64> {
        self.opened()?.read_rate()
    }

    fn take_notices(&self) -> Vec<String> {
        let mut notices = self.notices.take();
        notices.extend(self.opened().into_iter().flat_map(DiskTier::take_notices));
        notices
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tier::conformance::{self, Fixture};
    use crate::tier::testing::{Chain, assert_held, put};

    fn entries(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn conforms() {
        conformance::run(|| {
            let home = tempfile::tempdir().unwrap();
            Fixture {
                tier: Box::new(SpillTier::new(home.path().to_owned())),
                _home: Box::new(home),
            }
        });
    }

    #[test]
    fn its_folder_is_there_while_it_is_needed_and_told_of() {
        let home = tempfile::tempdir().unwrap();
        let spill = SpillTier::new(home.path().to_owned());
        assert_eq!(entries(home.path()), 0);
        assert!(spill.take_notices().is_empty() && spill.room() > 0);
        put(&spill, &Chain::new("m").blocks(3, 1));
        assert_eq!(entries(home.path()), 1);
        assert!(spill.take_notices()[0].contains(PREFIX));
        drop(spill);
        assert_eq!(entries(home.path()), 0);
        let error = SpillTier::new(home.path().join("gone"));
        let info = Chain::new("m").block(1);
        let error = error.put(&info, &crate::tier::testing::block(&info));
        assert!(error.unwrap_err().to_string().contains("gone"));
    }

    #[test]
    fn folders_that_are_in_memory_are_passed_over_and_told_of() {
        let [memory, disk] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let places = || [memory.path().to_owned(), disk.path().to_owned()];
        let in_memory = |path: &Path| path == memory.path();
        assert_eq!(first_on_disk(places(), in_memory), disk.path());
        assert_eq!(first_on_disk(places(), |_| true), memory.path());
        assert_eq!(first_on_disk(places(), |_| false), memory.path());
        let gone = [memory.path().to_owned(), disk.path().join("gone")];
        assert_eq!(first_on_disk(gone, in_memory), memory.path());
        // Every Linux has this one.
        if cfg!(target_os = "linux") && Path::new("/dev/shm").is_dir() {
            assert!(is_in_memory(Path::new("/dev/shm")));
        }
        assert!(!is_in_memory(Path::new(env!("CARGO_MANIFEST_DIR"))));

        let spill = SpillTier {
            in_memory: true,
            ..SpillTier::new(memory.path().to_owned())
        };
        assert_eq!(spill.room(), 0);
        put(&spill, &Chain::new("m").blocks(3, 1));
        let told = spill.take_notices().join("\n");
        assert!(told.contains("TMPDIR"), "{told}");
    }

    #[test]
    fn what_killed_processes_left_is_removed_and_what_lives_stays() {
        let home = tempfile::tempdir().unwrap();
        let make = |name: &str, seconds: u64| {
            let folder = home.path().join(name);
            fs::create_dir_all(folder.join(STORE)).unwrap();
            let owner = File::create(folder.join(OWNER)).unwrap();
            let then = SystemTime::now() - Duration::from_secs(seconds);
            File::open(&folder).unwrap().set_modified(then).unwrap();
            owner
        };
        make("longview-spill-killed", 1000);
        make("longview-spill-new", 1);
        make("other", 1000);
        let living = make("longview-spill-living", 1000);
        living.try_lock().unwrap();
        let spill = SpillTier::new(home.path().to_owned());
        let infos = Chain::new("m").blocks(3, 1);
        put(&spill, &infos);
        assert_held(&spill, &infos);
        assert_eq!(entries(home.path()), 4, "one is gone and one is new");
        assert!(!home.path().join("longview-spill-killed").exists());
    }
}
