//! Bounds of the keys that a keep method has left of a layer, made when it has decided for good, or when a row of an
//! answer first wants them.
//!
//! Every head has pages of its own, so its bounds lie apart: one slab for each of its spans of 16 pages, then
//! one for each 16 spans. They are made whole, and anew after every compaction.

use longview_kernels::attention::{enclose_bounds, key_floats, set_bounds};
use longview_kernels::page::PAGE_TOKENS;
use longview_kernels::{Isa, Pool};

use super::Part;
use super::bounds::{SLAB_SPANS, Shape, own_keys};
use super::search::Slabs;
use crate::SPAN_BLOCKS;
use crate::block::Block;
use crate::error::KvError;
use crate::keep::stream::Stream;
use crate::layout::Group;
use crate::ledger::Ledger;
use crate::store::Store;

/// The bounds of one layer's stream.
pub(crate) struct StreamBounds {
    part: Part,
    shape: Shape,
    slabs: Block,
    heads: Vec<Head>,
}

/// Where the bounds of one head lie: of its spans, then what is above them.
struct Head {
    pages: usize,
    first: usize,
    above: usize,
    end: usize,
}

/// The bounds of one head.
pub(crate) struct StreamHead<'a> {
    bounds: &'a StreamBounds,
    head: &'a Head,
}

impl StreamBounds {
    /// Those of `stream`, a layer of `group`, made by the threads of `pool` or by this one.
    pub(crate) fn new(
        pool: Option<&Pool>,
        group: &Group,
        part: Part,
        stream: &Stream,
        ledger: &Ledger,
        store: Option<&Store>,
    ) -> Result<StreamBounds, KvError> {
        let shape = Shape::new(group, part);
        let mut end = 0;
        let heads = (0..stream.heads()).map(|head| {
            let pages = stream.slots(head).pages.len();
            let spans = pages.div_ceil(SPAN_BLOCKS);
            let first = end;
            let above = first + spans * shape.parts.bytes();
            end = above + spans.div_ceil(SLAB_SPANS) * shape.spans.bytes();
            Head {
                pages,
                first,
                above,
                end,
            }
        });
        let heads: Vec<Head> = heads.collect();
        if let Some(store) = store {
            store.make_space(end as u64);
        }
        // Hardly two are of one length.
        let mut slabs = Block::zeroed(end, ledger)?;
        let mut rest = slabs.bytes_mut();
        let of_head = |(number, head): (usize, &Head)| {
            let (own, others) = std::mem::take(&mut rest).split_at_mut(head.end - head.first);
            rest = others;
            let (spans, above) = own.split_at_mut(head.above - head.first);
            (number, spans, above)
        };
        let mut parts: Vec<(usize, &mut [u8], &mut [u8])> =
            heads.iter().enumerate().map(of_head).collect();
        let note = |(head, spans, above): &mut (usize, &mut [u8], &mut [u8])| {
            note(&shape, group, part, stream, *head, spans, above);
        };
        match pool {
            Some(pool) => pool.for_each(&mut parts, |_, head, _| note(head)),
            None => parts.iter_mut().for_each(note),
        }
        Ok(StreamBounds {
            part,
            shape,
            slabs,
            heads,
        })
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        self.slabs.bytes().len() as u64
    }

    /// Those of head `head`.
    pub(super) fn head(&self, head: usize) -> StreamHead<'_> {
        StreamHead {
            bounds: self,
            head: &self.heads[head],
        }
    }
}

/// Writes the bounds of the pages of head `head` over `spans`, and those of full spans over `above`.
fn note(
    shape: &Shape,
    group: &Group,
    part: Part,
    stream: &Stream,
    head: usize,
    spans: &mut [u8],
    above: &mut [u8],
) {
    let (of_parts, of_spans) = (&shape.parts, &shape.spans);
    let per_page = PAGE_TOKENS / part.tokens();
    let mut keys = vec![0.0; group.kind.head_dim * PAGE_TOKENS];
    let slots = stream.slots(head);
    for (at, index) in slots.pages.enumerate() {
        let page = stream.page(group, index);
        // Of the same numbers any instruction set makes the same bounds.
        key_floats(Isa::best(), &group.geometry, page.k, &mut keys);
        // Other slots are another head's, or nobody's.
        let from = slots.slots.start.saturating_sub(at * PAGE_TOKENS);
        let end = (slots.slots.end - at * PAGE_TOKENS).min(PAGE_TOKENS);
        own_keys(&mut keys, from..end);
        let span = at / SPAN_BLOCKS;
        let of_span = &mut spans[span * of_parts.bytes()..][..of_parts.bytes()];
        let lane = at % SPAN_BLOCKS * per_page;
        set_bounds(of_parts, of_span, lane, part.tokens(), &keys);
        if (at + 1).is_multiple_of(SPAN_BLOCKS) {
            let slab = span / SLAB_SPANS * of_spans.bytes();
            let above = &mut above[slab..][..of_spans.bytes()];
            enclose_bounds(of_parts, of_span, of_spans, above, span % SLAB_SPANS);
        }
    }
}

impl StreamHead<'_> {
    /// Pages of the head.
    pub(crate) fn pages(&self) -> usize {
        self.head.pages
    }
}

impl Slabs for StreamHead<'_> {
    fn span(&self, span: usize) -> &[u8] {
        let bytes = self.bounds.shape.parts.bytes();
        &self.bounds.slabs.bytes()[self.head.first + span * bytes..][..bytes]
    }

    fn above(&self, slab: usize) -> &[u8] {
        let bytes = self.bounds.shape.spans.bytes();
        &self.bounds.slabs.bytes()[self.head.above + slab * bytes..][..bytes]
    }

    fn part(&self) -> Part {
        self.bounds.part
    }

    fn shape(&self) -> &Shape {
        &self.bounds.shape
    }
}

#[cfg(test)]
mod tests {
    use super::super::bounds::Bounds;
    use super::super::search::{Best, HeadBounds};
    use super::*;
    use crate::layout::{KvLayout, LayerLayout, LayerState};
    use crate::ledger::Purpose;
    use longview_kernels::page::{KvType, write_key};

    const DIM: usize = 8;

    /// Multiples of a quarter, so that sums are exact.
    fn number(state: &mut u64) -> f32 {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        ((*state >> 40) % 33) as f32 / 4.0 - 4.0
    }

    fn group() -> Group {
        let layer = LayerLayout {
            state: LayerState::Full,
            kv_heads: 3,
            head_dim: DIM,
            v_dim: DIM,
        };
        KvLayout::new(&[layer], KvType::F32).groups[0].clone()
    }

    /// What the keys of a page can come to with any of the queries, by the definition.
    fn promise(keys: &[(usize, Vec<f32>)], queries: &[f32], part: Part) -> f32 {
        let of_part = |at: usize| {
            keys.iter()
                .filter(move |(slot, _)| slot / part.tokens() == at)
        };
        let of_query = |query: &[f32], at: usize| -> f32 {
            let channel = |c: usize| {
                let products = of_part(at).map(|(_, key)| query[c] * key[c]);
                products.fold(f32::NEG_INFINITY, f32::max)
            };
            (0..DIM).map(channel).sum()
        };
        let parts = (0..PAGE_TOKENS / part.tokens()).filter(|&at| of_part(at).count() > 0);
        let all = parts.flat_map(|at| queries.chunks_exact(DIM).map(move |q| of_query(q, at)));
        all.fold(f32::NEG_INFINITY, f32::max)
    }

    #[test]
    fn the_best_of_what_is_left_and_of_the_blocks_after_it_are_those_by_definition() {
        let group = group();
        let ledger = Ledger::unlimited();
        let mut state = 7;
        // Heads that share pages, one of more than a span, one of nothing.
        let counts = [1_500, 0, 90];
        let bytes = Stream::bytes_of(&group, &counts, 0);
        let room = ledger.reserve(Purpose::Kv, bytes).unwrap();
        let positions = counts.map(|count| (0..count as u32).collect()).to_vec();
        let mut stream = Stream::with_room(&group, positions, 0, room, None);
        let mut pairs: Vec<Vec<Vec<f32>>> = Vec::new();
        for (head, count) in counts.into_iter().enumerate() {
            let keys: Vec<Vec<f32>> = (0..count)
                .map(|_| (0..DIM).map(|_| number(&mut state)).collect())
                .collect();
            for (pair, key) in keys.iter().enumerate() {
                stream.write(&group, head, pair, key, &[0.0; DIM]);
            }
            pairs.push(keys);
        }
        let mut blocks: Vec<Vec<Vec<f32>>> = Vec::new();
        for part in [Part::Tokens16, Part::Tokens32, Part::Tokens64] {
            let left = StreamBounds::new(None, &group, part, &stream, &ledger, None).unwrap();
            let mut bounds = Bounds::new(&group, part);
            bounds.make_writable(20, &ledger, None).unwrap();
            blocks.clear();
            for index in 0..20 {
                let mut layer = vec![0; group.layer_bytes()];
                let keys: Vec<Vec<f32>> = (0..PAGE_TOKENS)
                    .map(|_| (0..DIM).map(|_| number(&mut state)).collect())
                    .collect();
                for page in layer.chunks_exact_mut(group.page_bytes()) {
                    let (k, _) = page.split_at_mut(group.geometry.k_bytes());
                    for (slot, key) in keys.iter().enumerate() {
                        write_key(&group.geometry, k, slot, key);
                    }
                }
                bounds.note(Isa::best(), &group, 0, (index, 0), &layer);
                bounds.complete(index + 1);
                blocks.push(keys);
            }
            let queries: Vec<f32> = (0..2 * DIM).map(|_| number(&mut state)).collect();
            for (head, keys) in pairs.iter().enumerate() {
                let lead = stream.slots(head).slots.start;
                let pages = left.head(head).pages();
                assert_eq!(
                    pages,
                    (lead * usize::from(!keys.is_empty()) + keys.len()).div_ceil(64)
                );
                let of_stream = (0..pages).map(|page| {
                    let slots = keys
                        .iter()
                        .enumerate()
                        .map(|(pair, key)| (lead + pair, key));
                    let of_page = slots.filter(|(slot, _)| slot / 64 == page);
                    of_page
                        .map(|(slot, key)| (slot % 64, key.clone()))
                        .collect()
                });
                let of_blocks = blocks
                    .iter()
                    .map(|keys| keys.iter().cloned().enumerate().collect());
                let all: Vec<f32> = of_stream
                    .chain(of_blocks)
                    .map(|keys: Vec<(usize, Vec<f32>)>| promise(&keys, &queries, part))
                    .collect();
                let head_bounds = HeadBounds {
                    stream: Some(left.head(head)),
                    blocks: bounds.head(0, head),
                };
                let mut best = Best::default();
                for among in [
                    0..all.len(),
                    1..all.len() - 3,
                    pages..all.len(),
                    0..pages.min(17),
                ] {
                    for count in [1, 5, 12] {
                        let mut order: Vec<usize> = among.clone().collect();
                        order.sort_by(|&a, &b| all[b].total_cmp(&all[a]).then(a.cmp(&b)));
                        order.truncate(count);
                        order.sort_unstable();
                        let got = head_bounds.best(
                            Isa::best(),
                            &queries,
                            among.clone(),
                            count,
                            &mut best,
                        );
                        let got: Vec<usize> = got.iter().map(|&page| page as usize).collect();
                        assert_eq!(got, order, "{part:?} head {head} {among:?}");
                    }
                }
            }
        }
    }
}
