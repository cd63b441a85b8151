//! What the tests read with: four layers of which two are recurrent, and the passes over them.

use std::sync::Arc;

use longview_kernels::recurrent::{DeltaRows, DeltaShape, GatedDelta, HeadOrder};
use longview_kernels::{Exec, Isa, Numerics};
use longview_kv::tier::Origin;
use longview_kv::{
    AttendWorkspace, Attention, BLOCK_TOKENS, Batch, BlockHash, Context, KvError, KvLayout, KvType,
    LayerLayout, LayerState, Ledger, RecurrentWorkspace, Segment, Store, Wanted,
};

use crate::common::{IDENTITY, noise};

pub(crate) const SHAPE: DeltaShape = DeltaShape {
    key_heads: 2,
    value_heads: 4,
    key_dim: 8,
    value_dim: 20,
    taps: 4,
};

pub(crate) const HEAD_DIM: usize = 16;

pub(crate) const WINDOW: LayerState = LayerState::Window { tokens: 100 };

/// A full, a recurrent, a third and another recurrent layer.
pub(crate) fn layout(third: LayerState) -> Arc<KvLayout> {
    let attention = |state| LayerLayout {
        state,
        kv_heads: 1,
        head_dim: HEAD_DIM,
        v_dim: HEAD_DIM,
    };
    let recurrent = LayerLayout::recurrent(SHAPE.state() * size_of::<f32>());
    let layers = [
        attention(LayerState::Full),
        recurrent,
        attention(third),
        recurrent,
    ];
    Arc::new(KvLayout::new(&layers, KvType::F32))
}

pub(crate) struct World {
    pub(crate) exec: Exec,
    pub(crate) conv: Vec<f32>,
    pub(crate) attend: AttendWorkspace,
    pub(crate) recurrent: RecurrentWorkspace,
}

impl World {
    pub(crate) fn new() -> World {
        World {
            exec: Exec::new(2, Isa::best(), Numerics::Default),
            conv: (0..SHAPE.taps * SHAPE.channels())
                .map(|i| noise(1, i, 0))
                .collect(),
            attend: AttendWorkspace::default(),
            recurrent: RecurrentWorkspace::default(),
        }
    }

    /// Reads `ids` in one pass and returns what all layers give for the last of them.
    pub(crate) fn read(&mut self, context: &mut Context, ids: &[u32]) -> Vec<f32> {
        self.pass(context, ids, Control::Commit).unwrap()
    }

    pub(crate) fn pass(
        &mut self,
        context: &mut Context,
        ids: &[u32],
        control: Control,
    ) -> Result<Vec<f32>, KvError> {
        let (start, rows) = (context.len(), ids.len());
        let segment = Segment {
            context,
            tokens: ids,
            wanted: Wanted::Last,
        };
        let mut batch = Batch::new(vec![segment], IDENTITY)?;
        let values = |seed: usize, width: usize| -> Vec<f32> {
            let of_row = |row: usize| {
                let id = ids[row] as usize;
                (0..width).map(move |at| noise(seed + 7 * id, start + row, at))
            };
            (0..rows).flat_map(of_row).collect()
        };
        let attention = Attention {
            heads: 1,
            scale: 0.25,
            softcap: 0.0,
            sinks: None,
            rotate: &|_, _, _| unreachable!("nothing was removed"),
        };
        let delta = GatedDelta {
            shape: SHAPE,
            order: HeadOrder::Grouped,
            conv: &self.conv,
        };
        let mut last = Vec::new();
        for layer in 0..4 {
            let width = if layer % 2 == 0 {
                HEAD_DIM
            } else {
                SHAPE.value_heads * SHAPE.value_dim
            };
            let mut out = vec![f32::NAN; rows * width];
            if layer % 2 == 0 {
                let [q, k, v] = [1, 2, 3].map(|seed| values(100 * layer + seed, HEAD_DIM));
                batch.append(&self.exec, layer, &k, &v);
                batch.attend(
                    &self.exec,
                    layer,
                    &attention,
                    &q,
                    &mut out,
                    &mut self.attend,
                )?;
            } else {
                let gates = |seed| -> Vec<f32> {
                    let raw = values(seed, SHAPE.value_heads);
                    raw.into_iter().map(|x| 0.9 + 0.09 * x).collect()
                };
                let (mixed, decay, beta) =
                    (values(50 + layer, SHAPE.channels()), gates(60), gates(70));
                let rows = DeltaRows {
                    mixed: &mixed,
                    decay: &decay,
                    beta: &beta,
                };
                let states = &mut self.recurrent;
                batch.read_recurrent(&self.exec, layer, &delta, &rows, &mut out, states)?;
            }
            last.extend_from_slice(&out[(rows - 1) * width..]);
        }
        if control == Control::Commit {
            batch.commit();
        }
        Ok(last)
    }

    /// Reads `ids` as a prefill does: passes end where states can be kept. What turns out to be lost is
    /// read again before.
    pub(crate) fn prefill(&mut self, context: &mut Context, ids: &[u32]) -> Vec<f32> {
        let (mut rest, mut last) = (ids.to_vec(), Vec::new());
        while !rest.is_empty() {
            let count = context.next_pass(rest.len(), 96);
            match self.pass(context, &rest[..count], Control::Commit) {
                Ok(given) => {
                    last = given;
                    rest.drain(..count);
                    if rest.len() < BLOCK_TOKENS {
                        context.checkpoint();
                    }
                }
                Err(KvError::Lost(error)) => {
                    let again = context.lose(&error.key().unwrap());
                    assert!(!again.is_empty(), "{error} is none of its blocks");
                    rest.splice(..0, again);
                }
                Err(error) => panic!("{error}"),
            }
        }
        last
    }
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Control {
    Commit,
    GiveUp,
}

pub(crate) fn ids(count: usize) -> Vec<u32> {
    (0..count).map(|i| (i * i % 11) as u32).collect()
}

pub(crate) fn fresh() -> Context {
    Context::new(layout(WINDOW), Ledger::unlimited(), IDENTITY)
}

pub(crate) fn in_store(store: &Arc<Store>) -> Context {
    context_in(&layout(WINDOW), store)
}

pub(crate) fn context_in(layout: &Arc<KvLayout>, store: &Arc<Store>) -> Context {
    let origin = Arc::new(Origin {
        seed: BlockHash::seed(&[("test", b"recurrent")]),
        model: "tiny".to_owned(),
        identity: String::new(),
    });
    Context::in_store(Arc::clone(layout), Arc::clone(store), origin, IDENTITY)
}

/// What reading `ids` and then `next` gives for the last of `next`, undisturbed.
pub(crate) fn expected(world: &mut World, ids: &[u32], next: &[u32]) -> Vec<f32> {
    let mut context = fresh();
    world.read(&mut context, ids);
    world.read(&mut context, next)
}
