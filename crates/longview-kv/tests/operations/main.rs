//! Random sequences of operations on contexts in a store with little memory, against lists of
//! tokens: contents agree, forks do not disturb each other, the memory limit holds, contexts outlive
//! their process and leave for another folder, and nothing is left when all is gone. `pages` counts.

mod pages;
#[path = "../rotated/mod.rs"]
mod rotated;

use std::path::Path;
use std::sync::Arc;

use longview_kv::bundle::{export, import};
use longview_kv::records::{Record, Records};
use longview_kv::tier::{DiskOptions, DiskTier, Origin, StoreFolder, Syncing, Tier};
use longview_kv::{
    BlockHash, Context, KvError, KvLayout, KvType, LayerLayout, LayerState, Ledger, ReuseEnd, Store,
};
use proptest::prelude::*;
use rotated::{DIM, IDENTITY, Reader, SCALE, THETA, vector};

const WINDOW: usize = 200;

/// Two layers of 64 tokens with one head of 16 channels in single precision.
const BLOCK: u64 = 2 * 64 * 2 * 16 * 4;

/// Room for the buffers that blocks are read back into, and for a dozen blocks: those of a pass, and the
/// last one of each context.
const LIMIT: u64 = 3 * 16 * BLOCK / 2 + 12 * BLOCK;

/// The most tokens of one pass.
const CHUNK: usize = 300;

#[derive(Clone, Debug)]
enum Operation {
    /// Reads tokens, mostly ones that other contexts read as well.
    Read {
        count: usize,
        text: u32,
    },
    Fork,
    Truncate {
        keep: usize,
    },
    Remove {
        start: usize,
        count: usize,
    },
    /// Takes tokens over from another context, to other positions.
    Move {
        start: usize,
        count: usize,
    },
    /// Finds that a block on disk cannot be read.
    Lose {
        block: usize,
    },
    Drop,
    /// Opens a context for what another one has read.
    Open,
    /// Saves all, ends the process, and opens them in another by their records.
    Restart,
    /// Takes a context to another folder in one file.
    Export,
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        5 => (1usize..300, 0u32..3).prop_map(|(count, text)| Operation::Read { count, text }),
        2 => Just(Operation::Fork),
        2 => (0usize..1000).prop_map(|keep| Operation::Truncate { keep }),
        1 => (0usize..1000, 1usize..200)
            .prop_map(|(start, count)| Operation::Remove { start, count }),
        2 => (0usize..600, 1usize..300).prop_map(|(start, count)| Operation::Move { start, count }),
        1 => (0usize..40).prop_map(|block| Operation::Lose { block }),
        1 => Just(Operation::Drop),
        2 => Just(Operation::Open),
        1 => Just(Operation::Restart),
        1 => Just(Operation::Export),
    ]
}

/// A context and the tokens it must hold.
struct Pair {
    context: Context,
    tokens: Vec<u32>,
}

struct World {
    reader: Reader,
    layout: Arc<KvLayout>,
    store: Arc<Store>,
    origin: Arc<Origin>,
    /// Whether a block is gone that contexts are found by: one was lost by a context that has it in
    /// another place, and computes it again as something else.
    has_gap: bool,
}

impl World {
    fn new(state: LayerState, ledger: &Ledger, folder: &Path) -> World {
        World {
            reader: Reader::new(1),
            layout: layout(state),
            store: Arc::new(Store::new(ledger.clone(), vec![disk(folder)])),
            origin: origin(),
            has_gap: false,
        }
    }

    fn context(&self) -> Context {
        context(&self.layout, &self.store, &self.origin)
    }

    /// Reads `ids`, and what turns out to be lost before; the attention of the last of them in both layers.
    fn read(&mut self, context: &mut Context, ids: &[u32]) -> Vec<Vec<f32>> {
        let (mut rest, mut last) = (ids.to_vec(), Vec::new());
        while !rest.is_empty() {
            let chunk = &rest[..rest.len().min(CHUNK)];
            match self.reader.read(context, chunk, 2) {
                Ok(outs) => {
                    let of_last = |out: Vec<f32>| out[out.len() - DIM..].to_vec();
                    last = outs.into_iter().map(of_last).collect();
                    rest.drain(..chunk.len());
                }
                Err(KvError::Lost(error)) => {
                    self.has_gap |= !context.is_exact();
                    let again = context.lose(&error.key().unwrap());
                    assert!(!again.is_empty(), "{error} is none of its blocks");
                    rest.splice(..0, again);
                }
                Err(error) => panic!("{error}"),
            }
        }
        last
    }

    /// What `asked` gives for one more token, in a fork that is then forgotten, beside the definition.
    fn check(&mut self, asked: &Context, tokens: &[u32], state: LayerState) {
        let mut fork = asked.fork();
        let got = self.read(&mut fork, &[77_777]);
        let tokens = [tokens, &[77_777]].concat();
        let window = match state {
            LayerState::Window { tokens } => tokens,
            _ => usize::MAX,
        };
        for (got, window) in got.iter().zip([usize::MAX, window]) {
            for (got, expected) in got.iter().zip(oracle(&tokens, window)) {
                assert!(
                    (f64::from(*got) - expected).abs() < 1e-4,
                    "{got} {expected}"
                );
            }
        }
    }

    /// A context with what the store has of `tokens`, which were read `exactly` or not.
    fn open(&self, tokens: &[u32], exactly: bool) -> Pair {
        let mut context = self.context();
        let known = context.explain(tokens).unwrap();
        let held = context.attach(tokens).unwrap();
        assert_eq!(context.tokens(), &tokens[..held]);
        if exactly && !self.has_gap {
            let found = match known.end {
                // Little is computed here, in less time than a disk may take.
                ReuseEnd::SlowToRead { stored_tokens } => stored_tokens,
                _ => held,
            };
            assert_eq!(found, tokens.len() / 64 * 64, "all full blocks are found");
        }
        Pair {
            context,
            tokens: tokens[..held].to_vec(),
        }
    }

    /// The contexts of `pairs` after all of them were saved and the process has ended.
    fn restart(&mut self, pairs: Vec<Pair>, folder: &Path) -> Vec<Pair> {
        let records = Records::open(&StoreFolder::open(folder).unwrap(), &[]);
        let save = |pair: Pair| {
            let record = self.record(&pair);
            records.save(&record).unwrap();
            (record.summary.id, pair.context.is_exact())
        };
        let saved: Vec<(String, bool)> = pairs.into_iter().map(save).collect();
        let ledger = self.store.ledger().clone();
        self.store = Arc::new(Store::new(ledger.clone(), Vec::new()));
        assert_eq!(ledger.usage().total(), 0, "nothing of before is left");
        self.store = Arc::new(Store::new(ledger, vec![disk(folder)]));
        let records = Records::open(&StoreFolder::open(folder).unwrap(), &[]);
        let open = |(id, exactly): (String, bool)| {
            let record = records.load(&id).unwrap();
            records.remove(&id).unwrap();
            self.open(&record.tokens, exactly)
        };
        saved.into_iter().map(open).collect()
    }

    fn record(&self, pair: &Pair) -> Record {
        let tokens = pair.context.tokens().to_vec();
        Record::new(&self.origin, tokens, pair.context.keys())
    }

    /// Takes a context to another folder, where another process opens it.
    fn take_elsewhere(&self, pair: &Pair, state: LayerState) {
        let record = self.record(pair);
        let mut file = std::io::Cursor::new(Vec::new());
        export(&record, self.store.tiers(), &mut file).unwrap();
        file.set_position(0);
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::with_limit(LIMIT);
        let mut other = World::new(state, &ledger, folder.path());
        let records = Records::open(&StoreFolder::open(folder.path()).unwrap(), &[]);
        let tier = other.store.tiers()[0].clone();
        let imported = import(file, &*tier, &records, &ledger, &[]).unwrap();
        assert_eq!(imported.record.tokens, pair.tokens);
        let opened = other.open(&imported.record.tokens, pair.context.is_exact());
        other.check(&opened.context, &opened.tokens, state);
    }
}

fn layout(state: LayerState) -> Arc<KvLayout> {
    let layer = |state| LayerLayout {
        state,
        kv_heads: 1,
        head_dim: DIM,
        v_dim: DIM,
    };
    let layers = [layer(LayerState::Full), layer(state)];
    Arc::new(KvLayout::new(&layers, KvType::F32))
}

fn disk(folder: &Path) -> Arc<dyn Tier> {
    let folder = StoreFolder::open(folder).unwrap();
    let options = DiskOptions {
        sync: Syncing::WhenAsked,
        ..DiskOptions::default()
    };
    Arc::new(DiskTier::open(&folder, options).unwrap())
}

fn origin() -> Arc<Origin> {
    Arc::new(Origin {
        seed: BlockHash::seed(&[]),
        model: String::new(),
        identity: String::new(),
    })
}

fn context(layout: &Arc<KvLayout>, store: &Arc<Store>, origin: &Arc<Origin>) -> Context {
    Context::in_store(layout.clone(), store.clone(), origin.clone(), IDENTITY)
}

/// The tokens of text number `text` from token `start` on.
fn text_from(start: usize, count: usize, text: u32) -> Vec<u32> {
    let ids = (start..start + count).map(|at| at as u32 * 3 + text);
    ids.collect()
}

/// Attention of the last of `tokens` over the last `window` of them, from the definition.
fn oracle(tokens: &[u32], window: usize) -> Vec<f64> {
    let rotated = |id: u32, seed: u32, at: usize| -> Vec<f64> {
        let x = vector(id, seed);
        let half = DIM / 2;
        let mut out = vec![0.0; DIM];
        for i in 0..half {
            let angle = at as f64 * THETA.powf(-(i as f64) / half as f64);
            let (a, b) = (f64::from(x[i]), f64::from(x[i + half]));
            out[i] = a * angle.cos() - b * angle.sin();
            out[i + half] = b * angle.cos() + a * angle.sin();
        }
        out
    };
    let last = tokens.len() - 1;
    let q = rotated(tokens[last], 3, last);
    let first = tokens.len().saturating_sub(window);
    let weights: Vec<f64> = (first..=last)
        .map(|at| {
            let k = rotated(tokens[at], 1, at);
            let dot: f64 = q.iter().zip(&k).map(|(q, k)| q * k).sum();
            (f64::from(SCALE) * dot).exp()
        })
        .collect();
    let total: f64 = weights.iter().sum();
    let mut out = vec![0.0; DIM];
    for (at, weight) in (first..=last).zip(weights) {
        for (out, v) in out.iter_mut().zip(vector(tokens[at], 2)) {
            *out += weight / total * f64::from(v);
        }
    }
    out
}

/// Returns the bytes that left memory on the way.
fn run(state: LayerState, operations: &[Operation]) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::with_limit(LIMIT);
    let mut world = World::new(state, &ledger, folder.path());
    let mut demoted = 0;
    let mut pairs = vec![world.open(&[], true)];
    for (step, operation) in operations.iter().enumerate() {
        let (count_before, chosen) = (pairs.len(), step * 7 % pairs.len());
        let other = pairs[(step * 7 + 1) % count_before].context.fork();
        let Pair { context, tokens } = &mut pairs[chosen];
        match *operation {
            Operation::Read { count, text } => {
                let new = text_from(tokens.len(), count, text);
                world.read(context, &new);
                tokens.extend(new);
            }
            Operation::Fork => {
                let pair = Pair {
                    context: context.fork(),
                    tokens: tokens.clone(),
                };
                pairs.push(pair);
            }
            Operation::Truncate { keep } => match context.truncate(keep) {
                Ok(()) => tokens.truncate(keep),
                Err(KvError::BeyondEnd { .. }) => assert!(keep > tokens.len()),
                Err(KvError::WindowPassed { .. }) => assert_ne!(state, LayerState::Full),
                Err(error) => panic!("{error}"),
            },
            Operation::Remove { start, count } => match context.remove_span(start..start + count) {
                Ok(()) => drop(tokens.drain(start..start + count)),
                Err(KvError::BeyondEnd { .. }) => assert!(start + count > tokens.len()),
                Err(KvError::WindowPassed { .. }) => assert_ne!(state, LayerState::Full),
                Err(error) => panic!("{error}"),
            },
            Operation::Move { start, count } => {
                match context.append_moved(&other, start..start + count) {
                    Ok(()) => tokens.extend(&other.tokens().to_vec()[start..start + count]),
                    Err(KvError::BeyondEnd { .. }) => assert!(start + count > other.len()),
                    Err(KvError::WindowPassed { .. }) => assert_ne!(state, LayerState::Full),
                    Err(error) => panic!("{error}"),
                }
            }
            Operation::Lose { block } => {
                let mut away = context.keys();
                away.retain(|key| world.store.place_of(key) == Some("disk"));
                if let Some(key) = away.get(block % away.len().max(1)) {
                    world.has_gap |= !context.is_exact();
                    let again = context.lose(key);
                    assert!(tokens.ends_with(&again));
                    assert_eq!(world.store.place_of(key), None);
                    world.read(context, &again);
                }
            }
            Operation::Drop if count_before > 1 => drop(pairs.swap_remove(chosen)),
            Operation::Drop => {}
            Operation::Open => {
                let opened = world.open(tokens, context.is_exact());
                pairs.push(opened);
            }
            Operation::Restart => {
                drop(other);
                demoted += world.store.counts().demoted_bytes;
                pairs = world.restart(pairs, folder.path());
            }
            // What is gone cannot be taken along.
            Operation::Export if world.has_gap => {}
            Operation::Export => world.take_elsewhere(&pairs[chosen], state),
        }
        if pairs.len() > 4 {
            pairs.remove(0);
        }
        assert!(ledger.usage().peak <= LIMIT);
        for pair in &mut pairs {
            assert_eq!(pair.context.tokens(), pair.tokens);
        }
        let asked = &pairs[step % pairs.len()];
        world.check(&asked.context, &asked.tokens, state);
    }
    demoted += world.store.counts().demoted_bytes;
    drop(pairs);
    drop(world);
    assert_eq!(ledger.usage().total(), 0, "bytes are given back");
    demoted
}

#[test]
fn the_limit_is_short_enough_to_matter() {
    let read = Operation::Read {
        count: 250,
        text: 0,
    };
    let mut operations = vec![read; 20];
    operations.push(Operation::Fork);
    operations.push(Operation::Remove {
        start: 100,
        count: 1000,
    });
    operations.push(Operation::Truncate { keep: 2000 });
    operations.push(Operation::Lose { block: 5 });
    operations.push(Operation::Restart);
    assert!(run(LayerState::Full, &operations) > 20 * BLOCK);
}

#[test]
fn blocks_that_moved_text_has_filled_in_part_leave_memory_like_others() {
    let read = |count| Operation::Read { count, text: 0 };
    // Thirty spans of which none ends where a block does: each leaves two blocks that are never full.
    let mut operations = vec![read(290), read(290)];
    for at in 0..30 {
        operations.push(Operation::Move {
            start: 3 + 7 * at,
            count: 70,
        });
        operations.push(read(1));
    }
    let spans = 2 * 30 * BLOCK;
    let left = run(LayerState::Full, &operations);
    assert!(left > spans - LIMIT, "{left} bytes left memory");
}

#[test]
fn nobody_goes_back_to_what_the_window_had_passed_where_text_was_moved_from() {
    let folder = tempfile::tempdir().unwrap();
    let state = LayerState::Window { tokens: WINDOW };
    let mut world = World::new(state, &Ledger::unlimited(), folder.path());
    let (mut first, mut second) = (world.context(), world.context());
    let tokens = text_from(0, 900, 0);
    world.read(&mut first, &tokens);
    second.append_moved(&first, 0..900).unwrap();
    let refused = second.truncate(400).unwrap_err();
    assert!(matches!(refused, KvError::WindowPassed { .. }), "{refused}");
    world.check(&second, &tokens, state);
    second.truncate(899).unwrap();
    world.check(&second, &tokens[..899], state);
}

#[test]
fn what_is_taken_elsewhere_has_the_window_that_its_last_full_block_needs() {
    let read = |count| Operation::Read { count, text: 0 };
    // The token at 263 does not see the first block, the one at 256 does.
    let operations = [read(263), read(1), Operation::Export];
    run(LayerState::Window { tokens: WINDOW }, &operations);
    // Cut back to a token that does not see what the last full block sees.
    let operations = [
        read(290),
        read(286),
        read(1),
        Operation::Truncate { keep: 519 },
        Operation::Export,
    ];
    run(LayerState::Window { tokens: WINDOW }, &operations);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn contexts_hold_what_was_read(operations in prop::collection::vec(operation(), 1..24)) {
        run(LayerState::Full, &operations);
    }

    #[test]
    fn blocks_are_counted_once_for_all_who_share_them(
        operations in prop::collection::vec(operation(), 1..24),
    ) {
        pages::count(LayerState::Full, &operations);
    }

    #[test]
    fn so_are_those_that_windows_have_left(
        operations in prop::collection::vec(operation(), 1..24),
    ) {
        pages::count(LayerState::Window { tokens: WINDOW }, &operations);
    }

    #[test]
    fn with_windows_too(operations in prop::collection::vec(operation(), 1..24)) {
        run(LayerState::Window { tokens: WINDOW }, &operations);
    }
}
