//! Attention over a span in register tiles, for every instruction set with vectors.
//!
//! Up to [`TILE_ROWS`] rows share each load of a key or value. With few rows (decode: the query
//! heads of a group) pages are read once, in their stored form, straight into registers, while the
//! next page is being fetched. With many rows (prefill) a page's numbers or codes are first turned
//! into f32 in scratch memory that stays in the nearest caches. Either way a row goes through the same operations in
//! the same order:
//! - a score is one chain of fused multiply-adds over `head_dim`, one lane a token; where keys are
//!   quantised a chain over each block of channels, and the blocks times their scales in order;
//! - maximum and sum of a page's 64 scores are reduced in a fixed pattern in which slots that the
//!   row does not see are exact neutral elements;
//! - an output channel is one chain over the visible tokens in order, and over no others; the scales
//!   of quantised values are multiplied into the weights.
//!
//! Kivi and dotted pages have their own arithmetic (see `fixed`), the same for few rows and many. Sparse
//! ones are first turned into pages of half precision, in scratch memory, from the bitmap and the numbers
//! that stayed.

use std::ops::Range;

use super::element::{Brain, Byte, Half, Nibble, Single};
use super::expand::Expand;
use super::fetch::Fetch;
use super::fixed::{DotCodes, FixQueries, FixRows, FixWeights, Fixed, Groups, Into, ScoreCodes};
use super::scores::ScoreTile;
use super::softmax::SoftmaxTile;
use super::stored::Stored;
use super::values::{Scaled, Unscaled, ValueTile, scale_weights};
use super::{AttentionScratch, PageRef, Partials, QueryRows, TILE_ROWS, visible_in_page};
use crate::Floats;
use crate::lanes::Lanes;
use crate::page::{KvType, PAGE_TOKENS, PageGeometry, QUANT_BLOCK};

/// From this many tiles on, converting a page once costs less than converting it in each tile.
pub(super) const TILES_WORTH_CONVERTING: usize = 3;

/// Pages from what is read to what is asked for meanwhile: with one, half-precision pages come in at four
/// fifths of the speed. The first ones of a call are asked for by nobody, so it should be few.
const PAGES_AHEAD: usize = 2;

/// See [`super::attend_span`].
#[inline(always)]
pub(super) fn attend<L: Lanes>(
    l: L,
    geom: &PageGeometry,
    pages: &[PageRef<'_>],
    rows: &QueryRows<'_>,
    scratch: &mut AttentionScratch,
    out: &mut Partials,
) {
    let tiles = rows.visible.len().div_ceil(TILE_ROWS);
    let stride = out.stride();
    let (acc, max, sum) = out.parts_mut();
    let AttentionScratch {
        k: k_scratch,
        v: v_scratch,
        scores,
        weights,
        fixed,
        queries,
        ..
    } = scratch;
    let mut span = Span {
        geom,
        rows,
        tiles,
        stride,
        acc,
        max,
        sum,
        scores: scores.sized(TILE_ROWS * PAGE_TOKENS),
        weights,
        fixed,
        queries,
        head: 0,
        index: 0,
        log_weights: &[],
        slots: [const { 0..0 }; TILE_ROWS],
        sees: false,
    };
    span.fix_rows(l);
    let many = tiles >= TILES_WORTH_CONVERTING;
    let is_sparse = |kv_type| matches!(kv_type, KvType::Sparse(_));
    let (k_codes, v_codes) = (geom.k_codes_bytes(), geom.v_codes_bytes());
    for (place, page) in pages.iter().enumerate() {
        if span.head + 1 < rows.heads && place > 0 {
            span.head += 1;
        } else {
            span.turn_to(place / rows.heads);
        }
        if (0..tiles).all(|tile| span.look(tile).is_empty()) {
            continue;
        }
        span.log_weights = page.log_weights;
        // A page that many rows read takes longer than its successor needs to come.
        let ahead = if many { 1 } else { PAGES_AHEAD };
        let next = pages.get(place + ahead);
        let (mut next_k, mut next_v) = next.map_or((&[][..], &[][..]), |next| (next.k, next.v));
        let mut k = Stored::new(geom.k_type, page.k, k_codes);
        let mut v = Stored::new(geom.v_type, page.v, v_codes);
        if is_sparse(geom.k_type) {
            let next = std::mem::take(&mut next_k);
            k = k.expanded(geom.head_dim * PAGE_TOKENS, k_scratch, |from, to| {
                l.call(Expand::keys(from, to, next));
            });
        } else if many {
            k = k.converted(l, PAGE_TOKENS, k_scratch);
        }
        if is_sparse(geom.v_type) {
            let next = std::mem::take(&mut next_v);
            v = v.expanded(stride * PAGE_TOKENS, v_scratch, |from, to| {
                l.call(Expand::values(from, geom.v_dim, to, next));
            });
        } else if many {
            v = v.converted(l, stride, v_scratch);
        }
        for tile in 0..tiles {
            let in_tile = span.look(tile);
            if in_tile.is_empty() {
                continue;
            }
            let (next_k, next_v) = match tile + 1 == tiles {
                _ if many => {
                    // Every tile asks for its share at once: it takes longer than that needs to come, and
                    // its loops are those of converted numbers, of which there are more than lines.
                    for next in [next_k, next_v] {
                        Fetch::of(next).part(tile, tile + 1, tiles).ask(l);
                    }
                    (Fetch::NOTHING, Fetch::NOTHING)
                }
                true => (Fetch::of(next_k), Fetch::of(next_v)),
                false => (Fetch::NOTHING, Fetch::NOTHING),
            };
            // Products of codes take so little time that others take part in asking.
            let (of_scores, of_softmax) = match k.groups() {
                Some(_) => (next_k.part(0, 1, 2), next_k.part(1, 2, 2)),
                None => (next_k, Fetch::NOTHING),
            };
            span.score(l, k, tile, in_tile.clone(), of_scores);
            span.add(l, v, in_tile, of_softmax, next_v);
        }
    }
}

/// What a call of [`attend`] works with.
struct Span<'a> {
    geom: &'a PageGeometry,
    rows: &'a QueryRows<'a>,
    tiles: usize,
    stride: usize,
    acc: &'a mut [f32],
    max: &'a mut [f32],
    sum: &'a mut [f32],
    /// Of a tile.
    scores: &'a mut [f32],
    weights: &'a mut Floats,
    fixed: &'a mut Fixed,
    queries: &'a mut Fixed,
    /// The page that is read: its head, and which of its pages it is.
    head: usize,
    index: usize,
    log_weights: &'a [f32],
    /// What the rows of a tile see of it.
    slots: [Range<usize>; TILE_ROWS],
    /// Whether that is anything, where there is one tile.
    sees: bool,
}

impl Span<'_> {
    /// Goes on with page `index` of the first head.
    #[inline(always)]
    fn turn_to(&mut self, index: usize) {
        (self.index, self.head) = (index, 0);
        // Where there is one tile, what it sees of the heads' pages is the same.
        if self.tiles == 1 {
            self.sees = self.see(0..self.rows.visible.len());
        }
    }

    /// The rows of tile `tile`, and in `slots` what each of them sees of the page. None where they see
    /// nothing.
    #[inline(always)]
    fn look(&mut self, tile: usize) -> Range<usize> {
        let in_tile = self.rows_of(tile);
        let sees = match self.tiles {
            1 => self.sees,
            _ => self.see(in_tile.clone()),
        };
        if sees { in_tile } else { 0..0 }
    }

    /// Writes what the rows `in_tile` see of the page to `slots`; whether it is anything.
    #[inline(always)]
    fn see(&mut self, in_tile: Range<usize>) -> bool {
        let mut sees = false;
        let rows = self.rows.visible[in_tile].iter();
        for (slots, visible) in self.slots.iter_mut().zip(rows) {
            *slots = visible_in_page(visible, self.index);
            sees |= slots.start < slots.end;
        }
        sees
    }

    /// The rows of a head in a tile. Tiles are of nearly equal height: 8 rows are 4 + 4, not 6 + 2.
    #[inline(always)]
    fn rows_of(&self, tile: usize) -> Range<usize> {
        let count = self.rows.visible.len();
        match self.tiles {
            1 => 0..count,
            tiles => tile * count / tiles..(tile + 1) * count / tiles,
        }
    }

    /// Makes the queries of all tiles factors for dotted keys, where keys are such.
    #[inline(always)]
    fn fix_rows<L: Lanes>(&mut self, l: L) {
        if !matches!(self.geom.k_type, KvType::Dotted(_)) {
            return;
        }
        let dim = self.geom.head_dim;
        let tiles = self.rows.heads * self.tiles;
        self.queries
            .reserve(tiles * dim.div_ceil(QUANT_BLOCK), QUANT_BLOCK);
        for at in 0..tiles {
            let q = self.rows.q;
            let (head, in_tile) = (at / self.tiles, self.rows_of(at % self.tiles));
            let first = (head * self.rows.visible.len() + in_tile.start) * dim;
            let q = &q[first..first + in_tile.len() * dim];
            fix_rows(l, self.geom.k_type, q, dim, at, self.queries);
        }
    }

    /// The scores of the rows `in_tile` of a head.
    #[inline(always)]
    fn score<L: Lanes>(
        &mut self,
        l: L,
        k: Stored<'_>,
        tile: usize,
        in_tile: Range<usize>,
        next: Fetch<'_>,
    ) {
        let (rows, dim) = (in_tile.len(), self.geom.head_dim);
        let first = (self.head * self.rows.visible.len() + in_tile.start) * dim;
        let q = &self.rows.q[first..first + rows * dim];
        let scores = &mut self.scores[..rows * PAGE_TOKENS];
        match (k.groups(), k.kv_type) {
            (Some(groups), KvType::Dotted(_)) => {
                let at = self.head * self.tiles + tile;
                score_dotted(l, dim, k, groups, self.queries, at, scores, next);
            }
            (Some(groups), _) => score_codes(l, rows, q, k, groups, scores, self.fixed, next),
            (None, _) => score_rows(l, rows, q, k, scores, next),
        }
    }

    /// The softmax of these scores, and the values that they weight.
    #[inline(always)]
    fn add<L: Lanes>(
        &mut self,
        l: L,
        v: Stored<'_>,
        in_tile: Range<usize>,
        of_softmax: Fetch<'_>,
        next: Fetch<'_>,
    ) {
        let height = in_tile.len();
        let first = self.head * self.rows.visible.len() + in_tile.start;
        let slots = &self.slots[..height];
        let scores = &mut self.scores[..height * PAGE_TOKENS];
        let mut scale = [1f32; TILE_ROWS];
        let scale = &mut scale[..height];
        l.call(SoftmaxTile {
            scores,
            slots,
            softcap: self.rows.softcap,
            log_weights: self.log_weights,
            max: &mut self.max[first..first + height],
            sum: &mut self.sum[first..first + height],
            scale,
            next: of_softmax,
        });
        let acc = &mut self.acc[first * self.stride..][..height * self.stride];
        if let Some(groups) = v.groups() {
            let fixed = &mut *self.fixed;
            l.call(FixWeights {
                weights: scores,
                slots,
                groups,
                fixed,
                next: next.part(0, 1, 2),
            });
            let next = next.part(1, 2, 2);
            value_codes(self.geom, v, groups, fixed, acc, scale, next).run(l);
        } else if v.scales.is_empty() {
            add_values(l, slots, scores, 0, scale, v, acc, next);
        } else {
            let weights = scale_weights(l, scores, v.scales, self.weights);
            add_values(l, slots, weights, scores.len(), scale, v, acc, next);
        }
    }
}

/// Makes the queries `q [rows][dim]` of tile `tile` factors for the dotted keys of any page.
#[inline(always)]
pub(super) fn fix_rows<L: Lanes>(
    l: L,
    k_type: KvType,
    q: &[f32],
    dim: usize,
    tile: usize,
    queries: &mut Fixed,
) {
    let Some(groups) = Groups::new(k_type, &[]) else {
        unreachable!("dotted keys are read in whole numbers")
    };
    l.call(FixRows {
        q,
        dim,
        groups,
        region: tile * dim.div_ceil(QUANT_BLOCK),
        fixed: queries,
    });
}

/// Calls `$tile!(…, rows)` with the number of rows as a constant.
macro_rules! with_rows {
    ($rows:expr, $tile:ident, $($constant:expr),+) => {
        match $rows {
            1 => $tile!($($constant),+, 1),
            2 => $tile!($($constant),+, 2),
            3 => $tile!($($constant),+, 3),
            4 => $tile!($($constant),+, 4),
            5 => $tile!($($constant),+, 5),
            _ => $tile!($($constant),+, 6),
        }
    };
}

/// Writes the scores of `rows` rows `q [rows][dim]` against a page, `[rows][64]`.
#[inline(always)]
pub(super) fn score_rows<L: Lanes>(
    l: L,
    rows: usize,
    q: &[f32],
    k: Stored<'_>,
    scores: &mut [f32],
    next: Fetch<'_>,
) {
    macro_rules! tile {
        ($element:expr, $rows:literal) => {
            l.call(ScoreTile::<_, $rows> {
                element: $element,
                q,
                k: k.codes,
                scales: k.scales,
                scores,
                next,
            })
        };
    }
    match k.kv_type {
        KvType::F32 => with_rows!(rows, tile, Single),
        KvType::F16 => with_rows!(rows, tile, Half),
        KvType::BF16 => with_rows!(rows, tile, Brain),
        KvType::Q8 => with_rows!(rows, tile, Byte),
        KvType::Q4 => with_rows!(rows, tile, Nibble),
        KvType::Kivi(_) | KvType::Dotted(_) => unreachable!("read in whole numbers"),
        KvType::Sparse(_) => unreachable!("sparse pages are expanded"),
    }
}

/// The same for kivi keys.
#[expect(
    clippy::too_many_arguments,
    reason = "two matrices, their result and what scales them"
)]
#[inline(always)]
fn score_codes<L: Lanes>(
    l: L,
    rows: usize,
    q: &[f32],
    k: Stored<'_>,
    groups: Groups<'_>,
    scores: &mut [f32],
    fixed: &mut Fixed,
    next: Fetch<'_>,
) {
    l.call(FixQueries {
        q,
        dim: q.len() / rows,
        groups,
        fixed,
    });
    let tile = DotCodes {
        groups,
        codes: k.codes,
        summed: q.len() / rows,
        across: PAGE_TOKENS,
        rows,
        fixed,
        out: scores,
        into: Into::Over,
        next,
    };
    tile.run(l);
}

/// The same for dotted keys, with the queries of tile `tile` that were made factors.
#[expect(
    clippy::too_many_arguments,
    reason = "two matrices, their result and what scales them"
)]
#[inline(always)]
pub(super) fn score_dotted<L: Lanes>(
    l: L,
    dim: usize,
    k: Stored<'_>,
    groups: Groups<'_>,
    queries: &Fixed,
    tile: usize,
    scores: &mut [f32],
    next: Fetch<'_>,
) {
    let tile = ScoreCodes {
        groups,
        codes: k.codes,
        dim,
        rows: scores.len() / PAGE_TOKENS,
        fixed: queries,
        region: tile * dim.div_ceil(QUANT_BLOCK),
        scores,
        next,
    };
    tile.run(l);
}

/// The products of weights that were made factors with the values of a page, onto `acc` times `scale`.
fn value_codes<'a>(
    geom: &PageGeometry,
    v: Stored<'a>,
    groups: Groups<'a>,
    fixed: &'a Fixed,
    acc: &'a mut [f32],
    scale: &'a [f32],
    next: Fetch<'a>,
) -> DotCodes<'a> {
    DotCodes {
        // Whatever shares a scale among the keys.
        groups: Groups {
            places: QUANT_BLOCK,
            ..groups
        },
        codes: v.codes,
        summed: PAGE_TOKENS,
        across: geom.v_dim,
        rows: scale.len(),
        fixed,
        out: acc,
        into: Into::Onto(scale),
        next,
    }
}

/// Rescales `acc [rows][stride]` and adds each row's visible values, weighted. `weights` are
/// `[sets][rows][64]`, a set `set_len` numbers long.
#[expect(
    clippy::too_many_arguments,
    reason = "two matrices, their result and what scales them"
)]
#[inline(always)]
fn add_values<L: Lanes>(
    l: L,
    slots: &[Range<usize>],
    weights: &[f32],
    set_len: usize,
    scale: &[f32],
    v: Stored<'_>,
    acc: &mut [f32],
    next: Fetch<'_>,
) {
    let rows = slots.len();
    let stride = acc.len() / rows;
    let mut add = |first: usize, rows: usize, slots: Range<usize>, scale: &[f32], next| {
        let acc = &mut acc[first * stride..][..rows * stride];
        let weights = &weights[first * PAGE_TOKENS..];
        let codes = v.codes;
        macro_rules! tile {
            ($element:expr, $scaling:expr, $rows:literal) => {
                l.call(ValueTile::<_, _, $rows> {
                    element: $element,
                    scaling: $scaling,
                    slots,
                    weights,
                    set_len,
                    scale,
                    v: codes,
                    acc,
                    next,
                })
            };
        }
        match v.kv_type {
            KvType::F32 if v.scales.is_empty() => with_rows!(rows, tile, Single, Unscaled),
            KvType::F32 => with_rows!(rows, tile, Single, Scaled),
            KvType::F16 => with_rows!(rows, tile, Half, Unscaled),
            KvType::BF16 => with_rows!(rows, tile, Brain, Unscaled),
            KvType::Q8 => with_rows!(rows, tile, Byte, Scaled),
            KvType::Q4 => with_rows!(rows, tile, Nibble, Scaled),
            KvType::Kivi(_) | KvType::Dotted(_) => unreachable!("read in whole numbers"),
            KvType::Sparse(_) => unreachable!("sparse pages are expanded"),
        }
    };
    static ONES: [f32; TILE_ROWS] = [1.0; TILE_ROWS];
    let start = slots.iter().map(|s| s.start).max().unwrap_or(0);
    let end = slots.iter().map(|s| s.end).min().unwrap_or(0);
    if start >= end {
        // No slot that all rows see.
        return alike(slots, Range::clone, |rows, seen| {
            add(rows.start, rows.len(), seen, &scale[rows], Fetch::NOTHING);
        });
    }
    // The slots that only some rows see are added for those alone, in each row's order.
    let mut scale = scale;
    if slots.iter().any(|slots| slots.start < start) {
        alike(
            slots,
            |slots| slots.start,
            |rows, first| {
                add(
                    rows.start,
                    rows.len(),
                    first..start,
                    &scale[rows],
                    Fetch::NOTHING,
                );
            },
        );
        scale = &ONES[..rows];
    }
    add(0, rows, start..end, scale, next);
    alike(
        slots,
        |slots| slots.end,
        |rows, last| {
            if last > end {
                let ones = &ONES[..rows.len()];
                add(rows.start, rows.len(), end..last, ones, Fetch::NOTHING);
            }
        },
    );
}

/// Calls `work(rows, key)` for neighbouring rows of which `key` is the same.
#[inline(always)]
fn alike<T: PartialEq>(
    slots: &[Range<usize>],
    key: impl Fn(&Range<usize>) -> T,
    mut work: impl FnMut(Range<usize>, T),
) {
    let mut first = 0;
    for rows in slots.chunk_by(|a, b| key(a) == key(b)) {
        work(first..first + rows.len(), key(&rows[0]));
        first += rows.len();
    }
}
