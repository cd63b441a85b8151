//! Contexts in a store: found by content, read back while a pass computes, within a memory limit;
//! always with the bits of a context that stays in memory.

#[path = "../common/mod.rs"]
mod common;
mod methods;
mod world;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::*;
use longview_kv::tier::{DiskOptions, DiskTier, SpillTier, StoreFolder, Tier, TierError};
use longview_kv::{Context, KvError, KvForm, KvType, LayerState, Ledger, ReuseEnd, Store};
use world::{World, ids, row, split_forms};

pub(crate) const FULL: LayerState = LayerState::Full;
const WINDOW: LayerState = LayerState::Window { tokens: 150 };

#[test]
fn a_restart_reuses_whole_blocks_and_gives_the_same_bits() {
    let kinds = [
        [FULL, FULL],
        [FULL, WINDOW],
        [WINDOW, FULL],
        [WINDOW, WINDOW],
    ];
    let plain = kinds.map(|states| (states, KvForm::from(KvType::F16)));
    let split = split_forms()
        .into_iter()
        .flat_map(|form| [([FULL, FULL], form), ([WINDOW, FULL], form)]);
    for (states, form) in plain.into_iter().chain(split) {
        let mut world = World::storing(&states, form);
        let ids = ids(2500);
        let store = world.store(u64::MAX);
        let mut first = world.context(&store);
        let expected = world.read(&mut first, &ids, 512).unwrap();
        drop((first, store));

        let store = world.store(u64::MAX);
        let mut again = world.context(&store);
        assert_eq!(again.attach(&ids[..2499]).unwrap(), 2496);
        assert_eq!(again.away_bytes(), again.kv_bytes());
        let tail = world.read(&mut again, &ids[2496..], 512).unwrap();
        assert_eq!(row(&tail, 3), row(&expected, 2499), "{states:?} {form}");
        assert_eq!(again.away_bytes(), 0, "what was read stays in memory");
        // Everything is in memory now: nothing is read again.
        let read = store.counts().read_bytes;
        let mut fork = again.fork();
        world.read(&mut fork, &[1, 2, 3], 1).unwrap();
        assert_eq!(store.counts().read_bytes, read);
    }
}

#[test]
fn contexts_in_split_forms_are_taken_up_at_any_block_and_parted_ones_too() {
    for form in split_forms() {
        let mut world = World::storing(&[FULL, FULL], form);
        let ids = ids(1500);
        let store = world.store(u64::MAX);
        let mut first = world.context(&store);
        let expected = world.read(&mut first, &ids, 200).unwrap();
        drop((first, store));
        for end in [64, 127, 320, 1000] {
            let store = world.store(u64::MAX);
            let mut again = world.context(&store);
            let held = again.attach(&ids[..end]).unwrap();
            assert_eq!(held, end - end % 64, "{form}");
            let got = world.read(&mut again, &ids[held..end + 9], 5).unwrap();
            assert_eq!(
                row(&got, end + 8 - held),
                row(&expected, end + 8),
                "{form} at {end}"
            );
            // Back inside of what was taken over, and on.
            let back = again.len() - 3;
            again.truncate(back).unwrap();
            let got = world.read(&mut again, &ids[back..end + 20], 64).unwrap();
            assert_eq!(
                row(&got, end + 19 - back),
                row(&expected, end + 19),
                "{form}"
            );
        }
    }
}

#[test]
fn within_a_memory_limit_blocks_go_and_come_back_with_the_same_bits() {
    let [kivi, exempt, ..] = split_forms();
    let f16 = KvForm::from(KvType::F16);
    for (states, form, limit) in [
        ([FULL, FULL], f16, 1_000_000),
        ([FULL, WINDOW], f16, 1_000_000),
        ([FULL, FULL], kivi, 700_000),
        ([FULL, FULL], exempt, 1_000_000),
    ] {
        let mut world = World::storing(&states, form);
        let ids = ids(6000);
        let unlimited = world.store(u64::MAX);
        let mut free = world.context(&unlimited);
        let expected = world.read(&mut free, &ids, 300).unwrap();
        let whole = free.kv_bytes();
        drop((free, unlimited));
        world.tier.blocks.lock().unwrap().clear();

        assert!(whole > limit, "{form}: {whole}");
        let store = world.store(limit);
        let mut tight = world.context(&store);
        let got = world.read(&mut tight, &ids, 300).unwrap();
        assert!(got == expected, "{form}: prefill within {limit} bytes");
        assert!(tight.away_bytes() > 0 && store.counts().demoted_bytes > 0);
        // Decode, in a fork.
        let mut fork = tight.fork();
        let one = world.read(&mut fork, &[5], 1).unwrap();
        let unlimited = world.store(u64::MAX);
        let mut free = world.context(&unlimited);
        assert_eq!(free.attach(&ids).unwrap(), 5952);
        world.read(&mut free, &ids[5952..], 64).unwrap();
        assert_eq!(one, world.read(&mut free, &[5], 1).unwrap());
        assert!(store.ledger().usage().peak <= limit);
    }
}

#[test]
fn what_one_context_relies_on_does_not_go_for_another() {
    let mut world = World::new(&[FULL, FULL]);
    let texts = [ids(4000), ids(4000).into_iter().map(|id| id + 1).collect()];
    let expected = texts.each_ref().map(|ids| {
        let mut free = world.context(&world.store(u64::MAX));
        world.read(&mut free, ids, 300).unwrap();
        world.read(&mut free, &[5], 1).unwrap()
    });
    // A folder with room for a few blocks, and a place for what it does not take.
    let home = tempfile::tempdir().unwrap();
    let folder = StoreFolder::open(&home.path().join("store")).unwrap();
    let options = DiskOptions {
        max_bytes: Some(600_000),
        ..DiskOptions::default()
    };
    let disk = DiskTier::open(&folder, options).unwrap();
    let spill = SpillTier::new(home.path().to_owned());
    let tiers: Vec<Arc<dyn Tier>> = vec![Arc::new(disk), Arc::new(spill)];
    let store = Arc::new(Store::new(Ledger::with_limit(1_000_000), tiers));
    let mut contexts = [world.context(&store), world.context(&store)];
    for (context, ids) in contexts.iter_mut().zip(&texts) {
        world.read(context, ids, 300).unwrap();
    }
    for (context, expected) in contexts.iter_mut().zip(&expected) {
        assert!(context.away_bytes() > 0);
        let mut fork = context.fork();
        assert_eq!(world.read(&mut fork, &[5], 1).unwrap(), *expected);
    }
    let told = store.take_warnings().join("\n");
    assert!(
        told.contains("--cache-max") && told.contains("until the program ends"),
        "{told}"
    );
}

#[test]
fn what_is_evicted_while_it_is_taken_over_costs_what_follows_it_alone() {
    for states in [[FULL, FULL], [FULL, WINDOW]] {
        let mut world = World::new(&states);
        let ids = ids(640);
        world
            .read(&mut world.context(&world.store(u64::MAX)), &ids, 100)
            .unwrap();
        // The last goes first.
        *world.tier.vanishing.lock().unwrap() = vec![6, 9];
        let mut context = world.context(&world.store(u64::MAX));
        assert_eq!(context.attach(&ids).unwrap(), 6 * 64);
        let mut free = world.context(&World::new(&states).store(u64::MAX));
        world.read(&mut free, &ids[..384], 100).unwrap();
        let expected = world.read(&mut free, &ids[384..], 100).unwrap();
        let got = world.read(&mut context, &ids[384..], 100).unwrap();
        assert_eq!(got, expected);
    }
}

#[test]
fn what_takes_longer_to_read_than_to_compute_is_left_and_said_to_be() {
    let mut world = World::new(&[FULL, FULL]);
    let ids = ids(640);
    world
        .read(&mut world.context(&world.store(u64::MAX)), &ids, 100)
        .unwrap();
    let held = |store: &Arc<Store>, world: &World| {
        let explained = world.context(store).explain(&ids).unwrap();
        let held = world.context(store).attach(&ids).unwrap();
        assert_eq!(explained.reused_tokens, held);
        (held, explained.end)
    };
    let store = world.store(u64::MAX);
    world.tier.is_slow.store(true, Ordering::Relaxed);
    let slow = ReuseEnd::SlowToRead { stored_tokens: 640 };
    assert_eq!(held(&store, &world), (0, slow.clone()));
    // What is in memory is taken all the same.
    let mut first = world.context(&store);
    world.read(&mut first, &ids[..200], 100).unwrap();
    assert_eq!(held(&store, &world), (192, slow));
    world.tier.is_slow.store(false, Ordering::Relaxed);
    assert_eq!(held(&store, &world), (640, ReuseEnd::Tail));
}

#[test]
fn equal_texts_are_held_once_and_parted_ones_share_what_they_have_in_common() {
    let mut world = World::new(&[FULL, FULL]);
    let store = world.store(u64::MAX);
    let ids = ids(640);
    let (mut a, mut b) = (world.context(&store), world.context(&store));
    world.read(&mut a, &ids, 640).unwrap();
    let held = store.ledger().usage().kv;
    // Computed again although it is there: only one copy stays.
    world.read(&mut b, &ids, 64).unwrap();
    assert_eq!(store.ledger().usage().kv, held);

    let mut other = ids.clone();
    other[300] = 99_999;
    let mut c = world.context(&store);
    assert_eq!(c.attach(&other).unwrap(), 256);
    let explained = c.explain(&other).unwrap();
    assert_eq!(explained.places, ["memory"; 4]);
    assert_eq!(
        explained.end,
        ReuseEnd::Differs {
            token: 300,
            stored: ids[300..320].to_vec()
        }
    );
    assert!(matches!(c.attach(&ids[1..]), Err(KvError::Parted)));
}

#[test]
fn a_block_that_cannot_be_read_is_computed_again() {
    for (states, form) in [
        ([FULL, FULL], KvType::F16.into()),
        ([FULL, WINDOW], KvType::F16.into()),
        ([FULL, FULL], split_forms()[1]),
    ] {
        let mut world = World::storing(&states, form);
        let ids = ids(700);
        let store = world.store(u64::MAX);
        let mut first = world.context(&store);
        let expected = world.read(&mut first, &ids, 700).unwrap();
        drop((first, store));

        world.tier.damaged.store(true, Ordering::Relaxed);
        let store = world.store(u64::MAX);
        let mut again = world.context(&store);
        again.attach(&ids[..699]).unwrap();
        let error = world.read(&mut again, &ids[640..], 64).unwrap_err();
        let KvError::Lost(TierError::Damaged { key, .. }) = error else {
            panic!("{error}");
        };
        assert_eq!(again.len(), 640, "a failed pass changes nothing");
        let forgotten = again.lose(&key);
        assert!(again.len() <= 128 && again.len() + forgotten.len() == 640);
        let from = again.len();
        world.tier.damaged.store(false, Ordering::Relaxed);
        let got = world.read(&mut again, &ids[from..], 100).unwrap();
        assert_eq!(row(&got, 699 - from), row(&expected, 699));
    }
}

#[test]
fn a_block_that_one_context_computes_again_is_held_once_for_all() {
    let mut world = World::new(&[FULL, FULL]);
    let ids = ids(641);
    let mut free = world.context(&world.store(u64::MAX));
    world.read(&mut free, &ids[..640], 640).unwrap();
    let block = free.kv_bytes() / 10;
    let expected = world.read(&mut free, &ids[640..], 1).unwrap();

    let store = world.store(u64::MAX);
    let mut one = world.context(&store);
    assert_eq!(one.attach(&ids).unwrap(), 640);
    let mut fork = one.fork();
    let mut other = world.context(&store);
    assert_eq!(other.attach(&ids).unwrap(), 640);
    let key = one.keys()[2];
    world.tier.remove(&key).unwrap();
    let error = world.read(&mut one, &ids[640..], 1).unwrap_err();
    assert!(
        matches!(error, KvError::Lost(TierError::Missing(lost)) if lost == key),
        "{error}"
    );
    one.lose(&key);
    let held = one.len();
    assert_eq!(held, 128);
    let got = world.read(&mut one, &ids[held..], 64).unwrap();
    assert_eq!(row(&got, 640 - held), expected);
    // The others have it from there, in memory, and nobody a second time.
    for context in [&mut fork, &mut other] {
        assert_eq!(world.read(context, &ids[640..], 1).unwrap(), expected);
    }
    assert_eq!(store.ledger().usage().kv, (10 + 3) * block);
}

#[test]
fn several_contexts_in_one_pass_are_read_back_each_in_its_place() {
    let mut world = World::new(&[FULL, WINDOW]);
    let store = world.store(u64::MAX);
    let texts = [ids(1500), ids(1500).into_iter().map(|id| id + 1).collect()];
    let mut contexts = [world.context(&store), world.context(&store)];
    for (context, ids) in contexts.iter_mut().zip(&texts) {
        world.read(context, ids, 1500).unwrap();
    }
    let step = |world: &mut World, contexts: &mut [Context; 2]| {
        let [a, b] = contexts;
        let rows = vec![(a, 3), (b, 3)];
        try_step(rows, &[1, 2, 3], &world.exec, &mut world.workspace).unwrap()
    };
    let expected = step(&mut world, &mut contexts);

    let store = world.store(u64::MAX);
    let mut contexts = [world.context(&store), world.context(&store)];
    for (context, ids) in contexts.iter_mut().zip(&texts) {
        let held = context.attach(ids).unwrap();
        assert_eq!(held, 1472);
        world.read(context, &ids[held..], 7).unwrap();
    }
    assert_eq!(step(&mut world, &mut contexts), expected);
}

#[test]
fn a_block_that_many_forks_wait_for_comes_back_once() {
    let mut world = World::new(&[FULL, FULL]);
    let ids = ids(1281);
    let store = world.store(u64::MAX);
    let mut first = world.context(&store);
    world.read(&mut first, &ids, 400).unwrap();
    let whole = first.kv_bytes();
    drop((first, store));

    let store = world.store(u64::MAX);
    let mut again = world.context(&store);
    assert_eq!(again.attach(&ids).unwrap(), 1280);
    let mut forks: Vec<Context> = (0..8).map(|_| again.fork()).collect();
    let rows = forks.iter_mut().map(|fork| (fork, 1)).collect();
    try_step(rows, &ids[1280..], &world.exec, &mut world.workspace).unwrap();
    assert_eq!(again.away_bytes(), 0);
    let peak = store.ledger().usage().peak;
    assert!(
        peak < 2 * whole + whole / 2,
        "{peak} bytes at most, {whole} of them needed"
    );
}
