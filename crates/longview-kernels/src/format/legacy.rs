//! The 32-element blocks: `Q4_0`, `Q4_1`, `Q5_0`, `Q5_1`, `Q8_0`.
//!
//! | format | bytes of a block | element `i` |
//! |---|---|---|
//! | `Q4_0` | d f16 · qs `[16]` | d (q − 8) |
//! | `Q4_1` | d f16 · m f16 · qs `[16]` | d q + m |
//! | `Q5_0` | d f16 · qh u32 · qs `[16]` | d (q − 16) |
//! | `Q5_1` | d f16 · m f16 · qh u32 · qs `[16]` | d q + m |
//! | `Q8_0` | d f16 · qs i8 `[32]` | d q |
//!
//! Byte `j` of a nibble array holds element `j` in its low half and element `j + 16` in its high
//! half; bit `i` of `qh` is the fifth bit of element `i`. Everything is little endian.

use super::{half_at, nibble};

/// Elements of a block.
pub(super) const LEN: usize = 32;

pub(super) fn unpack_q4_0(block: &[u8; 18], out: &mut [f32; LEN]) {
    let d = half_at(block, 0);
    for (i, value) in out.iter_mut().enumerate() {
        *value = d * f32::from(nibble(&block[2..], i, 16) as i8 - 8);
    }
}

pub(super) fn unpack_q4_1(block: &[u8; 20], out: &mut [f32; LEN]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (i, value) in out.iter_mut().enumerate() {
        *value = d * f32::from(nibble(&block[4..], i, 16)) + m;
    }
}

pub(super) fn unpack_q5_0(block: &[u8; 22], out: &mut [f32; LEN]) {
    let d = half_at(block, 0);
    for (i, value) in out.iter_mut().enumerate() {
        let q = nibble(&block[6..], i, 16) | fifth_bit(&block[2..6], i);
        *value = d * f32::from(q as i8 - 16);
    }
}

pub(super) fn unpack_q5_1(block: &[u8; 24], out: &mut [f32; LEN]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (i, value) in out.iter_mut().enumerate() {
        let q = nibble(&block[8..], i, 16) | fifth_bit(&block[4..8], i);
        *value = d * f32::from(q) + m;
    }
}

pub(super) fn unpack_q8_0(block: &[u8; 34], out: &mut [f32; LEN]) {
    let d = half_at(block, 0);
    for (value, &q) in out.iter_mut().zip(&block[2..]) {
        *value = d * f32::from(q as i8);
    }
}

/// 16 where bit `i` of the little-endian bit array is set, else 0.
fn fifth_bit(qh: &[u8], i: usize) -> u8 {
    (qh[i / 8] >> (i % 8) & 1) << 4
}
