//! f32 to block bytes: how weights are written.

use super::{Format, float, iq4, k_pack, legacy};

/// The largest magnitude that formats with an f16 element or factor take.
const F16_MAX: f32 = 65504.0;

/// Values that cannot be stored in a format.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum QuantizeError {
    /// The values do not fill whole blocks.
    #[error("{count} values do not fill the blocks of {block} elements that {format} has")]
    PartialBlock {
        /// The format asked for.
        format: Format,
        /// The number of values given.
        count: usize,
        /// Elements of a block.
        block: usize,
    },
    /// A value is NaN, infinite, or larger than the format can hold.
    #[error("value {index} is {value:e}, which {format} cannot hold")]
    OutOfRange {
        /// The format asked for.
        format: Format,
        /// Where the value is.
        index: usize,
        /// The value.
        value: f32,
    },
}

/// Appends `values` in `format` to `out`.
///
/// `values` holds one or several rows, each of whole blocks. `F16` and `BF16` round to nearest, ties
/// to even. `Q4_0` to `Q8_0` follow the rule their users share, one factor from the extreme of the
/// block, so that files equal those of other tools bit for bit. The K and IQ4 formats search the
/// factors of each block for the least squared error weighted by `|x| + rms`, which favours the large
/// values that matter most to a product. The same values give the same bytes on every machine.
///
/// # Errors
///
/// When the values do not fill blocks, or one is not finite or too large: ±65504 is the limit of all
/// formats but `F32`, which takes everything, and `BF16`, which takes every finite number that does
/// not round to infinity. Nothing is clamped, because a weight that large is a mistake to look at;
/// `out` is then left as it was.
pub fn quantize(format: Format, values: &[f32], out: &mut Vec<u8>) -> Result<(), QuantizeError> {
    let block = format.block_len();
    if !values.len().is_multiple_of(block) {
        return Err(QuantizeError::PartialBlock {
            format,
            count: values.len(),
            block,
        });
    }
    let fits = |value: &f32| match format {
        Format::F32 => true,
        Format::BF16 => half::bf16::from_f32(*value).is_finite(),
        _ => value.abs() <= F16_MAX,
    };
    if let Some(index) = values.iter().position(|value| !fits(value)) {
        return Err(QuantizeError::OutOfRange {
            format,
            index,
            value: values[index],
        });
    }
    out.reserve(values.len() / block * format.block_bytes());
    match format {
        Format::F32 => float::pack_f32(values, out),
        Format::F16 => float::pack_f16(values, out),
        Format::BF16 => float::pack_bf16(values, out),
        Format::Q4_0 => each_block(values, out, legacy::pack_q4_0),
        Format::Q4_1 => each_block(values, out, legacy::pack_q4_1),
        Format::Q5_0 => each_block(values, out, legacy::pack_q5_0),
        Format::Q5_1 => each_block(values, out, legacy::pack_q5_1),
        Format::Q8_0 => each_block(values, out, legacy::pack_q8_0),
        Format::Q2_K => each_block(values, out, k_pack::pack_q2_k),
        Format::Q3_K => each_block(values, out, k_pack::pack_q3_k),
        Format::Q4_K => each_block(values, out, k_pack::pack_q4_k),
        Format::Q5_K => each_block(values, out, k_pack::pack_q5_k),
        Format::Q6_K => each_block(values, out, k_pack::pack_q6_k),
        Format::IQ4_NL => each_block(values, out, iq4::pack_iq4_nl),
        Format::IQ4_XS => each_block(values, out, iq4::pack_iq4_xs),
    }
    Ok(())
}

fn each_block<const LEN: usize, const BYTES: usize>(
    values: &[f32],
    out: &mut Vec<u8>,
    pack: impl Fn(&[f32; LEN]) -> [u8; BYTES],
) {
    for block in values.as_chunks::<LEN>().0 {
        out.extend_from_slice(&pack(block));
    }
}
