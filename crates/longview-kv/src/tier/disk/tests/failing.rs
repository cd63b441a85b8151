//! Damage, power losses, full and read-only disks.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::open;
use crate::tier::folder::StoreFolder;
use crate::tier::simulated::SimulatedFiles;
use crate::tier::testing::{Chain, assert_held, block, contents, keys, payload, put};
use crate::tier::{BlockInfo, DiskTier, Fate, Repair, Tier, TierError};

/// Reads whatever is held and compares it; damage may be reported, wrong bytes may not be given.
/// Returns how many blocks are whole.
fn nothing_is_wrong(tier: &DiskTier, infos: &[BlockInfo]) -> usize {
    let mut whole = 0;
    for info in infos {
        match tier.find(&info.key) {
            None => continue,
            Some(found) => assert_eq!(found, *info),
        }
        let payload = payload(info);
        let bytes = info.shape.layer_bytes;
        let right = (0..info.shape.layers).all(|layer| {
            let mut out = vec![0; bytes];
            match tier.read(&[info.key], layer, &mut out) {
                Ok(()) => {
                    assert!(out == payload[layer * bytes..(layer + 1) * bytes]);
                    true
                }
                Err(TierError::Damaged { .. } | TierError::Missing(_)) => {
                    assert_eq!(tier.find(&info.key), None);
                    false
                }
                Err(error) => panic!("{error}"),
            }
        });
        whole += usize::from(right);
    }
    whole
}

fn extent_paths(files: &SimulatedFiles) -> Vec<PathBuf> {
    let paths = files.paths();
    let is_extent = |path: &PathBuf| path.extension().is_some_and(|end| end == "kv");
    paths.into_iter().filter(is_extent).collect()
}

#[test]
fn power_losses_cost_at_most_what_was_not_synced() {
    for seed in 0..300 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut files = SimulatedFiles::default();
        let mut trunk = Chain::new("m");
        let mut all = trunk.blocks(random.usize(0..20), 1);
        let branch = trunk.clone().blocks(random.usize(0..20), 2);
        all.extend(trunk.blocks(random.usize(0..20), 3));
        all.extend(branch);
        let mut durable = 0;
        for _ in 0..3 {
            let tier = open(&files, None);
            for (at, info) in all.iter().enumerate() {
                put(&tier, std::slice::from_ref(info));
                if random.u8(0..12) == 0 {
                    tier.sync().unwrap();
                    durable = durable.max(at + 1);
                }
                if random.u8(0..40) == 0 {
                    break;
                }
            }
            files = files.lose_power(&mut random);
            let tier = open(&files, None);
            nothing_is_wrong(&tier, &all);
            assert_held(&tier, &all[..durable]);
            // What has been found damaged is computed again and put where it was.
            put(&tier, &all);
            assert_held(&tier, &all);
            drop(tier);
            assert_held(&open(&files, None), &all);
        }
    }
}

#[test]
fn flipped_bits_are_never_believed() {
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..300 {
        let files = SimulatedFiles::default();
        let infos = Chain::new("m").blocks(18, 1);
        put(&open(&files, None), &infos);
        let paths = extent_paths(&files);
        let path = random.choice(&paths).unwrap();
        files.tamper(path, |bytes| {
            // Half the flips hit headers and records.
            let end = if random.bool() { 7000 } else { bytes.len() };
            let at = random.usize(0..end.min(bytes.len()));
            bytes[at] ^= 1 << random.u8(0..8);
        });
        let tier = open(&files, None);
        nothing_is_wrong(&tier, &infos);
        let whole = nothing_is_wrong(&tier, &infos);
        assert!(whole == 18 || !tier.take_notices().is_empty());
        put(&tier, &infos);
        assert_held(&tier, &infos);
        drop(tier);
        assert_held(&open(&files, None), &infos);
    }
}

#[test]
fn what_is_wrong_with_a_file_is_told_once() {
    let files = SimulatedFiles::default();
    let infos = Chain::new("m").blocks(32, 1);
    put(&open(&files, None), &infos);
    // The payload of one file, and the header of the other.
    let paths = [0, 16].map(|at: usize| {
        let hash = infos[at].key.hash.to_string();
        PathBuf::from(format!("/store/extents/{}/{hash}-0.kv", &hash[..2]))
    });
    files.tamper(&paths[0], |bytes| {
        let end = bytes.len();
        bytes[end - 40_000..].iter_mut().for_each(|byte| *byte ^= 1);
    });
    files.tamper(&paths[1], |bytes| bytes[20] ^= 1);
    let tier = open(&files, None);
    let mut told = tier.take_notices();
    for _ in 0..3 {
        // Whoever looks has heard what was said before.
        assert!(nothing_is_wrong(&tier, &infos) < 16);
        told.extend(tier.take_notices());
    }
    for path in paths {
        let name = path.to_string_lossy();
        let about = told.iter().filter(|line| line.contains(&*name)).count();
        assert_eq!(about, 1, "{told:?}");
    }
}

#[test]
fn files_cut_anywhere_give_what_is_left_of_them() {
    let files = SimulatedFiles::default();
    let infos = Chain::new("m").blocks(16, 1);
    put(&open(&files, None), &infos);
    let path = extent_paths(&files).remove(0);
    let mut whole = Vec::new();
    files.tamper(&path, |bytes| whole = bytes.clone());
    for len in (0..whole.len()).step_by(97) {
        files.tamper(&path, |bytes| *bytes = whole[..len].to_vec());
        let tier = open(&files, None);
        nothing_is_wrong(&tier, &infos);
        put(&tier, &infos);
        assert_held(&tier, &infos);
    }
}

#[test]
fn files_of_others_are_skipped_by_name_and_kept() {
    let files = SimulatedFiles::default();
    let infos = Chain::new("m").blocks(48, 1);
    put(&open(&files, None), &infos);
    let path_of = |at: usize| {
        let hash = infos[at].key.hash.to_string();
        PathBuf::from(format!("/store/extents/{}/{hash}-0.kv", &hash[..2]))
    };
    files.tamper(&path_of(0), |bytes| bytes[8] = 9);
    files.tamper(&path_of(16), |bytes| *bytes = b"holiday pictures".to_vec());
    let renamed = PathBuf::from(format!("/store/extents/00/{}-3.kv", "00".repeat(32)));
    files.rename(&path_of(32), &renamed);
    let odd = PathBuf::from("/store/extents/readme.txt");
    let folder = StoreFolder::open_in(Path::new("/store"), Arc::new(files.clone())).unwrap();
    folder
        .files()
        .create_folder(renamed.parent().unwrap())
        .unwrap();
    folder.files().create(&odd).unwrap();

    let tier = open(&files, None);
    assert_eq!(contents(&tier), []);
    let notices = tier.take_notices().join("\n");
    for (path, what) in [
        (path_of(0), "newer Longview (format 9"),
        (path_of(16), "not a file of a Longview store"),
        (renamed, "not that of its contents"),
        (odd, "not a file of a Longview store"),
    ] {
        let line = notices
            .lines()
            .find(|line| line.contains(&*path.to_string_lossy()));
        assert!(
            line.is_some_and(|line| line.contains(what)),
            "{path:?}: {notices}"
        );
    }
    // A newer version's file is not overwritten even when this version has the same block.
    let error = tier.put(&infos[0], &block(&infos[0])).unwrap_err();
    assert!(error.to_string().contains("newer Longview"), "{error}");
    put(&tier, &infos[1..]);
    assert_held(&tier, &infos[1..]);
}

#[test]
fn fsck_names_what_is_wrong_and_removes_it_when_told_to() {
    let files = SimulatedFiles::default();
    let infos = Chain::new("m").blocks(64, 1);
    let tier = open(&files, None);
    put(&tier, &infos);
    let clean = tier.fsck(Repair::Report).unwrap();
    assert_eq!((clean.files, clean.blocks, clean.bytes), (4, 64, 64 * 3000));
    assert_eq!(clean.problems, []);
    drop(tier);
    let path_of = |at: usize| {
        let hash = infos[at].key.hash.to_string();
        PathBuf::from(format!("/store/extents/{}/{hash}-0.kv", &hash[..2]))
    };
    // The last byte of the payload, a slot record, a header, and a newer version.
    files.tamper(&path_of(0), |bytes| *bytes.last_mut().unwrap() ^= 1);
    files.tamper(&path_of(16), |bytes| bytes[300] ^= 1);
    files.tamper(&path_of(32), |bytes| bytes[20] ^= 1);
    files.tamper(&path_of(48), |bytes| bytes[8] = 2);
    let tier = open(&files, None);
    let odd = PathBuf::from("/store/extents/readme.txt");
    let folder = StoreFolder::open_in(Path::new("/store"), Arc::new(files.clone())).unwrap();
    folder.files().create(&odd).unwrap();
    let bad = tier.fsck(Repair::Report).unwrap();
    assert_eq!((bad.files, bad.blocks), (5, 30));
    let what = |path: &Path| {
        let problem = bad.problems.iter().find(|problem| problem.file == path);
        problem
            .map(|problem| problem.what.as_str())
            .unwrap_or_default()
    };
    assert_eq!(
        what(&path_of(0)),
        "block 15 is damaged: checksum of layer 2"
    );
    assert_eq!(what(&path_of(16)), "block 0 was not written to its end");
    assert!(what(&path_of(32)).contains("damaged (checksum of the header)"));
    assert!(what(&path_of(48)).contains("newer Longview"));
    assert!(what(&odd).contains("not a file of a Longview store"));
    assert!(
        bad.problems
            .iter()
            .all(|problem| problem.fate == Fate::Left)
    );
    let repaired = tier.fsck(Repair::Remove).unwrap();
    assert_eq!(
        repaired
            .problems
            .iter()
            .filter(|problem| problem.fate == Fate::Removed)
            .count(),
        4
    );
    let left = tier.fsck(Repair::Report).unwrap();
    assert_eq!((left.files, left.blocks, left.problems.len()), (3, 30, 1));
    assert_eq!(tier.usage().blocks, 30);
    put(&tier, &infos[..48]);
    assert_held(&tier, &infos[..48]);
    drop(tier);
    assert_held(&open(&files, None), &infos[..48]);
}

#[test]
fn a_disk_that_cannot_be_read_costs_what_is_on_it() {
    let files = SimulatedFiles::default();
    let infos = Chain::new("m").blocks(20, 1);
    let tier = open(&files, None);
    put(&tier, &infos);
    let hash = infos[0].key.hash.to_string();
    files.fail_reads_of(Some(&hash));
    let mut out = vec![0; 20 * 1000];
    let error = tier.read(&keys(&infos), 0, &mut out).unwrap_err();
    assert!(
        matches!(error, TierError::Missing(key) if key == infos[0].key),
        "{error}"
    );
    assert!(tier.take_notices()[0].contains(&hash));
    assert_held(&tier, &infos[16..]);
    files.fail_reads_of(None);
    put(&tier, &infos);
    assert_held(&tier, &infos);
}

#[test]
fn a_full_disk_refuses_and_changes_nothing() {
    for room in (0..9000).step_by(500) {
        let files = SimulatedFiles::default();
        let tier = open(&files, None);
        let mut chain = Chain::new("m");
        let infos = chain.blocks(15, 1);
        put(&tier, &infos);
        files.leave_room(Some(room));
        // What is there leads to what is put, so nothing can be evicted.
        let mut fresh = chain.blocks(4, 1);
        let mut stored = infos.clone();
        let error = loop {
            let info = fresh.remove(0);
            match tier.put(&info, &block(&info)) {
                Ok(()) => stored.push(info),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, TierError::Full { .. }), "{error}");
        assert_held(&tier, &stored);
        assert_eq!(contents(&tier).len(), stored.len());
        drop(tier);
        let tier = open(&files, None);
        assert_eq!(contents(&tier).len(), stored.len());
        assert!(
            files
                .paths()
                .iter()
                .all(|path| !path.starts_with("/store/tmp"))
        );
        files.leave_room(None);
        put(&tier, &fresh);
        assert_held(&tier, &stored);
    }
}

#[test]
fn a_full_disk_makes_room_from_what_it_holds() {
    let files = SimulatedFiles::default();
    let tier = open(&files, None);
    put(&tier, &Chain::new("old").blocks(64, 1));
    files.leave_room(Some(0));
    let infos = Chain::new("new").blocks(30, 1);
    put(&tier, &infos);
    assert_held(&tier, &infos);
    assert!(contents(&tier).len() < 64 + 30);
}

#[test]
fn a_read_only_store_is_read() {
    let files = SimulatedFiles::default();
    let infos = Chain::new("m").blocks(20, 1);
    put(&open(&files, None), &infos);
    files.make_read_only();
    let tier = open(&files, None);
    assert!(tier.read_only());
    assert!(tier.take_notices()[0].contains("cannot be written to"));
    assert_held(&tier, &infos);
    tier.touch(&keys(&infos));
    let _hold = tier.hold(&keys(&infos)).unwrap();
    let fresh = Chain::new("other").block(1);
    let error = tier.put(&fresh, &block(&fresh)).unwrap_err();
    assert!(matches!(error, TierError::ReadOnly { .. }));
    assert_eq!(tier.refused(), 1);
    assert!(tier.remove(&infos[0].key).is_err());
    assert!(tier.gc(0).is_err());
    assert_held(&tier, &infos);
}

#[test]
fn folders_that_are_no_stores_are_left_alone() {
    let open = |files: &SimulatedFiles| {
        StoreFolder::open_in(Path::new("/store"), Arc::new(files.clone())).map(|_| ())
    };
    let files = SimulatedFiles::default();
    open(&files).unwrap();
    open(&files).unwrap();
    files.tamper(Path::new("/store/STORE"), |bytes| {
        *bytes = b"longview store, format 2\n".to_vec()
    });
    let error = open(&files).unwrap_err().to_string();
    assert!(
        error.contains("format 2") && error.contains("format 1"),
        "{error}"
    );
    files.tamper(Path::new("/store/STORE"), |bytes| {
        *bytes = b"corner shop\n".to_vec()
    });
    assert!(matches!(open(&files), Err(TierError::NotAStore { .. })));

    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("thesis.tex"), "text").unwrap();
    let error = StoreFolder::open(home.path()).err().unwrap();
    assert!(matches!(error, TierError::NotAStore { .. }));
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 1);
    let file = home.path().join("thesis.tex");
    assert!(StoreFolder::open(&file).is_err());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let deep = home.path().join("a/b");
        StoreFolder::open(&deep).unwrap();
        assert_eq!(deep.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    }
}
