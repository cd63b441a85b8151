//! The matrices that a row passes through, as speeds are judged by them.

use longview_kernels::{Format, Packed};

use crate::blueprint::MlpBlueprint;
use crate::load::{Gated, Linear, Mixer, Mlp};
use crate::model::Model;
use crate::profile::Work;

/// A matrix that rows are multiplied with, or the experts of a layer taken together.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// The kind of work that it is part of.
    pub work: Work,
    /// Its numbers.
    pub parameters: u64,
    /// What they take in memory.
    pub bytes: u64,
    /// What they are stored as.
    pub format: Format,
    /// The share that a row is multiplied with: less than 1 where experts are chosen.
    pub used: f64,
    /// What a pass multiplies with it.
    pub rows: Rows,
}

/// Rows of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Every one.
    All,
    /// Those of which something is wanted: behind the keys and values of the last layer.
    Wanted,
}

impl Model {
    /// All products of a pass. What is multiplied with a single row of numbers is left out.
    pub fn products(&self) -> Vec<Product> {
        let mut all = Vec::new();
        let last = self.weights.layers.len().saturating_sub(1);
        for (index, layer) in self.weights.layers.iter().enumerate() {
            let is_last = index == last;
            let mut add = |work, linears: &[&Linear]| {
                let keeps = |linear: &Linear| match &layer.mixer {
                    Mixer::Attention(of) => {
                        std::ptr::eq(linear, &of.key) || std::ptr::eq(linear, &of.value)
                    }
                    Mixer::GatedDelta(_) => true,
                };
                all.extend(linears.iter().map(|linear| {
                    let mut product = of(work, &linear.weight, 1.0);
                    if is_last && !keeps(linear) {
                        product.rows = Rows::Wanted;
                    }
                    product
                }));
            };
            match &layer.mixer {
                Mixer::Attention(attention) => {
                    add(
                        Work::Qkv,
                        &[&attention.query, &attention.key, &attention.value],
                    );
                    if let Some(gate) = &attention.gate {
                        add(Work::Qkv, &[gate]);
                    }
                    add(Work::Output, &[&attention.output]);
                }
                Mixer::GatedDelta(delta) => {
                    add(
                        Work::Qkv,
                        &[&delta.qkv, &delta.z, &delta.beta, &delta.alpha],
                    );
                    add(Work::Output, &[&delta.output]);
                }
            }
        }
        let layers = self.weights.layers.iter().zip(&self.blueprint().layers);
        for (index, (layer, about)) in layers.enumerate() {
            let before = all.len();
            match (&layer.mlp, &about.mlp) {
                (Mlp::Gated(gated), _) => add_gated(&mut all, gated, 1.0),
                (
                    Mlp::Experts {
                        router,
                        experts,
                        shared,
                    },
                    about,
                ) => {
                    let used = match *about {
                        MlpBlueprint::Experts { used, experts, .. } => used as f64 / experts as f64,
                        MlpBlueprint::Gated { .. } => 1.0,
                    };
                    all.push(of(Work::GateUp, &router.weight, 1.0));
                    experts
                        .iter()
                        .for_each(|expert| add_gated(&mut all, expert, used));
                    if let Some(shared) = shared {
                        add_gated(&mut all, &shared.expert, 1.0);
                    }
                }
            }
            if index == last {
                let of_last = all[before..].iter_mut();
                of_last.for_each(|product| product.rows = Rows::Wanted);
            }
        }
        let mut logits = of(Work::Logits, &self.weights.output, 1.0);
        logits.rows = Rows::Wanted;
        all.push(logits);
        all
    }
}

fn add_gated(all: &mut Vec<Product>, gated: &Gated, used: f64) {
    all.push(of(Work::GateUp, &gated.gate.weight, used));
    all.push(of(Work::GateUp, &gated.up.weight, used));
    all.push(of(Work::Down, &gated.down.weight, used));
}

fn of(work: Work, weight: &Packed, used: f64) -> Product {
    Product {
        work,
        parameters: (weight.n() * weight.k()) as u64,
        bytes: weight.bytes() as u64,
        format: weight.format(),
        used,
        rows: Rows::All,
    }
}
