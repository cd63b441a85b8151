//! The tensors a GGUF file of a model holds, from its blueprint alone.

use crate::arch::{Architecture, Names};
use crate::blueprint::{
    AttentionBlueprint, Bias, Blueprint, DeltaShape, LayerBlueprint, Mixer, MlpBlueprint, Norms,
    OutputGate, Projections, QkNorm,
};
use crate::delta_rows::DeltaFiles;
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
    /// Its name in a GGUF file of `architecture`.
    pub(crate) fn name(&self, architecture: &Architecture) -> String {
        self.part
            .name(Naming::Gguf, architecture.names, self.role, self.layer, 0)
    }
}

impl Part {
    /// What a file calls this half of the projection `role`.
    pub(crate) fn name(
        self,
        naming: Naming,
        names: Names,
        role: Role,
        layer: usize,
        expert: usize,
    ) -> String {
        match self {
            Part::Weight => names::weight(naming, names, role, layer, expert),
            Part::Bias => names::bias(naming, names, role, layer, expert),
        }
    }
}

/// The tensors of `blueprint`, in the order files have them: embedding, layers, head. `delta` is
/// how its architecture's files have gated delta layers.
pub(crate) fn inventory(
    blueprint: &Blueprint,
    delta: Option<DeltaFiles>,
    head: Head,
) -> Vec<Entry> {
    let mut entries = Vec::new();
    let matrix = [blueprint.vocab, blueprint.hidden];
    push(&mut entries, Role::TokenEmbedding, 0, &matrix);
    for (index, layer) in blueprint.layers.iter().enumerate() {
        of_layer(&mut entries, layer, delta, index, blueprint.hidden);
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

fn of_layer(
    entries: &mut Vec<Entry>,
    layer: &LayerBlueprint,
    delta: Option<DeltaFiles>,
    index: usize,
    hidden: usize,
) {
    let both = layer.norms == Norms::BeforeAndAfter;
    push(entries, Role::AttentionNorm, index, &[hidden]);
    match &layer.mixer {
        Mixer::Attention(attention) => of_attention(entries, attention, index, hidden),
        Mixer::GatedDelta(shape) => of_delta(entries, shape, delta, index, hidden),
    }
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
        MlpBlueprint::Experts {
            ffn,
            experts,
            shared,
            ..
        } => {
            push(entries, Role::Router, index, &[experts, hidden]);
            push(entries, Role::ExpertGate, index, &[experts, ffn, hidden]);
            push(entries, Role::ExpertUp, index, &[experts, ffn, hidden]);
            push(entries, Role::ExpertDown, index, &[experts, hidden, ffn]);
            if let Some(ffn) = shared {
                push(entries, Role::SharedRouter, index, &[hidden]);
                push(entries, Role::SharedGate, index, &[ffn, hidden]);
                push(entries, Role::SharedUp, index, &[ffn, hidden]);
                push(entries, Role::SharedDown, index, &[hidden, ffn]);
            }
        }
    }
    if both {
        push(entries, Role::PostFfnNorm, index, &[hidden]);
    }
}

fn of_attention(
    entries: &mut Vec<Entry>,
    attention: &AttentionBlueprint,
    index: usize,
    hidden: usize,
) {
    let q_rows = attention.heads * attention.head_dim;
    let kv_rows = attention.kv_heads * attention.head_dim;
    let made = match attention.output_gate {
        OutputGate::Absent => q_rows,
        OutputGate::Sigmoid => 2 * q_rows,
    };
    let projections = match attention.projections {
        Projections::Separate => vec![
            (Role::Query, made),
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
}

fn of_delta(
    entries: &mut Vec<Entry>,
    shape: &DeltaShape,
    files: Option<DeltaFiles>,
    index: usize,
    hidden: usize,
) {
    let (channels, heads) = (shape.channels(), shape.value_heads);
    let values = heads * shape.value_dim;
    push(entries, Role::DeltaQkv, index, &[channels, hidden]);
    push(entries, Role::DeltaZ, index, &[values, hidden]);
    if files == Some(DeltaFiles::Fused) {
        push(entries, Role::DeltaBetaAlpha, index, &[2 * heads, hidden]);
    } else {
        push(entries, Role::DeltaBeta, index, &[heads, hidden]);
        push(entries, Role::DeltaAlpha, index, &[heads, hidden]);
    }
    push(entries, Role::DeltaConv, index, &[channels, shape.taps]);
    push(entries, Role::DeltaRate, index, &[heads]);
    push(entries, Role::DeltaRateBias, index, &[heads]);
    push(entries, Role::DeltaNorm, index, &[shape.value_dim]);
    push(entries, Role::DeltaOutput, index, &[hidden, values]);
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
