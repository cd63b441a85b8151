//! A model of two layers whose keys, values and queries follow from position alone.

#![allow(dead_code, reason = "every test file uses its own part")]

use std::sync::Arc;

use longview_kernels::{Exec, Numerics};
use longview_kv::{
    AttendWorkspace, Attention, Batch, Context, Identity, KvError, KvForms, KvLayout, LayerLayout,
    LayerState, Ledger, RopeSet, Segment, Wanted,
};

pub(crate) const HEADS: usize = 4;
pub(crate) const KV_HEADS: usize = 2;
pub(crate) const DIM: usize = 24;

pub(crate) const IDENTITY: Identity = Identity {
    model: 1,
    rope: RopeSet::Short,
    numerics: Numerics::Default,
};

/// Numbers in −1..1 that depend on all arguments.
pub(crate) fn noise(seed: usize, a: usize, b: usize) -> f32 {
    let mut x = (seed * 0x9e37 + a * 0x85eb_ca6b + b * 0xc2b2_ae35) as u64 ^ 0x2545_f491_4f6c_dd1d;
    for _ in 0..3 {
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    }
    ((x >> 40) as f32) / ((1u64 << 23) as f32) - 1.0
}

/// `[count][width]` of the positions from `start` on.
pub(crate) fn rows(seed: usize, start: usize, count: usize, width: usize) -> Vec<f32> {
    (0..count * width)
        .map(|i| noise(seed, start + i / width, i % width))
        .collect()
}

pub(crate) fn layout(state: LayerState, forms: impl Into<KvForms>) -> Arc<KvLayout> {
    mixed(&[state, state], forms)
}

/// One layer for each of `states`.
pub(crate) fn mixed(states: &[LayerState], forms: impl Into<KvForms>) -> Arc<KvLayout> {
    let layer = |&state| LayerLayout {
        state,
        kv_heads: KV_HEADS,
        head_dim: DIM,
        v_dim: DIM,
    };
    let layers: Vec<LayerLayout> = states.iter().map(layer).collect();
    Arc::new(KvLayout::new(&layers, forms))
}

pub(crate) fn context(layout: &Arc<KvLayout>) -> Context {
    Context::new(Arc::clone(layout), Ledger::unlimited(), IDENTITY)
}

/// Reads `count` tokens in one pass and returns layer 1's attention for them.
pub(crate) fn step(
    contexts: Vec<(&mut Context, usize)>,
    exec: &Exec,
    workspace: &mut AttendWorkspace,
) -> Vec<f32> {
    let most = contexts.iter().map(|(_, count)| *count).max().unwrap();
    try_step(contexts, &vec![0; most], exec, workspace).unwrap()
}

/// The same with the ids of the tokens, from the first of each context's new ones on.
pub(crate) fn try_step(
    contexts: Vec<(&mut Context, usize)>,
    ids: &[u32],
    exec: &Exec,
    workspace: &mut AttendWorkspace,
) -> Result<Vec<f32>, KvError> {
    let mut starts = Vec::new();
    let segments: Vec<_> = contexts
        .into_iter()
        .map(|(context, count)| {
            starts.push((context.len(), count));
            Segment {
                context,
                tokens: &ids[..count],
                wanted: Wanted::Last,
            }
        })
        .collect();
    let mut batch = Batch::new(segments, IDENTITY)?;
    let gather = |seed, width| -> Vec<f32> {
        starts
            .iter()
            .flat_map(|&(start, count)| rows(seed, start, count, width))
            .collect()
    };
    let attention = Attention {
        heads: HEADS,
        scale: 0.4,
        softcap: 0.0,
        sinks: None,
        rotate: &|_, _, _| unreachable!("nothing was removed"),
    };
    let mut out = vec![f32::NAN; batch.rows() * HEADS * DIM];
    for layer in 0..2 {
        let (k, v) = (
            gather(10 + layer, KV_HEADS * DIM),
            gather(20 + layer, KV_HEADS * DIM),
        );
        batch.append(exec, layer, &k, &v);
        let q = gather(30 + layer, HEADS * DIM);
        batch.attend(exec, layer, &attention, &q, &mut out, workspace)?;
    }
    batch.commit();
    Ok(out)
}

/// Layer 1's attention of position `position`, computed in f64 from the definition.
pub(crate) fn oracle(position: usize, window: usize) -> Vec<f64> {
    let first = (position + 1).saturating_sub(window);
    oracle_of(position, &|_, at| at >= first)
}

/// The same over the positions up to its own that `sees` says of each KV head.
pub(crate) fn oracle_of(position: usize, sees: &dyn Fn(usize, usize) -> bool) -> Vec<f64> {
    let row = |seed, at, width, head: usize| -> Vec<f64> {
        let all = rows(seed, at, 1, width);
        all[head * DIM..(head + 1) * DIM]
            .iter()
            .map(|&x| f64::from(x))
            .collect()
    };
    (0..HEADS)
        .flat_map(|head| {
            let q = row(31, position, HEADS * DIM, head);
            let kv_head = head / (HEADS / KV_HEADS);
            let seen: Vec<usize> = (0..=position).filter(|&at| sees(kv_head, at)).collect();
            let weights: Vec<f64> = seen
                .iter()
                .map(|&at| {
                    let k = row(11, at, KV_HEADS * DIM, kv_head);
                    (0.4 * q.iter().zip(&k).map(|(a, b)| a * b).sum::<f64>()).exp()
                })
                .collect();
            let total: f64 = weights.iter().sum();
            let mut out = vec![0.0; DIM];
            for (&at, weight) in seen.iter().zip(&weights) {
                let v = row(21, at, KV_HEADS * DIM, kv_head);
                out.iter_mut()
                    .zip(&v)
                    .for_each(|(o, v)| *o += weight / total * v);
            }
            out
        })
        .collect()
}
