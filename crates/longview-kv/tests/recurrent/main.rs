//! Recurrent layers beside attention: states isolate forks, go back to checkpoints only, survive
//! passes that fail, and are found again by content, always with the bits of an undisturbed context.

#[path = "../common/mod.rs"]
mod common;
mod pages;
mod world;

use std::sync::Arc;

use common::IDENTITY;
use longview_kv::bundle::{export, import};
use longview_kv::records::{Record, Records};
use longview_kv::tier::{DiskOptions, DiskTier, StoreFolder};
use longview_kv::{
    BLOCK_TOKENS, CHECKPOINT_TOKENS, Context, KvError, LayerState, Ledger, ReuseEnd, Store,
};
use proptest::prelude::*;

use world::{Control, WINDOW, World, expected, fresh, ids, in_store, layout};

#[test]
fn forks_go_their_own_ways() {
    let (mut world, ids) = (World::new(), ids(150));
    let mut first = fresh();
    world.read(&mut first, &ids);
    let mut second = first.fork();
    let other = expected(&mut world, &ids, &[3, 4]);
    assert!(world.read(&mut second, &[3, 4]) == other);
    assert!(world.read(&mut second, &[5]) != other);
    assert!(
        world.read(&mut first, &[3, 4]) == other,
        "the fork's tokens are not the first's"
    );
}

#[test]
fn passes_that_fail_or_are_given_up_change_nothing() {
    let (mut world, ids) = (World::new(), ids(100));
    let wanted = expected(&mut world, &ids, &[1]);
    let mut context = fresh();
    world.read(&mut context, &ids);
    world
        .pass(&mut context, &[9, 9, 9], Control::GiveUp)
        .unwrap();
    world.pass(&mut context, &[8; 70], Control::GiveUp).unwrap();
    assert!(world.read(&mut context, &[1]) == wanted);

    // Room for what was read, and not for a pass over a thousand more.
    let needed = layout(WINDOW).context_bytes(200, 100);
    let mut tight = Context::new(layout(WINDOW), Ledger::with_limit(needed), IDENTITY);
    world.read(&mut tight, &ids);
    let refused = world.pass(&mut tight, &[2; 1000], Control::Commit);
    assert!(matches!(refused, Err(KvError::OverLimit { .. })));
    assert!(world.read(&mut tight, &[1]) == wanted);
}

#[test]
fn contexts_go_back_to_checkpoints_and_nowhere_else() {
    let (mut world, ids) = (World::new(), ids(300));
    let mut context = fresh();
    world.prefill(&mut context, &ids[..140]);
    world.prefill(&mut context, &ids[140..]);
    assert_eq!(context.len(), 300);
    let refused = context.truncate(299).unwrap_err();
    assert!(
        matches!(
            refused,
            KvError::NoCheckpoint {
                wanted: 299,
                nearest: 256
            }
        ),
        "{refused}"
    );
    assert!(refused.to_string().contains("token 256"));
    assert_eq!(context.len(), 300, "a refusal changes nothing");

    assert_eq!(context.resumable(299), Some(256));
    let mut earlier = context.fork();
    context.truncate(256).unwrap();
    let wanted = expected(&mut world, &ids[..256], &[6, 7]);
    assert!(world.read(&mut context, &[6, 7]) == wanted);

    let refused = earlier.remove_span(10..20).unwrap_err();
    assert!(matches!(refused, KvError::SpanInState { .. }), "{refused}");
    assert!(refused.to_string().contains("tokens 10..20"));
    let other = context.fork();
    assert!(matches!(
        earlier.append_moved(&other, 0..9),
        Err(KvError::SpanInState { .. })
    ));

    // The end of the first message; its window has passed in the meantime.
    assert_eq!(earlier.resumable(255), None);
    assert!(matches!(
        earlier.truncate(128),
        Err(KvError::WindowPassed { .. })
    ));
}

#[test]
fn states_are_kept_at_regular_places_and_at_the_last_messages() {
    let (mut world, ids) = (World::new(), ids(CHECKPOINT_TOKENS + 700));
    let mut context = Context::new(layout(LayerState::Full), Ledger::unlimited(), IDENTITY);
    for message in ids.chunks(600) {
        world.prefill(&mut context, message);
    }
    let mut kept = Vec::new();
    let mut at = context.len();
    while at > 0 {
        at = context.resumable(at - 1).unwrap();
        kept.push(at);
    }
    // The last block edges of the last four messages, and the regular one between them.
    assert_eq!(kept, [4736, 4160, CHECKPOINT_TOKENS, 3584, 2944, 0]);
    let bytes = context.kv_bytes();
    assert!(
        bytes <= context_bytes(context.len()),
        "{bytes} bytes were not planned"
    );
    context.truncate(2944).unwrap();
    let mut undisturbed = Context::new(layout(LayerState::Full), Ledger::unlimited(), IDENTITY);
    world.read(&mut undisturbed, &ids[..2944]);
    assert!(world.read(&mut context, &[1, 2]) == world.read(&mut undisturbed, &[1, 2]));
}

fn context_bytes(tokens: usize) -> u64 {
    layout(LayerState::Full).context_bytes(tokens, 96)
}

#[test]
fn a_state_is_read_back_by_the_pass_that_needs_it() {
    let (mut world, ids) = (World::new(), ids(330));
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let folder = StoreFolder::open(folder.path()).unwrap();
        let disk = DiskTier::open(&folder, DiskOptions::default()).unwrap();
        Arc::new(Store::new(Ledger::unlimited(), vec![Arc::new(disk)]))
    };
    let mut first = in_store(&open());
    let wanted = world.prefill(&mut first, &ids);
    drop(first);

    let store = open();
    let mut again = in_store(&store);
    assert_eq!(again.attach(&ids[..329]).unwrap(), 320);
    assert_eq!(store.counts().read_bytes, 0);
    // A pass that is given up changes nothing, and the next one reads again.
    world
        .pass(&mut again, &ids[320..], Control::GiveUp)
        .unwrap();
    assert!(world.prefill(&mut again, &ids[320..]) == wanted);
    let read = store.counts().read_bytes;
    world.read(&mut again, &[7]);
    assert_eq!(store.counts().read_bytes, read, "it is in memory now");
}

#[test]
fn a_prompt_goes_on_where_all_kinds_of_layers_can() {
    let (mut world, ids) = (World::new(), ids(500));
    let store = Arc::new(Store::new(Ledger::unlimited(), Vec::new()));
    let mut first = in_store(&store);
    let wanted = world.prefill(&mut first, &ids[..330]);
    // Holds on to the blocks that the window passes.
    let _kept = first.fork();
    world.prefill(&mut first, &ids[330..]);
    drop(first);

    // All blocks of 448 tokens are there, and states at 320 and 448.
    for (prompt, reused) in [(330, 320), (447, 320), (500, 448), (300, 0)] {
        let mut context = in_store(&store);
        assert_eq!(
            context.explain(&ids[..prompt]).unwrap().reused_tokens,
            reused
        );
        assert_eq!(
            context.attach(&ids[..prompt]).unwrap(),
            reused,
            "of {prompt}"
        );
        let got = world.prefill(&mut context, &ids[reused..prompt]);
        let again = expected(&mut world, &ids[..prompt - 1], &ids[prompt - 1..prompt]);
        assert!(got == again, "{prompt} tokens");
        assert!(prompt != 330 || got == wanted);
    }
    // Other tokens are another context, and one that has begun goes on where it can.
    let mut other = ids.clone();
    other[10] = 99;
    assert_eq!(in_store(&store).attach(&other).unwrap(), 0);
    let mut begun = in_store(&store);
    world.read(&mut begun, &ids[..64]);
    assert_eq!(begun.attach(&ids).unwrap(), 448);
}

#[test]
fn the_states_of_a_context_are_those_it_has_kept_itself() {
    let mut world = World::new();
    let ids: Vec<u32> = (0..640).collect();
    let store = || Arc::new(Store::new(Ledger::unlimited(), Vec::new()));
    let mut read = |store: &Arc<Store>, end: usize| {
        let mut context = in_store(store);
        world.read(&mut context, &ids[..end]);
        assert!(context.checkpoint());
        context
    };
    let alone = read(&store(), 640);
    let shared = store();
    // Another context has kept a state on the way: the store is not searched for such.
    let other = read(&shared, 320);
    let context = read(&shared, 640);
    assert_eq!(context.keys(), alone.keys());
    drop(other);
}

#[test]
fn a_fork_goes_back_to_what_it_has_kept_whatever_the_other_reads() {
    let messages = vec![Operation::Message { text: 0 }; 3];
    // Six messages of one, in a store that keeps nothing: the first states are still those of the other.
    let mut operations = vec![Operation::Read {
        count: 4050,
        text: 0,
    }];
    operations.extend(messages);
    operations.push(Operation::Fork);
    for _ in 0..6 {
        operations.push(Operation::Message { text: 0 });
        // Asked of the fork alone: whether it can go back to all that it has kept.
        operations.push(Operation::Truncate { most: 10_000 });
    }
    for most in [4_200, 4_150, 4_100, 4_090, 0] {
        operations.push(Operation::Truncate { most });
        operations.push(Operation::Truncate { most });
    }
    pages::count(&operations);
}

#[derive(Clone, Debug)]
enum Operation {
    /// Reads tokens as a prefill does; texts of one number begin alike.
    Read {
        count: usize,
        text: usize,
    },
    Fork,
    /// Goes back to where states were kept, at most so far.
    Truncate {
        most: usize,
    },
    /// Reads to a block edge, as the end of a message, where the state is kept.
    Message {
        text: usize,
    },
    /// Begins a pass that is not finished.
    GiveUp {
        count: usize,
    },
    /// Asks for what a state does not allow: to remove a span, and to take one over from elsewhere.
    Remove {
        start: usize,
        count: usize,
    },
    /// Finds that a block or a state on disk cannot be read.
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
        4 => (1usize..200, 0usize..2).prop_map(|(count, text)| Operation::Read { count, text }),
        2 => Just(Operation::Fork),
        2 => (0usize..500).prop_map(|most| Operation::Truncate { most }),
        1 => (0usize..2).prop_map(|text| Operation::Message { text }),
        1 => (1usize..200).prop_map(|count| Operation::GiveUp { count }),
        1 => (0usize..300, 1usize..200)
            .prop_map(|(start, count)| Operation::Remove { start, count }),
        1 => (0usize..40).prop_map(|block| Operation::Lose { block }),
        1 => Just(Operation::Drop),
        2 => Just(Operation::Open),
        1 => Just(Operation::Restart),
        1 => Just(Operation::Export),
    ]
}

/// The tokens of text number `text` from token `start` on.
fn text_from(start: usize, count: usize, text: usize) -> Vec<u32> {
    let ids = (start..start + count).map(|at| ((at * at + 3 * text) % 11) as u32);
    ids.collect()
}

fn on_disk(ledger: &Ledger, folder: &StoreFolder) -> Arc<Store> {
    let disk = DiskTier::open(folder, DiskOptions::default()).unwrap();
    Arc::new(Store::new(ledger.clone(), vec![Arc::new(disk)]))
}

/// A context with what the store has of `tokens`.
fn opened(store: &Arc<Store>, tokens: &[u32]) -> (Context, Vec<u32>) {
    let mut context = in_store(store);
    let held = context.attach(tokens).unwrap();
    (context, tokens[..held].to_vec())
}

/// The last block edge at which a context can be taken up.
fn resumable_edge(context: &Context) -> usize {
    let edge = context.len() - context.len() % BLOCK_TOKENS;
    let nearest = context.resumable(edge).unwrap_or(0);
    // At the end of a pass a state is there that was not kept.
    match nearest == edge && nearest == context.len() {
        true => context.resumable(edge.saturating_sub(1)).unwrap_or(0),
        false => nearest,
    }
}

/// Takes a context to another folder, where another process opens it.
fn take_elsewhere(store: &Arc<Store>, context: &Context, tokens: &[u32], world: &mut World) {
    let origin = context.origin().unwrap();
    let record = Record::new(origin, tokens.to_vec(), context.keys());
    let mut file = std::io::Cursor::new(Vec::new());
    export(&record, store.tiers(), &mut file).unwrap();
    file.set_position(0);
    let root = tempfile::tempdir().unwrap();
    let folder = StoreFolder::open(root.path()).unwrap();
    let ledger = Ledger::unlimited();
    let other = on_disk(&ledger, &folder);
    let records = Records::open(&folder, &[]);
    let tier = other.tiers()[0].clone();
    let imported = import(file, &*tier, &records, &ledger, &[]).unwrap();
    assert_eq!(imported.record.tokens, tokens);
    let (mut opened, held) = opened(&other, tokens);
    let got = world.prefill(&mut opened, &[7]);
    assert!(got == expected_after(world, &held), "what was taken along");
}

/// What token 7 gives after `tokens`, undisturbed.
fn expected_after(world: &mut World, tokens: &[u32]) -> Vec<f32> {
    let mut undisturbed = fresh();
    if !tokens.is_empty() {
        world.read(&mut undisturbed, tokens);
    }
    world.read(&mut undisturbed, &[7])
}

/// Does `operations` on contexts in a store with little memory, and compares what each gives with an
/// undisturbed one.
fn run(operations: &[Operation]) {
    let mut world = World::new();
    let root = tempfile::tempdir().unwrap();
    let folder = StoreFolder::open(root.path()).unwrap();
    let limit = 2 * layout(WINDOW).least_bytes(96);
    let ledger = Ledger::with_limit(limit);
    let mut store = on_disk(&ledger, &folder);
    let mut contexts = vec![(in_store(&store), Vec::<u32>::new())];
    for (step, operation) in operations.iter().enumerate() {
        let (count_before, chosen) = (contexts.len(), step * 5 % contexts.len());
        let (context, tokens) = &mut contexts[chosen];
        match *operation {
            Operation::Read { count, text } => {
                let new = text_from(tokens.len(), count, text);
                world.prefill(context, &new);
                tokens.extend(new);
            }
            Operation::Message { text } => {
                let count = BLOCK_TOKENS - tokens.len() % BLOCK_TOKENS;
                let new = text_from(tokens.len(), count, text);
                world.prefill(context, &new);
                tokens.extend(new);
                assert!(context.checkpoint());
                assert_eq!(context.resumable(tokens.len()), Some(tokens.len()));
            }
            Operation::Fork => {
                let fork = (context.fork(), tokens.clone());
                contexts.push(fork);
            }
            Operation::Truncate { most } => {
                if let Some(len) = context.resumable(most.min(tokens.len())) {
                    context.truncate(len).unwrap();
                    tokens.truncate(len);
                }
            }
            Operation::GiveUp { count } => {
                // What is lost is found by the pass that is finished.
                let _ = world.pass(context, &vec![9; count], Control::GiveUp);
            }
            Operation::Remove { start, count } => {
                let end = start + count;
                let moved = context.fork();
                assert!(context.append_moved(&moved, start..end).is_err());
                match context.remove_span(start..end) {
                    Ok(()) => tokens.truncate(start),
                    Err(KvError::BeyondEnd { .. }) => assert!(end > tokens.len()),
                    Err(KvError::SpanInState { .. }) => assert!(end < tokens.len()),
                    // From the end, which is going back.
                    Err(_) => assert!(end == tokens.len()),
                }
            }
            Operation::Export => take_elsewhere(&store, context, tokens, &mut world),
            Operation::Lose { block } => {
                let mut away = context.keys();
                away.retain(|key| store.place_of(key) == Some("disk"));
                if let Some(key) = away.get(block % away.len().max(1)) {
                    let again = context.lose(key);
                    assert!(tokens.ends_with(&again));
                    assert_eq!(store.place_of(key), None);
                    world.prefill(context, &again);
                }
            }
            Operation::Drop if count_before > 1 => drop(contexts.swap_remove(chosen)),
            Operation::Drop => {}
            Operation::Open => {
                let other = opened(&store, tokens);
                contexts.push(other);
            }
            Operation::Restart => {
                let records = Records::open(&folder, &[]);
                let origin = contexts[0].0.origin().unwrap().clone();
                let save = |(context, tokens): (Context, Vec<u32>)| {
                    let edge = resumable_edge(&context);
                    let record = Record::new(&origin, tokens, context.keys());
                    records.save(&record).unwrap();
                    (record.summary.id, edge)
                };
                let saved: Vec<(String, usize)> = contexts.into_iter().map(save).collect();
                drop(store);
                assert_eq!(ledger.usage().total(), 0, "nothing of before is left");
                store = on_disk(&ledger, &folder);
                let open = |(id, edge): (String, usize)| {
                    let record = records.load(&id).unwrap();
                    let known = in_store(&store).explain(&record.tokens).unwrap();
                    let opened = opened(&store, &record.tokens);
                    // Little is computed here, in less time than a disk may take.
                    let is_slow = matches!(known.end, ReuseEnd::SlowToRead { .. });
                    assert!(is_slow || opened.1.len() >= edge, "{known:?}");
                    opened
                };
                contexts = saved.into_iter().map(open).collect();
            }
        }
        if contexts.len() > 3 {
            contexts.remove(0);
        }
        assert!(ledger.usage().peak <= limit);
        let (asked, tokens) = &contexts[step % contexts.len()];
        assert_eq!(asked.tokens(), *tokens);
        let mut fork = asked.fork();
        let got = world.prefill(&mut fork, &[7]);
        let expected = expected_after(&mut world, tokens);
        assert!(got == expected, "after {operation:?}");
    }
    drop(contexts);
    drop(store);
    assert_eq!(ledger.usage().total(), 0, "bytes are given back");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn contexts_go_on_with_the_bits_of_an_undisturbed_one(
        operations in prop::collection::vec(operation(), 1..12),
    ) {
        run(&operations);
    }

    #[test]
    fn pages_and_states_are_counted_once_for_all_who_share_them(
        operations in prop::collection::vec(operation(), 1..30),
    ) {
        pages::count(&operations);
    }
}
