//! The definition of attention over a span, in plain Rust.

use super::fixed::{Groups, whole};
use super::softmax::followed;
use super::{PageRef, Partials, QueryRows, visible_in_page};
use crate::lanes::exp_scalar;
use crate::page::{
    Dotted, Kivi, KvType, PAGE_TOKENS, PageGeometry, QUANT_BLOCK, half_at, key_number,
    scale_number, value_number,
};

/// See [`super::attend_span`].
pub(super) fn attend(
    geom: &PageGeometry,
    pages: &[PageRef<'_>],
    rows: &QueryRows<'_>,
    out: &mut Partials,
) {
    let stride = out.stride();
    let (acc, max, sum) = out.parts_mut();
    let count = rows.visible.len();
    for row in 0..rows.heads * count {
        let (head, visible) = (row / count, &rows.visible[row % count]);
        let q = &rows.q[row * geom.head_dim..][..geom.head_dim];
        let acc = &mut acc[row * stride..][..geom.v_dim];
        let of_head = pages.iter().skip(head).step_by(rows.heads);
        for (index, page) in of_head.enumerate() {
            let slots = visible_in_page(visible, index);
            if slots.is_empty() {
                continue;
            }
            let mut weights = [0f32; PAGE_TOKENS];
            let fixed = match geom.k_type {
                KvType::Kivi(kivi) => kivi_scores(kivi, geom, page.k, q),
                KvType::Dotted(dotted) => dotted_scores(dotted, geom, page.k, q),
                _ => Vec::new(),
            };
            for slot in slots.clone() {
                let score = match fixed.get(slot) {
                    Some(&score) => score,
                    None => score(geom, page, q, slot),
                };
                let added = page.log_weights.get(slot).copied().unwrap_or(0.0);
                weights[slot] = softcapped(score, rows.softcap) + added;
            }
            let all = &mut weights;
            let weights = &mut all[slots.clone()];

            // What was summed so far is rescaled where the maximum moves. Scores of -inf alone leave it
            // at -inf, where the difference to it would not be a number.
            let top = weights.iter().fold(f32::NEG_INFINITY, |m, &s| m.max(s));
            let new_max = followed(max[row], top);
            let base = if new_max == f32::NEG_INFINITY {
                0.0
            } else {
                new_max
            };
            let scale = exp_scalar(max[row] - base);
            max[row] = new_max;
            sum[row] *= scale;
            acc.iter_mut().for_each(|a| *a *= scale);

            for weight in weights.iter_mut() {
                *weight = exp_scalar(*weight - base);
                sum[row] += *weight;
            }
            let scales = &page.v[geom.v_codes_bytes()..];
            if let Some(groups) = Groups::new(geom.v_type, scales) {
                add_code_values(&groups, geom, page.v, all, slots, acc);
                continue;
            }
            for (weight, slot) in weights.iter_mut().zip(slots) {
                for (d, a) in acc.iter_mut().enumerate() {
                    *a += *weight * value_number(geom, page.v, slot, d);
                }
            }
        }
    }
}

fn score(geom: &PageGeometry, page: &PageRef<'_>, q: &[f32], slot: usize) -> f32 {
    q.iter()
        .enumerate()
        .map(|(d, &q)| q * key_number(geom, page.k, slot, d))
        .sum()
}

/// The scores of a query against the keys of a kivi page: products of factors that are whole numbers.
fn kivi_scores(kivi: Kivi, geom: &PageGeometry, page_k: &[u8], q: &[f32]) -> Vec<f32> {
    let (codes, scales) = page_k.split_at(geom.k_codes_bytes());
    let (scales, middles) = scales.split_at(scales.len() / 2);
    let mut scores = Vec::with_capacity(PAGE_TOKENS);
    for first in (0..geom.head_dim * PAGE_TOKENS / kivi.group.tokens()).step_by(geom.head_dim) {
        let at = |of: &[u8], d: usize| half_at(of, first + d);
        let u: Vec<f32> = q
            .iter()
            .enumerate()
            .map(|(d, q)| q * at(scales, d))
            .collect();
        let base: f32 = q.iter().enumerate().map(|(d, q)| q * at(middles, d)).sum();
        let (x, step) = whole(&u, kivi.queries.bits());
        for _ in 0..kivi.group.tokens() {
            let slot = scores.len();
            let product = |(d, &x): (usize, &i32)| {
                let code = kivi.codes().code(codes, d, slot, PAGE_TOKENS);
                x as f32 * (f32::from(code) - kivi.codes().middle())
            };
            let sum: f32 = x.iter().enumerate().map(product).sum();
            scores.push(base + step * sum);
        }
    }
    scores
}

/// The scores of a query against the keys of a dotted page: the query is rounded by blocks of channels.
fn dotted_scores(dotted: Dotted, geom: &PageGeometry, page_k: &[u8], q: &[f32]) -> Vec<f32> {
    let (codes, scales) = page_k.split_at(geom.k_codes_bytes());
    let mut scores = vec![0f32; PAGE_TOKENS];
    for (block, q) in q.chunks(QUANT_BLOCK).enumerate() {
        let (x, step) = whole(q, dotted.queries);
        for (slot, score) in scores.iter_mut().enumerate() {
            let product = |(i, &x): (usize, &i32)| {
                let channel = block * QUANT_BLOCK + i;
                let code = dotted.codes().code(codes, channel, slot, PAGE_TOKENS);
                x as f32 * (f32::from(code) - dotted.codes().middle())
            };
            let sum: f32 = x.iter().enumerate().map(product).sum();
            *score += step * scale_number(scales, slot, block) * sum;
        }
    }
    scores
}

/// Adds the values of a kivi or dotted page in the slots `slots` to `acc [v_dim]`, weighted.
fn add_code_values(
    groups: &Groups<'_>,
    geom: &PageGeometry,
    page_v: &[u8],
    weights: &[f32; PAGE_TOKENS],
    slots: std::ops::Range<usize>,
    acc: &mut [f32],
) {
    let codes = groups.codes;
    for (block, acc) in acc.chunks_mut(QUANT_BLOCK).enumerate() {
        let weighted = |of, slot: usize| weights[slot] * scale_number(of, slot, block);
        let u: Vec<f32> = slots
            .clone()
            .map(|at| weighted(groups.scales, at))
            .collect();
        let base: f32 = match groups.middles {
            // A scale that is NaN is not hidden.
            [] => (slots.clone().map(|at| weighted(groups.scales, at) * 0.0)).sum(),
            middles => slots.clone().map(|slot| weighted(middles, slot)).sum(),
        };
        let (x, step) = whole(&u, groups.queries);
        for (i, acc) in acc.iter_mut().enumerate() {
            let channel = block * QUANT_BLOCK + i;
            let product = |(slot, &x): (usize, &i32)| {
                let code = codes.code(page_v, slot, channel, geom.v_dim);
                x as f32 * (f32::from(code) - codes.middle())
            };
            let sum: f32 = slots.clone().zip(&x).map(product).sum();
            *acc += base + step * sum;
        }
    }
}

fn softcapped(score: f32, softcap: f32) -> f32 {
    if softcap == 0.0 {
        score
    } else {
        softcap * (score / softcap).tanh()
    }
}
