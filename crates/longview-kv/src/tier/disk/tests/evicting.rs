//! Which blocks go when there is no room.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use super::open;
use crate::tier::folder::StoreFolder;
use crate::tier::simulated::SimulatedFiles;
use crate::tier::testing::{Chain, assert_gone, assert_held, block, keys, put};
use crate::tier::{BlockInfo, DiskOptions, DiskTier, Syncing, Tier, TierError};

const EXTENT: u64 = 16 * 3000 + 8192;

/// A full extent whose blocks took `seconds` each.
fn extent(model: &str, seconds: f32) -> Vec<BlockInfo> {
    let mut infos = Chain::new(model).blocks(16, 1);
    for info in &mut infos {
        info.seconds = seconds;
    }
    infos
}

#[test]
fn the_limit_holds_at_every_moment_and_a_tenth_is_freed_at_once() {
    let files = SimulatedFiles::default();
    let tier = open(&files, Some(10 * EXTENT));
    for context in 0..30 {
        for info in extent(&context.to_string(), 1.0) {
            put(&tier, &[info]);
            assert!(tier.usage().bytes <= 10 * EXTENT);
            assert!(files.used() <= 10 * EXTENT + 1000);
        }
    }
    assert!(tier.usage().bytes >= 8 * EXTENT);
    assert_held(&tier, &extent("29", 1.0));
    let error = open(&SimulatedFiles::default(), Some(1000));
    let info = Chain::new("m").block(1);
    let error = error.put(&info, &block(&info)).unwrap_err();
    assert!(matches!(error, TierError::Full { .. }));
    assert!(error.to_string().contains("--cache-max"));
}

#[test]
fn cheap_and_long_unused_go_first() {
    let files = SimulatedFiles::default();
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let later = |seconds| start + Duration::from_secs(seconds);
    files.set_clock(start);
    let old_and_dear = extent("old and dear", 40.0);
    put(&open(&files, None), &old_and_dear);
    files.set_clock(later(1_000_000));
    let new_and_cheap = extent("new and cheap", 0.01);
    put(&open(&files, None), &new_and_cheap);
    let new_and_dear = extent("new and dear", 40.0);
    put(&open(&files, None), &new_and_dear);
    // The tier measures ages by the real clock: the three are decades old, in this order of value.
    let tier = open(&files, None);
    let bytes = tier.usage().bytes;
    tier.gc(bytes - 1).unwrap();
    assert_gone(&tier, &new_and_cheap);
    tier.gc(bytes / 3).unwrap();
    assert_gone(&tier, &old_and_dear);
    assert_held(&tier, &new_and_dear);
}

#[test]
fn use_makes_valuable_for_this_and_later_processes() {
    let files = SimulatedFiles::default();
    files.set_clock(SystemTime::now() - Duration::from_secs(100_000));
    let (one, two) = (extent("one", 1.0), extent("two", 1.0));
    let tier = open(&files, None);
    put(&tier, &one);
    put(&tier, &two);
    tier.touch(&keys(&one));
    drop(tier);
    let tier = open(&files, None);
    tier.gc(tier.usage().bytes - 1).unwrap();
    assert_held(&tier, &one);
    assert_gone(&tier, &two);
}

#[test]
fn a_clock_that_was_ahead_breaks_nothing() {
    let files = SimulatedFiles::default();
    files.set_clock(SystemTime::now() + Duration::from_secs(1_000_000_000));
    let tier = open(&files, Some(3 * EXTENT));
    for context in 0..6 {
        let infos = extent(&context.to_string(), 1.0);
        put(&tier, &infos);
        tier.touch(&keys(&infos));
        assert_held(&tier, &infos);
    }
    assert!(tier.usage().bytes <= 3 * EXTENT);
}

#[test]
fn what_others_follow_goes_after_them_and_groups_go_together() {
    let files = SimulatedFiles::default();
    let tier = open(&files, None);
    let mut trunk = Chain::new("m");
    let first = trunk.blocks(16, 1);
    let mut window = Chain::new("m").group(1, trunk.shape);
    let first_window = window.blocks(16, 1);
    let second = trunk.blocks(16, 1);
    let second_window = window.blocks(16, 1)[8..].to_vec();
    for infos in [&first, &first_window, &second, &second_window] {
        put(&tier, infos);
    }
    tier.touch(&keys(&second));
    let bytes = tier.usage().bytes;
    tier.gc(bytes - 1).unwrap();
    assert_gone(&tier, &second);
    assert_gone(&tier, &second_window);
    assert_held(&tier, &first);
    assert_held(&tier, &first_window);
}

#[test]
fn a_text_longer_than_the_limit_keeps_its_beginning() {
    let files = SimulatedFiles::default();
    let tier = open(&files, Some(5 * EXTENT));
    let mut trunk = Chain::new("m");
    let infos = trunk.blocks(400, 1);
    for info in &infos {
        // Where one was not kept, nobody finds what follows.
        let _ = tier.put(info, &block(info));
    }
    let kept = infos
        .iter()
        .take_while(|info| tier.find(&info.key).is_some());
    let kept = kept.count();
    assert!(kept >= 4 * 16, "{kept} blocks of the beginning");
    assert_eq!(tier.usage().blocks, kept as u64);
    // Other text takes its place as ever, what was left without its beginning first.
    let orphans = &trunk.blocks(40, 2)[8..];
    let tier = open(&files, None);
    put(&tier, &orphans[..24]);
    drop(tier);
    let tier = open(&files, Some(8 * EXTENT));
    put(&tier, &extent("other", 1.0));
    put(&tier, &extent("another", 1.0));
    assert_gone(&tier, &orphans[8..24]);
    assert_held(&tier, &infos[..kept]);
    assert_held(&tier, &extent("other", 1.0));
}

#[test]
fn pinned_contexts_stay_whole() {
    let files = SimulatedFiles::default();
    let folder = StoreFolder::open_in(Path::new("/store"), Arc::new(files.clone())).unwrap();
    let pinned = Arc::new(Mutex::new(Vec::new()));
    let asked = Arc::clone(&pinned);
    let options = DiskOptions {
        sync: Syncing::WhenAsked,
        pinned: Some(Arc::new(move || asked.lock().unwrap().clone())),
        ..DiskOptions::default()
    };
    let tier = DiskTier::open(&folder, options).unwrap();
    let mut trunk = Chain::new("m");
    let infos = trunk.blocks(40, 1);
    put(&tier, &infos);
    let rest = trunk.blocks(24, 1);
    put(&tier, &rest);
    let other = extent("other", 1000.0);
    put(&tier, &other);
    pinned.lock().unwrap().push(infos[39].key.hash);
    tier.gc(0).unwrap();
    assert_held(&tier, &infos);
    assert_gone(&tier, &other);
    // Its extent is kept as a whole; the one after it is not.
    assert_held(&tier, &rest[..8]);
    assert_gone(&tier, &rest[8..]);
    pinned.lock().unwrap().clear();
    assert!(tier.gc(0).unwrap() > 0);
    assert_eq!(tier.usage().blocks, 0);
}
