//! How the rows of gated delta layers lie in files.
//!
//! The forward pass wants all queries, then all keys, then all values; what a file has instead is
//! told here by lists of rows: element `i` is the row of the file that becomes row `i`.

use longview_kernels::recurrent::{DeltaShape, HeadOrder};

/// How an architecture's files divide the input projections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeltaFiles {
    /// Folders have two tensors, in which every key head's rows follow each other. GGUF files divide
    /// the first and keep the second.
    Fused,
    /// Four tensors. GGUF files deal the value heads out to the key heads in rounds.
    Separate,
}

/// The parts of the first fused tensor: for every key head its query, key, values and gates.
pub(crate) struct Fused {
    /// Queries of all heads, then keys, then values.
    pub(crate) qkv: Vec<usize>,
    /// Gates of all value heads.
    pub(crate) z: Vec<usize>,
    /// Of the second tensor: how much is written, for every value head.
    pub(crate) beta: Vec<usize>,
    /// Of the second tensor: how fast is forgotten, for every value head.
    pub(crate) alpha: Vec<usize>,
}

impl DeltaFiles {
    /// How value heads lie in GGUF files.
    pub(crate) fn gguf_order(self) -> HeadOrder {
        match self {
            DeltaFiles::Fused => HeadOrder::Grouped,
            DeltaFiles::Separate => HeadOrder::Tiled,
        }
    }
}

impl Fused {
    pub(crate) fn new(shape: &DeltaShape) -> Fused {
        let (group, key_dim) = (shape.group(), shape.key_dim);
        let values = group * shape.value_dim;
        let of_head = 2 * key_dim + 2 * values;
        let part = |from: usize, count: usize, of_head: usize| {
            (0..shape.key_heads).flat_map(move |head| {
                let start = head * of_head + from;
                start..start + count
            })
        };
        Fused {
            qkv: part(0, key_dim, of_head)
                .chain(part(key_dim, key_dim, of_head))
                .chain(part(2 * key_dim, values, of_head))
                .collect(),
            z: part(2 * key_dim + values, values, of_head).collect(),
            beta: part(0, group, 2 * group).collect(),
            alpha: part(group, group, 2 * group).collect(),
        }
    }

    /// Rows of the first tensor.
    pub(crate) fn qkvz_rows(&self) -> usize {
        self.qkv.len() + self.z.len()
    }
}

/// Rows `0..before` as they are, then the value heads of `width` rows each in `order`, from
/// grouped ones.
pub(crate) fn value_heads(
    shape: &DeltaShape,
    order: HeadOrder,
    before: usize,
    width: usize,
) -> Vec<usize> {
    let mut rows: Vec<usize> = (0..before + shape.value_heads * width).collect();
    for head in 0..shape.key_heads {
        for member in 0..shape.group() {
            let from = before + HeadOrder::Grouped.value_head(shape, head, member) * width;
            let to = before + order.value_head(shape, head, member) * width;
            for row in 0..width {
                rows[to + row] = from + row;
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: DeltaShape = DeltaShape {
        key_heads: 2,
        value_heads: 4,
        key_dim: 1,
        value_dim: 2,
        taps: 4,
    };

    #[test]
    fn fused_rows_are_taken_apart_by_hand() {
        // Two heads of: query, key, two values of two rows, two gates of two rows.
        let fused = Fused::new(&SHAPE);
        assert_eq!(fused.qkv, [0, 10, 1, 11, 2, 3, 4, 5, 12, 13, 14, 15]);
        assert_eq!(fused.z, [6, 7, 8, 9, 16, 17, 18, 19]);
        assert_eq!(
            (fused.beta, fused.alpha),
            (vec![0, 1, 4, 5], vec![2, 3, 6, 7])
        );
    }

    #[test]
    fn value_heads_are_dealt_out_in_rounds() {
        let rows = value_heads(&SHAPE, HeadOrder::Tiled, 1, 2);
        assert_eq!(rows, [0, 1, 2, 5, 6, 3, 4, 7, 8]);
        let same = value_heads(&SHAPE, HeadOrder::Grouped, 1, 2);
        assert!(same.into_iter().eq(0..9));
    }
}
