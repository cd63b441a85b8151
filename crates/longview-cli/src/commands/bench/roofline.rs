//! The least work a pass can do: what the shares of the limit are shares of.

use std::ops::Range;

use longview::limits::Limits;
use longview::models::blueprint::{LayerBlueprint, Mixer, MlpBlueprint, OutputGate};
use longview::pattern::{Prefill, QueryBlock};
use longview::{BLOCK_TOKENS, Engine, Format, Numerics};

use super::Pages;

/// What some tokens cost at the very least.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Work {
    /// Bytes that must come from memory.
    bytes: f64,
    /// Multiplications and additions in 8-bit integers.
    int8: f64,
    /// Multiplications and additions in single precision.
    f32: f64,
}

impl Work {
    /// Reading `count` tokens at `depth`: weights once, every product for every token, attention
    /// over everything before, or over what `pattern` says. Logits are not computed.
    pub(super) fn prefill(
        engine: &Engine,
        depth: usize,
        count: usize,
        pattern: Option<&Prefill>,
    ) -> Work {
        let blueprint = engine.model().blueprint();
        let layers = &blueprint.layers;
        let attention: f64 = layers
            .iter()
            .enumerate()
            .map(|(index, layer)| {
                let share = match pattern.filter(|_| is_full(layer)) {
                    None => 1.0,
                    Some(pattern) => seen_share(pattern, index, depth..depth + count),
                };
                share * attention_ops(layer, depth, count)
            })
            .sum();
        let products = 2.0 * layer_parameters(engine) * count as f64;
        let bytes = weights_read(engine) as f64 * layer_share(engine);
        Work::new(engine, bytes, products, attention)
    }

    /// Generating `count` tokens one by one in each of `streams` texts that share what `depth` holds:
    /// weights are read once for a token of all, and of the cache, or what is `read` of its pages, the
    /// shared part once and what each has of its own.
    pub(super) fn decode(
        engine: &Engine,
        depth: usize,
        count: usize,
        streams: usize,
        read: &Pages,
    ) -> Work {
        let blueprint = engine.model().blueprint();
        let output = (blueprint.hidden * blueprint.vocab) as f64;
        let mut total = Work::default();
        let layout = engine.model().layout();
        let share_of = |layer: &LayerBlueprint| match is_full(layer) {
            true => read.share(),
            false => 1.0,
        };
        for step in 0..count {
            let position = depth + 1 + step;
            let layers = &blueprint.layers;
            let attention: f64 = layers
                .iter()
                .map(|layer| share_of(layer) * attention_ops(layer, position, 1))
                .sum();
            let cache: f64 = layers
                .iter()
                .enumerate()
                .map(|(index, layer)| match &layer.mixer {
                    Mixer::Attention(shape) => {
                        let seen = shape.window.map_or(position, |window| position.min(window));
                        let own = seen.min(step + 1);
                        let tokens = (seen - own + streams * own) as f64;
                        share_of(layer) * tokens * layout.token_bytes(index)
                    }
                    // A state is read and written.
                    Mixer::GatedDelta(shape) => {
                        (2 * size_of::<f32>() * shape.state() * streams) as f64
                    }
                })
                .sum();
            let rows = streams as f64;
            let products = 2.0 * (layer_parameters(engine) + output) * rows;
            let bytes = weights_read(engine) as f64 + cache;
            let work = Work::new(engine, bytes, products, attention * rows);
            total.bytes += work.bytes;
            total.int8 += work.int8;
            total.f32 += work.f32;
        }
        total
    }

    /// Products run in integers where the weights are quantised and the numerics class allows it.
    fn new(engine: &Engine, bytes: f64, products: f64, attention: f64) -> Work {
        let float = [Format::F32, Format::F16, Format::BF16].map(|format| format.to_string());
        let quantised = !float.contains(&engine.describe().format)
            && engine.exec().numerics == Numerics::Default;
        let (int8, f32) = if quantised {
            (products, 0.0)
        } else {
            (0.0, products)
        };
        Work {
            bytes,
            int8,
            f32: f32 + attention,
        }
    }

    /// Seconds that this machine needs at least.
    pub(super) fn least_seconds(&self, limits: &Limits) -> f64 {
        let memory = self.bytes / (limits.memory_gb_per_s * 1e9);
        let arithmetic =
            self.int8 / (limits.int8_tops * 1e12) + self.f32 / (limits.f32_gflops * 1e9);
        memory.max(arithmetic)
    }
}

/// Whether a layer attends to everything before a token.
fn is_full(layer: &LayerBlueprint) -> bool {
    layer
        .attention()
        .is_some_and(|attention| attention.window.is_none())
}

/// The share of what is before them that the tokens `tokens` attend to by `pattern` in a layer, in
/// blocks.
fn seen_share(pattern: &Prefill, layer: usize, tokens: Range<usize>) -> f64 {
    let (mut seen, mut all) = (0, 0);
    let mut blocks = Vec::new();
    for block in tokens.start / BLOCK_TOKENS..tokens.end.div_ceil(BLOCK_TOKENS) {
        blocks.clear();
        pattern
            .pattern
            .blocks(&QueryBlock { layer, block }, &mut blocks);
        seen += blocks.iter().map(Range::len).sum::<usize>();
        all += block + 1;
    }
    seen as f64 / all as f64
}

/// Bytes of weights that generating a token reads: all but the experts that are not used.
pub(super) fn weights_read(engine: &Engine) -> u64 {
    let file = engine.model().file();
    let blueprint = file.blueprint();
    let read = file.packed_bytes() as f64;
    let hidden = blueprint.hidden;
    let all: f64 = blueprint
        .layers
        .iter()
        .map(|layer| parameters(layer, hidden, Experts::All))
        .sum();
    let output = (blueprint.hidden * blueprint.vocab) as f64;
    let used = layer_parameters(engine);
    (read * (used + output) / (all + output)) as u64
}

/// Which experts are counted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Experts {
    All,
    Used,
}

/// Parameters of the layers' matrices that a token is multiplied with.
fn layer_parameters(engine: &Engine) -> f64 {
    let blueprint = engine.model().blueprint();
    let (layers, hidden) = (&blueprint.layers, blueprint.hidden);
    layers
        .iter()
        .map(|layer| parameters(layer, hidden, Experts::Used))
        .sum()
}

/// The share of the layers among the weights that are read; the rest makes the logits.
fn layer_share(engine: &Engine) -> f64 {
    let blueprint = engine.model().blueprint();
    let output = (blueprint.hidden * blueprint.vocab) as f64;
    let layers = layer_parameters(engine);
    layers / (layers + output)
}

fn parameters(layer: &LayerBlueprint, hidden: usize, counted: Experts) -> f64 {
    let hidden = hidden as f64;
    let mixer = match &layer.mixer {
        Mixer::Attention(shape) => {
            let gates = match shape.output_gate {
                OutputGate::Absent => 0,
                OutputGate::Sigmoid => shape.heads,
            };
            hidden * ((2 * (shape.heads + shape.kv_heads) + gates) * shape.head_dim) as f64
        }
        Mixer::GatedDelta(shape) => {
            let values = shape.value_heads * shape.value_dim;
            hidden * (shape.channels() + 2 * values + 2 * shape.value_heads) as f64
        }
    };
    let mlp = match layer.mlp {
        MlpBlueprint::Gated { ffn, .. } => 3.0 * hidden * ffn as f64,
        MlpBlueprint::Experts {
            ffn,
            experts,
            used,
            shared,
            ..
        } => {
            let counted = if counted == Experts::All {
                experts
            } else {
                used
            };
            let shared = shared.unwrap_or(0);
            3.0 * hidden * (ffn * counted + shared) as f64 + hidden * experts as f64
        }
    };
    mixer + mlp
}

/// Multiplications and additions of scores and weighted values for `count` tokens after `depth`, or
/// of a state's updates and reads.
fn attention_ops(layer: &LayerBlueprint, depth: usize, count: usize) -> f64 {
    let shape = match &layer.mixer {
        Mixer::Attention(shape) => shape,
        Mixer::GatedDelta(shape) => {
            let matrix = shape.value_heads * shape.value_dim * shape.key_dim;
            return (7 * matrix * count) as f64;
        }
    };
    let seen: f64 = (depth + 1..=depth + count)
        .map(|position| shape.window.map_or(position, |window| position.min(window)) as f64)
        .sum();
    4.0 * seen * (shape.heads * shape.head_dim) as f64
}
