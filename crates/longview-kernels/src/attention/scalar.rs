//! The definition of attention over a span, in plain Rust.

use super::{PageRef, Partials, QueryRows, visible_in_page};
use crate::lanes::exp_scalar;
use crate::page::{PAGE_TOKENS, PageGeometry, key_number, value_number};

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
            for slot in slots.clone() {
                weights[slot] = softcapped(score(geom, page, q, slot), rows.softcap);
            }
            let weights = &mut weights[slots.clone()];

            // What was summed so far is rescaled to the new maximum. Scores of -inf alone leave
            // the maximum at -inf, where the difference to it would not be a number.
            let new_max = weights.iter().fold(max[row], |m, &s| m.max(s));
            let base = if new_max == f32::NEG_INFINITY {
                0.0
            } else {
                new_max
            };
            let scale = exp_scalar(max[row] - base);
            max[row] = new_max;
            sum[row] *= scale;
            acc.iter_mut().for_each(|a| *a *= scale);

            for (weight, slot) in weights.iter_mut().zip(slots) {
                *weight = exp_scalar(*weight - base);
                sum[row] += *weight;
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

fn softcapped(score: f32, softcap: f32) -> f32 {
    if softcap == 0.0 {
        score
    } else {
        softcap * (score / softcap).tanh()
    }
}
