//! What the disk tier promises beyond what all tiers do.

use std::path::Path;
use std::sync::Arc;

use super::{DiskOptions, DiskTier, Syncing};
use crate::tier::Tier;
use crate::tier::conformance::{self, Fixture};
use crate::tier::folder::StoreFolder;
use crate::tier::simulated::SimulatedFiles;
use crate::tier::testing::{Chain, assert_held, contents, put};

mod crashing;
mod evicting;
mod failing;
mod sharing;

#[test]
fn a_folder_conforms() {
    conformance::run(|| {
        let home = tempfile::tempdir().unwrap();
        let folder = StoreFolder::open(&home.path().join("new")).unwrap();
        Fixture {
            tier: Box::new(DiskTier::open(&folder, DiskOptions::default()).unwrap()),
            _home: Box::new(home),
        }
    });
}

#[test]
fn a_disk_that_writes_short_conforms() {
    conformance::run(|| {
        let files = SimulatedFiles::default();
        files.write_at_most(700);
        Fixture {
            tier: Box::new(open(&files, None)),
            _home: Box::new(()),
        }
    });
}

#[test]
fn a_rebuilt_index_equals_the_lost_one() {
    let files = SimulatedFiles::default();
    let tier = open(&files, None);
    let mut trunk = Chain::new("m");
    put(&tier, &trunk.blocks(20, 1));
    let mut other = trunk.clone();
    put(&tier, &other.blocks(30, 2));
    put(&tier, &trunk.blocks(17, 3));
    let window = Chain::new("m").group(1, trunk.shape).blocks(5, 1);
    put(&tier, &window);
    tier.remove(&window[2].key).unwrap();
    let (before, usage) = (contents(&tier), tier.usage());
    assert_eq!(before.len(), 71);
    drop(tier);
    let tier = open(&files, None);
    assert_eq!(contents(&tier), before);
    assert_eq!(tier.usage(), usage);
    assert_held(&tier, &before);
    assert!(tier.take_notices().is_empty());
}

#[test]
fn what_is_for_this_process_alone_is_not_synced() {
    for (sync, synced) in [(Syncing::Never, false), (Syncing::WhenAsked, true)] {
        let files = SimulatedFiles::default();
        let folder = StoreFolder::open_in(Path::new("/store"), Arc::new(files.clone())).unwrap();
        let options = DiskOptions {
            sync,
            ..DiskOptions::default()
        };
        let tier = DiskTier::open(&folder, options).unwrap();
        let before = files.syncs();
        put(&tier, &Chain::new("m").blocks(20, 1));
        drop(tier);
        assert_eq!(files.syncs() > before, synced);
    }
}

/// A tier on a simulated disk, with a limit in bytes.
fn open(files: &SimulatedFiles, max_bytes: Option<u64>) -> DiskTier {
    let folder = StoreFolder::open_in(Path::new("/store"), Arc::new(files.clone())).unwrap();
    let options = DiskOptions {
        max_bytes,
        sync: Syncing::WhenAsked,
        ..DiskOptions::default()
    };
    DiskTier::open(&folder, options).unwrap()
}
