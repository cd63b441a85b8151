//! A batch: the rows of one forward pass, each belonging to a context.

use std::ops::Range;
use std::time::Instant;

use longview_kernels::Exec;
use longview_kernels::page::{self, StridedRows};
use smallvec::{SmallVec, smallvec};

use crate::BLOCK_TOKENS;
use crate::block::Block;
use crate::context::{Context, Identity};
use crate::error::KvError;
use crate::feed::Feed;
use crate::layout::Group;
use crate::sharing::Sharing;

/// Which rows of a segment the caller wants logits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// No row: the tokens are only read.
    Nothing,
    /// The last row.
    Last,
    /// Every row.
    All,
    /// No row's logits, and the last hidden state of every row instead.
    Hidden,
}

/// Consecutive new tokens of one context.
pub struct Segment<'a> {
    /// The context they are appended to.
    pub context: &'a mut Context,
    /// Token ids, at least one.
    pub tokens: &'a [u32],
    /// Rows whose logits are wanted.
    pub wanted: Wanted,
}

impl Segment<'_> {
    /// The same segment for one pass, so that the pass can be tried again.
    pub fn reborrow(&mut self) -> Segment<'_> {
        Segment {
            context: &mut *self.context,
            tokens: self.tokens,
            wanted: self.wanted,
        }
    }
}

/// The rows of one forward pass: the tokens of every segment, one segment after another.
///
/// Creating a batch makes room in its contexts; only [`Batch::commit`] makes the tokens part of
/// them, so a pass that is given up changes nothing.
pub struct Batch<'a> {
    segments: SmallVec<[Segment<'a>; 1]>,
    /// First row of each segment, and one past the last row.
    starts: SmallVec<[usize; 2]>,
    /// Reads blocks that are not in memory, where there are any.
    feed: Option<Feed>,
    /// What segments have in common, by layer group; empty where there is one segment or blocks are
    /// read back.
    sharing: Vec<Sharing>,
    begun: Instant,
}

impl<'a> Batch<'a> {
    /// A batch of `segments`, which must agree on the identity `identity`'s model and numerics.
    ///
    /// # Errors
    /// [`KvError::EmptyBatch`], [`KvError::WrongIdentity`], or [`KvError::OverLimit`] when the
    /// new tokens do not fit in memory.
    pub fn new(
        segments: impl IntoIterator<Item = Segment<'a>>,
        identity: Identity,
    ) -> Result<Batch<'a>, KvError> {
        let mut batch = Batch {
            segments: segments.into_iter().collect(),
            starts: smallvec![0],
            feed: None,
            sharing: Vec::new(),
            begun: Instant::now(),
        };
        let mut written = 0;
        for segment in &mut batch.segments {
            let of_context = segment.context.identity();
            if (of_context.model, of_context.numerics) != (identity.model, identity.numerics) {
                return Err(KvError::WrongIdentity);
            }
            if segment.tokens.is_empty() {
                return Err(KvError::EmptyBatch);
            }
            let count = segment.tokens.len();
            segment.context.make_room(count)?;
            written += segment.context.layout().context_bytes(count, count);
            batch
                .starts
                .push(batch.starts[batch.starts.len() - 1] + count);
        }
        if batch.segments.is_empty() {
            return Err(KvError::EmptyBatch);
        }
        // What the next pass like this one will write is not filled with blocks read back: they
        // would have to leave again at once.
        batch.feed = Feed::begin(&mut batch.segments, written)?;
        if batch.feed.is_none() && batch.segments.len() > 1 {
            let groups = batch.segments[0].context.layout().groups.len();
            let of_group = |index| Sharing::of(&batch.segments, index);
            batch.sharing = (0..groups).map(of_group).collect();
        }
        Ok(batch)
    }

    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.starts[self.segments.len()]
    }

    /// The segments, in row order.
    pub fn segments(&self) -> &[Segment<'a>] {
        &self.segments
    }

    pub(crate) fn segments_mut(&mut self) -> &mut [Segment<'a>] {
        &mut self.segments
    }

    /// The rows of segment `index`.
    pub fn rows_of(&self, index: usize) -> Range<usize> {
        self.starts[index]..self.starts[index + 1]
    }

    /// The token of row `row`.
    pub fn token(&self, row: usize) -> u32 {
        let segment = self.starts.partition_point(|&start| start <= row) - 1;
        self.segments[segment].tokens[row - self.starts[segment]]
    }

    /// The rows of which something is wanted, ascending, with what is wanted of their segments: of
    /// [`Wanted::Hidden`] their last hidden states, of the others their logits.
    pub fn outputs(&self) -> impl Iterator<Item = (usize, Wanted)> + '_ {
        self.segments
            .iter()
            .enumerate()
            .flat_map(|(index, segment)| {
                let rows = self.rows_of(index);
                let rows = match segment.wanted {
                    Wanted::Nothing => rows.end..rows.end,
                    Wanted::Last => rows.end - 1..rows.end,
                    Wanted::All | Wanted::Hidden => rows,
                };
                rows.map(|row| (row, segment.wanted))
            })
    }

    /// Whether a layer whose outputs nobody wants need not attend: nobody watches what its rows attend to,
    /// and no block is read back for it.
    pub fn may_skip_attention(&self) -> bool {
        let is_unwatched = |segment: &Segment<'_>| {
            let context = &*segment.context;
            let end = context.len() + segment.tokens.len();
            let reads = context.reads.as_ref();
            context.watched.is_none() && reads.is_none_or(|reads| reads.from >= end)
        };
        self.feed.is_none() && self.segments.iter().all(is_unwatched)
    }

    /// Whether a keep method gathers something of layer `layer`, which [`Batch::observe`] is to show it.
    pub fn is_observed(&self, layer: usize) -> bool {
        let mut kept = self.segments.iter().map(|one| one.context.kept.as_deref());
        kept.any(|kept| kept.is_some_and(|kept| kept.observes(layer)))
    }

    /// Stores the keys and values that layer `layer` made for every row.
    ///
    /// `k` is `[rows][kv_heads][head_dim]`, after rotary embedding; `v` is
    /// `[rows][kv_heads][v_dim]`.
    pub fn append(&mut self, exec: &Exec, layer: usize, k: &[f32], v: &[f32]) {
        let Batch {
            segments, starts, ..
        } = self;
        let rows = |index: usize| starts[index]..starts[index + 1];
        let one = |segment: &Segment<'_>| segment.tokens.len() == 1;
        for (index, segment) in segments.iter_mut().enumerate() {
            if !one(segment) {
                append_rows(exec, layer, segment.context, rows(index), k, v);
            }
        }
        // A row's key and value go to many places: contexts that have one each are written side by
        // side.
        exec.pool.for_each(segments, |index, segment, _| {
            if one(segment) {
                append_rows(exec, layer, segment.context, rows(index), k, v);
            }
        });
    }

    /// Makes the batch's tokens part of their contexts.
    pub fn commit(mut self) {
        if let Some(feed) = self.feed.take() {
            feed.finish();
        }
        let seconds_a_row = self.begun.elapsed().as_secs_f32() / self.rows() as f32;
        for segment in &mut self.segments {
            segment
                .context
                .commit(segment.tokens, seconds_a_row * BLOCK_TOKENS as f32);
        }
    }

    pub(crate) fn feed_and_segments(&mut self) -> (Option<&Feed>, &mut [Segment<'a>]) {
        (self.feed.as_ref(), &mut self.segments)
    }

    /// What the segments have in common in layer group `group`, if anything.
    pub(crate) fn sharing(&self, group: usize) -> Option<&Sharing> {
        let sharing = self.sharing.get(group)?;
        (!sharing.runs().is_empty()).then_some(sharing)
    }

    pub(crate) fn feed(&self) -> Option<&Feed> {
        self.feed.as_ref()
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        for segment in &mut self.segments {
            segment.context.end_pass();
        }
    }
}

/// Makes the pages of a layer, whose place in its group is `place`, of those that hold them token by token.
pub(crate) fn pack_layer(
    place: usize,
    (from_group, from): (&Group, &Block),
    (to_group, to): (&Group, &mut Block),
) {
    let from = from.layer(from_group, place);
    let to = to.layer_mut(to_group, place);
    for (head, to) in to.chunks_exact_mut(to_group.page_bytes()).enumerate() {
        let from = from_group.page(from, head);
        let to = to.split_at_mut(to_group.geometry.k_bytes());
        let from_forms = &from_group.geometry;
        page::pack_page(from_forms, (from.k, from.v), &to_group.geometry, to);
    }
}

/// Stores rows `rows` of the keys `k` and values `v` that layer `layer` made in `context`, whose tokens
/// they are.
fn append_rows(
    exec: &Exec,
    layer: usize,
    context: &mut Context,
    rows: Range<usize>,
    k: &[f32],
    v: &[f32],
) {
    let layout = context.layout().clone();
    let (layer_group, place) = layout.layers[layer];
    // Where the latest tokens are held apart, they are written there first.
    let recent = layout.groups[layer_group].recent;
    let group_index = recent.map_or(layer_group, |recent| recent.group);
    let group = &layout.groups[group_index];
    let geometry = &group.geometry;
    let (heads, k_dim, v_dim) = (group.kind.kv_heads, geometry.head_dim, geometry.v_dim);
    let (k_stride, v_stride) = (heads * k_dim, heads * v_dim);
    let (k, v) = (
        &k[rows.start * k_stride..rows.end * k_stride],
        &v[rows.start * v_stride..rows.end * v_stride],
    );
    let start = context.places.slot(context.len());
    let end = start + rows.len();
    let first_block = start / BLOCK_TOKENS;
    let write = |block_index: usize, block: &mut Block| {
        let from = start.max(block_index * BLOCK_TOKENS);
        let to = end.min((block_index + 1) * BLOCK_TOKENS);
        let rows = from - start..to - start;
        let pages = block
            .layer_mut(group, place)
            .chunks_exact_mut(group.page_bytes());
        for (head, page) in pages.enumerate() {
            let (page_k, page_v) = page.split_at_mut(geometry.k_bytes());
            let k_from = &k[rows.start * k_stride + head * k_dim..];
            let v_from = &v[rows.start * v_stride + head * v_dim..];
            page::write_tokens(
                exec.isa,
                geometry,
                page_k,
                page_v,
                from % BLOCK_TOKENS,
                rows.len(),
                StridedRows {
                    data: k_from,
                    stride: k_stride,
                },
                StridedRows {
                    data: v_from,
                    stride: v_stride,
                },
            );
        }
    };
    if rows.len() == 1 {
        if let Some(block) = context.blocks_mut(group_index, first_block).next() {
            write(first_block, block);
        }
    } else {
        let blocks = context.blocks_mut(group_index, first_block);
        let mut blocks: Vec<&mut Block> = blocks.collect();
        exec.pool.for_each(&mut blocks, |offset, block, _| {
            write(first_block + offset, block)
        });
    }
    let filled = first_block..end / BLOCK_TOKENS;
    if recent.is_none() || filled.is_empty() {
        context.index_blocks(exec.isa, layer, filled);
        return;
    }
    let sinks = recent.and_then(|recent| recent.sinks);
    for to_index in std::iter::once(layer_group).chain(sinks) {
        let older = &layout.groups[to_index];
        let filled = filled.start..filled.end.min(older.most_blocks);
        if filled.is_empty() {
            continue;
        }
        let mut pairs = context.block_pairs(group_index, to_index, filled);
        exec.pool.for_each(&mut pairs, |_, (from, to), _| {
            pack_layer(place, (group, from), (older, to));
        });
    }
    context.index_blocks(exec.isa, layer, filled);
}
