//! Models that differ from the stand-in: two sets of rotary frequencies, rows of logits that no
//! token belongs to, and recurrent layers.

use std::ops::ControlFlow;

use longview_kernels::Pool;
use longview_models::shapes::make_from;
use longview_models::{Config, Recipe};

use super::*;

/// The stand-in with rotary frequencies of their own for contexts of more than 256 tokens.
fn longrope() -> (tempfile::TempDir, Arc<Engine>) {
    let folder = tempfile::tempdir().unwrap();
    let stand_in = Path::new(STAND_IN);
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ] {
        std::fs::copy(stand_in.join(name), folder.path().join(name)).unwrap();
    }
    let config = std::fs::read(stand_in.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    config["original_max_position_embeddings"] = 256.into();
    config["rope_scaling"] = serde_json::json!({
        "type": "longrope", "short_factor": vec![1.0; 32], "long_factor": vec![1.25; 32], "attention_factor": 1.0,
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let options = EngineOptions {
        model: ModelSource::Path(folder.path().to_owned()),
        store: Some(StoreOptions::new(StorePlace::Temporary, 1 << 30)),
        ..EngineOptions::default()
    };
    let engine = Arc::new(Engine::open(&options).unwrap());
    (folder, engine)
}

#[test]
fn a_request_that_outgrows_its_context_begins_anew_or_fails_alone() {
    let _turn = turn();
    let (_folder, engine) = longrope();
    let tenant = Arc::new(engine.tenant(""));
    let mut scheduler = Scheduler::new(Arc::clone(&engine), ScheduleOptions::default());
    let ears: Vec<Ear> = (0..3).map(|_| Ear::default()).collect();
    let beside = text(2, 60);
    scheduler.submit(request(&tenant, &beside, vec![drawn(1, 20)], &ears[0]));
    scheduler.step();
    // A context of 200 tokens that was planned for no more, asked with 300.
    let prompt = text(1, 300);
    let begun = |planned_tokens| {
        let mut context = engine.new_context(planned_tokens).unwrap();
        let mut quiet = |_| Control::Continue;
        engine
            .prefill(&mut context, &prompt[..200], &mut quiet)
            .unwrap();
        context
    };
    scheduler.submit(Request {
        start: Start::Beginning(begun(200)),
        ..request(&tenant, &prompt, vec![drawn(7, 8)], &ears[1])
    });
    // One that cannot be made again is what is refused.
    scheduler.submit(Request {
        start: Start::Made(begun(200)),
        ..request(&tenant, &prompt, vec![drawn(7, 8)], &ears[2])
    });
    finish(&mut scheduler);
    let heard: Vec<_> = ears.iter().map(|ear| ear.heard.lock().unwrap()).collect();
    assert_eq!(heard[0].error, None);
    assert_eq!(heard[0].ids[0], alone(&engine, &beside, 1, 20));
    assert_eq!((heard[1].error.as_deref(), heard[1].reused), (None, 0));
    assert_eq!(heard[1].ids[0], alone(&engine, &prompt, 7, 72)[..8]);
    let error = heard[2].error.as_deref().unwrap();
    assert!(error.contains("300") && error.contains("256"), "{error}");
    // Planned for the question, it is taken over.
    drop(heard);
    let ear = Ear::default();
    scheduler.submit(Request {
        start: Start::Beginning(begun(400)),
        ..request(&tenant, &prompt, vec![drawn(7, 8)], &ear)
    });
    finish(&mut scheduler);
    assert!(ear.heard.lock().unwrap().reused >= 200);
}

/// The stand-in with its matrices of tokens twice as long, the second half twice the first: the
/// likeliest row is always one that no token belongs to.
fn write_with_rows_of_no_token(folder: &Path) {
    let stand_in = Path::new(STAND_IN);
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(stand_in.join(name), folder.join(name)).unwrap();
    }
    let config = std::fs::read_to_string(stand_in.join("config.json")).unwrap();
    let config = config.replace("\"vocab_size\": 4096", "\"vocab_size\": 8192");
    std::fs::write(folder.join("config.json"), config).unwrap();
    let bytes = std::fs::read(stand_in.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let twice = |half: &[u8]| {
        let value = f16::from_le_bytes([half[0], half[1]]);
        (value * f16::from_f32(2.0)).to_le_bytes()
    };
    let longer = |data: &[u8]| [data.to_vec(), data.chunks(2).flat_map(twice).collect()].concat();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = file
        .iter()
        .map(|(name, tensor)| match tensor.shape() {
            [4096, width] => (name.to_owned(), vec![8192, *width], longer(tensor.data())),
            shape => (name.to_owned(), shape.to_vec(), tensor.data().to_vec()),
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, data)| {
        let view = TensorView::new(Dtype::F16, shape.clone(), data);
        (name.as_str(), view.unwrap())
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

#[test]
fn rows_of_logits_that_no_token_belongs_to_are_never_chosen() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    write_with_rows_of_no_token(folder.path());
    let options = EngineOptions {
        model: ModelSource::Path(folder.path().to_owned()),
        ..EngineOptions::default()
    };
    let padded = Arc::new(Engine::open(&options).unwrap());
    assert_eq!(padded.vocabulary(), 4096);
    assert_eq!(padded.model().blueprint().vocab, 8192);
    let prompt = text(3, 60);
    let greedy = |engine: &Engine| {
        let mut context = engine.new_context(prompt.len() + 24).unwrap();
        let mut options = GenerateOptions::greedy(24);
        let generated = engine.generate(&mut context, &prompt, &mut options, &mut |_| {
            Control::Continue
        });
        generated.unwrap().ids
    };
    let wanted = greedy(&engine(None));
    assert_eq!(greedy(&padded), wanted);
    let mut scheduler = Scheduler::new(Arc::clone(&padded), ScheduleOptions::default());
    let (tenant, ear) = (Arc::new(padded.tenant("")), Ear::default());
    let mut answer = AnswerOptions::greedy(24);
    answer.logprobs = Some(3);
    scheduler.submit(request(&tenant, &prompt, vec![answer], &ear));
    finish(&mut scheduler);
    let heard = ear.heard.lock().unwrap();
    assert_eq!(heard.error, None);
    assert_eq!(heard.ids, [wanted]);
}

/// Random weights of a model whose layers are recurrent but for every second.
fn recurrent() -> (tempfile::TempDir, Arc<Engine>) {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::new(
        "recurrent",
        serde_json::json!({"model_type": "qwen3_5_text", "hidden_size": 32, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
            "vocab_size": 4000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
            "rope_theta": 1e4, "tie_word_embeddings": true, "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 1,
            "linear_num_value_heads": 2, "full_attention_interval": 2, "partial_rotary_factor": 0.5}),
    );
    let path = folder.path().join("model.gguf");
    make_from(&config, Recipe::F16, 7, &path, &Pool::new(1), &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap();
    let options = EngineOptions {
        model: ModelSource::Path(path),
        chunk_tokens: 256,
        threads: Some(1),
        store: Some(StoreOptions::new(StorePlace::Temporary, 1 << 30)),
        ..EngineOptions::default()
    };
    let engine = Engine::open(&options).unwrap();
    (folder, Arc::new(engine))
}

#[test]
fn layers_that_cannot_go_back_share_to_where_prompts_part() {
    let _turn = turn();
    let (_folder, engine) = recurrent();
    let tenant = Arc::new(engine.tenant(""));
    let mut scheduler = Scheduler::new(Arc::clone(&engine), ScheduleOptions::default());
    let shared = text(4, 100);
    let prompts: Vec<Vec<u32>> = (0..4)
        .map(|at| [shared.clone(), text(50 + at, 25)].concat())
        .collect();
    let ears: Vec<Ear> = prompts.iter().map(|_| Ear::default()).collect();
    for (prompt, ear) in prompts.iter().zip(&ears) {
        scheduler.submit(request(&tenant, prompt, vec![drawn(1, 3)], ear));
    }
    finish(&mut scheduler);
    assert_eq!(scheduler.counts().prompt_tokens, 100 + 4 * 25);
    for (prompt, ear) in prompts.iter().zip(&ears) {
        let wanted = alone(&engine, prompt, 1, 3);
        assert_eq!(ear.heard.lock().unwrap().ids[0], wanted);
    }
}
