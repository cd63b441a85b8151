//! Sparse pages as half-precision numbers: bitmaps say where the numbers go.

use crate::lanes::{Kernel, Lanes, SparseRows};
use crate::page::{PAGE_TOKENS, bitmap_words, word_at};

/// Rows of half-precision numbers `to [rows][width]` from a bitmap and what it has bits for, one row after
/// another, while the same of the next page is being fetched.
pub(super) struct Expand<'a> {
    /// Numbers of a row that the bitmap has bits for.
    pub bits: usize,
    /// Numbers of a row; those beyond `bits` are 0. A multiple of 16.
    pub width: usize,
    /// `[rows][words of 64 bits]`, then the numbers in half precision, then more bytes.
    pub from: &'a [u8],
    /// Bytes of halves.
    pub to: &'a mut [u8],
    pub next: &'a [u8],
}

impl<'a> Expand<'a> {
    /// The keys of a page, `[head_dim][64]`.
    pub(super) fn keys(page_k: &'a [u8], to: &'a mut [u8], next: &'a [u8]) -> Expand<'a> {
        Expand {
            bits: PAGE_TOKENS,
            width: PAGE_TOKENS,
            from: page_k,
            to,
            next,
        }
    }

    /// The values of a page, `[64][stride]`, of which `v_dim` are there.
    pub(super) fn values(
        page_v: &'a [u8],
        v_dim: usize,
        to: &'a mut [u8],
        next: &'a [u8],
    ) -> Expand<'a> {
        Expand {
            bits: v_dim,
            width: to.len() / (2 * PAGE_TOKENS),
            from: page_v,
            to,
            next,
        }
    }
}

impl Kernel for Expand<'_> {
    type Output = ();

    fn scalar(self) {
        let words = bitmap_words(self.bits);
        let rows = self.to.len() / (2 * self.width);
        let (bitmaps, mut numbers) = self.from.split_at(rows * words * 8);
        for (row, to) in self.to.chunks_exact_mut(2 * self.width).enumerate() {
            for (at, to) in to.chunks_exact_mut(2).enumerate() {
                let stays =
                    at < self.bits && word_at(bitmaps, row * words + at / 64) >> (at % 64) & 1 == 1;
                if stays {
                    let (half, rest) = numbers.split_at(2);
                    to.copy_from_slice(half);
                    numbers = rest;
                } else {
                    to.fill(0);
                }
            }
        }
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        let words = bitmap_words(self.bits);
        assert!(self.width.is_multiple_of(16) && self.width >= self.bits);
        let rows = self.to.len() / (2 * self.width);
        let (bitmaps, numbers) = self.from.split_at(rows * words * 8);
        let rows = SparseRows {
            bitmaps: bitmaps.as_ptr(),
            words,
            numbers: numbers.as_ptr(),
            end: numbers.as_ptr_range().end,
            to: self.to.as_mut_ptr(),
            rows,
            width: self.width,
            next: match self.next {
                [] => bitmaps.as_ptr(),
                next => next.as_ptr(),
            },
            next_step: self.next.len() / (rows * words).max(1),
        };
        // SAFETY: `to` holds `rows` rows of `width` halves, `bitmaps` as many of words; a row's words cover
        // its width but for less than the 64 of a word more.
        unsafe { l.expand_rows(&rows) };
    }
}
