//! Writing the 256-element "K" blocks; their layout is described where they are read.

use super::fit::{Affine, Symmetric, round};
use super::k_quants::LEN;
use super::put_half;

pub(super) fn pack_q2_k(x: &[f32; LEN]) -> [u8; 84] {
    let fitted = Affine::<16>::fit::<16>(x, 3.0, 15.0);
    let q = affine_levels::<16>(x, &fitted, 3.0);
    let mut block = [0; 84];
    for (byte, (scale, min)) in block.iter_mut().zip(fitted.scales.iter().zip(&fitted.mins)) {
        *byte = scale | min << 4;
    }
    put_two_bits(&mut block[16..80], &q);
    put_half(&mut block, 80, fitted.d);
    put_half(&mut block, 82, fitted.dmin);
    block
}

pub(super) fn pack_q3_k(x: &[f32; LEN]) -> [u8; 110] {
    let fitted = Symmetric::<16>::fit::<16>(x, -4.0, 0.225, -32.0, |x| round(x, -4.0, 3.0));
    let q = symmetric_levels(x, &fitted, 4.0);
    let mut block = [0; 110];
    put_one_bit(&mut block[..32], &q.map(|q| q >> 2));
    put_two_bits(&mut block[32..96], &q.map(|q| q & 3));
    put_q3_k_scales(
        &mut block[96..108],
        &fitted.scales.map(|scale| (scale + 32) as u8),
    );
    put_half(&mut block, 108, fitted.d);
    block
}

pub(super) fn pack_q4_k(x: &[f32; LEN]) -> [u8; 144] {
    let fitted = Affine::<8>::fit::<32>(x, 15.0, 63.0);
    let q = affine_levels::<8>(x, &fitted, 15.0);
    let mut block = [0; 144];
    put_affine_head(&mut block[..16], &fitted);
    put_paired_nibbles(&mut block[16..], &q);
    block
}

pub(super) fn pack_q5_k(x: &[f32; LEN]) -> [u8; 176] {
    let fitted = Affine::<8>::fit::<32>(x, 31.0, 63.0);
    let q = affine_levels::<8>(x, &fitted, 31.0);
    let mut block = [0; 176];
    put_affine_head(&mut block[..16], &fitted);
    put_one_bit(&mut block[16..48], &q.map(|q| q >> 4));
    put_paired_nibbles(&mut block[48..], &q.map(|q| q & 15));
    block
}

pub(super) fn pack_q6_k(x: &[f32; LEN]) -> [u8; 210] {
    let fitted = Symmetric::<16>::fit::<16>(x, -32.0, 0.03, -128.0, |x| round(x, -32.0, 31.0));
    let q = symmetric_levels(x, &fitted, 32.0);
    let mut block = [0; 210];
    for (i, &q) in q.iter().enumerate() {
        let (h, j, l) = (i / 128, i / 32 % 4, i % 32);
        block[64 * h + 32 * (j % 2) + l] |= (q & 15) << (4 * (j / 2));
    }
    put_two_bits(&mut block[128..192], &q.map(|q| q >> 4));
    for (byte, &scale) in block[192..208].iter_mut().zip(&fitted.scales) {
        *byte = scale as i8 as u8;
    }
    put_half(&mut block, 208, fitted.d);
    block
}

/// The level of each element, from 0 to `top`.
fn affine_levels<const SUBS: usize>(x: &[f32; LEN], fitted: &Affine<SUBS>, top: f32) -> [u8; LEN] {
    std::array::from_fn(|i| {
        let b = i / (LEN / SUBS);
        let scale = fitted.d * f32::from(fitted.scales[b]);
        let min = fitted.dmin * f32::from(fitted.mins[b]);
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        round((x[i] + min) * inverse, 0.0, top) as u8
    })
}

/// The level of each element, from 0 to `2 zero − 1`, stored so that `zero` stands for 0.
fn symmetric_levels(x: &[f32; LEN], fitted: &Symmetric<16>, zero: f32) -> [u8; LEN] {
    std::array::from_fn(|i| {
        let scale = fitted.d * f32::from(fitted.scales[i / 16]);
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        (round(x[i] * inverse, -zero, zero - 1.0) + zero) as u8
    })
}

/// d, dmin and the twelve bytes of scales and minima that begin `Q4_K` and `Q5_K`.
fn put_affine_head(out: &mut [u8], fitted: &Affine<8>) {
    put_half(out, 0, fitted.d);
    put_half(out, 2, fitted.dmin);
    let packed = &mut out[4..];
    for j in 0..4 {
        let (scale, min) = (fitted.scales[j], fitted.mins[j]);
        let (late_scale, late_min) = (fitted.scales[j + 4], fitted.mins[j + 4]);
        packed[j] = scale | (late_scale >> 4) << 6;
        packed[j + 4] = min | (late_min >> 4) << 6;
        packed[j + 8] = late_scale & 15 | (late_min & 15) << 4;
    }
}

fn put_q3_k_scales(out: &mut [u8], scales: &[u8; 16]) {
    for (s, scale) in scales.iter().enumerate() {
        out[s % 8] |= (scale & 15) << (4 * (s / 8));
        out[8 + s % 4] |= (scale >> 4) << (2 * (s / 4));
    }
}

fn put_two_bits(out: &mut [u8], q: &[u8; LEN]) {
    for (i, q) in q.iter().enumerate() {
        out[32 * (i / 128) + i % 32] |= q << (2 * (i / 32 % 4));
    }
}

fn put_one_bit(out: &mut [u8], q: &[u8; LEN]) {
    for (i, q) in q.iter().enumerate() {
        out[i % 32] |= q << (i / 32);
    }
}

fn put_paired_nibbles(out: &mut [u8], q: &[u8; LEN]) {
    for (i, q) in q.iter().enumerate() {
        out[32 * (i / 64) + i % 32] |= q << (4 * (i / 32 % 2));
    }
}
