//! Every keep method × codec, on layers with full attention beside a sliding window: what must hold
//! whatever a method decides. A method joins by its line in the registry.

mod apart;
mod files;
mod left;
mod reading;
mod refusals;
mod within;
#[allow(dead_code, reason = "read methods use the rest of it")]
mod world;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use longview_kernels::Exec;
use longview_kv::keep::{Keep, KeepBytes, LayerView, Needs, PlainRows, Score, Scores};
use longview_kv::{KvError, KvType, Ledger};
use longview_methods::{Domain, Methods, Role, Stage, registry};
use world::*;

/// Tokens of the prompt, and tokens that follow one by one.
const PROMPT: usize = 420;
const AFTER: usize = 40;

/// Every way to keep less: each method alone, and one method with each rule for budgets and merge.
fn texts(budget: &str) -> Vec<String> {
    let mut texts: Vec<String> = registry::of(Stage::Keep)
        .filter(|method| {
            let declares = |name: &str| method.parameters.iter().any(|p| p.name == name);
            // Those without a budget act on conversations, and what a text must say of the world's
            // tokens, which have no letters, has tests of its own.
            let is_told =
                |p: &&longview_methods::Parameter| p.domain == Domain::Text && p.default.is_empty();
            declares("budget") && !method.parameters.iter().any(|p| is_told(&p))
        })
        .map(|method| match files::of(method.name) {
            Some(rest) => format!("{}({rest}, budget={budget})", method.name),
            None => format!("{}(budget={budget})", method.name),
        })
        .collect();
    for role in [Role::Budgets, Role::Merge] {
        for part in registry::parts(role) {
            texts.push(format!(
                "snapkv(budget={budget}, window=8, {}={})",
                role.parameter(),
                part.name
            ));
        }
    }
    texts.push(format!("random(budget={budget}, block=64, decode=16)"));
    texts.push(format!(
        "snapkv(budget={budget}, window=8, alloc=adakv, chunks=16)"
    ));
    texts.push(format!("h2o(budget={budget}, block=64, chunks=10)"));
    texts.push(format!("kvzip(budget={budget}, decode=16, chunks=8)"));
    texts.push(format!("sage-kv(budget={budget}, decode=8)"));
    texts.push(format!(
        "h2o(budget={budget}, block=64, merge=d2o, sinks=4)"
    ));
    texts.push(format!(
        "h2o(budget={budget}, block=64, merge=chelsea(as=tokens), sinks=4)"
    ));
    texts.push(format!("tova(budget={budget}, block=64)"));
    texts.push(format!(
        "knorm(budget={budget}, block=100, decode=1, sinks=0, recent=0)"
    ));
    texts.push(format!(
        "streaming-llm(budget={budget}, positions=slots, block=64, decode=8)"
    ));
    texts
}

/// The texts with half precision, and a third of them with any other form, another third for the next: every form meets
/// methods of all kinds, and every method forms of all kinds. For what takes long and could only break by one of the
/// two.
fn some_texts(budget: &str, form: KvType) -> impl Iterator<Item = String> {
    let place = forms().position(|known| known == form).unwrap();
    let texts = texts(budget).into_iter().enumerate();
    texts
        .filter(move |(at, _)| form == KvType::F16 || (at + place) % 3 == 0)
        .map(|(_, text)| text)
}

fn method(text: &str) -> Arc<Keep> {
    let mut methods = Methods::new();
    methods.set(Stage::Keep, text).unwrap();
    Arc::clone(methods.keep().unwrap())
}

/// Those that score by what pairs are: the others keep runs as they are, or match neighbours themselves.
#[test]
fn every_score_is_wrapped_by_budgets_chunks_and_at_decode() {
    for method in registry::of(Stage::Keep) {
        let declares = |name: &str| method.parameters.iter().any(|p| p.name == name);
        let by_place = ["streaming-llm", "duo-attention", "label-words", "chelsea"];
        if !declares("budget") || by_place.contains(&method.name) {
            continue;
        }
        assert!(declares("chunks") && declares("decode"), "{}", method.name);
        // One set for all heads of a layer is what tova is.
        assert!(
            declares("alloc") || method.name == "tova",
            "{}",
            method.name
        );
    }
}

#[test]
fn a_budget_above_all_tokens_changes_no_bit() {
    for kv_type in forms() {
        let mut dense = World::new(kv_type, Ledger::unlimited());
        let mut expected = dense.read(PROMPT, 97);
        expected.extend((0..AFTER).flat_map(|_| dense.read(1, 1)));
        for text in texts("1000") {
            let mut world = World::new(kv_type, Ledger::unlimited());
            world.keep(&method(&text), PROMPT).unwrap();
            let mut got = world.read(PROMPT, 97);
            world.end_of_prompt().unwrap();
            for _ in 0..AFTER {
                got.extend(world.read(1, 1));
                world.end_of_step().unwrap();
            }
            assert!(got == expected, "{text} {kv_type}");
            assert!(!world.context.is_compressed(), "{text}");
        }
    }
}

/// What a prompt that was read and compressed has taken and holds, and that `budget` pairs a head are left.
fn check_bytes(world: &World, ledger: &Ledger, stated: &KeepBytes, budget: usize, text: &str) {
    let (usage, most) = (ledger.usage(), stated.peak + stated.scratch);
    assert!(usage.peak <= most, "{text}: {} of {most}", usage.peak);
    assert!(
        usage.kv <= stated.steady,
        "{text}: {} of {}",
        usage.kv,
        stated.steady
    );
    assert_eq!(usage.kv, world.context.kv_bytes(), "{text}");
    let report = world.context.keep_report().unwrap();
    let heads = FULL_LAYERS.len() * KV_HEADS;
    assert_eq!(report.pairs_kept as usize, heads * budget, "{text}");
    world.check_positions(text);
}

#[test]
fn bytes_stay_below_what_was_stated_and_totals_are_exact() {
    let budget = 90;
    for kv_type in forms() {
        for text in texts(&budget.to_string()) {
            let keep = method(&text);
            let ledger = Ledger::unlimited();
            let mut world = World::new(kv_type, ledger.clone());
            let stated = world.stated(&keep, PROMPT, AFTER);
            world.keep(&keep, PROMPT).unwrap();
            world.read(PROMPT, 64);
            world.end_of_prompt().unwrap();
            check_bytes(
                &world,
                &ledger,
                &stated,
                budget,
                &format!("{text} {kv_type}"),
            );
            for _ in 0..AFTER {
                world.read(1, 1);
                world.end_of_step().unwrap();
            }
            assert!(
                ledger.usage().peak <= stated.peak + stated.scratch,
                "{text} {kv_type}, after"
            );
            drop(world);
            assert_eq!(
                ledger.usage().total(),
                0,
                "{text}: every byte is given back"
            );
        }
    }
}

#[test]
fn budgets_in_bytes_are_kept_to_and_take_as_many_pairs_as_fit() {
    for kv_type in forms() {
        let fresh = || World::new(kv_type, Ledger::unlimited());
        // Room for a good part of the prompt, beside what a form holds apart.
        let dense = fresh().dense_bytes(PROMPT);
        let of_random = |bytes: u64| {
            let keep = method(&format!("random(budget={bytes}B)"));
            fresh().slots(&keep, PROMPT)
        };
        let mut parts = (1..100).map(|part| dense - dense * part / 100);
        let bytes = parts.find(|&bytes| of_random(bytes) <= 300).unwrap();
        for text in some_texts(&format!("{bytes}B"), kv_type) {
            let keep = method(&text);
            let held = |keep: &Arc<Keep>, chunk: usize| {
                let mut world = fresh();
                world.keep(keep, PROMPT).unwrap();
                world.read(PROMPT, chunk);
                world.end_of_prompt().unwrap();
                // The layer with a window of its own has no part in the budget.
                let all = world.context.kv_bytes() - world.window_layer_bytes();
                assert!(all <= bytes, "{text} {kv_type}, {chunk}: {all} of {bytes}");
                let report = world.context.keep_report().unwrap();
                (report.stream_bytes, report.pairs_kept as usize)
            };
            let (streams, pairs) = held(&keep, 64);
            held(&keep, PROMPT);
            assert!(
                streams > 0 && streams <= bytes,
                "{text} {kv_type}: {streams}"
            );
            let heads = FULL_LAYERS.len() * KV_HEADS;
            let slots = fresh().slots(&keep, PROMPT);
            assert_eq!(pairs, slots * heads, "{text} {kv_type}");
            // That number of pairs is the same budget, and one more would be stated to take more.
            let by_pairs = |pairs: usize| {
                let number = format!("budget={pairs}");
                method(&text.replace(&format!("budget={bytes}B"), &number))
            };
            let same = by_pairs(slots);
            assert_eq!(held(&same, 64), (streams, pairs), "{text} {kv_type}");
            let steady = |keep: &Keep| fresh().stated(keep, PROMPT, 0).steady;
            let more = steady(&by_pairs(slots + 1));
            assert!(more > steady(&same), "{text} {kv_type}");
        }
    }
}

#[test]
fn budgets_in_bytes_that_all_fits_are_kept_to_as_well() {
    for kv_type in forms() {
        let fresh = || World::new(kv_type, Ledger::unlimited());
        let keep = |bytes: u64| method(&format!("random(budget={bytes}B)"));
        // The least that has room for every pair.
        let dense = fresh().dense_bytes(PROMPT);
        let mut budgets = (0..200).map(|part| dense / 2 + dense * part / 100);
        let bytes = budgets.find(|&bytes| fresh().slots(&keep(bytes), PROMPT) >= PROMPT);
        let bytes = bytes.unwrap();
        // At once as a document, too, of which questions are asked later.
        for (chunk, is_document) in [(64, false), (PROMPT, false), (PROMPT, true)] {
            let mut world = fresh();
            world.keep(&keep(bytes), PROMPT).unwrap();
            world.read(PROMPT, chunk);
            match is_document {
                true => world.decide().unwrap(),
                false => world.end_of_prompt().unwrap(),
            }
            let pairs = world.context.keep_report().unwrap().pairs_kept as usize;
            assert_eq!(pairs, PROMPT * FULL_LAYERS.len() * KV_HEADS, "{kv_type}");
            let all = world.context.kv_bytes() - world.window_layer_bytes();
            assert!(all <= bytes, "{kv_type}, {chunk}: {all} of {bytes}");
            // More may follow.
            world.read(40, 64);
        }
    }
}

#[test]
fn what_follows_is_in_the_budget_as_well_and_what_was_gathered_shrinks_with_it() {
    for text in texts("90") {
        let ledger = Ledger::unlimited();
        let mut world = World::new(KvType::F16, ledger.clone());
        let keep = method(&text);
        let stated = world.stated(&keep, PROMPT, 0);
        world.keep(&keep, PROMPT).unwrap();
        world.read(PROMPT, 64);
        world.end_of_prompt().unwrap();
        let scratch = ledger.usage().scratch;
        assert!(
            2 * scratch <= stated.scratch,
            "{text}: {scratch} of {}",
            stated.scratch
        );
        // A turn longer than the budget.
        world.read(150, 64);
        world.compress().unwrap();
        let kept = world.context.keep_report().unwrap().pairs_kept as usize;
        let heads = FULL_LAYERS.len() * KV_HEADS;
        if text.starts_with("duo-attention") {
            // One head retrieves, and grows with the text.
            assert_eq!(kept, heads * (90 + 150 / heads), "{text}");
        } else {
            assert_eq!(kept, heads * 90, "{text}");
            assert!(ledger.usage().kv <= stated.steady, "{text}");
        }
    }
}

#[test]
fn a_prompt_with_room_and_an_answer_beyond_it_stay_below_what_was_stated() {
    let prompt = 70;
    for kv_type in forms() {
        for text in texts("90") {
            let keep = method(&text);
            let ledger = Ledger::unlimited();
            let mut world = World::new(kv_type, ledger.clone());
            let stated = world.stated(&keep, prompt, 60);
            world.keep(&keep, prompt).unwrap();
            world.read(prompt, 64);
            world.end_of_prompt().unwrap();
            let (held, most) = (ledger.usage().kv, stated.steady);
            assert!(held <= most, "{text} {kv_type}: {held} of {most}");
            for _ in 0..60 {
                world.read(1, 1);
                world.end_of_step().unwrap();
            }
            let (peak, most) = (ledger.usage().peak, stated.peak + stated.scratch);
            assert!(peak <= most, "{text} {kv_type}: {peak} of {most}");
        }
    }
}

#[test]
fn attention_reads_exactly_the_pairs_that_are_held() {
    for kv_type in forms() {
        for text in texts("77") {
            let mut world = World::new(kv_type, Ledger::unlimited());
            let keep = method(&text);
            world.keep(&keep, PROMPT).unwrap();
            world.read(PROMPT, 111);
            world.end_of_prompt().unwrap();
            world.check_positions(&text);
            // What others were merged into is no longer what was computed.
            if keep.merge.is_none() {
                let out = world.read(3, 3);
                world.check_attention(&out, 3, &text);
            }
            world.end_of_step().unwrap();
            let out = world.read(1, 1);
            if keep.merge.is_none() {
                world.check_attention(&out, 1, &text);
            }
        }
    }
}

#[test]
fn forks_are_isolated_and_chunks_do_not_matter() {
    let all = || texts("70").into_iter();
    let cases = all().map(|text| (text, KvType::F16));
    for (text, kv_type) in cases.chain(all().map(|text| (text, KvType::WHOLE[0]))) {
        let keep = method(&text);
        let mut world = World::new(kv_type, Ledger::unlimited());
        world.keep(&keep, PROMPT).unwrap();
        world.read(PROMPT, 128);
        world.end_of_prompt().unwrap();

        let mut fork = world.fork();
        let mut other = fork.fork();
        let expected = fork.read(5, 5);
        // The other reads more, drops more, and goes.
        other.read(200, 200);
        other.compress().unwrap();
        assert!(world.context.kept_positions(0, 0).len() <= PROMPT);
        drop(other);
        assert!(
            world.read(5, 5) == expected,
            "{text}: a fork changed its origin"
        );
        assert_eq!(
            world.context.kept_positions(0, 1),
            fork.context.kept_positions(0, 1)
        );

        let mut again = World::new(kv_type, Ledger::unlimited());
        again.keep(&keep, PROMPT).unwrap();
        again.read(PROMPT, 37);
        again.end_of_prompt().unwrap();
        for head in 0..KV_HEADS {
            let kept = |world: &World| -> Vec<u32> {
                let all = world.context.kept_positions(2, head).into_iter();
                all.filter(|&at| (at as usize) < PROMPT).collect()
            };
            assert_eq!(kept(&again), kept(&world), "{text} {kv_type}: other chunks");
        }
    }
}

#[test]
fn one_reading_serves_every_method_that_decides_after_it() {
    let after = |text: &String| method(text).when.block.is_none();
    let texts: Vec<String> = texts("70").into_iter().filter(after).collect();
    let needs = texts.iter().fold(Needs::default(), |needs, text| {
        needs.and(method(text).score.needs())
    });
    let mut shared = World::new(KvType::F16, Ledger::unlimited());
    shared.keep_with(&method(&texts[0]), needs, PROMPT).unwrap();
    shared.read(PROMPT, 128);
    for text in &texts {
        let keep = method(text);
        let mut own = World::new(KvType::F16, Ledger::unlimited());
        own.keep(&keep, PROMPT).unwrap();
        own.read(PROMPT, 128);
        let mut fork = shared.fork();
        fork.keep(&keep, PROMPT).unwrap();
        // What is gathered from here on is what the method itself asks for.
        for world in [&mut own, &mut fork] {
            world.end_of_prompt().unwrap();
            world.read(50, 7);
            world.compress().unwrap();
        }
        for head in 0..KV_HEADS {
            assert_eq!(
                fork.context.kept_positions(2, head),
                own.context.kept_positions(2, head),
                "{text}"
            );
        }
        assert!(fork.read(3, 3) == own.read(3, 3), "{text}");
    }
}

#[test]
fn scores_made_once_serve_every_budget() {
    for text in texts("150") {
        let wide = method(&text);
        if wide.when.block.is_some() {
            continue;
        }
        let mut reading = World::new(KvType::F16, Ledger::unlimited());
        reading.keep(&wide, PROMPT).unwrap();
        reading.read(PROMPT, 128);
        let scored = reading.score().unwrap().expect("something has to go");
        for budget in ["150", "70", "1000"] {
            let text = text.replace("budget=150", &format!("budget={budget}"));
            let (keep, calls) = counting(&text);
            let mut alone = reading.fork();
            let mut fork = reading.fork();
            for world in [&mut alone, &mut fork] {
                world.keep(&keep, PROMPT).unwrap();
            }
            assert!(scored.is_by(&keep), "{text}");
            fork.context.choose_from(&scored);
            fork.end_of_prompt().unwrap();
            assert_eq!(calls.swap(0, Relaxed), 0, "{text}");
            alone.end_of_prompt().unwrap();
            let decides = budget != "1000";
            let layers = if decides { FULL_LAYERS.len() } else { 0 };
            assert_eq!(calls.load(Relaxed), layers, "{text}");
            assert_eq!(fork.context.is_compressed(), decides, "{text}");
            for (layer, head) in FULL_LAYERS.map(|layer| (layer, 1)) {
                let kept = |world: &World| world.context.kept_positions(layer, head);
                assert_eq!(kept(&fork), kept(&alone), "{text}");
            }
            assert!(fork.read(3, 3) == alone.read(3, 3), "{text}");
        }
        // Scores of another text, or of another method, are nobody's.
        let (keep, calls) = counting(&text);
        let mut longer = reading.fork();
        longer.keep(&keep, PROMPT).unwrap();
        longer.context.choose_from(&scored);
        longer.read(2, 2);
        longer.compress().unwrap();
        assert_eq!(calls.load(Relaxed), FULL_LAYERS.len(), "{text}");
        let other = match text.starts_with("knorm") {
            true => "random(budget=70)",
            false => "knorm(budget=70)",
        };
        assert!(!scored.is_by(&method(other)), "{text}");
    }
}

/// The method that `text` says, and how often its score was asked for a layer.
fn counting(text: &str) -> (Arc<Keep>, Arc<AtomicUsize>) {
    let mut methods = Methods::new();
    methods.set(Stage::Keep, text).unwrap();
    let keep = Arc::clone(methods.keep().unwrap());
    drop(methods);
    let mut keep = Arc::into_inner(keep).expect("nobody else has it");
    let calls = Arc::new(AtomicUsize::new(0));
    keep.score = Box::new(Counting {
        score: keep.score,
        calls: Arc::clone(&calls),
    });
    (Arc::new(keep), calls)
}

struct Counting {
    score: Box<dyn Score>,
    calls: Arc<AtomicUsize>,
}

impl Score for Counting {
    fn needs(&self) -> Needs {
        self.score.needs()
    }

    fn score(&self, layer: &LayerView<'_>, scores: &mut Scores) -> Result<(), KvError> {
        self.calls.fetch_add(1, Relaxed);
        self.score.score(layer, scores)
    }

    fn own(&self, exec: &Exec, rows: &PlainRows<'_>, out: &mut [Vec<f32>]) {
        self.score.own(exec, rows, out);
    }
}

#[test]
fn what_follows_a_settled_document_stays() {
    for text in texts("70") {
        let keep = method(&text);
        if keep.when.block.is_some() {
            continue;
        }
        let mut world = World::new(KvType::F16, Ledger::unlimited());
        world.keep(&keep, PROMPT).unwrap();
        world.read(PROMPT, 128);
        world.end_of_prompt().unwrap();
        world.context.settle();
        let before = world.context.kept_positions(2, 0).len();
        world.read(50, 7);
        // A question of 50 tokens, which a method that looks at questions is not to choose by.
        assert!(!world.context.end_prompt(), "{text}");
        let after = world.context.kept_positions(2, 0).len();
        assert_eq!(after, before + 50, "{text}");
    }
}

#[test]
fn memory_that_does_not_suffice_changes_nothing() {
    let keep = method("random(budget=64)");
    let ledger = Ledger::with_limit(0);
    let mut world = World::new(KvType::F16, Ledger::unlimited());
    let dense = world.dense_bytes(PROMPT);
    drop(ledger);
    let mut tight = World::new(KvType::F16, Ledger::with_limit(dense + 1000));
    for world in [&mut world, &mut tight] {
        world.keep(&keep, PROMPT).unwrap();
        world.read(PROMPT, 64);
    }
    assert!(matches!(
        tight.end_of_prompt().unwrap_err(),
        KvError::OverLimit { .. }
    ));
    assert!(!tight.context.is_compressed());
    assert_eq!(tight.context.kept_positions(0, 0).len(), PROMPT);
    world.end_of_prompt().unwrap();
    assert!(world.context.kv_bytes() < dense / 3);
}
