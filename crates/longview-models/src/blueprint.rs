//! What a decoder is made of, before any weight is read.
//!
//! An architecture's file turns its settings into a [`Blueprint`]; loading and the forward pass
//! follow the blueprint and know no architecture by name.

pub use longview_kernels::activation::Activation;
use longview_kv::{KvLayout, KvType, LayerLayout, LayerState};

use crate::rope::Rope;

/// A whole decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Blueprint {
    /// Name of the architecture, such as `llama`.
    pub architecture: &'static str,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Positions the model was made for.
    pub max_positions: usize,
    /// Added to the mean square inside every norm.
    pub norm_eps: f32,
    /// Factor on the token embeddings.
    pub embedding_scale: f32,
    /// Soft cap on the logits; 0 for none.
    pub final_softcap: f32,
    /// The rotary embeddings that layers refer to by index.
    pub ropes: Vec<Rope>,
    /// The layers, first to last.
    pub layers: Vec<LayerBlueprint>,
}

/// One decoder layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerBlueprint {
    /// Its attention.
    pub attention: AttentionBlueprint,
    /// Its feed-forward part.
    pub mlp: MlpBlueprint,
    /// Norms around the two parts.
    pub norms: Norms,
}

/// Where a layer normalises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norms {
    /// Before attention and before the feed-forward part.
    Before,
    /// Before each part, and again on its output before it joins the residual stream (Gemma).
    BeforeAndAfter,
}

/// The attention of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionBlueprint {
    /// Query heads.
    pub heads: usize,
    /// KV heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// Soft cap on the scores; 0 for none.
    pub softcap: f32,
    /// Tokens of the sliding window; `None` for full attention.
    pub window: Option<usize>,
    /// Index of the layer's rotary embedding in [`Blueprint::ropes`].
    pub rope: usize,
    /// How the projections are stored.
    pub projections: Projections,
    /// Biases on the query, key and value projections.
    pub qkv_bias: Bias,
    /// Bias on the output projection.
    pub output_bias: Bias,
    /// Norm of every query and key head before the rotary embedding.
    pub qk_norm: QkNorm,
}

/// How query, key and value projections are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projections {
    /// Three tensors.
    Separate,
    /// One tensor: queries, then keys, then values.
    Fused,
}

/// Whether a projection adds a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// It does.
    Present,
    /// It does not.
    Absent,
}

/// Whether query and key heads are normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// They are not.
    Absent,
    /// RMS norm over the channels of each head.
    PerHead,
}

/// The feed-forward part of a layer.
#[derive(Clone, Debug, PartialEq)]
pub enum MlpBlueprint {
    /// `down(activation(gate(x)) · up(x))`.
    Gated {
        /// Width inside.
        ffn: usize,
        /// The activation.
        activation: Activation,
        /// How gate and up are stored.
        projections: Projections,
        /// Biases on all three.
        bias: Bias,
    },
    /// Several gated parts of which a router picks a few for each row.
    Experts {
        /// Width inside one expert.
        ffn: usize,
        /// The activation.
        activation: Activation,
        /// Experts in all.
        experts: usize,
        /// Experts a row uses.
        used: usize,
        /// How the weights of the experts used are made.
        weighting: Weighting,
    },
}

/// How the router's probabilities become weights of the experts used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weighting {
    /// Their softmax probabilities among all experts.
    Softmax,
    /// The same, divided by their sum.
    Normalised,
}

impl Blueprint {
    /// How the model's keys and values are laid out.
    pub fn kv_layout(&self, kv_type: KvType) -> KvLayout {
        let of_layer = |layer: &LayerBlueprint| LayerLayout {
            state: match layer.attention.window {
                None => LayerState::Full,
                Some(tokens) => LayerState::Window { tokens },
            },
            kv_heads: layer.attention.kv_heads,
            head_dim: layer.attention.head_dim,
            v_dim: layer.attention.head_dim,
        };
        KvLayout::new(
            &self.layers.iter().map(of_layer).collect::<Vec<_>>(),
            kv_type,
        )
    }
}
