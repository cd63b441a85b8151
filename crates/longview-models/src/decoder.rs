//! The forward pass: a batch of rows goes in, logits of the rows wanted come out.

mod delta;
mod entry;
mod feed_forward;
pub(crate) mod first_token;

use longview_kernels::activation::{self, softcap};
use longview_kernels::format::dequantize;
use longview_kernels::{Activations, Exec, Floats, announce, matmul, matmul_many, needed};
use longview_kv::keep::{AttentionOf, LayerRows};
use longview_kv::{Attention, Batch, Wanted};

use crate::blueprint::{AttentionBlueprint, Mixer, MlpBlueprint};
use crate::embedding::EmbeddingPages;
use crate::error::ModelError;
use crate::load::{self, Linear, Mlp};
use crate::model::Model;
use crate::profile::Work;
use crate::workspace::Workspace;
use delta::gated_delta;
use entry::{Added, Entry, rms_norm};
use feed_forward::{from_stream, mixture};

/// Rows that one task of the small row-wise operations works on at most.
const ROWS_PER_TASK: usize = 16;

/// Rows that one task of the small row-wise operations works on, of `rows`: each thread has some.
fn rows_per_task(exec: &Exec, rows: usize) -> usize {
    rows.div_ceil(exec.pool.threads()).clamp(1, ROWS_PER_TASK)
}

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

    first_token::of_batch(model, exec, batch, &mut w.first_tokens)?;
    if let Some(profile) = &mut w.profile {
        profile.begin();
    }
    embed(model, exec, batch, &mut w.hidden)?;
    rotary_angles(model, batch, w);
    w.lap(Work::Embedding);

    let mut added_norm = None;
    for (index, (plan, layer)) in blueprint
        .layers
        .iter()
        .zip(&model.weights().layers)
        .enumerate()
    {
        if let Some(profile) = &mut w.profile {
            profile.layer(Some(index));
        }
        let entry = Entry {
            added: (index > 0).then_some(Added { norm: added_norm }),
            norm: &layer.mixer_norm,
            eps,
        };
        match (&plan.mixer, &layer.mixer) {
            (Mixer::Attention(plan), load::Mixer::Attention(layer)) => {
                attention(model, exec, batch, index, plan, layer, entry, w)?;
            }
            (Mixer::GatedDelta(shape), load::Mixer::GatedDelta(layer)) => {
                gated_delta(exec, batch, index, shape, layer, entry, w)?;
                if is_last(model, index) {
                    narrow(batch, hidden, hidden, w);
                }
            }
            _ => unreachable!("the loader makes the part that the blueprint names"),
        }
        if w.hidden.is_empty() {
            // Nothing is wanted but what the layers keep.
            w.states.clear();
            w.logits.sized(0);
            if let Some(profile) = &mut w.profile {
                profile.layer(None);
            }
            return Ok(());
        }

        let entry = Entry {
            added: Some(Added {
                norm: layer.post_attention_norm.as_deref(),
            }),
            norm: &layer.ffn_norm,
            eps,
        };
        match (&plan.mlp, &layer.mlp) {
            (MlpBlueprint::Gated { activation, .. }, Mlp::Gated(mlp)) => {
                let then = |x: &Activations| announce_layer(model, exec, index + 1, x);
                from_stream(exec, mlp, *activation, entry, &then, w);
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
            ) => {
                entry.normalise(exec, &mut w.hidden, &mut w.normed);
                w.lap(Work::Norms);
                mixture(
                    exec,
                    router,
                    experts,
                    shared.as_ref(),
                    *activation,
                    *used,
                    *weighting,
                    hidden,
                    w,
                );
            }
            _ => unreachable!("the loader makes the part that the blueprint names"),
        }
        added_norm = layer.post_ffn_norm.as_deref();
    }

    if let Some(profile) = &mut w.profile {
        profile.layer(None);
    }
    let entry = Entry {
        added: Some(Added { norm: added_norm }),
        norm: &model.weights().output_norm,
        eps,
    };
    states(exec, batch, entry, w);
    logits(model, exec, batch, entry, w);
    Ok(())
}

fn is_last(model: &Model, layer: usize) -> bool {
    layer + 1 == model.blueprint().layers.len()
}

/// Leaves of the residual stream, `[rows][hidden]`, and of `normed`, `[rows][width]`, the rows of which something is
/// wanted: behind what the last layer keeps of the others, nobody reads them.
fn narrow(batch: &Batch<'_>, hidden: usize, width: usize, w: &mut Workspace) {
    let mut rows = 0;
    for (place, (row, _)) in batch.outputs().enumerate() {
        // Rows come in ascending order, so what is moved was not written over.
        for (x, width) in [(&mut w.hidden, hidden), (&mut w.normed, width)] {
            x.copy_within(row * width..(row + 1) * width, place * width);
        }
        rows = place + 1;
    }
    w.hidden.sized(rows * hidden);
    w.normed.sized(rows * width);
}

/// Token embeddings, read from the file's own rows, or where they make the logits, too, from the packed ones, which
/// are the same numbers and in memory anyway.
fn embed(
    model: &Model,
    exec: &Exec,
    batch: &Batch<'_>,
    out: &mut Floats,
) -> Result<(), ModelError> {
    let (hidden, vocab) = (model.blueprint().hidden, model.blueprint().vocab);
    let mut ids = batch.segments().iter().flat_map(|segment| segment.tokens);
    if let Some(&id) = ids.find(|&&id| id as usize >= vocab) {
        return Err(ModelError::TokenOutOfRange {
            id,
            vocabulary: vocab,
        });
    }
    let scale = model.blueprint().embedding_scale;
    let scaled = |out: &mut [f32]| {
        if scale != 1.0 {
            activation::scale(exec.isa, out, scale);
        }
    };
    if model.file().is_tied() {
        let packed = &model.weights().output;
        let out = out.sized(batch.rows() * hidden);
        exec.pool.for_each_chunk(out, hidden, |row, out, _| {
            packed.row_f32(batch.token(row) as usize, out);
            scaled(out);
        });
        return Ok(());
    }
    let table = model.embedding()?;
    let at_once = EmbeddingPages::rows_at_once(&table);
    let parts = out
        .sized(batch.rows() * hidden)
        .chunks_mut(at_once * hidden);
    for (part, out) in parts.enumerate() {
        let rows = out.len() / hidden;
        exec.pool.for_each_chunk(out, hidden, |row, out, _| {
            let token = batch.token(part * at_once + row);
            dequantize(table.format, table.row(token as usize), out);
            scaled(out);
        });
        model.embedding_read(&table, rows);
    }
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
    entry: Entry<'_>,
    w: &mut Workspace,
) -> Result<(), ModelError> {
    let rows = batch.rows();
    let (q_len, kv_len) = (plan.heads * plan.head_dim, plan.kv_heads * plan.head_dim);
    let hidden = model.blueprint().hidden;
    // Where text is only read, the last layer is for its keys and values.
    let reads_only =
        is_last(model, index) && batch.outputs().next().is_none() && batch.may_skip_attention();
    let has_queries = !reads_only || batch.is_observed(index);
    let weights = [&layer.query.weight, &layer.key.weight, &layer.value.weight];
    let need = layer.gate.iter().fold(needs(exec, &weights), |need, gate| {
        need.and(needs(exec, &[&gate.weight]))
    });
    entry.prepare(exec, &mut w.hidden, &w.normed, need, &mut w.activations);
    w.lap(Work::Norms);
    let outs = &mut [
        w.q.sized(if has_queries { rows * q_len } else { 0 }),
        w.k.sized(rows * kv_len),
        w.v.sized(rows * kv_len),
    ];
    match reads_only {
        true => announce(exec, &w.activations, &[]),
        false => announce(exec, &w.activations, &[&layer.output.weight]),
    }
    let unused = usize::from(!has_queries);
    matmul_many(
        exec,
        &w.activations,
        &weights[unused..],
        &mut outs[unused..],
    );
    w.first_tokens.keys_and_values(index, &mut w.k, &mut w.v);
    add_bias(exec, &layer.query, &mut w.q);
    add_bias(exec, &layer.key, &mut w.k);
    add_bias(exec, &layer.value, &mut w.v);
    if let Some(gate) = layer.gate.as_ref().filter(|_| !reads_only) {
        let out = w.gates.gate.sized(rows * q_len);
        matmul(exec, &w.activations, &gate.weight, out);
        add_bias(exec, gate, &mut w.gates.gate);
    }
    w.lap(Work::Qkv);

    let rotary = &w.rotary[plan.rope];
    let (q_norm, k_norm) = match &layer.head_norms {
        Some((q, k)) => (Some(q), Some(k)),
        None => (None, None),
    };
    let per_task = rows_per_task(exec, rows);
    for (heads, norm, x) in [
        (plan.heads, q_norm, &mut w.q),
        (plan.kv_heads, k_norm, &mut w.k),
    ] {
        let row_len = heads * plan.head_dim;
        exec.pool
            .for_each_chunk(x, per_task * row_len, |task, part, _| {
                if let Some(norm) = norm {
                    rms_norm(norm, entry.eps).rows_in_place(exec.isa, part);
                }
                rotary.rotate(exec.isa, task * per_task, heads, plan.head_dim, part);
            });
    }

    batch.append(exec, index, &w.k, &w.v);
    let seen = LayerRows {
        layer: index,
        q: &w.q,
        k: &w.k,
        v: &w.v,
    };
    if has_queries {
        batch.observe(exec, seen, model);
    }
    w.lap(Work::RopeAppend);
    if reads_only {
        w.hidden.sized(0);
        w.normed.sized(0);
        return Ok(());
    }
    let attention = Attention {
        heads: plan.heads,
        scale: plan.scale,
        softcap: plan.softcap,
        sinks: None,
        rotate: &|set, positions, queries| model.rotate(index, set, positions, queries),
    };
    // What was in `normed` is in the stream by now, and the output product writes it after it was read.
    let heads = w.normed.sized(rows * q_len);
    batch.attend(exec, index, &attention, &w.q, heads, &mut w.attend)?;
    w.lap(Work::Attention);

    if layer.gate.is_some() {
        let gate = &w.gates.gate;
        let per_task = per_task * q_len;
        exec.pool
            .for_each_chunk(&mut w.normed, per_task, |task, heads, _| {
                let from = task * per_task;
                activation::sigmoid_gate(exec.isa, heads, &gate[from..from + heads.len()]);
            });
    }

    if is_last(model, index) {
        narrow(batch, hidden, q_len, w);
        if w.hidden.is_empty() {
            return Ok(());
        }
    }
    let rows = w.hidden.len() / hidden;
    let output = &layer.output;
    w.activations
        .set(exec, &w.normed, rows, q_len, needs(exec, &[&output.weight]));
    w.lap(Work::Quantise);
    match &model.weights().layers[index].mlp {
        Mlp::Gated(mlp) => announce(exec, &w.activations, &[&mlp.gate.weight, &mlp.up.weight]),
        Mlp::Experts { .. } => announce(exec, &w.activations, &[]),
    }
    matmul(
        exec,
        &w.activations,
        &output.weight,
        w.normed.sized(rows * hidden),
    );
    add_bias(exec, output, &mut w.normed);
    w.lap(Work::Output);
    Ok(())
}

/// Tells the threads with which weights layer `index` begins, or that logits follow.
fn announce_layer(model: &Model, exec: &Exec, index: usize, x: &Activations) {
    let weights = model.weights();
    match weights.layers.get(index).map(|layer| &layer.mixer) {
        Some(load::Mixer::Attention(attention)) => {
            let [query, key, value] = [&attention.query, &attention.key, &attention.value];
            announce(exec, x, &[&query.weight, &key.weight, &value.weight]);
        }
        Some(load::Mixer::GatedDelta(_)) => announce(exec, x, &[]),
        None => announce(exec, x, &[&weights.output]),
    }
}

/// Last hidden states of the rows wanted.
fn states(exec: &Exec, batch: &Batch<'_>, entry: Entry<'_>, w: &mut Workspace) {
    let hidden = entry.norm.len();
    w.states.clear();
    let mut stream = Vec::new();
    let outputs = batch.outputs().enumerate();
    for (row, _) in outputs.filter(|(_, (_, wanted))| *wanted == Wanted::Hidden) {
        let of_row = row * hidden..(row + 1) * hidden;
        stream.extend_from_slice(&w.hidden[of_row.clone()]);
        w.states.extend_from_slice(&w.normed[of_row]);
    }
    if !stream.is_empty() {
        entry.normalise(exec, &mut stream, &mut w.states);
    }
}

/// Logits of the rows wanted.
fn logits(model: &Model, exec: &Exec, batch: &Batch<'_>, entry: Entry<'_>, w: &mut Workspace) {
    let blueprint = model.blueprint();
    let hidden = blueprint.hidden;
    w.wanted.clear();
    let outputs = batch.outputs().enumerate();
    let of_logits = outputs.filter(|(_, (_, wanted))| *wanted != Wanted::Hidden);
    for (place, (row, _)) in of_logits.enumerate() {
        let of_row = row * hidden..(row + 1) * hidden;
        w.wanted.extend_from_slice(&w.hidden[of_row.clone()]);
        // Rows come in ascending order, so what is moved was not written over.
        w.normed.copy_within(of_row, place * hidden);
    }
    let rows = w.wanted.len() / hidden;
    w.logits.sized(0);
    if rows == 0 {
        return;
    }
    let weights = model.weights();
    let need = needs(exec, &[&weights.output]);
    let added = &w.normed[..rows * hidden];
    entry.prepare(exec, &mut w.wanted, added, need, &mut w.activations);
    w.lap(Work::Norms);
    // Another token may follow.
    announce_layer(model, exec, 0, &w.activations);
    matmul(
        exec,
        &w.activations,
        &weights.output,
        w.logits.sized(rows * blueprint.vocab),
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

fn add_bias(exec: &Exec, linear: &Linear, x: &mut [f32]) {
    if let Some(bias) = &linear.bias {
        let per_task = rows_per_task(exec, x.len() / bias.len()) * bias.len();
        exec.pool.for_each_chunk(x, per_task, |_, rows, _| {
            for row in rows.chunks_exact_mut(bias.len()) {
                activation::add(exec.isa, row, bias);
            }
        });
    }
}
