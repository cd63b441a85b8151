//! Contexts that last, on the stand-in of the reference model: across engines, within a memory limit, over damage.

use std::fs;
use std::iter;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use longview_engine::{
    ContextWork, Control, Engine, EngineOptions, Event, GenerateOptions, ModelSource, Reuse,
    StoreOptions, StorePlace, Tail,
};
use longview_kernels::Pool;
use longview_kv::{Context, ReuseEnd, Segment, Wanted};
use longview_models::shapes::make_from;
use longview_models::{Config, Recipe};

/// Memory is measured for the whole process, so tests take turns.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|failed| failed.into_inner())
}

/// The reference model's tokenizer and keys and values, of small random matrices.
const STAND_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/stand-in");

fn options(folder: &Path) -> EngineOptions {
    EngineOptions {
        model: ModelSource::Path(STAND_IN.into()),
        chunk_tokens: 128,
        threads: Some(2),
        store: Some(StoreOptions::new(
            StorePlace::Folder(folder.to_owned()),
            1 << 30,
        )),
        ..EngineOptions::default()
    }
}

fn open(options: &EngineOptions) -> Engine {
    Engine::open(options).unwrap()
}

/// Tokens of a text that does not repeat itself.
fn text(count: usize) -> Vec<u32> {
    let mut x = 12345u32;
    let mut next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        300 + (x >> 8) % 3000
    };
    (0..count).map(|_| next()).collect()
}

fn read(engine: &Engine, context: &mut Context, tokens: &[u32]) {
    let control = engine
        .prefill(context, tokens, &mut |_| Control::Continue)
        .unwrap();
    assert_eq!(control, Control::Continue);
}

/// Logits of the last of `tokens`, bit for bit.
fn logits(engine: &Engine, context: &mut Context, tokens: &[u32]) -> Vec<u32> {
    let segment = Segment {
        context,
        tokens,
        wanted: Wanted::Last,
    };
    let workspace = engine.pass(vec![segment]).unwrap();
    workspace
        .logits()
        .iter()
        .map(|logit| logit.to_bits())
        .collect()
}

/// Reads `tokens` with an engine of its own, which leaves them in `folder`. Gives the logits of the last.
fn read_and_left(folder: &Path, tokens: &[u32]) -> Vec<u32> {
    let engine = open(&options(folder));
    let mut context = engine.new_context(tokens.len() + 100).unwrap();
    let (last, before) = tokens.split_last().unwrap();
    read(&engine, &mut context, before);
    logits(&engine, &mut context, &[*last])
}

/// Damages a file in the middle.
fn flip_a_bit(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 16;
    fs::write(file, bytes).unwrap();
}

#[test]
fn what_was_read_is_found_after_a_restart_with_the_same_logits() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let tokens = text(700);
    let expected = {
        let engine = open(&options(folder.path()));
        let (mut context, held) = engine.open_context(&tokens, 800).unwrap();
        assert_eq!(held, 0);
        read(&engine, &mut context, &tokens[..690]);
        logits(&engine, &mut context, &tokens[690..])
    };
    let engine = open(&options(folder.path()));
    let (mut context, held) = engine.open_context(&tokens, 800).unwrap();
    assert_eq!(held, 640);
    assert_eq!(logits(&engine, &mut context, &tokens[640..]), expected);
    // Generated text is kept as well.
    let mut answer = GenerateOptions::greedy(80);
    let generated = engine
        .generate(&mut context, &[7], &mut answer, &mut |_| Control::Continue)
        .unwrap();
    let read_now = [&tokens[..], &[7], &generated.ids].concat();
    drop((context, engine));
    let engine = open(&options(folder.path()));
    let (_, held) = engine.open_context(&read_now, 900).unwrap();
    assert_eq!(held, (read_now.len() - 1) / 64 * 64);

    // Another salt, numerics class or text finds nothing, and says why.
    let mut salted = options(folder.path());
    salted.store.as_mut().unwrap().salt = "tenant".to_owned();
    let engine = open(&salted);
    assert_eq!(engine.open_context(&tokens, 800).unwrap().1, 0);
    let ReuseEnd::OtherIdentity(others) = engine.explain(&tokens).unwrap().end else {
        panic!("the text is there under no salt");
    };
    assert_eq!(others.len(), 1);
    let engine = open(&EngineOptions {
        numerics: longview_kernels::Numerics::F32,
        ..options(folder.path())
    });
    assert_eq!(engine.open_context(&tokens, 800).unwrap().1, 0);
}

#[test]
fn a_limit_far_below_the_keys_and_values_gives_the_same_bits() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let tokens = text(5000);
    let expected = {
        let engine = open(&EngineOptions {
            store: None,
            ..options(folder.path())
        });
        let mut context = engine.new_context(5010).unwrap();
        read(&engine, &mut context, &tokens[..4999]);
        logits(&engine, &mut context, &tokens[4999..])
    };
    // What the engine takes without any context, and a third of what the context takes.
    let limit = || {
        let unlimited = open(&EngineOptions {
            store: None,
            ..options(folder.path())
        });
        let plan = unlimited.plan(5010);
        plan.total() - plan.kv + plan.kv / 3
    };
    let refused = open(&EngineOptions {
        store: None,
        memory_bytes: Some(limit()),
        ..options(folder.path())
    });
    assert!(refused.new_context(5010).is_err());
    drop(refused);
    // With a folder that has room for it, and with one that has room for a block: the rest goes to a
    // temporary folder then.
    for max_bytes in [1 << 30, 200 << 10] {
        let folder = tempfile::tempdir().unwrap();
        let mut limited = EngineOptions {
            memory_bytes: Some(limit()),
            ..options(folder.path())
        };
        limited.store.as_mut().unwrap().max_bytes = max_bytes;
        let engine = open(&limited);
        let mut context = engine.new_context(5010).unwrap();
        read(&engine, &mut context, &tokens[..4999]);
        assert!(context.away_bytes() > context.kv_bytes() / 4);
        assert_eq!(logits(&engine, &mut context, &tokens[4999..]), expected);
        let store = engine.store().unwrap();
        assert!(store.counts().read_bytes > 0);
        let told = store.take_warnings().join("\n");
        let spilled = max_bytes < 1 << 30;
        assert_eq!(told.contains("--cache-max"), spilled, "{told}");
        assert_eq!(told.contains("until the program ends"), spilled, "{told}");
    }
}

#[test]
fn an_answer_within_a_limit_reads_back_little_more_than_it_must() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let tokens = text(5000);
    let answer = |engine: &Engine| {
        let mut context = engine.new_context(5020).unwrap();
        let options = &mut GenerateOptions::greedy(12);
        let on = &mut |_: Event<'_>| Control::Continue;
        let generated = engine.generate(&mut context, &tokens, options, on);
        (generated.unwrap().ids, context)
    };
    let unlimited = open(&EngineOptions {
        store: None,
        ..options(folder.path())
    });
    let (expected, _) = answer(&unlimited);
    let plan = unlimited.plan(5020);
    drop(unlimited);
    let engine = open(&EngineOptions {
        memory_bytes: Some(plan.total() - plan.kv + plan.kv / 2),
        ..options(folder.path())
    });
    let (ids, context) = answer(&engine);
    assert_eq!(ids, expected);
    let work = ContextWork {
        prompt: tokens.len(),
        answer: ids.len(),
        ..ContextWork::default()
    };
    let least = engine.least_bytes_read(&context, &work).unwrap();
    let read = engine.store().unwrap().counts().read_bytes;
    assert!(read > 0 && read <= least + least / 2, "{read} of {least}");
    // The buffers of the prefill are gone: blocks have their room.
    let scratch = engine.ledger().usage().scratch;
    assert!(scratch < plan.scratch, "{scratch} of {}", plan.scratch);
}

#[test]
fn damaged_blocks_are_computed_again_and_told_of() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let tokens = text(1500);
    let expected = read_and_left(folder.path(), &tokens);
    // One bit in the middle of every extent.
    for file in extents(&folder.path().join("extents")) {
        flip_a_bit(&file);
    }
    let engine = open(&options(folder.path()));
    let (mut context, held) = engine.open_context(&tokens, 1600).unwrap();
    assert_eq!(held, 1472, "damage shows when a block is read");
    assert_eq!(logits(&engine, &mut context, &tokens[1472..]), expected);
    let warnings = engine.store().unwrap().take_warnings();
    assert!(
        warnings.iter().any(|w| w.contains("damaged")),
        "{warnings:?}"
    );
}

#[test]
fn a_damaged_block_is_computed_again_and_what_follows_is_not() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let tokens = text(1500);
    let expected = read_and_left(folder.path(), &tokens);
    // One bit of the longer one of two files: a block before the last of what is taken over.
    let mut files = extents(&folder.path().join("extents"));
    files.sort_by_key(|file| fs::metadata(file).unwrap().len());
    flip_a_bit(&files[1]);
    let engine = open(&options(folder.path()));
    let (mut context, held) = engine.open_context(&tokens, 1600).unwrap();
    assert_eq!(held, 1472);
    assert_eq!(logits(&engine, &mut context, &tokens[1472..]), expected);
    assert_eq!(engine.store().unwrap().counts().sealed_blocks, 1);
    assert_eq!(context.computed_again(), 64);
}

#[test]
fn what_is_computed_again_leaves_places_to_go_back_to() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("hybrid.gguf");
    let config = Config::new(
        "hybrid",
        serde_json::json!({"model_type": "qwen3_5_text", "hidden_size": 32, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
            "vocab_size": 4000, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6,
            "rope_theta": 1e4, "tie_word_embeddings": true, "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 1,
            "linear_num_value_heads": 2, "full_attention_interval": 2, "partial_rotary_factor": 0.5}),
    );
    make_from(&config, Recipe::F16, 3, &model, &Pool::new(1), &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap();
    let options = EngineOptions {
        model: ModelSource::Path(model),
        ..options(&folder.path().join("store"))
    };
    let tokens = text(150);
    let expected = {
        let engine = open(&options);
        let mut context = engine.new_context(200).unwrap();
        read(&engine, &mut context, &tokens[..149]);
        logits(&engine, &mut context, &tokens[149..])
    };
    // A bit of the first block's keys, in every file that holds some.
    for file in extents(&folder.path().join("store/extents")) {
        let mut bytes = fs::read(&file).unwrap();
        let at = bytes.len() - 9;
        bytes[at] ^= 16;
        fs::write(&file, bytes).unwrap();
    }
    let engine = open(&options);
    let (mut context, held) = engine.open_context(&tokens, 200).unwrap();
    assert_eq!(held, 128);
    assert_eq!(logits(&engine, &mut context, &tokens[128..]), expected);
    assert_eq!(context.resumable(149), Some(128));
}

#[test]
fn a_text_that_changed_is_followed() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let engine = open(&options(folder.path()));
    let old = text(900);
    // A stamp of three tokens is replaced by one of five, and a passage is gone.
    let stamp = [11, 12, 13, 14, 15];
    let new = [&old[..200], &stamp, &old[203..500], &old[600..], &[7]].concat();
    let mut quiet = |_| Control::Continue;

    let mut context = engine.new_context(1000).unwrap();
    read(&engine, &mut context, &old);
    let mut exact = context.fork();
    let realigned = engine
        .realign(&mut exact, &new, Reuse::Prefix, &mut quiet)
        .unwrap();
    assert_eq!((realigned.held, realigned.moved), (200, 0));
    assert!(exact.is_exact());

    let shift = Reuse::Shift { least_tokens: 64 };
    let realigned = engine
        .realign(&mut context, &new, shift, &mut quiet)
        .unwrap();
    assert_eq!(realigned.held, new.len() - 1);
    assert_eq!((realigned.moved, realigned.computed), (297 + 300, 5));
    assert_eq!(context.tokens(), &new[..new.len() - 1]);
    assert!(!context.is_exact());
    let approximate = logits(&engine, &mut context, &[7]);
    read(&engine, &mut exact, &new[200..new.len() - 1]);
    let expected = logits(&engine, &mut exact, &[7]);
    assert_ne!(approximate, expected, "moved text was computed elsewhere");
    // The next turn continues it, and what is approximate is never found by content.
    read(&engine, &mut context, &old[..300]);
    let all = [&new[..], &old[..300]].concat();
    let found = engine.open_context(&all, 1300).unwrap();
    assert_eq!(
        found.1,
        (new.len() - 1) / 64 * 64,
        "what the exact one has read"
    );
    assert!(found.0.is_exact());
}

#[test]
fn moved_text_that_fills_no_block_is_not_taken_for_what_its_tokens_say() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let engine = open(&options(folder.path()));
    let tokens = text(400);
    let mut quiet = |_| Control::Continue;
    let mut moved = engine.new_context(500).unwrap();
    read(&engine, &mut moved, &tokens[..212]);
    engine
        .remove(
            &mut moved,
            iter::once(64..192).collect(),
            Tail::Moved,
            &mut quiet,
        )
        .unwrap();
    assert!(!moved.is_exact());
    read(&engine, &mut moved, &tokens[212..300]);
    let now = [&tokens[..64], &tokens[192..300]].concat();
    assert_eq!(moved.tokens(), now);
    let (exact, held) = engine.open_context(&now, 500).unwrap();
    assert_eq!((held, exact.is_exact()), (64, true));
}

#[test]
fn a_few_tokens_between_two_gaps_are_read_again_and_take_no_block_of_their_own() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let engine = open(&options(folder.path()));
    let tokens = text(500);
    let mut context = engine.new_context(600).unwrap();
    read(&engine, &mut context, &tokens);
    let before = context.kv_bytes() / 8;
    let gaps = vec![100..130, 133..200];
    let pruned = engine
        .remove(&mut context, gaps, Tail::Moved, &mut |_| Control::Continue)
        .unwrap();
    // Those, and the last one, which is always computed.
    assert_eq!((pruned.read_again, context.len()), (4, 403));
    // Of 500 tokens in eight blocks, 103 and then 300 from the fourth on.
    assert_eq!(context.kv_bytes() / before, 7);
}

fn extents(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(extents(&path));
        } else {
            found.push(path);
        }
    }
    found
}
