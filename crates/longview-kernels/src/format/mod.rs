//! Tensor element formats: floats and the block formats of GGUF.

mod dequantize;
mod fit;
mod float;
mod iq4;
mod k_pack;
mod k_quants;
mod legacy;
mod quantize;

use std::fmt;
use std::str::FromStr;

use half::f16;

pub use dequantize::dequantize;
pub use iq4::IQ4_VALUES;
pub(crate) use iq4::iq4_xs_scales;
pub(crate) use k_quants::{q3_k_scales, scales_and_mins};
pub use quantize::{QuantizeError, quantize};

/// How the elements of a tensor are stored.
///
/// The block formats pack a fixed number of consecutive elements of a row with their scales; see
/// [`Format::block_len`] and [`Format::block_bytes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(non_camel_case_types)] // The names that everyone knows them by.
pub enum Format {
    /// Single precision.
    F32,
    /// Half precision: 5 bits of exponent, 10 of fraction.
    F16,
    /// The upper half of a single: 8 bits of exponent, 7 of fraction.
    BF16,
    /// Blocks of 32: a scale, and codes of 4 bits from -8 to 7; 4.5 bits an element.
    Q4_0,
    /// Blocks of 32: a scale, a minimum, and codes of 4 bits from 0 to 15; 5 bits an element.
    Q4_1,
    /// Blocks of 32: a scale, and codes of 5 bits from -16 to 15; 5.5 bits an element.
    Q5_0,
    /// Blocks of 32: a scale, a minimum, and codes of 5 bits from 0 to 31; 6 bits an element.
    Q5_1,
    /// Blocks of 32: a scale, and codes of 8 bits; 8.5 bits an element.
    Q8_0,
    /// Blocks of 256 in 16 parts with scales and minima of 4 bits, and codes of 2 bits; 2.625 bits an
    /// element.
    Q2_K,
    /// Blocks of 256 in 16 parts with scales of 6 bits, and codes of 3 bits from -4 to 3; 3.4375 bits an
    /// element.
    Q3_K,
    /// Blocks of 256 in 8 parts with scales and minima of 6 bits, and codes of 4 bits; 4.5 bits an
    /// element.
    Q4_K,
    /// Blocks of 256 in 8 parts with scales and minima of 6 bits, and codes of 5 bits; 5.5 bits an
    /// element.
    Q5_K,
    /// Blocks of 256 in 16 parts with scales of 8 bits, and codes of 6 bits from -32 to 31; 6.5625 bits an
    /// element.
    Q6_K,
    /// Blocks of 32: a scale, and codes of 4 bits that stand for [`IQ4_VALUES`]; 4.5 bits an element.
    IQ4_NL,
    /// Blocks of 256 in 8 parts with scales of 6 bits, and codes of 4 bits that stand for
    /// [`IQ4_VALUES`]; 4.25 bits an element.
    IQ4_XS,
}

use Format::*;

/// One row a format, in their order: the format, its GGUF type number, name, elements and bytes of a block.
const TABLE: [(Format, u32, &str, usize, usize); 15] = [
    (F32, 0, "F32", 1, 4),
    (F16, 1, "F16", 1, 2),
    (BF16, 30, "BF16", 1, 2),
    (Q4_0, 2, "Q4_0", 32, 18),
    (Q4_1, 3, "Q4_1", 32, 20),
    (Q5_0, 6, "Q5_0", 32, 22),
    (Q5_1, 7, "Q5_1", 32, 24),
    (Q8_0, 8, "Q8_0", 32, 34),
    (Q2_K, 10, "Q2_K", 256, 84),
    (Q3_K, 11, "Q3_K", 256, 110),
    (Q4_K, 12, "Q4_K", 256, 144),
    (Q5_K, 13, "Q5_K", 256, 176),
    (Q6_K, 14, "Q6_K", 256, 210),
    (IQ4_NL, 20, "IQ4_NL", 32, 18),
    (IQ4_XS, 23, "IQ4_XS", 256, 136),
];

impl Format {
    /// Every format, floats first.
    pub const ALL: [Format; 15] = [
        F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS,
    ];

    /// The format with this GGUF tensor type number, if it is one we read.
    pub fn from_gguf_type(number: u32) -> Option<Format> {
        TABLE.iter().find(|row| row.1 == number).map(|row| row.0)
    }

    /// The tensor type number GGUF files use.
    pub fn gguf_type(self) -> u32 {
        self.row().1
    }

    /// The name as GGUF tools print it, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Elements in one block; 1 for the float formats.
    pub const fn block_len(self) -> usize {
        self.row().3
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        self.row().4
    }

    /// Bytes of `elements` consecutive elements, or `None` when they do not fill whole blocks or
    /// the size overflows.
    pub fn bytes_for(self, elements: usize) -> Option<usize> {
        if !elements.is_multiple_of(self.block_len()) {
            return None;
        }
        (elements / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Whether elements are plain floats rather than quantised blocks.
    pub fn is_float(self) -> bool {
        self.block_len() == 1
    }

    const fn row(self) -> (Format, u32, &'static str, usize, usize) {
        TABLE[self as usize]
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Format, String> {
        Format::ALL
            .into_iter()
            .find(|format| format.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| {
                let known = Format::ALL.map(Format::name).join(", ");
                format!("unknown tensor format {name:?}; known formats: {known}")
            })
    }
}

/// The f16 at byte `offset`, little endian.
fn half_at(bytes: &[u8], offset: usize) -> f32 {
    f16::from_le_bytes([bytes[offset], bytes[offset + 1]]).to_f32()
}

/// Stores `value` as f16 at byte `offset` and gives it as stored.
fn put_half(bytes: &mut [u8], offset: usize, value: f32) -> f32 {
    let stored = f16::from_f32(value);
    bytes[offset..offset + 2].copy_from_slice(&stored.to_le_bytes());
    stored.to_f32()
}

/// Element `i` of a nibble array whose byte `j` holds element `j` low and `j + pairs` high.
fn nibble(array: &[u8], i: usize, pairs: usize) -> u8 {
    array[i % pairs] >> (4 * (i / pairs)) & 15
}
