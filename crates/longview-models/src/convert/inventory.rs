//! The tensors a GGUF file of a model holds, from its blueprint alone.

use crate::blueprint::{Bias, Blueprint, LayerBlueprint, MlpBlueprint, Norms, Projections, QkNorm};
use crate::names::{self, Naming, Role};

/// One tensor of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) role: Role,
    /// Its layer; 0 for the tensors that belong to none.
    pub(crate) layer: usize,
    pub(crate) part: Part,
    /// Row-major, as [`longview_weights::Tensor::shape`]. The experts of a layer lie in one tensor
    /// of three dimensions.
    pub(crate) shape: Vec<usize>,
}

/// The half of a projection that a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Weight,
    Bias,
}

/// What makes the logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// The embedding.
    Tied,
    /// A matrix of its own.
    Own,
}

impl Entry {
    /// Its name in a GGUF file.
    pub(crate) fn name(&self) -> String {
        let stem = names::stem(Naming::Gguf, &[], self.role, self.layer, 0);
        stem + self.part.suffix()
    }
}

impl Part {
    /// What follows the stem of a tensor's name.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Part::Weight => ".weight",
            Part::Bias => ".bias",
        }
    }
}

/// The tensors of `blueprint`, in the order files have them: embedding, layers, head.
pub(crate) fn inventory(blueprint: &Blueprint, head: Head) -> Vec<Entry> {
    let mut entries = Vec::new();
    let matrix = [blueprint.vocab, blueprint.hidden];
    push(&mut entries, Role::TokenEmbedding, 0, &matrix);
    for (index, layer) in blueprint.layers.iter().enumerate() {
        of_layer(&mut entries, layer, index, blueprint.hidden);
    }
    push(&mut entries, Role::OutputNorm, 0, &[blueprint.hidden]);
    if head == Head::Own {
        push(&mut entries, Role::Output, 0, &matrix);
    }
    entries
}

/// Experts of a layer, 0 where no layer has any.
pub(crate) fn experts(blueprint: &Blueprint) -> usize {
    let of_layer = |layer: &LayerBlueprint| match layer.mlp {
        MlpBlueprint::Experts { experts, .. } => experts,
        MlpBlueprint::Gated { .. } => 0,
    };
    blueprint.layers.iter().map(of_layer).max().unwrap_or(0)
}

fn of_layer(entries: &mut Vec<Entry>, layer: &LayerBlueprint, index: usize, hidden: usize) {
    let attention = &layer.attention;
    let q_rows = attention.heads * attention.head_dim;
    let kv_rows = attention.kv_heads * attention.head_dim;
    let both = layer.norms == Norms::BeforeAndAfter;

    push(entries, Role::AttentionNorm, index, &[hidden]);
    let projections = match attention.projections {
        Projections::Separate => vec![
            (Role::Query, q_rows),
            (Role::Key, kv_rows),
            (Role::Value, kv_rows),
        ],
        Projections::Fused => vec![(Role::QueryKeyValue, q_rows + 2 * kv_rows)],
    };
    for (role, rows) in projections {
        linear(entries, role, index, [rows, hidden], attention.qkv_bias);
    }
    if attention.qk_norm == QkNorm::PerHead {
        push(entries, Role::QueryNorm, index, &[attention.head_dim]);
        push(entries, Role::KeyNorm, index, &[attention.head_dim]);
    }
    let output = [hidden, q_rows];
    linear(
        entries,
        Role::AttentionOutput,
        index,
        output,
        attention.output_bias,
    );
    if both {
        push(entries, Role::PostAttentionNorm, index, &[hidden]);
    }
    push(entries, Role::FfnNorm, index, &[hidden]);
    match layer.mlp {
        MlpBlueprint::Gated {
            ffn,
            projections,
            bias,
            ..
        } => {
            match projections {
                Projections::Separate => {
                    linear(entries, Role::Gate, index, [ffn, hidden], bias);
                    linear(entries, Role::Up, index, [ffn, hidden], bias);
                }
                Projections::Fused => {
                    linear(entries, Role::GateUp, index, [2 * ffn, hidden], bias);
                }
            }
            linear(entries, Role::Down, index, [hidden, ffn], bias);
        }
        MlpBlueprint::Experts { ffn, experts, .. } => {
            push(entries, Role::Router, index, &[experts, hidden]);
            push(entries, Role::ExpertGate, index, &[experts, ffn, hidden]);
            push(entries, Role::ExpertUp, index, &[experts, ffn, hidden]);
            push(entries, Role::ExpertDown, index, &[experts, hidden, ffn]);
        }
    }
    if both {
        push(entries, Role::PostFfnNorm, index, &[hidden]);
    }
}

fn linear(entries: &mut Vec<Entry>, role: Role, layer: usize, shape: [usize; 2], bias: Bias) {
    push(entries, role, layer, &shape);
    if bias == Bias::Present {
        entries.push(Entry {
            role,
            layer,
            part: Part::Bias,
            shape: vec![shape[0]],
        });
    }
}

fn push(entries: &mut Vec<Entry>, role: Role, layer: usize, shape: &[usize]) {
    entries.push(Entry {
        role,
        layer,
        part: Part::Weight,
        shape: shape.to_vec(),
    });
}
