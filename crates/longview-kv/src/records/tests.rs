use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::tier::files::Files;
use crate::tier::simulated::SimulatedFiles;
use crate::tier::testing::{Chain, keys};
use crate::tier::{Fate, Repair, StoreFolder};

fn folder(files: &SimulatedFiles) -> StoreFolder {
    StoreFolder::open_in(Path::new("/store"), Arc::new(files.clone())).unwrap()
}

fn record(label: Option<&str>) -> Record {
    let mut chain = Chain::new("m");
    let infos = chain.blocks(3, 7);
    let mut record = Record::new(&chain.origin, vec![7; 200], keys(&infos));
    record.summary.label = label.map(str::to_owned);
    record.summary.title = "book.txt".to_owned();
    record.summary.bytes = 9000;
    record.pieces = b"anything".to_vec();
    record
}

fn open_ids(records: &Records) -> Vec<String> {
    let listed = records.list().unwrap();
    let open = listed.into_iter().filter_map(|listed| match listed {
        Listed::Open(summary) => Some(summary.id),
        Listed::Locked { .. } => None,
    });
    open.collect()
}

#[test]
fn what_is_saved_is_found_by_label_and_beginning_of_id() {
    let files = SimulatedFiles::default();
    let records = Records::open(&folder(&files), b"");
    let (mut one, two) = (record(Some("holmes")), record(None));
    records.save(&one).unwrap();
    records.save(&two).unwrap();
    assert_eq!(records.find("holmes").unwrap(), one);
    assert_eq!(records.find(&two.summary.id[..8]).unwrap(), two);
    assert_eq!(records.find(&two.summary.id).unwrap(), two);
    for name in ["watson", "", "../../etc/passwd", "zz"] {
        assert!(matches!(
            records.find(name),
            Err(TierError::NoContext { .. })
        ));
        assert!(records.load(name).is_err());
        assert!(records.remove(name).is_err());
    }
    let mut taken = record(Some("holmes"));
    let error = records.save(&taken).unwrap_err();
    assert!(matches!(&error, TierError::LabelTaken { id, .. } if *id == one.summary.id));
    for label in ["", " a", "a\nb", &"x".repeat(201)] {
        taken.summary.label = Some(label.to_owned());
        assert!(matches!(
            records.save(&taken),
            Err(TierError::BadLabel { .. })
        ));
    }
    one.summary.label = Some("baskerville".to_owned());
    records.save(&one).unwrap();
    assert!(records.find("holmes").is_err());
    assert_eq!(records.find("baskerville").unwrap(), one);
    records.remove(&one.summary.id).unwrap();
    assert_eq!(open_ids(&records), [two.summary.id]);
}

#[test]
fn a_beginning_that_fits_several_is_refused_with_their_ids() {
    let files = SimulatedFiles::default();
    let records = Records::open(&folder(&files), b"");
    let mut made = Vec::new();
    for digit in ["a", "b"] {
        let mut record = record(None);
        record.summary.id = format!("0000000000{digit}{digit}");
        records.save(&record).unwrap();
        made.push(record.summary.id);
    }
    match records.find("0000").unwrap_err() {
        TierError::Ambiguous { mut ids, .. } => {
            ids.sort();
            assert_eq!(ids, made);
        }
        error => panic!("{error}"),
    }
}

#[test]
fn other_salts_are_locked() {
    let files = SimulatedFiles::default();
    let folder = folder(&files);
    let none = Records::open(&folder, b"");
    let tenant = Records::open(&folder, b"tenant");
    let mut secret = record(Some("secret"));
    secret.summary.pinned = true;
    tenant.save(&secret).unwrap();
    let open = record(None);
    none.save(&open).unwrap();
    for (records, own, other) in [(&none, &open, &secret), (&tenant, &secret, &open)] {
        assert_eq!(open_ids(records), [own.summary.id.as_str()]);
        let id = &other.summary.id;
        assert!(matches!(records.load(id), Err(TierError::NoContext { .. })));
        assert!(records.find(id).is_err());
        assert!(records.find("secret").is_ok() == (own == &secret));
        assert!(records.remove(id).is_err());
        let text = format!("{:?}", records.list().unwrap());
        assert!(
            text.contains(&format!("Locked {{ id: \"{id}\", bytes: 9000")),
            "{text}"
        );
    }
    assert!(!format!("{:?}", none.list().unwrap()).contains("secret"));
    // What is pinned is kept whoever asks.
    assert_eq!(none.pinned().len(), 3);
    assert_eq!(tenant.pinned(), none.pinned());
}

#[test]
fn contexts_expire_when_unused_and_never_because_a_clock_was_set_back() {
    let files = SimulatedFiles::default();
    let start = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    files.set_clock(start);
    let records = Records::open(&folder(&files), b"");
    let (mut brief, mut pinned) = (record(None), record(None));
    for one in [&mut brief, &mut pinned] {
        one.summary.time_to_live = Some(60);
        one.summary.used = 1_700_000_000;
    }
    pinned.summary.pinned = true;
    for one in [&brief, &pinned, &record(None)] {
        records.save(one).unwrap();
    }
    let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(seconds);
    for early in [0, 1_600_000_000, 1_700_000_000, 1_700_000_060] {
        assert!(records.expire(at(early)).unwrap().is_empty());
    }
    // A use while the clock is behind takes nothing away; a later one adds.
    files
        .set_modified(
            &records.path_of(&brief.summary.id).unwrap(),
            at(1_600_000_000),
        )
        .unwrap();
    assert_eq!(
        records.load(&brief.summary.id).unwrap().summary.used,
        1_700_000_000
    );
    files
        .set_modified(
            &records.path_of(&brief.summary.id).unwrap(),
            at(1_700_000_100),
        )
        .unwrap();
    assert!(records.expire(at(1_700_000_160)).unwrap().is_empty());
    assert_eq!(
        records.expire(at(1_700_000_161)).unwrap(),
        [brief.summary.id]
    );
    assert_eq!(open_ids(&records).len(), 2);
}

#[test]
fn using_one_is_noted() {
    let files = SimulatedFiles::default();
    let records = Records::open(&folder(&files), b"");
    let mut old = record(None);
    old.summary.used = 1_000;
    files.set_clock(UNIX_EPOCH + Duration::from_secs(1_000));
    records.save(&old).unwrap();
    assert_eq!(records.load(&old.summary.id).unwrap().summary.used, 1_000);
    records.touch(&old.summary.id, SystemTime::now());
    assert!(records.load(&old.summary.id).unwrap().summary.used > 1_700_000_000);
}

#[test]
fn the_last_used_comes_first_within_a_second() {
    let files = SimulatedFiles::default();
    let records = Records::open(&folder(&files), b"");
    let ids: Vec<String> = (0..6)
        .map(|_| {
            let one = record(None);
            records.save(&one).unwrap();
            one.summary.id
        })
        .collect();
    let second = UNIX_EPOCH + Duration::from_millis(4_000_000_000_900);
    for order in [[3, 0, 5, 1, 4, 2], [2, 4, 0, 3, 1, 5]] {
        for (place, one) in order.into_iter().enumerate() {
            records.touch(&ids[one], second - Duration::from_millis(place as u64));
        }
        assert_eq!(open_ids(&records), order.map(|one| ids[one].clone()));
    }
}

#[test]
fn other_models_are_refused_by_name() {
    let one = record(None);
    one.summary.check_origin(&Chain::new("m").origin).unwrap();
    let error = one
        .summary
        .check_origin(&Chain::new("other").origin)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("made by m (f16 keys and values), not by other")
    );
}

#[test]
fn titles_are_one_line_of_plain_letters() {
    assert_eq!(
        title_of("\n\nA  TALE\n\nby \u{1b}[31mnobody\t"),
        "A TALE by [31mnobody"
    );
    assert_eq!(title_of(&"long ".repeat(1000)).chars().count(), 60);
    assert_eq!(title_of(&"\u{fc}".repeat(1000)).chars().count(), 60);
    assert_eq!(title_of(" \n"), "");
    let files = SimulatedFiles::default();
    let records = Records::open(&folder(&files), b"");
    let mut one = record(None);
    one.summary.title = "notes\u{1b}]0;\n.txt".to_owned();
    records.save(&one).unwrap();
    let title = records.load(&one.summary.id).unwrap().summary.title;
    assert_eq!(title, "notes ]0; .txt");
}

#[test]
fn bad_files_are_skipped_by_name_and_no_flip_or_cut_is_believed() {
    let files = SimulatedFiles::default();
    let folder = folder(&files);
    let records = Records::open(&folder, b"");
    let one = record(Some("x"));
    records.save(&one).unwrap();
    let path = records.path_of(&one.summary.id).unwrap();
    let mut whole = Vec::new();
    files.tamper(&path, |bytes| whole = bytes.clone());
    for at in 0..whole.len() {
        files.tamper(&path, |bytes| bytes[at] ^= 1 << (at % 8));
        assert!(records.load(&one.summary.id).is_err(), "flip at {at}");
        assert_eq!(records.check(Repair::Report).unwrap().len(), 1);
        files.tamper(&path, |bytes| *bytes = whole[..at].to_vec());
        assert!(records.load(&one.summary.id).is_err(), "cut at {at}");
        assert!(records.list().unwrap().is_empty(), "cut at {at}");
        files.tamper(&path, |bytes| *bytes = whole.clone());
    }
    assert_eq!(records.load(&one.summary.id).unwrap(), one);
    folder.notices().take();
    let other = Path::new("/store/contexts/00000000000a.ctx");
    files.rename(&path, other);
    folder
        .files()
        .create(Path::new("/store/contexts/notes.txt"))
        .unwrap();
    assert!(records.list().unwrap().is_empty());
    assert_eq!(records.check(Repair::Report).unwrap().len(), 2);
    assert!(records.list().unwrap().is_empty());
    let notices = folder.notices().take();
    assert_eq!(notices.len(), 2, "each file is told of once: {notices:?}");
    for what in [
        "00000000000a.ctx: its name",
        "notes.txt: skipped: not a record",
    ] {
        assert!(notices.join("\n").contains(what), "{notices:?}");
    }
    files.tamper(other, |bytes| bytes[8] = 2);
    // As the next process does.
    let folder = self::folder(&files);
    let records = Records::open(&folder, b"");
    assert!(records.list().unwrap().is_empty());
    assert!(folder.notices().take().join("\n").contains("format 2"));
}

#[test]
fn a_repair_removes_what_is_lost_and_keeps_what_is_not() {
    let files = SimulatedFiles::default();
    let folder = folder(&files);
    let records = Records::open(&folder, b"");
    let made: Vec<Record> = (0..4).map(|_| record(None)).collect();
    for one in &made {
        records.save(one).unwrap();
    }
    let path = |of: usize| records.path_of(&made[of].summary.id).unwrap();
    files.tamper(&path(0), |bytes| *bytes.last_mut().unwrap() ^= 1);
    files.tamper(&path(1), |bytes| bytes[8] = 2);
    files.rename(&path(2), Path::new("/store/contexts/00000000000a.ctx"));
    let notes = Path::new("/store/contexts/notes.txt");
    folder.files().create(notes).unwrap();
    files.tamper(notes, |bytes| bytes.extend([7; 100]));
    let fates = |repair| {
        let problems = records.check(repair).unwrap();
        let mut fates: Vec<_> = problems.iter().map(|problem| problem.fate).collect();
        fates.sort_by_key(|fate| *fate as u8);
        fates
    };
    assert_eq!(fates(Repair::Report), [Fate::Left; 4]);
    let done = [Fate::Left, Fate::Removed, Fate::Removed, Fate::Renamed];
    assert_eq!(fates(Repair::Remove), done);
    assert_eq!(fates(Repair::Remove), [Fate::Left], "of a newer version");
    for kept in [2, 3] {
        assert_eq!(records.load(&made[kept].summary.id).unwrap(), made[kept]);
    }
    assert!(files.stat(&path(1)).is_ok() && files.stat(&path(0)).is_err());
}

#[test]
fn a_power_loss_leaves_the_old_record_or_the_new_one() {
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..100 {
        let mut files = SimulatedFiles::default();
        let mut one = record(Some("old"));
        Records::open(&folder(&files), b"").save(&one).unwrap();
        files = files.lose_power(&mut random);
        one.summary.label = Some("new".to_owned());
        files.leave_room(Some(random.u64(0..3000)));
        let saved = Records::open(&folder(&files), b"").save(&one).is_ok();
        files = files.lose_power(&mut random);
        let label = Records::open(&folder(&files), b"")
            .load(&one.summary.id)
            .unwrap()
            .summary
            .label;
        assert_eq!(label.as_deref(), Some(if saved { "new" } else { "old" }));
    }
}

#[test]
fn a_record_as_long_as_a_disk_is_not_read_into_memory() {
    let home = tempfile::tempdir().unwrap();
    let folder = StoreFolder::open(home.path()).unwrap();
    let records = Records::open(&folder, b"");
    let saved = record(None);
    records.save(&saved).unwrap();
    let path = std::fs::read_dir(home.path().join("contexts")).unwrap();
    let path = path.map(|entry| entry.unwrap().path()).next().unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_len(1 << 42).unwrap();
    let error = records.load(&saved.summary.id).unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
}
