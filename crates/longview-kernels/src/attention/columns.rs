//! The keys of a page side by side, `[head_dim][64]` as [`super::key_floats`] gives them, column by column.

use crate::compiled::for_each_isa;
use crate::page::PAGE_TOKENS;

for_each_isa!(
    /// The squared length of the key in every column.
    pub column_squares, plain_squares(keys: &[f32], out: &mut [f32; PAGE_TOKENS])
);

for_each_isa!(
    /// Adds every column times its weight to `sums [head_dim][64]`. No sum runs from column to column.
    ///
    /// # Panics
    /// When there are not as many sums as keys.
    pub add_weighted_columns,
    plain_add_weighted(keys: &[f32], weights: &[f32; PAGE_TOKENS], sums: &mut [f32])
);

#[inline(always)]
fn plain_squares(keys: &[f32], out: &mut [f32; PAGE_TOKENS]) {
    let mut squares = [0.0; PAGE_TOKENS];
    let (rows, _) = keys.as_chunks::<PAGE_TOKENS>();
    for row in rows {
        for (square, x) in squares.iter_mut().zip(row) {
            *square += x * x;
        }
    }
    *out = squares;
}

#[inline(always)]
fn plain_add_weighted(keys: &[f32], weights: &[f32; PAGE_TOKENS], sums: &mut [f32]) {
    assert_eq!(keys.len(), sums.len(), "as many sums as keys");
    let (rows, _) = keys.as_chunks::<PAGE_TOKENS>();
    let (sums, _) = sums.as_chunks_mut::<PAGE_TOKENS>();
    for (sums, row) in sums.iter_mut().zip(rows) {
        for ((sum, x), weight) in sums.iter_mut().zip(row).zip(weights) {
            *sum += x * weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let keys: Vec<f32> = (0..40 * PAGE_TOKENS)
            .map(|at| ((at * 71) % 101) as f32 * 0.37 - 18.0)
            .collect();
        let weights = std::array::from_fn(|column| 1.0 / (column + 1) as f32);
        let both = |isa| {
            let mut squares = [f32::NAN; PAGE_TOKENS];
            column_squares(isa, &keys, &mut squares);
            let mut sums = vec![0.5; keys.len()];
            add_weighted_columns(isa, &keys, &weights, &mut sums);
            (squares, sums)
        };
        let (squares, sums) = both(Isa::Scalar);
        let of_column: f32 = keys[7..].iter().step_by(PAGE_TOKENS).map(|x| x * x).sum();
        assert_eq!(squares[7], of_column);
        assert_eq!(sums[PAGE_TOKENS + 3], 0.5 + keys[PAGE_TOKENS + 3] / 4.0);
        for isa in Isa::available() {
            assert_eq!(both(isa), (squares, sums.clone()), "{isa}");
        }
    }
}
