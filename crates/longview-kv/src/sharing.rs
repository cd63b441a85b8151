//! Which blocks several segments of a batch have in common, so that attention reads them once for all.
//!
//! Contexts that begin alike refer to the same blocks: forks, and contexts that took a prefix over from a
//! store. Where each of them computes a row or two, as when answers are written, reading these blocks
//! is most of the work. A [`Run`] is a stretch of blocks with the segments that read it; the runs of a
//! layer group are a tree, whose leaves are what each segment has for itself. What the rows of a segment
//! see, and in which order, is the same as without: only the number of times that a page is fetched
//! changes.

use std::ops::Range;
use std::sync::Arc;

use crate::BLOCK_TOKENS;
use crate::batch::Segment;
use crate::block::Block;
use crate::context::Context;
use crate::layout::Group;

/// The most rows of a segment that shares: rows of a prompt keep pages in the cache by themselves.
const MOST_ROWS: usize = 8;

/// What the segments of a batch have in common in one layer group. Empty where it is nothing.
#[derive(Default)]
pub(crate) struct Sharing {
    /// Every run after the one it goes on from.
    runs: Vec<Run>,
    /// The segments that take part; those of a run stand side by side.
    order: Vec<usize>,
    /// For each segment of the batch its place in `order`.
    places: Vec<Option<usize>>,
    /// Rows of the segments before each place of `order`, and of all.
    rows: Vec<usize>,
}

/// Blocks that some segments read one after another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Numbers of the blocks, the same in all contexts.
    pub(crate) blocks: Range<usize>,
    /// The segments, as places in [`Sharing::order`].
    pub(crate) places: Range<usize>,
    /// The run that ends where this one begins.
    pub(crate) from: Option<usize>,
}

impl Sharing {
    /// What `segments` share in layer group `index`; room for their rows has been made.
    pub(crate) fn of(segments: &[Segment<'_>], index: usize) -> Sharing {
        let layout = segments[0].context.layout();
        let takes_part = |&at: &usize| {
            let Segment {
                context, tokens, ..
            } = &segments[at];
            tokens.len() <= MOST_ROWS
                && Arc::ptr_eq(context.layout(), layout)
                && can_share(context, &layout.groups[index])
        };
        let mut sharing = Sharing {
            order: (0..segments.len()).filter(takes_part).collect(),
            ..Sharing::default()
        };
        if sharing.order.len() < 2 {
            return Sharing::default();
        }
        let blocks = Blocks { segments, index };
        let mut order = std::mem::take(&mut sharing.order);
        blocks.split(&mut order, 0, 0, None, &mut sharing.runs);
        let shared = |run: &Run| {
            run.places.len() > 1
                && (blocks.block(order[run.places.start], run.blocks.end - 1)).is_some()
        };
        if !sharing.runs.iter().any(shared) {
            return Sharing::default();
        }
        sharing.places = vec![None; segments.len()];
        sharing.rows.push(0);
        for (place, &segment) in order.iter().enumerate() {
            sharing.places[segment] = Some(place);
            let before = sharing.rows[place];
            sharing.rows.push(before + segments[segment].tokens.len());
        }
        sharing.order = order;
        sharing
    }

    /// The runs, every one after that which it goes on from.
    pub(crate) fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Whether segment `segment` takes part; all that it reads is in runs then.
    pub(crate) fn has(&self, segment: usize) -> bool {
        self.place(segment).is_some()
    }

    /// The place of segment `segment` in the order of the runs.
    pub(crate) fn place(&self, segment: usize) -> Option<usize> {
        *self.places.get(segment)?
    }

    /// The segments of `run`, in the order of their rows.
    pub(crate) fn segments(&self, run: &Run) -> &[usize] {
        &self.order[run.places.clone()]
    }

    /// Rows of `run`'s segments.
    pub(crate) fn rows(&self, run: &Run) -> usize {
        self.rows[run.places.end] - self.rows[run.places.start]
    }

    /// The row of `run` that is the first of the segment at `place`.
    pub(crate) fn first_row(&self, run: &Run, place: usize) -> usize {
        self.rows[place] - self.rows[run.places.start]
    }
}

/// Whether pages of `context` in blocks of `group` are read by position, all of them.
fn can_share(context: &Context, group: &Group) -> bool {
    !group.is_recurrent()
        && group.recent.is_none()
        && context.places.is_plain()
        && context.kept.is_none()
        && context.sparse.is_none()
        && context.reads.is_none()
}

/// The blocks of one layer group.
struct Blocks<'a, 'b> {
    segments: &'a [Segment<'b>],
    index: usize,
}

impl Blocks<'_, '_> {
    /// Adds the runs of the segments `order` from block `from` on, where the run `parent` ends, and brings
    /// `order` into their order; its first entry has place `base`.
    fn split(
        &self,
        order: &mut [usize],
        base: usize,
        from: usize,
        parent: Option<usize>,
        runs: &mut Vec<Run>,
    ) {
        let shortest = order.iter().map(|&segment| self.end(segment)).min();
        let shortest = shortest.unwrap_or(from);
        let is_one = |&index: &usize| order.iter().all(|&at| self.same(at, order[0], index));
        let end = match order.len() {
            1 => shortest,
            _ => from + (from..shortest).take_while(is_one).count(),
        };
        let parent = if end > from {
            runs.push(Run {
                blocks: from..end,
                places: base..base + order.len(),
                from: parent,
            });
            Some(runs.len() - 1)
        } else {
            parent
        };
        let mut at = 0;
        while at < order.len() {
            let mut alike = at + 1;
            for other in at + 1..order.len() {
                if self.same(order[at], order[other], end) {
                    order[alike..=other].rotate_right(1);
                    alike += 1;
                }
            }
            // Every context's last block is its own: what has ended here stands alone.
            let part = &mut order[at..alike];
            if part.iter().all(|&segment| self.end(segment) > end) {
                self.split(part, base + at, end, parent, runs);
            }
            at = alike;
        }
    }

    /// Whether block `index` of two segments is one, or a window has dropped it in both.
    fn same(&self, a: usize, b: usize, index: usize) -> bool {
        match (self.block(a, index), self.block(b, index)) {
            (Some(a), Some(b)) => std::ptr::eq(a, b),
            (None, None) => true,
            _ => false,
        }
    }

    /// Block `index` of a segment's context, if it holds it.
    fn block(&self, segment: usize, index: usize) -> Option<&Block> {
        self.segments[segment].context.block(self.index, index)
    }

    /// Blocks of a segment's context, its new rows' included.
    fn end(&self, segment: usize) -> usize {
        let Segment {
            context, tokens, ..
        } = &self.segments[segment];
        (context.len() + tokens.len()).div_ceil(BLOCK_TOKENS)
    }
}
