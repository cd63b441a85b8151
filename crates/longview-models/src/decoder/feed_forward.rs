//! The feed-forward part of a layer: one gated part, or the experts that a router picks.

use longview_kernels::activation::{self, Activation};
use longview_kernels::{Activations, Exec, Need, announce, matmul, matmul_gated, matmul_many};

use super::entry::Entry;
use super::{add_bias, needs};
use crate::blueprint::Weighting;
use crate::load::{Gated, Linear, Shared};
use crate::profile::{Profile, Work};
use crate::workspace::{Gates, Workspace};

/// Rows of a block where activations stay floats: products take no more at once then.
const FLOAT_ROWS_PER_BLOCK: usize = 96;

/// Tells the threads which weights come after a product, given its input.
type Then<'a> = &'a dyn Fn(&Activations);

/// `w.normed` becomes what the gated part gives for the residual stream, some rows after others.
pub(super) fn from_stream(
    exec: &Exec,
    mlp: &Gated,
    activation: Activation,
    entry: Entry<'_>,
    then: Then<'_>,
    w: &mut Workspace,
) {
    let Workspace {
        hidden,
        normed,
        gates,
        activations,
        profile,
        ..
    } = w;
    let width = entry.norm.len();
    let need = needs(exec, &[&mlp.gate.weight, &mlp.up.weight]);
    let step = block_rows(exec, normed.len() / width, need) * width;
    for (hidden, x) in hidden.chunks_mut(step).zip(normed.chunks_mut(step)) {
        entry.prepare(exec, hidden, x, need, activations);
        lap(profile, Work::Norms);
        products(exec, mlp, activation, then, x, gates, activations, profile);
    }
}

/// `x` (`[rows][hidden]`) becomes `down(activation(gate(x)) · up(x))`, some rows after others.
#[expect(
    clippy::too_many_arguments,
    reason = "the buffers it works in are the caller's"
)]
fn gated(
    exec: &Exec,
    mlp: &Gated,
    activation: Activation,
    rows: usize,
    x: &mut [f32],
    gates: &mut Gates,
    activations: &mut Activations,
    profile: &mut Option<Box<Profile>>,
) {
    let hidden = x.len() / rows;
    let need = needs(exec, &[&mlp.gate.weight, &mlp.up.weight]);
    for x in x.chunks_mut(block_rows(exec, rows, need) * hidden) {
        activations.set(exec, x, x.len() / hidden, hidden, need);
        lap(profile, Work::Quantise);
        let then = |x: &Activations| announce(exec, x, &[]);
        products(exec, mlp, activation, &then, x, gates, activations, profile);
    }
}

/// Rows of a block: at most as many as products take at once, in whole tiles of sixteen. What gate and up
/// take together, 12 MiB for 192 rows of a feed-forward part of 8,192, stays in the last-level cache, and
/// their buffers, where there are any, do not grow with the pass. Blocks are of about equal size: one of few rows would wait for
/// the weights.
fn block_rows(exec: &Exec, rows: usize, need: Need) -> usize {
    let most = match need.f32 {
        false => exec.isa.rows_together(),
        true => FLOAT_ROWS_PER_BLOCK,
    };
    let blocks = rows.div_ceil(most).max(1);
    rows.div_ceil(blocks).next_multiple_of(16).max(1)
}

/// `out` becomes `down(activation(gate(x)) · up(x))` of the rows `x` that `activations` holds.
#[expect(
    clippy::too_many_arguments,
    reason = "the buffers it works in are the caller's"
)]
fn products(
    exec: &Exec,
    mlp: &Gated,
    activation: Activation,
    then: Then<'_>,
    out: &mut [f32],
    gates: &mut Gates,
    activations: &mut Activations,
    profile: &mut Option<Box<Profile>>,
) {
    let (rows, ffn) = (out.len() / mlp.down.weight.n(), mlp.gate.weight.n());
    let need = needs(exec, &[&mlp.down.weight]);
    let Gates { gate, up, gated } = gates;
    announce(exec, activations, &[&mlp.down.weight]);
    let quantised = mlp.gate.bias.is_none()
        && mlp.up.bias.is_none()
        && matmul_gated(
            exec,
            activations,
            &mlp.gate.weight,
            &mlp.up.weight,
            activation,
            need,
            gated,
        );
    if !quantised {
        matmul_many(
            exec,
            activations,
            &[&mlp.gate.weight, &mlp.up.weight],
            &mut [gate.sized(rows * ffn), up.sized(rows * ffn)],
        );
        add_bias(exec, &mlp.gate, gate);
        add_bias(exec, &mlp.up, up);
    }
    lap(profile, Work::GateUp);
    if !quantised {
        let up = &*up;
        gated.set_with(exec, gate, rows, ffn, need, &|row, gate, out| {
            activation.gate_into(exec.isa, gate, &up[row * ffn..(row + 1) * ffn], out);
        });
    }
    lap(profile, Work::Quantise);
    then(gated);
    matmul(exec, gated, &mlp.down.weight, out);
    add_bias(exec, &mlp.down, out);
    lap(profile, Work::Down);
}

fn lap(profile: &mut Option<Box<Profile>>, work: Work) {
    if let Some(profile) = profile {
        profile.lap(work);
    }
}

/// `w.normed` becomes the weighted sum of the experts that the router picks for each row.
///
/// Experts add in ascending order and the shared one last, so a row's sum does not depend on the
/// other rows.
#[expect(
    clippy::too_many_arguments,
    reason = "what the blueprint says of a mixture"
)]
pub(super) fn mixture(
    exec: &Exec,
    router: &Linear,
    experts: &[Gated],
    shared: Option<&Shared>,
    act: Activation,
    used: usize,
    weighting: Weighting,
    hidden: usize,
    w: &mut Workspace,
) {
    let rows = w.normed.len() / hidden;
    w.activations.set(
        exec,
        &w.normed,
        rows,
        hidden,
        needs(exec, &[&router.weight]),
    );
    let scores = w.router.sized(rows * experts.len());
    matmul(exec, &w.activations, &router.weight, scores);
    w.chosen.clear();
    for row in scores.chunks_exact_mut(experts.len()) {
        pick(row, used, weighting, &mut w.order, &mut w.chosen);
    }

    w.sum.sized(rows * hidden).fill(0.0);
    w.lap(Work::GateUp);
    for (expert, mlp) in experts.iter().enumerate() {
        w.members.clear();
        for (row, of_row) in w.chosen.chunks_exact(used).enumerate() {
            if let Some(found) = of_row.iter().find(|(chosen, _)| *chosen == expert) {
                w.members.push((row, found.1));
            }
        }
        if w.members.is_empty() {
            continue;
        }
        w.expert_in.clear();
        for &(row, _) in &w.members {
            w.expert_in
                .extend_from_slice(&w.normed[row * hidden..(row + 1) * hidden]);
        }
        let Workspace {
            members,
            expert_in,
            gates,
            activations,
            profile,
            ..
        } = w;
        gated(
            exec,
            mlp,
            act,
            members.len(),
            expert_in,
            gates,
            activations,
            profile,
        );
        for (&(row, weight), out) in w.members.iter().zip(w.expert_in.chunks_exact(hidden)) {
            let target = &mut w.sum[row * hidden..(row + 1) * hidden];
            target
                .iter_mut()
                .zip(out)
                .for_each(|(t, x)| *t += weight * x);
        }
    }
    if let Some(shared) = shared {
        let share = |row: &[f32]| {
            let score: f32 = row.iter().zip(&shared.router).map(|(x, w)| x * w).sum();
            1.0 / (1.0 + (-score).exp())
        };
        w.shares.clear();
        w.shares.extend(w.normed.chunks_exact(hidden).map(share));
        let Workspace {
            normed,
            gates,
            activations,
            profile,
            ..
        } = w;
        gated(
            exec,
            &shared.expert,
            act,
            rows,
            normed,
            gates,
            activations,
            profile,
        );
        let targets = w
            .sum
            .chunks_exact_mut(hidden)
            .zip(w.normed.chunks_exact(hidden));
        for ((target, out), share) in targets.zip(&w.shares) {
            activation::add_scaled(exec.isa, target, out, *share);
        }
    }
    w.normed.copy_from_slice(&w.sum);
    w.lap(Work::Down);
}

/// Adds the `used` experts a row uses and their weights to `chosen`; `scores` is overwritten with
/// probabilities, `order` is a buffer.
fn pick(
    scores: &mut [f32],
    used: usize,
    weighting: Weighting,
    order: &mut Vec<usize>,
    chosen: &mut Vec<(usize, f32)>,
) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f32 = scores
        .iter_mut()
        .map(|score| {
            *score = (*score - max).exp();
            *score
        })
        .sum();
    order.clear();
    order.extend(0..scores.len());
    // Equal scores go to the lower expert, as in the reference implementations.
    order.sort_unstable_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order.truncate(used);
    let divisor = match weighting {
        Weighting::Softmax => total,
        Weighting::Normalised => order.iter().map(|&expert| scores[expert]).sum(),
    };
    chosen.extend(
        order
            .iter()
            .map(|&expert| (expert, scores[expert] / divisor)),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routers_pick_the_best_and_weigh_them() {
        let scores = [1.0f32, 3.0, 2.0, 3.0];
        let picked = |weighting| {
            let mut chosen = Vec::new();
            pick(
                &mut scores.clone(),
                2,
                weighting,
                &mut Vec::new(),
                &mut chosen,
            );
            chosen
        };
        let softmax = picked(Weighting::Softmax);
        assert_eq!(
            softmax
                .iter()
                .map(|(expert, _)| *expert)
                .collect::<Vec<_>>(),
            [1, 3]
        );
        let total: f32 = scores.iter().map(|x| (x - 3.0).exp()).sum();
        assert!((softmax[0].1 - 1.0 / total).abs() < 1e-6);
        let normalised = picked(Weighting::Normalised);
        assert!(
            normalised
                .iter()
                .all(|(_, weight)| (weight - 0.5).abs() < 1e-6)
        );
    }
}
