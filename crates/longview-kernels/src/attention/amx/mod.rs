//! Attention over a span of f16 pages with the tiles of AMX, as exact as in f32.
//!
//! Tiles multiply bf16 and add up in f32, sixteen times as many in a cycle as registers in f32. So queries
//! and weights are taken as sums of three bf16 and keys and values as sums of two, all of them exact, and
//! five of the six products are summed: the sixth would be 2⁻²⁴ of the first, what a float is rounded by.
//! For every number of rows a row goes through the same operations in the same order, page by page:
//! - a score is a chain of products of 32 channels, the five of each 32 in order;
//! - maxima, weights and their sums are those of [`super::softmax`];
//! - an output channel is such a chain over the page's tokens. The values of tokens that no row sees are
//!   zeros, and so are the weights of tokens that another row sees.
//!
//! Three tiles of sixteen rows are under way at a time: while one's scores are multiplied, the scores of
//! the one before become weights, and those of the one before that weight values.

mod products;
mod room;
mod split;
mod weights;

use std::ops::Range;

use super::fetch::Fetch;
use super::softmax::{SoftmaxTile, TOGETHER};
use super::{Attend, PageRef, QueryRows, visible_in_page};
use crate::Isa;
use crate::amx::{ROW, ROWS, Tiles};
use crate::lanes::{self, Avx512};
use crate::page::{KvType, PAGE_TOKENS, PageGeometry};
use products::{PASSES, Products, Round, SUMS, Scores, Sums};
pub(super) use room::Room;
use room::{FLOATS, Seen, TOKEN_STEPS, WEIGHTS, hull, key_floats, query_floats, value_floats};
use split::{DEPTH, FLOAT_PARTS};
use weights::{Multiplying, Splitting};

/// Whether pages of `geom` are read in tiles.
pub(super) fn reads(isa: Isa, geom: &PageGeometry) -> bool {
    isa == Isa::Amx && isa.is_available() && is_split(geom)
}

fn is_split(geom: &PageGeometry) -> bool {
    are_read(geom.k_type, geom.v_type)
}

/// Whether pages of keys and values of these types are read in tiles.
pub(crate) fn are_read(keys: KvType, values: KvType) -> bool {
    (keys, values) == (KvType::F16, KvType::F16)
}

/// Products of bytes that a processor does in the time of the five of bf16 that one of attention takes.
pub(crate) const BYTE_PRODUCTS: usize = 2 * PASSES.len();

/// See [`super::attend_further`]; pages are such that [`reads`] is true.
pub(super) fn attend(it: Attend<'_>) {
    lanes::run_beside_tiles(
        #[inline(always)]
        |l| attend_beside(l, it),
    );
}

#[inline(always)]
fn attend_beside(l: Avx512, it: Attend<'_>) {
    let Attend {
        geom,
        pages,
        rows,
        scratch,
        out,
    } = it;
    let count = rows.visible.len();
    if count == 0 {
        return;
    }
    let tiles = count.div_ceil(ROWS);
    let stride = out.stride();
    let (acc, max, sum) = out.parts_mut();
    let room = &mut scratch.amx;
    room.seen.clear();
    room.seen.extend(rows.visible.chunks(ROWS).map(Seen::of));
    let [scores, more_scores] = &mut room.scores;
    let [weights, more_weights] = &mut room.weights;
    let mut span = Span {
        rows,
        tiles,
        steps: geom.head_dim.div_ceil(DEPTH),
        stride,
        seen: &room.seen,
        queries: room.queries.sized(rows.heads * tiles * query_floats(geom)),
        keys: room.keys.sized(key_floats(geom)),
        values: room.values.sized(value_floats(geom)),
        scores: [scores, more_scores].map(|s| s.sized(ROWS * PAGE_TOKENS)),
        weights: [weights, more_weights].map(|w| w.sized(WEIGHTS)),
        sums: room.sums.sized(ROWS * stride),
        log_weights: &[],
        acc,
        max,
        sum,
    };
    // SAFETY: the caller has asked whether the processor offers tiles.
    let _cut = unsafe { Tiles::for_floats(count.min(ROWS)) };
    span.split_queries(geom.head_dim);
    match tiles {
        1 => span.few_rows(l, geom, pages),
        _ => span.many_rows(l, geom, pages),
    }
}

/// A page of a span.
#[derive(Clone, Copy)]
struct At {
    head: usize,
    index: usize,
}

impl At {
    fn of(place: usize, heads: usize) -> At {
        At {
            head: place % heads,
            index: place / heads,
        }
    }
}

/// A tile of rows.
#[derive(Clone, Copy)]
struct Rows {
    /// Which tile of its head it is.
    tile: usize,
    /// Its first row among those of all heads, and how many there are.
    first: usize,
    count: usize,
    /// Which of the two buffers it has.
    slot: usize,
}

/// What a call of [`attend`] works with.
struct Span<'a> {
    rows: &'a QueryRows<'a>,
    tiles: usize,
    /// Products of channels that follow one another.
    steps: usize,
    stride: usize,
    seen: &'a [Seen],
    queries: &'a mut [f32],
    keys: &'a mut [f32],
    values: &'a mut [f32],
    scores: [&'a mut [f32]; 2],
    weights: [&'a mut [f32]; 2],
    sums: &'a mut [f32],
    /// Of the page that is read.
    log_weights: &'a [f32],
    acc: &'a mut [f32],
    max: &'a mut [f32],
    sum: &'a mut [f32],
}

impl<'a> Span<'a> {
    #[inline(always)]
    fn split_queries(&mut self, dim: usize) {
        let (count, floats) = (self.rows.visible.len(), self.steps * FLOAT_PARTS * FLOATS);
        for head in 0..self.rows.heads {
            for row in 0..count {
                let tile = head * self.tiles + row / ROWS;
                let to = self.queries[tile * floats..][..floats].as_mut_ptr();
                let q = &self.rows.q[(head * count + row) * dim..][..dim];
                // SAFETY: tiles are there only beside AVX-512; there is room for the row in its tiles.
                unsafe { split::split_row(q, to.cast(), row % ROWS) };
            }
        }
    }

    /// Attention of more than a tile of rows, for which it matters little how long pages take to be split.
    #[inline(always)]
    fn many_rows(&mut self, l: Avx512, geom: &PageGeometry, pages: &'a [PageRef<'a>]) {
        for (place, page) in pages.iter().enumerate() {
            let at = At::of(place, self.rows.heads);
            let some = self.some(at.index);
            if some.is_empty() {
                continue;
            }
            self.log_weights = page.log_weights;
            let next = pages.get(place + 1);
            self.split_keys(l, geom, page, next, |_| {});
            if self.are_alike(at.index) || split::are_finite(page.v, self.stride, &some) {
                self.split_values(l, page, &some, next, |_| {});
                self.page(l, at);
            } else {
                self.page_apart(l, page, at);
            }
        }
    }

    /// Attention of up to a tile of rows: while a page's keys are split, the values of the page before are
    /// added, and while its values are, it is scored.
    #[inline(always)]
    fn few_rows(&mut self, l: Avx512, geom: &PageGeometry, pages: &'a [PageRef<'a>]) {
        let mut products = Products::default();
        for (place, page) in pages.iter().enumerate() {
            let at = At::of(place, self.rows.heads);
            let Some(rows) = self.rows_of(at, 0) else {
                continue;
            };
            let some = self.some(at.index);
            self.log_weights = page.log_weights;
            let next = pages.get(place + 1);
            let whole = self.steps * ROWS;
            self.split_keys(l, geom, page, next, |part| products.go_on(part, whole));
            if !self.are_alike(at.index) && !split::are_finite(page.v, self.stride, &some) {
                products.write();
                products.begin(None, None);
                self.page_apart(l, page, at);
                continue;
            }
            products.begin(Some(self.scores(at, rows)), None);
            let whole = TOKEN_STEPS * ROWS;
            self.split_values(l, page, &some, next, |part| products.go_on(part, whole));
            products.write();
            for first in (0..rows.count).step_by(TOGETHER) {
                let some = first..rows.count.min(first + TOGETHER);
                // SAFETY: `l` is proof of the features.
                unsafe { self.weigh_some(l, at, &rows, some, None) };
            }
            products.begin(None, Some(self.sums(rows)));
        }
        products.go_on(1, 1);
        products.write();
    }

    /// What some rows see of page `index`, and perhaps what lies between.
    fn some(&self, index: usize) -> Range<usize> {
        let seen = self.seen.iter();
        let some = seen.fold(0..0, |some, seen| hull(&some, &seen.some));
        visible_in_page(&some, index)
    }

    #[inline(always)]
    fn split_keys(
        &mut self,
        l: Avx512,
        geom: &PageGeometry,
        page: &PageRef<'_>,
        next: Option<&PageRef<'_>>,
        beside: impl FnMut(usize),
    ) {
        let next = Fetch::of(next.map_or(&[], |next| next.k));
        let next = next.pace(self.steps * ROWS * SUMS);
        let to = self.keys.as_mut_ptr().cast();
        // SAFETY: `l` is proof of the features, and there is room for a page.
        unsafe { split::split_keys(l, page.k, geom.head_dim, to, next, beside) };
    }

    #[inline(always)]
    fn split_values(
        &mut self,
        l: Avx512,
        page: &PageRef<'_>,
        slots: &Range<usize>,
        next: Option<&PageRef<'_>>,
        beside: impl FnMut(usize),
    ) {
        let next = Fetch::of(next.map_or(&[], |next| next.v));
        let next = next.pace(TOKEN_STEPS * ROWS * self.stride / 16);
        let to = self.values.as_mut_ptr().cast();
        // SAFETY: as above.
        unsafe { split::split_values(l, page.v, self.stride, slots, to, next, beside) };
    }

    /// Whether all rows that see anything of page `index` see the same of it.
    fn are_alike(&self, index: usize) -> bool {
        let in_page = |range: &Range<u32>| visible_in_page(range, index);
        let mut seen = self.seen.iter();
        let Some(first) = seen.next().map(|seen| in_page(&seen.some)) else {
            return true;
        };
        in_page(&self.seen[0].all) == first
            && seen.all(|seen| in_page(&seen.some) == first && in_page(&seen.all) == first)
    }

    /// Tile `tile` of page `at`, if its rows see anything of it.
    #[inline(always)]
    fn rows_of(&self, at: At, tile: usize) -> Option<Rows> {
        let count = self.rows.visible.len();
        let is_seen = !visible_in_page(&self.seen[tile].some, at.index).is_empty();
        is_seen.then_some(Rows {
            tile,
            first: at.head * count + tile * ROWS,
            count: ROWS.min(count - tile * ROWS),
            slot: tile % 2,
        })
    }

    /// Attention of all rows over page `at`, which is split.
    #[inline(always)]
    fn page(&mut self, l: Avx512, at: At) {
        let mut products = Products::default();
        let (mut scored, mut weighted) = (None, None);
        for tile in 0..self.tiles + 2 {
            let next = if tile < self.tiles {
                self.rows_of(at, tile)
            } else {
                None
            };
            let scores = next.map(|next| self.scores(at, next));
            products.begin(scores, weighted.map(|rows| self.sums(rows)));
            match scored {
                Some(scored) => self.weigh(l, at, scored, &mut products),
                None => products.do_rounds(0..products.rounds()),
            }
            // What comes next reads scores, and the sums of fewer tiles may leave some unwritten.
            if weighted.is_none() || self.stride < 16 * SUMS {
                products.write();
            }
            (scored, weighted) = (next, scored);
        }
        products.write();
        self.take_sums(at);
    }

    /// The products of the queries of `rows` with the page's keys.
    #[inline(always)]
    fn scores(&mut self, at: At, rows: Rows) -> Scores {
        let floats = self.steps * FLOAT_PARTS * FLOATS;
        let queries = &self.queries[(at.head * self.tiles + rows.tile) * floats..][..floats];
        Scores {
            queries: queries.as_ptr().cast(),
            keys: self.keys.as_ptr().cast(),
            steps: self.steps,
            to: self.scores[rows.slot].as_mut_ptr(),
        }
    }

    /// The products of the weights of `rows` with the page's values.
    #[inline(always)]
    fn sums(&mut self, rows: Rows) -> Sums {
        let of_rows = rows.first * self.stride..(rows.first + rows.count) * self.stride;
        let is_whole = self.is_whole(rows.count);
        let acc = &mut self.acc[of_rows];
        let to = match is_whole {
            true => acc,
            false => {
                self.sums[..acc.len()].copy_from_slice(acc);
                &mut *self.sums
            }
        };
        Sums {
            weights: self.weights[rows.slot].as_ptr().cast(),
            values: self.values.as_ptr().cast(),
            groups: self.stride / 16,
            to: to.as_mut_ptr(),
        }
    }

    /// Whether tiles are of `count` rows: they are of sixteen, or of all there are.
    fn is_whole(&self, count: usize) -> bool {
        count == ROWS || self.tiles == 1
    }

    /// Brings the sums of a tile of page `at` that is not whole to the others.
    fn take_sums(&mut self, at: At) {
        let tile = self.tiles - 1;
        if let Some(rows) = self.rows_of(at, tile)
            && !self.is_whole(rows.count)
        {
            let acc = &mut self.acc[rows.first * self.stride..][..rows.count * self.stride];
            acc.copy_from_slice(&self.sums[..acc.len()]);
        }
    }

    /// Makes weights of the scores of `rows`, and does `products` meanwhile: a quarter of each at a time.
    #[inline(always)]
    fn weigh(&mut self, l: Avx512, at: At, rows: Rows, products: &mut Products) {
        const QUARTERS: usize = ROWS / TOGETHER;
        let rounds = products.rounds();
        for quarter in 0..QUARTERS {
            let first = quarter * TOGETHER;
            let count = rows.count.saturating_sub(first).min(TOGETHER);
            let mut rounds = rounds * quarter / QUARTERS..rounds * (quarter + 1) / QUARTERS;
            // The last of them between the operations of a softmax.
            let is_beside = count == TOGETHER && !rounds.is_empty();
            rounds.end -= usize::from(is_beside);
            products.do_rounds(rounds.clone());
            let round = match is_beside {
                true => Some(products.round(rounds.end)),
                false => None,
            };
            if count > 0 {
                // SAFETY: `l` is proof of the features.
                unsafe { self.weigh_some(l, at, &rows, first..first + count, round) };
            }
        }
    }

    /// Makes weights of the scores of the rows `some` of `rows`, with the products of `round` in between,
    /// which is there for [`TOGETHER`] rows alone.
    ///
    /// # Safety
    /// The processor offers the features.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn weigh_some(
        &mut self,
        l: Avx512,
        at: At,
        rows: &Rows,
        some: Range<usize>,
        round: Option<&Round>,
    ) {
        let count = some.len();
        let mut slots = [const { 0..PAGE_TOKENS }; TOGETHER];
        let slots = &mut slots[..count];
        if visible_in_page(&self.seen[rows.tile].all, at.index).len() < PAGE_TOKENS {
            let visible = &self.rows.visible[rows.tile * ROWS..][some.clone()];
            for (slots, visible) in slots.iter_mut().zip(visible) {
                *slots = visible_in_page(visible, at.index);
            }
        }
        let first = rows.first + some.start;
        let mut scale = [1f32; TOGETHER];
        let scale = &mut scale[..count];
        let softmax = SoftmaxTile {
            scores: &mut self.scores[rows.slot][some.start * PAGE_TOKENS..some.end * PAGE_TOKENS],
            slots,
            softcap: self.rows.softcap,
            log_weights: self.log_weights,
            max: &mut self.max[first..first + count],
            sum: &mut self.sum[first..first + count],
            scale,
            next: Fetch::NOTHING,
        };
        let to = self.weights[rows.slot].as_mut_ptr().cast::<u8>();
        let splitting = Splitting {
            to: to.wrapping_add(some.start * ROW),
        };
        match round {
            Some(round) => {
                round.load(0);
                let beside = Multiplying {
                    splitting,
                    round,
                    pass: 0,
                };
                softmax.run_together(l, beside);
            }
            None => softmax.run(l, splitting),
        }
        for (row, &scale) in (first..).zip(&*scale) {
            if scale != 1.0 {
                let acc = &mut self.acc[row * self.stride..][..self.stride];
                acc.iter_mut().for_each(|x| *x *= scale);
            }
        }
    }

    /// The same as [`Span::page`] where values are not all finite and rows do not see the same: what a row
    /// does not see must not reach it even times zero.
    #[inline(never)]
    fn page_apart(&mut self, l: Avx512, page: &PageRef<'_>, at: At) {
        for tile in 0..self.tiles {
            let Some(rows) = self.rows_of(at, tile) else {
                continue;
            };
            let mut products = Products::default();
            products.begin(Some(self.scores(at, rows)), None);
            products.do_rounds(0..products.rounds());
            products.write();
            for first in (0..rows.count).step_by(TOGETHER) {
                let some = first..rows.count.min(first + TOGETHER);
                // SAFETY: `l` is proof of the features.
                unsafe { self.weigh_some(l, at, &rows, some, None) };
            }
            let of_rows = rows.first * self.stride..(rows.first + rows.count) * self.stride;
            let before = self.acc[of_rows.clone()].to_vec();
            let mut after = before.clone();
            for row in 0..rows.count {
                let visible = &self.rows.visible[tile * ROWS + row];
                let slots = visible_in_page(visible, at.index);
                if slots.is_empty() {
                    continue;
                }
                self.split_values(l, page, &slots, None, |_| {});
                self.acc[of_rows.clone()].copy_from_slice(&before);
                products.begin(None, Some(self.sums(rows)));
                products.do_rounds(0..products.rounds());
                products.write();
                if !self.is_whole(rows.count) {
                    self.take_sums(at);
                }
                let own = row * self.stride..(row + 1) * self.stride;
                after[own.clone()].copy_from_slice(&self.acc[of_rows.clone()][own]);
            }
            self.acc[of_rows].copy_from_slice(&after);
        }
    }
}
