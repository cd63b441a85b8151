//! The forward pass: a batch of rows goes in, logits of the rows wanted come out.

mod delta;

use longview_kernels::activation::{self, Activation, softcap};
use longview_kernels::format::dequantize;
use longview_kernels::norm::{NormWeight, RmsNorm};
use longview_kernels::rope::RotaryRows;
use longview_kernels::{Activations, Exec, matmul, matmul_many, needed};
use longview_kv::{Attention, Batch};

use crate::blueprint::{AttentionBlueprint, Mixer, MlpBlueprint, Weighting};
use crate::error::ModelError;
use crate::load::{self, Gated, Linear, Mlp, Shared};
use crate::model::Model;
use crate::profile::{Profile, Work};
use crate::workspace::{Workspace, sized};
use delta::gated_delta;

/// Rows that one task of the small row-wise operations works on.
const ROWS_PER_TASK: usize = 16;

/// One pass of `batch` through `model`, in the order of the mathematics.
pub(crate) fn forward(
    model: &Model,
    exec: &Exec,
    batch: &mut Batch<'_>,
    workspace: &mut Workspace,
) -> Result<(), ModelError> {
    let blueprint = model.blueprint();
    let (hidden, eps) = (blueprint.hidden, blueprint.norm_eps);
    let w = workspace;

    if let Some(profile) = &mut w.profile {
        profile.begin();
    }
    embed(model, exec, batch, &mut w.hidden)?;
    rotary_angles(model, batch, w);
    w.lap(Work::Embedding);

    for (index, (plan, layer)) in blueprint
        .layers
        .iter()
        .zip(&model.weights().layers)
        .enumerate()
    {
        if let Some(profile) = &mut w.profile {
            profile.layer(Some(index));
        }
        norm_rows(exec, &w.hidden, &layer.mixer_norm, eps, &mut w.normed);
        w.lap(Work::Norms);
        match (&plan.mixer, &layer.mixer) {
            (Mixer::Attention(plan), load::Mixer::Attention(layer)) => {
                attention(model, exec, batch, index, plan, layer, eps, w)?;
            }
            (Mixer::GatedDelta(shape), load::Mixer::GatedDelta(layer)) => {
                gated_delta(exec, batch, index, shape, layer, eps, w);
            }
            _ => unreachable!("the loader makes the part that the blueprint names"),
        }
        if let Some(norm) = &layer.post_attention_norm {
            norm_rows_in_place(exec, &mut w.normed, norm, eps);
        }
        add_rows(exec, &mut w.hidden, &w.normed);

        norm_rows(exec, &w.hidden, &layer.ffn_norm, eps, &mut w.normed);
        w.lap(Work::Norms);
        match (&plan.mlp, &layer.mlp) {
            (MlpBlueprint::Gated { activation, .. }, Mlp::Gated(mlp)) => {
                let rows = batch.rows();
                let Workspace {
                    normed,
                    gate,
                    up,
                    activations,
                    profile,
                    ..
                } = w;
                gated(
                    exec,
                    mlp,
                    *activation,
                    rows,
                    normed,
                    gate,
                    up,
                    activations,
                    profile,
                );
            }
            (
                MlpBlueprint::Experts {
                    activation,
                    used,
                    weighting,
                    ..
                },
                Mlp::Experts {
                    router,
                    experts,
                    shared,
                },
            ) => mixture(
                exec,
                router,
                experts,
                shared.as_ref(),
                *activation,
                *used,
                *weighting,
                hidden,
                w,
            ),
            _ => unreachable!("the loader makes the part that the blueprint names"),
        }
        if let Some(norm) = &layer.post_ffn_norm {
            norm_rows_in_place(exec, &mut w.normed, norm, eps);
        }
        add_rows(exec, &mut w.hidden, &w.normed);
        w.lap(Work::Norms);
    }

    if let Some(profile) = &mut w.profile {
        profile.layer(None);
    }
    logits(model, exec, batch, w);
    Ok(())
}

/// Token embeddings, read from the file's own rows.
fn embed(
    model: &Model,
    exec: &Exec,
    batch: &Batch<'_>,
    out: &mut Vec<f32>,
) -> Result<(), ModelError> {
    let (hidden, vocab) = (model.blueprint().hidden, model.blueprint().vocab);
    let mut ids = batch.segments().iter().flat_map(|segment| segment.tokens);
    if let Some(&id) = ids.find(|&&id| id as usize >= vocab) {
        return Err(ModelError::TokenOutOfRange {
            id,
            vocabulary: vocab,
        });
    }
    let table = model.embedding()?;
    let scale = model.blueprint().embedding_scale;
    exec.pool
        .for_each_chunk(sized(out, batch.rows() * hidden), hidden, |row, out, _| {
            dequantize(table.format, table.row(batch.token(row) as usize), out);
            if scale != 1.0 {
                activation::scale(exec.isa, out, scale);
            }
        });
    Ok(())
}

/// Sines and cosines of all rows' positions, for every rotary embedding of the model.
fn rotary_angles(model: &Model, batch: &Batch<'_>, w: &mut Workspace) {
    w.rotary
        .resize_with(model.blueprint().ropes.len(), Default::default);
    for (index, rows) in w.rotary.iter_mut().enumerate() {
        rows.clear();
        for segment in batch.segments() {
            let table = model.rotary_table(index, segment.context.identity().rope);
            let start = segment.context.len();
            rows.extend(
                table,
                (start..start + segment.tokens.len()).map(|at| at as u32),
            );
        }
    }
}

/// `w.normed` becomes the attention's output.
#[expect(
    clippy::too_many_arguments,
    reason = "a layer, its place, and the buffers it works in"
)]
fn attention(
    model: &Model,
    exec: &Exec,
    batch: &mut Batch<'_>,
    index: usize,
    plan: &AttentionBlueprint,
    layer: &load::Attention,
    eps: f32,
    w: &mut Workspace,
) -> Result<(), ModelError> {
    let rows = batch.rows();
    let (q_len, kv_len) = (plan.heads * plan.head_dim, plan.kv_heads * plan.head_dim);
    let hidden = w.normed.len() / rows;
    let weights = [&layer.query.weight, &layer.key.weight, &layer.value.weight];
    let need = needs(exec, &weights);
    w.activations.set(exec, &w.normed, rows, hidden, need);
    w.lap(Work::Quantise);
    let outs = &mut [
        sized(&mut w.q, rows * q_len),
        sized(&mut w.k, rows * kv_len),
        sized(&mut w.v, rows * kv_len),
    ];
    matmul_many(exec, &w.activations, &weights, outs);
    add_bias(&layer.query, &mut w.q);
    add_bias(&layer.key, &mut w.k);
    add_bias(&layer.value, &mut w.v);
    if let Some(gate) = &layer.gate {
        let need = needs(exec, &[&gate.weight]);
        w.activations.set(exec, &w.normed, rows, hidden, need);
        let out = sized(&mut w.gate, rows * q_len);
        matmul(exec, &w.activations, &gate.weight, out);
        add_bias(gate, &mut w.gate);
    }
    w.lap(Work::Qkv);

    let rotary = &w.rotary[plan.rope];
    let (q_norm, k_norm) = match &layer.head_norms {
        Some((q, k)) => (Some(q), Some(k)),
        None => (None, None),
    };
    for (heads, norm, x) in [
        (plan.heads, q_norm, &mut w.q),
        (plan.kv_heads, k_norm, &mut w.k),
    ] {
        let row_len = heads * plan.head_dim;
        exec.pool
            .for_each_chunk(x, ROWS_PER_TASK * row_len, |task, part, _| {
                if let Some(norm) = norm {
                    rms_norm(norm, eps).rows_in_place(exec.isa, part);
                }
                rotary.rotate(exec.isa, task * ROWS_PER_TASK, heads, plan.head_dim, part);
            });
    }

    batch.append(exec, index, &w.k, &w.v);
    w.lap(Work::RopeAppend);
    let attention = Attention {
        heads: plan.heads,
        scale: plan.scale,
        softcap: plan.softcap,
        sinks: None,
        rotate: &|set, positions, queries| {
            let mut turn = RotaryRows::new();
            turn.set_turn(model.rotary_table(plan.rope, set), positions);
            for query in queries.chunks_exact_mut(plan.head_dim) {
                turn.rotate(exec.isa, 0, 1, plan.head_dim, query);
            }
        },
    };
    let heads = sized(&mut w.heads, rows * q_len);
    batch.attend(exec, index, &attention, &w.q, heads, &mut w.attend)?;
    w.lap(Work::Attention);

    if layer.gate.is_some() {
        let gate = &w.gate;
        let per_task = ROWS_PER_TASK * q_len;
        exec.pool
            .for_each_chunk(&mut w.heads, per_task, |task, heads, _| {
                let from = task * per_task;
                activation::sigmoid_gate(exec.isa, heads, &gate[from..from + heads.len()]);
            });
    }

    let output = &layer.output;
    w.activations
        .set(exec, &w.heads, rows, q_len, needs(exec, &[&output.weight]));
    w.lap(Work::Quantise);
    matmul(
        exec,
        &w.activations,
        &output.weight,
        sized(&mut w.normed, rows * hidden),
    );
    add_bias(output, &mut w.normed);
    w.lap(Work::Output);
    Ok(())
}

/// `x` (`[rows][hidden]`) becomes `down(activation(gate(x)) · up(x))`.
#[expect(
    clippy::too_many_arguments,
    reason = "the buffers it works in are the caller's"
)]
fn gated(
    exec: &Exec,
    mlp: &Gated,
    activation: Activation,
    rows: usize,
    x: &mut Vec<f32>,
    gate: &mut Vec<f32>,
    up: &mut Vec<f32>,
    activations: &mut Activations,
    profile: &mut Option<Box<Profile>>,
) {
    let mut lap = |work| {
        if let Some(profile) = profile {
            profile.lap(work);
        }
    };
    let hidden = x.len() / rows;
    let ffn = mlp.gate.weight.n();
    let weights = [&mlp.gate.weight, &mlp.up.weight];
    activations.set(exec, x, rows, hidden, needs(exec, &weights));
    lap(Work::Quantise);
    matmul_many(
        exec,
        activations,
        &weights,
        &mut [sized(gate, rows * ffn), sized(up, rows * ffn)],
    );
    add_bias(&mlp.gate, gate);
    add_bias(&mlp.up, up);
    exec.pool
        .for_each_chunk(gate, ROWS_PER_TASK * ffn, |task, gate, _| {
            let from = task * ROWS_PER_TASK * ffn;
            let up = &up[from..from + gate.len()];
            activation.gate(exec.isa, gate, up);
        });
    lap(Work::GateUp);
    activations.set(exec, gate, rows, ffn, needs(exec, &[&mlp.down.weight]));
    lap(Work::Quantise);
    matmul(exec, activations, &mlp.down.weight, sized(x, rows * hidden));
    add_bias(&mlp.down, x);
    lap(Work::Down);
}

/// `w.normed` becomes the weighted sum of the experts that the router picks for each row.
///
/// Experts add in ascending order and the shared one last, so a row's sum does not depend on the
/// other rows.
#[expect(
    clippy::too_many_arguments,
    reason = "what the blueprint says of a mixture"
)]
fn mixture(
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
    let scores = sized(&mut w.router, rows * experts.len());
    matmul(exec, &w.activations, &router.weight, scores);
    w.chosen.clear();
    for row in scores.chunks_exact_mut(experts.len()) {
        pick(row, used, weighting, &mut w.order, &mut w.chosen);
    }

    sized(&mut w.sum, rows * hidden).fill(0.0);
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
            gate,
            up,
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
            gate,
            up,
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
        let shares: Vec<f32> = w
            .normed
            .chunks_exact(hidden)
            .map(|row| {
                let score: f32 = row.iter().zip(&shared.router).map(|(x, w)| x * w).sum();
                1.0 / (1.0 + (-score).exp())
            })
            .collect();
        let Workspace {
            normed,
            gate,
            up,
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
            gate,
            up,
            activations,
            profile,
        );
        let targets = w
            .sum
            .chunks_exact_mut(hidden)
            .zip(w.normed.chunks_exact(hidden));
        for ((target, out), share) in targets.zip(shares) {
            activation::add_scaled(exec.isa, target, out, share);
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

/// Logits of the rows wanted.
fn logits(model: &Model, exec: &Exec, batch: &Batch<'_>, w: &mut Workspace) {
    let blueprint = model.blueprint();
    let hidden = blueprint.hidden;
    w.normed.clear();
    for row in batch.wanted_rows() {
        w.normed
            .extend_from_slice(&w.hidden[row * hidden..(row + 1) * hidden]);
    }
    let rows = w.normed.len() / hidden;
    w.logits.clear();
    if rows == 0 {
        return;
    }
    let weights = model.weights();
    norm_rows_in_place(
        exec,
        &mut w.normed,
        &weights.output_norm,
        blueprint.norm_eps,
    );
    w.lap(Work::Norms);
    w.activations.set(
        exec,
        &w.normed,
        rows,
        hidden,
        needs(exec, &[&weights.output]),
    );
    w.lap(Work::Quantise);
    matmul(
        exec,
        &w.activations,
        &weights.output,
        sized(&mut w.logits, rows * blueprint.vocab),
    );
    if blueprint.final_softcap > 0.0 {
        softcap(exec.isa, &mut w.logits, blueprint.final_softcap);
    }
    w.lap(Work::Logits);
}

/// What the products of one input with `weights` need of it.
fn needs(exec: &Exec, weights: &[&longview_kernels::Packed]) -> longview_kernels::Need {
    weights
        .iter()
        .map(|weight| needed(exec.numerics, weight.format()))
        .reduce(longview_kernels::Need::and)
        .expect("a product has at least one matrix")
}

/// Weights are stored here as the factor itself, whatever the file has (see `load`).
fn rms_norm(weight: &[f32], epsilon: f32) -> RmsNorm<'_> {
    RmsNorm {
        weight,
        form: NormWeight::Plain,
        epsilon,
    }
}

fn norm_rows(exec: &Exec, x: &[f32], weight: &[f32], eps: f32, out: &mut Vec<f32>) {
    let out = sized(out, x.len());
    exec.pool
        .for_each_chunk(out, ROWS_PER_TASK * weight.len(), |task, out, _| {
            let from = task * ROWS_PER_TASK * weight.len();
            rms_norm(weight, eps).rows(exec.isa, &x[from..from + out.len()], out);
        });
}

fn norm_rows_in_place(exec: &Exec, x: &mut [f32], weight: &[f32], eps: f32) {
    exec.pool
        .for_each_chunk(x, ROWS_PER_TASK * weight.len(), |_, rows, _| {
            rms_norm(weight, eps).rows_in_place(exec.isa, rows);
        });
}

fn add_rows(exec: &Exec, x: &mut [f32], y: &[f32]) {
    let chunk = 1 << 14;
    exec.pool.for_each_chunk(x, chunk, |task, part, _| {
        let y = &y[task * chunk..task * chunk + part.len()];
        activation::add(exec.isa, part, y);
    });
}

fn add_bias(linear: &Linear, x: &mut [f32]) {
    if let Some(bias) = &linear.bias {
        for row in x.chunks_exact_mut(bias.len()) {
            row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
        }
    }
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
