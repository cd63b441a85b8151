//! Perplexity and divergence on the reference model.

use std::ops::ControlFlow;

use longview_engine::{Control, Engine, EngineOptions, ModelSource};
use longview_eval::{EvalError, divergence, perplexity};
use longview_kernels::Numerics;
use longview_models::{Recipe, quantize};
use longview_text::Specials;

fn open(numerics: Numerics) -> Engine {
    Engine::open(&EngineOptions {
        numerics,
        ..EngineOptions::default()
    })
    .unwrap()
}

fn tokens(engine: &Engine) -> Vec<u32> {
    let text = " Alice was beginning to get very tired of sitting by her sister on the bank, and of \
                having nothing to do.";
    engine
        .tokenizer()
        .encode(&text.repeat(4), Specials::AsText)
        .unwrap()
}

#[test]
fn repetition_is_predicted_and_the_interval_covers_the_sum() {
    let engine = open(Numerics::Default);
    let tokens = tokens(&engine);
    let mut seen = Vec::new();
    let whole = perplexity(&engine, &tokens, 512, &mut |progress| {
        seen.push(progress);
        Control::Continue
    })
    .unwrap();
    assert_eq!(
        whole.tokens,
        tokens.len(),
        "the beginning of text predicts the first token"
    );
    assert_eq!(
        seen.last().map(|p| (p.done, p.total)),
        Some((tokens.len(), tokens.len()))
    );
    assert!((whole.nats_per_token.exp() - whole.perplexity).abs() < 1e-9);
    // Short windows lose what the text repeats.
    let short = perplexity(&engine, &tokens, 12, &mut |_| Control::Continue).unwrap();
    assert!(
        short.perplexity > 2.0 * whole.perplexity,
        "{short:?} {whole:?}"
    );
}

#[test]
fn a_model_does_not_diverge_from_itself_and_rounding_shows() {
    let (default, exact) = (open(Numerics::Default), open(Numerics::F32));
    let tokens = tokens(&default);
    let mut go = |_| Control::Continue;
    let same = divergence(&exact, &exact, &tokens, 64, &mut go).unwrap();
    assert_eq!((same.mean, same.max, same.same_top), (0.0, 0.0, 1.0));
    let rounded = divergence(&default, &exact, &tokens, 64, &mut go).unwrap();
    assert!(rounded.mean > 0.0 && rounded.mean < 1e-4, "{rounded:?}");
    assert!(rounded.percentile_99 <= rounded.max);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let engine = open(Numerics::Default);
    let mut go = |_| Control::Continue;
    let error = perplexity(&engine, &[1], 64, &mut go).unwrap_err();
    assert!(matches!(error, EvalError::TooShort { tokens: 1 }));
    let error = perplexity(&engine, &[1, 2, 3], 2, &mut go).unwrap_err();
    assert!(matches!(error, EvalError::WindowTooShort { window: 2 }));
    let error = perplexity(&engine, &[7; 40], 20, &mut |_| Control::Stop).unwrap_err();
    assert!(matches!(error, EvalError::Stopped));
}

/// What int8 activations may cost.
const MOST_APART: f64 = 0.005;

#[test]
fn int8_activations_cost_less_than_half_a_per_cent_of_perplexity() {
    let folder = tempfile::tempdir().unwrap();
    let text = include_str!("../data/alice_in_wonderland.txt");
    for recipe in [Recipe::Q4_0, Recipe::Q8_0] {
        let file = folder.path().join(format!("{recipe}.gguf"));
        let mut perplexities = Vec::new();
        let source = open(Numerics::Default);
        let (pool, model) = (&source.exec().pool, source.model().file());
        quantize(model, recipe, &file, pool, &mut |_| {
            ControlFlow::Continue(())
        })
        .unwrap();
        for numerics in [Numerics::Default, Numerics::F32] {
            let engine = Engine::open(&EngineOptions {
                model: ModelSource::Path(file.clone()),
                numerics,
                ..EngineOptions::default()
            })
            .unwrap();
            let tokens = engine.tokenizer().encode(text, Specials::AsText).unwrap();
            let part = &tokens[..4 * 1024];
            let found = perplexity(&engine, part, 1024, &mut |_| Control::Continue).unwrap();
            perplexities.push(found.perplexity);
        }
        let apart = (perplexities[0] / perplexities[1] - 1.0).abs();
        assert!(apart < MOST_APART, "{recipe}: {perplexities:?}");
    }
}
