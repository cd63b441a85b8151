//! The scores of one register tile.

use super::element::Element;
use super::fetch::Fetch;
use crate::lanes::{Kernel, Lanes};
use crate::page::{KvType, PAGE_TOKENS, QUANT_BLOCK, scale_number};

/// Scores of `R` rows `q [R][dim]` against the keys of a page, `[R][64]`, while some of the next page
/// is being fetched.
pub(super) struct ScoreTile<'a, E, const R: usize> {
    pub element: E,
    pub q: &'a [f32],
    /// `[dim][64]`
    pub k: &'a [u8],
    /// `[blocks of 32 channels][64]` in half precision, or empty.
    pub scales: &'a [u8],
    pub scores: &'a mut [f32],
    pub next: Fetch<'a>,
}

impl<E: Element, const R: usize> Kernel for ScoreTile<'_, E, R> {
    type Output = ();

    fn scalar(self) {
        let dim = self.q.len() / R;
        let row_bytes = E::TYPE.row_bytes(PAGE_TOKENS);
        let rows = self.q.chunks_exact(dim);
        for (q, scores) in rows.zip(self.scores.chunks_exact_mut(PAGE_TOKENS)) {
            for (slot, score) in scores.iter_mut().enumerate() {
                let product = |(d, q): (usize, &f32)| {
                    let code = E::TYPE.get(&self.k[d * row_bytes..], slot);
                    if self.scales.is_empty() {
                        q * code
                    } else {
                        q * code * scale_number(self.scales, slot, d / QUANT_BLOCK)
                    }
                };
                *score = q.iter().enumerate().map(product).sum();
            }
        }
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        let dim = self.q.len() / R;
        assert!(self.q.len() == R * dim && self.scores.len() == R * PAGE_TOKENS);
        assert!(self.k.len() >= dim * E::TYPE.row_bytes(PAGE_TOKENS));
        let scales = dim.div_ceil(QUANT_BLOCK) * PAGE_TOKENS * 2;
        assert!(self.scales.is_empty() || self.scales.len() >= scales);
        // As many columns of tokens as leave registers for the keys and a query.
        match (L::WIDTH, R) {
            (16, _) => self.columns::<L, 4>(l, dim),
            (_, 1) => self.columns::<L, 8>(l, dim),
            (_, 2) => self.columns::<L, 4>(l, dim),
            _ => self.columns::<L, 2>(l, dim),
        }
    }
}

impl<E: Element, const R: usize> ScoreTile<'_, E, R> {
    /// The tile in passes over `C` vectors of tokens.
    #[inline(always)]
    fn columns<L: Lanes, const C: usize>(self, l: L, dim: usize) {
        const { assert!(PAGE_TOKENS.is_multiple_of(C * 8)) };
        let row_bytes = E::TYPE.row_bytes(PAGE_TOKENS);
        let is_scaled = !self.scales.is_empty();
        let block = if is_scaled { QUANT_BLOCK } else { dim };
        // As many lines a channel as one has at most, with its share of the scales.
        let lines = row_bytes.div_ceil(64) + E::TYPE.scales(1);
        let mut next = self.next.pace(PAGE_TOKENS / (C * L::WIDTH) * dim * lines);
        // Rows of a prompt meet keys and values as floats, with nothing to fetch.
        let fetches = !matches!(E::TYPE, KvType::F32) || next.has_lines();
        for first in (0..PAGE_TOKENS).step_by(C * L::WIDTH) {
            let mut q = self.q.as_ptr();
            let mut k = self.k.as_ptr();
            for from in (0..dim).step_by(block.max(1)) {
                let mut acc = [[l.splat(0.0); C]; R];
                for _ in from..dim.min(from + block) {
                    if fetches {
                        for _ in 0..lines {
                            match E::TYPE.scales(1) {
                                0 => next.next_of_halves(l),
                                _ => next.next(l),
                            }
                        }
                    }
                    let mut keys = [l.splat(0.0); C];
                    for (c, key) in keys.iter_mut().enumerate() {
                        // SAFETY: `k` holds `dim` rows of 64 elements, checked by the caller, and
                        // `first + C * WIDTH` is at most 64.
                        *key = unsafe { self.element.load(l, k, first + c * L::WIDTH) };
                    }
                    for (r, acc) in acc.iter_mut().enumerate() {
                        // SAFETY: `q` holds R rows of `dim` numbers, checked by the caller.
                        let x = l.splat(unsafe { *q.add(r * dim) });
                        for c in 0..C {
                            acc[c] = l.fma(x, keys[c], acc[c]);
                        }
                    }
                    q = q.wrapping_add(1);
                    k = k.wrapping_add(row_bytes);
                }
                for (r, acc) in acc.iter().enumerate() {
                    for (c, &sum) in acc.iter().enumerate() {
                        let column = first + c * L::WIDTH;
                        let at = self.scores[r * PAGE_TOKENS + column..].as_mut_ptr();
                        let mut sum = sum;
                        if is_scaled {
                            let scale = from / QUANT_BLOCK * PAGE_TOKENS + column;
                            // SAFETY: there are 64 scales for every block of channels, and R rows
                            // of 64 scores, checked by the caller.
                            unsafe {
                                let scale = l.load_f16_ptr(self.scales.as_ptr().add(scale * 2));
                                sum = if from == 0 {
                                    l.mul(sum, scale)
                                } else {
                                    l.fma(sum, scale, l.load_ptr(at))
                                };
                            }
                        }
                        // SAFETY: `scores` holds R rows of 64 numbers, checked by the caller.
                        unsafe { l.store_ptr(at, sum) };
                    }
                }
            }
        }
    }
}
