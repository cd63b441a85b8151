//! Scores and values of kivi pages: a scale and a middle for every group.
//!
//! A key's number is `middle + scale · code` with one pair for a group of tokens of a channel. So a
//! query is multiplied with the scales of its channels once a group, and the sum of its products
//! with the middles is what every score of the group begins with. A value's number has its pair for
//! a block of channels of a token: the scales go into the weights, as those of q8 do, and the sum of
//! the weighted middles is added to every channel of the block.

use std::ops::Range;

use super::element::Element;
use crate::lanes::{Kernel, Lanes};
use crate::page::{PAGE_TOKENS, QUANT_BLOCK, half_at};

/// `scaled [groups][R][dim]`: queries `q [R][dim]` times the scales, and `base [groups][R]`: the sums
/// of their products with the middles.
pub(super) struct ScaleQueries<'a> {
    pub q: &'a [f32],
    pub dim: usize,
    /// `[groups][dim]` in half precision.
    pub scales: &'a [u8],
    /// `[groups][dim]` in half precision.
    pub middles: &'a [u8],
    pub scaled: &'a mut [f32],
    pub base: &'a mut [f32],
}

impl Kernel for ScaleQueries<'_> {
    type Output = ();

    fn scalar(self) {
        let rows = self.q.len() / self.dim;
        for (at, scaled) in self.scaled.chunks_exact_mut(self.dim).enumerate() {
            let (group, row) = (at / rows, at % rows);
            let q = &self.q[row * self.dim..][..self.dim];
            let mut base = 0.0;
            for (d, (scaled, q)) in scaled.iter_mut().zip(q).enumerate() {
                *scaled = q * half_at(self.scales, group * self.dim + d);
                base += q * half_at(self.middles, group * self.dim + d);
            }
            self.base[at] = base;
        }
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        let dim = self.dim;
        let rows = self.q.len() / dim;
        let groups = self.scaled.len() / (rows * dim);
        assert!(self.q.len() == rows * dim && self.base.len() == groups * rows);
        assert!(self.scales.len() == groups * dim * 2 && self.middles.len() == groups * dim * 2);
        let whole = dim - dim % L::WIDTH;
        for (at, scaled) in self.scaled.chunks_exact_mut(dim).enumerate() {
            let (group, row) = (at / rows, at % rows);
            let q = &self.q[row * dim..][..dim];
            let first = group * dim;
            let mut sum = l.splat(0.0);
            for d in (0..whole).step_by(L::WIDTH) {
                let x = l.load(&q[d..]);
                // SAFETY: there are `dim` halves of each for every group, and `d` is one of them with
                // the whole vector after it.
                let (scale, middle) = unsafe {
                    (
                        l.load_f16_ptr(self.scales.as_ptr().add((first + d) * 2)),
                        l.load_f16_ptr(self.middles.as_ptr().add((first + d) * 2)),
                    )
                };
                l.store(&mut scaled[d..], l.mul(x, scale));
                sum = l.fma(x, middle, sum);
            }
            let mut base = l.reduce_add(sum);
            for d in whole..dim {
                scaled[d] = q[d] * half_at(self.scales, first + d);
                base = q[d].mul_add(half_at(self.middles, first + d), base);
            }
            self.base[at] = base;
        }
    }
}

/// Scores of `R` rows against the keys of a page, `[R][64]`, while the keys of the next page are being
/// fetched.
pub(super) struct GroupScoreTile<'a, E, const R: usize> {
    pub element: E,
    /// `[groups][R][dim]`
    pub q: &'a [f32],
    /// `[groups][R]`
    pub base: &'a [f32],
    pub dim: usize,
    /// Tokens of a group: 32 or 64.
    pub group: usize,
    /// `[dim][64]`
    pub k: &'a [u8],
    pub scores: &'a mut [f32],
    /// All bytes of the next page's keys.
    pub next: &'a [u8],
}

impl<E: Element, const R: usize> Kernel for GroupScoreTile<'_, E, R> {
    type Output = ();

    fn scalar(self) {
        let row_bytes = E::TYPE.row_bytes(PAGE_TOKENS);
        for (r, scores) in self.scores.chunks_exact_mut(PAGE_TOKENS).enumerate() {
            for (slot, score) in scores.iter_mut().enumerate() {
                let at = slot / self.group * R + r;
                let q = &self.q[at * self.dim..][..self.dim];
                let product =
                    |(d, q): (usize, &f32)| q * E::TYPE.get(&self.k[d * row_bytes..], slot);
                *score = self.base[at] + q.iter().enumerate().map(product).sum::<f32>();
            }
        }
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        let groups = PAGE_TOKENS / self.group;
        assert!(self.group == 32 || self.group == 64);
        assert!(self.q.len() == groups * R * self.dim && self.base.len() == groups * R);
        assert!(self.scores.len() == R * PAGE_TOKENS);
        assert!(self.k.len() >= self.dim * E::TYPE.row_bytes(PAGE_TOKENS));
        // As many columns of tokens as leave registers for the keys and a query.
        match (L::WIDTH, R) {
            (16, _) => self.columns::<L, 4>(l),
            (_, 1) => self.columns::<L, 8>(l),
            (_, 2) => self.columns::<L, 4>(l),
            _ => self.columns::<L, 2>(l),
        }
    }
}

impl<E: Element, const R: usize> GroupScoreTile<'_, E, R> {
    /// The tile in passes over `C` vectors of tokens.
    #[inline(always)]
    fn columns<L: Lanes, const C: usize>(self, l: L) {
        const { assert!(PAGE_TOKENS.is_multiple_of(C * 8)) };
        let row_bytes = E::TYPE.row_bytes(PAGE_TOKENS);
        let mut next = match self.next {
            [] => std::ptr::null(),
            next => next.as_ptr(),
        };
        for first in (0..PAGE_TOKENS).step_by(C * L::WIDTH) {
            // The queries of each column's group.
            let group = |c: usize| (first + c * L::WIDTH) / self.group;
            let mut acc = [[l.splat(0.0); C]; R];
            for (r, acc) in acc.iter_mut().enumerate() {
                for (c, acc) in acc.iter_mut().enumerate() {
                    *acc = l.splat(self.base[group(c) * R + r]);
                }
            }
            let (low, high) = (group(0) * R * self.dim, group(C - 1) * R * self.dim);
            // A pass crosses one edge of groups at most: groups are half a page or a whole one.
            let high_from = (0..C).find(|&c| group(c) != group(0)).unwrap_or(C);
            let mut k = self.k.as_ptr();
            for d in 0..self.dim {
                if !next.is_null() {
                    for line in (0..row_bytes).step_by(64) {
                        l.prefetch(next.wrapping_add(line));
                    }
                    next = next.wrapping_add(row_bytes);
                }
                let mut keys = [l.splat(0.0); C];
                for (c, key) in keys.iter_mut().enumerate() {
                    // SAFETY: `k` holds `dim` rows of 64 elements, checked by the caller, and
                    // `first + C * WIDTH` is at most 64.
                    *key = unsafe { self.element.load(l, k, first + c * L::WIDTH) };
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    let at = r * self.dim + d;
                    // SAFETY: `q` holds R rows of `dim` numbers for every group, checked by the
                    // caller.
                    let (x, y) = unsafe {
                        let q = self.q.as_ptr();
                        (l.splat(*q.add(low + at)), l.splat(*q.add(high + at)))
                    };
                    for c in 0..C {
                        acc[c] = l.fma(if c < high_from { x } else { y }, keys[c], acc[c]);
                    }
                }
                k = k.wrapping_add(row_bytes);
            }
            for (r, acc) in acc.iter().enumerate() {
                for (c, &sum) in acc.iter().enumerate() {
                    l.store(
                        &mut self.scores[r * PAGE_TOKENS + first + c * L::WIDTH..],
                        sum,
                    );
                }
            }
            if !next.is_null() {
                for line in self
                    .next
                    .get(self.dim * row_bytes..)
                    .unwrap_or(&[])
                    .chunks(64)
                {
                    l.prefetch(line.as_ptr());
                }
                next = std::ptr::null();
            }
        }
    }
}

/// Adds to `acc [rows][stride]` what the middles of values contribute: the sum of weight times middle
/// over the slots a row sees, for every block of 32 channels.
pub(super) struct AddMiddles<'a> {
    pub slots: &'a [Range<usize>],
    /// `[rows][64]`
    pub weights: &'a [f32],
    /// `[blocks][64]` in half precision.
    pub middles: &'a [u8],
    pub acc: &'a mut [f32],
}

impl Kernel for AddMiddles<'_> {
    type Output = ();

    fn scalar(self) {
        let stride = self.acc.len() / self.slots.len();
        for (row, acc) in self.acc.chunks_exact_mut(stride).enumerate() {
            for (block, acc) in acc.chunks_mut(QUANT_BLOCK).enumerate() {
                let weighted = |slot: usize| {
                    self.weights[row * PAGE_TOKENS + slot]
                        * half_at(self.middles, block * PAGE_TOKENS + slot)
                };
                let sum: f32 = self.slots[row].clone().map(weighted).sum();
                acc.iter_mut().for_each(|acc| *acc += sum);
            }
        }
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        let rows = self.slots.len();
        let stride = self.acc.len() / rows;
        assert!(stride.is_multiple_of(16) && self.weights.len() >= rows * PAGE_TOKENS);
        assert!(self.middles.len() >= stride.div_ceil(QUANT_BLOCK) * PAGE_TOKENS * 2);
        for (row, acc) in self.acc.chunks_exact_mut(stride).enumerate() {
            let slots = &self.slots[row];
            if slots.is_empty() {
                continue;
            }
            let weights = &self.weights[row * PAGE_TOKENS..][..PAGE_TOKENS];
            for (block, acc) in acc.chunks_mut(QUANT_BLOCK).enumerate() {
                let mut sum = l.splat(0.0);
                for first in (0..PAGE_TOKENS).step_by(L::WIDTH) {
                    // SAFETY: there are 64 middles for every block, checked above.
                    let middle = unsafe {
                        let at = (block * PAGE_TOKENS + first) * 2;
                        l.load_f16_ptr(self.middles.as_ptr().add(at))
                    };
                    let weighted = l.mul(l.load(&weights[first..]), middle);
                    // Slots that are not seen add an exact zero, whatever they hold.
                    let at = |slot: usize| slot as i32 - first as i32;
                    let seen = l.keep(weighted, at(slots.start), at(slots.end), l.splat(0.0));
                    sum = l.add(sum, seen);
                }
                let sum = l.splat(l.reduce_add(sum));
                for acc in acc.chunks_exact_mut(L::WIDTH) {
                    l.store(acc, l.add(l.load(acc), sum));
                }
            }
        }
    }
}
