//! The keys and values of a text's first token, for which activations are hardly rounded.
//!
//! Heads that look for nothing look at the first token ([attention sinks](https://arxiv.org/abs/2309.17453)), so much of what
//! attention gives everywhere rests on its keys and values. What int8 activations do to other tokens is noise that
//! averages out; what they do to this one is the same in every text that begins alike, and moves all that
//! follows one way. With weights in Q4_0, for which activations are rounded in blocks of 256, that was 1.3 of the 1.4 %
//! that a perplexity was apart by. With the other formats it is a tenth of a per cent at most; they round the
//! first token as llama.cpp does, whose texts they are compared with.
//!
//! These keys and values depend on nothing but the token, so they are computed once, by a pass of their own with
//! activations of some fifteen bits ([`Activations::split`](longview_kernels::Activations::split)), and are known from then on:
//! most texts begin with the same token.

use std::sync::{Arc, Mutex, PoisonError};

use longview_kernels::format::Format;
use longview_kernels::{Exec, Numerics, rounds_in_larger_blocks};
use longview_kv::{Batch, Context, KvType, Ledger, Segment, Wanted};

use crate::blueprint::{Blueprint, Mixer};
use crate::error::ModelError;
use crate::model::Model;
use crate::workspace::Workspace;

/// First tokens that a model knows at once.
const KNOWN: usize = 4;

/// What a token has where it is the first: keys and values of every layer, before biases and rotation. Nothing
/// of layers that have none.
type OfLayers = Vec<[Vec<f32>; 2]>;

/// The first tokens that a model was asked for last, latest first.
pub(crate) struct KnownFirstTokens {
    /// Whether products round what they are made of more than the format of the weights has it.
    are_needed: bool,
    known: Mutex<Vec<(u32, Arc<OfLayers>)>>,
}

/// Those of the texts that begin in a pass, or what a pass is to learn of one.
#[derive(Default)]
pub(crate) struct FirstTokens {
    /// With their rows.
    begun: Vec<(usize, Arc<OfLayers>)>,
    learned: Option<OfLayers>,
}

impl FirstTokens {
    /// Replaces the rows of the keys and values of layer `layer`, `[rows][kv_heads][head_dim]`, that are those of
    /// first tokens. Biases are not in them yet.
    pub(crate) fn keys_and_values(&mut self, layer: usize, k: &mut [f32], v: &mut [f32]) {
        for (row, known) in &self.begun {
            for (rows, known) in [&mut *k, &mut *v].into_iter().zip(&known[layer]) {
                rows[row * known.len()..(row + 1) * known.len()].copy_from_slice(known);
            }
        }
        if let Some(learned) = &mut self.learned {
            learned[layer] = [k.to_vec(), v.to_vec()];
        }
    }
}

impl KnownFirstTokens {
    /// None yet.
    pub(crate) fn new(are_needed: bool) -> Self {
        KnownFirstTokens {
            are_needed,
            known: Mutex::default(),
        }
    }
}

/// Whether a model whose matrices have `formats` needs them where activations are rounded at all.
pub(crate) fn are_needed(mut formats: impl Iterator<Item = Format>) -> bool {
    formats.any(|format| rounds_in_larger_blocks(Numerics::Default, format))
}

/// Makes those of `batch` known; none where they are not needed.
pub(super) fn of_batch(
    model: &Model,
    exec: &Exec,
    batch: &Batch<'_>,
    out: &mut FirstTokens,
) -> Result<(), ModelError> {
    out.begun.clear();
    if !model.first_tokens.are_needed || out.learned.is_some() {
        return Ok(());
    }
    for (index, segment) in batch.segments().iter().enumerate() {
        if let (true, Some(&token)) = (segment.context.is_empty(), segment.tokens.first()) {
            let row = batch.rows_of(index).start;
            out.begun.push((row, known(model, exec, token)?));
        }
    }
    Ok(())
}

/// Bytes that a pass of its own takes, and what is known afterwards.
pub(crate) fn bytes(blueprint: &Blueprint) -> u64 {
    let floats = blueprint.layers.iter().map(|layer| match &layer.mixer {
        Mixer::Attention(plan) => 2 * plan.kv_heads * plan.head_dim,
        Mixer::GatedDelta(_) => 0,
    });
    let known = KNOWN * floats.sum::<usize>() * size_of::<f32>();
    blueprint.kv_layout(KvType::F32).context_bytes(1, 1) + known as u64
}

fn known(model: &Model, exec: &Exec, token: u32) -> Result<Arc<OfLayers>, ModelError> {
    // Who needs the same meanwhile waits for it.
    let tokens = &model.first_tokens.known;
    let mut tokens = tokens.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(place) = tokens.iter().position(|(known, _)| *known == token) {
        tokens[..=place].rotate_right(1);
    } else {
        let learned = Arc::new(learn(model, exec, token)?);
        tokens.truncate(KNOWN - 1);
        tokens.insert(0, (token, learned));
    }
    Ok(Arc::clone(&tokens[0].1))
}

/// Reads a text of `token` alone, rounding next to nothing.
fn learn(model: &Model, exec: &Exec, token: u32) -> Result<OfLayers, ModelError> {
    let blueprint = model.blueprint();
    let layout = Arc::new(blueprint.kv_layout(KvType::F32));
    let mut context = Context::new(layout, Ledger::unlimited(), model.identity());
    let segment = Segment {
        context: &mut context,
        tokens: &[token],
        wanted: Wanted::Nothing,
    };
    let mut batch = Batch::new([segment], model.identity())?;
    let mut workspace = Workspace::unrounded();
    workspace.first_tokens.learned = Some(vec![Default::default(); blueprint.layers.len()]);
    super::forward(model, exec, &mut batch, &mut workspace)?;
    let learned = workspace.first_tokens.learned.take();
    Ok(learned.expect("it was put there"))
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use longview_kernels::{Isa, Pool};
    use longview_weights::WeightFile;
    use serde_json::json;

    use super::*;
    use crate::config::Config;
    use crate::convert::Recipe;
    use crate::model::ModelFile;
    use crate::shapes::make_from;

    struct World {
        exec: Exec,
        model: Model,
        workspace: Workspace,
    }

    impl World {
        fn new(numerics: Numerics) -> World {
            let config = json!({"model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
                "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
                "head_dim": 64, "vocab_size": 320, "max_position_embeddings": 512,
                "rms_norm_eps": 1e-5, "tie_word_embeddings": false});
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("model.gguf");
            let config = Config::new("model", config);
            make_from(&config, Recipe::Q4_0, 1, &file, &Pool::new(1), &mut |_| {
                ControlFlow::Continue(())
            })
            .unwrap();
            let exec = Exec::new(2, Isa::best(), numerics);
            let file = ModelFile::new(WeightFile::open(&file).unwrap()).unwrap();
            let ledger = Ledger::unlimited();
            let form = match numerics {
                Numerics::Default => KvType::F16,
                Numerics::F32 => KvType::F32,
            };
            let model = file.load(&exec, form, &ledger, &mut |_, _| {});
            World {
                exec,
                model: model.unwrap(),
                workspace: Workspace::new(),
            }
        }

        fn context(&self) -> Context {
            self.model.new_context(100, &Ledger::unlimited()).unwrap()
        }

        fn read(&mut self, parts: &mut [(&mut Context, &[u32])]) {
            let segments = parts.iter_mut().map(|(context, tokens)| Segment {
                context,
                tokens,
                wanted: Wanted::Last,
            });
            self.model
                .forward(&self.exec, segments, &mut self.workspace)
                .unwrap();
        }

        /// Keys and values of the last layer's row `row` in the last pass.
        fn row(&self, row: usize) -> [Vec<f32>; 2] {
            let width = 2 * 64;
            let of = |x: &[f32]| x[row * width..(row + 1) * width].to_vec();
            [of(&self.workspace.k), of(&self.workspace.v)]
        }
    }

    /// The largest difference.
    fn apart(a: &[Vec<f32>; 2], b: &[Vec<f32>; 2]) -> f32 {
        let pairs = a.iter().flatten().zip(b.iter().flatten());
        pairs.fold(0.0, |most, (a, b)| most.max((a - b).abs()))
    }

    #[test]
    fn keys_and_values_of_first_tokens_are_not_rounded_whoever_else_is_read() {
        let mut exact = World::new(Numerics::F32);
        let mut world = World::new(Numerics::Default);
        let mut other = world.context();
        world.read(&mut [(&mut other, &[1, 2, 3])]);
        // More tokens than are known at once, the first of them again.
        for first in [9, 10, 11, 12, 13, 9, 9] {
            let tokens = [first, 4, 5];
            let mut context = exact.context();
            exact.read(&mut [(&mut context, &tokens)]);
            let (wanted, rounded) = (exact.row(0), exact.row(1));

            let mut context = world.context();
            world.read(&mut [(&mut context, &tokens)]);
            let alone = world.workspace.logits().to_vec();
            let unrounded = world.row(0);
            let apart = [apart(&unrounded, &wanted), apart(&world.row(1), &rounded)];
            assert!(apart[0] < 0.2 * apart[1], "{apart:?}");

            let mut context = world.context();
            world.read(&mut [(&mut other, &[6, 7]), (&mut context, &tokens)]);
            assert_eq!(world.row(2), unrounded);
            assert_eq!(world.workspace.logits()[320..], alone);

            // What follows is no first token.
            world.read(&mut [(&mut context, &[first])]);
            assert_ne!(world.row(0), unrounded);
        }
        let known = world.model.first_tokens.known.lock().unwrap();
        assert_eq!(
            known.iter().map(|known| known.0).collect::<Vec<_>>(),
            [9, 13, 12, 11]
        );
        assert!(exact.model.first_tokens.known.lock().unwrap().is_empty());
    }

    #[test]
    fn a_token_that_the_model_does_not_have_is_refused_and_not_known() {
        let mut world = World::new(Numerics::Default);
        let mut context = world.context();
        let segment = Segment {
            context: &mut context,
            tokens: &[320],
            wanted: Wanted::Last,
        };
        let error = world
            .model
            .forward(&world.exec, [segment], &mut world.workspace);
        assert!(matches!(
            error,
            Err(ModelError::TokenOutOfRange { id: 320, .. })
        ));
        assert!(world.model.first_tokens.known.lock().unwrap().is_empty());
    }
}
