//! What attention reads, observed where a context asks for it: a second product of queries and keys,
//! after the attention itself, in which nothing changes.

use std::sync::Mutex;

use longview_kernels::attention::{score_page, softmax};
use longview_kernels::page::PAGE_TOKENS;

use super::blocks::sink_slots;
use super::picked::Pick;
use super::{Call, Worker, lock};
use crate::BLOCK_TOKENS;
use crate::error::KvError;
use crate::layout::{Group, LayerState};
use crate::pattern::QueryBlock;
use crate::read::ReadPlan;
use crate::run::Slot;

/// What one row's attention with the query heads of one KV head comes to.
#[derive(Default)]
struct Mass {
    /// Share of each block of tokens, averaged over the query heads.
    blocks: Vec<f32>,
    /// Whether it was read at all.
    read: Vec<bool>,
    failed: Option<KvError>,
}

impl Call<'_, '_> {
    /// Notes what the watched rows of the batch attend to in this layer.
    pub(super) fn watch(&self, workers: &[Mutex<Worker>]) -> Result<(), KvError> {
        for segment in 0..self.batch.segments().len() {
            let (context, group, _) = self.place(segment);
            let Some(watched) = context.watched.as_deref() else {
                continue;
            };
            if group.kind.state != LayerState::Full {
                continue;
            }
            let rows = self.batch.rows_of(segment).len();
            let first = watched.from().saturating_sub(context.len()).min(rows);
            for row in first..rows {
                let of_head = |head: usize| {
                    let is_it = |pick: &&Pick| pick.is_of(segment, row, head);
                    self.picks.iter().find(is_it).map(|pick| &pick.plan)
                };
                let mut heads: Vec<Mass> = Vec::new();
                heads.resize_with(group.kind.kv_heads, Mass::default);
                self.exec.pool.for_each(&mut heads, |head, mass, worker| {
                    let mut worker = lock(&workers[worker]);
                    let done = self.mass(segment, row, head, of_head(head), mass, &mut worker);
                    mass.failed = done.err();
                });
                for mass in heads {
                    match mass.failed {
                        Some(error) => return Err(error),
                        None => watched.note(&mass.blocks, &mass.read),
                    }
                }
            }
        }
        Ok(())
    }

    /// How the attention of one row with one KV head is spread over blocks of tokens.
    fn mass(
        &self,
        segment: usize,
        row: usize,
        head: usize,
        plan: Option<&ReadPlan>,
        mass: &mut Mass,
        worker: &mut Worker,
    ) -> Result<(), KvError> {
        let (context, group, place) = self.place(segment);
        let (heads, dim) = (self.attention.heads, group.kind.head_dim);
        let of_head = heads / group.kind.kv_heads;
        let token = context.len() + row;
        let from = ((self.batch.rows_of(segment).start + row) * heads + head * of_head) * dim;
        let queries = &self.q[from..from + of_head * dim];
        let own = context.places.slot(token);
        let mut seen = ReadPlan::default();
        match (plan, &context.sparse) {
            (Some(plan), _) => seen.clone_from(plan),
            (None, Some(sparse)) if !sparse.rows(token..token + 1).is_empty() => {
                let query = QueryBlock {
                    layer: self.layer,
                    block: own / PAGE_TOKENS,
                };
                sparse.blocks(&query, &mut seen.blocks);
            }
            (None, _) => seen.add(0..own / PAGE_TOKENS + 1),
        }
        let group_index = context.layout().layers[self.layer].0;
        let mut logits: Vec<Vec<f32>> = vec![Vec::new(); of_head];
        let mut blocks: Vec<usize> = Vec::new();
        let mut scores = vec![0.0; of_head * PAGE_TOKENS];
        for (covered, stretch) in context.places.within(0..own + 1, token + 1) {
            let mut turned: Vec<f32> = queries.iter().map(|x| x * self.attention.scale).collect();
            if stretch.shift != 0 {
                (self.attention.rotate)(context.identity().rope, stretch.shift, &mut turned);
            }
            for block in covered.start / PAGE_TOKENS..covered.end.div_ceil(PAGE_TOKENS) {
                if !seen.touches(&(block..block + 1)) {
                    continue;
                }
                let first = block * PAGE_TOKENS;
                // Where a layer holds its first or latest tokens apart, they are read there.
                let holder = match &group.recent {
                    Some(apart) if first < sink_slots(context, apart, own) => apart.sinks,
                    Some(apart) if first >= apart.first_slot(own) => Some(apart.group),
                    _ => None,
                };
                let holder = holder.unwrap_or(group_index);
                let of_block = &context.layout().groups[holder];
                let mut away = Vec::new();
                let slice = match context.block(holder, block) {
                    Some(block) => block.layer(of_block, place),
                    None => {
                        self.fetch(segment, holder, block, of_block, place, &mut away)?;
                        &away
                    }
                };
                let page = of_block.page(slice, head);
                score_page(
                    self.exec.isa,
                    &of_block.geometry,
                    page.k,
                    &turned,
                    &mut worker.scratch,
                    &mut scores,
                );
                let visible =
                    covered.start.max(first) - first..covered.end.min(first + PAGE_TOKENS) - first;
                for (logits, scores) in logits.iter_mut().zip(scores.chunks_exact(PAGE_TOKENS)) {
                    logits.extend_from_slice(&scores[visible.clone()]);
                }
                let tokens = visible.map(|slot| stretch.token + first + slot - stretch.slot);
                blocks.extend(tokens.map(|token| token / BLOCK_TOKENS));
            }
        }
        mass.blocks = vec![0.0; token / BLOCK_TOKENS + 1];
        mass.read = vec![false; mass.blocks.len()];
        blocks.iter().for_each(|&block| mass.read[block] = true);
        let softcap = self.attention.softcap;
        for logits in &mut logits {
            if softcap != 0.0 {
                logits
                    .iter_mut()
                    .for_each(|x| *x = softcap * (*x / softcap).tanh());
            }
            softmax(self.exec.isa, logits);
            for (&block, &weight) in blocks.iter().zip(logits.iter()) {
                mass.blocks[block] += weight / of_head as f32;
            }
        }
        Ok(())
    }

    /// One layer's slice of a block that is not in memory.
    fn fetch(
        &self,
        segment: usize,
        group_index: usize,
        index: usize,
        group: &Group,
        place: usize,
        slice: &mut Vec<u8>,
    ) -> Result<(), KvError> {
        let context = self.place(segment).0;
        slice.resize(group.layer_bytes(), 0);
        match (context.groups[group_index].slot(index), context.store()) {
            (Some(Slot::Sealed(handle)), Some(store)) => {
                Ok(store.read(&[handle.key()], place, slice)?)
            }
            _ => unreachable!("layers with full attention hold every block"),
        }
    }
}
