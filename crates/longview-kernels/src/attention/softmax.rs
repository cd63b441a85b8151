//! The running softmax of the scores of some rows against a page.

#![expect(
    clippy::needless_range_loop,
    reason = "several arrays at the same places; iterators over them leave vectors in memory"
)]

use std::ops::Range;

use super::fetch::{Fetch, Pace};
use crate::lanes::{Kernel, Lanes, exp_scalar};
use crate::page::PAGE_TOKENS;

/// Turns the scores of some rows into weights `exp(score - max)`, 0 in the slots a row does not
/// see, and brings the rows' running `max` and `sum` up to date. What was accumulated so far must be
/// multiplied with `scale`: 1 where a row sees no slot.
///
/// `max` follows the largest score at a distance: it becomes the largest of a page when that is more than
/// [`ROOM`] above it, and stays where it is otherwise. So exponentials need not wait for the maximum of the
/// page, and what was accumulated is seldom multiplied at all.
pub(super) struct SoftmaxTile<'a> {
    pub scores: &'a mut [f32],
    pub slots: &'a [Range<usize>],
    pub softcap: f32,
    /// Added to the scores of every row after the soft cap, `[64]`; empty where nothing is.
    pub log_weights: &'a [f32],
    pub max: &'a mut [f32],
    pub sum: &'a mut [f32],
    pub scale: &'a mut [f32],
    pub next: Fetch<'a>,
}

/// What is done between the rows of a softmax.
pub(super) trait Beside<L: Lanes> {
    /// Whether weights take the place of scores.
    const KEEPS: bool;

    /// Before the rows `rows` of `of`.
    fn rows(&mut self, l: L, rows: Range<usize>, of: usize);

    /// Before the largest score of a row is looked for, one of [`TOGETHER`].
    fn top(&mut self, l: L, row: usize);

    /// Before the exponentials of such a row.
    fn row(&mut self, l: L, row: usize);

    /// Before those of one of its vectors.
    fn vector(&mut self, l: L, at: usize);

    /// After them: the row's weights, as many vectors as 64 numbers take.
    fn weights(&mut self, l: L, row: usize, weights: &[L::V; 8]);
}

/// How far a score may be above what is subtracted from it: its exponential, and sums of many, are as
/// exact as others.
pub(super) const ROOM: f32 = 8.0;

/// What scores are compared with after a page whose largest is `top`, when they were with `max`.
#[inline(always)]
pub(super) fn followed(max: f32, top: f32) -> f32 {
    if top > max + ROOM { top } else { max }
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
            let added = self.log_weights.iter().skip(slots.start);
            scores.iter_mut().zip(added).for_each(|(s, x)| *s += x);
            let top = scores.iter().fold(f32::NEG_INFINITY, |m, &s| m.max(s));
            let max = followed(self.max[row], top);
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
        let asking = Asking {
            all: self.next,
            pace: Fetch::NOTHING.pace(1),
            lines: 0,
        };
        self.run(l, asking);
    }
}

/// Asks for memory, a share of it before every row.
struct Asking<'a> {
    all: Fetch<'a>,
    pace: Pace,
    /// For each of the rows that come.
    lines: usize,
}

impl<L: Lanes> Beside<L> for Asking<'_> {
    const KEEPS: bool = true;

    #[inline(always)]
    fn rows(&mut self, _l: L, rows: Range<usize>, of: usize) {
        let share = self.all.part(rows.start, rows.end, of);
        self.lines = share.lines().div_ceil(rows.len());
        self.pace = share.pace(self.lines * rows.len());
    }

    #[inline(always)]
    fn top(&mut self, _l: L, _row: usize) {}

    #[inline(always)]
    fn row(&mut self, l: L, _row: usize) {
        for _ in 0..self.lines {
            self.pace.next(l);
        }
    }

    #[inline(always)]
    fn vector(&mut self, _l: L, _at: usize) {}

    #[inline(always)]
    fn weights(&mut self, _l: L, _row: usize, _weights: &[L::V; 8]) {}
}

/// Rows whose maxima and sums are found together.
pub(super) const TOGETHER: usize = 4;

impl SoftmaxTile<'_> {
    /// The softmax of all rows, with other work beside it instead of asking for memory.
    #[inline(always)]
    pub(super) fn run<L: Lanes, B: Beside<L>>(mut self, l: L, mut beside: B) {
        let rows = self.slots.len();
        self.check();
        for first in (0..rows).step_by(TOGETHER) {
            let end = rows.min(first + TOGETHER);
            beside.rows(l, first..end, rows);
            match end - first {
                1 => self.any::<L, B, 1>(l, first, &mut beside),
                2 => self.any::<L, B, 2>(l, first, &mut beside),
                3 => self.any::<L, B, 3>(l, first, &mut beside),
                _ => self.any::<L, B, TOGETHER>(l, first, &mut beside),
            }
        }
    }

    /// The same for [`TOGETHER`] rows.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn run_together<L: Lanes, B: Beside<L>>(mut self, l: L, mut beside: B) {
        assert_eq!(self.slots.len(), TOGETHER);
        self.check();
        self.any::<L, B, TOGETHER>(l, 0, &mut beside);
    }

    fn check(&mut self) {
        let rows = self.slots.len();
        assert!(self.scores.len() == rows * PAGE_TOKENS);
        assert!(self.max.len() == rows && self.sum.len() == rows && self.scale.len() == rows);
        assert!(matches!(self.log_weights.len(), 0 | PAGE_TOKENS));
        self.scale.fill(1.0);
    }

    #[inline(always)]
    fn any<L: Lanes, B: Beside<L>, const N: usize>(&mut self, l: L, first: usize, beside: &mut B) {
        let is_plain = self.softcap == 0.0
            && self.log_weights.is_empty()
            && (self.slots[first..first + N].iter()).all(|slots| slots.len() == PAGE_TOKENS);
        match is_plain {
            true => self.some::<L, B, N, true>(l, first, beside),
            false => self.some::<L, B, N, false>(l, first, beside),
        }
    }

    /// The `N` rows from `first` on: the maxima of all first, then all exponentials, so that the rows'
    /// chains of dependent operations run side by side. `PLAIN` where nothing is capped, weighted or hidden.
    #[inline(always)]
    fn some<L: Lanes, B: Beside<L>, const N: usize, const PLAIN: bool>(
        &mut self,
        l: L,
        first: usize,
        beside: &mut B,
    ) {
        for r in 0..N {
            if !PLAIN {
                let scores = &mut self.scores[(first + r) * PAGE_TOKENS..][..PAGE_TOKENS];
                let slots = &self.slots[first + r];
                cap_and_hide(l, self.softcap, self.log_weights, slots, scores);
            }
        }
        let scores = self.scores[first * PAGE_TOKENS..][..N * PAGE_TOKENS].as_mut_ptr();
        let mut top = [l.splat(f32::NEG_INFINITY); TOGETHER];
        for r in 0..N {
            // SAFETY: there are N rows of 64 scores.
            let v = unsafe { load(l, scores.add(r * PAGE_TOKENS)) };
            beside.top(l, r);
            top[r] = folded::<L>(v, |a, b| l.max(a, b));
        }
        let top = l.tops(top);
        // Only now and then is there anything to do before the exponentials, which therefore begin before
        // the maxima are known: the processor foresees it.
        let are_near = (0..N).all(|r| top[r] <= self.max[first + r] + ROOM);
        if !are_near {
            self.follow::<L, N>(l, first, &top);
        }
        let mut sum = [l.splat(0.0); TOGETHER];
        for r in 0..N {
            beside.row(l, r);
            // Scores of -inf alone leave the maximum at -inf, to which there is no difference.
            let max = self.max[first + r];
            let base = l.splat(if max == f32::NEG_INFINITY { 0.0 } else { max });
            // SAFETY: there are N rows of 64 scores.
            let scores = unsafe { scores.add(r * PAGE_TOKENS) };
            // SAFETY: as above.
            let mut v = unsafe { load(l, scores) };
            for i in 0..PAGE_TOKENS / L::WIDTH {
                beside.vector(l, i);
                v[i] = l.exp_near(l.sub(v[i], base));
                if B::KEEPS {
                    // SAFETY: as above.
                    unsafe { l.store_ptr(scores.add(i * L::WIDTH), v[i]) };
                }
            }
            sum[r] = folded::<L>(v, |a, b| l.add(a, b));
            beside.weights(l, first + r, &v);
        }
        let sum = l.sums(sum);
        for r in 0..N {
            self.sum[first + r] += sum[r];
        }
    }

    /// Lets the maxima of `N` rows follow those of the page, and scales what was summed so far.
    #[inline(always)]
    fn follow<L: Lanes, const N: usize>(&mut self, l: L, first: usize, top: &[f32; TOGETHER]) {
        let mut change = [0f32; 16];
        for r in 0..N {
            let before = self.max[first + r];
            let max = followed(before, top[r]);
            if max > before {
                change[r] = before - max;
            }
            self.max[first + r] = max;
        }
        let mut scale = [0f32; 16];
        l.store(&mut scale, l.exp_near(l.load(&change)));
        self.scale[first..first + N].copy_from_slice(&scale[..N]);
        for r in 0..N {
            self.sum[first + r] *= scale[r];
        }
    }
}

/// Applies the soft cap and what is added, and gives the slots that a row does not see a score of -inf.
#[inline(always)]
fn cap_and_hide<L: Lanes>(
    l: L,
    softcap: f32,
    log_weights: &[f32],
    slots: &Range<usize>,
    scores: &mut [f32],
) {
    let (cap, inverse) = (l.splat(softcap), l.splat(1.0 / softcap));
    for (i, scores) in scores.chunks_exact_mut(L::WIDTH).enumerate() {
        let mut s = l.load(scores);
        if softcap != 0.0 {
            s = l.mul(cap, l.tanh(l.mul(s, inverse)));
        }
        if let Some(added) = log_weights.get(i * L::WIDTH..(i + 1) * L::WIDTH) {
            s = l.add(s, l.load(added));
        }
        let first = (i * L::WIDTH) as i32;
        let (lo, hi) = (slots.start as i32 - first, slots.end as i32 - first);
        l.store(scores, l.keep(s, lo, hi, l.splat(f32::NEG_INFINITY)));
    }
}

/// The 64 numbers at `p`; of the 8 vectors only as many are used as that takes.
///
/// # Safety
/// They are there to be read.
#[inline(always)]
unsafe fn load<L: Lanes>(l: L, p: *const f32) -> [L::V; 8] {
    let mut v = [l.splat(0.0); 8];
    for i in 0..PAGE_TOKENS / L::WIDTH {
        // SAFETY: the caller vouches for the numbers.
        v[i] = unsafe { l.load_ptr(p.add(i * L::WIDTH)) };
    }
    v
}

/// The vectors of 64 numbers folded in halves.
#[inline(always)]
fn folded<L: Lanes>(mut v: [L::V; 8], fold: impl Fn(L::V, L::V) -> L::V) -> L::V {
    if L::WIDTH == 8 {
        for i in 0..4 {
            v[i] = fold(v[i], v[i + 4]);
        }
    }
    fold(fold(v[0], v[2]), fold(v[1], v[3]))
}
