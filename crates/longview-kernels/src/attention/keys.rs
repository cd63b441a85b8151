//! Keys of a page that many rows are scored against, without softmax and values.

use super::fetch::Fetch;
use super::fixed::Fixed;
use super::stored::Stored;
use super::tiles::{TILES_WORTH_CONVERTING, fix_rows, score_dotted, score_rows};
use super::{AttentionScratch, TILE_ROWS};
use crate::lanes::Lanes;
use crate::page::{PAGE_TOKENS, PageGeometry};

/// A page's keys, ready to be scored by many rows.
pub(super) struct Keys<'a> {
    stored: Stored<'a>,
    dim: usize,
    queries: &'a mut Fixed,
}

impl<'a> Keys<'a> {
    /// The keys `page_k` for `rows` rows: converted in `scratch` first where that costs less.
    #[inline(always)]
    pub(super) fn new<L: Lanes>(
        l: L,
        geom: &PageGeometry,
        page_k: &'a [u8],
        scratch: &'a mut AttentionScratch,
        rows: usize,
    ) -> Keys<'a> {
        let stored = Stored::new(geom.k_type, page_k, geom.k_codes_bytes());
        Keys {
            stored: if rows.div_ceil(TILE_ROWS) >= TILES_WORTH_CONVERTING {
                stored.converted(l, PAGE_TOKENS, &mut scratch.k)
            } else {
                stored
            },
            dim: geom.head_dim,
            queries: &mut scratch.queries,
        }
    }

    /// Scores of at most a tile of rows, `q [rows][head_dim]`, as `[rows][64]`.
    #[inline(always)]
    pub(super) fn score<L: Lanes>(&mut self, l: L, q: &[f32], scores: &mut [f32]) {
        let rows = scores.len() / PAGE_TOKENS;
        match self.stored.groups() {
            Some(groups) => {
                fix_rows(l, self.stored.kv_type, q, self.dim, 0, self.queries);
                let (k, queries) = (self.stored, &*self.queries);
                score_dotted(l, self.dim, k, groups, queries, 0, scores, Fetch::NOTHING);
            }
            None => score_rows(l, rows, q, self.stored, scores, Fetch::NOTHING),
        }
    }
}
