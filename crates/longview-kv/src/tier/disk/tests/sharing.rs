//! Several processes on one folder. Two tiers stand for two processes: they share nothing but the
//! files, and locks belong to open files.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{DiskOptions, DiskTier, open};
use crate::tier::files::{Access, Files};
use crate::tier::folder::{LOCK, StoreFolder};
use crate::tier::simulated::SimulatedFiles;
use crate::tier::testing::{Chain, assert_gone, assert_held, contents, keys, put};
use crate::tier::{Repair, Tier, TierError, TierUsage};

#[test]
fn what_one_puts_the_other_finds() {
    let files = SimulatedFiles::default();
    let (one, two) = (open(&files, None), open(&files, None));
    let infos = Chain::new("m").blocks(40, 1);
    for at in 0..40 {
        put(&one, &infos[at..=at]);
        assert_held(&two, &infos[..=at]);
    }
    assert_eq!(two.after(&infos[0].parent), infos[..1]);
    assert_eq!(one.usage(), two.usage());
}

#[test]
fn one_writes_where_the_other_has_not_locked() {
    let files = SimulatedFiles::default();
    let (one, two) = (open(&files, None), open(&files, None));
    let infos = Chain::new("m").blocks(16, 1);
    // The first extent belongs to the one that began it: the other begins its own behind it.
    for at in 0..16 {
        put(if at % 2 == 0 { &one } else { &two }, &infos[at..=at]);
    }
    assert_held(&one, &infos);
    assert_held(&two, &infos);
    put(&one, &infos);
    put(&two, &infos);
    assert_eq!(one.usage().blocks, 16);
    drop(one);
    drop(two);
    let three = open(&files, None);
    assert_held(&three, &infos);
    assert_eq!(contents(&three).len(), 16);
}

#[test]
fn a_lock_ends_with_its_process() {
    let files = SimulatedFiles::default();
    let one = open(&files, None);
    let infos = Chain::new("m").blocks(16, 1);
    put(&one, &infos[..5]);
    let two = open(&files, None);
    drop(one);
    put(&two, &infos);
    assert_held(&two, &infos);
    let extents = files
        .paths()
        .iter()
        .filter(|path| path.extension().is_some())
        .count();
    assert_eq!(extents, 1);
}

#[test]
fn what_one_evicts_the_other_misses_and_may_put_again() {
    let files = SimulatedFiles::default();
    let (one, two) = (open(&files, None), open(&files, None));
    let infos = Chain::new("m").blocks(16, 1);
    put(&one, &infos);
    assert_held(&two, &infos);
    one.gc(0).unwrap();
    assert_eq!(one.usage(), TierUsage::default());
    two.refresh().unwrap();
    assert_gone(&two, &infos);
    put(&two, &infos);
    assert_held(&one, &infos);
}

#[test]
fn what_one_writes_or_holds_the_other_does_not_evict() {
    let files = SimulatedFiles::default();
    let (one, two) = (open(&files, None), open(&files, None));
    let mut trunk = Chain::new("m");
    let infos = trunk.blocks(32, 1);
    put(&one, &infos);
    let hold = one.hold(&keys(&infos[16..17])).unwrap();
    two.gc(0).unwrap();
    assert_held(&one, &infos);
    drop(hold);
    // Not full, so it is being written, and keeps what leads to it.
    let last = trunk.block(1);
    put(&one, std::slice::from_ref(&last));
    two.gc(0).unwrap();
    assert_held(&one, &infos);
    assert_held(&one, std::slice::from_ref(&last));
    drop(one);
    two.gc(0).unwrap();
    assert_eq!(two.usage(), TierUsage::default());
}

#[test]
fn holds_of_a_process_that_died_do_not_last() {
    let files = SimulatedFiles::default();
    let (one, two) = (open(&files, None), open(&files, None));
    let infos = Chain::new("m").blocks(16, 1);
    put(&one, &infos);
    // The hold is never given up, but the lock on its note is, as when a process is killed.
    let hold = one.hold(&keys(&infos)).unwrap();
    let notes = |files: &SimulatedFiles| {
        files
            .paths()
            .iter()
            .filter(|path| path.starts_with("/store/holds"))
            .count()
    };
    assert_eq!(notes(&files), 1);
    let after = files.lose_power(&mut fastrand::Rng::with_seed(0));
    drop((one, hold));
    assert_eq!(notes(&files), 0);
    two.gc(0).unwrap();
    assert_gone(&two, &infos);
    let three = open(&after, None);
    three.gc(0).unwrap();
    assert_eq!(three.usage(), TierUsage::default());
    assert_eq!(notes(&after), 0);
}

#[test]
fn the_note_of_a_process_that_holds_for_long_stays_short() {
    let files = SimulatedFiles::default();
    let (one, two) = (open(&files, None), open(&files, None));
    let texts = [1, 2, 3].map(|text| Chain::new("m").blocks(16, text));
    texts.iter().for_each(|infos| put(&one, infos));
    let always = one.hold(&keys(&texts[0])).unwrap();
    let at_rest = files.used();
    // Two lines of seventy bytes each time.
    for _ in 0..20_000 {
        drop(one.hold(&keys(&texts[1][..1])).unwrap());
    }
    assert!(files.used() - at_rest < 2 << 20, "{}", files.used());
    // What is held all the while still is, for others too.
    let now = one.hold(&keys(&texts[1])).unwrap();
    two.gc(0).unwrap();
    assert_held(&two, &texts[0]);
    assert_held(&two, &texts[1]);
    assert_gone(&two, &texts[2]);
    drop((always, now));
}

#[test]
fn a_process_that_is_stopped_while_it_evicts_does_not_stop_others() {
    let files = SimulatedFiles::default();
    let folder = StoreFolder::open_in(Path::new("/store"), Arc::new(files.clone())).unwrap();
    let options = DiskOptions {
        patience: Duration::from_millis(300),
        ..DiskOptions::default()
    };
    let tier = DiskTier::open(&folder, options).unwrap();
    let infos = Chain::new("m").blocks(20, 1);
    put(&tier, &infos);
    drop(tier.hold(&keys(&infos)).unwrap());
    let stopped = files.open(&Path::new("/store").join(LOCK), Access::Write);
    let stopped = stopped.unwrap();
    assert!(stopped.try_lock().unwrap());
    let refused = || match tier.hold(&keys(&infos)) {
        Err(TierError::Io { source, .. }) => source.to_string(),
        _ => panic!("another process has the lock"),
    };
    assert!(refused().contains("/store/LOCK"));
    let told = tier.take_notices().join("\n");
    assert!(told.contains("waiting") && told.contains("LOCK"), "{told}");
    // It is not waited for again and again.
    let begun = Instant::now();
    (0..20).for_each(|_| drop(refused()));
    assert!(tier.gc(0).is_err());
    assert!(begun.elapsed() < 20 * Duration::from_millis(300));
    assert_held(&tier, &infos);
    drop(stopped);
    drop(tier.hold(&keys(&infos)).unwrap());
    tier.gc(0).unwrap();
}

#[test]
fn a_record_that_another_process_is_writing_is_no_damage() {
    let files = SimulatedFiles::default();
    let (one, two) = (open(&files, None), open(&files, None));
    let infos = Chain::new("m").blocks(16, 1);
    put(&one, &infos[..5]);
    let paths = files.paths();
    let extent = paths.iter().find(|path| path.extension().is_some());
    let extent = extent.unwrap();
    // Half of the sixth record is there.
    let header =
        super::super::scan::contents(&*files.open(extent, Access::Read).unwrap(), &infos[0].key);
    let header = header.unwrap().header;
    files.tamper(extent, |bytes| {
        bytes[header.slot_offset(5) as usize..][..header.slot_bytes() / 2].fill(7);
    });
    let found = two.fsck(Repair::Remove).unwrap();
    assert_eq!((found.blocks, found.problems), (5, Vec::new()));
    drop(one);
    let found = two.fsck(Repair::Report).unwrap();
    assert_eq!(found.problems.len(), 1, "nobody writes to it any more");
}
