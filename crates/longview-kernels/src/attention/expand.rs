//! Sparse pages as f32: bitmaps say where the numbers go.

use crate::lanes::{Kernel, Lanes};
use crate::page::{PAGE_TOKENS, bitmap_words, half_at, word_at};

/// Rows of numbers `to [rows][width]` from a bitmap and what it has bits for, one row after another.
pub(super) struct Expand<'a> {
    /// Numbers of a row that the bitmap has bits for.
    pub bits: usize,
    /// Numbers of a row; those beyond `bits` are 0. A multiple of 16.
    pub width: usize,
    /// `[rows][words of 64 bits]`, then the numbers in half precision, then 32 bytes.
    pub from: &'a [u8],
    pub to: &'a mut [f32],
}

impl<'a> Expand<'a> {
    /// The keys of a page, `[head_dim][64]`.
    pub(super) fn keys(page_k: &'a [u8], to: &'a mut [f32]) -> Expand<'a> {
        Expand {
            bits: PAGE_TOKENS,
            width: PAGE_TOKENS,
            from: page_k,
            to,
        }
    }

    /// The values of a page, `[64][stride]`, of which `v_dim` are there.
    pub(super) fn values(page_v: &'a [u8], v_dim: usize, to: &'a mut [f32]) -> Expand<'a> {
        Expand {
            bits: v_dim,
            width: to.len() / PAGE_TOKENS,
            from: page_v,
            to,
        }
    }
}

impl Kernel for Expand<'_> {
    type Output = ();

    fn scalar(self) {
        let words = bitmap_words(self.bits);
        let rows = self.to.len() / self.width;
        let (bitmaps, numbers) = self.from.split_at(rows * words * 8);
        let mut next = 0;
        for (row, to) in self.to.chunks_exact_mut(self.width).enumerate() {
            for (at, to) in to.iter_mut().enumerate() {
                let stays =
                    at < self.bits && word_at(bitmaps, row * words + at / 64) >> (at % 64) & 1 == 1;
                *to = if stays { half_at(numbers, next) } else { 0.0 };
                next += usize::from(stays);
            }
        }
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        let words = bitmap_words(self.bits);
        assert!(self.width.is_multiple_of(16) && self.width >= self.bits);
        let rows = self.to.len() / self.width;
        let (bitmaps, numbers) = self.from.split_at(rows * words * 8);
        // As many numbers as there are bits, and what a last vector reads beyond them.
        let set: usize = (0..rows * words)
            .map(|at| word_at(bitmaps, at).count_ones() as usize)
            .sum();
        assert!(
            numbers.len() >= set * 2 + 2 * L::WIDTH,
            "a number for every bit"
        );
        let mut next = numbers.as_ptr();
        for (row, to) in self.to.chunks_exact_mut(self.width).enumerate() {
            for (at, to) in to.chunks_exact_mut(L::WIDTH).enumerate() {
                let first = at * L::WIDTH;
                let mask = if first < words * 64 {
                    let word = word_at(bitmaps, row * words + first / 64) >> (first % 64);
                    (word & ((1 << L::WIDTH) - 1)) as u32
                } else {
                    0
                };
                // SAFETY: `next` has passed one number for every bit before, so a vector more is
                // inside `numbers`, checked above.
                l.store(to, unsafe { l.expand_f16_ptr(next, mask) });
                next = next.wrapping_add(2 * mask.count_ones() as usize);
            }
        }
    }
}
