//! Attention over part of the keys, in a form that parts can be merged from.

use std::ops::Range;

use crate::lanes::{self, Kernel, Lanes, exp_scalar};
use crate::page::VALUE_PADDING;
use crate::{Floats, Isa};

/// The unnormalised running softmax of several rows over some set of keys.
///
/// With `m` near the largest score of a row so far, at most 8 below it: `sum = Σ exp(score - m)` and
/// `acc = Σ exp(score - m) · value`. A row that has seen no key has `m = -inf`, `sum = 0`, `acc = 0`.
/// Parts over disjoint keys merge exactly (up to rounding) with [`Partials::merge`].
pub struct Partials {
    rows: usize,
    v_dim: usize,
    acc: Floats,
    max: Vec<f32>,
    sum: Vec<f32>,
    /// Whether some row may have seen a key.
    begun: bool,
}

impl Partials {
    /// `rows` rows of `v_dim` channels that have seen no key.
    pub fn new(rows: usize, v_dim: usize) -> Partials {
        let mut partials = Partials {
            rows: 0,
            v_dim: 0,
            acc: Floats::default(),
            max: Vec::new(),
            sum: Vec::new(),
            begun: false,
        };
        partials.reset(rows, v_dim);
        partials
    }

    /// Becomes `rows` rows of `v_dim` channels that have seen no key; memory is kept for reuse.
    pub fn reset(&mut self, rows: usize, v_dim: usize) {
        (self.rows, self.v_dim, self.begun) = (rows, v_dim, false);
        let numbers = rows * self.stride();
        self.acc.sized(numbers).fill(0.0);
        self.max.clear();
        self.max.resize(rows, f32::NEG_INFINITY);
        self.sum.clear();
        self.sum.resize(rows, 0.0);
    }

    /// Whether no row has seen a key: what is attended to next may be attended to here, with
    /// [`super::attend_further`], and need not be merged.
    pub fn is_fresh(&self) -> bool {
        !self.begun
    }

    /// Rows held.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Channels of a value.
    pub fn v_dim(&self) -> usize {
        self.v_dim
    }

    /// The weighted sum of values of a row, `[v_dim]`, not divided by [`Partials::sum`].
    pub fn acc(&self, row: usize) -> &[f32] {
        &self.acc[row * self.stride()..][..self.v_dim]
    }

    /// What the scores of every row are compared with, at most 8 below the largest, `[rows]`.
    pub fn max(&self) -> &[f32] {
        &self.max
    }

    /// `Σ exp(score - max)` of every row, `[rows]`.
    pub fn sum(&self) -> &[f32] {
        &self.sum
    }

    /// The logarithm of `Σ exp(score)` of a row; `-inf` when it has seen no key.
    pub fn log_sum_exp(&self, row: usize) -> f32 {
        self.max[row] + self.sum[row].ln()
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        4 * (self.acc.capacity() + self.max.capacity() + self.sum.capacity())
    }

    /// Takes over one row from outside, for example from another machine: `acc [v_dim]`, what
    /// scores were compared with and the sum, in this type's own terms.
    ///
    /// # Panics
    /// When `acc` has another length than `v_dim`, or there is no such row.
    pub fn set_row(&mut self, row: usize, acc: &[f32], max: f32, sum: f32) {
        let (stride, v_dim) = (self.stride(), self.v_dim);
        self.begun = true;
        self.acc[row * stride..][..v_dim].copy_from_slice(acc);
        self.max[row] = max;
        self.sum[row] = sum;
    }

    /// Adds the keys of `next` to the keys of `self`, row by row. Merging is not associative in
    /// the last bits: merge spans from left to right.
    ///
    /// # Panics
    /// When the shapes differ.
    pub fn merge(&mut self, isa: Isa, next: &Partials) {
        self.merge_rows(isa, next, 0..next.rows);
    }

    /// The same with the rows `rows` of `next`, of which there must be as many as in `self`.
    ///
    /// # Panics
    /// When the shapes differ or `next` has no such rows.
    pub fn merge_rows(&mut self, isa: Isa, next: &Partials, rows: Range<usize>) {
        assert_eq!(
            (self.rows, self.v_dim),
            (rows.len(), next.v_dim),
            "partials of one shape"
        );
        assert!(rows.end <= next.rows, "rows that exist");
        let stride = self.stride();
        let numbers = self.rows * stride;
        self.begun |= next.begun;
        lanes::run(
            isa,
            Merge {
                stride,
                acc: &mut self.acc[..numbers],
                max: &mut self.max,
                sum: &mut self.sum,
                next_acc: &next.acc[rows.start * stride..][..numbers],
                next_max: &next.max[rows.clone()],
                next_sum: &next.sum[rows],
            },
        );
    }

    /// Copies the rows `rows` of `from` over those from `at` on.
    ///
    /// # Panics
    /// When channels differ or there are no such rows.
    pub fn copy_rows(&mut self, at: usize, from: &Partials, rows: Range<usize>) {
        assert_eq!(self.v_dim, from.v_dim, "partials of one shape");
        let to = at..at + rows.len();
        assert!(
            rows.end <= from.rows && to.end <= self.rows,
            "rows that exist"
        );
        self.begun |= from.begun;
        let stride = self.stride();
        let numbers = |rows: &Range<usize>| rows.start * stride..rows.end * stride;
        self.acc[numbers(&to)].copy_from_slice(&from.acc[numbers(&rows)]);
        self.max[to.clone()].copy_from_slice(&from.max[rows.clone()]);
        self.sum[to].copy_from_slice(&from.sum[rows]);
    }

    /// Writes the attention output, `[rows][v_dim]`. `sinks` holds one logit a row that takes part
    /// in the denominator only. A row that has seen no key gives zeros.
    ///
    /// # Panics
    /// When a length does not follow from the shape.
    pub fn finish(&self, isa: Isa, sinks: Option<&[f32]>, out: &mut [f32]) {
        self.finish_rows(isa, 0..self.rows, sinks, out);
    }

    /// The same for the rows `rows`; `sinks` and `out` are theirs.
    ///
    /// # Panics
    /// When a length does not follow from the shape, or there are no such rows.
    pub fn finish_rows(
        &self,
        isa: Isa,
        rows: Range<usize>,
        sinks: Option<&[f32]>,
        out: &mut [f32],
    ) {
        assert!(rows.end <= self.rows, "rows that exist");
        assert_eq!(
            out.len(),
            rows.len() * self.v_dim,
            "an output of [rows][v_dim]"
        );
        assert!(
            sinks.is_none_or(|s| s.len() == rows.len()),
            "one sink a row"
        );
        lanes::run(
            isa,
            Finish {
                partials: self,
                first: rows.start,
                sinks,
                out,
            },
        );
    }

    /// What the accumulated values of a row are multiplied with, given its sink; `None` for a row that
    /// has seen no key.
    fn factor(&self, row: usize, sink: Option<f32>) -> Option<f32> {
        match sink {
            _ if self.sum[row] == 0.0 => None,
            None => Some(1.0 / self.sum[row]),
            Some(sink) => {
                let max = self.max[row].max(sink);
                let scale = exp_scalar(self.max[row] - max);
                Some(scale / (self.sum[row] * scale + exp_scalar(sink - max)))
            }
        }
    }

    pub(super) fn stride(&self) -> usize {
        self.v_dim.next_multiple_of(VALUE_PADDING)
    }

    /// The state, writable: acc `[rows][stride]`, max `[rows]`, sum `[rows]`.
    pub(super) fn parts_mut(&mut self) -> (&mut [f32], &mut [f32], &mut [f32]) {
        let numbers = self.rows * self.stride();
        self.begun = true;
        (&mut self.acc[..numbers], &mut self.max, &mut self.sum)
    }
}

struct Merge<'a> {
    stride: usize,
    acc: &'a mut [f32],
    max: &'a mut [f32],
    sum: &'a mut [f32],
    next_acc: &'a [f32],
    next_max: &'a [f32],
    next_sum: &'a [f32],
}

impl Merge<'_> {
    /// Calls `blend(acc, next_acc, scale, next_scale)` for every row that `next` adds keys to.
    #[inline(always)]
    fn each_row(self, mut blend: impl FnMut(&mut [f32], &[f32], f32, f32)) {
        let rows = self.acc.chunks_exact_mut(self.stride.max(1));
        for (row, acc) in rows.enumerate() {
            let (max, next_max) = (self.max[row], self.next_max[row]);
            if self.next_sum[row] == 0.0 {
                continue;
            }
            let next_acc = &self.next_acc[row * self.stride..][..self.stride];
            if self.sum[row] == 0.0 {
                acc.copy_from_slice(next_acc);
                self.max[row] = next_max;
                self.sum[row] = self.next_sum[row];
                continue;
            }
            let merged = max.max(next_max);
            let (scale, next_scale) = (exp_scalar(max - merged), exp_scalar(next_max - merged));
            self.max[row] = merged;
            self.sum[row] = self.sum[row] * scale + self.next_sum[row] * next_scale;
            blend(acc, next_acc, scale, next_scale);
        }
    }
}

impl Kernel for Merge<'_> {
    type Output = ();

    fn scalar(self) {
        self.each_row(|acc, next, scale, next_scale| {
            for (a, &n) in acc.iter_mut().zip(next) {
                *a = *a * scale + n * next_scale;
            }
        });
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        self.each_row(
            #[inline(always)]
            |acc, next, scale, next_scale| {
                let (scale, next_scale) = (l.splat(scale), l.splat(next_scale));
                for (a, n) in acc
                    .chunks_exact_mut(L::WIDTH)
                    .zip(next.chunks_exact(L::WIDTH))
                {
                    let scaled = l.mul(l.load(n), next_scale);
                    let merged = l.fma(l.load(a), scale, scaled);
                    l.store(a, merged);
                }
            },
        );
    }
}

struct Finish<'a> {
    partials: &'a Partials,
    /// The row that `out` begins with.
    first: usize,
    sinks: Option<&'a [f32]>,
    /// `[rows][v_dim]`
    out: &'a mut [f32],
}

impl Finish<'_> {
    /// Calls `scale(out, acc, factor)` for every row.
    #[inline(always)]
    fn each_row(self, scale: impl Fn(&mut [f32], &[f32], f32)) {
        let v_dim = self.partials.v_dim.max(1);
        for (at, out) in self.out.chunks_exact_mut(v_dim).enumerate() {
            let row = self.first + at;
            match self.partials.factor(row, self.sinks.map(|sinks| sinks[at])) {
                Some(factor) => scale(out, self.partials.acc(row), factor),
                None => out.fill(0.0),
            }
        }
    }
}

impl Kernel for Finish<'_> {
    type Output = ();

    fn scalar(self) {
        self.each_row(|out, acc, factor| {
            for (out, x) in out.iter_mut().zip(acc) {
                *out = x * factor;
            }
        });
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        self.each_row(
            #[inline(always)]
            |out, acc, factor| {
                let wide = l.splat(factor);
                let mut out = out.chunks_exact_mut(L::WIDTH);
                let mut acc = acc.chunks_exact(L::WIDTH);
                for (out, x) in out.by_ref().zip(acc.by_ref()) {
                    l.store(out, l.mul(l.load(x), wide));
                }
                for (out, x) in out.into_remainder().iter_mut().zip(acc.remainder()) {
                    *out = x * factor;
                }
            },
        );
    }
}
