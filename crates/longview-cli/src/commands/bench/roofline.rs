//! The least work a pass can do: what the shares of the limit are shares of.

use std::ops::Range;

use longview::limits::{Limits, byte_products};
use longview::models::blueprint::{LayerBlueprint, Mixer};
use longview::models::{Product, Rows, Work};
use longview::pattern::{Prefill, QueryBlock};
use longview::{BLOCK_TOKENS, Engine, Numerics};

use super::Pages;

/// What some tokens cost at the very least, by the kind of work.
#[derive(Clone, Debug, Default)]
pub(super) struct Least {
    by: [Need; Work::ALL.len()],
}

/// What a kind of work needs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Need {
    /// Bytes that must come from memory.
    bytes: f64,
    /// Multiplications and additions in 8-bit integers.
    int8: f64,
    /// Multiplications and additions in single precision.
    f32: f64,
}

impl Least {
    /// Reading `count` tokens at `depth`: weights once, every product for every token, attention
    /// over everything before, or over what `pattern` says. Logits are not computed, nor what stands between them
    /// and the keys and values of the last layer.
    pub(super) fn prefill(
        engine: &Engine,
        depth: usize,
        count: usize,
        pattern: Option<&Prefill>,
    ) -> Least {
        let mut least = Least::default();
        let is_of_all = |product: &&Product| product.rows == Rows::All;
        for product in engine.model().products().iter().filter(is_of_all) {
            least.add_product(engine, product, count as f64);
        }
        let layers = &engine.model().blueprint().layers;
        for (index, layer) in layers.iter().enumerate() {
            if index + 1 == layers.len() && layer.attention().is_some() {
                continue;
            }
            let share = match pattern.filter(|_| is_full(layer)) {
                None => 1.0,
                Some(pattern) => seen_share(pattern, index, depth..depth + count),
            };
            least.add_mixer(engine, index, share * mixer_ops(layer, depth, count));
        }
        least
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
    ) -> Least {
        let layout = engine.model().layout();
        let share_of = |layer: &LayerBlueprint| match is_full(layer) {
            true => read.share(),
            false => 1.0,
        };
        let rows = streams as f64;
        let mut least = Least::default();
        for product in &engine.model().products() {
            least.add_product(engine, product, rows);
        }
        for need in &mut least.by {
            *need = need.times(count as f64);
        }
        for step in 0..count {
            let position = depth + 1 + step;
            for (index, layer) in engine.model().blueprint().layers.iter().enumerate() {
                let share = share_of(layer);
                least.add_mixer(engine, index, share * rows * mixer_ops(layer, position, 1));
                match &layer.mixer {
                    Mixer::Attention(shape) => {
                        let seen = shape.window.map_or(position, |window| position.min(window));
                        let own = seen.min(step + 1);
                        let tokens = (seen - own + streams * own) as f64;
                        least.by[Work::Attention as usize].bytes +=
                            share * tokens * layout.token_bytes(index);
                    }
                    // A state is read and written.
                    Mixer::GatedDelta(shape) => {
                        least.by[Work::Recurrence as usize].bytes +=
                            (2 * size_of::<f32>() * shape.state() * streams) as f64;
                    }
                }
            }
        }
        least
    }

    /// Multiplies `rows` rows, in integers where the weights are quantised and the numerics class allows it.
    fn add_product(&mut self, engine: &Engine, product: &Product, rows: f64) {
        let ops = 2.0 * product.used * product.parameters as f64 * rows;
        let in_integers = !product.format.is_float() && engine.exec().numerics == Numerics::Default;
        let need = &mut self.by[product.work as usize];
        need.bytes += product.used * product.bytes as f64;
        match in_integers {
            true => need.int8 += ops,
            false => need.f32 += ops,
        }
    }

    /// `ops` of attention or recurrence of a layer. Half of attention's are with keys, half with values, each in
    /// the numbers that their form is read in.
    fn add_mixer(&mut self, engine: &Engine, layer: usize, ops: f64) {
        let blueprint = &engine.model().blueprint().layers[layer];
        if blueprint.attention().is_none() {
            self.by[Work::Recurrence as usize].f32 += ops;
            return;
        }
        let form = engine.model().layout().forms().of(layer);
        let need = &mut self.by[Work::Attention as usize];
        let isa = engine.exec().isa;
        for (kv_type, beside) in [(form.k, form.v), (form.v, form.k)] {
            match byte_products(isa, kv_type, beside) {
                Some(products) => need.int8 += products as f64 * ops / 2.0,
                None => need.f32 += ops / 2.0,
            }
        }
    }

    /// Seconds that this machine needs at least for all.
    pub(super) fn least_seconds(&self, limits: &Limits) -> f64 {
        let all = self.by.iter().fold(Need::default(), |all, need| Need {
            bytes: all.bytes + need.bytes,
            int8: all.int8 + need.int8,
            f32: all.f32 + need.f32,
        });
        all.least_seconds(limits)
    }

    /// Seconds that it needs at least for a kind of work; 0 where none is counted.
    pub(super) fn least_seconds_of(&self, work: Work, limits: &Limits) -> f64 {
        self.by[work as usize].least_seconds(limits)
    }
}

impl Need {
    fn times(self, count: f64) -> Need {
        Need {
            bytes: self.bytes * count,
            int8: self.int8 * count,
            f32: self.f32 * count,
        }
    }

    fn least_seconds(&self, limits: &Limits) -> f64 {
        let memory = self.bytes / (limits.memory_gb_per_s * 1e9);
        let arithmetic =
            self.int8 / (limits.int8_tops * 1e12) + self.f32 / (limits.f32_gflops * 1e9);
        memory.max(arithmetic)
    }
}

/// Bytes of weights that generating a token reads: all but the experts that are not used.
pub(super) fn weights_read(engine: &Engine) -> u64 {
    let products = engine.model().products();
    let read = products
        .iter()
        .map(|product| product.used * product.bytes as f64);
    read.sum::<f64>() as u64
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

/// Multiplications and additions of scores and weighted values for `count` tokens after `depth`, or
/// of a state's updates and reads.
fn mixer_ops(layer: &LayerBlueprint, depth: usize, count: usize) -> f64 {
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
