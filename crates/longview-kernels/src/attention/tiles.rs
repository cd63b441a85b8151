//! Attention over a span in register tiles, for every instruction set with vectors.
//!
//! Up to [`TILE_ROWS`] rows share each load of a key or value. With few rows (decode: the query
//! heads of a group) pages are read once, in their stored form, straight into registers, while the
//! next page is being fetched. With many rows (prefill) a page is first turned into f32 in scratch
//! memory that stays in the nearest caches. Either way a row goes through the same operations in
//! the same order:
//! - a score is one chain of fused multiply-adds over `head_dim`, one lane a token;
//! - maximum and sum of a page's 64 scores are reduced in a fixed pattern in which slots that the
//!   row does not see are exact neutral elements;
//! - an output channel is one chain over the visible tokens in order, and over no others.

use std::ops::Range;

use super::microkernels::{Convert, Half, ScoreTile, Single, SoftmaxTile, TILE_ROWS, ValueTile};
use super::partials::AlignedFloats;
use super::{AttentionScratch, PageRef, Partials, QueryRows, visible_in_page};
use crate::lanes::Lanes;
use crate::page::{KvType, PAGE_TOKENS, PageGeometry};

/// From this many tiles on, converting a page once costs less than converting it in each tile.
const TILES_WORTH_CONVERTING: usize = 3;

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
    } = scratch;
    scores.reserve(TILE_ROWS * PAGE_TOKENS);
    let scores = &mut scores.floats_mut()[..TILE_ROWS * PAGE_TOKENS];
    let (acc, max, sum) = out.parts_mut();

    for (index, page) in pages.iter().enumerate() {
        if rows
            .visible
            .iter()
            .all(|visible| visible_in_page(visible, index).is_empty())
        {
            continue;
        }
        let mut k = Stored {
            bytes: page.k,
            kv_type: geom.k_type,
        };
        let mut v = Stored {
            bytes: page.v,
            kv_type: geom.v_type,
        };
        let mut next = pages.get(index + 1);
        if tiles >= TILES_WORTH_CONVERTING {
            k = k.converted(l, k_scratch);
            v = v.converted(l, v_scratch);
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
            let q = &rows.q[first * geom.head_dim..][..height * geom.head_dim];
            let scores = &mut scores[..height * PAGE_TOKENS];
            let next = next.filter(|_| tile + 1 == tiles);
            score_rows(l, height, q, k, scores, next.map(|page| page.k));
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
            add_values(l, slots, scores, scale, v, acc, next.map(|page| page.v));
        }
    }
}

/// A page's keys or values as they lie in memory.
#[derive(Clone, Copy)]
struct Stored<'a> {
    bytes: &'a [u8],
    kv_type: KvType,
}

impl<'a> Stored<'a> {
    /// The same numbers as f32: in `scratch`, unless they are f32 already.
    #[inline(always)]
    fn converted<'s, L: Lanes>(self, l: L, scratch: &'s mut AlignedFloats) -> Stored<'s>
    where
        'a: 's,
    {
        match self.kv_type {
            KvType::F32 => self,
            KvType::F16 => {
                let numbers = self.bytes.len() / 2;
                scratch.reserve(numbers);
                let scratch = &mut scratch.floats_mut()[..numbers];
                l.call(Convert {
                    from: self.bytes,
                    to: scratch,
                });
                // SAFETY: floats are plain bytes; the slice covers the same memory.
                let bytes = unsafe {
                    std::slice::from_raw_parts(scratch.as_ptr().cast(), size_of_val(scratch))
                };
                Stored {
                    bytes,
                    kv_type: KvType::F32,
                }
            }
        }
    }
}

/// Calls `$tile!(element, rows)` with the element and the number of rows as constants.
macro_rules! with_constants {
    ($kv_type:expr, $rows:expr, $tile:ident) => {
        match ($kv_type, $rows) {
            (KvType::F32, 1) => $tile!(Single, 1),
            (KvType::F32, 2) => $tile!(Single, 2),
            (KvType::F32, 3) => $tile!(Single, 3),
            (KvType::F32, 4) => $tile!(Single, 4),
            (KvType::F32, 5) => $tile!(Single, 5),
            (KvType::F32, _) => $tile!(Single, 6),
            (KvType::F16, 1) => $tile!(Half, 1),
            (KvType::F16, 2) => $tile!(Half, 2),
            (KvType::F16, 3) => $tile!(Half, 3),
            (KvType::F16, 4) => $tile!(Half, 4),
            (KvType::F16, 5) => $tile!(Half, 5),
            (KvType::F16, _) => $tile!(Half, 6),
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
    next: Option<&[u8]>,
) {
    macro_rules! tile {
        ($element:expr, $rows:literal) => {
            l.call(ScoreTile::<_, $rows> {
                element: $element,
                q,
                k: k.bytes,
                scores,
                next,
            })
        };
    }
    with_constants!(k.kv_type, rows, tile)
}

/// Rescales `acc [rows][stride]` and adds each row's visible values, weighted.
#[inline(always)]
fn add_values<L: Lanes>(
    l: L,
    slots: &[Range<usize>],
    weights: &[f32],
    scale: &[f32],
    v: Stored<'_>,
    acc: &mut [f32],
    next: Option<&[u8]>,
) {
    let rows = slots.len();
    let stride = acc.len() / rows;
    let mut add = |first: usize, rows: usize, slots: Range<usize>, scale: &[f32]| {
        let acc = &mut acc[first * stride..][..rows * stride];
        let weights = &weights[first * PAGE_TOKENS..][..rows * PAGE_TOKENS];
        let v_bytes = v.bytes;
        macro_rules! tile {
            ($element:expr, $rows:literal) => {
                l.call(ValueTile::<_, $rows> {
                    element: $element,
                    slots,
                    weights,
                    scale,
                    v: v_bytes,
                    acc,
                    next,
                })
            };
        }
        with_constants!(v.kv_type, rows, tile)
    };
    let start = slots.iter().map(|s| s.start).max().unwrap_or(0);
    let end = slots.iter().map(|s| s.end).min().unwrap_or(0);
    if slots.iter().all(|s| *s == (start..end)) {
        return add(0, rows, start..end, scale);
    }
    if start >= end {
        // No slot that all rows see.
        for (row, slots) in slots.iter().enumerate() {
            add(row, 1, slots.clone(), &scale[row..row + 1]);
        }
        return;
    }
    // The slots that only some rows see are added row by row, in each row's order.
    for (row, slots) in slots.iter().enumerate() {
        add(row, 1, slots.start..start, &scale[row..row + 1]);
    }
    add(0, rows, start..end, &[1.0; TILE_ROWS][..rows]);
    for (row, slots) in slots
        .iter()
        .enumerate()
        .filter(|(_, slots)| slots.end > end)
    {
        add(row, 1, end..slots.end, &[1.0]);
    }
}
