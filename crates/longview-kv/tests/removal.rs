//! A span is removed from a context: the rest is attended to as if it had been read at its new
//! positions.

mod rotated;

use std::sync::Arc;

use longview_kv::{Context, KvError, KvLayout, KvType, LayerLayout, LayerState, Ledger};
use rotated::{DIM, IDENTITY};

struct Reader(rotated::Reader);

impl Reader {
    fn read(&mut self, context: &mut Context, ids: &[u32]) -> Vec<f32> {
        self.0.read(context, ids, 1).unwrap().remove(0)
    }
}

fn context(state: LayerState) -> Context {
    let layer = LayerLayout {
        state,
        kv_heads: 1,
        head_dim: DIM,
        v_dim: DIM,
    };
    let layout = Arc::new(KvLayout::new(&[layer], KvType::F32));
    Context::new(layout, Ledger::unlimited(), IDENTITY)
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
