//! Block bytes to f32: the definition of every format, in plain Rust.

use super::{Format, float, iq4, k_quants, legacy};

/// Writes the f32 value of every element in `bytes` to `out`.
///
/// `bytes` holds consecutive blocks of one row or of several rows (a row always fills whole
/// blocks); `out` has one f32 an element. The arithmetic is that of the format's definition, each
/// step rounded to f32, so results are the same bits on every machine.
///
/// This is the scalar definition that products on packed weights are tested against, and the way
/// narrow tensors (norms, biases, an embedding row) are read.
///
/// # Panics
///
/// When `bytes` is not exactly `format.bytes_for(out.len())` long.
pub fn dequantize(format: Format, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(
        Some(bytes.len()),
        format.bytes_for(out.len()),
        "{} elements of {format} do not fill {} bytes",
        out.len(),
        bytes.len()
    );
    match format {
        Format::F32 => float::unpack_f32(bytes, out),
        Format::F16 => float::unpack_f16(bytes, out),
        Format::BF16 => float::unpack_bf16(bytes, out),
        Format::Q4_0 => each_block(bytes, out, legacy::unpack_q4_0),
        Format::Q4_1 => each_block(bytes, out, legacy::unpack_q4_1),
        Format::Q5_0 => each_block(bytes, out, legacy::unpack_q5_0),
        Format::Q5_1 => each_block(bytes, out, legacy::unpack_q5_1),
        Format::Q8_0 => each_block(bytes, out, legacy::unpack_q8_0),
        Format::Q2_K => each_block(bytes, out, k_quants::unpack_q2_k),
        Format::Q3_K => each_block(bytes, out, k_quants::unpack_q3_k),
        Format::Q4_K => each_block(bytes, out, k_quants::unpack_q4_k),
        Format::Q5_K => each_block(bytes, out, k_quants::unpack_q5_k),
        Format::Q6_K => each_block(bytes, out, k_quants::unpack_q6_k),
        Format::IQ4_NL => each_block(bytes, out, iq4::unpack_iq4_nl),
        Format::IQ4_XS => each_block(bytes, out, iq4::unpack_iq4_xs),
    }
}

fn each_block<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    unpack: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    let (blocks, _) = bytes.as_chunks::<BYTES>();
    let (values, _) = out.as_chunks_mut::<LEN>();
    for (block, values) in blocks.iter().zip(values) {
        unpack(block, values);
    }
}
