//! One gated delta layer of a pass.

use longview_kernels::activation::Activation;
use longview_kernels::recurrent::{DeltaRows, DeltaShape, GatedDelta};
use longview_kernels::{Exec, matmul, matmul_many};
use longview_kv::Batch;

use super::entry::{Entry, rms_norm};
use super::{ROWS_PER_TASK, needs};
use crate::error::ModelError;
use crate::load::Delta;
use crate::profile::Work;
use crate::workspace::Workspace;

/// `w.normed` becomes what the layer adds to the residual stream.
pub(super) fn gated_delta(
    exec: &Exec,
    batch: &mut Batch<'_>,
    index: usize,
    shape: &DeltaShape,
    layer: &Delta,
    entry: Entry<'_>,
    w: &mut Workspace,
) -> Result<(), ModelError> {
    let rows = batch.rows();
    let hidden = entry.norm.len();
    let (heads, values) = (shape.value_heads, shape.value_heads * shape.value_dim);
    let weights = [&layer.qkv, &layer.z, &layer.beta, &layer.alpha].map(|linear| &linear.weight);
    let need = needs(exec, &weights);
    entry.prepare(exec, &mut w.hidden, &w.normed, need, &mut w.activations);
    w.lap(Work::Norms);
    let outs = &mut [
        w.q.sized(rows * shape.channels()),
        w.heads.sized(rows * values),
        w.k.sized(rows * heads),
        w.v.sized(rows * heads),
    ];
    matmul_many(exec, &w.activations, &weights, outs);
    w.lap(Work::Qkv);

    w.k.iter_mut()
        .for_each(|beta| *beta = 1.0 / (1.0 + (-*beta).exp()));
    for row in w.v.chunks_exact_mut(heads) {
        let settings = layer.rate.iter().zip(&layer.rate_bias);
        for (alpha, (rate, bias)) in row.iter_mut().zip(settings) {
            *alpha = (rate * softplus(*alpha + bias)).exp();
        }
    }
    let delta = GatedDelta {
        shape: *shape,
        order: layer.order,
        conv: &layer.conv,
    };
    let inputs = DeltaRows {
        mixed: &w.q,
        decay: &w.v,
        beta: &w.k,
    };
    let read = w.gates.gate.sized(rows * values);
    batch.read_recurrent(exec, index, &delta, &inputs, read, &mut w.recurrent)?;

    // The norm of every head's result, times an activation of its gate.
    let per_task = ROWS_PER_TASK * values;
    exec.pool
        .for_each_chunk(&mut w.gates.gate, per_task, |_, read, _| {
            rms_norm(&layer.norm, entry.eps).rows_in_place(exec.isa, read);
        });
    let read = &w.gates.gate;
    exec.pool
        .for_each_chunk(&mut w.heads, per_task, |task, gate, _| {
            let from = task * per_task;
            Activation::Silu.gate(exec.isa, gate, &read[from..from + gate.len()]);
        });

    w.lap(Work::Recurrence);

    let output = &layer.output.weight;
    w.activations
        .set(exec, &w.heads, rows, values, needs(exec, &[output]));
    let out = w.normed.sized(rows * hidden);
    matmul(exec, &w.activations, output, out);
    w.lap(Work::Output);
    Ok(())
}

/// `ln(1 + e^x)`
fn softplus(x: f32) -> f32 {
    // Beyond this the 1 no longer counts.
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

#[cfg(test)]
mod tests {
    use super::softplus;

    #[test]
    fn softplus_is_smooth_and_never_infinite() {
        assert!((softplus(0.0) - std::f32::consts::LN_2).abs() < 1e-7);
        assert!((softplus(20.1) - softplus(19.9) - 0.2).abs() < 1e-4);
        assert_eq!(softplus(1e30), 1e30);
        assert_eq!(softplus(-1e30), 0.0);
    }
}
