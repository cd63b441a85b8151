//! How a part of a layer takes its input from the residual stream.

use longview_kernels::activation;
use longview_kernels::norm::{NormWeight, RmsNorm};
use longview_kernels::{Activations, Exec, Need};

use super::rows_per_task;

/// What the part before gave is added to the residual stream, and the sum is normalised for the
/// part that follows.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    /// What is added; nothing before the first part.
    pub(super) added: Option<Added<'a>>,
    /// Normalises the sum, `[hidden]`.
    pub(super) norm: &'a [f32],
    pub(super) eps: f32,
}

/// How what a part gave is added.
#[derive(Clone, Copy)]
pub(super) struct Added<'a> {
    /// Normalises it before, `[hidden]`.
    pub(super) norm: Option<&'a [f32]>,
}

impl Entry<'_> {
    /// Takes in rows of the stream `hidden` (`[rows][hidden]`) for products that need them so.
    /// `gave` is what the part before gave, of the same shape; not read before the first.
    ///
    /// Adding, normalising and rounding pass over each row once, while it is in the nearest cache.
    pub(super) fn prepare(
        &self,
        exec: &Exec,
        hidden: &mut [f32],
        gave: &[f32],
        need: Need,
        activations: &mut Activations,
    ) {
        let width = self.norm.len();
        let rows = hidden.len() / width;
        activations.set_with(exec, hidden, rows, width, need, &|row, x, out| {
            if let Some(added) = self.added {
                added.to(
                    exec,
                    x,
                    &gave[row * width..(row + 1) * width],
                    self.eps,
                    out,
                );
            }
            rms_norm(self.norm, self.eps).rows(exec.isa, x, out);
        });
    }

    /// The same for parts that read rows as they are: the normalised rows are written over what
    /// the part before gave.
    pub(super) fn normalise(&self, exec: &Exec, hidden: &mut [f32], gave: &mut [f32]) {
        let width = self.norm.len();
        let per_task = rows_per_task(exec, hidden.len() / width) * width;
        if let Some(norm) = self.added.and_then(|added| added.norm) {
            exec.pool.for_each_chunk(gave, per_task, |_, rows, _| {
                rms_norm(norm, self.eps).rows_in_place(exec.isa, rows);
            });
        }
        if self.added.is_some() {
            let gave = &*gave;
            exec.pool.for_each_chunk(hidden, per_task, |task, x, _| {
                let from = task * per_task;
                activation::add(exec.isa, x, &gave[from..from + x.len()]);
            });
        }
        let hidden = &*hidden;
        exec.pool.for_each_chunk(gave, per_task, |task, out, _| {
            let from = task * per_task;
            let x = &hidden[from..from + out.len()];
            rms_norm(self.norm, self.eps).rows(exec.isa, x, out);
        });
    }
}

impl Added<'_> {
    /// Adds the row `gave` to the row `x`; `room` is overwritten.
    fn to(&self, exec: &Exec, x: &mut [f32], gave: &[f32], eps: f32, room: &mut [f32]) {
        match self.norm {
            None => activation::add(exec.isa, x, gave),
            Some(norm) => {
                rms_norm(norm, eps).rows(exec.isa, gave, room);
                activation::add(exec.isa, x, room);
            }
        }
    }
}

/// Weights are stored here as the factor itself, whatever the file has (see `load`).
pub(super) fn rms_norm(weight: &[f32], epsilon: f32) -> RmsNorm<'_> {
    RmsNorm {
        weight,
        form: NormWeight::Plain,
        epsilon,
    }
}
