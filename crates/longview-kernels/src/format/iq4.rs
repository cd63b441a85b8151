//! The non-linear 4-bit blocks: `IQ4_NL` and `IQ4_XS`, indices into a fixed table.
//!
//! | format | bytes of a block | elements | element `i` |
//! |---|---|---|---|
//! | `IQ4_NL` | d f16 · qs `[16]` | 32 | d table\[q\] |
//! | `IQ4_XS` | d f16 · scales_h u16 · scales_l `[4]` · qs `[128]` | 8 × 32 | d (s − 32) table\[q\] |
//!
//! Nibbles: within each 32 elements, byte `j` holds element `j` low and `j + 16` high. The 6-bit
//! scale of sub-block `b` of `IQ4_XS` has its low four bits in half `b % 2` of `scales_l[b / 2]` and
//! its upper two in bits `2 b` and above of `scales_h`.

use super::{half_at, nibble};

/// The sixteen values an index stands for, denser around zero as weights are.
pub const IQ4_VALUES: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

pub(super) fn unpack_iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (i, value) in out.iter_mut().enumerate() {
        *value = d * f32::from(IQ4_VALUES[usize::from(nibble(&block[2..], i, 16))]);
    }
}

pub(super) fn unpack_iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    let scales = iq4_xs_scales(&block[2..8]);
    for (i, value) in out.iter_mut().enumerate() {
        let b = i / 32;
        let q = nibble(&block[8 + 16 * b..], i % 32, 16);
        *value = d * f32::from(scales[b]) * f32::from(IQ4_VALUES[usize::from(q)]);
    }
}

/// The eight scales of an `IQ4_XS` block, −32 to 31; `packed` is `scales_h` and `scales_l`, 6 bytes.
pub(crate) fn iq4_xs_scales(packed: &[u8]) -> [i8; 8] {
    let high = u16::from_le_bytes([packed[0], packed[1]]);
    std::array::from_fn(|b| {
        let low = packed[2 + b / 2] >> (4 * (b % 2)) & 15;
        (low | ((high >> (2 * b) & 3) as u8) << 4) as i8 - 32
    })
}
