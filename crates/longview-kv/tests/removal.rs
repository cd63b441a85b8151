//! A span is removed from a context: the rest is attended to as if it had been read at its new
//! positions.

mod rotated;

use std::sync::Arc;

use longview_kv::tier::Origin;
use longview_kv::{
    BlockHash, Context, KvError, KvForm, KvLayout, KvType, LayerLayout, LayerState, Ledger, Store,
};
use rotated::{DIM, IDENTITY};

struct Reader(rotated::Reader);

impl Reader {
    fn read(&mut self, context: &mut Context, ids: &[u32]) -> Vec<f32> {
        self.0.read(context, ids, 1).unwrap().remove(0)
    }
}

fn context(state: LayerState) -> Context {
    Context::new(layout(state), Ledger::unlimited(), IDENTITY)
}

fn in_store(store: &Arc<Store>) -> Context {
    let origin = Arc::new(Origin {
        seed: BlockHash::seed(&[]),
        model: String::new(),
        identity: String::new(),
    });
    Context::in_store(
        layout(LayerState::Full),
        Arc::clone(store),
        origin,
        IDENTITY,
    )
}

fn layout(state: LayerState) -> Arc<KvLayout> {
    let layer = LayerLayout {
        state,
        kv_heads: 1,
        head_dim: DIM,
        v_dim: DIM,
    };
    Arc::new(KvLayout::new(&[layer], KvType::F32))
}

#[test]
fn what_is_left_is_attended_to_at_its_new_positions() {
    let mut reader = Reader(rotated::Reader::new(2));
    for (state, remaining) in [
        (LayerState::Full, 0),
        (LayerState::Window { tokens: 400 }, 1500),
    ] {
        let mut ids: Vec<u32> = (0..2600).collect();
        let mut moved = context(state);
        reader.read(&mut moved, &ids);
        // Two spans with ragged ends, then growth, then a third over the seam.
        for span in [2400..2470, 2300..2317, 2380..2390] {
            if remaining > 0 && span.start == 2380 {
                continue;
            }
            let held = moved.kv_bytes();
            moved.remove_span(span.clone()).unwrap();
            ids.drain(span);
            assert!(moved.kv_bytes() <= held);
            let more: Vec<u32> = (0..40).map(|i| 9000 + i).collect();
            let got = reader.read(&mut moved, &more);
            ids.extend(&more);
            assert_eq!(moved.tokens(), ids);
            assert!(!moved.is_exact());

            let mut plain = context(state);
            reader.read(&mut plain, &ids[..ids.len() - 40]);
            let expected = reader.read(&mut plain, &more);
            for (got, expected) in got.iter().zip(&expected) {
                assert!((got - expected).abs() < 2e-5, "{got} {expected}");
            }
        }
    }
}

#[test]
fn text_read_elsewhere_is_attended_to_where_it_is_put() {
    let mut reader = Reader(rotated::Reader::new(2));
    let ids: Vec<u32> = (0..2000).collect();
    for state in [LayerState::Full, LayerState::Window { tokens: 300 }] {
        let mut old = context(state);
        reader.read(&mut old, &ids);
        // The same beginning, other text in the middle, shorter or longer than before, then the rest.
        for (kept, new, rest) in [(500, 40, 700), (500, 400, 613), (0, 1, 64), (130, 0, 1950)] {
            let mut mixed = context(state);
            let middle: Vec<u32> = (0..new).map(|i| 5000 + i).collect();
            let mut text = [&ids[..kept], &middle].concat();
            if !text.is_empty() {
                reader.read(&mut mixed, &text);
            }
            mixed.append_moved(&old, rest..ids.len()).unwrap();
            text.extend(&ids[rest..]);
            assert_eq!(mixed.tokens(), text);
            let more: Vec<u32> = (0..70).map(|i| 9000 + i).collect();
            let got = reader.read(&mut mixed, &more);

            let mut plain = context(state);
            reader.read(&mut plain, &text);
            let expected = reader.read(&mut plain, &more);
            for (got, expected) in got.iter().zip(&expected) {
                assert!((got - expected).abs() < 2e-5, "{got} {expected}");
            }
            if state != LayerState::Full {
                // A window may have passed what going back would need.
                continue;
            }
            mixed.truncate(text.len() - 20).unwrap();
            plain.truncate(text.len() - 20).unwrap();
            let (got, expected) = (reader.read(&mut mixed, &[1]), reader.read(&mut plain, &[1]));
            for (got, expected) in got.iter().zip(&expected) {
                assert!((got - expected).abs() < 2e-5, "{got} {expected}");
            }
        }
        // The old context is as it was.
        assert!(old.is_exact());
        reader.read(&mut old, &[3]);
    }
}

#[test]
fn text_moves_in_forms_that_hold_the_latest_tokens_apart() {
    let mut reader = Reader(rotated::Reader::new(2));
    let ids: Vec<u32> = (0..1000).collect();
    let form = KvForm {
        recent_tokens: 100,
        ..KvType::Q8.into()
    };
    let layer = LayerLayout {
        state: LayerState::Full,
        kv_heads: 1,
        head_dim: DIM,
        v_dim: DIM,
    };
    let layout = Arc::new(KvLayout::new(&[layer], form));
    let fresh = || Context::new(Arc::clone(&layout), Ledger::unlimited(), IDENTITY);
    let mut old = fresh();
    reader.read(&mut old, &ids);
    // Spans shorter and longer than what is held apart, of which none ends where a block does.
    let mut mixed = fresh();
    let mut text: Vec<u32> = (5000..5030).collect();
    reader.read(&mut mixed, &text);
    for span in [100..170, 200..500, 520..590] {
        mixed.append_moved(&old, span.clone()).unwrap();
        text.extend(&ids[span]);
        let more: Vec<u32> = (9000..9010).collect();
        reader.read(&mut mixed, &more);
        text.extend(more);
    }
    let more: Vec<u32> = (9100..9400).collect();
    let got = reader.read(&mut mixed, &more);
    let mut plain = fresh();
    reader.read(&mut plain, &text);
    let expected = reader.read(&mut plain, &more);
    for (got, expected) in got.iter().zip(&expected) {
        assert!((got - expected).abs() < 1e-3, "{got} {expected}");
    }
    // And when a span leaves it.
    mixed.remove_span(40..300).unwrap();
    text.drain(40..300);
    text.extend(&more);
    let got = reader.read(&mut mixed, &[7]);
    let mut plain = fresh();
    reader.read(&mut plain, &text);
    let expected = reader.read(&mut plain, &[7]);
    for (got, expected) in got.iter().zip(&expected) {
        assert!((got - expected).abs() < 1e-3, "{got} {expected}");
    }
}

#[test]
fn whole_blocks_inside_a_span_are_freed_and_forks_keep_theirs() {
    let mut reader = Reader(rotated::Reader::new(1));
    let ids: Vec<u32> = (0..1000).collect();
    let mut whole = context(LayerState::Full);
    reader.read(&mut whole, &ids);
    let mut fork = whole.fork();
    let held = whole.kv_bytes();
    fork.remove_span(100..900).unwrap();
    // Blocks 2 to 13 lay inside.
    assert_eq!(fork.kv_bytes(), held - 12 * held / 16);
    assert_eq!(whole.kv_bytes(), held);
    assert!(whole.is_exact());
    fork.truncate(100).unwrap();
    assert_eq!(fork.tokens(), &ids[..100]);
    let mut plain = context(LayerState::Full);
    reader.read(&mut plain, &ids[..100]);
    assert_eq!(reader.read(&mut fork, &[5]), reader.read(&mut plain, &[5]));

    let end = whole.len();
    assert!(matches!(
        whole.remove_span(10..end + 1),
        Err(KvError::BeyondEnd { .. })
    ));
    whole.remove_span(990..end).unwrap();
    assert!(whole.is_exact(), "removing the end is going back");
    let mut window = context(LayerState::Window { tokens: 100 });
    for ids in ids.chunks(100) {
        reader.read(&mut window, ids);
    }
    assert!(matches!(
        window.remove_span(800..990),
        Err(KvError::WindowPassed { .. })
    ));
}

/// What a fresh context finds of what `context` holds.
fn found(store: &Arc<Store>, context: &Context) -> usize {
    let tokens = context.tokens().to_vec();
    in_store(store).attach(&tokens).unwrap()
}

#[test]
fn a_block_that_text_was_moved_into_is_never_found_by_its_tokens() {
    let mut reader = Reader(rotated::Reader::new(1));
    let store = Arc::new(Store::new(Ledger::unlimited(), Vec::new()));
    let ids: Vec<u32> = (0..212).collect();
    let mut old = in_store(&store);
    reader.read(&mut old, &ids);
    // The same text under a store's eyes and not.
    let mut apart = context(LayerState::Full);
    reader.read(&mut apart, &ids);
    for from in [&old, &apart] {
        // Tokens 64..192 leave; the twenty after them fill no block until more is read.
        let mut moved = old.fork();
        moved.truncate(64).unwrap();
        moved.append_moved(from, 192..212).unwrap();
        reader.read(&mut moved, &(1000..1070).collect::<Vec<u32>>());
        assert_eq!(found(&store, &moved), 64);
        // Cut back into what was moved, and grown again.
        moved.truncate(80).unwrap();
        reader.read(&mut moved, &(2000..2070).collect::<Vec<u32>>());
        assert_eq!(found(&store, &moved), 64);
        assert!(!moved.is_exact());
        // Cut back to before it, it is exact, and found again.
        moved.truncate(64).unwrap();
        reader.read(&mut moved, &(3000..3070).collect::<Vec<u32>>());
        assert!(moved.is_exact());
        assert_eq!(found(&store, &moved), 128);
    }
}

#[test]
fn two_texts_that_lost_what_told_them_apart_share_no_blocks() {
    let mut reader = Reader(rotated::Reader::new(1));
    let store = Arc::new(Store::new(Ledger::unlimited(), Vec::new()));
    // Removed within the last block, at a block's edge, and from blocks that are full.
    for (len, span) in [(100, 70..80), (150, 64..128), (200, 70..80)] {
        let mut keys_of = |secret: u32| {
            let mut context = in_store(&store);
            let mut text: Vec<u32> = (0..len).collect();
            text[72] = secret;
            reader.read(&mut context, &text);
            context.remove_span(span.clone()).unwrap();
            reader.read(&mut context, &(1000..1128).collect::<Vec<u32>>());
            let first = context.keys();
            // The same when a part of it is read again.
            context.truncate(90).unwrap();
            reader.read(&mut context, &(1000..1128).collect::<Vec<u32>>());
            [first, context.keys()].concat()
        };
        let (one, other) = (keys_of(70_001), keys_of(70_002));
        let mut same = one
            .iter()
            .filter(|key| other.contains(key))
            .collect::<Vec<_>>();
        same.dedup();
        assert!(
            one.len() > 3 && same.iter().all(|key| **key == one[0]),
            "{span:?}"
        );
    }
}

#[test]
fn a_context_whose_first_tokens_left_is_not_exact() {
    let mut reader = Reader(rotated::Reader::new(1));
    let store = Arc::new(Store::new(Ledger::unlimited(), Vec::new()));
    let ids: Vec<u32> = (0..300).collect();
    let mut old = in_store(&store);
    reader.read(&mut old, &ids);
    reader.read(&mut in_store(&store), &ids[10..]);

    let mut cut = old.fork();
    cut.remove_span(0..10).unwrap();
    let mut taken = in_store(&store);
    taken.append_moved(&old, 10..300).unwrap();
    for mut context in [cut, taken] {
        for len in [290, 200, 50] {
            context.truncate(len).unwrap();
            assert!(!context.is_exact());
            assert_eq!(
                context.attach(&ids[10..]).unwrap(),
                len,
                "nothing is taken over"
            );
        }
        // Nothing of it is left.
        context.truncate(0).unwrap();
        assert!(context.is_exact());
        assert_eq!(context.attach(&ids[10..]).unwrap(), 256);
        let mut plain = in_store(&store);
        reader.read(&mut plain, &ids[10..266]);
        assert_eq!(
            reader.read(&mut context, &[5]),
            reader.read(&mut plain, &[5])
        );
    }
    // The beginning of another context is what it is there.
    let mut beginning = in_store(&store);
    beginning.append_moved(&old, 0..100).unwrap();
    assert!(beginning.is_exact());
    assert_eq!(beginning.attach(&ids).unwrap(), 256);
}
