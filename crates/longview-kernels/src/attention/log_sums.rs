//! What the softmax of some rows divides by, gathered page by page.

use std::ops::Range;

use super::softmax::{Beside, SoftmaxTile};
use crate::Isa;
use crate::lanes::{self, Kernel, Lanes};
use crate::page::PAGE_TOKENS;

/// Sums of exponentials of the scores of several rows, as logarithms.
#[derive(Default)]
pub struct LogSums {
    max: Vec<f32>,
    sum: Vec<f32>,
    scale: Vec<f32>,
}

impl LogSums {
    /// Becomes those of `rows` rows that have seen nothing.
    pub fn reset(&mut self, rows: usize) {
        let Self { max, sum, scale } = self;
        for (of_rows, begin) in [(max, f32::NEG_INFINITY), (sum, 0.0), (scale, 1.0)] {
            of_rows.clear();
            of_rows.resize(rows, begin);
        }
    }

    /// Adds a page's `scores [rows][64]`, of which each row sees some `slots`. They become logits: with the soft
    /// cap `softcap`, unless that is 0, and then with `log_weights [64]`, unless there are none. What a row does not
    /// see may become `-inf`.
    ///
    /// # Panics
    /// When a length does not follow from the rows.
    pub fn add(
        &mut self,
        isa: Isa,
        softcap: f32,
        log_weights: &[f32],
        slots: &[Range<usize>],
        scores: &mut [f32],
    ) {
        assert_eq!(slots.len(), self.max.len(), "slots for each row");
        assert_eq!(
            scores.len(),
            slots.len() * PAGE_TOKENS,
            "scores of [rows][64]"
        );
        let tile = SoftmaxTile {
            scores,
            slots,
            softcap,
            log_weights,
            max: &mut self.max,
            sum: &mut self.sum,
            scale: &mut self.scale,
            next: super::fetch::Fetch::NOTHING,
        };
        lanes::run(isa, Add(tile));
    }

    /// The logarithm of a row's sum; `-inf` where all it saw is, no number where something is none.
    pub fn of(&self, row: usize) -> f32 {
        self.max[row] + self.sum[row].ln()
    }
}

struct Add<'a>(SoftmaxTile<'a>);

impl Kernel for Add<'_> {
    type Output = ();

    fn scalar(self) {
        let SoftmaxTile {
            softcap,
            log_weights,
            ..
        } = self.0;
        let rows = self.0.scores.chunks_exact_mut(PAGE_TOKENS);
        for (scores, slots) in rows.zip(self.0.slots) {
            for (slot, score) in scores.iter_mut().enumerate() {
                if softcap != 0.0 {
                    *score = softcap * (*score / softcap).tanh();
                }
                *score += log_weights.get(slot).unwrap_or(&0.0);
                if !slots.contains(&slot) {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
        // These become weights.
        let mut scores = self.0.scores.to_vec();
        let tile = SoftmaxTile {
            scores: &mut scores,
            softcap: 0.0,
            log_weights: &[],
            ..self.0
        };
        tile.scalar();
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        self.0.run(l, Nothing);
    }
}

/// Nothing is done beside the softmax, and scores stay what they are.
struct Nothing;

impl<L: Lanes> Beside<L> for Nothing {
    const KEEPS: bool = false;

    #[inline(always)]
    fn rows(&mut self, _l: L, _rows: Range<usize>, _of: usize) {}

    #[inline(always)]
    fn top(&mut self, _l: L, _row: usize) {}

    #[inline(always)]
    fn row(&mut self, _l: L, _row: usize) {}

    #[inline(always)]
    fn vector(&mut self, _l: L, _at: usize) {}

    #[inline(always)]
    fn weights(&mut self, _l: L, _row: usize, _weights: &[L::V; 8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores of two pages that three rows see some of, with some far above what came before.
    fn pages() -> [Vec<f32>; 2] {
        let page = |seed: usize| {
            let score = |i: usize| ((i * 37 + seed * 11) % 101) as f32 * 0.3 - 9.0;
            (0..3 * PAGE_TOKENS).map(score).collect()
        };
        [page(0), page(1).iter().map(|s: &f32| s + 12.0).collect()]
    }

    #[test]
    fn a_sum_is_that_of_all_a_row_sees() {
        let log_weights: Vec<f32> = (0..PAGE_TOKENS).map(|i| (i % 3) as f32).collect();
        let slots = [[0..64, 3..64, 5..5], [0..64, 0..33, 7..8]];
        for isa in Isa::available() {
            for (softcap, added) in [(0.0, &[][..]), (6.0, &[]), (0.0, &log_weights)] {
                let mut sums = LogSums::default();
                let mut exact = [0f64; 3];
                sums.reset(3);
                for (page, slots) in pages().into_iter().zip(&slots) {
                    let mut scores = page.clone();
                    sums.add(isa, softcap, added, slots, &mut scores);
                    for (at, &score) in page.iter().enumerate() {
                        let (row, slot) = (at / PAGE_TOKENS, at % PAGE_TOKENS);
                        if !slots[row].contains(&slot) {
                            continue;
                        }
                        let capped = match softcap {
                            0.0 => score,
                            _ => softcap * (score / softcap).tanh(),
                        };
                        let logit = capped + added.get(slot).unwrap_or(&0.0);
                        assert!((scores[at] - logit).abs() < 1e-4, "{isa} {at}");
                        exact[row] += f64::from(logit).exp();
                    }
                }
                for (row, exact) in exact.into_iter().enumerate() {
                    let off = f64::from(sums.of(row)) - exact.ln();
                    assert!(off.abs() < 1e-5, "{isa} {softcap} {row}: {off}");
                }
            }
        }
    }

    #[test]
    fn what_sees_nothing_has_no_sum_and_what_is_no_number_shows() {
        for isa in Isa::available() {
            let mut sums = LogSums::default();
            sums.reset(2);
            let mut scores = [f32::NEG_INFINITY; 2 * PAGE_TOKENS];
            sums.add(isa, 0.0, &[], &[0..64, 9..9], &mut scores);
            assert_eq!([sums.of(0), sums.of(1)], [f32::NEG_INFINITY; 2], "{isa}");
            (scores[70], scores[80]) = (1.0, f32::NAN);
            sums.add(isa, 0.0, &[], &[0..64, 0..64], &mut scores);
            assert_eq!(sums.of(0), f32::NEG_INFINITY, "{isa}");
            assert!(sums.of(1).is_nan(), "{isa}");
        }
    }
}
