//! The running softmax of one register tile.

use std::ops::Range;

use super::TILE_ROWS;
use crate::lanes::{Kernel, Lanes, exp_scalar};
use crate::page::PAGE_TOKENS;

/// Turns the scores of some rows into weights `exp(score - max)`, 0 in the slots a row does not
/// see, and brings the rows' running `max` and `sum` up to date. What was accumulated so far must be
/// multiplied with `scale`: 1 where a row sees no slot.
pub(super) struct SoftmaxTile<'a> {
    pub scores: &'a mut [f32],
    pub slots: &'a [Range<usize>],
    pub softcap: f32,
    pub max: &'a mut [f32],
    pub sum: &'a mut [f32],
    pub scale: &'a mut [f32],
}

impl Kernel for SoftmaxTile<'_> {
    type Output = ();

    fn scalar(self) {
        for (row, slots) in self.slots.iter().enumerate() {
            let scores = &mut self.scores[row * PAGE_TOKENS..][slots.clone()];
            if self.softcap != 0.0 {
                scores
                    .iter_mut()
                    .for_each(|s| *s = self.softcap * (*s / self.softcap).tanh());
            }
            let max = scores.iter().fold(self.max[row], |m, &s| m.max(s));
            let base = if max == f32::NEG_INFINITY { 0.0 } else { max };
            self.scale[row] = if slots.is_empty() {
                1.0
            } else {
                exp_scalar(self.max[row] - base)
            };
            self.max[row] = max;
            scores.iter_mut().for_each(|s| *s = exp_scalar(*s - base));
            self.sum[row] = self.sum[row] * self.scale[row] + scores.iter().sum::<f32>();
        }
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        let rows = self.slots.len();
        assert!(rows <= TILE_ROWS && self.scores.len() == rows * PAGE_TOKENS);
        assert!(self.max.len() == rows && self.sum.len() == rows && self.scale.len() == rows);
        // Maxima of all rows first, then all exponentials: the rows' short chains of dependent
        // operations run side by side.
        let mut base = [0f32; 16];
        let mut change = [0f32; 16];
        for (row, scores) in self.scores.chunks_exact_mut(PAGE_TOKENS).enumerate() {
            let slots = &self.slots[row];
            if slots.is_empty() {
                continue;
            }
            let mut s = load_page(l, scores);
            if self.softcap != 0.0 || slots.len() < PAGE_TOKENS {
                cap_and_hide(l, self.softcap, slots, &mut s);
                store_page(l, scores, &s);
            }
            let before = self.max[row];
            let max = before.max(l.reduce_max(pairwise::<L>(s, |a, b| l.max(a, b))));
            // Scores of -inf alone leave the maximum at -inf, to which there is no difference.
            base[row] = if max == f32::NEG_INFINITY { 0.0 } else { max };
            change[row] = before - base[row];
            self.max[row] = max;
        }
        for (row, scores) in self.scores.chunks_exact_mut(PAGE_TOKENS).enumerate() {
            if self.slots[row].is_empty() {
                continue;
            }
            let mut s = load_page(l, scores);
            for s in &mut s[..PAGE_TOKENS / L::WIDTH] {
                *s = l.exp_nonpositive(l.sub(*s, l.splat(base[row])));
            }
            store_page(l, scores, &s);
            base[row] = l.reduce_add(pairwise::<L>(s, |a, b| l.add(a, b)));
        }
        // Rows that see nothing have a change of 0 and a sum of 0: nothing happens to them.
        let mut scale = [0f32; 16];
        l.store(&mut scale, l.exp_nonpositive(l.load(&change)));
        for row in 0..rows {
            self.scale[row] = scale[row];
            self.sum[row] = self.sum[row] * scale[row] + base[row];
        }
    }
}

/// Applies the soft cap and gives the slots that a row does not see a score of -inf.
#[inline(always)]
fn cap_and_hide<L: Lanes>(l: L, softcap: f32, slots: &Range<usize>, s: &mut [L::V; 8]) {
    let (cap, inverse) = (l.splat(softcap), l.splat(1.0 / softcap));
    for (i, s) in s[..PAGE_TOKENS / L::WIDTH].iter_mut().enumerate() {
        if softcap != 0.0 {
            *s = l.mul(cap, l.tanh(l.mul(*s, inverse)));
        }
        let first = (i * L::WIDTH) as i32;
        let (lo, hi) = (slots.start as i32 - first, slots.end as i32 - first);
        *s = l.keep(*s, lo, hi, l.splat(f32::NEG_INFINITY));
    }
}

/// The 64 numbers of a row of scores; of the 8 vectors only as many are used as that takes.
#[inline(always)]
fn load_page<L: Lanes>(l: L, scores: &[f32]) -> [L::V; 8] {
    let mut s = [l.splat(0.0); 8];
    for (s, from) in s
        .iter_mut()
        .zip(scores[..PAGE_TOKENS].chunks_exact(L::WIDTH))
    {
        *s = l.load(from);
    }
    s
}

#[inline(always)]
fn store_page<L: Lanes>(l: L, scores: &mut [f32], s: &[L::V; 8]) {
    for (&s, to) in s
        .iter()
        .zip(scores[..PAGE_TOKENS].chunks_exact_mut(L::WIDTH))
    {
        l.store(to, s);
    }
}

/// Folds the vectors of a page's scores in halves.
#[inline(always)]
fn pairwise<L: Lanes>(mut v: [L::V; 8], fold: impl Fn(L::V, L::V) -> L::V) -> L::V {
    let mut half = PAGE_TOKENS / L::WIDTH / 2;
    while half > 0 {
        for i in 0..half {
            v[i] = fold(v[i], v[i + half]);
        }
        half /= 2;
    }
    v[0]
}
