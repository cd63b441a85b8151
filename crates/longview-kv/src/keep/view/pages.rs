//! The pairs of a layer page by page, wherever they lie.

use std::ops::Range;

use longview_kernels::Isa;
use longview_kernels::attention::{
    PageRef, add_weighted_columns, column_squares, key_floats, value_floats, value_stride,
};
use longview_kernels::page::{self, PAGE_TOKENS, PageGeometry};

use super::{Latest, LayerView};
use crate::keep::Pairs;
use crate::keep::stream::{Stream, picked};
use crate::layout::Group;

/// Keys of pairs that lie side by side.
pub struct KeyPage<'a> {
    /// Number of the first pair.
    pub first: usize,
    /// Which of the 64 columns are pairs.
    pub slots: Range<usize>,
    /// `[head_dim][64]`
    pub keys: &'a [f32],
    isa: Isa,
}

impl KeyPage<'_> {
    /// The squared lengths of the keys in all 64 columns.
    pub fn squares(&self, out: &mut [f32; PAGE_TOKENS]) {
        column_squares(self.isa, self.keys, out);
    }

    /// Adds each key times its column's weight to `sums [head_dim][64]`, where columns are not added up.
    pub fn add_weighted(&self, weights: &[f32; PAGE_TOKENS], sums: &mut [f32]) {
        add_weighted_columns(self.isa, self.keys, weights, sums);
    }
}

/// Values of pairs that lie side by side.
pub struct ValuePage<'a> {
    /// Number of the first pair.
    pub first: usize,
    /// Which of the 64 rows are pairs.
    pub slots: Range<usize>,
    /// `[64][stride]`
    pub values: &'a [f32],
    /// Numbers from one row to the next.
    pub stride: usize,
}

impl<'a> LayerView<'a> {
    /// Calls `visit` with the keys of all pairs of a head, in order.
    pub fn keys(&self, head: usize, visit: &mut dyn FnMut(KeyPage<'_>)) {
        let mut keys = vec![0.0; self.head_dim() * PAGE_TOKENS];
        self.each_page(head, |first, slots, page, geometry| {
            key_floats(self.isa, geometry, page.k, &mut keys);
            visit(KeyPage {
                first,
                slots,
                keys: &keys,
                isa: self.isa,
            });
        });
    }

    /// Calls `visit` with the values of all pairs of a head, in order.
    pub fn values(&self, head: usize, visit: &mut dyn FnMut(ValuePage<'_>)) {
        let stride = value_stride(&self.group.geometry);
        let mut values = vec![0.0; stride * PAGE_TOKENS];
        self.each_page(head, |first, slots, page, geometry| {
            value_floats(self.isa, geometry, page.v, &mut values);
            visit(ValuePage {
                first,
                slots,
                values: &values,
                stride,
            });
        });
    }

    /// The pairs `which` of a head, ascending, as numbers.
    pub(in crate::keep) fn read(&self, head: usize, which: &[u32]) -> Pairs {
        let (dim, v_dim) = (self.head_dim(), self.v_dim());
        let mut pairs = Pairs {
            positions: which
                .iter()
                .map(|&pair| self.position(head, pair as usize) as u32)
                .collect(),
            tokens: which
                .iter()
                .map(|&pair| {
                    let of_stream = |stream: &Stream| {
                        let pair = (pair as usize).checked_sub(stream.apart());
                        pair.map_or(1, |pair| stream.tokens(head, pair))
                    };
                    self.stream.map_or(1, of_stream)
                })
                .collect(),
            keys: vec![0.0; which.len() * dim],
            values: vec![0.0; which.len() * v_dim],
            head_dim: dim,
            v_dim,
        };
        let mut at = 0;
        self.each_page(head, |first, slots, page, geometry| {
            while let Some(&pair) = which.get(at)
                && (pair as usize) < first + slots.len()
            {
                let slot = slots.start + pair as usize - first;
                let (key, value) = (&mut pairs.keys[at * dim..], &mut pairs.values[at * v_dim..]);
                page::read_key(geometry, page.k, slot, &mut key[..dim]);
                page::read_value(geometry, page.v, slot, &mut value[..v_dim]);
                at += 1;
            }
        });
        pairs
    }

    /// Copies the pairs `which` of a head, ascending, as they are stored, to the keys and values `to` of a page,
    /// from slot `slot` on.
    pub(in crate::keep) fn copy(
        &self,
        head: usize,
        mut which: &[u32],
        to: (&mut [u8], &mut [u8]),
        mut slot: usize,
    ) {
        let (Some(&first), Some(&last)) = (which.first(), which.last()) else {
            return;
        };
        let wanted = first as usize..last as usize + 1;
        self.each_page_of(head, wanted, |first, slots, page, geometry| {
            let here = which.partition_point(|&pair| (pair as usize) < first + slots.len());
            let (now, rest) = which.split_at(here);
            let picked = picked(now, |pair| slots.start + pair as usize - first);
            let (to_k, to_v) = (&mut *to.0, &mut *to.1);
            page::copy_slots(
                geometry,
                (page.k, page.v),
                &picked[..here],
                (to_k, to_v),
                slot,
            );
            slot += here;
            which = rest;
        });
    }

    /// The block with which the latest tokens begin that the row at `position` reads as they were written,
    /// as far as they are there; all are read alike where none are held apart.
    pub(super) fn boundary(&self, position: usize) -> usize {
        let of = |latest: &Latest<'_>| {
            let block = latest.recent.first_slot(position) / PAGE_TOKENS;
            block.max(latest.from)
        };
        self.latest.as_ref().map_or(usize::MAX, of)
    }

    /// Calls `visit(first pair, slots, page, its geometry)` for every page that holds pairs of a head, in
    /// order, as the next row reads them.
    pub(in crate::keep) fn each_page(
        &self,
        head: usize,
        visit: impl FnMut(usize, Range<usize>, PageRef<'_>, &PageGeometry),
    ) {
        self.each_page_of(head, 0..usize::MAX, visit);
    }

    /// The same for the pages that hold any of `pairs`, and of their slots those that do.
    pub(in crate::keep) fn each_page_of(
        &self,
        head: usize,
        pairs: Range<usize>,
        visit: impl FnMut(usize, Range<usize>, PageRef<'_>, &PageGeometry),
    ) {
        self.each_page_before(self.boundary(self.end), head, pairs, visit);
    }

    /// The same where the latest tokens, as they were written, begin with block `boundary`.
    pub(super) fn each_page_before(
        &self,
        boundary: usize,
        head: usize,
        pairs: Range<usize>,
        mut visit: impl FnMut(usize, Range<usize>, PageRef<'_>, &PageGeometry),
    ) {
        let there = "blocks that a keep method looks at are in memory";
        let mut pair = 0;
        let mut each =
            |start: usize, end: usize, page: &mut dyn FnMut(usize) -> (PageRef<'a>, &'a Group)| {
                let slot_of = |at: usize| start + at.saturating_sub(pair).min(end - start);
                let wanted = slot_of(pairs.start)..slot_of(pairs.end);
                if !wanted.is_empty() {
                    for index in wanted.start / PAGE_TOKENS..wanted.end.div_ceil(PAGE_TOKENS) {
                        let base = index * PAGE_TOKENS;
                        let first = wanted.start.max(base);
                        let slots = first - base..wanted.end.min(base + PAGE_TOKENS) - base;
                        let (page, group) = page(index);
                        visit(pair + first - start, slots, page, &group.geometry);
                    }
                }
                pair += end - start;
            };
        let first_ones = |index: usize| {
            let sinks = self.sinks.as_ref().expect(there);
            (
                sinks.group.page(sinks.blocks[index].expect(there), head),
                sinks.group,
            )
        };
        if let Some(stream) = self.stream {
            each(0, stream.apart(), &mut |index| first_ones(index));
            let slots = stream.slots(head);
            each(slots.slots.start, slots.slots.end, &mut |index| {
                let page = stream.page(self.group, slots.pages.start + index);
                (page, self.group)
            });
        }
        let tail = self.edge_slot..self.edge_slot + self.end - self.edge;
        let apart = self.apart() / PAGE_TOKENS;
        each(tail.start, tail.end, &mut |index| match &self.latest {
            Some(latest) if latest.first + index >= boundary => {
                let page = latest.group.page(latest.tail[index].expect(there), head);
                (page, latest.group)
            }
            Some(latest) if latest.first + index < apart => first_ones(latest.first + index),
            _ => (
                self.group.page(self.tail[index].expect(there), head),
                self.group,
            ),
        });
    }
}
