//! Every form of keys and values × kind of layer × place: what must hold whatever the form is.

mod common;

use std::sync::Arc;

use common::*;
use longview_kernels::{Exec, Isa, Numerics};
use longview_kv::tier::{DiskOptions, DiskTier, Origin, StoreFolder, Tier};
use longview_kv::{
    AttendWorkspace, BlockHash, Context, KvForm, KvLayout, KvType, LayerState, Ledger, Store,
};

const FULL: LayerState = LayerState::Full;
const WINDOW: LayerState = LayerState::Window { tokens: 150 };

/// More than one span of keys, and an unfinished block.
const TOKENS: usize = 1190;

/// Every form by itself; keys and values apart; first and latest tokens exempt; a bounded one.
fn forms() -> Vec<KvForm> {
    let recent = |form: KvForm| KvForm {
        recent_tokens: 40,
        ..form
    };
    let sinks = |form: KvForm| KvForm {
        sink_tokens: 4,
        ..form
    };
    let plain = KvType::ALL.into_iter().map(KvForm::from);
    let whole = KvType::WHOLE
        .into_iter()
        .map(|kv_type| recent(kv_type.into()));
    let apart = [
        recent(KvForm {
            v: KvType::Q8,
            ..KvType::WHOLE[0].into()
        }),
        recent(KvForm {
            v: KvType::WHOLE[3],
            ..KvType::BF16.into()
        }),
    ];
    let exempt = [
        sinks(recent(KvType::WHOLE[2].into())),
        sinks(KvType::Q8.into()),
        recent(KvType::Q4.into()),
        KvForm {
            window_tokens: Some(300),
            ..sinks(recent(KvType::WHOLE[0].into()))
        },
    ];
    plain.chain(whole).chain(apart).chain(exempt).collect()
}

/// How far a form may move an output, in root mean square, where keys, values and queries are noise in
/// −1..1: what storing alone does, with a little room.
fn allowed(form: &KvForm) -> f32 {
    let of = |kv_type: KvType| -> f32 {
        match kv_type {
            KvType::F32 => 1e-6,
            KvType::F16 => 1e-4,
            KvType::BF16 => 5e-4,
            KvType::Q8 => 5e-4,
            KvType::Q4 => 8e-3,
            KvType::Kivi(_) if kv_type.to_string().starts_with("kivi4") => 8e-3,
            KvType::Kivi(_) => 4e-2,
            _ => 6e-2,
        }
    };
    of(form.k).max(of(form.v))
}

struct World {
    layout: Arc<KvLayout>,
    exec: Exec,
    workspace: AttendWorkspace,
}

impl World {
    fn read(&mut self, context: &mut Context, count: usize, chunk: usize) -> Vec<f32> {
        let end = context.len() + count;
        let mut out = Vec::new();
        while context.len() < end {
            let count = chunk.min(end - context.len());
            out.extend(step(
                vec![(&mut *context, count)],
                &self.exec,
                &mut self.workspace,
            ));
        }
        out
    }

    fn stored(&self, store: &Arc<Store>, form: &KvForm) -> Context {
        let origin = Arc::new(Origin {
            seed: BlockHash::seed(&[("kv", form.to_string().as_bytes())]),
            model: "test".to_owned(),
            identity: form.to_string(),
        });
        Context::in_store(self.layout.clone(), store.clone(), origin, IDENTITY)
    }
}

fn row(out: &[f32], at: usize) -> &[f32] {
    &out[at * HEADS * DIM..(at + 1) * HEADS * DIM]
}

#[test]
fn every_form_on_every_kind_of_layer() {
    for states in [[FULL, FULL], [WINDOW, FULL], [FULL, WINDOW]] {
        let exact = read_exactly(&states);
        for form in forms() {
            let name = format!("{states:?} {form}");
            let mut world = World {
                layout: mixed(&states, form),
                exec: Exec::new(2, Isa::best(), Numerics::Default),
                workspace: AttendWorkspace::default(),
            };
            let ledger = Ledger::unlimited();
            let mut context = Context::new(world.layout.clone(), ledger.clone(), IDENTITY);
            let chunk = 256;
            let out = world.read(&mut context, TOKENS, chunk);
            let stated = world.layout.context_bytes(TOKENS, chunk);
            assert!(
                ledger.usage().peak <= stated,
                "{name}: above what was stated"
            );
            assert_eq!(ledger.usage().kv, context.kv_bytes(), "{name}");

            // Rows do not depend on how they were cut: one by one at the end, in a fork.
            let mut again = Context::new(world.layout.clone(), Ledger::unlimited(), IDENTITY);
            let few = world.read(&mut again, TOKENS - 9, 113);
            assert!(out.starts_with(&few), "{name}: other chunks");
            let mut fork = again.fork();
            let ones = world.read(&mut fork, 9, 1);
            assert!(out.ends_with(&ones), "{name}: one by one");
            // The fork goes another way, and back; its origin is as it was.
            fork.truncate(TOKENS - 5).unwrap();
            let back = world.read(&mut fork, 5, 5);
            assert!(out.ends_with(&back), "{name}: back and on");
            drop(fork);
            assert!(
                out.ends_with(&world.read(&mut again, 9, 4)),
                "{name}: beside a fork"
            );

            // An error that storing explains, and one at all where numbers are rounded.
            let bounded = form.window_tokens.is_some() && states.contains(&FULL);
            if !bounded {
                let squares = out.iter().zip(&exact).map(|(a, b)| (a - b) * (a - b));
                let off = (squares.sum::<f32>() / out.len() as f32).sqrt();
                assert!(off <= allowed(&form), "{name}: off by {off}");
                assert!(off > 0.0 || form.k == KvType::F32, "{name}: not rounded");
            }
            on_disk(&mut world, &form, &out, &name);
        }
    }
}

/// Saved by one process and loaded by another, whose store is another object over the same folder; not
/// found under another form's name.
fn on_disk(world: &mut World, form: &KvForm, out: &[f32], name: &str) {
    let home = tempfile::tempdir().unwrap();
    let open = || {
        let folder = StoreFolder::open(&home.path().join("store")).unwrap();
        let tier: Arc<dyn Tier> =
            Arc::new(DiskTier::open(&folder, DiskOptions::default()).unwrap());
        Arc::new(Store::new(Ledger::unlimited(), vec![tier]))
    };
    let store = open();
    let mut first = world.stored(&store, form);
    world.read(&mut first, TOKENS - 60, 256);
    drop((first, store));
    let store = open();
    let ids = [0; TOKENS];
    let mut again = world.stored(&store, form);
    let held = again.attach(&ids).unwrap();
    assert_eq!(held, (TOKENS - 60) / 64 * 64, "{name}");
    let rest = world.read(&mut again, TOKENS - held, 30);
    assert_eq!(
        row(&rest, TOKENS - held - 1),
        row(out, TOKENS - 1),
        "{name}: loaded"
    );
    assert!(out.ends_with(&rest), "{name}: loaded");
    let other = KvForm {
        recent_tokens: form.recent_tokens + 1,
        ..KvType::WHOLE[1].into()
    };
    assert_eq!(
        world.stored(&store, &other).attach(&ids).unwrap(),
        0,
        "{name}"
    );
}

fn read_exactly(states: &[LayerState]) -> Vec<f32> {
    let mut world = World {
        layout: mixed(states, KvType::F32),
        exec: Exec::new(2, Isa::best(), Numerics::Default),
        workspace: AttendWorkspace::default(),
    };
    let mut context = Context::new(world.layout.clone(), Ledger::unlimited(), IDENTITY);
    world.read(&mut context, TOKENS, TOKENS)
}
