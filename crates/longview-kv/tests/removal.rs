//! A span is removed from a context: the rest is attended to as if it had been read at its new
//! positions.

use std::sync::Arc;

use longview_kernels::rope::{RotaryRows, RotaryTable};
use longview_kernels::{Exec, Isa, Numerics};
use longview_kv::{
    AttendWorkspace, Attention, Batch, Context, Identity, KvError, KvLayout, KvType, LayerLayout,
    LayerState, Ledger, RopeSet, Segment, Wanted,
};

const DIM: usize = 16;
const IDENTITY: Identity = Identity {
    model: 1,
    rope: RopeSet::Short,
    numerics: Numerics::F32,
};

/// Numbers in −1..1 that depend on a token's id alone: its key, value and query before rotation.
fn vector(id: u32, seed: u32) -> Vec<f32> {
    let mut x = u64::from(id) * 0x9e37_79b9 + u64::from(seed) * 0x85eb_ca6b + 1;
    (0..DIM)
        .map(|_| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (x >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

struct Reader {
    exec: Exec,
    table: RotaryTable,
    workspace: AttendWorkspace,
}

impl Reader {
    /// Reads `ids` with rotated keys and queries; returns the attention of each.
    fn read(&mut self, context: &mut Context, ids: &[u32]) -> Vec<f32> {
        let positions: Vec<u32> = (context.len()..context.len() + ids.len())
            .map(|at| at as u32)
            .collect();
        let mut rows = RotaryRows::new();
        rows.set(&self.table, &positions);
        let gather = |seed| ids.iter().flat_map(|&id| vector(id, seed)).collect();
        let (mut k, v, mut q): (Vec<f32>, Vec<f32>, Vec<f32>) = (gather(1), gather(2), gather(3));
        rows.rotate(self.exec.isa, 0, 1, DIM, &mut k);
        rows.rotate(self.exec.isa, 0, 1, DIM, &mut q);
        let segment = Segment {
            context,
            tokens: ids,
            wanted: Wanted::Nothing,
        };
        let mut batch = Batch::new(vec![segment], IDENTITY).unwrap();
        batch.append(&self.exec, 0, &k, &v);
        let (table, isa) = (&self.table, self.exec.isa);
        let attention = Attention {
            heads: 1,
            scale: 0.5,
            softcap: 0.0,
            sinks: None,
            rotate: &|_, positions, queries| {
                let mut turn = RotaryRows::new();
                turn.set_turn(table, positions);
                for query in queries.chunks_exact_mut(DIM) {
                    turn.rotate(isa, 0, 1, DIM, query);
                }
            },
        };
        let mut out = vec![0.0; ids.len() * DIM];
        batch
            .attend(&self.exec, 0, &attention, &q, &mut out, &mut self.workspace)
            .unwrap();
        batch.commit();
        out
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
    let mut reader = Reader {
        exec: Exec::new(2, Isa::best(), Numerics::F32),
        table: RotaryTable::new(10_000.0, DIM),
        workspace: AttendWorkspace::default(),
    };
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
    let mut reader = Reader {
        exec: Exec::new(2, Isa::best(), Numerics::F32),
        table: RotaryTable::new(10_000.0, DIM),
        workspace: AttendWorkspace::default(),
    };
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
    let mut reader = Reader {
        exec: Exec::new(1, Isa::best(), Numerics::F32),
        table: RotaryTable::new(10_000.0, DIM),
        workspace: AttendWorkspace::default(),
    };
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
