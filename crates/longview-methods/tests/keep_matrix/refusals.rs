//! Requests that are wrong: each is refused by name, before work starts where that can be known, and says
//! what to do.

use std::sync::Arc;

use longview_kv::keep::{Keep, Needs, Scores};
use longview_kv::{KvError, KvType, Ledger};
use longview_methods::{Methods, Stage};

use crate::world::*;
use crate::{PROMPT, files, method};

#[test]
fn what_cannot_be_is_refused_by_name() {
    let mut world = World::new(KvType::F16, Ledger::unlimited());
    let small = world
        .keep(&method("snapkv(budget=20, window=32)"), 400)
        .unwrap_err();
    assert!(matches!(small, KvError::KeepRefused { .. }));
    let message = small.to_string();
    assert!(
        message.contains("--keep snapkv") && message.contains("at least 32"),
        "{message}"
    );
    let none = world
        .keep(&method("streaming-llm(budget=1%)"), 50)
        .unwrap_err();
    assert!(none.to_string().contains("keeps nothing"), "{none}");

    world.keep(&method("random(budget=40)"), PROMPT).unwrap();
    world.read(PROMPT, 64);
    world.end_of_prompt().unwrap();
    let gone = world.context.truncate(100).unwrap_err();
    assert!(
        matches!(gone, KvError::PairsGone { edge: PROMPT, .. }),
        "{gone}"
    );
    assert_eq!(world.context.resumable(100), None);
    assert!(!world.context.is_exact());
    let other = world.keep(&method("knorm(budget=40)"), PROMPT).unwrap_err();
    assert!(other.to_string().contains("has dropped pairs"), "{other}");
    world.read(9, 9);
    world.context.truncate(PROMPT + 2).unwrap();

    // Queries of tokens that were read before anybody asked for them.
    let mut late = World::new(KvType::F16, Ledger::unlimited());
    late.read(200, 64);
    late.keep(&method("snapkv(budget=50, window=8)"), 200)
        .unwrap();
    let missing = late.compress().unwrap_err();
    assert!(
        missing.to_string().contains("queries of the last 8 tokens"),
        "{missing}"
    );
    assert_eq!(late.context.kept_positions(0, 0).len(), 200);
    late.read(8, 8);
    late.compress().unwrap();
    assert_eq!(late.context.kept_positions(0, 0).len(), 50);

    let recurrent = recurrent_world()
        .keep(&method("random(budget=40)"), 99)
        .unwrap_err();
    assert!(
        recurrent.to_string().contains("recurrent layers"),
        "{recurrent}"
    );
}

#[test]
fn forms_that_hold_tokens_apart_say_what_they_cannot_be_kept_with() {
    let mut world = World::new(KvType::F16, Ledger::unlimited());
    let mut refused = |store: &str, keep: &str| {
        let mut methods = Methods::new();
        methods.set(Stage::Store, store).unwrap();
        world.store_as(methods.kv_forms().unwrap());
        world
            .keep(&method(keep), PROMPT)
            .err()
            .map(|error| error.to_string())
    };
    for (store, keep, said) in [
        (
            "q8, sinks=64",
            "streaming-llm(budget=200, positions=slots)",
            "give positions=text",
        ),
        (
            "q8, sinks=70",
            "random(budget=99)",
            "the 128 first and 63 last tokens",
        ),
        (
            "accllm(window=128)",
            "random(budget=99)",
            "forgets what is behind its window",
        ),
        // The latest 64 to 127 tokens are held apart and stay.
        (
            "kivi(residual=65)",
            "random(budget=99)",
            "the 4 first and 127 last tokens",
        ),
        (
            "q8, recent=65",
            "random(budget=99)",
            "the 4 first and 127 last tokens",
        ),
    ] {
        let message = refused(store, keep).unwrap_or_default();
        assert!(message.contains(said), "{store} {keep}: {message}");
    }
    for store in [
        "kivi(residual=65)",
        "q8, recent=65",
        "mustafar",
        "q8, sinks=64",
        "kivi(residual=64), sinks=64",
        "k=kivi, v=q8, layers 0-0=f16",
    ] {
        assert_eq!(refused(store, "random(budget=240)"), None, "{store}");
    }
}

/// Why a text is not understood.
fn refusal(text: &str) -> String {
    let refused = Methods::new().set(Stage::Keep, text);
    refused.unwrap_err().to_string()
}

#[test]
fn budgets_of_nothing_below_and_above_in_every_unit() {
    for budget in ["0", "0%", "0B", "-1", "101%", "1.5", "many", "4TB"] {
        let message = refusal(&format!("knorm(budget={budget})"));
        assert!(
            message.contains("budget = ")
                && message.contains("as 4096")
                && message.contains("64MiB"),
            "{message}"
        );
    }
    let refused = |text: &str| {
        let mut world = World::new(KvType::F16, Ledger::unlimited());
        world.keep(&method(text), PROMPT).unwrap_err().to_string()
    };
    // Four first and 32 last tokens stay: 36 pairs, in any unit.
    for (budget, said, enough) in [
        (
            "35",
            "its budget of 35 pairs a head is below the 4 first and 32 last",
            "at least 36",
        ),
        (
            "8%",
            "its budget of 33 pairs a head (8 % of a prompt of 420 tokens)",
            "at least 8.6 %, which is 36",
        ),
        (
            "1KiB",
            "its budget keeps nothing (what 1024 bytes have room for)",
            "bytes, which is 36",
        ),
    ] {
        let message = refused(&format!("knorm(budget={budget})"));
        assert!(
            message.contains(said) && message.contains(enough),
            "{message}"
        );
        // What is asked for is enough.
        let words = message.rsplit_once("at least ").unwrap().1;
        let least: String = words.split(", ").next().unwrap().replace(" bytes", "B");
        let mut world = World::new(KvType::F16, Ledger::unlimited());
        let keep = method(&format!("knorm(budget={})", least.replace(' ', "")));
        world.keep(&keep, PROMPT).unwrap();
    }
    // Whatever the prompt's length: shares are given in tenths of a per cent.
    for prompt in (37..700).chain([1000, 2000]) {
        let tenths = 36_000usize.div_ceil(prompt) as f64;
        let keep = method(&format!("knorm(budget={}%)", tenths / 10.0));
        let mut world = World::new(KvType::F16, Ledger::unlimited());
        world.keep(&keep, prompt).unwrap();
    }
    // Room for more than there is is room enough.
    let mut world = World::new(KvType::F16, Ledger::unlimited());
    world.keep(&method("knorm(budget=1GiB)"), 5).unwrap();
    // A share of a prompt that always stays is no budget to refuse.
    let mut world = World::new(KvType::F16, Ledger::unlimited());
    world.keep(&method("knorm(budget=8%)"), 36).unwrap();
    let message = world
        .keep(&method("knorm(budget=8%)"), 37)
        .unwrap_err()
        .to_string();
    assert!(message.contains("at least 97.3 %"), "{message}");
    // Exactly that, and more than there is, is taken; more than there is changes nothing.
    for (budget, kept) in [
        ("36", 36),
        ("9%", 37),
        ("100%", PROMPT),
        ("4k", PROMPT),
        ("1GiB", PROMPT),
    ] {
        let mut world = World::new(KvType::F16, Ledger::unlimited());
        let keep = method(&format!("knorm(budget={budget})"));
        world.keep(&keep, PROMPT).unwrap();
        world.read(PROMPT, 64);
        world.end_of_prompt().unwrap();
        assert_eq!(world.context.kept_positions(0, 0).len(), kept, "{budget}");
        assert_eq!(world.context.is_compressed(), kept < PROMPT, "{budget}");
    }
}

#[test]
fn unknown_names_are_refused_with_the_nearest() {
    for (text, said) in [
        (
            "snapkv(windw=8)",
            "no parameter \"windw\" (did you mean \"window\"?)",
        ),
        ("snapkv(recent=8)", "no parameter \"recent\""),
        (
            "knorm(alloc=adavk)",
            "alloc = adavk: there is no such method (did you mean \"adakv\"?)",
        ),
        ("knorm(merge=d20)", "did you mean \"d2o\"?"),
        ("knorm(merge=d2o(memry=1))", "did you mean \"memory\"?"),
        ("streamingllm", "did you mean \"streaming-llm\"?"),
        (
            "streaming-llm(positions=slot)",
            "positions = slot is not one of text, slots",
        ),
        ("timrun(last=1)", "longview chat"),
    ] {
        let message = refusal(text);
        assert!(message.contains(said), "{text}: {message}");
    }
}

/// A method whose scores a test writes.
struct Written(f32);

impl longview_kv::keep::Score for Written {
    fn score(
        &self,
        layer: &longview_kv::keep::LayerView<'_>,
        scores: &mut Scores,
    ) -> Result<(), KvError> {
        if layer.layer() == 2 {
            scores.head_mut(1)[7] = self.0;
        }
        Ok(())
    }
}

#[test]
fn scores_that_are_no_numbers_are_refused_and_nothing_changes() {
    let written = |score: f32| -> Arc<Keep> {
        let plain = Arc::into_inner(method("knorm(budget=40, sinks=0, recent=0)")).unwrap();
        Arc::new(Keep {
            score: Box::new(Written(score)),
            ..plain
        })
    };
    let mut world = World::new(KvType::F16, Ledger::unlimited());
    world.keep(&written(f32::NAN), PROMPT).unwrap();
    world.read(PROMPT, 64);
    let message = world.compress().unwrap_err().to_string();
    assert!(
        message.contains("the score of token 7 in layer 2, KV head 1, is not a number"),
        "{message}"
    );
    assert!(!world.context.is_compressed());
    assert_eq!(world.context.kept_positions(2, 1).len(), PROMPT);

    // Minus infinity goes though there is room, plus infinity stays though it comes late.
    for (score, stays) in [(f32::NEG_INFINITY, false), (f32::INFINITY, true)] {
        let mut world = World::new(KvType::F16, Ledger::unlimited());
        world.keep(&written(score), PROMPT).unwrap();
        world.read(PROMPT, 64);
        world.compress().unwrap();
        let kept = world.context.kept_positions(2, 1);
        assert_eq!((kept.len(), kept.contains(&7)), (40, stays));
    }
}

#[test]
fn what_was_not_gathered_is_named_with_how_to_get_it() {
    for (text, what) in [
        ("snapkv(budget=60)", "the queries of the last 32 tokens"),
        ("tova(budget=60)", "the queries of the last 1 tokens"),
        (
            "h2o(budget=60)",
            "the attention that every token has received",
        ),
        (
            "critic(budget=60)",
            "the attention that every token has received",
        ),
        ("expected-attention(budget=60)", "the sums of all queries"),
        (
            "kvzip(budget=60)",
            "what the model looks at when it repeats the context",
        ),
        (
            &files::locret("budget=60, local=9"),
            "what its heads make of every token",
        ),
    ] {
        // As a context is that was restored from disk: read before the method was there.
        let mut world = World::new(KvType::F16, Ledger::unlimited());
        world.read(200, 64);
        world.keep(&method(text), 200).unwrap();
        let message = world.decide().unwrap_err().to_string();
        assert!(message.contains(what), "{text}: {message}");
        assert!(
            message.contains("read it anew with the method chosen")
                && message.contains("--cache-max 0"),
            "{text}: {message}"
        );
        assert_eq!(world.context.kept_positions(0, 0).len(), 200, "{text}");
    }
}

#[test]
fn files_of_other_models_are_refused_before_anything_is_read() {
    let mut world = World::new(KvType::F16, Ledger::unlimited());
    let refused =
        |world: &mut World, text: &str| world.keep(&method(text), PROMPT).unwrap_err().to_string();
    let scores = files::write("# model fingerprint: somebody\n1 0\n0 1\n1 1\n0 0\n");
    let duo = format!("duo-attention(scores=\"{scores}\", budget=60, sinks=4, recent=8)");
    let message = refused(&mut world, &duo);
    assert!(
        message.contains("fingerprint somebody, but this model's is the world"),
        "{message}"
    );
    let scores = files::write("1 0\n0 1\n");
    let duo = format!("duo-attention(scores=\"{scores}\", budget=60, sinks=4, recent=8)");
    let message = refused(&mut world, &duo);
    assert!(
        message.contains("of 2 layers with 2 KV heads, but the model has 4"),
        "{message}"
    );
    assert!(world.context.is_empty() && world.context.keep_method().is_none());
    assert_eq!(Needs::default(), Needs::default().and(Needs::default()));
}
