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
    /// A place in a folder for temporary files, in which nothing is made yet.
    pub fn new(parent: PathBuf) -> SpillTier {
        SpillTier {
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
        let opened = Opened {
            tier,
            _owner: owner,
            _home: home,
        };
        Ok(&self.opened.get_or_init(|| opened).tier)
    }
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
