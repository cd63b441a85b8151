//! Where the bits of a packed panel lie.
//!
//! A **panel** is 16 output rows side by side, so that one 512-bit register holds one number of each
//! row. Float panels are `[k][16]` elements. Quantised panels are a sequence of **segments** of up to
//! eight 32-element blocks (256 elements, one K block). What a segment begins with, its head, is a multiple of
//! 64 bytes; its blocks' codes follow, so that a kernel reads a panel from its first byte to its last: the
//! processor fetches further lines of what it sees read in order, and does not follow jumps.
//!
//! | in order | a block of 16 rows × 32 elements |
//! |---|---|
//! | scales | the blocks' own scales and minima, block after block, a lane a row |
//! | factors | (one a segment) the f16 factors of the small integer scales |
//! | of each block: top | the upper 8, 4 or 2 bits of each code: 512, 256 or 128 bytes |
//! | low | the lower 2, 1 or 0 bits of each code: 128, 64 or 0 bytes |
//!
//! Codes are grouped by four elements: **group** `g` of a block is elements `4g..4g+4`, and in both
//! parts the 32-bit lane of a row holds the four elements of a group in its four bytes, which is the
//! operand of a four-way 8-bit dot product. A byte packs the same element of several groups:
//!
//! - 8 bits: 8 × 64 bytes, group `g` at `64 g`.
//! - 4 bits: 4 × 64 bytes; word `j` has group `j` in the low nibbles, group `j + 4` in the high.
//! - 2 bits: 2 × 64 bytes; word `j` has group `j + 2f` in bits `2f..2f+2`.
//! - 1 bit: 64 bytes; group `g` in bit `g`.

use crate::format::Format;

/// Output rows of a panel.
pub(crate) const LANES: usize = 16;
/// Elements of a block.
pub(crate) const BLOCK: usize = 32;
/// Blocks of a full segment.
pub(crate) const SEGMENT: usize = 8;

/// Which elements share a scale of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grain {
    /// Those of a block.
    Block,
    /// Those of a segment: scales of weights are whole numbers there but for the segment's factor, or are
    /// rounded to such, so that its products add up to one whole number.
    Segment,
}

impl Grain {
    /// How many they are.
    pub(crate) const fn elements(self) -> usize {
        match self {
            Grain::Block => BLOCK,
            Grain::Segment => SEGMENT * BLOCK,
        }
    }
}

/// How the scales of a block are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scales {
    /// f16 scale.
    Half,
    /// f16 scale, which kernels that sum whole numbers round to a multiple of the segment's unit (see
    /// [`super::lane::unit`]).
    Rounded,
    /// f16 scale · f16 minimum, which is added.
    HalfMin,
    /// i8 scale for each sub-block; f16 factor.
    Small,
    /// u8 scale · u8 minimum; two f16 factors; the minimum is subtracted.
    SmallMin,
    /// For each sub-block a byte, scale in the low nibble, minimum in the high; two f16 factors;
    /// the minimum is subtracted.
    NibbleMin,
}

/// How the codes of a quantised format are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Upper bits of a code, which lie apart from the lower ones.
    pub(crate) top_bits: usize,
    /// Lower bits of a code.
    pub(crate) low_bits: usize,
    /// Sub-blocks of a block that have scales of their own, 1 or 2.
    pub(crate) subs: usize,
    /// The scales.
    pub(crate) scales: Scales,
    /// Whether codes are indices into the table of `IQ4_NL`.
    pub(crate) table: bool,
}

impl Layout {
    /// The layout of `format`, or `None` for floats.
    pub(crate) const fn of(format: Format) -> Option<Layout> {
        let (top_bits, low_bits, subs, scales) = match format {
            Format::F32 | Format::F16 | Format::BF16 => return None,
            Format::Q4_0 => (4, 0, 1, Scales::Rounded),
            Format::IQ4_NL => (4, 0, 1, Scales::Half),
            Format::Q4_1 => (4, 0, 1, Scales::HalfMin),
            Format::Q5_0 => (4, 1, 1, Scales::Half),
            Format::Q5_1 => (4, 1, 1, Scales::HalfMin),
            Format::Q8_0 => (8, 0, 1, Scales::Half),
            Format::Q2_K => (2, 0, 2, Scales::NibbleMin),
            Format::Q3_K => (2, 1, 2, Scales::Small),
            Format::Q4_K => (4, 0, 1, Scales::SmallMin),
            Format::Q5_K => (4, 1, 1, Scales::SmallMin),
            Format::Q6_K => (4, 2, 2, Scales::Small),
            Format::IQ4_XS => (4, 0, 1, Scales::Small),
        };
        let table = matches!(format, Format::IQ4_NL | Format::IQ4_XS);
        Some(Layout {
            top_bits,
            low_bits,
            subs,
            scales,
            table,
        })
    }

    /// Bytes of the upper bits of one block.
    pub(crate) const fn top_bytes(&self) -> usize {
        LANES * BLOCK * self.top_bits / 8
    }

    /// Bytes of the lower bits of one block.
    pub(crate) const fn low_bytes(&self) -> usize {
        LANES * BLOCK * self.low_bits / 8
    }

    /// Bytes of the scales of one block.
    pub(crate) const fn scale_bytes(&self) -> usize {
        LANES
            * match self.scales {
                Scales::Half | Scales::Rounded | Scales::SmallMin => 2,
                Scales::HalfMin => 4,
                Scales::Small | Scales::NibbleMin => self.subs,
            }
    }

    /// Bytes of the factors of one segment.
    pub(crate) const fn factor_bytes(&self) -> usize {
        LANES
            * match self.scales {
                Scales::Half | Scales::HalfMin | Scales::Rounded => 0,
                Scales::Small => 2,
                Scales::SmallMin | Scales::NibbleMin => 4,
            }
    }

    /// Bytes of the codes of one block, a multiple of 64.
    pub(crate) const fn code_bytes(&self) -> usize {
        self.top_bytes() + self.low_bytes()
    }

    /// Bytes of the scales and factors that a segment of `blocks` blocks begins with, a multiple of 64.
    pub(crate) const fn head_bytes(&self, blocks: usize) -> usize {
        (blocks * self.scale_bytes() + self.factor_bytes()).next_multiple_of(64)
    }

    /// Bytes of a segment of `blocks` blocks, a multiple of 64.
    pub(crate) const fn segment_bytes(&self, blocks: usize) -> usize {
        self.head_bytes(blocks) + blocks * self.code_bytes()
    }

    /// Bytes of a panel of `blocks` blocks, a multiple of 64.
    pub(crate) const fn panel_bytes(&self, blocks: usize) -> usize {
        let tail = match blocks % SEGMENT {
            0 => 0,
            rest => self.segment_bytes(rest),
        };
        blocks / SEGMENT * self.segment_bytes(SEGMENT) + tail
    }

    /// Which elements of activations share a scale.
    pub(crate) const fn grain(&self) -> Grain {
        match self.scales {
            Scales::Half | Scales::HalfMin => Grain::Block,
            Scales::Rounded | Scales::Small | Scales::SmallMin | Scales::NibbleMin => {
                Grain::Segment
            }
        }
    }

    /// Whether a minimum is added to each element; without one, codes are centred.
    pub(crate) const fn has_min(&self) -> bool {
        matches!(
            self.scales,
            Scales::HalfMin | Scales::SmallMin | Scales::NibbleMin
        )
    }

    /// Bits that codes are shifted up by and their sums down again, before they meet a rounded scale:
    /// with them its twelve bits would be too many.
    pub(crate) const fn dropped_bits(&self) -> usize {
        match self.scales {
            Scales::Rounded => 8 - self.top_bits - self.low_bits,
            _ => 0,
        }
    }

    /// Kernels shift codes to the top of their byte, so that every centred format has its zero at
    /// 128: the value of a code is `scale · (wide − 128)` or `scale · wide + min` with this factor
    /// in `scale`. A power of two, so exact.
    pub(crate) const fn widening(&self) -> f32 {
        if self.table {
            1.0
        } else {
            1.0 / (1u32 << (8 - self.top_bits - self.low_bits)) as f32
        }
    }
}

/// Bytes of a panel of `format` with rows of `k` elements, a multiple of 64.
pub(crate) const fn panel_bytes(format: Format, k: usize) -> usize {
    match Layout::of(format) {
        Some(layout) => layout.panel_bytes(k / BLOCK),
        None => (k * LANES * format_float_bytes(format)).next_multiple_of(64),
    }
}

const fn format_float_bytes(format: Format) -> usize {
    match format {
        Format::F32 => 4,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_weights_stay_compact() {
        for format in Format::ALL {
            let k = 2048;
            let file = 16 * format.bytes_for(k).unwrap();
            let packed = panel_bytes(format, k);
            let growth = packed as f64 / file as f64 - 1.0;
            let most = match format {
                Format::F32 | Format::F16 | Format::BF16 | Format::Q4_0 | Format::Q8_0 => 0.0,
                _ => 0.06,
            };
            assert!((0.0..=most).contains(&growth), "{format} grows by {growth}");
        }
    }
}
