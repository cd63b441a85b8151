//! Every keep method that acts on conversations × every form of keys and values, on the stand-in of the
//! reference model: what must hold whatever leaves. A method joins by its line in the registry.

use longview_engine::{Control, Engine, EngineOptions, ModelSource, Prune, Tail};
use longview_kernels::page::KvType;
use longview_kv::{Context, Segment, Wanted};
use longview_methods::{Domain, Methods, Stage, registry};
use longview_text::Specials;

const STAND_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/stand-in");

/// Every such method, with each of the words that its parameters may have, and what it is.
fn methods() -> Vec<(String, Prune)> {
    let mut found = Vec::new();
    for method in registry::of(Stage::Keep) {
        let mut texts = vec![method.name.to_owned()];
        for parameter in method.parameters {
            if let Domain::Word(words) = parameter.domain {
                let with = |word: &&str| format!("{}({}={word})", method.name, parameter.name);
                texts.extend(words.iter().map(with));
            }
        }
        for text in texts {
            let mut methods = Methods::new();
            // What must be told more is no method of conversations.
            if methods.set_in_conversation(Stage::Keep, &text).is_ok()
                && let Some(prune) = methods.prune()
            {
                found.push((text, prune));
            }
        }
    }
    found
}

fn open(kv_type: KvType) -> Engine {
    Engine::open(&EngineOptions {
        model: ModelSource::Path(STAND_IN.into()),
        kv_forms: Some(kv_type.into()),
        chunk_tokens: 128,
        threads: Some(2),
        ..EngineOptions::default()
    })
    .unwrap()
}

/// A conversation in which `results` tools have answered, each at some length.
fn transcript(results: usize) -> String {
    let mut text = "<|bos|> {\"reasoning\": [".to_owned();
    for result in 0..results {
        let lines =
            (0..14).map(|line| format!("row {line} of {result} says {}", line * 37 + result));
        let lines: Vec<String> = lines.collect();
        text += &format!(
            "{{\"tool_result\": \"{}.\", \"conclusion\": \"it was {result}\"}}, ",
            lines.join("; ")
        );
    }
    text + "{\"thought\": \"that is all there is to be known\""
}

fn ids(engine: &Engine, text: &str) -> Vec<u32> {
    engine.tokenizer().encode(text, Specials::Parse).unwrap()
}

fn read(engine: &Engine, tokens: &[u32]) -> Context {
    let mut context = engine.new_context(tokens.len() + 50).unwrap();
    let on = &mut |_| Control::Continue;
    engine.prefill(&mut context, tokens, on).unwrap();
    context
}

/// What follows the context and a few tokens more, in a fork.
fn logits(engine: &Engine, context: &Context) -> Vec<f32> {
    let mut fork = context.fork();
    let tokens = ids(engine, ", \"conclusion\": \"");
    let segment = Segment {
        context: &mut fork,
        tokens: &tokens,
        wanted: Wanted::Last,
    };
    engine.pass([segment]).unwrap().logits().to_vec()
}

#[test]
fn what_is_left_is_what_reading_it_gives_and_forks_keep_theirs() {
    let methods = methods();
    assert!(methods.len() > 1, "{methods:?}");
    for kv_type in KvType::ALL.into_iter().chain(KvType::WHOLE) {
        let engine = open(kv_type);
        let on = &mut |_| Control::Continue;
        let tokens = ids(&engine, &transcript(4));
        let whole = read(&engine, &tokens);
        let expected = logits(&engine, &whole);
        for (text, prune) in &methods {
            let case = format!("{text} {kv_type}");
            let mut context = whole.fork();
            let pruned = engine.prune(&mut context, *prune, on).unwrap();
            let left = context.tokens().to_vec();
            assert_eq!(pruned.spans.len(), 4 - prune.last, "{case}");
            assert_eq!(left.len() + pruned.tokens, tokens.len(), "{case}");
            assert!(pruned.tokens > 200, "{case}: {pruned:?}");
            let shown = engine.tokenizer().decode(&left).unwrap();
            for result in 0..4 {
                let is_there = shown.contains(&format!("row 3 of {result} "));
                assert_eq!(is_there, result >= 4 - prune.last, "{case}: {shown}");
                assert!(shown.contains(&format!("it was {result}")), "{case}");
            }
            let fresh = read(&engine, &left);
            match prune.tail {
                Tail::Anew => {
                    assert!(context.is_exact(), "{case}");
                    assert_eq!(context.kv_bytes(), fresh.kv_bytes(), "{case}");
                    let same = logits(&engine, &context) == logits(&engine, &fresh);
                    assert!(same, "{case}: bits differ");
                }
                Tail::Moved => {
                    // Forms that hold the latest tokens apart cannot go back, and read all of it again.
                    assert_eq!(context.is_exact(), kv_type.is_whole(), "{case}");
                    assert!(context.kv_bytes() < whole.kv_bytes(), "{case}");
                    let numbers = logits(&engine, &context);
                    assert!(numbers.iter().all(|x| x.is_finite()), "{case}");
                }
            }
            // A second time nothing more is finished.
            let again = engine.prune(&mut context, *prune, on).unwrap();
            assert_eq!((again.tokens, context.len()), (0, left.len()), "{case}");
            assert!(
                logits(&engine, &whole) == expected,
                "{case}: the origin changed"
            );
        }
    }
}

#[test]
fn a_conversation_without_finished_work_changes_no_bit() {
    for kv_type in [KvType::F16, KvType::WHOLE[0]] {
        let engine = open(kv_type);
        let tokens = ids(
            &engine,
            "<|bos|> Nobody has asked a tool for anything so far.",
        );
        let mut context = read(&engine, &tokens);
        let expected = logits(&engine, &context);
        for (text, prune) in methods() {
            let on = &mut |_| Control::Continue;
            let pruned = engine.prune(&mut context, prune, on).unwrap();
            assert_eq!((pruned.tokens, pruned.bytes_freed), (0, 0), "{text}");
            assert!(context.is_exact(), "{text}");
            assert!(logits(&engine, &context) == expected, "{text} {kv_type}");
        }
    }
}
