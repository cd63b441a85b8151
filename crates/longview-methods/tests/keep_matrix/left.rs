//! What is left of a context, as bytes: gone on with elsewhere, and refused where it is not what it should be.

use super::*;

#[test]
fn what_is_left_goes_on_elsewhere_to_the_bit() {
    let all = |kv_type| texts("70").into_iter().map(move |text| (text, kv_type));
    let both = || all(KvType::F16).chain(all(KvType::WHOLE[0]));
    // Documents, of which what stays is settled, and conversations, where every turn decides anew.
    let cases = both().map(|(text, kv_type)| (text, kv_type, true));
    let cases = cases.chain(both().map(|(text, kv_type)| (text, kv_type, false)));
    for (text, kv_type, settled) in cases {
        let keep = method(&text);
        let mut world = World::new(kv_type, Ledger::unlimited());
        world.keep(&keep, PROMPT).unwrap();
        world.read(PROMPT, 128);
        world.end_of_prompt().unwrap();
        if settled {
            world.context.settle();
        }
        let bytes = world.context.save_kept().unwrap();
        let tokens = world.context.tokens().to_vec();
        let ledger = Ledger::unlimited();
        let mut other = World::new(kv_type, ledger.clone());
        other.keep(&keep, PROMPT).unwrap();
        other.context.restore_kept(&tokens, &bytes).unwrap();
        assert_eq!(ledger.usage().kv, other.context.kv_bytes(), "{text}");
        assert_eq!(other.context.kv_bytes(), world.context.kv_bytes(), "{text}");
        assert!(
            other.context.save_kept().unwrap() == bytes,
            "{text} {kv_type}"
        );
        for world in [&mut world, &mut other] {
            world.read(20, 3);
            world.end_of_step().unwrap();
            if !settled {
                world.end_of_prompt().unwrap();
            }
        }
        for layer in FULL_LAYERS {
            let kept = |world: &World| world.context.kept_positions(layer, 1);
            assert_eq!(kept(&other), kept(&world), "{text}");
        }
        assert!(other.read(9, 9) == world.read(9, 9), "{text} {kv_type}");
    }
}

#[test]
fn what_is_left_of_another_context_is_refused() {
    let keep = method("knorm(budget=70)");
    let mut world = World::new(KvType::F16, Ledger::unlimited());
    world.keep(&keep, PROMPT).unwrap();
    world.read(PROMPT, 128);
    let whole = world.context.save_kept().unwrap_err().to_string();
    assert!(whole.contains("dropped nothing"), "{whole}");
    world.end_of_prompt().unwrap();
    let bytes = world.context.save_kept().unwrap();
    let tokens = world.context.tokens().to_vec();
    let refused = |text: &str, kv_type: KvType, tokens: &[u32], bytes: &[u8]| {
        let ledger = Ledger::unlimited();
        let mut other = World::new(kv_type, ledger.clone());
        other.keep(&method(text), PROMPT).unwrap();
        let error = other.context.restore_kept(tokens, bytes).unwrap_err();
        assert!(
            other.context.is_empty() && ledger.usage().kv == 0,
            "{error}"
        );
        error.to_string()
    };
    let same = "knorm(budget=70)";
    assert!(refused("knorm(budget=80)", KvType::F16, &tokens, &bytes).contains("budget=70"));
    assert!(refused(same, KvType::Q8, &tokens, &bytes).contains("damaged"));
    assert!(refused(same, KvType::F16, &tokens[1..], &bytes).contains("another text"));
    // Every cut, and a flipped bit in every place of what says how much follows.
    for end in (0..bytes.len()).step_by(997).chain([bytes.len() - 1]) {
        refused(same, KvType::F16, &tokens, &bytes[..end]);
    }
    refused(same, KvType::F16, &tokens, &[&bytes[..], &[0]].concat());
    let mut methods = Methods::new();
    methods
        .set(Stage::Read, "quest(budget=192, dense=0)")
        .unwrap();
    let read = Arc::clone(methods.read().unwrap());
    for text in [
        same,
        "h2o(budget=70)",
        "snapkv(budget=70)",
        "kvzip(budget=70)",
    ] {
        let keep = method(text);
        let mut world = World::new(KvType::F16, Ledger::unlimited());
        world.keep(&keep, PROMPT).unwrap();
        world.read(PROMPT, 128);
        world.end_of_prompt().unwrap();
        let bytes = world.context.save_kept().unwrap();
        let head = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        for at in 0..head {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1;
            let mut other = World::new(KvType::F16, Ledger::unlimited());
            other.keep(&keep, PROMPT).unwrap();
            // A number may have become another that is as good; nothing panics, and what is taken for good can be
            // chosen from and read on.
            if other.context.restore_kept(&tokens, &wrong).is_ok() {
                other.context.read_by(&read).unwrap();
                other.context.answer_from(tokens.len());
                other.read(1, 1);
            }
        }
    }
    let mut plain = World::new(KvType::F16, Ledger::unlimited());
    let error = plain
        .context
        .restore_kept(&tokens, &bytes)
        .unwrap_err()
        .to_string();
    assert!(error.contains("its own keep method"), "{error}");
}
