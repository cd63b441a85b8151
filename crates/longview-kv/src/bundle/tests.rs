//! Bundles go to another machine whole, and hostile ones change nothing.

use std::io::Cursor;
use std::path::Path;

use super::*;
use crate::tier::simulated::SimulatedFiles;
use crate::tier::testing::{Chain, assert_held, contents, keys, put};
use crate::tier::{BlockShape, DiskOptions, DiskTier, StoreFolder, Syncing};

struct Machine {
    tier: Arc<dyn Tier>,
    folder: StoreFolder,
}

fn machine() -> Machine {
    let files = Arc::new(SimulatedFiles::default());
    let folder = StoreFolder::open_in(Path::new("/store"), files).unwrap();
    let options = DiskOptions {
        sync: Syncing::WhenAsked,
        ..DiskOptions::default()
    };
    Machine {
        tier: Arc::new(DiskTier::open(&folder, options).unwrap()),
        folder,
    }
}

impl Machine {
    fn records(&self) -> Records {
        Records::open(&self.folder, b"")
    }

    fn import(&self, bundle: &[u8], only: &[Arc<Origin>]) -> Result<Imported, BundleError> {
        let bundle = Cursor::new(bundle);
        import(
            bundle,
            &*self.tier,
            &self.records(),
            &Ledger::unlimited(),
            only,
        )
    }
}

/// A context of two groups, and the bundle of it.
fn exported() -> (Vec<BlockInfo>, Record, Vec<u8>) {
    let here = machine();
    let mut infos = Chain::new("m").blocks(19, 1);
    let window = Chain::new("m").group(1, infos[0].shape).blocks(19, 1);
    infos.extend_from_slice(&window[16..]);
    put(&*here.tier, &infos);
    put(&*here.tier, &Chain::new("other").blocks(3, 1));
    let mut record = Record::new(&infos[0].origin, vec![1; 19 * 64 + 5], keys(&infos));
    record.summary.label = Some("holmes".to_owned());
    record.pieces = vec![1, 2, 3];
    here.records().save(&record).unwrap();
    let mut bundle = Vec::new();
    export(&record, &[Arc::clone(&here.tier)], &mut bundle).unwrap();
    (infos, record, bundle)
}

#[test]
fn a_context_goes_to_another_machine() {
    let (infos, record, bundle) = exported();
    let there = machine();
    let imported = there.import(&bundle, &[]).unwrap();
    assert_eq!(imported.new_blocks, 22);
    assert_eq!(imported.record, record);
    assert_held(&*there.tier, &infos);
    assert_eq!(contents(&*there.tier).len(), 22);
    assert_eq!(there.records().find("holmes").unwrap(), record);
    // Again: nothing is new, and there is still one of it.
    let either = [Chain::new("n").origin, Arc::clone(&infos[0].origin)];
    let again = there.import(&bundle, &either).unwrap();
    assert_eq!((again.new_blocks, &again.record), (0, &record));
    assert_eq!(there.records().list().unwrap().len(), 1);
}

#[test]
fn what_moved_text_is_part_of_stays_behind() {
    let here = machine();
    let mut chain = Chain::new("m");
    let plain = chain.blocks(2, 1);
    chain.head = chain.head.derived("without tokens 130..190");
    let moved = chain.blocks(2, 1);
    put(&*here.tier, &[plain.clone(), moved.clone()].concat());
    let all = keys(&[plain.clone(), moved].concat());
    let record = Record::new(&plain[0].origin, vec![1; 4 * 64], all);
    let mut bundle = Vec::new();
    export(&record, &[here.tier], &mut bundle).unwrap();
    let there = machine();
    let imported = there.import(&bundle, &[]).unwrap();
    assert_eq!(
        (imported.new_blocks, &imported.record.tokens),
        (2, &record.tokens)
    );
    assert_eq!(imported.record.keys, keys(&plain));
    assert_eq!(contents(&*there.tier).len(), 2);
}

#[test]
fn nothing_that_is_there_is_overwritten() {
    let (infos, record, bundle) = exported();
    let there = machine();
    let mut other = Record::new(&infos[0].origin, vec![9], Vec::new());
    other.summary.id = record.summary.id.clone();
    other.summary.label = record.summary.label.clone();
    there.records().save(&other).unwrap();
    let imported = there.import(&bundle, &[]).unwrap();
    assert_eq!(imported.label_taken.as_deref(), Some("holmes"));
    assert_ne!(imported.record.summary.id, record.summary.id);
    assert_eq!(imported.record.tokens, record.tokens);
    assert_eq!(there.records().find("holmes").unwrap(), other);
}

#[test]
fn other_models_other_salts_and_missing_blocks_are_refused() {
    let (_, record, bundle) = exported();
    let there = machine();
    let foreign = ["n", "o"].map(|model| Chain::new(model).origin);
    let error = there.import(&bundle, &foreign).unwrap_err();
    assert!(error.to_string().contains("made by m"), "{error}");
    let salted = Records::open(&there.folder, b"tenant");
    let ledger = Ledger::unlimited();
    let error = import(Cursor::new(&bundle), &*there.tier, &salted, &ledger, &[]);
    assert!(error.unwrap_err().to_string().contains("salt"));
    assert_eq!(contents(&*there.tier), []);
    let error = export(&record, &[Arc::clone(&there.tier)], Vec::new()).unwrap_err();
    assert!(matches!(error, BundleError::Tier(TierError::Missing(_))));
    let ledger = Ledger::with_limit(100);
    let error = import(
        Cursor::new(&bundle),
        &*there.tier,
        &there.records(),
        &ledger,
        &[],
    );
    assert!(matches!(error, Err(BundleError::Memory(_))));
}

/// The bundle again, with its entries changed.
fn rebuilt(bundle: &[u8], change: impl Fn(&mut Vec<(String, Vec<u8>)>)) -> Vec<u8> {
    let mut archive = tar::Archive::new(bundle);
    let mut files = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        files.push((name, bytes));
    }
    change(&mut files);
    let mut out = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        // Names that the library would refuse to write.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        out.append(&header, &bytes[..]).unwrap();
    }
    out.into_inner().unwrap()
}

/// The bundle with a block more, whose header and entry claim the largest block there may be.
fn claiming_terabytes(bundle: &[u8]) -> Vec<u8> {
    let mut info = Chain::new("m").block(2);
    info.shape = BlockShape {
        layers: 4096,
        layer_bytes: 1 << 30,
    };
    let header = Header {
        capacity: 1,
        ..Header::beginning_with(&info)
    };
    let slot = Slot {
        hash: info.key.hash,
        parent: info.parent,
        tokens: Arc::clone(&info.tokens),
        seconds: 1.0,
        sums: vec![0; info.shape.layers].into(),
    };
    let mut file = header.encode();
    file.extend(slot.encode(&header, 0));
    file.resize(header.payload_offset() as usize, 0);
    let mut entry = tar::Header::new_gnu();
    entry.set_path(name_of(&info.key)).unwrap();
    entry.set_size(header.payload_offset() + header.block_bytes());
    entry.set_cksum();
    // In place of the two empty records at the end.
    let mut out = bundle[..bundle.len() - 1024].to_vec();
    out.extend(entry.as_bytes());
    out.extend(file);
    out
}

#[test]
fn hostile_bundles_change_nothing() {
    let (infos, _, bundle) = exported();
    let there = machine();
    let refused = |what: &str, bundle: &[u8]| {
        let error = match there.import(bundle, &[]) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{what} was taken"),
        };
        assert!(error.contains(what), "{error}");
        assert_eq!(contents(&*there.tier), []);
        assert!(there.records().list().unwrap().is_empty());
    };
    type Files = Vec<(String, Vec<u8>)>;
    type Change<'a> = (&'static str, &'a dyn Fn(&mut Files));
    let name = |hash: &str| format!("blocks/{hash}-0.kv");
    let changes: [Change; 10] = [
        ("it has no longview-bundle", &|files| files.clear()),
        ("format 2", &|files| files[0].1 = b"2".to_vec()),
        ("stands where longview-bundle belongs", &|files| {
            files.swap(0, 1)
        }),
        ("damaged or cut short", &|files| files[1].1[300] ^= 1),
        ("is missing", &|files| drop(files.pop())),
        ("is there twice", &|files| files.push(files[5].clone())),
        ("payload is damaged", &|files| {
            *files[9].1.last_mut().unwrap() ^= 1
        }),
        ("name is not that of its contents", &|files| {
            files[9].0 = "blocks/../../../etc/passwd".to_owned();
        }),
        ("name is not that of its contents", &|files| {
            files[9].0 = name(&"0".repeat(64))
        }),
        ("length is not what its header says", &|files| {
            files[9].1.push(0)
        }),
    ];
    for (what, change) in changes {
        refused(what, &rebuilt(&bundle, change));
    }
    let mut foreign = Vec::new();
    let here = machine();
    let others = Chain::new("other").blocks(1, 1);
    put(&*here.tier, &others);
    let record = Record::new(&others[0].origin, vec![1; 64], keys(&others));
    export(&record, &[here.tier], &mut foreign).unwrap();
    let extra = rebuilt(&bundle, |files| {
        let mut archive = tar::Archive::new(&foreign[..]);
        let mut entry = archive.entries().unwrap().nth(2).unwrap().unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        files.push((name(&others[0].key.hash.to_string()), bytes));
    });
    refused("is not called what the context's text says", &extra);
    // Blocks under names of another seed, or of another text, that a record claims.
    let planted = |origin: &Origin, tokens: Vec<u32>, infos: &[BlockInfo]| {
        let here = machine();
        put(&*here.tier, infos);
        let honest = Record::new(&infos[0].origin, vec![1; 64], keys(infos));
        let mut bundle = Vec::new();
        export(&honest, &[here.tier], &mut bundle).unwrap();
        let claimed = Record::new(origin, tokens, keys(infos));
        rebuilt(&bundle, |files| files[1].1 = encode_record(&claimed))
    };
    let mine = Chain::new("m").blocks(1, 1);
    let theirs = planted(&mine[0].origin, vec![1; 64], &others);
    refused("is not called what the context's text says", &theirs);
    let other_text = planted(&mine[0].origin, vec![2; 64], &mine);
    refused("is not called what the context's text says", &other_text);
    refused(
        "length is not what its header says",
        &claiming_terabytes(&bundle),
    );
    refused("it has no longview-bundle", b"");
    refused("not a Longview bundle", &[7; 4096]);
    // Cut anywhere: the end of an archive is two empty records that need not be there.
    for len in (0..bundle.len() - 1024 - 3000).step_by(509) {
        assert!(there.import(&bundle[..len], &[]).is_err(), "cut at {len}");
    }
    assert_eq!(contents(&*there.tier), []);
    let mut random = fastrand::Rng::with_seed(2);
    for _ in 0..300 {
        let mut flipped = bundle.clone();
        let at = random.usize(0..flipped.len());
        flipped[at] ^= 1 << random.u8(0..8);
        let there = machine();
        // Padding and unused fields of the archive may be flipped; contents may not.
        if there.import(&flipped, &[]).is_ok() {
            assert_held(&*there.tier, &infos);
        } else {
            assert_eq!(contents(&*there.tier), []);
        }
    }
}
