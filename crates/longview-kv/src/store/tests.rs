use std::path::Path;

use super::*;
use crate::tier::extent::block_bytes;
use crate::tier::simulated::SimulatedFiles;
use crate::tier::testing::{Chain, assert_held, keys, payload, put};
use crate::tier::{DiskOptions, DiskTier, SpillTier, StoreFolder, Syncing, TierUsage};

fn disk(files: &SimulatedFiles) -> Arc<dyn Tier> {
    let folder = StoreFolder::open_in(Path::new("/store"), Arc::new(files.clone())).unwrap();
    let options = DiskOptions {
        sync: Syncing::WhenAsked,
        ..DiskOptions::default()
    };
    Arc::new(DiskTier::open(&folder, options).unwrap())
}

/// Blocks that contexts refer to, in memory that the ledger accounts for.
fn seal(store: &Store, infos: &[BlockInfo]) -> Vec<Arc<Handle>> {
    let seal = |info: &BlockInfo| {
        let bytes = payload(info);
        let mut block = Block::zeroed(bytes.len(), store.ledger()).unwrap();
        block.bytes_mut().copy_from_slice(&bytes);
        store.seal(info.clone(), Arc::new(block))
    };
    infos.iter().map(seal).collect()
}

fn assert_read(store: &Store, infos: &[BlockInfo]) {
    for info in infos {
        for (layer, wanted) in payload(info).chunks(info.shape.layer_bytes).enumerate() {
            let mut out = vec![0; wanted.len()];
            store.read(&[info.key], layer, &mut out).unwrap();
            assert!(out == wanted);
        }
    }
}

#[test]
fn what_one_place_holds_is_not_searched_for_in_another() {
    let (near, far) = (SimulatedFiles::default(), SimulatedFiles::default());
    // A folder of a hundred other texts, each in a file with room left, of a process that is gone.
    let others = disk(&near);
    for text in 0..100 {
        put(&*others, &[Chain::new("m").block(text)]);
    }
    drop(others);
    let store = Store::new(Ledger::unlimited(), vec![disk(&near), disk(&far)]);
    let infos = Chain::new("m").blocks(40, 1000);
    put(&*store.tiers()[1], &infos);
    near.take_looks();
    let keys = keys(&infos);
    let mut out = vec![0; keys.len() * infos[0].shape.layer_bytes];
    for layer in 0..infos[0].shape.layers {
        store.prefetch(&keys, layer);
        store.read(&keys, layer, &mut out).unwrap();
    }
    assert_eq!(near.take_looks(), 0);
    // To put a block takes a look at where it would be, whatever else is there.
    put(&*store.tiers()[0], &[Chain::new("m").block(2000)]);
    assert!(near.take_looks() < 10);
}

#[test]
fn a_full_disk_is_still_read_from_and_lets_blocks_leave_memory() {
    let files = SimulatedFiles::default();
    let infos = Chain::new("m").blocks(8, 1);
    put(&*disk(&files), &infos);
    files.leave_room(Some(0));
    let home = tempfile::tempdir().unwrap();
    let spill: Arc<dyn Tier> = Arc::new(SpillTier::new(home.path().to_owned()));
    let bytes = block_bytes(infos[0].shape);
    let store = Store::new(Ledger::with_limit(8 * bytes), vec![disk(&files), spill]);
    let found: Vec<_> = infos.iter().map(|info| store.find(&info.key)).collect();
    let found: Option<Vec<_>> = found.into_iter().collect();
    assert!(store.take_over(&found.unwrap()).is_some());
    assert_read(&store, &infos);
    let told = store.take_warnings().join("\n");
    assert!(told.contains("note what is held"), "{told}");

    // In memory, and referred to: what cannot be held on the full disk goes elsewhere.
    let handles = seal(&store, &infos);
    assert!(store.make_space(6 * bytes));
    assert!(handles.iter().filter(|handle| handle.is_resident()).count() <= 2);
    assert_held(&*store.tiers()[1], &infos[4..]);
    assert_read(&store, &infos[..]);
}

#[test]
fn that_a_disk_is_full_is_told_once_and_not_with_every_block() {
    let files = SimulatedFiles::default();
    let tier = disk(&files);
    files.leave_room(Some(0));
    let store = Store::new(Ledger::unlimited(), vec![tier]);
    let _handles = seal(&store, &Chain::new("m").blocks(40, 1));
    let told = store.take_warnings();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("no room"), "{told:?}");
    let _handles = seal(&store, &Chain::new("m").blocks(40, 2));
    assert_eq!(store.take_warnings(), [""; 0]);
}

#[test]
fn what_could_not_be_read_for_a_while_stays_on_the_disk() {
    let files = SimulatedFiles::default();
    let infos = Chain::new("m").blocks(20, 1);
    put(&*disk(&files), &infos);
    let store = Store::new(Ledger::unlimited(), vec![disk(&files)]);
    let key = infos[0].key;
    assert!(store.find(&key).is_some());
    files.fail_reads_of(Some(&key.hash.to_string()));
    let mut out = vec![0; infos[0].shape.layer_bytes];
    assert!(store.read(&[key], 0, &mut out).is_err());
    files.fail_reads_of(None);
    // As a context does that is about to compute it again.
    store.forget(&key);
    assert_held(&*disk(&files), &infos);
}

#[test]
fn what_was_lost_and_is_computed_again_is_put_below_again_before_it_leaves_memory() {
    let home = tempfile::tempdir().unwrap();
    let spill: Arc<dyn Tier> = Arc::new(SpillTier::new(home.path().to_owned()));
    let infos = Chain::new("m").blocks(4, 1);
    let bytes = block_bytes(infos[0].shape);
    let store = Store::new(Ledger::with_limit(4 * bytes), vec![spill]);
    let handles = seal(&store, &infos);
    assert!(store.make_space(4 * bytes));
    store.tiers()[0].remove(&infos[1].key).unwrap();
    store.forget(&infos[1].key);
    assert_eq!(store.place_of(&infos[1].key), None);
    let again = seal(&store, &infos[1..2]);
    assert!(Arc::ptr_eq(&again[0], &handles[1]), "all share it again");
    assert!(store.make_space(4 * bytes));
    assert_read(&store, &infos);
}

/// A place that takes blocks, and loses those that wait in memory when that is needed.
#[derive(Default)]
struct Waiting(Mutex<Vec<(BlockInfo, Arc<Block>)>>);

impl Tier for Waiting {
    fn name(&self) -> &str {
        "waiting"
    }

    fn put(&self, info: &BlockInfo, block: &Arc<Block>) -> Result<(), TierError> {
        self.0.lock().unwrap().push((info.clone(), block.clone()));
        Ok(())
    }

    fn find(&self, key: &BlockKey) -> Option<BlockInfo> {
        let blocks = self.0.lock().unwrap();
        let known = blocks.iter().find(|(info, _)| info.key == *key);
        known.map(|(info, _)| info.clone())
    }

    fn resident(&self, key: &BlockKey) -> Option<Arc<Block>> {
        let blocks = self.0.lock().unwrap();
        let known = blocks.iter().find(|(info, _)| info.key == *key);
        known.map(|(_, block)| block.clone())
    }

    fn after(&self, _parent: &BlockHash) -> Vec<BlockInfo> {
        Vec::new()
    }

    fn read(&self, keys: &[BlockKey], _layer: usize, _out: &mut [u8]) -> Result<(), TierError> {
        Err(TierError::Missing(keys[0]))
    }

    fn touch(&self, _keys: &[BlockKey]) {}

    fn hold(&self, _keys: &[BlockKey]) -> Result<Hold, TierError> {
        Ok(Hold::new(()))
    }

    fn remove(&self, _key: &BlockKey) -> Result<(), TierError> {
        Ok(())
    }

    fn sync(&self) -> Result<(), TierError> {
        Ok(())
    }

    fn relieve(&self) {
        self.0.lock().unwrap().clear();
    }

    fn usage(&self) -> TierUsage {
        TierUsage::default()
    }

    fn for_each(&self, _visit: &mut dyn FnMut(&BlockInfo)) {}

    fn read_rate(&self) -> Option<f64> {
        None
    }
}

#[test]
fn what_waits_to_be_put_and_never_is_goes_to_another_place_before_it_leaves_memory() {
    let home = tempfile::tempdir().unwrap();
    let spill: Arc<dyn Tier> = Arc::new(SpillTier::new(home.path().to_owned()));
    let infos = Chain::new("m").blocks(8, 1);
    let bytes = block_bytes(infos[0].shape);
    let tiers: Vec<Arc<dyn Tier>> = vec![Arc::new(Waiting::default()), spill];
    let store = Store::new(Ledger::with_limit(8 * bytes), tiers);
    let handles = seal(&store, &infos);
    assert!(store.make_space(3 * bytes));
    for (info, handle) in infos.iter().zip(&handles) {
        let there = handle.is_resident() || store.place_of(&info.key).is_some();
        assert!(there, "block {} is lost", info.index);
    }
    assert_read(&store, &infos[5..]);
    assert_eq!(
        handles.iter().filter(|handle| handle.is_resident()).count(),
        5
    );
}
