//! The float formats: one element a "block", little endian.

use half::{bf16, f16};

/// `out[i]` becomes the f32 at bytes `4 i`.
pub(super) fn unpack_f32(bytes: &[u8], out: &mut [f32]) {
    let (elements, _) = bytes.as_chunks::<4>();
    for (value, element) in out.iter_mut().zip(elements) {
        *value = f32::from_le_bytes(*element);
    }
}

/// `out[i]` becomes the f16 at bytes `2 i`, exactly: every f16 is an f32.
pub(super) fn unpack_f16(bytes: &[u8], out: &mut [f32]) {
    let (elements, _) = bytes.as_chunks::<2>();
    for (value, element) in out.iter_mut().zip(elements) {
        *value = f16::from_le_bytes(*element).to_f32();
    }
}

/// `out[i]` becomes the bf16 at bytes `2 i`, exactly: a bf16 is the upper half of an f32.
pub(super) fn unpack_bf16(bytes: &[u8], out: &mut [f32]) {
    let (elements, _) = bytes.as_chunks::<2>();
    for (value, element) in out.iter_mut().zip(elements) {
        *value = bf16::from_le_bytes(*element).to_f32();
    }
}

/// Appends each value as it is.
pub(super) fn pack_f32(values: &[f32], out: &mut Vec<u8>) {
    out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

/// Appends each value as f16, to nearest, ties to even.
pub(super) fn pack_f16(values: &[f32], out: &mut Vec<u8>) {
    out.extend(
        values
            .iter()
            .flat_map(|&value| f16::from_f32(value).to_le_bytes()),
    );
}

/// Appends each value as bf16, to nearest, ties to even.
pub(super) fn pack_bf16(values: &[f32], out: &mut Vec<u8>) {
    out.extend(
        values
            .iter()
            .flat_map(|&value| bf16::from_f32(value).to_le_bytes()),
    );
}
