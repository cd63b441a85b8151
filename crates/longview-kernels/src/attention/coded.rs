//! Pages whose codes lie as products of bytes read them, as numbers.

use super::fixed::Groups;
use crate::compiled::for_each_isa;
use crate::page::{PAGE_TOKENS, PageGeometry, QUANT_BLOCK, half_at};

for_each_isa!(
    /// The keys of a kivi or dotted page, `out [head_dim][64]`.
    pub(super) coded_keys, plain_keys(geom: &PageGeometry, page_k: &[u8], out: &mut [f32])
);

for_each_isa!(
    /// The values of such a page, `out [64][stride]`, of which `v_dim` are there; the others stay as they are.
    pub(super) coded_values,
    plain_values(geom: &PageGeometry, page_v: &[u8], stride: usize, out: &mut [f32])
);

#[inline(always)]
fn plain_keys(geom: &PageGeometry, page_k: &[u8], out: &mut [f32]) {
    let (codes, scales) = page_k.split_at(geom.k_codes_bytes());
    let Some(groups) = Groups::new(geom.k_type, scales) else {
        unreachable!("keys that are read in whole numbers")
    };
    // Of a block of channels, where every token has its own.
    let mut of_tokens = [0.0; PAGE_TOKENS];
    for (d, row) in out.chunks_exact_mut(PAGE_TOKENS).enumerate() {
        groups.codes.row(codes, (d, PAGE_TOKENS), row);
        if groups.middles.is_empty() {
            if d % QUANT_BLOCK == 0 {
                for (slot, scale) in of_tokens.iter_mut().enumerate() {
                    *scale = half_at(groups.scales, d / QUANT_BLOCK * PAGE_TOKENS + slot);
                }
            }
            for (x, scale) in row.iter_mut().zip(&of_tokens) {
                *x *= scale;
            }
        } else {
            for (group, row) in row.chunks_exact_mut(groups.places).enumerate() {
                spread(&groups, group * geom.head_dim + d, row);
            }
        }
    }
}

#[inline(always)]
fn plain_values(geom: &PageGeometry, page_v: &[u8], stride: usize, out: &mut [f32]) {
    let (codes, scales) = page_v.split_at(geom.v_codes_bytes());
    let Some(groups) = Groups::new(geom.v_type, scales) else {
        unreachable!("values that are read in whole numbers")
    };
    for (slot, row) in out.chunks_exact_mut(stride).enumerate() {
        let row = &mut row[..geom.v_dim];
        groups.codes.row(codes, (slot, geom.v_dim), row);
        for (block, row) in row.chunks_mut(QUANT_BLOCK).enumerate() {
            spread(&groups, block * PAGE_TOKENS + slot, row);
        }
    }
}

/// Codes to numbers by scale `at`, and the middle that goes with it where there are any.
#[inline(always)]
fn spread(groups: &Groups<'_>, at: usize, row: &mut [f32]) {
    let scale = half_at(groups.scales, at);
    if groups.middles.is_empty() {
        row.iter_mut().for_each(|x| *x *= scale);
    } else {
        let middle = half_at(groups.middles, at);
        row.iter_mut().for_each(|x| *x = middle + scale * *x);
    }
}
