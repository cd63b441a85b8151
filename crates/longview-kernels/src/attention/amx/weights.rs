//! What is done beside the softmax of some rows.

use std::arch::x86_64::__m512;
use std::ops::Range;

use super::products::Round;
use super::room::TOKEN_STEPS;
use super::split::{FLOAT_PARTS, split_floats};
use crate::amx::{ROW, TILE};
use crate::attention::softmax::Beside;
use crate::lanes::Avx512;

/// Writes weights as rows of tiles.
pub(super) struct Splitting {
    pub to: *mut u8,
}

impl Beside<Avx512> for Splitting {
    const KEEPS: bool = false;

    #[inline(always)]
    fn rows(&mut self, _l: Avx512, _rows: Range<usize>, _of: usize) {}

    #[inline(always)]
    fn top(&mut self, _l: Avx512, _row: usize) {}

    #[inline(always)]
    fn row(&mut self, _l: Avx512, _row: usize) {}

    #[inline(always)]
    fn vector(&mut self, _l: Avx512, _at: usize) {}

    #[inline(always)]
    fn weights(&mut self, _l: Avx512, row: usize, weights: &[__m512; 8]) {
        for step in 0..TOKEN_STEPS {
            let (a, b) = (weights[2 * step], weights[2 * step + 1]);
            // SAFETY: there is room for the rows.
            unsafe {
                let to = self.to.add(step * FLOAT_PARTS * TILE + row * ROW);
                split_floats(a, b, to);
            }
        }
    }
}

/// The same, and multiplies meanwhile.
pub(super) struct Multiplying<'a> {
    pub splitting: Splitting,
    pub round: &'a Round,
    pub pass: usize,
}

impl Beside<Avx512> for Multiplying<'_> {
    const KEEPS: bool = false;

    #[inline(always)]
    fn rows(&mut self, _l: Avx512, _rows: Range<usize>, _of: usize) {}

    #[inline(always)]
    fn top(&mut self, _l: Avx512, row: usize) {
        self.round.add_to(0, row);
    }

    #[inline(always)]
    fn row(&mut self, _l: Avx512, row: usize) {
        self.pass = row + 1;
        self.round.load(self.pass);
    }

    #[inline(always)]
    fn vector(&mut self, _l: Avx512, at: usize) {
        self.round.add_to(self.pass, at);
    }

    #[inline(always)]
    fn weights(&mut self, l: Avx512, row: usize, weights: &[__m512; 8]) {
        self.splitting.weights(l, row, weights);
    }
}
