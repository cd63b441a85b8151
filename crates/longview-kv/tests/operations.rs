//! Random sequences of operations on contexts in a store with little memory, against lists of
//! tokens: contents agree, forks do not disturb each other, the memory limit holds, and nothing is
//! left when all is gone.

mod rotated;

use std::collections::HashSet;
use std::sync::Arc;

use longview_kv::tier::{DiskOptions, DiskTier, Origin, StoreFolder, Syncing, Tier};
use longview_kv::{
    BlockHash, Context, KvError, KvLayout, KvType, LayerLayout, LayerState, Ledger, Store,
};
use proptest::prelude::*;
use rotated::{DIM, IDENTITY, Reader, SCALE, THETA, vector};

const WINDOW: usize = 200;

/// Two layers of 64 tokens with one head of 16 channels in single precision.
const BLOCK: u64 = 2 * 64 * 2 * 16 * 4;

/// Room for the buffers that blocks are read back into, and for a dozen blocks.
const LIMIT: u64 = 3 * 16 * BLOCK / 2 + 12 * BLOCK;

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
    Drop,
    /// Opens a context for what another one has read.
    Open,
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        5 => (1usize..300, 0u32..3).prop_map(|(count, text)| Operation::Read { count, text }),
        2 => Just(Operation::Fork),
        2 => (0usize..1000).prop_map(|keep| Operation::Truncate { keep }),
        1 => (0usize..1000, 1usize..200)
            .prop_map(|(start, count)| Operation::Remove { start, count }),
        1 => Just(Operation::Drop),
        2 => Just(Operation::Open),
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
}

impl World {
    fn new(state: LayerState, folder: &std::path::Path) -> World {
        let layer = |state| LayerLayout {
            state,
            kv_heads: 1,
            head_dim: DIM,
            v_dim: DIM,
        };
        let folder = StoreFolder::open(folder).unwrap();
        let options = DiskOptions {
            sync: Syncing::WhenAsked,
            ..DiskOptions::default()
        };
        let tier: Arc<dyn Tier> = Arc::new(DiskTier::open(&folder, options).unwrap());
        World {
            reader: Reader::new(1),
            layout: Arc::new(KvLayout::new(
                &[layer(LayerState::Full), layer(state)],
                KvType::F32,
            )),
            store: Arc::new(Store::new(Ledger::with_limit(LIMIT), vec![tier])),
            origin: Arc::new(Origin {
                seed: BlockHash::seed(&[]),
                model: String::new(),
                identity: String::new(),
            }),
        }
    }

    fn context(&self) -> Context {
        context(&self.layout, &self.store, &self.origin)
    }

    /// Reads `ids`; the attention of the last of them in both layers.
    fn read(&mut self, context: &mut Context, ids: &[u32]) -> Vec<Vec<f32>> {
        let outs = self.reader.read(context, ids, 2).unwrap();
        let last = |out: Vec<f32>| out[out.len() - DIM..].to_vec();
        outs.into_iter().map(last).collect()
    }
}

fn context(layout: &Arc<KvLayout>, store: &Arc<Store>, origin: &Arc<Origin>) -> Context {
    Context::in_store(layout.clone(), store.clone(), origin.clone(), IDENTITY)
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
    let mut world = World::new(state, folder.path());
    let ledger = world.store.ledger().clone();
    let mut pairs = vec![Pair {
        context: world.context(),
        tokens: Vec::new(),
    }];
    for (step, operation) in operations.iter().enumerate() {
        let (count_before, chosen) = (pairs.len(), step * 7 % pairs.len());
        let Pair { context, tokens } = &mut pairs[chosen];
        match *operation {
            Operation::Read { count, text } => {
                let start = tokens.len() as u32;
                let new: Vec<u32> = (start..start + count as u32)
                    .map(|at| at * 3 + text)
                    .collect();
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
            Operation::Drop if count_before > 1 => drop(pairs.swap_remove(chosen)),
            Operation::Drop => {}
            Operation::Open => {
                let (wanted, exact) = (tokens.clone(), context.is_exact());
                let mut context = world.context();
                let held = context.attach(&wanted).unwrap();
                assert_eq!(context.tokens(), &wanted[..held]);
                if exact {
                    assert_eq!(held, wanted.len() / 64 * 64, "all full blocks are found");
                }
                let tokens = wanted[..held].to_vec();
                pairs.push(Pair { context, tokens });
            }
        }
        if pairs.len() > 4 {
            pairs.remove(0);
        }
        assert!(ledger.usage().peak <= LIMIT);
        for pair in &mut pairs {
            assert_eq!(pair.context.tokens(), pair.tokens);
        }
        // One of them is asked, in a fork that is then forgotten.
        let asked = &pairs[step % pairs.len()];
        let mut fork = asked.context.fork();
        let got = world.read(&mut fork, &[77_777]);
        let tokens = [&asked.tokens[..], &[77_777]].concat();
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
    let demoted = world.store.counts().demoted_bytes;
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
    let mut operations = vec![read; 14];
    operations.push(Operation::Fork);
    operations.push(Operation::Remove {
        start: 100,
        count: 1000,
    });
    operations.push(Operation::Truncate { keep: 2000 });
    assert!(run(LayerState::Full, &operations) > 20 * BLOCK);
}

/// What a context's last block is, if it is not full.
#[derive(Clone, Copy, PartialEq)]
enum Tail {
    /// It has none.
    None,
    /// The beginning of a full one.
    OfFull,
    /// A block with this number, which is being written.
    Open(usize),
}

/// Does `operations` on contexts in a store with memory for everything, and counts the blocks that should
/// be held: of equal texts once, and of what forks write each its own.
fn count_blocks(operations: &[Operation]) {
    let layer = LayerLayout {
        state: LayerState::Full,
        kv_heads: 1,
        head_dim: DIM,
        v_dim: DIM,
    };
    let layout = Arc::new(KvLayout::new(&[layer, layer], KvType::F32));
    let ledger = Ledger::unlimited();
    let store = Arc::new(Store::new(ledger.clone(), Vec::new()));
    let origin = Arc::new(Origin {
        seed: BlockHash::seed(&[]),
        model: String::new(),
        identity: String::new(),
    });
    let mut reader = Reader::new(1);
    let first = context(&layout, &store, &origin);
    let mut all = vec![(first, Vec::<u32>::new(), Tail::None)];
    // Full blocks ever made, by all tokens up to their end; they stay as long as there is room.
    let mut full: HashSet<Vec<u32>> = HashSet::new();
    let mut made = 0;
    for (step, operation) in operations.iter().enumerate() {
        let (count_before, chosen) = (all.len(), step * 7 % all.len());
        let shared = |tail: Tail| all.iter().filter(|(.., other)| *other == tail).count() > 1;
        let is_shared = shared(all[chosen].2);
        let (context, tokens, tail) = &mut all[chosen];
        match *operation {
            Operation::Read { count, text } => {
                let (before, start) = (tokens.len() / 64, tokens.len() as u32);
                let new: Vec<u32> = (start..start + count as u32)
                    .map(|at| at * 3 + text)
                    .collect();
                reader.read(context, &new, 2).unwrap();
                tokens.extend(new);
                let after = tokens.len() / 64;
                full.extend((before..after).map(|block| tokens[..64 * (block + 1)].to_vec()));
                let goes_on = after == before && matches!(tail, Tail::Open(_)) && !is_shared;
                if tokens.len().is_multiple_of(64) {
                    *tail = Tail::None;
                } else if !goes_on {
                    made += 1;
                    *tail = Tail::Open(made);
                }
            }
            Operation::Fork => {
                let fork = (context.fork(), tokens.clone(), *tail);
                all.push(fork);
            }
            Operation::Truncate { keep } | Operation::Remove { start: keep, .. } => {
                if keep <= tokens.len() {
                    context.truncate(keep).unwrap();
                    if keep / 64 < tokens.len() / 64 {
                        *tail = Tail::OfFull;
                    }
                    if keep.is_multiple_of(64) {
                        *tail = Tail::None;
                    }
                    tokens.truncate(keep);
                }
            }
            Operation::Drop if count_before > 1 => drop(all.swap_remove(chosen)),
            Operation::Drop => {}
            Operation::Open => {
                let wanted = tokens.clone();
                let mut opened = self::context(&layout, &store, &origin);
                let held = opened.attach(&wanted).unwrap();
                assert_eq!(held, wanted.len() / 64 * 64);
                all.push((opened, wanted[..held].to_vec(), Tail::None));
            }
        }
        let open: HashSet<usize> = all
            .iter()
            .filter_map(|(.., tail)| match tail {
                Tail::Open(number) => Some(*number),
                Tail::None | Tail::OfFull => None,
            })
            .collect();
        let blocks = (full.len() + open.len()) as u64;
        assert_eq!(ledger.usage().kv, blocks * BLOCK, "after {operation:?}");
    }
    drop(all);
    drop(store);
    assert_eq!(ledger.usage().total(), 0, "bytes are given back");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn contexts_hold_what_was_read(operations in prop::collection::vec(operation(), 1..24)) {
        run(LayerState::Full, &operations);
    }

    #[test]
    fn blocks_are_counted_once_for_all_who_share_them(
        operations in prop::collection::vec(operation(), 1..24),
    ) {
        count_blocks(&operations);
    }

    #[test]
    fn with_windows_too(operations in prop::collection::vec(operation(), 1..24)) {
        run(LayerState::Window { tokens: WINDOW }, &operations);
    }
}
