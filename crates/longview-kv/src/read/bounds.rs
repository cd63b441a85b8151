//! Bounds of the keys of full blocks, kept beside them.
//!
//! The bounds of a key span (16 blocks) of all layers of a group lie in one slab, `[layers][KV
//! heads][head_dim][smallest, largest][parts]`. When a span is full, bounds of the whole span join
//! those of 15 neighbours in a slab of the level above. Forks share slabs until one writes.

use std::ops::Range;
use std::sync::Arc;

use longview_kernels::Isa;
use longview_kernels::attention::{
    BoundsGeometry, SPAN_TOKENS, enclose_bounds, key_floats, set_bounds,
};
use longview_kernels::page::PAGE_TOKENS;

use super::Part;
use super::search::Slabs;
use crate::SPAN_BLOCKS;
use crate::block::Block;
use crate::error::KvError;
use crate::layout::Group;
use crate::ledger::Ledger;
use crate::shared::SharedList;
use crate::store::Store;

/// Spans that share a slab of the level above.
pub(super) const SLAB_SPANS: usize = 16;

/// Slabs that forks share at once.
const SLABS: usize = 16;

/// The bounds of one layer group.
#[derive(Clone)]
pub(crate) struct Bounds {
    part: Part,
    shape: Shape,
    /// One slab a span.
    spans: SharedList<Arc<Block>, SLABS>,
    /// One slab for [`SLAB_SPANS`] spans.
    above: SharedList<Arc<Block>, SLABS>,
    /// The first so many blocks have bounds, in every layer.
    blocks: usize,
}

#[derive(Clone, Copy)]
pub(super) struct Shape {
    layers: usize,
    heads: usize,
    /// Of a span's parts.
    pub(super) parts: BoundsGeometry,
    /// Of spans.
    pub(super) spans: BoundsGeometry,
}

/// One head's place in the bounds of blocks.
pub(super) struct BlockHead<'a> {
    bounds: &'a Bounds,
    /// Among the heads of all layers.
    place: usize,
}

impl Bounds {
    /// None yet, of layers like those of `group`.
    pub(crate) fn new(group: &Group, part: Part) -> Bounds {
        Bounds {
            part,
            shape: Shape::new(group, part),
            spans: SharedList::default(),
            above: SharedList::default(),
            blocks: 0,
        }
    }

    /// Bytes of the bounds of `blocks` blocks.
    pub(crate) fn bytes_for(&self, blocks: usize) -> u64 {
        let spans = blocks.div_ceil(SPAN_BLOCKS);
        let slabs = blocks.div_ceil(SPAN_BLOCKS * SLAB_SPANS);
        let bytes =
            spans * self.shape.slab(&self.shape.parts) + slabs * self.shape.slab(&self.shape.spans);
        bytes as u64
    }

    /// Bytes held; what is shared with forks counts in each.
    pub(crate) fn bytes(&self) -> u64 {
        let bytes = self.spans.len() * self.shape.slab(&self.shape.parts)
            + self.above.len() * self.shape.slab(&self.shape.spans);
        bytes as u64
    }

    /// The first so many blocks have bounds.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Makes room for the bounds of blocks up to `end`, those after the ones that have bounds apart from
    /// forks.
    pub(crate) fn make_writable(
        &mut self,
        end: usize,
        ledger: &Ledger,
        store: Option<&Store>,
    ) -> Result<(), KvError> {
        if end <= self.blocks {
            return Ok(());
        }
        let (shape, first) = (self.shape, self.blocks / SPAN_BLOCKS);
        let end = end.div_ceil(SPAN_BLOCKS);
        let bytes = shape.slab(&shape.parts);
        make_writable(&mut self.spans, first, end, bytes, ledger, store)?;
        let (first, end) = (first / SLAB_SPANS, end.div_ceil(SLAB_SPANS));
        let bytes = shape.slab(&shape.spans);
        make_writable(&mut self.above, first, end, bytes, ledger, store)
    }

    /// Notes the bounds of one layer's keys in block `index` from slot `from` on, for which there is room. `layer`
    /// is the layer's slice of the block, `place` its place in the group; blocks come in order.
    pub(crate) fn note(
        &mut self,
        isa: Isa,
        group: &Group,
        place: usize,
        (index, from): (usize, usize),
        layer: &[u8],
    ) {
        let Shape {
            heads,
            parts,
            spans,
            ..
        } = self.shape;
        let span = index / SPAN_BLOCKS;
        let slab = own(&mut self.spans, span);
        let per_block = PAGE_TOKENS / self.part.tokens();
        let mut keys = vec![0.0; group.kind.head_dim * PAGE_TOKENS];
        let of_layer = place * heads * parts.bytes();
        for (head, bounds) in slab[of_layer..][..heads * parts.bytes()]
            .chunks_exact_mut(parts.bytes())
            .enumerate()
        {
            let page_k = group.page(layer, head).k;
            key_floats(isa, &group.geometry, page_k, &mut keys);
            own_keys(&mut keys, from..PAGE_TOKENS);
            let lane = index % SPAN_BLOCKS * per_block;
            set_bounds(&parts, bounds, lane, self.part.tokens(), &keys);
        }
        if (index + 1).is_multiple_of(SPAN_BLOCKS) {
            let slab = &self.spans.get(span).expect("just written").bytes()[of_layer..];
            let above = own(&mut self.above, span / SLAB_SPANS);
            let above = &mut above[place * heads * spans.bytes()..];
            let heads = slab.chunks_exact(parts.bytes()).take(heads);
            for (bounds, above) in heads.zip(above.chunks_exact_mut(spans.bytes())) {
                enclose_bounds(&parts, bounds, &spans, above, span % SLAB_SPANS);
            }
        }
    }

    /// All layers have noted the bounds of blocks before `end`.
    pub(crate) fn complete(&mut self, end: usize) {
        self.blocks = self.blocks.max(end);
        self.spans.settle(self.blocks / SPAN_BLOCKS);
        self.above.settle(self.blocks / SPAN_BLOCKS / SLAB_SPANS);
    }

    /// Forgets the bounds from block `end` on, and gives back room that was not used.
    pub(crate) fn truncate(&mut self, end: usize) {
        self.blocks = self.blocks.min(end);
        let spans = self.blocks.div_ceil(SPAN_BLOCKS);
        self.spans.truncate(spans.min(self.spans.len()));
        let slabs = spans.div_ceil(SLAB_SPANS);
        self.above.truncate(slabs.min(self.above.len()));
    }

    /// Those of KV head `head` of the layer at `place` in the group.
    pub(super) fn head(&self, place: usize, head: usize) -> BlockHead<'_> {
        BlockHead {
            bounds: self,
            place: place * self.shape.heads + head,
        }
    }
}

impl Shape {
    pub(super) fn new(group: &Group, part: Part) -> Shape {
        Shape {
            layers: group.layers,
            heads: group.kind.kv_heads,
            parts: BoundsGeometry::new(&group.geometry, SPAN_TOKENS / part.tokens()),
            spans: BoundsGeometry::new(&group.geometry, SLAB_SPANS),
        }
    }

    /// Bytes of a slab of bounds of `of`.
    fn slab(&self, of: &BoundsGeometry) -> usize {
        self.layers * self.heads * of.bytes()
    }
}

impl Slabs for BlockHead<'_> {
    fn span(&self, span: usize) -> &[u8] {
        let (slab, geom) = (self.bounds.spans.get(span), &self.bounds.shape.parts);
        let slab = slab.expect("full blocks have bounds");
        &slab.bytes()[self.place * geom.bytes()..][..geom.bytes()]
    }

    fn above(&self, slab: usize) -> &[u8] {
        let (slab, geom) = (self.bounds.above.get(slab), &self.bounds.shape.spans);
        let slab = slab.expect("full blocks have bounds");
        &slab.bytes()[self.place * geom.bytes()..][..geom.bytes()]
    }

    fn part(&self) -> Part {
        self.bounds.part
    }

    fn shape(&self) -> &Shape {
        &self.bounds.shape
    }
}

/// Lets slots outside of `own` count as the nearest in it, so that bounds are those of its keys `[head_dim][64]`.
pub(super) fn own_keys(keys: &mut [f32], own: Range<usize>) {
    if own == (0..PAGE_TOKENS) {
        return;
    }
    for channel in keys.chunks_exact_mut(PAGE_TOKENS) {
        let (first, last) = (channel[own.start], channel[own.end - 1]);
        channel[..own.start].fill(first);
        channel[own.end..].fill(last);
    }
}

/// Makes room for slabs up to `end`, those from `first` on apart from forks.
fn make_writable(
    list: &mut SharedList<Arc<Block>, SLABS>,
    first: usize,
    end: usize,
    bytes: usize,
    ledger: &Ledger,
    store: Option<&Store>,
) -> Result<(), KvError> {
    while list.len() < end {
        list.push(Arc::new(Block::with_space(bytes, ledger, store)?));
    }
    for slab in list.private(first) {
        if Arc::get_mut(slab).is_none() {
            let mut copy = Block::with_space(bytes, ledger, store)?;
            copy.bytes_mut().copy_from_slice(slab.bytes());
            *slab = Arc::new(copy);
        }
    }
    Ok(())
}

/// A slab that [`make_writable`] has made this context's own.
fn own(list: &mut SharedList<Arc<Block>, SLABS>, at: usize) -> &mut [u8] {
    let slab = Arc::get_mut(&mut list.private(at)[0]);
    slab.expect("make_writable has parted it from forks")
        .bytes_mut()
}

#[cfg(test)]
mod tests {
    use longview_kernels::page::{KvType, StridedRows, write_tokens};
    use proptest::prelude::*;

    use super::super::search::{Best, Candidate, HeadBounds, descend};
    use super::*;
    use crate::layout::{KvLayout, LayerLayout, LayerState};

    const HEADS: usize = 2;
    const DIM: usize = 8;

    fn group(kv_type: KvType) -> Group {
        let layer = LayerLayout {
            state: LayerState::Full,
            kv_heads: HEADS,
            head_dim: DIM,
            v_dim: DIM,
        };
        KvLayout::new(&[layer, layer], kv_type).groups[0].clone()
    }

    /// Numbers of a few sizes, so that some blocks stand out and some are equal.
    fn number(state: &mut u64) -> f32 {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let x = (*state >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        (x * 4.0).round() / 4.0
    }

    /// Notes `blocks` blocks of keys; every so often a block is like the one before.
    fn filled(group: &Group, part: Part, blocks: usize, seed: u64) -> Bounds {
        let mut bounds = Bounds::new(group, part);
        let ledger = Ledger::unlimited();
        let mut state = seed | 1;
        let mut layer = vec![0; group.layer_bytes()];
        for index in 0..blocks {
            if index % 5 != 4 {
                let size = if index % 7 == 0 { 2.0 } else { 0.5 };
                for page in layer.chunks_exact_mut(group.page_bytes()) {
                    let keys: Vec<f32> = (0..64 * DIM).map(|_| size * number(&mut state)).collect();
                    let (k, v) = page.split_at_mut(group.geometry.k_bytes());
                    let rows = || StridedRows {
                        data: &keys,
                        stride: DIM,
                    };
                    write_tokens(Isa::best(), &group.geometry, k, v, 0, 64, rows(), rows());
                }
            }
            bounds.make_writable(index + 1, &ledger, None).unwrap();
            for place in 0..2 {
                bounds.note(Isa::best(), group, place, (index, 0), &layer);
            }
            bounds.complete(index + 1);
        }
        bounds
    }

    /// The definition: all blocks by their promises, of equal ones the earlier first.
    fn all_scored(
        head: &BlockHead<'_>,
        queries: &[f32],
        among: Range<usize>,
        count: usize,
    ) -> Vec<u32> {
        let mut best = Best::default();
        for span in among.start / SPAN_BLOCKS..among.end.div_ceil(SPAN_BLOCKS) {
            let start = span * SPAN_BLOCKS;
            descend(
                Isa::best(),
                head,
                queries,
                start,
                0,
                &among,
                usize::MAX,
                &mut best,
            );
        }
        let mut all: Vec<Candidate> = best.found.drain().map(|found| found.0).collect();
        all.sort_by(|a, b| b.cmp(a));
        all.truncate(count);
        let mut blocks: Vec<u32> = all.iter().map(|candidate| candidate.block).collect();
        blocks.sort_unstable();
        blocks
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn going_from_the_top_finds_what_scoring_all_finds(
            part in proptest::sample::select(vec![Part::Tokens16, Part::Tokens32, Part::Tokens64]),
            kv_type in proptest::sample::select(vec![KvType::F16, KvType::F32, KvType::Q4]),
            blocks in 1usize..300,
            count in 0usize..40,
            start in 0usize..3,
            seed in any::<u64>(),
        ) {
            let group = group(kv_type);
            let bounds = filled(&group, part, blocks, seed);
            let mut state = seed ^ 99;
            let queries: Vec<f32> = (0..3 * DIM).map(|_| number(&mut state)).collect();
            let mut best = Best::default();
            for end in [blocks, blocks / 2, blocks.saturating_sub(17)] {
                let among = start.min(end)..end;
                let expected = all_scored(&bounds.head(1, 1), &queries, among.clone(), count);
                let head = HeadBounds { stream: None, blocks: bounds.head(1, 1) };
                let got = head.best(Isa::best(), &queries, among, count, &mut best);
                prop_assert_eq!(got, expected);
            }
        }
    }

    #[test]
    fn bounds_after_going_on_and_back_are_those_made_at_once_and_forks_do_not_disturb() {
        let group = group(KvType::F16);
        let whole = filled(&group, Part::Tokens16, 40, 7);
        let mut back = whole.clone();
        back.truncate(21);
        assert_eq!(back.bytes(), whole.bytes_for(21));
        assert_eq!(whole.bytes(), whole.bytes_for(40));
        let ledger = Ledger::unlimited();
        back.make_writable(22, &ledger, None).unwrap();
        let noise = vec![0x11; group.layer_bytes()];
        for place in 0..2 {
            back.note(Isa::best(), &group, place, (21, 0), &noise);
        }
        // The span of block 21 was parted from the others', the first one was not.
        assert_eq!(ledger.usage().kv, whole.bytes_for(1));
        let same = |at: usize| {
            let of = |bounds: &Bounds| bounds.spans.get(at).unwrap().bytes().to_vec();
            of(&back) == of(&whole)
        };
        assert!(same(0) && !same(1));
        let again = filled(&group, Part::Tokens16, 40, 7);
        for at in 0..3 {
            let of = |bounds: &Bounds| bounds.spans.get(at).unwrap().bytes().to_vec();
            assert!(of(&again) == of(&whole), "a fork changed its origin");
        }
    }
}
