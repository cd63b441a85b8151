//! Every read method × codec, on layers with full attention beside a sliding window: what must hold
//! whatever a method reads. A method joins by its line in the registry.

#[allow(dead_code, reason = "keep methods use the rest of it")]
#[path = "keep_matrix/world.rs"]
mod world;

use std::sync::Arc;

use longview_kv::read::Read;
use longview_kv::{KvType, Ledger};
use longview_methods::{Methods, Stage, registry};
use world::*;

/// Tokens of the prompt, and tokens of the answer.
const PROMPT: usize = 700;
const AFTER: usize = 90;

/// Every way to read less: each method alone, and with parameters that change what is kept for it.
fn texts(budget: &str) -> Vec<String> {
    let methods = registry::of(Stage::Read).filter(|method| !method.exact);
    let mut texts: Vec<String> = methods
        .map(|method| format!("{}(budget={budget}, dense=0)", method.name))
        .collect();
    texts.push(format!("quest(budget={budget}, page=64, dense=1)"));
    texts.push(format!("quest(budget={budget}, page=32, dense=0)"));
    texts
}

fn method(text: &str) -> Arc<Read> {
    let mut methods = Methods::new();
    methods.set(Stage::Read, text).unwrap();
    Arc::clone(methods.read().unwrap())
}

fn world(kv_type: KvType, read: &Arc<Read>, ledger: Ledger) -> World {
    let mut world = World::new(kv_type, ledger);
    world.context.read_by(read).unwrap();
    world.context.answer_from(PROMPT);
    world
}

#[test]
fn a_budget_for_everything_changes_no_bit() {
    for kv_type in forms() {
        let mut dense = World::new(kv_type, Ledger::unlimited());
        let mut expected = dense.read(PROMPT, 97);
        expected.extend((0..AFTER).flat_map(|_| dense.read(1, 1)));
        for budget in ["100%", "2000"] {
            for text in texts(budget) {
                let mut world = world(kv_type, &method(&text), Ledger::unlimited());
                let mut got = world.read(PROMPT, 97);
                got.extend((0..AFTER).flat_map(|_| world.read(1, 1)));
                assert!(got == expected, "{text} {kv_type}");
                assert!(world.context.is_exact(), "{text} {kv_type}");
            }
        }
    }
}

#[test]
fn answers_read_their_budget_whatever_is_read_beside_them_and_forks_are_isolated() {
    for kv_type in forms() {
        for text in texts("256") {
            let read = method(&text);
            let mut whole = world(kv_type, &read, Ledger::unlimited());
            let expected = whole.read(PROMPT + AFTER, PROMPT + AFTER);
            let report = whole.context.read_report().unwrap();
            // Blocks of a row with its own; where only the first layer reads all, two of three.
            let seen = (PROMPT..PROMPT + AFTER).map(|at| at as u64 / 64 + 1);
            let present: u64 = seen.map(|blocks| blocks * 3 * KV_HEADS as u64).sum();
            assert_eq!(report.pages_present, present, "{text} {kv_type}");
            let layers = if text.contains("dense=1") { 2 } else { 3 };
            let planned = AFTER * layers * KV_HEADS;
            // The budget is four blocks; the form may hold one or two more of the latest apart.
            let least = planned as u64 * 4 + (present / 3) * (3 - layers as u64);
            let most = planned as u64 * 5 + (present / 3) * (3 - layers as u64);
            assert!(
                (least..=most).contains(&report.pages_read),
                "{text} {kv_type}: {report:?}"
            );
            assert!(!whole.context.is_exact());

            let mut parts = world(kv_type, &read, Ledger::unlimited());
            let mut got = parts.read(PROMPT, 128);
            let mut fork = parts.fork();
            fork.read(200, 50);
            drop(fork);
            for _ in 0..AFTER {
                got.extend(parts.read(1, 1));
            }
            assert!(got == expected, "{text} {kv_type}");
        }
    }
}

#[test]
fn bytes_are_those_that_were_stated() {
    for kv_type in forms() {
        for text in texts("10%") {
            let read = method(&text);
            let ledger = Ledger::unlimited();
            let mut world = world(kv_type, &read, ledger.clone());
            world.read(PROMPT, 64);
            let index = world.index_bytes(&read, PROMPT);
            assert_eq!(
                world.context.read_report().unwrap().index_bytes,
                index,
                "{text} {kv_type}"
            );
            assert_eq!(ledger.usage().kv, world.context.kv_bytes());
            assert!(ledger.usage().peak <= world.dense_bytes(PROMPT) + index);
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
fn recurrent_layers_stay_as_they_are() {
    recurrent_world().context.read_by(&method("quest")).unwrap();
}
