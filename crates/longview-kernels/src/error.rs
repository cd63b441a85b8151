//! What can go wrong with numbers that come from a file.

use crate::format::Format;

/// A tensor cannot be used as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// Rows must be whole blocks.
    #[error(
        "rows of {k} elements are not whole {format} blocks of {block}: the file is damaged or its type is wrong"
    )]
    PartialBlocks {
        /// The tensor's format.
        format: Format,
        /// Elements of a row.
        k: usize,
        /// Elements of a block.
        block: usize,
    },
    /// The bytes are not those of the shape.
    #[error(
        "a {format} tensor of {n} rows of {k} elements takes {expected} bytes, but there are {found}"
    )]
    WrongLength {
        /// The tensor's format.
        format: Format,
        /// Rows.
        n: usize,
        /// Elements of a row.
        k: usize,
        /// Bytes the shape takes.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// The shape overflows this machine's address space.
    #[error("a {format} tensor of {n} rows of {k} elements is too large for this machine")]
    TooLarge {
        /// The tensor's format.
        format: Format,
        /// Rows.
        n: usize,
        /// Elements of a row.
        k: usize,
    },
    /// A row order names a row the tensor does not have.
    #[error("output row {row} is to come from row {source_row} of a tensor of {n} rows")]
    RowOutside {
        /// The output row.
        row: usize,
        /// The row it asked for.
        source_row: usize,
        /// Rows of the tensor.
        n: usize,
    },
}
