//! Products of codes with whole numbers.

#![expect(
    clippy::needless_range_loop,
    reason = "iterators over the nested arrays leave sums in memory"
)]

use super::super::TILE_ROWS;
use super::super::fetch::{Fetch, Pace};
use super::{Fixed, Groups, SEGMENT, Sets, segments};
use crate::lanes::{Kernel, Lanes};
use crate::page::{CodeBits, PAGE_TOKENS, QUAD, QUANT_BLOCK, QueryBits, RUN_BYTES};

/// Sums of a vector's places that stay in registers: rows times bytes of a factor times vectors.
const MOST_SUMS: usize = 16;

/// Where the sums of [`DotCodes`] go.
pub(in super::super) enum Into<'a> {
    /// Over what was there.
    Over,
    /// To what was there, each row times its factor.
    Onto(&'a [f32]),
}

/// `out [rows][stride]` becomes or gains `base + step · Σ x · code` for every place of a page, while some of
/// the next page is being fetched.
pub(in super::super) struct DotCodes<'a> {
    pub groups: Groups<'a>,
    /// The codes of `summed` times at least `stride` numbers.
    pub codes: &'a [u8],
    pub summed: usize,
    pub across: usize,
    pub rows: usize,
    pub fixed: &'a Fixed,
    pub out: &'a mut [f32],
    pub into: Into<'a>,
    pub next: Fetch<'a>,
}

/// `scores [rows][64]` of the keys of a dotted page: a sum over blocks of channels, each times the scale
/// that a token has for it, while some of the next page is being fetched.
pub(in super::super) struct ScoreCodes<'a> {
    /// `[blocks][64]` scales.
    pub groups: Groups<'a>,
    /// The codes of `dim` times 64 numbers.
    pub codes: &'a [u8],
    pub dim: usize,
    pub rows: usize,
    pub fixed: &'a Fixed,
    /// Where the rows' factors are.
    pub region: usize,
    pub scores: &'a mut [f32],
    pub next: Fetch<'a>,
}

/// Calls `$work.$function::<_, bytes, rows>(l)` with both numbers as constants.
macro_rules! with_bytes_and_rows {
    ($work:expr, $queries:expr, $rows:expr, $function:ident, $l:expr) => {
        match ($queries, $rows) {
            (QueryBits::Sixteen, 1) => $work.$function::<_, 2, 1>($l),
            (QueryBits::Sixteen, 2) => $work.$function::<_, 2, 2>($l),
            (QueryBits::Sixteen, 3) => $work.$function::<_, 2, 3>($l),
            (QueryBits::Sixteen, 4) => $work.$function::<_, 2, 4>($l),
            (QueryBits::Sixteen, 5) => $work.$function::<_, 2, 5>($l),
            (QueryBits::Sixteen, _) => $work.$function::<_, 2, 6>($l),
            (QueryBits::Eight, 1) => $work.$function::<_, 1, 1>($l),
            (QueryBits::Eight, 2) => $work.$function::<_, 1, 2>($l),
            (QueryBits::Eight, 3) => $work.$function::<_, 1, 3>($l),
            (QueryBits::Eight, 4) => $work.$function::<_, 1, 4>($l),
            (QueryBits::Eight, 5) => $work.$function::<_, 1, 5>($l),
            (QueryBits::Eight, _) => $work.$function::<_, 1, 6>($l),
        }
    };
}

impl DotCodes<'_> {
    /// Runs the loop that is made for this many rows and bytes.
    #[inline(always)]
    pub(in super::super) fn run<L: Lanes>(self, l: L) {
        with_bytes_and_rows!(self, self.groups.queries, self.rows, call, l);
    }

    #[inline(always)]
    fn call<L: Lanes, const B: usize, const R: usize>(self, l: L) {
        l.call(DotTile::<B, R>(self));
    }
}

impl ScoreCodes<'_> {
    /// Runs the loop that is made for this many rows and bytes.
    #[inline(always)]
    pub(in super::super) fn run<L: Lanes>(self, l: L) {
        with_bytes_and_rows!(self, self.groups.queries, self.rows, call, l);
    }

    #[inline(always)]
    fn call<L: Lanes, const B: usize, const R: usize>(self, l: L) {
        l.call(DottedScores::<B, R>(self));
    }
}

/// Does `$body` for each `$i` below `$count`, which is six at most. Where factors have one byte all sums fit the
/// registers, and stay there if what is done with them is written out; with two bytes that is slower.
macro_rules! each {
    ($bytes:expr, $i:ident < $count:expr, $body:block) => {
        if $bytes == 1 {
            each!(@ $i, $count, $body, 0 1 2 3 4 5)
        } else {
            for $i in 0..$count $body
        }
    };
    (@ $i:ident, $count:expr, $body:block, $($at:literal)*) => {{
        $({
            let $i: usize = $at;
            if $i < $count $body
        })*
    }};
}

struct DotTile<'a, const B: usize, const R: usize>(DotCodes<'a>);

impl<const B: usize, const R: usize> Kernel for DotTile<'_, B, R> {
    type Output = ();

    fn scalar(self) {
        unreachable!("the definition of attention does not come in tiles")
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        match self.0.groups.codes {
            CodeBits::Eight => self.all::<L, 8>(l),
            CodeBits::Four => self.all::<L, 4>(l),
            CodeBits::Two => self.all::<L, 2>(l),
        }
    }
}

impl<const B: usize, const R: usize> DotTile<'_, B, R> {
    #[inline(always)]
    fn all<L: Lanes, const BITS: usize>(mut self, l: L) {
        let it = &self.0;
        let stride = it.out.len() / R;
        let sets = it.groups.sets(stride);
        assert!(it.rows == R && it.out.len() == R * stride && stride.is_multiple_of(16));
        assert!(stride <= it.across.next_multiple_of(16));
        assert!(it.codes.len() >= it.groups.codes.codes_bytes(it.summed, it.across));
        assert!(it.fixed.quads.len() >= sets * segments(it.summed) * R * B * SEGMENT * QUAD);
        assert!(it.fixed.step.len() >= sets * R && it.fixed.base.len() >= sets * R);
        assert!(
            matches!(it.into, Into::Over)
                || matches!(it.into, Into::Onto(scale) if scale.len() >= R)
        );
        // Four vectors share a load of factors, of one set or of two, as long as their sums fit the
        // registers; one of eight leaves room in 16 registers.
        let many = R * B * 4 <= MOST_SUMS;
        let one_set = it.groups.places >= 64;
        let mut first = 0;
        while first < stride {
            first += match (L::WIDTH, stride - first) {
                (16, 64..) if many && one_set => self.places::<L, BITS, 4, 1>(l, stride, first),
                (16, 64..) if many => self.places::<L, BITS, 4, 2>(l, stride, first),
                (16, 32..) => self.places::<L, BITS, 2, 1>(l, stride, first),
                _ => self.places::<L, BITS, 1, 1>(l, stride, first),
            };
        }
    }

    /// The `C` vectors of places from `first` on, with factors of `S` sets. Returns how many places that
    /// are.
    #[inline(always)]
    fn places<L: Lanes, const BITS: usize, const C: usize, const S: usize>(
        &mut self,
        l: L,
        stride: usize,
        first: usize,
    ) -> usize {
        let it = &mut self.0;
        let set = it.groups.set_of(first);
        let sets = it.fixed.sets(0, set, it.summed, R, B);
        let mut codes = Codes::<BITS, C>::new::<L>(it.codes, it.across, first);
        let share = share(it.next, first, first + C * L::WIDTH, stride);
        let mut next = share.pace(it.summed.div_ceil(QUAD) * Codes::<BITS, C>::LINES);
        // SAFETY: the page holds `summed` times `across` codes, and `fixed` so many factors of `S` sets,
        // checked by the caller.
        let sums =
            unsafe { products::<L, BITS, C, S, B, R>(l, &mut codes, &sets, it.summed, &mut next) };
        // What is the same for all of a row is read once, before anything is written.
        // SAFETY: there is a step and a base for each row of the sets, and `C` vectors of every row from `first` on,
        // checked by the caller.
        unsafe {
            let out = it.out.as_mut_ptr().add(first);
            match it.into {
                Into::Over => each!(B, r < R, {
                    let (steps, bases) = of_row::<L, S, R>(l, &sets, r);
                    each!(B, c < C, {
                        let set = c / (C / S);
                        let out = out.add(r * stride + c * L::WIDTH);
                        let sum = joined(l, &sums[r], c);
                        l.store_ptr(out, l.fma(sum, steps[set], bases[set]));
                    });
                }),
                Into::Onto(scale) => each!(B, r < R, {
                    let (steps, bases) = of_row::<L, S, R>(l, &sets, r);
                    let scale = l.splat(*scale.get_unchecked(r));
                    each!(B, c < C, {
                        let set = c / (C / S);
                        let out = out.add(r * stride + c * L::WIDTH);
                        let begin = l.fma(l.load_ptr(out), scale, bases[set]);
                        let sum = joined(l, &sums[r], c);
                        l.store_ptr(out, l.fma(sum, steps[set], begin));
                    });
                }),
            }
        }
        C * L::WIDTH
    }
}

/// The part of `next` from `from` to `to`, counted in `whole` parts: most often all, which needs no division. In
/// [`Fetch::part`] itself that makes the loops over floats longer, and them no faster.
#[inline(always)]
fn share(next: Fetch<'_>, from: usize, to: usize, whole: usize) -> Fetch<'_> {
    match to - from == whole {
        true => next,
        false => next.part(from, to, whole),
    }
}

/// The steps and the bases of row `r` of `R` in the first `S` of `sets`.
///
/// # Safety
/// There are so many.
#[inline(always)]
unsafe fn of_row<L: Lanes, const S: usize, const R: usize>(
    l: L,
    sets: &Sets<'_>,
    r: usize,
) -> ([L::V; S], [L::V; S]) {
    let (mut steps, mut bases) = ([l.splat(0.0); S], [l.splat(0.0); S]);
    for set in 0..S {
        // SAFETY: the caller vouches for them.
        unsafe {
            steps[set] = l.splat(*sets.step.get_unchecked(set * R + r));
            bases[set] = l.splat(*sets.base.get_unchecked(set * R + r));
        }
    }
    (steps, bases)
}

struct DottedScores<'a, const B: usize, const R: usize>(ScoreCodes<'a>);

impl<const B: usize, const R: usize> Kernel for DottedScores<'_, B, R> {
    type Output = ();

    fn scalar(self) {
        unreachable!("the definition of attention does not come in tiles")
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        match self.0.groups.codes {
            CodeBits::Eight => self.all::<L, 8>(l),
            CodeBits::Four => self.all::<L, 4>(l),
            CodeBits::Two => unreachable!("no dotted form has codes of two bits"),
        }
    }
}

impl<const B: usize, const R: usize> DottedScores<'_, B, R> {
    #[inline(always)]
    fn all<L: Lanes, const BITS: usize>(mut self, l: L) {
        let it = &self.0;
        let sets = it.region * TILE_ROWS + it.dim.div_ceil(QUANT_BLOCK) * R;
        assert!(it.rows == R && it.scores.len() == R * PAGE_TOKENS);
        assert!(it.codes.len() >= it.groups.codes.codes_bytes(it.dim, PAGE_TOKENS));
        assert!(it.groups.scales.len() >= it.dim.div_ceil(QUANT_BLOCK) * PAGE_TOKENS * 2);
        assert!(it.fixed.quads.len() >= sets * B * SEGMENT * QUAD);
        assert!(it.fixed.step.len() >= sets && it.fixed.base.len() >= sets);
        let many = R * B * 4 <= MOST_SUMS;
        for first in (0..PAGE_TOKENS).step_by(if many { 64 } else { 32 }) {
            match L::WIDTH {
                16 if many => self.tokens::<L, BITS, 4>(l, first),
                16 => self.tokens::<L, BITS, 2>(l, first),
                _ => {
                    let end = first + if many { 64 } else { 32 };
                    for first in (first..end).step_by(L::WIDTH) {
                        self.tokens::<L, BITS, 1>(l, first);
                    }
                }
            }
        }
    }

    /// The `C` vectors of tokens from `first` on.
    #[inline(always)]
    fn tokens<L: Lanes, const BITS: usize, const C: usize>(&mut self, l: L, first: usize) {
        let it = &mut self.0;
        let mut codes = Codes::<BITS, C>::new::<L>(it.codes, PAGE_TOKENS, first);
        let share = share(it.next, first, first + C * L::WIDTH, PAGE_TOKENS);
        let mut next = share.pace(it.dim.div_ceil(QUAD) * Codes::<BITS, C>::LINES);
        for (block, from) in (0..it.dim).step_by(QUANT_BLOCK).enumerate() {
            let sets = it.fixed.sets(it.region, block, QUANT_BLOCK, R, B);
            let summed = (it.dim - from).min(QUANT_BLOCK);
            // SAFETY: the page holds so many channels of 64 codes, and `fixed` a set of factors for each
            // block, checked by the caller.
            let sums =
                unsafe { products::<L, BITS, C, 1, B, R>(l, &mut codes, &sets, summed, &mut next) };
            // SAFETY: there are 64 scales and a step and a base for each row of every block, and 64 scores of every
            // row, checked by the caller.
            unsafe {
                let scores = it.scores.as_mut_ptr().add(first);
                let scales = it.groups.scales.as_ptr();
                let mut of_tokens = [l.splat(0.0); C];
                for c in 0..C {
                    let at = (block * PAGE_TOKENS + first + c * L::WIDTH) * 2;
                    of_tokens[c] = l.load_f16_ptr(scales.add(at));
                }
                each!(B, r < R, {
                    let ([step], [base]) = of_row::<L, 1, R>(l, &sets, r);
                    each!(B, c < C, {
                        let out = scores.add(r * PAGE_TOKENS + c * L::WIDTH);
                        let whole = l.add(joined(l, &sums[r], c), base);
                        let scale = l.mul(of_tokens[c], step);
                        let score = match block {
                            0 => l.mul(whole, scale),
                            _ => l.fma(whole, scale, l.load_ptr(out)),
                        };
                        l.store_ptr(out, score);
                    });
                });
            }
        }
    }
}

/// Where the codes of `C` vectors of places are read: of several only where vectors are as wide as runs, and
/// from the beginning of a line on.
struct Codes<const BITS: usize, const C: usize> {
    from: *const u8,
    /// Of the first vector, where their number does not say it.
    shift: u32,
    quad_bytes: usize,
}

impl<const BITS: usize, const C: usize> Codes<BITS, C> {
    /// Runs of codes that share their bytes.
    const RUNS: usize = 8 / BITS;

    /// Vectors that share a load.
    const SHARING: usize = if C < Self::RUNS { C } else { Self::RUNS };

    /// Lines that are fetched while a quad is read: as many as it lies in.
    const LINES: usize = C / Self::SHARING;

    fn new<L: Lanes>(codes: &[u8], across: usize, first: usize) -> Codes<BITS, C> {
        let (block, within) = (first / (16 * Self::RUNS), first % (16 * Self::RUNS));
        Codes {
            from: codes
                .as_ptr()
                .wrapping_add(block * RUN_BYTES + within % 16 * QUAD),
            shift: (within / 16 * BITS) as u32,
            quad_bytes: across.div_ceil(16 * Self::RUNS) * RUN_BYTES,
        }
    }

    /// The codes of the next quad.
    ///
    /// # Safety
    /// The page has one more.
    #[inline(always)]
    unsafe fn next<L: Lanes>(&mut self, l: L) -> [L::I; C] {
        let mut codes = [l.splat_whole(0); C];
        for c in (0..C).step_by(Self::SHARING) {
            // SAFETY: the caller vouches for the quad.
            let raw = unsafe { l.load_whole(self.from.add(c / Self::SHARING * RUN_BYTES)) };
            for i in 0..Self::SHARING {
                let shift = match C % Self::RUNS {
                    0 => (i * BITS) as u32,
                    _ => self.shift + (i * BITS) as u32,
                };
                codes[c + i] = match BITS {
                    8 => raw,
                    _ => l.codes(raw, shift, u8::MAX >> (8 - BITS)),
                };
            }
        }
        self.from = self.from.wrapping_add(self.quad_bytes);
        codes
    }
}

/// The sums of the next `summed` codes of each place times the factors of `S` sets, each for as many of the
/// `C` vectors: for every row and byte of a factor.
///
/// # Safety
/// There are so many codes, and sets for `R` rows.
#[inline(always)]
unsafe fn products<
    L: Lanes,
    const BITS: usize,
    const C: usize,
    const S: usize,
    const B: usize,
    const R: usize,
>(
    l: L,
    codes: &mut Codes<BITS, C>,
    sets: &Sets<'_>,
    summed: usize,
    next: &mut Pace,
) -> [[[L::I; C]; B]; R] {
    let segments = segments(summed);
    let from_set_to_set = segments * R * B * SEGMENT;
    let mut factors = sets.quads.as_ptr().cast::<i32>();
    let mut sums = [[[l.splat_whole(0); C]; B]; R];
    let mut quads = summed.div_ceil(QUAD);
    for _ in 0..segments {
        for quad in 0..quads.min(SEGMENT) {
            // SAFETY: the caller vouches for the codes.
            let codes = unsafe { codes.next(l) };
            for _ in 0..Codes::<BITS, C>::LINES {
                next.next(l);
            }
            for set in 0..S {
                let of_set = factors.wrapping_add(set * from_set_to_set + quad);
                for r in 0..R {
                    for b in 0..B {
                        // SAFETY: a set has a segment for each row and byte.
                        let x = l.splat_whole(unsafe { *of_set.add((r * B + b) * SEGMENT) });
                        for c in set * (C / S)..(set + 1) * (C / S) {
                            sums[r][b][c] = match BITS {
                                8 => l.dot4_bytes(sums[r][b][c], codes[c], x),
                                _ => l.dot4(sums[r][b][c], codes[c], x),
                            };
                        }
                    }
                }
            }
        }
        quads = quads.saturating_sub(SEGMENT);
        factors = factors.wrapping_add(R * B * SEGMENT);
    }
    sums
}

/// The sums of a row in vector `c`, whose factors have `B` bytes, the higher one first.
#[inline(always)]
fn joined<L: Lanes, const B: usize, const C: usize>(l: L, sums: &[[L::I; C]; B], c: usize) -> L::V {
    l.to_floats(match B {
        2 => l.join_bytes(sums[0][c], sums[B - 1][c]),
        _ => sums[0][c],
    })
}
