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

use super::{half_at, nibble, put_half};

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

// Packing. The factor comes from the block's extreme. Where the range of q is not symmetric (−8 to
// 7), the extreme takes the end that is one further out, whatever its sign. Factors are stored as
// f16 but divided by in f32, and q rounds half up, as every writer of these formats does.

pub(super) fn pack_q4_0(x: &[f32; LEN]) -> [u8; 18] {
    let d = extreme(x) / -8.0;
    let q = levels(x, d, 8.5, 15.0);
    let mut block = [0; 18];
    put_half(&mut block, 0, d);
    put_nibbles(&mut block[2..], &q);
    block
}

pub(super) fn pack_q4_1(x: &[f32; LEN]) -> [u8; 20] {
    let (low, high) = range(x);
    let d = (high - low) / 15.0;
    let q = levels(&x.map(|x| x - low), d, 0.5, 15.0);
    let mut block = [0; 20];
    put_half(&mut block, 0, d);
    put_half(&mut block, 2, low);
    put_nibbles(&mut block[4..], &q);
    block
}

pub(super) fn pack_q5_0(x: &[f32; LEN]) -> [u8; 22] {
    let d = extreme(x) / -16.0;
    let q = levels(x, d, 16.5, 31.0);
    let mut block = [0; 22];
    put_half(&mut block, 0, d);
    put_fifth_bits(&mut block[2..6], &q);
    put_nibbles(&mut block[6..], &q);
    block
}

pub(super) fn pack_q5_1(x: &[f32; LEN]) -> [u8; 24] {
    let (low, high) = range(x);
    let d = (high - low) / 31.0;
    let q = levels(&x.map(|x| x - low), d, 0.5, 31.0);
    let mut block = [0; 24];
    put_half(&mut block, 0, d);
    put_half(&mut block, 2, low);
    put_fifth_bits(&mut block[4..8], &q);
    put_nibbles(&mut block[8..], &q);
    block
}

pub(super) fn pack_q8_0(x: &[f32; LEN]) -> [u8; 34] {
    let d = extreme(x).abs() / 127.0;
    let inverse = inverse_of(d);
    let mut block = [0; 34];
    put_half(&mut block, 0, d);
    for (byte, x) in block[2..].iter_mut().zip(x) {
        *byte = (x * inverse).round() as i8 as u8;
    }
    block
}

/// The value furthest from zero, with its sign; the first of equals.
fn extreme(x: &[f32]) -> f32 {
    x.iter().fold(
        0.0,
        |extreme: f32, &x| if x.abs() > extreme.abs() { x } else { extreme },
    )
}

fn range(x: &[f32]) -> (f32, f32) {
    x.iter()
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &x| {
            (low.min(x), high.max(x))
        })
}

/// `x / d + shift` cut to a whole number from 0 to `top`.
fn levels(x: &[f32; LEN], d: f32, shift: f32, top: f32) -> [u8; LEN] {
    let inverse = inverse_of(d);
    x.map(|x| (x * inverse + shift).clamp(0.0, top) as u8)
}

/// 1/d, or 0 for a block of zeros.
fn inverse_of(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn put_nibbles(out: &mut [u8], q: &[u8; LEN]) {
    for (j, byte) in out[..16].iter_mut().enumerate() {
        *byte = q[j] & 15 | (q[j + 16] & 15) << 4;
    }
}

fn put_fifth_bits(out: &mut [u8], q: &[u8; LEN]) {
    for (i, q) in q.iter().enumerate() {
        out[i / 8] |= (q >> 4) << (i % 8);
    }
}

/// 16 where bit `i` of the little-endian bit array is set, else 0.
fn fifth_bit(qh: &[u8], i: usize) -> u8 {
    (qh[i / 8] >> (i % 8) & 1) << 4
}
