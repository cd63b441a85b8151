//! Attention over part of the keys, in a form that parts can be merged from.

use std::ops::Range;

use crate::lanes::{self, Kernel, Lanes, exp_scalar};
use crate::page::VALUE_PADDING;
use crate::{AlignedBytes, Isa};

/// The unnormalised running softmax of several rows over some set of keys.
///
/// With `m` the largest score of a row so far: `sum = Σ exp(score - m)` and
/// `acc = Σ exp(score - m) · value`. A row that has seen no key has `m = -inf`, `sum = 0`, `acc = 0`.
/// Parts over disjoint keys merge exactly (up to rounding) with [`Partials::merge`].
pub struct Partials {
    rows: usize,
    v_dim: usize,
    acc: AlignedFloats,
    max: Vec<f32>,
    sum: Vec<f32>,
}

impl Partials {
    /// `rows` rows of `v_dim` channels that have seen no key.
    pub fn new(rows: usize, v_dim: usize) -> Partials {
        let mut partials = Partials {
            rows: 0,
            v_dim: 0,
            acc: AlignedFloats::default(),
            max: Vec::new(),
            sum: Vec::new(),
        };
        partials.reset(rows, v_dim);
        partials
    }

    /// Becomes `rows` rows of `v_dim` channels that have seen no key; memory is kept for reuse.
    pub fn reset(&mut self, rows: usize, v_dim: usize) {
        (self.rows, self.v_dim) = (rows, v_dim);
        let numbers = rows * self.stride();
        self.acc.reserve(numbers);
        self.acc.floats_mut()[..numbers].fill(0.0);
        self.max.clear();
        self.max.resize(rows, f32::NEG_INFINITY);
        self.sum.clear();
        self.sum.resize(rows, 0.0);
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
        &self.acc.floats()[row * self.stride()..][..self.v_dim]
    }

    /// The largest score of every row, `[rows]`.
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
        4 * (self.acc.floats().len() + self.max.capacity() + self.sum.capacity())
    }

    /// Takes over one row from outside, for example from another machine: `acc [v_dim]`, the
    /// largest score and the sum, in this type's own terms.
    ///
    /// # Panics
    /// When `acc` has another length than `v_dim`, or there is no such row.
    pub fn set_row(&mut self, row: usize, acc: &[f32], max: f32, sum: f32) {
        let (stride, v_dim) = (self.stride(), self.v_dim);
        self.acc.floats_mut()[row * stride..][..v_dim].copy_from_slice(acc);
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
        lanes::run(
            isa,
            Merge {
                stride,
                acc: &mut self.acc.floats_mut()[..numbers],
                max: &mut self.max,
                sum: &mut self.sum,
                next_acc: &next.acc.floats()[rows.start * stride..][..numbers],
                next_max: &next.max[rows.clone()],
                next_sum: &next.sum[rows],
            },
        );
    }

    /// Writes the attention output, `[rows][v_dim]`. `sinks` holds one logit a row that takes part
    /// in the denominator only. A row that has seen no key gives zeros.
    ///
    /// # Panics
    /// When a length does not follow from the shape.
    pub fn finish(&self, isa: Isa, sinks: Option<&[f32]>, out: &mut [f32]) {
        assert_eq!(
            out.len(),
            self.rows * self.v_dim,
            "an output of [rows][v_dim]"
        );
        assert!(sinks.is_none_or(|s| s.len() == self.rows), "one sink a row");
        for (row, out) in out.chunks_exact_mut(self.v_dim.max(1)).enumerate() {
            let factor = match sinks {
                _ if self.sum[row] == 0.0 => 0.0,
                None => 1.0 / self.sum[row],
                Some(sinks) => {
                    let max = self.max[row].max(sinks[row]);
                    let scale = exp_scalar(self.max[row] - max);
                    scale / (self.sum[row] * scale + exp_scalar(sinks[row] - max))
                }
            };
            lanes::run(
                isa,
                Scale {
                    out,
                    from: self.acc(row),
                    factor,
                },
            );
        }
    }

    pub(super) fn stride(&self) -> usize {
        self.v_dim.next_multiple_of(VALUE_PADDING)
    }

    /// The state, writable: acc `[rows][stride]`, max `[rows]`, sum `[rows]`.
    pub(super) fn parts_mut(&mut self) -> (&mut [f32], &mut [f32], &mut [f32]) {
        let numbers = self.rows * self.stride();
        (
            &mut self.acc.floats_mut()[..numbers],
            &mut self.max,
            &mut self.sum,
        )
    }
}

/// A growing buffer of floats, aligned to a cache line.
#[derive(Default)]
pub(super) struct AlignedFloats {
    bytes: Option<AlignedBytes>,
}

impl AlignedFloats {
    /// Makes room for `numbers` floats; what was held may be lost when it grows.
    pub(super) fn reserve(&mut self, numbers: usize) {
        if self.floats().len() < numbers {
            self.bytes = Some(AlignedBytes::zeroed(numbers * 4));
        }
    }

    pub(super) fn floats(&self) -> &[f32] {
        // SAFETY: any four bytes are a float, and the buffer is aligned to 64 bytes.
        self.bytes
            .as_ref()
            .map_or(&[], |bytes| unsafe { bytes.align_to().1 })
    }

    pub(super) fn floats_mut(&mut self) -> &mut [f32] {
        // SAFETY: any four bytes are a float, and the buffer is aligned to 64 bytes.
        self.bytes
            .as_mut()
            .map_or(&mut [], |bytes| unsafe { bytes.align_to_mut().1 })
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

struct Scale<'a> {
    out: &'a mut [f32],
    from: &'a [f32],
    factor: f32,
}

impl Kernel for Scale<'_> {
    type Output = ();

    fn scalar(self) {
        for (out, x) in self.out.iter_mut().zip(self.from) {
            *out = x * self.factor;
        }
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        let factor = l.splat(self.factor);
        let mut out = self.out.chunks_exact_mut(L::WIDTH);
        let mut from = self.from.chunks_exact(L::WIDTH);
        for (out, x) in out.by_ref().zip(from.by_ref()) {
            l.store(out, l.mul(l.load(x), factor));
        }
        for (out, x) in out.into_remainder().iter_mut().zip(from.remainder()) {
            *out = x * self.factor;
        }
    }
}
