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
