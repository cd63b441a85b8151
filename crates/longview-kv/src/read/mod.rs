//! The read stage: which of the stored pages a row of an answer reads.
//!
//! A [`Select`] method plans it for every row, layer and KV head apart, in blocks of 64 tokens; what
//! the plan leaves out is not read, so the cost is that of the pages read. It speaks of an answer's
//! tokens only ([`Context::answer_from`]): prompts attend to everything. Nothing leaves the context,
//! so the next row may read what this one did not. A plan follows from the row alone, from its query and from what
//! stands before it, never from the pass; so the bits do not depend on batches either.
//!
//! Layers with a sliding window and recurrent layers are bounded already and stay as they are.
//!
//! Where a keep method is in charge as well, rows choose among what it has left: the pages of each head's
//! stream, which count as the head's first blocks, and the blocks after them.

mod bounds;
mod left;
mod reads;
mod search;

use std::fmt;
use std::ops::Range;

use longview_kernels::Isa;

use crate::layout::{Group, KvLayout, LayerState};
use crate::{BLOCK_TOKENS, SPAN_BLOCKS};
pub(crate) use bounds::Bounds;
use bounds::{SLAB_SPANS, Shape};
pub use reads::ReadReport;
pub(crate) use reads::Reads;
pub(crate) use search::{Best, HeadBounds};

/// read: the pages that one row reads.
pub trait Select: Send + Sync {
    /// The tokens whose keys share bounds, where the method goes by bounds: they are made when a
    /// block is full, and kept beside it.
    fn bounds(&self) -> Option<Part> {
        None
    }

    /// Whether rows of layer `layer` that see `blocks` blocks read them all, with any KV head. Rows that do take the
    /// dense path.
    fn reads_all(&self, layer: usize, blocks: usize) -> bool;

    /// Adds to `plan` the blocks that the query heads of one KV head read, ascending: none after the
    /// row's own, and all from [`RowQuery::latest`] on.
    fn select(&self, row: &mut RowQuery<'_>, plan: &mut ReadPlan);
}

/// A read method with its name.
pub struct Read {
    /// Its canonical text, such as `quest(budget=10%, page=16, dense=2)`.
    pub text: String,
    /// The method.
    pub select: Box<dyn Select>,
}

/// A part of a block whose keys share bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// 16 tokens: four parts a block.
    Tokens16,
    /// 32 tokens: two parts a block.
    Tokens32,
    /// All 64.
    Tokens64,
}

/// Which blocks are read: ascending, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadPlan {
    /// Ranges that do not touch.
    pub(crate) blocks: Vec<Range<usize>>,
}

/// The queries that one row makes with the query heads of one KV head.
pub struct RowQuery<'a> {
    pub(crate) isa: Isa,
    pub(crate) layer: usize,
    pub(crate) head: usize,
    pub(crate) own: usize,
    pub(crate) latest: usize,
    pub(crate) queries: &'a [f32],
    pub(crate) bounds: Option<HeadBounds<'a>>,
    pub(crate) best: &'a mut Best,
}

impl Part {
    /// Its tokens.
    pub fn tokens(self) -> usize {
        match self {
            Part::Tokens16 => 16,
            Part::Tokens32 => 32,
            Part::Tokens64 => 64,
        }
    }
}

impl Read {
    /// Bytes of what is kept beside the blocks of a context of `tokens` tokens.
    pub fn bytes(&self, layout: &KvLayout, tokens: usize) -> u64 {
        let Some(part) = self.select.bounds() else {
            return 0;
        };
        let full = layout.groups.iter().filter(|group| chosen_from(group));
        let of_group = |group| Bounds::new(group, part).bytes_for(tokens / BLOCK_TOKENS);
        full.map(of_group).sum()
    }

    /// The same under a keep method, where at most `kv_bytes` of keys and values are held: pages of a head are as
    /// many as their bytes allow, and every head has spans of its own, which need not be full.
    pub fn bytes_beside(&self, layout: &KvLayout, kv_bytes: u64) -> u64 {
        let Some(part) = self.select.bounds() else {
            return 0;
        };
        let full = || layout.groups.iter().filter(|group| chosen_from(group));
        let of_span = |group: &Group| {
            let shape = Shape::new(group, part);
            shape.parts.bytes() + shape.spans.bytes().div_ceil(SLAB_SPANS)
        };
        let by_byte =
            full().map(|group| of_span(group) as f64 / (SPAN_BLOCKS * group.page_bytes()) as f64);
        let begun = full().map(|group| {
            let shape = Shape::new(group, part);
            // A page that two heads share, a span of the stream and one of blocks, and what is above each.
            let of_head = 2 * (shape.parts.bytes() + shape.spans.bytes()) + of_span(group);
            (group.layers * group.kind.kv_heads * of_head) as u64
        });
        (by_byte.fold(0.0, f64::max) * kv_bytes as f64) as u64 + begun.sum::<u64>()
    }
}

/// Whether blocks of the group are chosen from: those of layers that see everything, unless they hold
/// tokens that are held elsewhere too.
pub(crate) fn chosen_from(group: &Group) -> bool {
    group.kind.state == LayerState::Full && !group.is_beside
}

impl ReadPlan {
    /// Adds blocks, which come after all there are.
    ///
    /// # Panics
    /// When they do not.
    pub fn add(&mut self, blocks: Range<usize>) {
        if blocks.is_empty() {
            return;
        }
        match self.blocks.last_mut() {
            Some(last) if last.end >= blocks.start => {
                assert_eq!(last.end, blocks.start, "blocks are added in order");
                last.end = blocks.end;
            }
            _ => self.blocks.push(blocks),
        }
    }

    /// Blocks in all.
    pub fn count(&self) -> usize {
        self.blocks.iter().map(Range::len).sum()
    }

    /// Each block.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.blocks.iter().cloned().flatten()
    }

    /// Whether any of `blocks` is read.
    pub(crate) fn touches(&self, blocks: &Range<usize>) -> bool {
        let after = self
            .blocks
            .partition_point(|range| range.end <= blocks.start);
        self.blocks
            .get(after)
            .is_some_and(|range| range.start < blocks.end)
    }
}

impl RowQuery<'_> {
    /// The layer.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// The KV head.
    pub fn head(&self) -> usize {
        self.head
    }

    /// The block that the row itself is in; it sees this one and all before it. Under a keep method the pages
    /// that are left of earlier tokens count as blocks before those that came after them.
    pub fn own(&self) -> usize {
        self.own
    }

    /// The first block that is read in any case: the row's own, which is not full yet; or an earlier
    /// one, where the latest tokens are held in a form of their own.
    pub fn latest(&self) -> usize {
        self.latest
    }

    /// The queries, `[query heads][head_dim]`, rotated to the row's position.
    pub fn queries(&self) -> &[f32] {
        self.queries
    }

    /// The `count` blocks among `among`, all before [`RowQuery::latest`], whose bounds promise the
    /// most to any of the queries, ascending; of equal ones the earlier. A block's bound is the largest
    /// of its parts'. Blocks are looked at from bounds of 1,024 tokens downward, and those that cannot be
    /// among the best are not looked at; what is found is what looking at all would find.
    ///
    /// # Panics
    /// When the method has no bounds, or `among` goes beyond the blocks that are full.
    pub fn best(&mut self, among: Range<usize>, count: usize) -> &[u32] {
        let bounds = self
            .bounds
            .as_ref()
            .expect("a method that goes by bounds asks for them");
        assert!(among.end <= self.own, "bounds are of blocks that are full");
        bounds.best(self.isa, self.queries, among, count, self.best)
    }
}

impl fmt::Debug for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Two are the same when they are written the same.
impl PartialEq for Read {
    fn eq(&self, other: &Read) -> bool {
        self.text == other.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_ranges_that_do_not_touch() {
        let mut plan = ReadPlan::default();
        for blocks in [0..1, 1..1, 1..2, 5..6, 6..9, 12..13] {
            plan.add(blocks);
        }
        assert_eq!(plan.blocks, [0..2, 5..9, 12..13]);
        assert_eq!(plan.count(), 7);
        assert!(plan.touches(&(0..16)) && plan.touches(&(8..10)));
        assert!(!plan.touches(&(9..12)) && !plan.touches(&(13..99)));
        assert!(plan.iter().eq([0, 1, 5, 6, 7, 8, 12]));
    }
}
