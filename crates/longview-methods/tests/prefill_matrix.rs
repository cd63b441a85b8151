//! Every prefill pattern × codec, on layers with full attention beside a sliding window: what must hold
//! whatever a pattern leaves out. A pattern joins by its line in the registry.

#[allow(dead_code, reason = "keep methods use the rest of it")]
#[path = "keep_matrix/world.rs"]
mod world;

use std::sync::Arc;

use longview_kv::pattern::{Prefill, QueryBlock};
use longview_kv::{BLOCK_TOKENS, KvType, Ledger};
use longview_methods::{Methods, Stage, registry};
use world::*;

/// Tokens of the prompt, and tokens of the answer.
const PROMPT: usize = 700;
const AFTER: usize = 70;

/// Every pattern: as it is, and with parameters that leave something out of such a prompt.
fn texts() -> Vec<String> {
    let patterns = registry::of(Stage::Prefill).filter(|method| !method.exact);
    let mut texts: Vec<String> = patterns.map(|method| method.name.to_owned()).collect();
    texts.push("a-shape(sinks=64, local=128)".to_owned());
    texts.push("a-shape(sinks=1, local=64)".to_owned());
    texts
}

fn pattern(text: &str) -> Arc<Prefill> {
    let mut methods = Methods::new();
    methods.set(Stage::Prefill, text).unwrap();
    Arc::clone(methods.prefill().unwrap())
}

fn world(kv_type: KvType, prefill: &Arc<Prefill>) -> World {
    let mut world = World::new(kv_type, Ledger::unlimited());
    world.context.attend_by(prefill, PROMPT).unwrap();
    world
}

/// The blocks that the queries of a block attend to.
fn blocks(prefill: &Prefill, layer: usize, block: usize) -> Vec<usize> {
    let mut seen = Vec::new();
    let query = QueryBlock { layer, block };
    prefill.pattern.blocks(&query, &mut seen);
    seen.into_iter().flatten().collect()
}

#[test]
fn rows_of_a_prompt_attend_to_their_pattern_and_later_ones_to_everything() {
    for kv_type in forms() {
        for text in texts() {
            let prefill = pattern(&text);
            let mut world = world(kv_type, &prefill);
            let seen = |layer, _, position: usize| -> Vec<u32> {
                let block = position / BLOCK_TOKENS;
                let blocks = match position < PROMPT {
                    true => blocks(&prefill, layer, block),
                    false => (0..=block).collect(),
                };
                let tokens = blocks
                    .into_iter()
                    .flat_map(|block| block * BLOCK_TOKENS..(block + 1) * BLOCK_TOKENS);
                tokens
                    .filter(|&at| at <= position)
                    .map(|at| at as u32)
                    .collect()
            };
            // Up to the prompt's end, over it, and after it.
            world.read(PROMPT - 20, 111);
            for count in [10, 20, 30] {
                let out = world.read(count, count);
                world.check_attention_over(&out, count, &text, &seen);
            }
            assert!(!world.context.is_exact(), "{text} {kv_type}");
        }
    }
}

#[test]
fn chunks_threads_and_forks_change_no_bit_and_nothing_left_out_is_the_dense_path() {
    for kv_type in forms() {
        let mut dense = World::new(kv_type, Ledger::unlimited());
        let exact = dense.read(PROMPT + AFTER, PROMPT + AFTER);
        for text in texts() {
            let prefill = pattern(&text);
            let mut whole = world(kv_type, &prefill);
            let expected = whole.read(PROMPT + AFTER, PROMPT + AFTER);
            let last = PROMPT.div_ceil(BLOCK_TOKENS) - 1;
            let all = blocks(&prefill, 0, last).len() == last + 1;
            assert_eq!(expected == exact, all, "{text} {kv_type}");

            let mut parts = world(kv_type, &prefill);
            let mut got = parts.read(PROMPT - 60, 37);
            // One thread from here on, over the prompt's end; another fork goes its own way.
            let mut fork = parts.fork();
            parts.read(200, 50);
            drop(parts);
            for _ in 0..60 + AFTER {
                got.extend(fork.read(1, 1));
            }
            assert!(got == expected, "{text} {kv_type}");
        }
    }
}

/// What is said to be read and left out is that of every token of the prompt, however it is cut, and of no later
/// one.
fn check_report(text: &str, prefill: &Arc<Prefill>) {
    let of = |layer: usize, token: usize| {
        let block = token / BLOCK_TOKENS;
        [blocks(prefill, layer, block).len(), block + 1]
    };
    let [mut read, mut present] = [0, 0];
    for layer in FULL_LAYERS {
        for [some, all] in (0..PROMPT).map(|token| of(layer, token)) {
            read += (some * KV_HEADS) as u64;
            present += (all * KV_HEADS) as u64;
        }
    }
    for chunk in [BLOCK_TOKENS, 37] {
        let mut world = world(KvType::F16, prefill);
        world.read(PROMPT, chunk);
        world.read(AFTER, 1);
        let report = world.context.prefill_report().unwrap();
        let got = (report.pages_read, report.pages_present);
        assert_eq!(got, (read, present), "{text}");
    }
}

#[test]
fn pages_that_are_left_out_are_not_read() {
    let count = |world: &mut World| {
        world.read(PROMPT, BLOCK_TOKENS);
        world.pages_read()
    };
    let dense = count(&mut World::new(KvType::F16, Ledger::unlimited()));
    // A page is read once for each tile of rows.
    let mut tiles = Vec::new();
    for text in texts() {
        let prefill = pattern(&text);
        let read = count(&mut world(KvType::F16, &prefill));
        let left_out = |layer: usize| -> usize {
            let of = |block| block + 1 - blocks(&prefill, layer, block).len();
            (0..PROMPT.div_ceil(BLOCK_TOKENS)).map(of).sum()
        };
        let pages: usize = FULL_LAYERS.map(left_out).iter().sum::<usize>() * KV_HEADS;
        check_report(&text, &prefill);
        let saved = dense - read;
        match pages as u64 {
            0 => assert_eq!(saved, 0, "{text}"),
            pages => {
                assert_eq!(saved % pages, 0, "{text}: {saved} for {pages}");
                tiles.push(saved / pages);
            }
        }
    }
    assert!(tiles.len() >= 2 && tiles[0] > 0, "{tiles:?}");
    assert!(tiles.iter().all(|&of| of == tiles[0]), "{tiles:?}");
}
