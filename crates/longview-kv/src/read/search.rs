//! The search for the best pages of one head, from bounds of whole spans downward: what is found is what looking at
//! every page finds.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use longview_kernels::Isa;
use longview_kernels::attention::{BoundsGeometry, score_bounds};
use longview_kernels::page::PAGE_TOKENS;

use super::Part;
use super::bounds::{BlockHead, SLAB_SPANS, Shape};
use super::left::StreamHead;
use crate::SPAN_BLOCKS;

/// The bounds of the pages of one layer and KV head: those that a keep method has left of earlier tokens, then
/// the blocks after them.
pub(crate) struct HeadBounds<'a> {
    pub(super) stream: Option<StreamHead<'a>>,
    pub(super) blocks: BlockHead<'a>,
}

/// Where the bounds of some pages lie, in spans of [`SPAN_BLOCKS`].
pub(super) trait Slabs {
    /// The bounds of the parts of a span.
    fn span(&self, span: usize) -> &[u8];

    /// The bounds of [`SLAB_SPANS`] spans, as far as these are full.
    fn above(&self, slab: usize) -> &[u8];

    fn part(&self) -> Part;

    fn shape(&self) -> &Shape;
}

/// Buffers of the search, kept between calls.
#[derive(Default)]
pub(crate) struct Best {
    /// `[queries][lanes]`
    scores: Vec<f32>,
    /// What each span promises at most, and its first page.
    spans: Vec<(f32, usize)>,
    /// The best blocks so far, the worst of them first.
    pub(super) found: BinaryHeap<Reverse<Candidate>>,
    blocks: Vec<u32>,
}

/// A block and what it promises. The greater is the better: of equal promises the earlier block.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) promise: f32,
    pub(super) block: u32,
}

impl HeadBounds<'_> {
    /// See [`super::RowQuery::best`]. `queries` is `[queries][head_dim]`.
    pub(crate) fn best<'b>(
        &self,
        isa: Isa,
        queries: &[f32],
        among: Range<usize>,
        count: usize,
        best: &'b mut Best,
    ) -> &'b [u32] {
        best.blocks.clear();
        best.found.clear();
        if count >= among.len() {
            best.blocks.extend(among.map(|block| block as u32));
            return &best.blocks;
        }
        if count == 0 {
            return &best.blocks;
        }
        best.spans.clear();
        let pages = self.stream.as_ref().map_or(0, StreamHead::pages);
        if let Some(stream) = self.stream.as_ref().filter(|_| among.start < pages) {
            let of_stream = among.start..among.end.min(pages);
            promises(isa, stream, queries, &of_stream, 0, best);
        }
        if among.end > pages {
            let of_blocks = among.start.saturating_sub(pages)..among.end - pages;
            promises(isa, &self.blocks, queries, &of_blocks, pages, best);
        }
        // From the most promising span on; of equal ones the earlier.
        best.spans
            .sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let spans = std::mem::take(&mut best.spans);
        for &(promise, start) in &spans {
            let worst = best.found.peek().map(|worst| worst.0.promise);
            // A block that promises as much as the worst may be earlier than it.
            if best.found.len() == count && worst.is_some_and(|worst| promise < worst) {
                break;
            }
            match &self.stream {
                Some(stream) if start < pages => {
                    // The last span of the stream ends where the blocks begin.
                    let of_stream = among.start..among.end.min(pages);
                    descend(isa, stream, queries, start, 0, &of_stream, count, best);
                }
                _ => descend(
                    isa,
                    &self.blocks,
                    queries,
                    start,
                    pages,
                    &among,
                    count,
                    best,
                ),
            }
        }
        best.spans = spans;
        let found = best.found.drain().map(|candidate| candidate.0.block);
        best.blocks.extend(found);
        best.blocks.sort_unstable();
        &best.blocks
    }
}

/// Adds what every span of `slabs` with pages of `among` promises at most to `best.spans`, each with the number
/// of its first page, of which there are `before` before the first of `slabs`.
fn promises(
    isa: Isa,
    slabs: &impl Slabs,
    queries: &[f32],
    among: &Range<usize>,
    before: usize,
    best: &mut Best,
) {
    let geom = slabs.shape().spans;
    // Spans that end before `among` does are full, whatever the pass has come to.
    let full = among.end / SPAN_BLOCKS;
    let first = among.start / SPAN_BLOCKS;
    let start = |span: usize| before + span * SPAN_BLOCKS;
    for slab in first / SLAB_SPANS..full.div_ceil(SLAB_SPANS) {
        let promises = promised(isa, &geom, slabs.above(slab), queries, &mut best.scores);
        let of_slab = (slab * SLAB_SPANS..).zip(promises);
        let within = of_slab.filter(|(span, _)| (first..full).contains(span));
        let spans = within.map(|(span, &promise)| (promise, start(span)));
        best.spans.extend(spans);
    }
    let rest = full.max(first)..among.end.div_ceil(SPAN_BLOCKS);
    best.spans
        .extend(rest.map(|span| (f32::INFINITY, start(span))));
}

/// Lets the pages of the span that begins with page `start` join the best, as far as they are in `among`. The
/// first page of `slabs` is page `before`.
#[expect(
    clippy::too_many_arguments,
    reason = "where to look, for what, and what was found"
)]
pub(super) fn descend(
    isa: Isa,
    slabs: &impl Slabs,
    queries: &[f32],
    start: usize,
    before: usize,
    among: &Range<usize>,
    count: usize,
    best: &mut Best,
) {
    let geom = slabs.shape().parts;
    let bounds = slabs.span((start - before) / SPAN_BLOCKS);
    let promises = promised(isa, &geom, bounds, queries, &mut best.scores);
    let per_block = PAGE_TOKENS / slabs.part().tokens();
    for (block, parts) in (start..).zip(promises.chunks_exact(per_block)) {
        if !among.contains(&block) {
            continue;
        }
        let candidate = Candidate {
            promise: parts.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x)),
            block: block as u32,
        };
        if best.found.len() < count {
            best.found.push(Reverse(candidate));
        } else if let Some(mut worst) = best.found.peek_mut()
            && candidate > worst.0
        {
            *worst = Reverse(candidate);
        }
    }
}

/// The most that any of the queries can score in each lane, `[lanes]`. What is no number promises
/// everything, so that it is read.
fn promised<'s>(
    isa: Isa,
    geom: &BoundsGeometry,
    bounds: &[u8],
    queries: &[f32],
    scores: &'s mut Vec<f32>,
) -> &'s [f32] {
    let lanes = geom.lanes;
    scores.clear();
    scores.resize(queries.len() / geom.head_dim * lanes, 0.0);
    score_bounds(isa, geom, bounds, queries, scores);
    let (most, others) = scores.split_at_mut(lanes);
    let number = |x: f32| if x.is_nan() { f32::INFINITY } else { x };
    most.iter_mut().for_each(|x| *x = number(*x));
    for other in others.chunks_exact(lanes) {
        for (most, &x) in most.iter_mut().zip(other) {
            *most = most.max(number(x));
        }
    }
    most
}

impl Eq for Candidate {}

impl Ord for Candidate {
    fn cmp(&self, other: &Candidate) -> std::cmp::Ordering {
        let promise = self.promise.total_cmp(&other.promise);
        promise.then(other.block.cmp(&self.block))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Candidate) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
