//! Loading gated delta layers, whose rows files order in several ways.

use longview_kernels::recurrent::{DeltaShape, HeadOrder};

use super::{Linear, Loader, Place};
use crate::blueprint::Bias;
use crate::delta_rows::Fused;
use crate::error::ModelError;
use crate::load::check_shape;
use crate::names::{Naming, Role};

/// The weights of a gated delta layer.
pub(crate) struct Delta {
    /// Queries, keys and values.
    pub(crate) qkv: Linear,
    /// Gates of what value heads give.
    pub(crate) z: Linear,
    /// How much each value head writes, before the sigmoid.
    pub(crate) beta: Linear,
    /// How fast each value head forgets, before the softplus.
    pub(crate) alpha: Linear,
    /// `[taps][channels]`
    pub(crate) conv: Vec<f32>,
    /// `[value_heads]`, below 0: what the softplus is multiplied with.
    pub(crate) rate: Vec<f32>,
    /// `[value_heads]`, added before the softplus.
    pub(crate) rate_bias: Vec<f32>,
    /// `[value_dim]`
    pub(crate) norm: Vec<f32>,
    pub(crate) output: Linear,
    /// How value heads lie in all of these.
    pub(crate) order: HeadOrder,
}

impl Loader<'_> {
    pub(super) fn delta(
        &self,
        hidden: usize,
        shape: &DeltaShape,
        layer: usize,
    ) -> Result<Delta, ModelError> {
        let heads = shape.value_heads;
        let values = heads * shape.value_dim;
        let whole = |role, rows| {
            let place = Place::whole(role, layer, 0, rows);
            self.linear(&place, hidden, Bias::Absent, &|row| row)
        };
        let fused = Fused::new(shape);
        let some = |role, all, rows: &[usize]| {
            let place = Place::whole(role, layer, 0, all);
            self.gathered(&place, hidden, Bias::Absent, rows)
        };
        let (qkv, z) = if self.has(Role::DeltaQkvz, layer) {
            let all = fused.qkvz_rows();
            (
                some(Role::DeltaQkvz, all, &fused.qkv)?,
                some(Role::DeltaQkvz, all, &fused.z)?,
            )
        } else {
            (
                whole(Role::DeltaQkv, shape.channels())?,
                whole(Role::DeltaZ, values)?,
            )
        };
        let (beta, alpha) = if self.has(Role::DeltaBetaAlpha, layer) {
            (
                some(Role::DeltaBetaAlpha, 2 * heads, &fused.beta)?,
                some(Role::DeltaBetaAlpha, 2 * heads, &fused.alpha)?,
            )
        } else {
            (
                whole(Role::DeltaBeta, heads)?,
                whole(Role::DeltaAlpha, heads)?,
            )
        };
        let output = Place::whole(Role::DeltaOutput, layer, 0, hidden);
        Ok(Delta {
            qkv,
            z,
            beta,
            alpha,
            conv: self.convolution(shape, layer)?,
            rate: self.rate(heads, layer)?,
            rate_bias: self.vector(Role::DeltaRateBias, layer, heads)?,
            norm: self.vector(Role::DeltaNorm, layer, shape.value_dim)?,
            output: self.linear(&output, values, Bias::Absent, &|row| row)?,
            order: match (self.naming(), self.architecture.delta) {
                (Naming::Gguf, Some(files)) => files.gguf_order(),
                _ => HeadOrder::Grouped,
            },
        })
    }

    /// `[taps][channels]`
    fn convolution(&self, shape: &DeltaShape, layer: usize) -> Result<Vec<f32>, ModelError> {
        let (channels, taps) = (shape.channels(), shape.taps);
        let tensor = self.tensor(&self.weight_name(Role::DeltaConv, layer, 0))?;
        // Folders have one more dimension, of length 1.
        let expected: &[usize] = match tensor.shape.len() {
            3 => &[channels, 1, taps],
            _ => &[channels, taps],
        };
        check_shape(self.file, &tensor, expected)?;
        Ok(transposed(&tensor.to_f32(), taps))
    }

    fn rate(&self, heads: usize, layer: usize) -> Result<Vec<f32>, ModelError> {
        let stored = self.vector(Role::DeltaRate, layer, heads)?;
        Ok(match self.naming() {
            Naming::Gguf => stored,
            Naming::HuggingFace => stored.into_iter().map(rate_of_logarithm).collect(),
        })
    }
}

/// What GGUF files store for the logarithm that folders store.
pub(crate) fn rate_of_logarithm(logarithm: f32) -> f32 {
    -logarithm.exp()
}

/// `[rows][k]` becomes `[k][rows]`.
fn transposed(x: &[f32], k: usize) -> Vec<f32> {
    (0..k)
        .flat_map(|column| x.iter().skip(column).step_by(k).copied())
        .collect()
}
