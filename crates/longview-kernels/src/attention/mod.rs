//! Exact attention of several query rows over one span of KV pages.
//!
//! Keys are read in spans of [`SPAN_TOKENS`] that start at multiples of it from position 0; each
//! span gives [`Partials`], which the caller merges from left to right. Inside a span the softmax
//! runs page by page. So the order of every sum follows from a key's position alone, and a row's
//! result has the same bits alone or among hundreds of rows, and whatever the slots hold that it
//! may not see.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
mod bounds;
mod coded;
mod columns;
mod element;
mod expand;
mod fetch;
mod fixed;
mod floats;
mod keys;
mod log_sums;
mod partials;
mod scalar;
mod scores;
mod softmax;
mod stored;
mod tiles;
mod values;

use std::ops::Range;

pub use bounds::{BoundsGeometry, enclose_bounds, score_bounds, set_bounds};
pub use columns::{add_weighted_columns, column_squares};
pub use floats::{exp_below, key_floats, raise, score_page, softmax, value_floats, value_stride};
pub use log_sums::LogSums;
pub use partials::Partials;

use crate::lanes::{self, Kernel, Lanes};
use crate::page::{KvType, PAGE_TOKENS, PageGeometry, QUANT_BLOCK, VALUE_PADDING};
use crate::{Floats, Isa};
use fixed::Fixed;

/// Rows of a register tile at most: 6 rows by 64 tokens are 24 of AVX-512's 32 registers, 6 rows
/// by 16 tokens 12 of AVX2's 16.
const TILE_ROWS: usize = 6;

/// Tokens in a span: the unit of work that attention is split into.
pub const SPAN_TOKENS: usize = 1024;

/// The keys and values of one page, of the lengths that [`PageGeometry`] gives.
#[derive(Clone, Copy, Debug)]
pub struct PageRef<'a> {
    /// `[head_dim][64]`, in the geometry's key type, then the scales.
    pub k: &'a [u8],
    /// `[64][v_dim padded]`, in the geometry's value type, then the scales.
    pub v: &'a [u8],
    /// `[64]`: what is added to the score of every slot after the soft cap, such as ln *n* where a pair
    /// stands for *n* tokens; empty where nothing is.
    pub log_weights: &'a [f32],
}

impl<'a> PageRef<'a> {
    /// A page of which every pair stands for one token.
    pub fn new(k: &'a [u8], v: &'a [u8]) -> PageRef<'a> {
        PageRef {
            k,
            v,
            log_weights: &[],
        }
    }
}

/// The queries that attend to one span of one or more KV heads.
#[derive(Clone, Copy, Debug)]
pub struct QueryRows<'a> {
    /// KV heads, each with as many rows.
    pub heads: usize,
    /// `[heads][rows][head_dim]`, the softmax scale already multiplied in.
    pub q: &'a [f32],
    /// For every row of a head the key slots it may see, counted from the start of the span; may be
    /// empty.
    pub visible: &'a [Range<u32>],
    /// Scores become `softcap * tanh(score / softcap)`; 0 leaves them alone.
    pub softcap: f32,
}

/// Buffers that attention works in, kept between calls: one for each thread.
#[derive(Default)]
pub struct AttentionScratch {
    k: Floats,
    v: Floats,
    scores: Floats,
    weights: Floats,
    /// A page's queries and weights as whole numbers.
    fixed: Fixed,
    /// Queries as whole numbers, for any page.
    queries: Fixed,
    /// What tiles read.
    #[cfg(target_arch = "x86_64")]
    amx: amx::Room,
}

impl AttentionScratch {
    /// Empty buffers; they grow with the first calls.
    pub fn new() -> AttentionScratch {
        AttentionScratch::default()
    }

    /// Makes room for calls with up to `rows` rows of each of `heads` heads, so that they need not.
    pub fn reserve(&mut self, geom: &PageGeometry, heads: usize, rows: usize) {
        self.scores.at_least(TILE_ROWS * PAGE_TOKENS);
        let sets = geom.v_type.scales(geom.v_dim);
        self.weights.at_least(sets * TILE_ROWS * PAGE_TOKENS);
        match geom.k_type {
            KvType::Kivi(kivi) => {
                let groups = PAGE_TOKENS / kivi.group.tokens();
                self.fixed.reserve(groups, geom.head_dim);
            }
            KvType::Dotted(_) => {
                let tiles = heads * rows.div_ceil(TILE_ROWS);
                let blocks = geom.head_dim.div_ceil(QUANT_BLOCK);
                self.queries.reserve(tiles * blocks, QUANT_BLOCK);
            }
            _ => {}
        }
        if matches!(geom.v_type, KvType::Kivi(_) | KvType::Dotted(_)) {
            self.fixed.reserve(sets, PAGE_TOKENS);
        }
        #[cfg(target_arch = "x86_64")]
        self.amx.reserve(geom, heads, rows);
        if rows.div_ceil(TILE_ROWS) >= tiles::TILES_WORTH_CONVERTING || geom.is_whole() {
            self.k.at_least(geom.head_dim * PAGE_TOKENS);
            let stride = geom.v_dim.next_multiple_of(VALUE_PADDING);
            self.v.at_least(stride * PAGE_TOKENS);
        }
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        let floats = [&self.k, &self.v, &self.scores, &self.weights].map(|b| b.capacity());
        let floats = 4 * floats.iter().sum::<usize>();
        #[cfg(target_arch = "x86_64")]
        let floats = floats + self.amx.bytes();
        floats + self.fixed.bytes() + self.queries.bytes()
    }
}

/// Computes the attention of `rows` over one span into `out`, `[heads · rows]` rows whose earlier
/// content is lost. Otherwise as [`attend_further`].
///
/// # Panics
/// As [`attend_further`].
pub fn attend_span(
    isa: Isa,
    geom: &PageGeometry,
    pages: &[PageRef<'_>],
    rows: &QueryRows<'_>,
    scratch: &mut AttentionScratch,
    out: &mut Partials,
) {
    let count = rows.heads * rows.visible.len();
    assert_eq!(
        (out.rows(), out.v_dim()),
        (count, geom.v_dim),
        "partials of the rows' shape"
    );
    out.reset(count, geom.v_dim);
    attend_further(isa, geom, pages, rows, scratch, out);
}

/// Goes on with the attention of `rows` over pages of a span that follow those which `out`, of
/// `[heads · rows]` rows, has seen: where a span is cut changes no bit. `pages` are the consecutive
/// pages, the first of which holds slot 0, those of all heads before the next 64 slots,
/// `[pages][heads]`: they are read in this order, so that pages which lie one after another in
/// memory stream. Slots that a row may not see contribute nothing, whatever bits they hold.
///
/// # Panics
/// When a length does not follow from the geometry, `out` has another shape, there are more pages
/// than a span has, or a row sees slots beyond the pages.
pub fn attend_further(
    isa: Isa,
    geom: &PageGeometry,
    pages: &[PageRef<'_>],
    rows: &QueryRows<'_>,
    scratch: &mut AttentionScratch,
    out: &mut Partials,
) {
    let count = rows.heads * rows.visible.len();
    assert_eq!(
        (out.rows(), out.v_dim()),
        (count, geom.v_dim),
        "partials of the rows' shape"
    );
    assert_eq!(
        rows.q.len(),
        count * geom.head_dim,
        "queries of [heads][rows][head_dim]"
    );
    assert!(
        rows.heads > 0 && pages.len().is_multiple_of(rows.heads),
        "as many pages of every head"
    );
    let deep = pages.len() / rows.heads;
    assert!(deep * PAGE_TOKENS <= SPAN_TOKENS, "pages of one span");
    let bytes = (geom.k_bytes(), geom.v_bytes());
    for page in pages {
        assert_eq!((page.k.len(), page.v.len()), bytes, "page lengths");
        assert!(
            matches!(page.log_weights.len(), 0 | PAGE_TOKENS),
            "a weight for every slot, or none"
        );
    }
    let slots = (deep * PAGE_TOKENS) as u32;
    assert!(
        rows.visible.iter().all(|r| r.is_empty() || r.end <= slots),
        "rows see only slots inside the pages"
    );
    let attend = Attend {
        geom,
        pages,
        rows,
        scratch,
        out,
    };
    #[cfg(target_arch = "x86_64")]
    if amx::reads(isa, geom) {
        return amx::attend(attend);
    }
    lanes::run(isa, attend);
}

/// The slots of page `page` that a row with `visible` sees, counted from the page's start; an empty
/// range is always `0..0`.
fn visible_in_page(visible: &Range<u32>, page: usize) -> Range<usize> {
    let start = page * PAGE_TOKENS;
    let lo = (visible.start as usize).clamp(start, start + PAGE_TOKENS) - start;
    let hi = (visible.end as usize).clamp(start, start + PAGE_TOKENS) - start;
    if lo < hi { lo..hi } else { 0..0 }
}

struct Attend<'a> {
    geom: &'a PageGeometry,
    pages: &'a [PageRef<'a>],
    rows: &'a QueryRows<'a>,
    scratch: &'a mut AttentionScratch,
    out: &'a mut Partials,
}

impl Kernel for Attend<'_> {
    type Output = ();

    fn scalar(self) {
        scalar::attend(self.geom, self.pages, self.rows, self.out);
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        tiles::attend(l, self.geom, self.pages, self.rows, self.scratch, self.out);
    }
}
