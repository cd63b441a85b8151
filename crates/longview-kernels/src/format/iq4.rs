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

use super::fit::{self, Symmetric};
use super::{half_at, nibble, put_half};

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

pub(super) fn pack_iq4_nl(x: &[f32; 32]) -> [u8; 18] {
    let weights = fit::weights(x);
    let mut block = [0; 18];
    let d = put_half(
        &mut block,
        0,
        fit::symmetric(x, &weights, EXTREME, SPREAD, nearest),
    );
    put_indices(&mut block[2..], x, d);
    block
}

pub(super) fn pack_iq4_xs(x: &[f32; 256]) -> [u8; 136] {
    let fitted = Symmetric::<8>::fit::<32>(x, EXTREME, SPREAD, -32.0, nearest);
    let mut block = [0; 136];
    let d = put_half(&mut block, 0, fitted.d);
    let mut high = 0;
    for (b, &scale) in fitted.scales.iter().enumerate() {
        let stored = (scale + 32) as u8;
        block[4 + b / 2] |= (stored & 15) << (4 * (b % 2));
        high |= u16::from(stored >> 4) << (2 * b);
        put_indices(
            &mut block[8 + 16 * b..][..16],
            &x[32 * b..][..32],
            d * f32::from(scale),
        );
    }
    block[2..4].copy_from_slice(&high.to_le_bytes());
    block
}

/// The table's far end, which the extreme of a block is matched with, and how far around that
/// factor a better one is looked for.
const EXTREME: f32 = -127.0;
const SPREAD: f32 = 0.12;

/// The table's value nearest to `x`.
fn nearest(x: f32) -> f32 {
    f32::from(IQ4_VALUES[nearest_index(x)])
}

fn nearest_index(x: f32) -> usize {
    usize::from(NEAREST[(2.0 * x + 256.0).clamp(0.0, 511.0) as usize])
}

/// The index of the value nearest to each half unit from −128 to 127.5: every border between two
/// values lies on a half unit.
const NEAREST: [u8; 512] = {
    let mut table = [0; 512];
    let mut cell = 0;
    while cell < 512 {
        // Everything times four: the middle of the cell, and the borders it lies beyond.
        let middle = 2 * (cell as i32 - 256) + 1;
        let mut index = 0;
        while index < 15 {
            let border = 2 * (IQ4_VALUES[index] as i32 + IQ4_VALUES[index + 1] as i32);
            table[cell] += (middle > border) as u8;
            index += 1;
        }
        cell += 1;
    }
    table
};

/// The indices of 32 values in units of `scale`.
fn put_indices(out: &mut [u8], x: &[f32], scale: f32) {
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let index = |i: usize| nearest_index(x[i] * inverse) as u8;
    for (j, byte) in out[..16].iter_mut().enumerate() {
        *byte = index(j) | index(j + 16) << 4;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_value_is_nearest() {
        for x in (-2000..2000).map(|i| i as f32 * 0.07) {
            let distance = |value: f32| (value - x).abs();
            let least = IQ4_VALUES
                .iter()
                .map(|&v| distance(v.into()))
                .fold(f32::MAX, f32::min);
            assert!(distance(nearest(x)) <= least, "{x}");
        }
    }
}
