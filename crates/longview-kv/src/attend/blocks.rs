//! The part of attention that reads blocks: a task's spans, in the parts that text that was moved and
//! forms of several kinds make of them, as far as a pattern or a plan says.

use std::ops::Range;

use longview_kernels::attention::{PageRef, QueryRows, SPAN_TOKENS, attend_further};
use longview_kernels::page::PAGE_TOKENS;

use super::plan::{Source, Task};
use super::{Call, HEADS_PER_TASK, SPAN_BLOCKS, Worker};
use crate::context::Context;
use crate::feed::{Missing, Slices};
use crate::layout::{LayerState, Recent};
use crate::pattern::{QueryBlock, Sparse};
use crate::places::Stretch;

impl Call<'_, '_> {
    /// The running softmax of a task over some of its spans, which follow those before.
    pub(super) fn run(
        &self,
        task: &mut Task,
        spans: Range<usize>,
        read: Option<(&Missing, &Slices)>,
        worker: &mut Worker,
    ) {
        if let Source::Stream | Source::PickedStream(_) = task.source {
            return self.run_stream(task, spans, worker);
        }
        let (context, group, place) = self.place(task.segment);
        let group_index = context.layout().layers[self.layer].0;
        let v_dim = group.kind.v_dim;
        let group_size = self.attention.heads / group.kind.kv_heads;
        self.gather(task, worker);
        let count = task.heads.len() * task.rows.len() * group_size;
        if spans.start == task.spans.start {
            task.partials.reset(count, v_dim);
        }
        let end = context.len() + task.rows.end;
        let mut turned = 0;
        // A span's parts are merged before it joins the spans before it: whoever attends to spans in
        // tasks of their own has no other choice.
        let in_parts = group.recent.is_some() || !context.places.is_plain();
        let plan = match task.source {
            Source::Picked(at) => Some(&self.picks[at].plan),
            Source::Blocks | Source::Stream | Source::PickedStream(_) | Source::Shared(_) => None,
        };
        for span in spans {
            let blocks = span * SPAN_BLOCKS..(span + 1) * SPAN_BLOCKS;
            if plan.is_some_and(|plan| !plan.touches(&blocks)) {
                continue;
            }
            let slots = span * SPAN_TOKENS..(span + 1) * SPAN_TOKENS;
            if in_parts {
                std::mem::swap(&mut task.partials, &mut worker.apart);
                task.partials.reset(count, v_dim);
            }
            for (covered, stretch) in context.places.within(slots, end) {
                if stretch.shift != turned {
                    self.gather(task, worker);
                    (self.attention.rotate)(
                        context.identity().rope,
                        stretch.shift,
                        &mut worker.queries,
                    );
                    turned = stretch.shift;
                }
                let part = Part {
                    covered,
                    stretch,
                    read,
                };
                let in_memory = Part {
                    read: None,
                    ..part.clone()
                };
                let of = |group, seen| Blocks { group, place, seen };
                let (sinks, recent) = match group.recent {
                    None => (None, None),
                    Some(recent) => (
                        recent.sinks.map(|sinks| of(sinks, Seen::Sinks(recent))),
                        Some(of(recent.group, Seen::From(recent))),
                    ),
                };
                let older = match group.recent {
                    None => of(group_index, Seen::All),
                    Some(recent) => of(group_index, Seen::Before(recent)),
                };
                let mut attend = |task: &mut Task, chosen: &Chosen<'_>, worker: &mut Worker| {
                    if let Some(sinks) = &sinks {
                        self.attend_blocks(task, sinks, &in_memory, chosen, worker);
                    }
                    self.attend_blocks(task, &older, &part, chosen, worker);
                    if let Some(recent) = &recent {
                        self.attend_blocks(task, recent, &in_memory, chosen, worker);
                    }
                };
                if let Some(plan) = plan {
                    let chosen = Chosen {
                        rows: task.rows.clone(),
                        blocks: Some(&plan.blocks),
                    };
                    attend(task, &chosen, worker);
                    continue;
                }
                let full = group.kind.state == LayerState::Full;
                let Some(sparse) = context.sparse.as_ref().filter(|_| full) else {
                    let all = Chosen {
                        rows: task.rows.clone(),
                        blocks: None,
                    };
                    attend(task, &all, worker);
                    continue;
                };
                self.by_pattern(sparse, task, worker, &mut attend);
            }
            if in_parts {
                worker.apart.merge(self.exec.isa, &task.partials);
                std::mem::swap(&mut task.partials, &mut worker.apart);
            }
        }
    }

    /// Calls `attend` for the rows of a task that a pattern speaks of, one block of queries at a time,
    /// and for the others.
    fn by_pattern(
        &self,
        sparse: &Sparse,
        task: &mut Task,
        worker: &mut Worker,
        attend: &mut dyn FnMut(&mut Task, &Chosen<'_>, &mut Worker),
    ) {
        let context: &Context = self.batch.segments()[task.segment].context;
        let start = context.len();
        let tokens = start + task.rows.start..start + task.rows.end;
        let mut spoken_of = sparse.rows(tokens.clone());
        let mut blocks = std::mem::take(&mut worker.blocks);
        while !spoken_of.is_empty() {
            let block = context.places.slot(spoken_of.start) / PAGE_TOKENS;
            let same = |token: &usize| context.places.slot(*token) / PAGE_TOKENS == block;
            let end = spoken_of.clone().take_while(same).last();
            let end = end.map_or(spoken_of.end, |token| token + 1);
            let query = QueryBlock {
                layer: self.layer,
                block,
            };
            sparse.blocks(&query, &mut blocks);
            let chosen = Chosen {
                rows: spoken_of.start - start..end - start,
                blocks: Some(&blocks),
            };
            attend(task, &chosen, worker);
            spoken_of.start = end;
        }
        worker.blocks = blocks;
        let rest = Chosen {
            rows: spoken_of.end - start..task.rows.end,
            blocks: None,
        };
        if !rest.rows.is_empty() {
            attend(task, &rest, worker);
        }
    }

    /// Goes on with a task's rows `chosen` over what `blocks` hold of a part of the keys.
    fn attend_blocks(
        &self,
        task: &mut Task,
        blocks: &Blocks,
        part: &Part<'_>,
        chosen: &Chosen<'_>,
        worker: &mut Worker,
    ) {
        let Part {
            covered,
            stretch,
            read,
        } = part;
        let context: &Context = self.batch.segments()[task.segment].context;
        let group = &context.layout().groups[blocks.group];
        let layer_group = self.place(task.segment).1;
        let v_dim = group.kind.v_dim;
        let group_size = self.attention.heads / group.kind.kv_heads;
        let first = covered.start / PAGE_TOKENS;
        let last = covered.end.div_ceil(PAGE_TOKENS);
        let mut pages = [PageRef::new(&[], &[]); SPAN_BLOCKS * HEADS_PER_TASK];
        let mut used = 0;
        // The blocks whose pages are read, as they follow one another there.
        let mut present = [0; SPAN_BLOCKS];
        let mut count = 0;
        for index in (first..last).filter(|&index| chosen.holds(index)) {
            let slice = match context.block(blocks.group, index) {
                Some(block) => Some(block.layer(group, blocks.place)),
                None => read.and_then(|(missing, slices)| {
                    let at = missing.blocks.binary_search(&index).ok()?;
                    Some(slices.of(at))
                }),
            };
            // A block that a window layer has dropped is seen by no row of the batch.
            if let Some(slice) = slice {
                for head in task.heads.clone() {
                    pages[used] = group.page(slice, head);
                    used += 1;
                }
                present[count] = index;
                count += 1;
            }
        }
        if used == 0 {
            return;
        }
        let present = &present[..count];
        // How many slots of the pages that are read lie before a slot.
        let before = |slot: usize| {
            let whole = present.partition_point(|&index| (index + 1) * PAGE_TOKENS <= slot);
            let within = present.get(whole) == Some(&(slot / PAGE_TOKENS));
            whole * PAGE_TOKENS + if within { slot % PAGE_TOKENS } else { 0 }
        };
        worker.visible.clear();
        for row in task.rows.clone() {
            let position = context.len() + row;
            let seen = blocks.seen.of(context, context.places.slot(position));
            // Tokens of this stretch are as far from its first as their slots are.
            let slot = |token: usize| {
                let slot = stretch.slot + token.saturating_sub(stretch.token);
                let slot = slot.clamp(seen.start, seen.end);
                before(slot.clamp(covered.start, covered.end)) as u32
            };
            let first = match blocks.seen {
                Seen::Sinks(_) => 0,
                _ => context.first_token(layer_group, position),
            };
            let range = if chosen.rows.contains(&row) {
                slot(first)..slot(position + 1)
            } else {
                0..0
            };
            worker
                .visible
                .extend(std::iter::repeat_n(range, group_size));
        }
        if worker.visible.iter().all(Range::is_empty) {
            return;
        }
        let rows = QueryRows {
            heads: task.heads.len(),
            q: &worker.queries,
            visible: &worker.visible,
            softcap: self.attention.softcap,
        };
        let count = task.heads.len() * task.rows.len() * group_size;
        worker.pages += used as u64;
        let fresh = task.partials.is_fresh();
        let out = match fresh {
            true => &mut task.partials,
            false => {
                worker.partials.reset(count, v_dim);
                &mut worker.partials
            }
        };
        attend_further(
            self.exec.isa,
            &group.geometry,
            &pages[..used],
            &rows,
            &mut worker.scratch,
            out,
        );
        if !fresh {
            task.partials.merge(self.exec.isa, &worker.partials);
        }
    }
}

/// A part of the keys: the slots `covered` of a stretch, and what of it was read back.
#[derive(Clone)]
struct Part<'r> {
    covered: Range<usize>,
    stretch: Stretch,
    read: Option<(&'r Missing, &'r Slices)>,
}

/// Rows of a task, and the blocks that they attend to; all where nothing is said.
struct Chosen<'a> {
    /// Inside the segment.
    rows: Range<usize>,
    /// Ascending.
    blocks: Option<&'a [Range<usize>]>,
}

impl Chosen<'_> {
    /// Whether block `index` is attended to.
    fn holds(&self, index: usize) -> bool {
        self.blocks.is_none_or(|blocks| {
            let after = blocks.partition_point(|range| range.end <= index);
            blocks
                .get(after)
                .is_some_and(|range| range.contains(&index))
        })
    }
}

/// The blocks of a layer in one group, and which of their slots a row sees.
struct Blocks {
    group: usize,
    place: usize,
    seen: Seen,
}

/// Which slots a row sees, beside what its layer's kind says.
enum Seen {
    All,
    /// The first ones, where they are held as they were written.
    Sinks(Recent),
    /// Those that are read in pages made of filled ones.
    Before(Recent),
    /// Those that are read among the recent ones.
    From(Recent),
}

impl Seen {
    /// Those of the row in `slot` of a context.
    fn of(&self, context: &Context, slot: usize) -> Range<usize> {
        match self {
            Seen::All => 0..usize::MAX,
            Seen::Sinks(recent) => 0..sink_slots(context, recent, slot),
            Seen::Before(recent) => sink_slots(context, recent, slot)..recent.first_slot(slot),
            Seen::From(recent) => recent.first_slot(slot)..usize::MAX,
        }
    }
}

/// The first slots that the row in `slot` reads as they were written, though they are not recent.
pub(super) fn sink_slots(context: &Context, recent: &Recent, slot: usize) -> usize {
    let blocks = recent
        .sinks
        .map_or(0, |sinks| context.layout().groups[sinks].most_blocks);
    recent.first_slot(slot).min(blocks * PAGE_TOKENS)
}
