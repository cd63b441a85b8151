//! Gated delta rule layers (<https://arxiv.org/abs/2412.06464>): what a layer has read is one matrix
//! a value head, which every token decays, corrects and reads.
//!
//! A row of inputs first passes a short causal convolution over its last few tokens. Then, for each
//! value head with its state `S [key_dim][value_dim]`, key `k` and query `q` of unit length:
//!
//! ```text
//! S ← decay · S                  u = β (v − kᵀS)
//! S ← S + k uᵀ                   out = qᵀS / √key_dim
//! ```
//!
//! Tokens go one by one and every sum has one order, so a row's bits do not depend on how many rows
//! are read at once. Key heads are independent of each other: they are what threads share.

mod conv;
mod delta;

use crate::Isa;
use crate::activation::Activation;
use crate::lanes;

/// Columns of a state that lie side by side, whatever the instruction set.
pub(crate) const PANEL: usize = 16;

/// The longest convolution, in tokens.
pub const MOST_TAPS: usize = 8;

/// Rows that pass through the scratch at once.
const TILE: usize = 16;

/// Added to the sum of squares of a query or key before its root is taken.
const EPSILON: f32 = 1e-6;

/// The sizes of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeltaShape {
    /// Heads of queries and keys.
    pub key_heads: usize,
    /// Heads of values, each with a state; a multiple of `key_heads`.
    pub value_heads: usize,
    /// Channels of a query or key.
    pub key_dim: usize,
    /// Channels of a value.
    pub value_dim: usize,
    /// Tokens that the convolution looks at, from 1 to [`MOST_TAPS`].
    pub taps: usize,
}

/// Which key head a value head belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HeadOrder {
    /// The value heads of one key head follow each other.
    Grouped,
    /// Every round of value heads has one for each key head.
    Tiled,
}

/// A layer's parameters.
#[derive(Clone, Copy, Debug)]
pub struct GatedDelta<'a> {
    /// Its sizes.
    pub shape: DeltaShape,
    /// How value heads lie in `conv` and in every row.
    pub order: HeadOrder,
    /// Weights of the convolution, `[taps][channels]`, the newest token last.
    pub conv: &'a [f32],
}

/// The inputs of consecutive tokens of one context.
#[derive(Clone, Copy, Debug)]
pub struct DeltaRows<'a> {
    /// Queries, keys and values of all heads before the convolution, `[rows][channels]`.
    pub mixed: &'a [f32],
    /// What a state is multiplied with before it is updated, `[rows][value_heads]`.
    pub decay: &'a [f32],
    /// How much of a correction is written, `[rows][value_heads]`.
    pub beta: &'a [f32],
}

/// Buffers of one thread, kept between calls.
#[derive(Default)]
pub struct DeltaScratch {
    /// `[TILE][key_dim]` each.
    q: Vec<f32>,
    k: Vec<f32>,
    /// `[TILE][padded value_dim]`
    v: Vec<f32>,
    /// `q · k` of each row of the tile.
    dots: [f32; TILE],
}

impl DeltaShape {
    /// Numbers in a row of queries, keys and values.
    pub fn channels(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
    }

    /// Value heads that share a key head.
    pub fn group(&self) -> usize {
        self.value_heads / self.key_heads
    }

    /// Numbers that one key head keeps between tokens.
    pub fn head_state(&self) -> usize {
        let history = (self.taps - 1) * (2 * self.key_dim + self.group() * self.value_dim);
        history.next_multiple_of(PANEL) + self.group() * self.matrix()
    }

    /// Numbers that a layer keeps between tokens, whatever it has read; all zero at the beginning.
    pub fn state(&self) -> usize {
        self.key_heads * self.head_state()
    }

    /// Numbers in the matrix of one value head, in panels: `[value_dim / 16][key_dim][16]`.
    fn matrix(&self) -> usize {
        self.key_dim * self.value_dim.next_multiple_of(PANEL)
    }
}

impl HeadOrder {
    /// The place of value head `member` of key head `head` among all value heads.
    pub fn value_head(self, shape: &DeltaShape, head: usize, member: usize) -> usize {
        match self {
            HeadOrder::Grouped => head * shape.group() + member,
            HeadOrder::Tiled => member * shape.key_heads + head,
        }
    }
}

/// The numbers of a state that is kept in bytes.
///
/// # Panics
/// When the bytes do not begin and end at the bounds of numbers.
pub fn numbers(bytes: &[u8]) -> &[f32] {
    // SAFETY: any four bytes are a float.
    let (before, numbers, after) = unsafe { bytes.align_to() };
    assert!(
        before.is_empty() && after.is_empty(),
        "whole aligned numbers"
    );
    numbers
}

/// As [`numbers`], to be written.
///
/// # Panics
/// When the bytes do not begin and end at the bounds of numbers.
pub fn numbers_mut(bytes: &mut [u8]) -> &mut [f32] {
    // SAFETY: any four bytes are a float, and any float is four bytes.
    let (before, numbers, after) = unsafe { bytes.align_to_mut() };
    assert!(
        before.is_empty() && after.is_empty(),
        "whole aligned numbers"
    );
    numbers
}

impl GatedDelta<'_> {
    /// Reads rows with key head `head`: updates `state` ([`DeltaShape::head_state`] numbers) and
    /// writes what its value heads give to `out`, `[rows][group][value_dim]`.
    ///
    /// # Panics
    /// When lengths do not agree with the shape.
    pub fn read(
        &self,
        isa: Isa,
        head: usize,
        rows: &DeltaRows<'_>,
        state: &mut [f32],
        out: &mut [f32],
        scratch: &mut DeltaScratch,
    ) {
        let shape = self.shape;
        let (channels, heads) = (shape.channels(), shape.value_heads);
        let count = rows.decay.len() / heads;
        assert_eq!(rows.mixed.len(), count * channels, "whole rows");
        assert_eq!(rows.beta.len(), count * heads, "a beta for each decay");
        assert_eq!(state.len(), shape.head_state(), "the state of one key head");
        let out_len = shape.group() * shape.value_dim;
        assert_eq!(out.len(), count * out_len, "room for every row");
        assert_eq!(
            self.conv.len(),
            shape.taps * channels,
            "weights for every channel"
        );
        for first in (0..count).step_by(TILE) {
            let tile = first..(first + TILE).min(count);
            let part = DeltaRows {
                mixed: &rows.mixed[tile.start * channels..tile.end * channels],
                decay: &rows.decay[tile.start * heads..tile.end * heads],
                beta: &rows.beta[tile.start * heads..tile.end * heads],
            };
            let out = &mut out[tile.start * out_len..tile.end * out_len];
            self.tile(isa, head, &part, state, out, scratch);
        }
    }

    /// As [`GatedDelta::read`], for at most [`TILE`] rows.
    fn tile(
        &self,
        isa: Isa,
        head: usize,
        rows: &DeltaRows<'_>,
        state: &mut [f32],
        out: &mut [f32],
        scratch: &mut DeltaScratch,
    ) {
        let shape = self.shape;
        let (key_dim, value_dim, heads) = (shape.key_dim, shape.value_dim, shape.value_heads);
        let count = rows.decay.len() / heads;
        let past = shape.taps - 1;
        let keys = shape.key_heads * key_dim;
        let history = past * (2 * key_dim + shape.group() * value_dim);
        let (history_of, matrices) = state.split_at_mut(history.next_multiple_of(PANEL));
        let (of_keys, of_values) = history_of.split_at_mut(past * 2 * key_dim);
        let (of_q, of_k) = of_keys.split_at_mut(past * key_dim);

        let convolve = |first: usize, width: usize, history: &mut [f32], out: &mut Vec<f32>| {
            let stride = width.next_multiple_of(PANEL);
            out.clear();
            out.resize(count * stride, 0.0);
            lanes::run(
                isa,
                conv::Convolve {
                    weight: self.conv,
                    mixed: rows.mixed,
                    channels: shape.channels(),
                    taps: shape.taps,
                    first,
                    width,
                    history,
                    out: &mut *out,
                    stride,
                },
            );
            Activation::Silu.apply(isa, out);
            stride
        };
        let stride = convolve(head * key_dim, key_dim, of_q, &mut scratch.q);
        convolve(keys + head * key_dim, key_dim, of_k, &mut scratch.k);
        let units = [
            (&mut scratch.q, 1.0 / (key_dim as f32).sqrt()),
            (&mut scratch.k, 1.0),
        ];
        for (x, length) in units {
            for row in x.chunks_exact_mut(stride) {
                lanes::run(isa, delta::Unit { row, length });
            }
        }
        let pairs = scratch
            .q
            .chunks_exact(stride)
            .zip(scratch.k.chunks_exact(stride));
        for (dot, (q, k)) in scratch.dots.iter_mut().zip(pairs) {
            *dot = lanes::run(isa, delta::Dot { q, k });
        }

        let out_len = shape.group() * value_dim;
        let matrices = matrices.chunks_exact_mut(shape.matrix());
        for (member, matrix) in matrices.enumerate() {
            let value_head = self.order.value_head(&shape, head, member);
            let history = &mut of_values[member * past * value_dim..][..past * value_dim];
            let first = 2 * keys + value_head * value_dim;
            let padded = convolve(first, value_dim, history, &mut scratch.v);
            let steps = delta::Steps {
                rows: delta::Rows {
                    k: &scratch.k,
                    q: &scratch.q,
                    stride,
                    key_dim,
                    dots: &scratch.dots[..count],
                    v: &scratch.v,
                    v_stride: padded,
                    decay: &rows.decay[value_head..],
                    beta: &rows.beta[value_head..],
                    gate_stride: heads,
                },
                state: matrix,
                out: &mut out[member * value_dim..],
                out_stride: out_len,
                value_dim,
            };
            lanes::run(isa, steps);
        }
    }
}
