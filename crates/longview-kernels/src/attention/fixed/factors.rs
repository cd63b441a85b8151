//! Queries and weights as whole numbers.

#![expect(
    clippy::needless_range_loop,
    reason = "several arrays at the same places; iterators over them leave vectors in memory"
)]

use std::ops::Range;

use super::super::TILE_ROWS;
use super::super::fetch::Fetch;
use super::{Fixed, Groups, LEAST, PADDING, SEGMENT, segments};
use crate::lanes::{Kernel, Lanes};
use crate::page::{PAGE_TOKENS, QUAD, QUANT_BLOCK, QueryBits, half_at};

/// Rows whose largest numbers and sums are found together.
const TOGETHER: usize = 4;

/// Calls `$work.$function::<_, bytes, rows>(l, first)` for some rows after another, with both numbers as
/// constants.
macro_rules! by_rows {
    ($work:expr, $queries:expr, $rows:expr, $function:ident, $l:expr) => {
        for first in (0..$rows).step_by(TOGETHER) {
            match ($queries, $rows - first) {
                (QueryBits::Sixteen, 1) => $work.$function::<_, 2, 1>($l, first),
                (QueryBits::Sixteen, 2) => $work.$function::<_, 2, 2>($l, first),
                (QueryBits::Sixteen, 3) => $work.$function::<_, 2, 3>($l, first),
                (QueryBits::Sixteen, _) => $work.$function::<_, 2, 4>($l, first),
                (QueryBits::Eight, 1) => $work.$function::<_, 1, 1>($l, first),
                (QueryBits::Eight, 2) => $work.$function::<_, 1, 2>($l, first),
                (QueryBits::Eight, 3) => $work.$function::<_, 1, 3>($l, first),
                (QueryBits::Eight, _) => $work.$function::<_, 1, 4>($l, first),
            }
        }
    };
}

/// Makes factors of the queries `q [rows][dim]` for the keys of a kivi page: a set for each group of
/// tokens.
pub(in super::super) struct FixQueries<'a> {
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
    fn lanes<L: Lanes>(mut self, l: L) {
        let rows = self.q.len() / self.dim;
        let sets = PAGE_TOKENS / self.groups.places;
        assert!(self.q.len() == rows * self.dim);
        assert!(self.groups.scales.len() == sets * self.dim * 2);
        assert!(self.groups.middles.len() == self.groups.scales.len());
        self.fixed.reserve(sets, self.dim);
        by_rows!(self, self.groups.queries, rows, fix, l);
    }
}

impl FixQueries<'_> {
    /// `N` rows from `first` on, with factors of `B` bytes.
    #[inline(always)]
    fn fix<L: Lanes, const B: usize, const N: usize>(&mut self, l: L, first: usize) {
        let (q, dim) = (self.q, self.dim);
        let Groups {
            codes,
            queries,
            scales,
            middles,
            ..
        } = self.groups;
        let rows = q.len() / dim;
        let whole = dim - dim % L::WIDTH;
        let padded = dim.next_multiple_of(PADDING);
        let sets = scales.len() / (2 * dim);
        for set in 0..sets {
            let numbers = &mut self.fixed.numbers[..N * padded];
            let (mut base, mut most) = ([l.splat(0.0); TOGETHER], [l.splat(0.0); TOGETHER]);
            for d in (0..whole).step_by(L::WIDTH) {
                let at = (set * dim + d) * 2;
                // SAFETY: there are `dim` halves of each for every group, a row has `dim` numbers, and
                // `numbers` has room for each; `d` is one of them with the whole vector after it.
                unsafe {
                    let scale = l.load_f16_ptr(scales.as_ptr().add(at));
                    let middle = l.load_f16_ptr(middles.as_ptr().add(at));
                    for r in 0..N {
                        let x = l.load_ptr(q.as_ptr().add((first + r) * dim + d));
                        let u = l.mul(x, scale);
                        most[r] = l.max(l.abs(u), most[r]);
                        base[r] = l.fma(x, middle, base[r]);
                        l.store_ptr(numbers.as_mut_ptr().add(r * padded + d), u);
                    }
                }
            }
            if whole < padded {
                for r in 0..N {
                    let rest = &mut numbers[r * padded..][whole..padded];
                    rest.fill(0.0);
                    let (mut weighted, mut largest) = ([0f32; 16], [0f32; 16]);
                    for (i, u) in rest[..dim - whole].iter_mut().enumerate() {
                        let (x, at) = (q[(first + r) * dim + whole + i], set * dim + whole + i);
                        *u = x * half_at(scales, at);
                        largest[i] = u.abs();
                        weighted[i] = x * half_at(middles, at);
                    }
                    most[r] = l.max(l.load(&largest), most[r]);
                    base[r] = l.add(l.load(&weighted), base[r]);
                }
            }
            let place = Place {
                rows,
                region: 0,
                set,
                first,
                summed: dim,
            };
            let step = steps(l, most, queries);
            let weight = step.map(|step| -codes.middle() * step.step);
            let numbers = self.fixed.numbers.as_ptr();
            // SAFETY: `numbers` has `padded` numbers for each of the rows.
            let factors = |r, i| unsafe { l.load_ptr(numbers.add(r * padded + i * L::WIDTH)) };
            round::<L, B, N>(l, &place, self.fixed, &step, &weight, base, factors);
        }
    }
}

/// Makes factors of the queries `q [rows][dim]` for the keys of any dotted page: a set for each block of
/// channels, in region `region`. Their base is counted in whole numbers.
pub(in super::super) struct FixRows<'a> {
    pub q: &'a [f32],
    pub dim: usize,
    pub groups: Groups<'a>,
    pub region: usize,
    pub fixed: &'a mut Fixed,
}

impl Kernel for FixRows<'_> {
    type Output = ();

    fn scalar(self) {
        unreachable!("the definition of attention does not come in tiles")
    }

    #[inline(always)]
    fn lanes<L: Lanes>(mut self, l: L) {
        let rows = self.q.len() / self.dim;
        assert!(self.q.len() == rows * self.dim);
        let sets = self.dim.div_ceil(QUANT_BLOCK);
        self.fixed.reserve(self.region + sets, QUANT_BLOCK);
        by_rows!(self, self.groups.queries, rows, fix, l);
    }
}

impl FixRows<'_> {
    #[inline(always)]
    fn fix<L: Lanes, const B: usize, const N: usize>(&mut self, l: L, first: usize) {
        let rows = self.q.len() / self.dim;
        for (block, from) in (0..self.dim).step_by(QUANT_BLOCK).enumerate() {
            let count = (self.dim - from).min(QUANT_BLOCK);
            let numbers = &mut self.fixed.numbers[..N * PADDING];
            numbers.fill(0.0);
            let mut most = [l.splat(0.0); TOGETHER];
            for (r, numbers) in numbers.chunks_exact_mut(PADDING).enumerate() {
                let of_row = &self.q[(first + r) * self.dim + from..][..count];
                numbers[..count].copy_from_slice(of_row);
                for x in numbers.chunks_exact(L::WIDTH) {
                    most[r] = l.max(l.abs(l.load(x)), most[r]);
                }
            }
            let place = Place {
                rows,
                region: self.region,
                set: block,
                first,
                summed: QUANT_BLOCK,
            };
            let step = steps(l, most, self.groups.queries);
            let weight = [-self.groups.codes.middle(); TOGETHER];
            let base = [l.splat(0.0); TOGETHER];
            let numbers = self.fixed.numbers.as_ptr();
            // SAFETY: `numbers` has room for a block of each of the rows, and what pads it.
            let factors = |r, i| unsafe { l.load_ptr(numbers.add(r * PADDING + i * L::WIDTH)) };
            round::<L, B, N>(l, &place, self.fixed, &step, &weight, base, factors);
        }
    }
}

/// Makes factors of the weights `[rows][64]` for the values of a page: a set for each block of channels.
pub(in super::super) struct FixWeights<'a> {
    pub weights: &'a [f32],
    /// The slots that each row sees.
    pub slots: &'a [Range<usize>],
    /// `[blocks][64]` of both.
    pub groups: Groups<'a>,
    pub fixed: &'a mut Fixed,
    pub next: Fetch<'a>,
}

impl Kernel for FixWeights<'_> {
    type Output = ();

    fn scalar(self) {
        unreachable!("the definition of attention does not come in tiles")
    }

    #[inline(always)]
    fn lanes<L: Lanes>(mut self, l: L) {
        let rows = self.slots.len();
        let Groups {
            scales, middles, ..
        } = self.groups;
        let sets = scales.len() / (2 * PAGE_TOKENS);
        assert!(self.weights.len() == rows * PAGE_TOKENS);
        assert!(scales.len() == sets * PAGE_TOKENS * 2);
        assert!(middles.is_empty() || middles.len() == scales.len());
        self.fixed.reserve(sets, PAGE_TOKENS);
        if self.slots.iter().any(|seen| seen.len() < PAGE_TOKENS) {
            by_rows!(self, self.groups.queries, rows, fix_some, l);
        } else if middles.is_empty() {
            by_rows!(self, self.groups.queries, rows, fix_scaled, l);
        } else {
            by_rows!(self, self.groups.queries, rows, fix_all, l);
        }
    }
}

impl FixWeights<'_> {
    /// Where a row may see less than all slots.
    #[inline(always)]
    fn fix_some<L: Lanes, const B: usize, const N: usize>(&mut self, l: L, first: usize) {
        self.fix::<L, B, N, true, true>(l, first);
    }

    /// Where all see all.
    #[inline(always)]
    fn fix_all<L: Lanes, const B: usize, const N: usize>(&mut self, l: L, first: usize) {
        self.fix::<L, B, N, false, true>(l, first);
    }

    /// The same, and there are no middles.
    #[inline(always)]
    fn fix_scaled<L: Lanes, const B: usize, const N: usize>(&mut self, l: L, first: usize) {
        self.fix::<L, B, N, false, false>(l, first);
    }

    /// `N` rows from `first` on, with factors of `B` bytes; whether slots may be `HIDDEN`, and whether
    /// there may be `MIDDLES`: what is not there would change no bit.
    #[inline(always)]
    fn fix<L: Lanes, const B: usize, const N: usize, const HIDDEN: bool, const MIDDLES: bool>(
        &mut self,
        l: L,
        first: usize,
    ) {
        let Groups {
            codes,
            queries,
            scales,
            middles,
            ..
        } = self.groups;
        let rows = self.slots.len();
        let zero = l.splat(0.0);
        let sets = scales.len() / (2 * PAGE_TOKENS);
        for set in 0..sets {
            // The share of these rows and channels.
            let at = first * sets + set * N;
            let share = self.next.part(at, at + N, rows * sets);
            let lines = share.lines();
            let mut next = share.pace(lines);
            for _ in 0..lines {
                next.next(l);
            }
            let mut numbers = [[zero; 8]; N];
            let (mut base, mut most) = ([zero; TOGETHER], [zero; TOGETHER]);
            for i in 0..PAGE_TOKENS / L::WIDTH {
                let slot = i * L::WIDTH;
                let at = (set * PAGE_TOKENS + slot) * 2;
                // SAFETY: there are 64 halves for every block, checked above.
                let scale = unsafe { l.load_f16_ptr(scales.as_ptr().add(at)) };
                let middle = match MIDDLES && !middles.is_empty() {
                    false => zero,
                    // SAFETY: as for the scales.
                    true => unsafe { l.load_f16_ptr(middles.as_ptr().add(at)) },
                };
                for r in 0..N {
                    // SAFETY: a row has 64 weights, and `numbers` room for as many.
                    let weight = unsafe {
                        let of_row = self.weights.as_ptr().add((first + r) * PAGE_TOKENS);
                        l.load_ptr(of_row.add(slot))
                    };
                    let mut u = l.mul(weight, scale);
                    let mut weighted = l.mul(weight, middle);
                    let seen = &self.slots[first + r];
                    if HIDDEN && seen.len() < PAGE_TOKENS {
                        // Slots that are not seen add an exact zero, whatever they hold.
                        let at = |edge: usize| edge as i32 - slot as i32;
                        u = l.keep(u, at(seen.start), at(seen.end), zero);
                        weighted = l.keep(weighted, at(seen.start), at(seen.end), zero);
                    }
                    most[r] = l.max(u, most[r]);
                    if MIDDLES {
                        base[r] = l.add(weighted, base[r]);
                    }
                    numbers[r][i] = u;
                }
            }
            let place = Place {
                rows,
                region: 0,
                set,
                first,
                summed: PAGE_TOKENS,
            };
            let step = steps(l, most, queries);
            let weight = step.map(|step| -codes.middle() * step.step);
            let factors = |r: usize, i: usize| numbers[r][i];
            round::<L, B, N>(l, &place, self.fixed, &step, &weight, base, factors);
        }
    }
}

/// How the factors of a row are scaled.
#[derive(Clone, Copy)]
struct Step {
    /// What a whole number stands for.
    step: f32,
    /// What a factor is multiplied with to become one.
    scaling: f32,
}

/// The steps of rows whose largest factors are among the lanes of `most`.
#[inline(always)]
fn steps<L: Lanes>(l: L, most: [L::V; TOGETHER], queries: QueryBits) -> [Step; TOGETHER] {
    let (limit, least) = (queries.limit(), 1.0 / queries.limit());
    let most = l.tops(most);
    let mut steps = [Step {
        step: 0.0,
        scaling: 0.0,
    }; TOGETHER];
    for (step, most) in steps.iter_mut().zip(most) {
        // Divided in any case: four at once.
        let scaling = limit / most.max(LEAST);
        step.step = most * least;
        step.scaling = if most < LEAST { 0.0 } else { scaling };
    }
    steps
}

/// Where the factors of some rows are written.
struct Place {
    /// Rows of the tile.
    rows: usize,
    region: usize,
    /// In the region.
    set: usize,
    /// The first of the rows.
    first: usize,
    /// Numbers that are summed over.
    summed: usize,
}

/// Rounds the factors of `N` rows, `factors(row, vector)`, to whole numbers of `B` bytes, and writes these,
/// what they stand for, and what their rows begin with: the sums of `base` and of all whole numbers times
/// `weight`. A factor that is NaN makes that NaN.
#[inline(always)]
fn round<L: Lanes, const B: usize, const N: usize>(
    l: L,
    place: &Place,
    fixed: &mut Fixed,
    step: &[Step; TOGETHER],
    weight: &[f32; TOGETHER],
    mut base: [L::V; TOGETHER],
    factors: impl Fn(usize, usize) -> L::V,
) {
    let segments = segments(place.summed);
    let of_set = place.region * TILE_ROWS + place.set * place.rows;
    const SEGMENT_BYTES: usize = SEGMENT * QUAD;
    let quads = &mut fixed.quads[..];
    assert!(quads.len() >= (of_set + place.rows) * segments * B * SEGMENT_BYTES);
    assert!(place.first + N <= place.rows);
    let vectors = PADDING / L::WIDTH;
    for segment in 0..segments {
        let at = of_set * segments + segment * place.rows + place.first;
        let to = quads.as_mut_ptr().wrapping_add(at * B * SEGMENT_BYTES);
        for r in 0..N {
            let to = to.wrapping_add(r * B * SEGMENT_BYTES);
            let (scaling, weight) = (l.splat(step[r].scaling), l.splat(weight[r]));
            for first in (0..vectors).step_by(4) {
                let mut x = [l.splat_whole(0); 4];
                for i in 0..4 {
                    let u = factors(r, segment * vectors + first + i);
                    let rounded = l.round(l.mul(u, scaling));
                    base[r] = l.fma(rounded, weight, base[r]);
                    x[i] = l.to_whole(rounded);
                }
                // SAFETY: there is a segment for each row, checked above, with room for so many bytes of
                // each kind.
                unsafe {
                    let to = to.add(first * L::WIDTH);
                    l.store_low_bytes(to.add((B - 1) * SEGMENT_BYTES), x);
                    if B == 2 {
                        l.store_high_bytes(to, x);
                    }
                }
            }
        }
    }
    let base = l.sums(base);
    let of_rows = of_set + place.first..of_set + place.first + N;
    let (steps, bases) = (&mut fixed.step[of_rows.clone()], &mut fixed.base[of_rows]);
    for r in 0..N {
        steps[r] = step[r].step;
        bases[r] = base[r];
    }
}
