//! The buffers of a forward pass, kept between passes.

use longview_kernels::rope::RotaryRows;
use longview_kernels::{Activations, Floats, Isa};
use longview_kv::{AttendWorkspace, RecurrentWorkspace};

use crate::blueprint::{Blueprint, Mixer, MlpBlueprint};
use crate::decoder::first_token::FirstTokens;
use crate::profile::{Profile, Work};

/// The current wave of activations. Buffers grow to the largest pass seen and stay.
#[derive(Default)]
pub struct Workspace {
    /// The residual stream, `[rows][hidden]`.
    pub(crate) hidden: Floats,
    /// What the part before gave, not yet added to the stream, `[rows][hidden]`; within attention what the heads
    /// gathered, `[rows][heads][head_dim]`.
    pub(crate) normed: Floats,
    /// Queries, `[rows][heads][head_dim]`.
    pub(crate) q: Floats,
    /// Keys, `[rows][kv_heads][head_dim]`.
    pub(crate) k: Floats,
    /// Values, `[rows][kv_heads][head_dim]`.
    pub(crate) v: Floats,
    /// What the heads of a gated delta layer gathered, `[rows][value_heads][value_dim]`.
    pub(crate) heads: Floats,
    pub(crate) gates: Gates,
    /// `[rows][experts]`
    pub(crate) router: Floats,
    /// The experts chosen and their weights, `[rows][used]`.
    pub(crate) chosen: Vec<(usize, f32)>,
    /// Experts by score.
    pub(crate) order: Vec<usize>,
    /// The rows one expert works on, with its weight there.
    pub(crate) members: Vec<(usize, f32)>,
    /// How much of the shared expert each row takes.
    pub(crate) shares: Vec<f32>,
    /// What the experts add up to, `[rows][hidden]`.
    pub(crate) sum: Floats,
    /// The rows one expert works on, its input and then its output, `[rows of it][hidden]`.
    pub(crate) expert_in: Vec<f32>,
    /// Inputs of matrix products as the kernels want them.
    pub(crate) activations: Activations,
    /// Of the texts that begin in this pass.
    pub(crate) first_tokens: FirstTokens,
    /// Sines and cosines of the rows' positions, one for each rotary embedding of the model.
    pub(crate) rotary: Vec<RotaryRows>,
    pub(crate) attend: AttendWorkspace,
    pub(crate) recurrent: RecurrentWorkspace,
    /// The residual stream of the rows whose logits are wanted, `[wanted rows][hidden]`.
    pub(crate) wanted: Vec<f32>,
    /// `[wanted rows][vocab]`
    pub(crate) logits: Floats,
    /// `[rows whose states are wanted][hidden]`
    pub(crate) states: Vec<f32>,
    /// Where the time goes, while somebody asks.
    pub(crate) profile: Option<Box<Profile>>,
}

/// What gates and what is gated.
#[derive(Default)]
pub(crate) struct Gates {
    /// Of a feed-forward part that does not gate on the way, `[rows of a block][ffn]`; of the heads of
    /// attention, `[rows][heads][head_dim]`.
    pub(crate) gate: Floats,
    /// What a feed-forward part gates, `[rows of a block][ffn]`.
    pub(crate) up: Floats,
    /// What comes out, the input of its last product, `[rows of a block][ffn]`.
    pub(crate) gated: Activations,
}

impl Workspace {
    /// Empty buffers.
    pub fn new() -> Workspace {
        Workspace::default()
    }

    /// For passes of one row whose products round next to nothing of it.
    pub(crate) fn unrounded() -> Workspace {
        Workspace {
            activations: Activations::split(),
            gates: Gates {
                gated: Activations::split(),
                ..Gates::default()
            },
            ..Workspace::default()
        }
    }

    /// Gives the buffers back; the next pass makes those that it needs. What is measured goes on.
    pub fn give_back(&mut self) {
        *self = Workspace {
            profile: self.profile.take(),
            ..Workspace::default()
        };
    }

    /// Logits of the rows wanted in the last pass, `[wanted rows][vocab]`.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Last hidden states, after the last norm, of the rows that they were wanted of in the last
    /// pass, `[rows][hidden]`.
    pub fn states(&self) -> &[f32] {
        &self.states
    }

    /// Measures from now on where the time of passes goes.
    pub fn start_profile(&mut self, blueprint: &Blueprint) {
        self.profile = Some(Box::new(Profile::new(blueprint)));
    }

    /// What was measured since [`Workspace::start_profile`]; nothing is measured from now on.
    pub fn take_profile(&mut self) -> Option<Profile> {
        self.profile.take().map(|profile| *profile)
    }

    /// What was done since the last pass ended was `work`.
    pub fn lap(&mut self, work: Work) {
        if let Some(profile) = &mut self.profile {
            profile.lap(work);
        }
    }

    /// Bytes that passes of up to `rows` rows, `wanted` of them with logits, need with `threads`
    /// threads on `isa`.
    pub(crate) fn predicted_bytes(
        blueprint: &Blueprint,
        rows: usize,
        wanted: usize,
        threads: usize,
        isa: Isa,
    ) -> u64 {
        let widest = |of: &dyn Fn(&crate::blueprint::LayerBlueprint) -> usize| {
            blueprint.layers.iter().map(of).max().unwrap_or(0)
        };
        // A gated delta layer's inputs stand where queries do, and what it gives where attention holds
        // accumulators; attention gathers where the output product writes.
        let q = widest(&|layer| match &layer.mixer {
            Mixer::Attention(attention) => attention.heads * attention.head_dim,
            Mixer::GatedDelta(delta) => delta.channels(),
        });
        let heads = widest(&|layer| match &layer.mixer {
            Mixer::Attention(_) => 0,
            Mixer::GatedDelta(delta) => delta.channels(),
        });
        let kv = widest(&|layer| match &layer.mixer {
            Mixer::Attention(attention) => attention.kv_heads * attention.head_dim,
            Mixer::GatedDelta(delta) => delta.value_heads,
        });
        let ffn = widest(&|layer| match layer.mlp {
            MlpBlueprint::Gated { ffn, .. } => ffn,
            MlpBlueprint::Experts { ffn, shared, .. } => ffn.max(shared.unwrap_or(0)),
        });
        let mixture = widest(&|layer| match layer.mlp {
            MlpBlueprint::Gated { .. } => 0,
            MlpBlueprint::Experts { experts, .. } => experts + 2 * blueprint.hidden,
        });
        // A cosine and a sine for every two channels that turn.
        let turns: usize = blueprint.ropes.iter().map(|rope| rope.rotary_dim).sum();
        // Inputs of products are held once as they are and once as int8 blocks with scales;
        // attention holds queries and accumulators of all its tasks, and each thread its tile and
        // four rows of an input. A feed-forward part takes as many rows as products do.
        let block = rows.min(isa.rows_together());
        let inputs = rows * q.max(blueprint.hidden) + block * ffn;
        let per_row =
            blueprint.hidden + q.max(blueprint.hidden) + 3 * q + heads + 2 * kv + mixture + turns;
        let per_thread = (1 << 20) + 16 * q.max(ffn).max(blueprint.hidden);
        let logits = wanted * (blueprint.hidden + blueprint.vocab);
        let floats = rows * per_row + block * 2 * ffn + 2 * inputs + logits;
        (floats * size_of::<f32>() + threads * per_thread) as u64
    }
}
