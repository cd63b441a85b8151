//! Read methods that choose among what a keep method has left.

use super::*;
use longview_kv::read::{Part, Read, ReadPlan, RowQuery, Select};

/// Pairs a head that stay: several pages.
const BUDGET: usize = 300;

fn read(text: &str) -> Arc<Read> {
    let mut methods = Methods::new();
    methods.set(Stage::Read, text).unwrap();
    Arc::clone(methods.read().unwrap())
}

fn of(select: impl Select + 'static) -> Arc<Read> {
    Arc::new(Read {
        text: "test".to_owned(),
        select: Box::new(select),
    })
}

/// Plans everything, page by page; by bounds or without.
struct Whole(Option<Part>);

impl Select for Whole {
    fn bounds(&self) -> Option<Part> {
        self.0
    }

    fn reads_all(&self, _layer: usize, _blocks: usize) -> bool {
        false
    }

    fn select(&self, row: &mut RowQuery<'_>, plan: &mut ReadPlan) {
        let latest = row.latest();
        match self.0 {
            None => plan.add(0..latest),
            Some(_) => {
                for &block in row.best(0..latest, usize::MAX) {
                    plan.add(block as usize..block as usize + 1);
                }
            }
        }
        plan.add(latest..row.own() + 1);
    }
}

/// Every other page, and the latest ones.
struct Alternate;

impl Select for Alternate {
    fn reads_all(&self, _layer: usize, _blocks: usize) -> bool {
        false
    }

    fn select(&self, row: &mut RowQuery<'_>, plan: &mut ReadPlan) {
        let latest = row.latest();
        (1..latest)
            .step_by(2)
            .for_each(|page| plan.add(page..page + 1));
        plan.add(latest..row.own() + 1);
    }
}

/// A world whose prompt was read under `keep` and whose answers read by `read`.
fn asked(form: KvType, keep: &Arc<Keep>, read: &Arc<Read>, ledger: Ledger) -> World {
    let mut world = World::new(form, ledger);
    world.keep(keep, PROMPT).unwrap();
    world.context.read_by(read).unwrap();
    world.context.answer_from(PROMPT);
    world.read(PROMPT, 64);
    world.end_of_prompt().unwrap();
    world
}

fn write(world: &mut World, count: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for _ in 0..count {
        out.extend(world.read(1, 1));
        world.end_of_step().unwrap();
    }
    out
}

#[test]
fn reading_all_that_is_left_changes_no_bit() {
    for form in forms() {
        let mut reads = vec![of(Whole(Some(Part::Tokens16)))];
        if form == KvType::F16 {
            reads.push(of(Whole(None)));
            reads.push(read("quest(budget=100%, dense=0)"));
        }
        for text in some_texts(&BUDGET.to_string(), form) {
            let keep = method(&text);
            let mut alone = World::new(form, Ledger::unlimited());
            alone.keep(&keep, PROMPT).unwrap();
            alone.read(PROMPT, 64);
            alone.end_of_prompt().unwrap();
            let mut expected = write(&mut alone, AFTER);
            expected.extend(alone.read(20, 20));
            for read in &reads {
                let mut world = asked(form, &keep, read, Ledger::unlimited());
                let mut got = write(&mut world, AFTER);
                got.extend(world.read(20, 20));
                assert!(got == expected, "{text} {form} {}", read.text);
                let report = world.context.read_report().unwrap();
                assert_eq!(report.pages_read, report.pages_present, "{text} {form}");
                assert!(report.pages_read > 0, "{text} {form}");
            }
        }
    }
}

#[test]
fn a_row_attends_to_the_pages_that_were_planned_and_to_no_others() {
    for form in [KvType::F32, KvType::F16, KvType::Q8] {
        for text in [
            "random(budget=300)",
            "snapkv(budget=300, window=8, alloc=adakv)",
            "knorm(budget=200)",
            "streaming-llm(budget=300)",
        ] {
            let mut world = asked(form, &method(text), &of(Alternate), Ledger::unlimited());
            let left = |layer, head| world.context.kept_positions(layer, head);
            let left: Vec<Vec<Vec<u32>>> = (0..LAYERS)
                .map(|layer| (0..KV_HEADS).map(|head| left(layer, head)).collect())
                .collect();
            // All of the prompt is in the streams, whose heads begin at multiples of 16 slots.
            let seen = |layer: usize, head: usize, position: usize| -> Vec<u32> {
                let of_layer = &left[layer];
                let before = of_layer[..head].iter();
                let start: usize = before.map(|head| head.len().next_multiple_of(16)).sum();
                let lead = start % 64;
                let pages = (lead + of_layer[head].len()).div_ceil(64);
                let of_stream = (0..).zip(&of_layer[head]);
                let of_stream = of_stream.filter(|(pair, _)| (lead + pair) / 64 % 2 == 1);
                // The blocks after them count on.
                let first = PROMPT / 64;
                let own = position / 64;
                let of_blocks = (PROMPT..=position).filter(|at| {
                    let page = pages + at / 64 - first;
                    page % 2 == 1 || at / 64 == own
                });
                let stream = of_stream.map(|(_, &at)| at);
                stream.chain(of_blocks.map(|at| at as u32)).collect()
            };
            let mut out = world.read(30, 30);
            for _ in 0..AFTER {
                out.extend(world.read(1, 1));
            }
            world.check_attention_over(&out, 30 + AFTER, text, &seen);
            let report = world.context.read_report().unwrap();
            let (read, present) = (report.pages_read, report.pages_present);
            assert!(read < present * 2 / 3, "{text} {form}: {read} of {present}");
            assert!(!world.context.is_exact());
        }
    }
}

#[test]
fn a_repetition_attends_to_everything_whatever_answers_read() {
    let keep = method("kvzip(budget=300)");
    let repeated = |read: Option<&Arc<Read>>| {
        let mut world = World::new(KvType::F16, Ledger::unlimited());
        world.keep(&keep, PROMPT).unwrap();
        if let Some(read) = read {
            world.context.read_by(read).unwrap();
        }
        world.context.answer_from(PROMPT);
        world.read(PROMPT, 64);
        let mut fork = world.fork();
        fork.context.watch_repeat(64..128, 4).unwrap();
        let out = fork.read(40, 20);
        // What is written after the prompt itself is an answer as before.
        (out, world.read(1, 1))
    };
    let read = read("quest(budget=192, dense=0)");
    let (alone, both) = (repeated(None), repeated(Some(&read)));
    assert!(both.0 == alone.0, "a repetition");
    assert!(both.1 != alone.1, "an answer");
}

#[test]
fn answers_do_not_depend_on_passes_and_forks_are_isolated() {
    for form in forms() {
        for text in some_texts(&BUDGET.to_string(), form) {
            let keep = method(&text);
            // Steps of an answer at which a method may decide follow from passes.
            if keep.when.decode.is_some() || keep.when.block.is_some() {
                continue;
            }
            let read = read("quest(budget=192, dense=1)");
            let mut whole = asked(form, &keep, &read, Ledger::unlimited());
            let expected = whole.read(AFTER, AFTER);
            let report = whole.context.read_report().unwrap();
            assert!(report.pages_read < report.pages_present, "{text} {form}");
            let mut parts = asked(form, &keep, &read, Ledger::unlimited());
            let mut got = parts.read(7, 7);
            let mut fork = parts.fork();
            fork.read(100, 50);
            fork.compress().unwrap();
            fork.read(3, 1);
            drop(fork);
            got.extend((7..AFTER).flat_map(|_| parts.read(1, 1)));
            assert!(got == expected, "{text} {form}");
            assert_eq!(parts.context.read_report(), Some(report), "{text} {form}");
        }
    }
}

#[test]
fn bytes_are_below_those_stated_and_what_is_chosen_from_follows_every_decision() {
    for form in forms() {
        let mut reads = vec![read("quest(budget=192, dense=0)")];
        if form == KvType::F16 {
            reads.push(read("quest(budget=20%, page=64, dense=0)"));
        }
        for text in some_texts(&BUDGET.to_string(), form) {
            for read in &reads {
                let keep = method(&text);
                let ledger = Ledger::unlimited();
                let mut world = World::new(form, ledger.clone());
                let stated = world.stated(&keep, PROMPT, 3 * AFTER);
                drop(world);
                world = asked(form, &keep, read, ledger.clone());
                for _ in 0..3 {
                    write(&mut world, AFTER);
                    assert_eq!(ledger.usage().kv, world.context.kv_bytes(), "{text} {form}");
                }
                // Steps after a decision make it anew.
                world.read(1, 1);
                let index = world.context.read_report().unwrap().index_bytes;
                let most = world.index_bytes_beside(read, stated.peak);
                assert!(
                    (1..=most).contains(&index),
                    "{text} {form}: {index} of {most}"
                );
                let peak = stated.peak + stated.scratch + most;
                assert!(ledger.usage().peak <= peak, "{text} {form}");
                // The same in a world that has the rest made anew, and is asked by another method first.
                let tokens = world.context.tokens().to_vec();
                if let Ok(bytes) = world.context.save_kept() {
                    let mut other = World::new(form, Ledger::unlimited());
                    other.keep(&keep, PROMPT).unwrap();
                    other.context.restore_kept(&tokens, &bytes).unwrap();
                    other.context.read_by(&of(Alternate)).unwrap();
                    other.context.read_by(read).unwrap();
                    other.context.answer_from(tokens.len());
                    world.context.answer_from(tokens.len());
                    assert!(
                        write(&mut other, 9) == write(&mut world, 9),
                        "{text} {form}"
                    );
                }
                drop(world);
                assert_eq!(ledger.usage().total(), 0, "{text} {form}");
            }
        }
    }
}

#[test]
fn first_tokens_that_are_exempt_are_always_read() {
    for form in ["q8, sinks=64, recent=10", "kivi(residual=64), sinks=60"] {
        let mut methods = Methods::new();
        methods.set(Stage::Store, form).unwrap();
        let forms = methods.kv_forms().unwrap();
        let keep = method("snapkv(budget=300, window=8, alloc=adakv)");
        let ready = |read: Option<&Arc<Read>>| {
            let mut world = World::with_forms(forms, Ledger::unlimited());
            world.keep(&keep, PROMPT).unwrap();
            if let Some(read) = read {
                world.context.read_by(read).unwrap();
            }
            world.context.answer_from(PROMPT);
            world.read(PROMPT, 64);
            world.end_of_prompt().unwrap();
            world
        };
        let mut alone = ready(None);
        let expected = write(&mut alone, AFTER);
        let mut whole = ready(Some(&of(Whole(Some(Part::Tokens64)))));
        assert!(write(&mut whole, AFTER) == expected, "{form}");
        let mut some = ready(Some(&read("quest(budget=192, dense=0)")));
        let got = write(&mut some, AFTER);
        assert!(got != expected, "{form}");
        let report = some.context.read_report().unwrap();
        assert!(
            report.pages_read < report.pages_present,
            "{form}: {report:?}"
        );
    }
}
