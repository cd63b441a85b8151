//! The 256-element "K" blocks: two levels of scales, `Q2_K` to `Q6_K`.
//!
//! A block is cut into sub-blocks; each has its own small integer scale (and, in the formats with a
//! minimum, a small integer offset), and the block has f16 factors for those integers.
//!
//! | format | bytes of a block | sub-blocks | element |
//! |---|---|---|---|
//! | `Q2_K` | scales `[16]` · qs `[64]` · d f16 · dmin f16 | 16 × 16 | d s q − dmin m, 4-bit s and m |
//! | `Q3_K` | hmask `[32]` · qs `[64]` · scales `[12]` · d f16 | 16 × 16 | d (s − 32) (q − 4), 6-bit s |
//! | `Q4_K` | d f16 · dmin f16 · scales `[12]` · qs `[128]` | 8 × 32 | d s q − dmin m, 6-bit s and m |
//! | `Q5_K` | d f16 · dmin f16 · scales `[12]` · qh `[32]` · qs `[128]` | 8 × 32 | d s q − dmin m, 6-bit s and m |
//! | `Q6_K` | ql `[128]` · qh `[64]` · scales i8 `[16]` · d f16 | 16 × 16 | d s (q − 32) |
//!
//! Where the bits of element `i` lie, with `h = i / 128`, `j = i / 32 % 4`, `l = i % 32`:
//!
//! - 2-bit arrays (`qs` of `Q2_K` and `Q3_K`, `qh` of `Q6_K`): bits `2j..2j+2` of byte `32 h + l`.
//! - 1-bit arrays (`hmask` of `Q3_K`, `qh` of `Q5_K`): bit `i / 32` of byte `l`.
//! - nibbles of `Q4_K` and `Q5_K`: byte `32 (i / 64) + l`; low half for even `i / 32`, high for odd.
//! - nibbles of `Q6_K` (`ql`): byte `64 h + 32 (j % 2) + l`; low half for `j < 2`, high for the others.

use super::half_at;

/// Elements of a block.
pub(super) const LEN: usize = 256;

pub(super) fn unpack_q2_k(block: &[u8; 84], out: &mut [f32; LEN]) {
    let (scales, qs) = (&block[..16], &block[16..80]);
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    for (i, value) in out.iter_mut().enumerate() {
        let scale = scales[i / 16];
        let (dl, ml) = (d * f32::from(scale & 15), dmin * f32::from(scale >> 4));
        *value = dl * f32::from(two_bits(qs, i)) - ml;
    }
}

pub(super) fn unpack_q3_k(block: &[u8; 110], out: &mut [f32; LEN]) {
    let (hmask, qs) = (&block[..32], &block[32..96]);
    let scales = q3_k_scales(&block[96..108]);
    let d = half_at(block, 108);
    for (i, value) in out.iter_mut().enumerate() {
        // The mask bit is set where the third bit is, and it is that bit that shifts by −4.
        let q = (two_bits(qs, i) | one_bit(hmask, i) << 2) as i8 - 4;
        *value = d * f32::from(scales[i / 16]) * f32::from(q);
    }
}

pub(super) fn unpack_q4_k(block: &[u8; 144], out: &mut [f32; LEN]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let scales = scales_and_mins(&block[4..16]);
    let qs = &block[16..];
    for (i, value) in out.iter_mut().enumerate() {
        let (s, m) = scales[i / 32];
        *value = d * f32::from(s) * f32::from(paired_nibble(qs, i)) - dmin * f32::from(m);
    }
}

pub(super) fn unpack_q5_k(block: &[u8; 176], out: &mut [f32; LEN]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let scales = scales_and_mins(&block[4..16]);
    let (qh, qs) = (&block[16..48], &block[48..]);
    for (i, value) in out.iter_mut().enumerate() {
        let (s, m) = scales[i / 32];
        let q = paired_nibble(qs, i) | one_bit(qh, i) << 4;
        *value = d * f32::from(s) * f32::from(q) - dmin * f32::from(m);
    }
}

pub(super) fn unpack_q6_k(block: &[u8; 210], out: &mut [f32; LEN]) {
    let (ql, qh, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for (i, value) in out.iter_mut().enumerate() {
        let (h, j, l) = (i / 128, i / 32 % 4, i % 32);
        let low = ql[64 * h + 32 * (j % 2) + l] >> (4 * (j / 2)) & 15;
        let q = (low | two_bits(qh, i) << 4) as i8 - 32;
        *value = d * f32::from(scales[i / 16] as i8) * f32::from(q);
    }
}

/// The eight 6-bit (scale, minimum) pairs of `Q4_K` and `Q5_K`, one for each 32 elements.
///
/// `packed` holds 12 bytes. Pairs 0 to 3 lie in the low six bits of bytes 0 to 3 (scale) and 4 to 7
/// (minimum). Pairs 4 to 7 have their low four bits in bytes 8 to 11 (scale low, minimum high) and
/// their upper two bits in the top of bytes 0 to 3 (scale) and 4 to 7 (minimum).
pub(crate) fn scales_and_mins(packed: &[u8]) -> [(u8, u8); 8] {
    std::array::from_fn(|j| {
        if j < 4 {
            (packed[j] & 63, packed[j + 4] & 63)
        } else {
            let low = packed[j + 4];
            (
                (packed[j - 4] >> 6) << 4 | low & 15,
                (packed[j] >> 6) << 4 | low >> 4,
            )
        }
    })
}

/// The sixteen scales of `Q3_K`, −32 to 31, one for each 16 elements.
///
/// `packed` holds 12 bytes. Scale `s` has its low four bits in byte `s % 8` (low half for `s < 8`) and
/// its upper two in bits `2 (s / 4)` and above of byte `8 + s % 4`.
pub(crate) fn q3_k_scales(packed: &[u8]) -> [i8; 16] {
    std::array::from_fn(|s| {
        let low = packed[s % 8] >> (4 * (s / 8)) & 15;
        let high = packed[8 + s % 4] >> (2 * (s / 4)) & 3;
        (low | high << 4) as i8 - 32
    })
}

fn two_bits(array: &[u8], i: usize) -> u8 {
    array[32 * (i / 128) + i % 32] >> (2 * (i / 32 % 4)) & 3
}

fn one_bit(array: &[u8], i: usize) -> u8 {
    array[i % 32] >> (i / 32) & 1
}

fn paired_nibble(array: &[u8], i: usize) -> u8 {
    array[32 * (i / 64) + i % 32] >> (4 * (i / 32 % 2)) & 15
}
