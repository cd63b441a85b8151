//! Contexts in a store: found by content, read back while a pass computes, within a memory limit;
//! always with the bits of a context that stays in memory.

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use common::*;
use longview_kernels::{Exec, Isa, Numerics};
use longview_kv::keep::{
    Allocate, Allocation, AttentionOf, AttentionShape, Budget, Keep, LayerView, Positions,
    Protected, Question, Score, Scores, When,
};
use longview_kv::read::{Part, Read, ReadPlan, RowQuery, Select};
use longview_kv::tier::{
    BlockInfo, BlockKey, DiskOptions, DiskTier, Hold, Origin, SpillTier, StoreFolder, Tier,
    TierError, TierUsage,
};
use longview_kv::{
    AttendWorkspace, Block, BlockHash, Context, KvError, KvForm, KvLayout, KvType, LayerState,
    Ledger, ReuseEnd, RopeSet, Sparse, Store,
};

const FULL: LayerState = LayerState::Full;
const WINDOW: LayerState = LayerState::Window { tokens: 150 };

/// A tier that keeps copies, and can be told to lose what it holds and to be slow.
#[derive(Default)]
struct Copies {
    blocks: Mutex<BTreeMap<BlockKey, (BlockInfo, Vec<u8>)>>,
    damaged: AtomicBool,
    /// Blocks of these places in their contexts are evicted when they are about to be held, one each
    /// time.
    vanishing: Mutex<Vec<u32>>,
    is_slow: AtomicBool,
}

impl Tier for Copies {
    fn name(&self) -> &str {
        "copies"
    }

    fn put(&self, info: &BlockInfo, block: &Arc<Block>) -> Result<(), TierError> {
        let copy = (info.clone(), block.bytes().to_vec());
        self.blocks.lock().unwrap().entry(info.key).or_insert(copy);
        Ok(())
    }

    fn find(&self, key: &BlockKey) -> Option<BlockInfo> {
        Some(self.blocks.lock().unwrap().get(key)?.0.clone())
    }

    fn after(&self, parent: &BlockHash) -> Vec<BlockInfo> {
        let blocks = self.blocks.lock().unwrap();
        let infos = blocks.values().map(|(info, _)| info);
        infos
            .filter(|info| info.parent == *parent && info.key.group == 0)
            .cloned()
            .collect()
    }

    fn read(&self, keys: &[BlockKey], layer: usize, out: &mut [u8]) -> Result<(), TierError> {
        let blocks = self.blocks.lock().unwrap();
        let slice = out.len() / keys.len();
        for (key, out) in keys.iter().zip(out.chunks_exact_mut(slice)) {
            let (info, bytes) = blocks.get(key).ok_or(TierError::Missing(*key))?;
            assert_eq!(slice, info.shape.layer_bytes);
            if self.damaged.load(Ordering::Relaxed) && info.index == 2 {
                return Err(TierError::Damaged {
                    place: "here".to_owned(),
                    key: *key,
                    what: "told so".to_owned(),
                });
            }
            out.copy_from_slice(&bytes[layer * slice..(layer + 1) * slice]);
        }
        Ok(())
    }

    fn touch(&self, _keys: &[BlockKey]) {}

    fn hold(&self, keys: &[BlockKey]) -> Result<Hold, TierError> {
        let Some(place) = self.vanishing.lock().unwrap().pop() else {
            return Ok(Hold::new(()));
        };
        let mut blocks = self.blocks.lock().unwrap();
        let key = keys.iter().find(|key| blocks[key].0.index == place);
        let key = *key.expect("such a block is to be taken over");
        blocks.remove(&key);
        Err(TierError::Missing(key))
    }

    fn remove(&self, key: &BlockKey) -> Result<(), TierError> {
        self.blocks.lock().unwrap().remove(key);
        Ok(())
    }

    fn sync(&self) -> Result<(), TierError> {
        Ok(())
    }

    fn usage(&self) -> TierUsage {
        TierUsage::default()
    }

    fn for_each(&self, visit: &mut dyn FnMut(&BlockInfo)) {
        self.blocks
            .lock()
            .unwrap()
            .values()
            .for_each(|(info, _)| visit(info));
    }

    fn read_rate(&self) -> Option<f64> {
        let slow = self.is_slow.load(Ordering::Relaxed);
        Some(if slow { 1.0 } else { 1e12 })
    }
}

struct World {
    layout: Arc<KvLayout>,
    tier: Arc<Copies>,
    exec: Exec,
    workspace: AttendWorkspace,
}

impl World {
    fn new(states: &[LayerState]) -> World {
        World::storing(states, KvType::F16.into())
    }

    fn storing(states: &[LayerState], form: KvForm) -> World {
        World {
            layout: mixed(states, form),
            tier: Arc::default(),
            exec: Exec::new(2, Isa::best(), Numerics::Default),
            workspace: AttendWorkspace::default(),
        }
    }

    /// A store as after a restart: nothing in memory, everything in the tier.
    fn store(&self, limit: u64) -> Arc<Store> {
        let tiers: Vec<Arc<dyn Tier>> = vec![self.tier.clone()];
        Arc::new(Store::new(Ledger::with_limit(limit), tiers))
    }

    fn context(&self, store: &Arc<Store>) -> Context {
        let origin = Arc::new(Origin {
            seed: BlockHash::seed(&[("model", b"1")]),
            model: "test".to_owned(),
            identity: String::new(),
        });
        Context::in_store(self.layout.clone(), store.clone(), origin, IDENTITY)
    }

    /// Reads `ids` from where the context stands, in chunks.
    fn read(
        &mut self,
        context: &mut Context,
        ids: &[u32],
        chunk: usize,
    ) -> Result<Vec<f32>, KvError> {
        let mut out = Vec::new();
        for ids in ids.chunks(chunk) {
            let rows = vec![(&mut *context, ids.len())];
            out.extend(try_step(rows, ids, &self.exec, &mut self.workspace)?);
        }
        Ok(out)
    }
}

fn ids(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| i * 7 % 1000).collect()
}

fn row(out: &[f32], at: usize) -> &[f32] {
    &out[at * HEADS * DIM..(at + 1) * HEADS * DIM]
}

/// Forms that hold first, older and latest tokens apart.
fn split_forms() -> [KvForm; 4] {
    let plain = KvForm::from(KvType::F16);
    let kivi = KvType::WHOLE[0];
    [
        KvForm {
            recent_tokens: 100,
            ..kivi.into()
        },
        KvForm {
            k: KvType::Q8,
            v: KvType::Sparse(Sparse { percent: 50 }),
            recent_tokens: 30,
            sink_tokens: 65,
            ..plain
        },
        KvForm {
            sink_tokens: 4,
            ..KvType::Q4.into()
        },
        KvForm {
            recent_tokens: 64,
            sink_tokens: 4,
            window_tokens: Some(500),
            ..kivi.into()
        },
    ]
}

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

/// The two most promising blocks and a row's own.
struct Best;

impl Select for Best {
    fn bounds(&self) -> Option<Part> {
        Some(Part::Tokens64)
    }

    fn reads_all(&self, _layer: usize, blocks: usize) -> bool {
        blocks < 3
    }

    fn select(&self, row: &mut RowQuery<'_>, plan: &mut ReadPlan) {
        for &block in row.best(0..row.own(), 2) {
            plan.add(block as usize..block as usize + 1);
        }
        plan.add(row.own()..row.own() + 1);
    }
}

#[test]
fn a_read_method_takes_prompts_from_the_store_and_leaves_answers_out_of_it() {
    let mut world = World::new(&[FULL, FULL]);
    let (ids, prompt) = (ids(6400), 6016);
    let read = Arc::new(Read {
        text: "best".to_owned(),
        select: Box::new(Best),
    });
    let mut free = world.context(&world.store(u64::MAX));
    free.read_by(&read).unwrap();
    free.answer_from(prompt);
    let expected = world.read(&mut free, &ids, 300).unwrap();
    assert_eq!(free.keys().len(), prompt / 64, "only the prompt is sealed");

    // What was read before is found: from the tier, within a memory limit, with the same bits.
    let store = world.store(1_000_000);
    let mut tight = world.context(&store);
    tight.read_by(&read).unwrap();
    assert_eq!(tight.attach(&ids).unwrap(), prompt, "the answer is not");
    tight.answer_from(prompt);
    let got = world
        .read(&mut tight, &ids[prompt..prompt + 200], 1)
        .unwrap();
    assert_eq!(got, expected[prompt * HEADS * DIM..][..got.len()]);
    assert!(tight.away_bytes() > 0 && !tight.is_exact());
    assert!(store.ledger().usage().peak <= 1_000_000);
    // Back at the prompt it is exact, and goes on into the store.
    tight.truncate(prompt).unwrap();
    let mut dense = world.context(&world.store(u64::MAX));
    world.read(&mut dense, &ids[..prompt + 64], 64).unwrap();
    tight.answer_from(usize::MAX);
    world
        .read(&mut tight, &ids[prompt..prompt + 64], 64)
        .unwrap();
    assert!(tight.is_exact());
    assert_eq!(tight.keys(), dense.keys());
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

/// Scores that are no numbers.
struct Nonsense;

impl Score for Nonsense {
    fn score(&self, _layer: &LayerView<'_>, scores: &mut Scores) -> Result<(), KvError> {
        (0..scores.heads()).for_each(|head| scores.head_mut(head).fill(f32::NAN));
        Ok(())
    }
}

impl Allocate for Nonsense {
    fn wanted(&self, _ask: &Allocation<'_>) -> Vec<Vec<f64>> {
        unreachable!("nothing is chosen")
    }
}

impl AttentionOf for Nonsense {
    fn shape(&self, _layer: usize) -> AttentionShape {
        AttentionShape {
            heads: HEADS,
            scale: 0.4,
            softcap: 0.0,
        }
    }

    fn rotate(&self, _layer: usize, _set: RopeSet, _positions: isize, _vectors: &mut [f32]) {}
}

#[test]
fn a_compression_that_fails_leaves_blocks_as_they_were() {
    let mut world = World::new(&[FULL, FULL]);
    let ids = ids(1281);
    let store = world.store(u64::MAX);
    let mut first = world.context(&store);
    world.read(&mut first, &ids, 400).unwrap();
    drop((first, store));

    let limit = 4_000_000;
    let store = world.store(limit);
    let mut context = world.context(&store);
    context.attach(&ids).unwrap();
    let keep = Arc::new(Keep {
        text: "nonsense".to_owned(),
        score: Box::new(Nonsense),
        allocate: Box::new(Nonsense),
        merge: None,
        budget: Budget::Pairs(100),
        protected: Protected::default(),
        when: When::default(),
        question: Question::Unseen,
        positions: Positions::Text,
        made_for: None,
        scored_as: None,
    });
    context.keep(&keep, ids.len(), &Nonsense).unwrap();
    let keys = context.keys();
    let error = context.compress(&world.exec, &Nonsense).unwrap_err();
    assert!(matches!(error, KvError::KeepRefused { .. }), "{error}");
    assert_eq!((context.keys(), keys.len()), (keys, 20));
    // They may leave memory again.
    assert_eq!(context.away_bytes(), 0);
    store.make_space(limit);
    assert_eq!(context.away_bytes(), context.kv_bytes());
}
