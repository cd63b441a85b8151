//! The weights of feed-forward parts: one gated part, or experts and the router that chooses.

use super::{Linear, Loader, Place};
use crate::blueprint::{Bias, MlpBlueprint, Projections};
use crate::error::ModelError;
use crate::names::{Naming, Role};

/// The weights of a feed-forward part.
pub(crate) enum Mlp {
    Gated(Gated),
    Experts {
        router: Linear,
        experts: Vec<Gated>,
        shared: Option<Shared>,
    },
}

/// An expert that every row uses.
pub(crate) struct Shared {
    /// `[hidden]`: how much of it.
    pub(crate) router: Vec<f32>,
    pub(crate) expert: Gated,
}

/// A gated feed-forward part.
pub(crate) struct Gated {
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

impl Loader<'_> {
    pub(super) fn mlp(
        &self,
        hidden: usize,
        mlp: &MlpBlueprint,
        layer: usize,
    ) -> Result<Mlp, ModelError> {
        match *mlp {
            MlpBlueprint::Gated {
                ffn,
                projections,
                bias,
                ..
            } => {
                let [gate, up] = match projections {
                    Projections::Separate => [
                        Place::whole(Role::Gate, layer, 0, ffn),
                        Place::whole(Role::Up, layer, 0, ffn),
                    ],
                    Projections::Fused => {
                        let fused = Place::whole(Role::GateUp, layer, 0, 2 * ffn);
                        [fused.part(0..ffn), fused.part(ffn..2 * ffn)]
                    }
                };
                let down = Place::whole(Role::Down, layer, 0, hidden);
                self.gated([gate, up, down], hidden, ffn, bias)
                    .map(Mlp::Gated)
            }
            MlpBlueprint::Experts {
                ffn,
                experts,
                shared,
                ..
            } => {
                let router = Place::whole(Role::Router, layer, 0, experts);
                let straight = |row: usize| row;
                let of_shared = |ffn| self.shared_expert(hidden, ffn, layer);
                Ok(Mlp::Experts {
                    router: self.linear(&router, hidden, Bias::Absent, &straight)?,
                    experts: self.experts(hidden, ffn, experts, layer)?,
                    shared: shared.map(of_shared).transpose()?,
                })
            }
        }
    }

    /// The experts of a layer, which lie in a tensor each, or all in one, with gate and up
    /// projections apart or one after the other.
    fn experts(
        &self,
        hidden: usize,
        ffn: usize,
        experts: usize,
        layer: usize,
    ) -> Result<Vec<Gated>, ModelError> {
        // Experts that lie in one tensor: `n` rows each, of which this is one.
        let one_of = |role, expert: usize, n: usize| {
            Place::whole(role, layer, 0, experts * n).part(expert * n..(expert + 1) * n)
        };
        let place = |role, expert, n: usize| match self.naming() {
            Naming::HuggingFace => Place::whole(role, layer, expert, n),
            Naming::Gguf => one_of(role, expert, n),
        };
        let gate_up = self.has(Role::AllExpertsGateUp, layer);
        let down = self.has(Role::AllExpertsDown, layer);
        let expert = |expert| {
            let [gate, up] = if gate_up {
                let both = Place::whole(Role::AllExpertsGateUp, layer, 0, experts * 2 * ffn);
                let middle = (2 * expert + 1) * ffn;
                [
                    both.part(middle - ffn..middle),
                    both.part(middle..middle + ffn),
                ]
            } else {
                [
                    place(Role::ExpertGate, expert, ffn),
                    place(Role::ExpertUp, expert, ffn),
                ]
            };
            let down = if down {
                one_of(Role::AllExpertsDown, expert, hidden)
            } else {
                place(Role::ExpertDown, expert, hidden)
            };
            self.gated([gate, up, down], hidden, ffn, Bias::Absent)
        };
        (0..experts).map(expert).collect()
    }

    fn shared_expert(&self, hidden: usize, ffn: usize, layer: usize) -> Result<Shared, ModelError> {
        let place = |role, n| Place::whole(role, layer, 0, n);
        let places = [
            place(Role::SharedGate, ffn),
            place(Role::SharedUp, ffn),
            place(Role::SharedDown, hidden),
        ];
        Ok(Shared {
            router: self.vector(Role::SharedRouter, layer, hidden)?,
            expert: self.gated(places, hidden, ffn, Bias::Absent)?,
        })
    }

    /// The part whose gate, up and down projections lie at these places.
    fn gated(
        &self,
        [gate, up, down]: [Place; 3],
        hidden: usize,
        ffn: usize,
        bias: Bias,
    ) -> Result<Gated, ModelError> {
        let straight = |row: usize| row;
        Ok(Gated {
            gate: self.linear(&gate, hidden, bias, &straight)?,
            up: self.linear(&up, hidden, bias, &straight)?,
            down: self.linear(&down, ffn, bias, &straight)?,
        })
    }
}
