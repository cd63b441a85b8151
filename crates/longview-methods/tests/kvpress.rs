//! What stays, beside what kvpress keeps of the same prompt on the reference model, in f32.
//!
//! `tools/kvpress_fixtures.py` writes the fixture. Sums run in another order there and here, so pairs
//! that score alike to the last digits may fall on either side of a budget: a hundredth of them may
//! differ. kvpress counts the window as part of a layer's pyramid, so pyramidkv is asked to as well.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use longview_engine::{Control, Engine, EngineOptions, ModelSource};
use longview_kernels::Numerics;
use longview_kv::keep::{Keep, Needs};
use longview_methods::{Methods, Stage};
use serde_json::Value;

const FIXTURE: &str = include_str!("fixtures/kvpress.json");

fn method(text: &str) -> Arc<Keep> {
    let mut methods = Methods::new();
    methods.set(Stage::Keep, text).unwrap();
    Arc::clone(methods.keep().unwrap())
}

fn numbers(value: &Value) -> Vec<u32> {
    let number = |value: &Value| value.as_u64().unwrap() as u32;
    value.as_array().unwrap().iter().map(number).collect()
}

#[test]
fn kept_pairs_agree_with_kvpress() {
    let fixture: Value = serde_json::from_str(FIXTURE).unwrap();
    let prompt = numbers(&fixture["prompt"]);
    let cases = fixture["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 24);
    let model: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/needle");
    let engine = Engine::open(&EngineOptions {
        model: ModelSource::Path(model),
        numerics: Numerics::F32,
        threads: Some(2),
        ..EngineOptions::default()
    })
    .unwrap();

    // The prompt is read once, with everything gathered that any of the methods needs.
    let methods: Vec<Arc<Keep>> = cases
        .iter()
        .map(|case| method(case["method"].as_str().unwrap()))
        .collect();
    let needs = methods
        .iter()
        .map(|keep| keep.score.needs())
        .fold(Needs::default(), Needs::and);
    let mut context = engine.new_context(prompt.len()).unwrap();
    engine
        .keep_with(&mut context, &methods[0], needs, prompt.len())
        .unwrap();
    // Nothing may leave on the way.
    engine
        .prefill(&mut context, &prompt, &mut |_| Control::Continue)
        .unwrap();
    for (case, keep) in cases.iter().zip(&methods) {
        let mut fork = context.fork();
        engine.keep(&mut fork, keep, prompt.len()).unwrap();
        engine.compress(&mut fork).unwrap();
        let (mut same, mut all) = (0, 0);
        for (layer, heads) in case["kept"].as_array().unwrap().iter().enumerate() {
            for (head, kept) in heads.as_array().unwrap().iter().enumerate() {
                let theirs: HashSet<u32> = numbers(kept).into_iter().collect();
                let ours: HashSet<u32> = fork.kept_positions(layer, head).into_iter().collect();
                same += theirs.intersection(&ours).count();
                all += theirs.len().max(ours.len());
            }
        }
        let share = same as f64 / all as f64;
        println!("{}: {same} of {all}", keep.text);
        assert!(share >= 0.99, "{}: {same} of {all} pairs", keep.text);
    }
}
