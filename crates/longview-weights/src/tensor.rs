//! A tensor as it lies in a file.

use longview_kernels::Format;
use longview_kernels::format::dequantize;

/// A tensor borrowed from a weight file.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// The name the file gives it.
    pub name: &'a str,
    /// How elements are stored.
    pub format: Format,
    /// Row-major: the last entry is the length of a row, which lies contiguously in `data`. A GGUF
    /// file lists dimensions the other way round; they are turned here, so `[rows][k]` either way.
    pub shape: &'a [usize],
    /// Every element, rows one after another, `format.bytes_for(elements)` bytes. No alignment is
    /// promised.
    pub data: &'a [u8],
}

impl<'a> Tensor<'a> {
    /// Elements of a row: the last dimension, 1 for a scalar.
    pub fn row_len(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Rows: the product of all dimensions but the last, 1 for a vector.
    pub fn rows(&self) -> usize {
        // From the front, where a dimension of 0 stands in shapes whose other sizes are absurd.
        let (_, before) = self.shape.split_last().unwrap_or((&1, &[]));
        before.iter().fold(1, |rows, &of| rows.saturating_mul(of))
    }

    /// All elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.row_len() / self.format.block_len() * self.format.block_bytes()
    }

    /// The bytes of row `row`.
    ///
    /// # Panics
    ///
    /// When there is no such row.
    pub fn row(&self, row: usize) -> &'a [u8] {
        let bytes = self.row_bytes();
        &self.data[row * bytes..][..bytes]
    }

    /// All elements as f32, row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.elements()];
        dequantize(self.format, self.data, &mut values);
        values
    }
}
