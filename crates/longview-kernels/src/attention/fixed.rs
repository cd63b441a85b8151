//! Kivi pages, read in whole numbers.
//!
//! A number of a page is `middle + scale · (code - c)` with the codes' own middle `c`. A score is a
//! sum over channels of such keys times a query, and every channel of a group of tokens has one scale:
//! so the query is multiplied with the scales first, `u = q · scale`, and the score is
//! `Σ q · middle + Σ u · (code - c)`. An output is a sum over tokens of values times weights, and every
//! token has one scale for a block of channels: there `u = weight · scale`.
//!
//! In both the factors `u` are rounded to whole numbers `x = round(u / step)` of 16 bits, or of 8 for
//! int8 queries, where `step` is chosen anew for each row and group such that the largest just fits.
//! So products of bytes do the work, four to a place of a vector, and their sums are exact; a factor of
//! 16 bits is two bytes. What that adds to a score is at most `step / 2 · Σ |code - c|`. Rows and pages
//! are rounded apart from one another, therefore no bit depends on what else is computed.

use std::ops::Range;

use super::TILE_ROWS;
use crate::lanes::{Kernel, Lanes};
use crate::page::{Kivi, KiviBits, KiviQueries, PAGE_TOKENS, QUANT_BLOCK, RUN_BYTES, half_at};

/// Channels or tokens side by side that share their factors at least.
const SHARED: usize = 32;

/// Fours of bytes that lie together: the factors of so many numbers of a row and one of its bytes.
const SEGMENT: usize = 32;

/// Factors are padded with zeros to a multiple of this: four vectors.
const PADDING: usize = 64;

/// Factors below this count as 0: what they belong to cannot be seen beside any other.
const LEAST: f32 = 1e-30;

/// Calls `$work.$function::<_, bytes, rows>(l)` with both numbers as constants.
macro_rules! with_bytes_and_rows {
    ($work:expr, $kivi:expr, $rows:expr, $function:ident, $l:expr) => {
        match ($kivi.queries, $rows) {
            (KiviQueries::Float, 1) => $work.$function::<_, 2, 1>($l),
            (KiviQueries::Float, 2) => $work.$function::<_, 2, 2>($l),
            (KiviQueries::Float, 3) => $work.$function::<_, 2, 3>($l),
            (KiviQueries::Float, 4) => $work.$function::<_, 2, 4>($l),
            (KiviQueries::Float, 5) => $work.$function::<_, 2, 5>($l),
            (KiviQueries::Float, _) => $work.$function::<_, 2, 6>($l),
            (KiviQueries::Int8, 1) => $work.$function::<_, 1, 1>($l),
            (KiviQueries::Int8, 2) => $work.$function::<_, 1, 2>($l),
            (KiviQueries::Int8, 3) => $work.$function::<_, 1, 3>($l),
            (KiviQueries::Int8, 4) => $work.$function::<_, 1, 4>($l),
            (KiviQueries::Int8, 5) => $work.$function::<_, 1, 5>($l),
            (KiviQueries::Int8, _) => $work.$function::<_, 1, 6>($l),
        }
    };
}

/// Factors as whole numbers, for the rows of a tile and the sets of places that have their own.
#[derive(Default)]
pub(super) struct Fixed {
    /// `[sets][segments][rows][bytes][SEGMENT]`, each four bytes side by side.
    quads: Vec<i32>,
    /// `[sets][rows]`: what a whole number stands for.
    step: Vec<f32>,
    /// `[sets][rows]`: what every place of a row begins with.
    base: Vec<f32>,
    /// `[rows][summed padded]`: factors before they are rounded.
    numbers: Vec<f32>,
}

impl Fixed {
    /// Makes room for `sets` sets of factors of `summed` numbers.
    pub(super) fn reserve(&mut self, sets: usize, summed: usize) {
        let grow = |room: &mut Vec<f32>, len: usize| {
            if room.len() < len {
                room.resize(len, 0.0);
            }
        };
        let quads = sets * segments(summed) * TILE_ROWS * 2 * SEGMENT;
        if self.quads.len() < quads {
            self.quads.resize(quads, 0);
        }
        grow(&mut self.step, sets * TILE_ROWS);
        grow(&mut self.base, sets * TILE_ROWS);
        grow(
            &mut self.numbers,
            TILE_ROWS * summed.next_multiple_of(PADDING),
        );
    }

    /// Bytes of memory held.
    pub(super) fn bytes(&self) -> usize {
        4 * (self.quads.len() + self.step.len() + self.base.len() + self.numbers.len())
    }
}

/// Segments of `summed` numbers.
fn segments(summed: usize) -> usize {
    summed.div_ceil(Kivi::QUAD * SEGMENT)
}

impl KiviQueries {
    /// The largest whole number.
    fn limit(self) -> f32 {
        match self {
            // Both bytes are signed: 127 · 256 + 127.
            KiviQueries::Float => 32_639.0,
            KiviQueries::Int8 => 127.0,
        }
    }
}

/// `u / step` as whole numbers, and the step: the definition.
pub(super) fn whole(u: &[f32], largest: f32, queries: KiviQueries) -> (Vec<i32>, f32) {
    let limit = queries.limit();
    let inverse = if largest < LEAST {
        0.0
    } else {
        limit / largest
    };
    let x = u.iter().map(|u| (u * inverse).round_ties_even() as i32);
    (x.collect(), largest / limit)
}

/// The scales and middles of a page's keys or values.
#[derive(Clone, Copy)]
pub(super) struct Groups<'a> {
    pub kivi: Kivi,
    /// In half precision.
    pub scales: &'a [u8],
    /// In half precision.
    pub middles: &'a [u8],
}

/// Makes factors of the queries `q [rows][dim]` for the keys of a page: a set for each group of tokens.
pub(super) struct FixQueries<'a> {
    pub q: &'a [f32],
    pub dim: usize,
    /// `[groups][dim]` of both.
    pub groups: Groups<'a>,
    pub fixed: &'a mut Fixed,
}

impl Kernel for FixQueries<'_> {
    type Output = ();

    fn scalar(self) {
        unreachable!("the definition of attention does not come in tiles")
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        with_bytes_and_rows!(self, self.groups.kivi, self.q.len() / self.dim, fix, l)
    }
}

impl FixQueries<'_> {
    /// With factors of `B` bytes, for `R` rows.
    #[inline(always)]
    fn fix<L: Lanes, const B: usize, const R: usize>(self, l: L) {
        let FixQueries {
            q,
            dim,
            groups:
                Groups {
                    kivi,
                    scales,
                    middles,
                },
            fixed,
        } = self;
        let sets = PAGE_TOKENS / kivi.group.tokens();
        assert!(q.len() == R * dim);
        assert!(scales.len() == sets * dim * 2 && middles.len() == sets * dim * 2);
        fixed.reserve(sets, dim);
        let limit = kivi.queries.limit();
        let whole = dim - dim % L::WIDTH;
        let padded = dim.next_multiple_of(PADDING);
        for set in 0..sets {
            let first = set * dim;
            let numbers = &mut fixed.numbers[..R * padded];
            let (mut sum, mut largest) = ([l.splat(0.0); R], [l.splat(0.0); R]);
            for d in (0..whole).step_by(L::WIDTH) {
                // SAFETY: there are `dim` halves of each for every group, a row has `dim` numbers, and
                // `numbers` has room for each; `d` is one of them with the whole vector after it.
                unsafe {
                    let scale = l.load_f16_ptr(scales.as_ptr().add((first + d) * 2));
                    let middle = l.load_f16_ptr(middles.as_ptr().add((first + d) * 2));
                    for r in 0..R {
                        let x = l.load_ptr(q.as_ptr().add(r * dim + d));
                        let u = l.mul(x, scale);
                        largest[r] = l.max(l.abs(u), largest[r]);
                        sum[r] = l.fma(x, middle, sum[r]);
                        l.store_ptr(numbers.as_mut_ptr().add(r * padded + d), u);
                    }
                }
            }
            let (mut of_middles, mut most) = ([0f32; R], [0f32; R]);
            for r in 0..R {
                of_middles[r] = l.reduce_add(sum[r]);
                most[r] = l.reduce_max(largest[r]);
            }
            if whole < padded {
                for r in 0..R {
                    let rest = &mut numbers[r * padded..][whole..padded];
                    rest.fill(0.0);
                    for (i, u) in rest[..dim - whole].iter_mut().enumerate() {
                        let (x, at) = (q[r * dim + whole + i], first + whole + i);
                        *u = x * half_at(scales, at);
                        most[r] = most[r].max(u.abs());
                        of_middles[r] = x.mul_add(half_at(middles, at), of_middles[r]);
                    }
                }
            }
            let mut scaling = [0f32; R];
            for r in 0..R {
                scaling[r] = if most[r] < LEAST {
                    0.0
                } else {
                    limit / most[r]
                };
            }
            let numbers = fixed.numbers.as_ptr();
            for r in 0..R {
                let place = Place {
                    rows: R,
                    set,
                    row: r,
                    summed: dim,
                };
                let factor = l.splat(scaling[r]);
                let total = round::<L, B>(l, &place, &mut fixed.quads, |at| {
                    // SAFETY: `numbers` has a number for each that is summed over, and zeros up to a
                    // multiple of `PADDING`.
                    l.mul(unsafe { l.load_ptr(numbers.add(r * padded + at)) }, factor)
                });
                let step = most[r] / limit;
                fixed.step[set * R + r] = step;
                fixed.base[set * R + r] = of_middles[r] - kivi.bits.middle() * total * step;
            }
        }
    }
}

/// Makes factors of the weights `[rows][64]` for the values of a page: a set for each block of channels.
pub(super) struct FixWeights<'a> {
    pub weights: &'a [f32],
    /// The slots that each row sees.
    pub slots: &'a [Range<usize>],
    /// `[blocks][64]` of both.
    pub groups: Groups<'a>,
    pub fixed: &'a mut Fixed,
}

impl Kernel for FixWeights<'_> {
    type Output = ();

    fn scalar(self) {
        unreachable!("the definition of attention does not come in tiles")
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        with_bytes_and_rows!(self, self.groups.kivi, self.slots.len(), fix, l)
    }
}

impl FixWeights<'_> {
    /// With factors of `B` bytes, for `R` rows.
    #[inline(always)]
    fn fix<L: Lanes, const B: usize, const R: usize>(self, l: L) {
        let FixWeights {
            weights,
            slots,
            groups:
                Groups {
                    kivi,
                    scales,
                    middles,
                },
            fixed,
        } = self;
        let sets = scales.len() / (2 * PAGE_TOKENS);
        assert!(weights.len() == R * PAGE_TOKENS && slots.len() == R);
        assert!(scales.len() == sets * PAGE_TOKENS * 2 && middles.len() == scales.len());
        fixed.reserve(sets, PAGE_TOKENS);
        let limit = kivi.queries.limit();
        let zero = l.splat(0.0);
        let vectors = PAGE_TOKENS / L::WIDTH;
        let (mut largest, mut inverse) = ([0f32; R], [0f32; R]);
        for (row, weights) in weights.chunks_exact(PAGE_TOKENS).enumerate() {
            // A row that sees nothing has no weights but what stood there before.
            if slots[row].is_empty() {
                continue;
            }
            let mut most = zero;
            for weights in weights.chunks_exact(L::WIDTH) {
                most = l.max(l.load(weights), most);
            }
            largest[row] = l.reduce_max(most);
            if largest[row] >= LEAST {
                inverse[row] = limit / largest[row];
            }
        }
        for set in 0..sets {
            let halves = |of: &[u8]| {
                let mut all = [zero; 8];
                for (i, half) in all[..vectors].iter_mut().enumerate() {
                    let at = (set * PAGE_TOKENS + i * L::WIDTH) * 2;
                    // SAFETY: there are 64 halves for every block, checked above.
                    *half = unsafe { l.load_f16_ptr(of.as_ptr().add(at)) };
                }
                all
            };
            let (mut relative, middle) = (halves(scales), halves(middles));
            // Of a scale that is NaN the maximum is the other.
            let mut most = zero;
            for scale in &relative[..vectors] {
                most = l.max(*scale, most);
            }
            let of_scales = l.reduce_max(most);
            let inverse_scale = l.splat(if of_scales == 0.0 {
                0.0
            } else {
                1.0 / of_scales
            });
            for scale in &mut relative[..vectors] {
                *scale = l.mul(*scale, inverse_scale);
            }
            for row in 0..R {
                let mut weight = [zero; 8];
                let of_row = weights[row * PAGE_TOKENS..].chunks_exact(L::WIDTH);
                for (weight, from) in weight[..vectors].iter_mut().zip(of_row) {
                    *weight = l.load(from);
                }
                let scaling = l.splat(inverse[row]);
                let place = Place {
                    rows: R,
                    set,
                    row,
                    summed: PAGE_TOKENS,
                };
                let total = round::<L, B>(l, &place, &mut fixed.quads, |at| {
                    let i = at / L::WIDTH;
                    // What a row does not see has weight 0, which a scale that is NaN must not
                    // change; what it sees becomes NaN by the middle.
                    l.max(l.mul(l.mul(weight[i], scaling), relative[i]), zero)
                });
                let mut sum = zero;
                let seen = &slots[row];
                for i in 0..vectors {
                    let mut weighted = l.mul(weight[i], middle[i]);
                    if seen.len() < PAGE_TOKENS {
                        // Slots that are not seen add an exact zero, whatever they hold.
                        let at = |edge: usize| edge as i32 - (i * L::WIDTH) as i32;
                        weighted = l.keep(weighted, at(seen.start), at(seen.end), zero);
                    }
                    sum = l.add(sum, weighted);
                }
                let at = set * R + row;
                let step = largest[row] * of_scales / limit;
                fixed.step[at] = step;
                fixed.base[at] = l.reduce_add(sum) - kivi.bits.middle() * total * step;
            }
        }
    }
}

/// Where the factors of a row are written.
struct Place {
    rows: usize,
    set: usize,
    row: usize,
    /// Numbers that are summed over.
    summed: usize,
}

/// Writes the factors that `scaled` gives by vectors, of `B` bytes each, to their place in `quads`.
/// Returns their sum.
#[inline(always)]
fn round<L: Lanes, const B: usize>(
    l: L,
    place: &Place,
    quads: &mut [i32],
    scaled: impl Fn(usize) -> L::V,
) -> f32 {
    let segments = segments(place.summed);
    let first = place.set * segments * place.rows;
    assert!(quads.len() >= (first + segments * place.rows) * B * SEGMENT && place.row < place.rows);
    let mut total = l.splat_whole(0);
    for segment in 0..segments {
        let at = (first + segment * place.rows + place.row) * B * SEGMENT;
        let to = quads[at..][..B * SEGMENT].as_mut_ptr().cast::<u8>();
        let from = segment * Kivi::QUAD * SEGMENT;
        let count = (place.summed - from).min(Kivi::QUAD * SEGMENT);
        for at in (0..count).step_by(4 * L::WIDTH) {
            let mut x = [total; 4];
            for (i, x) in x.iter_mut().enumerate() {
                *x = l.to_whole(scaled(from + at + i * L::WIDTH));
                total = l.add_whole(total, *x);
            }
            // SAFETY: a segment has room for 128 bytes of each kind, and `at` and four vectors more are
            // within them.
            unsafe {
                l.store_low_bytes(to.add((B - 1) * SEGMENT * Kivi::QUAD + at), x);
                if B == 2 {
                    l.store_high_bytes(to.add(at), x);
                }
            }
        }
    }
    l.sum_whole(total) as f32
}

/// Where the sums of [`DotCodes`] go.
pub(super) enum Into<'a> {
    /// Over what was there.
    Over,
    /// To what was there, each row times its factor.
    Onto(&'a [f32]),
}

/// `out [rows][stride]` becomes or gains `base + step · Σ x · code` for every place of a page, while the
/// codes of the next page are being fetched.
pub(super) struct DotCodes<'a> {
    pub kivi: Kivi,
    /// The codes of `summed` times at least `stride` numbers.
    pub codes: &'a [u8],
    pub summed: usize,
    pub across: usize,
    pub rows: usize,
    /// Places that share their factors: a multiple of [`SHARED`].
    pub places: usize,
    pub fixed: &'a Fixed,
    pub out: &'a mut [f32],
    pub into: Into<'a>,
    /// All bytes of the next page's keys or values.
    pub next: &'a [u8],
}

impl DotCodes<'_> {
    /// Runs the loop that is made for this many rows and bytes.
    #[inline(always)]
    pub(super) fn run<L: Lanes>(self, l: L) {
        with_bytes_and_rows!(self, self.kivi, self.rows, call, l);
    }

    #[inline(always)]
    fn call<L: Lanes, const B: usize, const R: usize>(self, l: L) {
        l.call(DotTile::<B, R>(self));
    }
}

struct DotTile<'a, const B: usize, const R: usize>(DotCodes<'a>);

impl<const B: usize, const R: usize> Kernel for DotTile<'_, B, R> {
    type Output = ();

    fn scalar(self) {
        unreachable!("the definition of attention does not come in tiles")
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        match self.0.kivi.bits {
            KiviBits::Four => self.all::<L, 4>(l),
            KiviBits::Two => self.all::<L, 2>(l),
        }
    }
}

impl<const B: usize, const R: usize> DotTile<'_, B, R> {
    #[inline(always)]
    fn all<L: Lanes, const BITS: usize>(mut self, l: L) {
        let it = &self.0;
        let stride = it.out.len() / R;
        let sets = stride.div_ceil(it.places);
        assert!(it.rows == R && it.out.len() == R * stride && stride.is_multiple_of(16));
        assert!(it.places.is_multiple_of(SHARED) && stride <= it.across.next_multiple_of(16));
        assert!(it.codes.len() >= it.kivi.codes_bytes(it.summed, it.across));
        assert!(it.fixed.quads.len() >= sets * segments(it.summed) * R * B * SEGMENT);
        assert!(it.fixed.step.len() >= sets * R && it.fixed.base.len() >= sets * R);
        // Two vectors of sixteen share a load of nibbles, four a factor where it is one byte; one of
        // eight leaves room in 16 registers.
        let four = B == 1 && R <= 4 && it.places >= 64;
        let mut first = 0;
        while first < stride {
            first += match (L::WIDTH, stride - first) {
                (16, 64..) if four => self.places::<L, BITS, 4>(l, stride, first),
                (16, 32..) => self.places::<L, BITS, 2>(l, stride, first),
                _ => self.places::<L, BITS, 1>(l, stride, first),
            };
        }
    }

    /// The `C` vectors of places from `first` on, which share their factors. Returns how many places
    /// that are.
    #[expect(
        clippy::needless_range_loop,
        reason = "iterators over the nested arrays leave sums in memory"
    )]
    #[inline(always)]
    fn places<L: Lanes, const BITS: usize, const C: usize>(
        &mut self,
        l: L,
        stride: usize,
        first: usize,
    ) -> usize {
        let it = &mut self.0;
        let set = first / it.places;
        let runs = 8 / BITS;
        let quad_bytes = it.across.div_ceil(16 * runs) * RUN_BYTES;
        let mut from = [it.codes.as_ptr(); C];
        let mut shift = [0; C];
        for (c, (from, shift)) in from.iter_mut().zip(&mut shift).enumerate() {
            let place = first + c * L::WIDTH;
            let (block, within) = (place / (16 * runs), place % (16 * runs));
            *from = from.wrapping_add(block * RUN_BYTES + within % 16 * Kivi::QUAD);
            *shift = (within / 16 * BITS) as u32;
        }
        // The next page's codes lie as far from this page's as their beginnings; where there is none,
        // what is read is asked for again, which costs nothing.
        let ahead = match it.next {
            [] => 0,
            next => (next.as_ptr() as isize).wrapping_sub(it.codes.as_ptr() as isize),
        };
        let segments = segments(it.summed);
        let mut factors = it.fixed.quads[set * segments * R * B * SEGMENT..].as_ptr();
        let mut acc = [[[l.splat_whole(0); C]; B]; R];
        let mut quads = it.summed.div_ceil(Kivi::QUAD);
        for _ in 0..segments {
            for quad in 0..quads.min(SEGMENT) {
                l.prefetch(from[0].wrapping_offset(ahead));
                let mut codes = [l.splat_whole(0); C];
                for c in 0..C {
                    // SAFETY: `codes` holds a quad of so many places, checked by the caller.
                    let raw = unsafe { l.load_whole(from[c]) };
                    codes[c] = l.codes(raw, shift[c], (1 << BITS) - 1);
                    from[c] = from[c].wrapping_add(quad_bytes);
                }
                for r in 0..R {
                    for b in 0..B {
                        // SAFETY: `quads` holds a segment for each row and byte, checked by the
                        // caller.
                        let x = unsafe { *factors.add((r * B + b) * SEGMENT + quad) };
                        let x = l.splat_whole(x);
                        for c in 0..C {
                            acc[r][b][c] = l.dot4(acc[r][b][c], codes[c], x);
                        }
                    }
                }
            }
            quads = quads.saturating_sub(SEGMENT);
            factors = factors.wrapping_add(R * B * SEGMENT);
        }
        if first == 0 {
            let codes = it.summed.div_ceil(Kivi::QUAD) * quad_bytes;
            for line in it.next.get(codes..).unwrap_or(&[]).chunks(64) {
                l.prefetch(line.as_ptr());
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            let step = l.splat(it.fixed.step[set * R + r]);
            let base = l.splat(it.fixed.base[set * R + r]);
            for c in 0..C {
                let whole = match B {
                    2 => l.join_bytes(acc[0][c], acc[B - 1][c]),
                    _ => acc[0][c],
                };
                let out = &mut it.out[r * stride + first + c * L::WIDTH..];
                let begin = match it.into {
                    Into::Over => base,
                    Into::Onto(scale) => l.fma(l.load(out), l.splat(scale[r]), base),
                };
                l.store(out, l.fma(l.to_floats(whole), step, begin));
            }
        }
        C * L::WIDTH
    }
}

/// Channels of a value that share their factors.
pub(super) const VALUE_PLACES: usize = QUANT_BLOCK;
