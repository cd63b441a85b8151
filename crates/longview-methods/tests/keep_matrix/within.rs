//! Streams that keep as many pairs as they have are written over where they lie.

use longview_kv::{KvType, Ledger};

use super::world::{KV_HEADS, World};
use super::{PROMPT, method, texts};

/// A world that has read its prompt, and a fork of it.
fn settled(text: &str, kv_type: KvType) -> (World, World) {
    let mut world = World::new(kv_type, Ledger::unlimited());
    world.keep(&method(text), PROMPT).unwrap();
    world.read(PROMPT, 64);
    world.end_of_prompt().unwrap();
    let fork = world.fork();
    (world, fork)
}

#[test]
fn what_moves_within_a_stream_is_what_a_stream_made_anew_holds() {
    for kv_type in KvType::ALL {
        for text in texts("77") {
            // The first finds its streams shared and makes others, the second then is alone with them.
            let (mut anew, mut within) = settled(&text, kv_type);
            for count in [64, 7, 130] {
                for world in [&mut anew, &mut within] {
                    world.read(count, 64);
                    world.compress().unwrap();
                }
                for head in 0..KV_HEADS {
                    assert_eq!(
                        anew.context.kept_positions(2, head),
                        within.context.kept_positions(2, head),
                        "{text} {kv_type}"
                    );
                }
                assert!(anew.read(1, 1) == within.read(1, 1), "{text} {kv_type}");
                within = anew.fork();
            }
        }
    }
}

#[test]
fn a_stream_that_nobody_else_holds_needs_no_memory_for_a_second_one() {
    let ledger = Ledger::unlimited();
    let mut world = World::new(KvType::F16, ledger.clone());
    world.keep(&method("keydiff(budget=77)"), PROMPT).unwrap();
    world.read(PROMPT, 64);
    world.end_of_prompt().unwrap();
    let more_than_before = |world: &mut World| {
        world.read(50, 50);
        let before = ledger.watch_kv();
        world.compress().unwrap();
        ledger.usage().kv_peak - before
    };
    assert_eq!(more_than_before(&mut world), 0);
    let fork = world.fork();
    assert!(more_than_before(&mut world) > 0);
    drop(fork);
    assert_eq!(more_than_before(&mut world), 0);
}
