//! Root-mean-square normalisation of rows.

use crate::Isa;
use crate::lanes::{self, Kernel, Lanes};

/// What a row's numbers are multiplied with after they were brought to unit mean square.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormWeight {
    /// The stored weight.
    Plain,
    /// 1 + the stored weight, as Gemma's safetensors have it (its GGUF files store the sum).
    PlusOne,
}

/// The parameters of one normalisation.
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm<'a> {
    /// `[dim]`; its length is the length of a row.
    pub weight: &'a [f32],
    /// How `weight` enters.
    pub form: NormWeight,
    /// Added to the mean square.
    pub epsilon: f32,
}

impl RmsNorm<'_> {
    /// Writes `x / sqrt(mean(x²) + epsilon) * weight` for every row of `x [rows][dim]` to `out`,
    /// of the same shape.
    ///
    /// # Panics
    /// When the lengths differ or are not whole rows.
    pub fn rows(&self, isa: Isa, x: &[f32], out: &mut [f32]) {
        assert_eq!(x.len(), out.len(), "as many numbers out as in");
        let dim = self.weight.len().max(1);
        assert!(x.len().is_multiple_of(dim), "whole rows");
        for (x, out) in x.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
            out.copy_from_slice(x);
            lanes::run(
                isa,
                Normalise {
                    norm: *self,
                    row: out,
                },
            );
        }
    }

    /// Normalises every row of `x [rows][dim]` in place.
    ///
    /// # Panics
    /// When `x` is not whole rows.
    pub fn rows_in_place(&self, isa: Isa, x: &mut [f32]) {
        let dim = self.weight.len().max(1);
        assert!(x.len().is_multiple_of(dim), "whole rows");
        for row in x.chunks_exact_mut(dim) {
            lanes::run(isa, Normalise { norm: *self, row });
        }
    }
}

struct Normalise<'a> {
    norm: RmsNorm<'a>,
    row: &'a mut [f32],
}

impl Normalise<'_> {
    #[inline(always)]
    fn factor(&self, sum_of_squares: f32) -> f32 {
        1.0 / (sum_of_squares / self.row.len() as f32 + self.norm.epsilon).sqrt()
    }

    #[inline(always)]
    fn added(&self) -> f32 {
        match self.norm.form {
            NormWeight::Plain => 0.0,
            NormWeight::PlusOne => 1.0,
        }
    }
}

impl Kernel for Normalise<'_> {
    type Output = ();

    fn scalar(self) {
        let squares: f64 = self.row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let (factor, added) = (self.factor(squares as f32), self.added());
        for (x, &w) in self.row.iter_mut().zip(self.norm.weight) {
            *x = *x * factor * (w + added);
        }
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        // Four sums that do not wait for each other; which numbers each one holds follows from
        // the row's length alone.
        let mut sums = [l.splat(0.0); 4];
        let mut blocks = self.row.chunks_exact(4 * L::WIDTH);
        for block in blocks.by_ref() {
            for (sum, x) in sums.iter_mut().zip(block.chunks_exact(L::WIDTH)) {
                let x = l.load(x);
                *sum = l.fma(x, x, *sum);
            }
        }
        for (sum, x) in sums.iter_mut().zip(blocks.remainder().chunks(L::WIDTH)) {
            let x = l.load_part(x);
            *sum = l.fma(x, x, *sum);
        }
        let squares = l.add(l.add(sums[0], sums[2]), l.add(sums[1], sums[3]));
        let factor = l.splat(self.factor(l.reduce_add(squares)));
        let added = l.splat(self.added());

        let mut row = self.row.chunks_exact_mut(L::WIDTH);
        let mut weight = self.norm.weight.chunks_exact(L::WIDTH);
        for (x, w) in row.by_ref().zip(weight.by_ref()) {
            let y = l.mul(l.mul(l.load(x), factor), l.add(l.load(w), added));
            l.store(x, y);
        }
        let x = row.into_remainder();
        let w = l.load_part(weight.remainder());
        let y = l.mul(l.mul(l.load_part(x), factor), l.add(w, added));
        l.store_part(x, y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_unit_mean_square_times_the_weight() {
        for isa in Isa::available() {
            for dim in [1, 7, 16, 64, 65, 100, 2048] {
                let x: Vec<f32> = (0..3 * dim)
                    .map(|i| ((i * 37) % 101) as f32 - 40.0)
                    .collect();
                let weight: Vec<f32> = (0..dim).map(|i| 0.5 + (i % 5) as f32).collect();
                for form in [NormWeight::Plain, NormWeight::PlusOne] {
                    let norm = RmsNorm {
                        weight: &weight,
                        form,
                        epsilon: 1e-5,
                    };
                    let mut out = vec![f32::NAN; x.len()];
                    norm.rows(isa, &x, &mut out);
                    for (row, out) in x.chunks_exact(dim).zip(out.chunks_exact(dim)) {
                        let mean: f64 =
                            row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / dim as f64;
                        for ((&x, &w), &y) in row.iter().zip(&weight).zip(out) {
                            let w = f64::from(w) + f64::from(u8::from(form == NormWeight::PlusOne));
                            let exact = f64::from(x) / (mean + 1e-5).sqrt() * w;
                            assert!((f64::from(y) - exact).abs() <= 1e-6 * (1.0 + exact.abs()));
                        }
                    }
                    // One row alone and in place has the same bits.
                    let mut alone = x[dim..2 * dim].to_vec();
                    norm.rows_in_place(isa, &mut alone);
                    assert_eq!(alone, out[dim..2 * dim], "{isa} {dim}");
                }
            }
        }
    }
}
