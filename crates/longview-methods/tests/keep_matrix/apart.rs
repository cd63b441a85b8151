//! Forms that hold the first tokens apart from the others, as they were written: these stay where they are, and
//! count as kept.

use super::*;
use longview_kv::KvForms;
use longview_kv::keep::Positions;

/// Those that are exempt, in whole blocks.
const SINKS: usize = 64;

/// The same for every layer, and with a layer in a form without any.
const FORMS: [&str; 3] = [
    "q8, sinks=64, recent=10",
    "kivi(residual=64), sinks=60",
    "q8, sinks=64, layers 0-0=f16",
];

fn forms_of(text: &str) -> KvForms {
    let mut methods = Methods::new();
    methods.set(Stage::Store, text).unwrap();
    methods.kv_forms().unwrap()
}

/// Every way to keep less that does not move what stays.
fn texts_in_place(budget: usize) -> impl Iterator<Item = String> {
    let all = super::texts(&budget.to_string()).into_iter();
    all.filter(|text| method(text).positions == Positions::Text)
}

fn world(form: &str, ledger: Ledger) -> World {
    World::with_forms(forms_of(form), ledger)
}

#[test]
fn the_first_tokens_stay_and_count_as_kept() {
    let budget = 210;
    for form in FORMS {
        for text in texts_in_place(budget) {
            let keep = method(&text);
            let ledger = Ledger::unlimited();
            let mut world = world(form, ledger.clone());
            let stated = world.stated(&keep, PROMPT, AFTER);
            world.keep(&keep, PROMPT).unwrap();
            world.read(PROMPT, 64);
            world.end_of_prompt().unwrap();
            check_bytes(&world, &ledger, &stated, budget, &format!("{text} {form}"));
            let first: Vec<u32> = (0..SINKS as u32).collect();
            for head in 0..KV_HEADS {
                let kept = world.context.kept_positions(2, head);
                assert_eq!(kept[..SINKS], first, "{text} {form}");
            }
            // What others were merged into is no longer what was computed.
            if keep.merge.is_none() {
                let out = world.read(3, 3);
                world.check_attention(&out, 3, &text);
            }
            for _ in 0..AFTER {
                let out = world.read(1, 1);
                if keep.merge.is_none() {
                    world.check_attention(&out, 1, &text);
                }
                world.end_of_step().unwrap();
            }
            let most = stated.peak + stated.scratch;
            assert!(ledger.usage().peak <= most, "{text} {form}, after");
            drop(world);
            assert_eq!(ledger.usage().total(), 0, "{text} {form}");
        }
    }
}

#[test]
fn what_is_left_with_them_forks_and_goes_on_elsewhere() {
    for form in FORMS {
        for text in texts_in_place(210) {
            let keep = method(&text);
            let mut world = world(form, Ledger::unlimited());
            world.keep(&keep, PROMPT).unwrap();
            world.read(PROMPT, 128);
            world.end_of_prompt().unwrap();
            let bytes = world.context.save_kept().unwrap();
            let tokens = world.context.tokens().to_vec();
            let mut other = super::apart::world(form, Ledger::unlimited());
            other.keep(&keep, PROMPT).unwrap();
            other.context.restore_kept(&tokens, &bytes).unwrap();
            assert!(other.context.save_kept().unwrap() == bytes, "{text} {form}");
            assert_eq!(other.context.kv_bytes(), world.context.kv_bytes(), "{text}");
            let mut fork = world.fork();
            // Read on and compacted again, twice.
            let read = |world: &mut World| {
                let mut out = Vec::new();
                for _ in 0..2 {
                    out.extend(world.read(70, 35));
                    world.compress().unwrap();
                }
                out.extend(world.read(9, 3));
                out
            };
            let expected = read(&mut fork);
            for world in [&mut other, &mut world] {
                assert!(read(world) == expected, "{text} {form}");
                for layer in FULL_LAYERS {
                    let kept = |world: &World| world.context.kept_positions(layer, 1);
                    assert_eq!(kept(world), kept(&fork), "{text} {form}");
                }
            }
        }
    }
}

#[test]
fn a_budget_for_everything_changes_no_bit_of_them() {
    for form in FORMS {
        let mut dense = world(form, Ledger::unlimited());
        let mut expected = dense.read(PROMPT, 97);
        expected.extend((0..AFTER).flat_map(|_| dense.read(1, 1)));
        for text in texts_in_place(1000) {
            let mut world = world(form, Ledger::unlimited());
            world.keep(&method(&text), PROMPT).unwrap();
            let mut got = world.read(PROMPT, 97);
            world.end_of_prompt().unwrap();
            for _ in 0..AFTER {
                got.extend(world.read(1, 1));
                world.end_of_step().unwrap();
            }
            assert!(got == expected, "{text} {form}");
        }
    }
}
