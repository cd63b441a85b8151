//! Memory limits from the least that is admitted upward, with a model whose keys and values are larger than
//! the buffers of a pass.

use std::ops::ControlFlow;

use longview_kernels::Pool;
use longview_kv::{Segment, Wanted};
use longview_models::shapes::make_from;
use longview_models::{Config, Recipe};

use super::*;

const PROMPT: usize = 900;

/// Random weights: 12 KiB of keys and values a token, 2.5 KiB of buffers a row.
fn many_heads() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::new(
        "many heads",
        serde_json::json!({"model_type": "llama", "hidden_size": 64, "intermediate_size": 64,
            "num_hidden_layers": 48, "num_attention_heads": 2, "num_key_value_heads": 2,
            "vocab_size": 4000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": true}),
    );
    let out = folder.path().join("model.gguf");
    make_from(&config, Recipe::F16, 7, &out, &Pool::new(1), &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap();
    (folder, out)
}

fn open(model: &Path, memory_bytes: Option<u64>) -> Arc<Engine> {
    let options = EngineOptions {
        model: ModelSource::Path(model.to_owned()),
        chunk_tokens: 64,
        threads: Some(1),
        memory_bytes,
        store: Some(StoreOptions::new(StorePlace::Temporary, 1 << 30)),
        ..EngineOptions::default()
    };
    Arc::new(Engine::open(&options).unwrap())
}

/// Logits after `prompt`, bit for bit, and the longest pass that read it; `None` when the limit is refused
/// before anything is read.
fn logits(engine: &Engine, prompt: &[u32]) -> Option<(Vec<u32>, usize)> {
    let mut context = engine.new_context(PROMPT + 8).ok()?;
    let (last, before) = prompt.split_last().unwrap();
    let (mut done, mut longest) = (0, 0);
    let on = &mut |progress: longview_engine::PrefillProgress| {
        longest = longest.max(progress.done - done);
        done = progress.done;
        Control::Continue
    };
    engine.prefill(&mut context, before, on).unwrap();
    let segment = Segment {
        context: &mut context,
        tokens: &[*last],
        wanted: Wanted::Last,
    };
    let workspace = engine.pass([segment]).unwrap();
    let bits = workspace.logits().iter().map(|logit| logit.to_bits());
    Some((bits.collect(), longest))
}

#[test]
fn every_limit_that_is_admitted_is_enough() {
    let _turn = turn();
    let (_folder, model) = many_heads();
    let prompt = text(9, PROMPT);
    let (expected, written, plan) = {
        let engine = open(&model, None);
        let written = alone(&engine, &prompt, 3, 4);
        let (expected, _) = logits(&engine, &prompt).unwrap();
        (expected, written, engine.plan(PROMPT + 8))
    };
    let (least, all) = (plan.total() - plan.kv + plan.kv_least, plan.total());
    assert!(all - least > 6 << 20, "{plan}");
    let (mut longest, mut spilled) = (0, 0);
    for step in 0..8 {
        let limit = least + (all - least) * step / 8 + (1 << 20);
        let engine = open(&model, Some(limit));
        // What the process holds besides is never the same twice: the first may be too small.
        let Some((bits, pass)) = logits(&engine, &prompt) else {
            assert!(step < 3, "{}", engine.plan(PROMPT + 8));
            continue;
        };
        assert!(bits == expected, "other bits at step {step}");
        longest = longest.max(pass);
        spilled += u32::from(engine.store().unwrap().counts().demoted_bytes > 0);
        drop(engine);

        let engine = open(&model, Some(limit));
        let tenant = Arc::new(engine.tenant(""));
        let mut scheduler = Scheduler::new(Arc::clone(&engine), ScheduleOptions::default());
        let ear = Ear::default();
        let mut request = request(&tenant, &prompt, vec![drawn(3, 4)], &ear);
        request.planned_tokens = PROMPT + 8;
        scheduler.submit(request);
        finish(&mut scheduler);
        let heard = ear.heard.lock().unwrap();
        let refused = |error: &String| error.contains("longest context");
        if step > 2 || !heard.error.as_ref().is_some_and(refused) {
            assert_eq!((&heard.error, &heard.ids), (&None, &vec![written.clone()]));
        }
    }
    assert!(longest > 64 && spilled > 3, "{longest} {spilled}");
}
