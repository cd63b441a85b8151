//! Where the time of passes goes, measured only when asked for.

use std::time::{Duration, Instant};

use crate::blueprint::{Blueprint, LayerBlueprint, Mixer, MlpBlueprint};

/// A kind of work in a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Token embeddings, and the sines and cosines of the positions.
    Embedding,
    /// Norms and the sums with the residual stream.
    Norms,
    /// Rounding the inputs of products to what the kernels read.
    Quantise,
    /// Queries, keys and values; in a recurrent layer also its gates.
    Qkv,
    /// Rotary embedding, and writing keys and values into pages.
    RopeAppend,
    /// Attention over the pages.
    Attention,
    /// A recurrent layer's convolution, its state, and the gates of what that gives.
    Recurrence,
    /// The product after attention or recurrence.
    Output,
    /// The feed-forward part's first products, its activation, and the router of experts.
    GateUp,
    /// The feed-forward part's last product.
    Down,
    /// The product with the vocabulary.
    Logits,
    /// Choosing the next token.
    Sampling,
}

impl Work {
    /// All kinds, in the order in which a pass does them.
    pub const ALL: [Work; 12] = [
        Work::Embedding,
        Work::Norms,
        Work::Quantise,
        Work::Qkv,
        Work::RopeAppend,
        Work::Attention,
        Work::Recurrence,
        Work::Output,
        Work::GateUp,
        Work::Down,
        Work::Logits,
        Work::Sampling,
    ];

    /// Its name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Work::Embedding => "embedding",
            Work::Norms => "norms",
            Work::Quantise => "quantise",
            Work::Qkv => "qkv",
            Work::RopeAppend => "rope+append",
            Work::Attention => "attention",
            Work::Recurrence => "recurrence",
            Work::Output => "output projection",
            Work::GateUp => "gate/up",
            Work::Down => "down",
            Work::Logits => "logits",
            Work::Sampling => "sampling",
        }
    }
}

/// Time by kind of layer and kind of work, on the thread that drives the passes: while the others
/// work for it, that is the time of all.
#[derive(Clone, Debug)]
pub struct Profile {
    /// What the layers are called that have a row of `times` each; the first is what belongs to no
    /// layer.
    kinds: Vec<String>,
    /// For each layer its kind.
    of_layer: Vec<usize>,
    times: Vec<[Duration; Work::ALL.len()]>,
    kind: usize,
    last: Instant,
    /// What of all that the driving thread waited for the others at the end of shared work.
    pub waiting: Duration,
}

/// Where the work outside of the layers is counted.
const NO_LAYER: usize = 0;

impl Profile {
    /// Nothing measured yet.
    pub fn new(blueprint: &Blueprint) -> Profile {
        let mut kinds = vec!["no layer".to_owned()];
        let of_layer: Vec<usize> = blueprint
            .layers
            .iter()
            .map(|layer| {
                let kind = kind_of(layer);
                kinds.iter().position(|k| *k == kind).unwrap_or_else(|| {
                    kinds.push(kind);
                    kinds.len() - 1
                })
            })
            .collect();
        Profile {
            times: vec![Default::default(); kinds.len()],
            kinds,
            of_layer,
            kind: NO_LAYER,
            last: Instant::now(),
            waiting: Duration::ZERO,
        }
    }

    /// The kinds of layers with their times, in the order of [`Work::ALL`].
    pub fn rows(&self) -> impl Iterator<Item = (&str, &[Duration; Work::ALL.len()])> {
        self.kinds.iter().map(String::as_str).zip(&self.times)
    }

    /// All time measured.
    pub fn total(&self) -> Duration {
        self.times.iter().flatten().sum()
    }

    /// A pass begins now.
    pub(crate) fn begin(&mut self) {
        self.kind = NO_LAYER;
        self.last = Instant::now();
    }

    /// What follows belongs to layer `layer`; `None` for no layer.
    pub(crate) fn layer(&mut self, layer: Option<usize>) {
        self.kind = layer.map_or(NO_LAYER, |layer| self.of_layer[layer]);
    }

    /// What was done since the last call was `work`.
    pub(crate) fn lap(&mut self, work: Work) {
        let now = Instant::now();
        self.times[self.kind][work as usize] += now - self.last;
        self.last = now;
    }
}

fn kind_of(layer: &LayerBlueprint) -> String {
    let attention = match &layer.mixer {
        Mixer::Attention(plan) => match plan.window {
            None => "full attention".to_owned(),
            Some(window) => format!("window of {window}"),
        },
        Mixer::GatedDelta(_) => "gated delta".to_owned(),
    };
    match layer.mlp {
        MlpBlueprint::Gated { .. } => attention,
        MlpBlueprint::Experts { .. } => attention + ", experts",
    }
}
