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
//! Kivi pages have their own arithmetic (see `fixed`), the same for few rows and many. Sparse ones are always turned into f32 first,
//! in scratch memory, from the bitmap and the numbers that stayed.

use std::ops::Range;

use super::element::{Brain, Byte, Convert, Half, Nibble, Single};
use super::expand::Expand;
use super::fixed::{DotCodes, FixQueries, FixWeights, Fixed, Groups, Into, VALUE_PLACES};
use super::scores::ScoreTile;
use super::softmax::SoftmaxTile;
use super::values::{ScaleWeights, Scaled, Unscaled, ValueTile};
use super::{AttentionScratch, PageRef, Partials, QueryRows, TILE_ROWS, visible_in_page};
use crate::Floats;
use crate::lanes::Lanes;
use crate::page::{KvType, PAGE_TOKENS, PageGeometry};

/// From this many tiles on, converting a page once costs less than converting it in each tile.
pub(super) const TILES_WORTH_CONVERTING: usize = 3;

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
    let count = rows.visible.len();
    let tiles = count.div_ceil(TILE_ROWS);
    let stride = out.stride();
    let AttentionScratch {
        k: k_scratch,
        v: v_scratch,
        scores,
        weights,
        fixed,
    } = scratch;
    let scores = scores.sized(TILE_ROWS * PAGE_TOKENS);
    let (acc, max, sum) = out.parts_mut();

    for (place, page) in pages.iter().enumerate() {
        let (index, head) = (place / rows.heads, place % rows.heads);
        if rows
            .visible
            .iter()
            .all(|visible| visible_in_page(visible, index).is_empty())
        {
            continue;
        }
        let mut k = Stored::new(geom.k_type, page.k, geom.k_codes_bytes());
        let mut v = Stored::new(geom.v_type, page.v, geom.v_codes_bytes());
        let mut next = pages.get(place + 1);
        let many = tiles >= TILES_WORTH_CONVERTING;
        if matches!(k.kv_type, KvType::Sparse(_)) {
            k = k.expanded(geom.head_dim * PAGE_TOKENS, k_scratch, |from, to| {
                l.call(Expand::keys(from, to));
            });
        } else if many {
            k = k.converted(l, PAGE_TOKENS, k_scratch);
        }
        if matches!(v.kv_type, KvType::Sparse(_)) {
            v = v.expanded(stride * PAGE_TOKENS, v_scratch, |from, to| {
                l.call(Expand::values(from, geom.v_dim, to));
            });
        } else if many {
            v = v.converted(l, stride, v_scratch);
        }
        if many {
            next = None;
        }
        for tile in 0..tiles {
            // Tiles of nearly equal height: 8 rows are 4 + 4, not 6 + 2.
            let first = tile * count / tiles;
            let height = (tile + 1) * count / tiles - first;
            let mut slots = [const { 0..0 }; TILE_ROWS];
            let slots = &mut slots[..height];
            for (slots, visible) in slots.iter_mut().zip(&rows.visible[first..first + height]) {
                *slots = visible_in_page(visible, index);
            }
            if slots.iter().all(Range::is_empty) {
                continue;
            }
            let first = head * count + first;
            let q = &rows.q[first * geom.head_dim..][..height * geom.head_dim];
            let scores = &mut scores[..height * PAGE_TOKENS];
            let next = next.filter(|_| tile + 1 == tiles);
            let next_k = next.map_or(&[][..], |page| page.k);
            score_rows(l, height, q, k, scores, fixed, next_k);
            let mut scale = [1f32; TILE_ROWS];
            let scale = &mut scale[..height];
            l.call(SoftmaxTile {
                scores,
                slots,
                softcap: rows.softcap,
                max: &mut max[first..first + height],
                sum: &mut sum[first..first + height],
                scale,
            });
            let acc = &mut acc[first * stride..][..height * stride];
            let next = next.map_or(&[][..], |page| page.v);
            if let Some(groups) = v.groups() {
                l.call(FixWeights {
                    weights: scores,
                    slots,
                    groups,
                    fixed,
                });
                value_codes(geom, v, groups, height, fixed, acc, scale, next).run(l);
                continue;
            }
            if v.scales.is_empty() {
                add_values(l, slots, scores, 0, scale, v, acc, next);
                continue;
            }
            let next_scales = &next[geom.v_codes_bytes().min(next.len())..];
            let weights = scale_weights(l, scores, v.scales, next_scales, weights);
            add_values(l, slots, weights, scores.len(), scale, v, acc, next);
        }
    }
}

/// A page's keys or values as they lie in memory.
#[derive(Clone, Copy)]
struct Stored<'a> {
    kv_type: KvType,
    codes: &'a [u8],
    /// Empty where the form has none.
    scales: &'a [u8],
    /// As many as scales in kivi pages, else empty.
    middles: &'a [u8],
}

impl<'a> Stored<'a> {
    fn new(kv_type: KvType, bytes: &'a [u8], codes_bytes: usize) -> Stored<'a> {
        let (codes, scales) = bytes.split_at(codes_bytes);
        let (scales, middles) = match kv_type {
            KvType::Kivi(_) => scales.split_at(scales.len() / 2),
            _ => (scales, &[][..]),
        };
        Stored {
            kv_type,
            codes,
            scales,
            middles,
        }
    }

    /// The scales and middles of kivi pages.
    fn groups(&self) -> Option<Groups<'a>> {
        match self.kv_type {
            KvType::Kivi(kivi) => Some(Groups {
                kivi,
                scales: self.scales,
                middles: self.middles,
            }),
            _ => None,
        }
    }

    /// The `numbers` numbers of a sparse page as f32 in `scratch`, where `expand` puts them.
    #[inline(always)]
    fn expanded<'s>(
        self,
        numbers: usize,
        scratch: &'s mut Floats,
        expand: impl FnOnce(&[u8], &mut [f32]),
    ) -> Stored<'s>
    where
        'a: 's,
    {
        expand(self.codes, scratch.sized(numbers));
        self.as_floats(scratch)
    }

    /// The same with `floats` as its numbers or codes.
    #[inline(always)]
    fn as_floats<'s>(self, floats: &'s [f32]) -> Stored<'s>
    where
        'a: 's,
    {
        // SAFETY: floats are plain bytes; the slice covers the same memory.
        let codes =
            unsafe { std::slice::from_raw_parts(floats.as_ptr().cast(), size_of_val(floats)) };
        Stored {
            kv_type: KvType::F32,
            codes,
            ..self
        }
    }

    /// The same numbers or codes as f32, in rows of `width`: in `scratch`, unless they are f32
    /// already or are read as codes by any number of rows.
    #[inline(always)]
    fn converted<'s, L: Lanes>(self, l: L, width: usize, scratch: &'s mut Floats) -> Stored<'s>
    where
        'a: 's,
    {
        if matches!(self.kv_type, KvType::Kivi(_)) {
            return self;
        }
        let numbers = self.codes.len() / self.kv_type.row_bytes(width) * width;
        let to = scratch.sized(numbers);
        let from = self.codes;
        macro_rules! convert {
            ($element:expr) => {
                l.call(Convert {
                    element: $element,
                    width,
                    from,
                    to,
                })
            };
        }
        match self.kv_type {
            KvType::F32 => return self,
            KvType::F16 => convert!(Half),
            KvType::BF16 => convert!(Brain),
            KvType::Q8 => convert!(Byte),
            KvType::Q4 => convert!(Nibble),
            KvType::Kivi(_) => unreachable!("returned above"),
            KvType::Sparse(_) => unreachable!("sparse pages are expanded"),
        }
        self.as_floats(scratch)
    }
}

/// A page's keys, ready to be scored by many rows.
pub(super) struct Keys<'a> {
    stored: Stored<'a>,
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
        }
    }

    /// Scores of at most a tile of rows, `q [rows][head_dim]`, as `[rows][64]`.
    #[inline(always)]
    pub(super) fn score<L: Lanes>(&self, l: L, q: &[f32], scores: &mut [f32]) {
        let rows = scores.len() / PAGE_TOKENS;
        score_rows(l, rows, q, self.stored, scores, &mut Fixed::default(), &[]);
    }
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
fn score_rows<L: Lanes>(
    l: L,
    rows: usize,
    q: &[f32],
    k: Stored<'_>,
    scores: &mut [f32],
    fixed: &mut Fixed,
    next: &[u8],
) {
    if let Some(groups) = k.groups() {
        return score_codes(l, rows, q, k, groups, scores, fixed, next);
    }
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
        KvType::Kivi(_) => unreachable!("kivi keys are read as codes"),
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
    next: &[u8],
) {
    l.call(FixQueries {
        q,
        dim: q.len() / rows,
        groups,
        fixed,
    });
    key_codes(q.len() / rows, rows, k, groups, fixed, scores, next).run(l);
}

/// The products of queries that were made factors with the keys of a kivi page.
fn key_codes<'a>(
    dim: usize,
    rows: usize,
    k: Stored<'a>,
    groups: Groups<'a>,
    fixed: &'a Fixed,
    scores: &'a mut [f32],
    next: &'a [u8],
) -> DotCodes<'a> {
    DotCodes {
        kivi: groups.kivi,
        codes: k.codes,
        summed: dim,
        across: PAGE_TOKENS,
        rows,
        places: groups.kivi.group.tokens(),
        fixed,
        out: scores,
        into: Into::Over,
        next,
    }
}

/// The products of weights that were made factors with the values of a kivi page, onto `acc` times
/// `scale`.
#[expect(
    clippy::too_many_arguments,
    reason = "two matrices, their result and what scales them"
)]
fn value_codes<'a>(
    geom: &PageGeometry,
    v: Stored<'a>,
    groups: Groups<'a>,
    rows: usize,
    fixed: &'a Fixed,
    acc: &'a mut [f32],
    scale: &'a [f32],
    next: &'a [u8],
) -> DotCodes<'a> {
    DotCodes {
        kivi: groups.kivi,
        codes: v.codes,
        summed: PAGE_TOKENS,
        across: geom.v_dim,
        rows,
        places: VALUE_PLACES,
        fixed,
        out: acc,
        into: Into::Onto(scale),
        next,
    }
}

/// The weights `[rows][64]` times each set of scales, in `scratch`.
#[inline(always)]
fn scale_weights<'s, L: Lanes>(
    l: L,
    weights: &[f32],
    scales: &[u8],
    next_scales: &[u8],
    scratch: &'s mut Floats,
) -> &'s [f32] {
    let numbers = scales.len() / (2 * PAGE_TOKENS) * weights.len();
    let scaled = scratch.sized(numbers);
    l.call(ScaleWeights {
        weights,
        scales,
        scaled,
        next_scales,
    });
    scratch
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
    next: &[u8],
) {
    let rows = slots.len();
    let stride = acc.len() / rows;
    let mut add = |first: usize, rows: usize, slots: Range<usize>, scale: &[f32]| {
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
            KvType::Kivi(_) => unreachable!("kivi values are read as codes"),
            KvType::Sparse(_) => unreachable!("sparse pages are expanded"),
        }
    };
    static ONES: [f32; TILE_ROWS] = [1.0; TILE_ROWS];
    let start = slots.iter().map(|s| s.start).max().unwrap_or(0);
    let end = slots.iter().map(|s| s.end).min().unwrap_or(0);
    if start >= end {
        // No slot that all rows see.
        return alike(slots, Range::clone, |rows, seen| {
            add(rows.start, rows.len(), seen, &scale[rows]);
        });
    }
    // The slots that only some rows see are added for those alone, in each row's order.
    let mut scale = scale;
    if slots.iter().any(|slots| slots.start < start) {
        alike(
            slots,
            |slots| slots.start,
            |rows, first| {
                add(rows.start, rows.len(), first..start, &scale[rows]);
            },
        );
        scale = &ONES[..rows];
    }
    add(0, rows, start..end, scale);
    alike(
        slots,
        |slots| slots.end,
        |rows, last| {
            if last > end {
                add(rows.start, rows.len(), end..last, &ONES[..rows.len()]);
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
