//! What a decoder is made of, before any weight is read.
//!
//! An architecture's file turns its settings into a [`Blueprint`]; loading and the forward pass
//! follow the blueprint and know no architecture by name.

pub use longview_kernels::activation::Activation;
pub use longview_kernels::recurrent::DeltaShape;
use longview_kv::{KvForms, KvLayout, LayerLayout, LayerState};

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
    /// How its rows learn of each other.
    pub mixer: Mixer,
    /// Its feed-forward part.
    pub mlp: MlpBlueprint,
    /// Norms around the two parts.
    pub norms: Norms,
}

/// The part of a layer in which rows learn of the tokens before them.
#[derive(Clone, Debug, PartialEq)]
pub enum Mixer {
    /// Attention over keys and values.
    Attention(AttentionBlueprint),
    /// A gated delta rule with a state of a fixed size.
    GatedDelta(DeltaShape),
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
    /// What the heads' results are multiplied with.
    pub output_gate: OutputGate,
}

/// Whether what the heads gather passes a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputGate {
    /// It does not.
    Absent,
    /// Each channel is multiplied with the sigmoid of one that the query projection makes beside
    /// the query: for every head its query, then its gate.
    Sigmoid,
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
        /// Width of the expert that every row uses too, times a sigmoid of its own; `None` where
        /// there is none.
        shared: Option<usize>,
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

impl LayerBlueprint {
    /// Its attention, where it has one.
    pub fn attention(&self) -> Option<&AttentionBlueprint> {
        match &self.mixer {
            Mixer::Attention(attention) => Some(attention),
            Mixer::GatedDelta(_) => None,
        }
    }
}

impl Blueprint {
    /// The attention of every layer that has one, first to last.
    pub fn attentions(&self) -> impl Iterator<Item = &AttentionBlueprint> {
        self.layers.iter().filter_map(LayerBlueprint::attention)
    }

    /// As [`Blueprint::attentions`], to be changed.
    pub(crate) fn attentions_mut(&mut self) -> impl Iterator<Item = &mut AttentionBlueprint> {
        self.layers
            .iter_mut()
            .filter_map(|layer| match &mut layer.mixer {
                Mixer::Attention(attention) => Some(attention),
                Mixer::GatedDelta(_) => None,
            })
    }

    /// The sizes of its gated delta layers, `None` where it has none.
    pub(crate) fn delta(&self) -> Option<&DeltaShape> {
        self.layers.iter().find_map(|layer| match &layer.mixer {
            Mixer::Attention(_) => None,
            Mixer::GatedDelta(delta) => Some(delta),
        })
    }

    /// How the model's keys, values and states are laid out.
    pub fn kv_layout(&self, forms: impl Into<KvForms>) -> KvLayout {
        let of_layer = |layer: &LayerBlueprint| match &layer.mixer {
            Mixer::Attention(attention) => LayerLayout {
                state: match attention.window {
                    None => LayerState::Full,
                    Some(tokens) => LayerState::Window { tokens },
                },
                kv_heads: attention.kv_heads,
                head_dim: attention.head_dim,
                v_dim: attention.head_dim,
            },
            Mixer::GatedDelta(delta) => LayerLayout::recurrent(delta.state() * size_of::<f32>()),
        };
        KvLayout::new(&self.layers.iter().map(of_layer).collect::<Vec<_>>(), forms)
    }
}
