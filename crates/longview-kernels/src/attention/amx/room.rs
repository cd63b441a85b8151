//! The buffers that attention with tiles works in, and what tiles of rows see.

use std::ops::Range;

use super::is_split;
use super::products::SUMS;
use super::split::{DEPTH, FLOAT_PARTS, HALF_PARTS};
use crate::amx::{ROWS, TILE};
use crate::page::{PAGE_TOKENS, PageGeometry, VALUE_PADDING};
use crate::{Floats, Isa};

/// Buffers of a call.
#[derive(Default)]
pub(in crate::attention) struct Room {
    /// `[heads][tiles]` of `[head_dim / 32][3]` tiles.
    pub(super) queries: Floats,
    /// Of one page.
    pub(super) keys: Floats,
    pub(super) values: Floats,
    /// Of the two tiles of rows that were scored last: `[16][64]`.
    pub(super) scores: [Floats; 2],
    /// The same as tiles, `[64 / 32][3]`.
    pub(super) weights: [Floats; 2],
    /// Sums of a tile of rows that is not whole.
    pub(super) sums: Floats,
    pub(super) seen: Vec<Seen>,
}

impl Room {
    /// Makes room for calls with up to `rows` rows of each of `heads` heads, where there are tiles.
    pub(in crate::attention) fn reserve(&mut self, geom: &PageGeometry, heads: usize, rows: usize) {
        if !Isa::Amx.is_available() || !is_split(geom) {
            return;
        }
        let tiles = rows.div_ceil(ROWS);
        self.queries.at_least(heads * tiles * query_floats(geom));
        self.keys.at_least(key_floats(geom));
        self.values.at_least(value_floats(geom));
        for i in 0..2 {
            self.scores[i].at_least(ROWS * PAGE_TOKENS);
            self.weights[i].at_least(WEIGHTS);
        }
        self.sums.at_least(ROWS * stride(geom));
        self.seen.reserve(tiles.saturating_sub(self.seen.len()));
    }

    /// Bytes of memory held.
    pub(in crate::attention) fn bytes(&self) -> usize {
        let rest = [&self.queries, &self.keys, &self.values, &self.sums];
        let floats = rest.into_iter().chain(&self.scores).chain(&self.weights);
        4 * floats.map(|floats| floats.capacity()).sum::<usize>()
            + self.seen.capacity() * size_of::<Seen>()
    }
}

/// Floats of a tile.
pub(super) const FLOATS: usize = TILE / 4;
/// Products of a page's tokens that follow one another.
pub(super) const TOKEN_STEPS: usize = PAGE_TOKENS / DEPTH;
/// Floats that the weights of a tile of rows take.
pub(super) const WEIGHTS: usize = TOKEN_STEPS * FLOAT_PARTS * FLOATS;

pub(super) fn query_floats(geom: &PageGeometry) -> usize {
    geom.head_dim.div_ceil(DEPTH) * FLOAT_PARTS * FLOATS
}

pub(super) fn key_floats(geom: &PageGeometry) -> usize {
    geom.head_dim.div_ceil(DEPTH) * SUMS * HALF_PARTS * FLOATS
}

pub(super) fn value_floats(geom: &PageGeometry) -> usize {
    TOKEN_STEPS * stride(geom) / 16 * HALF_PARTS * FLOATS
}

fn stride(geom: &PageGeometry) -> usize {
    geom.v_dim.next_multiple_of(VALUE_PADDING)
}

/// What the rows of a tile see of a span.
#[derive(Clone)]
pub(super) struct Seen {
    /// All of them.
    pub(super) all: Range<u32>,
    /// Some of them, and perhaps what lies between.
    pub(super) some: Range<u32>,
}

impl Seen {
    pub(super) fn of(visible: &[Range<u32>]) -> Seen {
        let mut seen = Seen {
            all: 0..u32::MAX,
            some: 0..0,
        };
        for row in visible {
            seen.all = seen.all.start.max(row.start)..seen.all.end.min(row.end);
            seen.some = hull(&seen.some, row);
        }
        seen
    }
}

/// What lies in one range or the other, or between them.
pub(super) fn hull(a: &Range<u32>, b: &Range<u32>) -> Range<u32> {
    match (a.is_empty(), b.is_empty()) {
        (true, _) => b.clone(),
        (_, true) => a.clone(),
        _ => a.start.min(b.start)..a.end.max(b.end),
    }
}
