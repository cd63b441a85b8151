//! The engine on the reference model: facts found, streams whole, prefill kept and resumed.

use longview_engine::sampling::{Candidates, Chain, Finish, Sampler};
use longview_engine::{
    Control, EndOfText, Engine, EngineError, EngineOptions, Event, FinishReason, GenerateOptions,
    Prune, Tail,
};
use longview_kv::{Context, Segment, Wanted};
use longview_text::{ShowSpecials, Specials};

/// A document with a fact in it.
fn document() -> String {
    let filler = " The wind had risen in the night, and the sea was grey and full of foam.";
    let fact = " The special magic number for amber falcon is 48213.";
    format!("{}{fact}{}", filler.repeat(12), filler.repeat(20))
}

fn prompt(engine: &Engine, document: &str) -> Vec<u32> {
    let encode = |text: &str| engine.tokenizer().encode(text, Specials::Parse).unwrap();
    let question = "<|user|> What is the special magic number for amber falcon?<|assistant|>";
    [encode("<|bos|>"), encode(document), encode(question)].concat()
}

fn quiet(_: Event<'_>) -> Control {
    Control::Continue
}

fn open() -> Engine {
    Engine::open(&EngineOptions {
        chunk_tokens: 128,
        ..EngineOptions::default()
    })
    .unwrap()
}

#[test]
fn a_planted_fact_is_answered_and_streamed() {
    let engine = open();
    let prompt = prompt(&engine, &document());
    let mut context = engine.new_context(prompt.len() + 40).unwrap();
    let mut streamed = String::new();
    let answer = engine
        .generate(
            &mut context,
            &prompt,
            &mut GenerateOptions::greedy(40),
            &mut |event| {
                if let Event::Text(text) = event {
                    streamed.push_str(text);
                }
                Control::Continue
            },
        )
        .unwrap();
    assert_eq!(
        answer.text,
        " The special magic number for amber falcon is 48213."
    );
    assert_eq!(streamed, answer.text);
    assert_eq!(answer.finish, FinishReason::EndOfText);
    assert_eq!(context.len(), prompt.len() + answer.ids.len() - 1);
    assert!(answer.logprobs.iter().all(|p| p.is_finite() && *p <= 0.0));
}

#[test]
fn a_stopped_prefill_keeps_its_chunks_and_goes_on_to_the_same_answer() {
    let engine = open();
    let prompt = prompt(&engine, &document());
    let answer = |context: &mut _| {
        let reused = engine.align(context, &prompt).unwrap();
        let mut options = GenerateOptions::greedy(30);
        (
            reused,
            engine
                .generate(context, &prompt[reused..], &mut options, &mut quiet)
                .unwrap(),
        )
    };
    let mut whole = engine.new_context(prompt.len() + 30).unwrap();
    let (reused, expected) = answer(&mut whole);
    assert_eq!(reused, 0);

    let mut context = engine.new_context(prompt.len() + 30).unwrap();
    let mut chunks = 0;
    let control = engine
        .prefill(&mut context, &prompt, &mut |progress| {
            chunks += 1;
            assert_eq!((progress.total, progress.reused), (prompt.len(), 0));
            if chunks == 3 {
                Control::Stop
            } else {
                Control::Continue
            }
        })
        .unwrap();
    assert_eq!((control, context.len()), (Control::Stop, 3 * 128));
    let rest = &prompt[3 * 128..][..10];
    engine
        .prefill(&mut context.fork(), rest, &mut |progress| {
            assert_eq!((progress.done, progress.reused), (10, 3 * 128));
            Control::Continue
        })
        .unwrap();
    let mut fork = context.fork();
    let (reused, resumed) = answer(&mut context);
    assert_eq!(reused, 3 * 128);
    assert_eq!(
        (&resumed.ids, &resumed.logprobs),
        (&expected.ids, &expected.logprobs)
    );

    // A fork goes its own way, and a longer context is cut back to what it shares.
    let (_, forked) = answer(&mut fork);
    assert_eq!(forked.logprobs, expected.logprobs);
    let (reused, again) = answer(&mut fork);
    assert_eq!(reused, prompt.len() - 1);
    assert_eq!(again.logprobs, expected.logprobs);
}

#[test]
fn stop_texts_limits_and_cancelling_end_a_generation() {
    let engine = open();
    let prompt = prompt(&engine, &document());
    // Read once: each generation goes on in a fork.
    let (last, before) = prompt.split_last().unwrap();
    let mut read = engine.new_context(prompt.len() + 60).unwrap();
    engine
        .prefill(&mut read, before, &mut |_| Control::Continue)
        .unwrap();
    let run = |options: &mut GenerateOptions, on: &mut dyn FnMut(Event<'_>) -> Control| {
        engine
            .generate(&mut read.fork(), &[*last], options, on)
            .unwrap()
    };
    let mut options = GenerateOptions {
        stop: vec!["falcon".into()],
        ..GenerateOptions::greedy(40)
    };
    let stopped = run(&mut options, &mut quiet);
    assert_eq!(stopped.text, " The special magic number for amber ");
    assert_eq!(stopped.finish, FinishReason::Stop);

    let short = run(&mut GenerateOptions::greedy(3), &mut quiet);
    assert_eq!((short.ids.len(), short.finish), (3, FinishReason::Length));

    let mut options = GenerateOptions {
        end_of_text: EndOfText::Ignored,
        ..GenerateOptions::greedy(50)
    };
    options.specials = ShowSpecials::Show;
    let long = run(&mut options, &mut quiet);
    assert_eq!((long.ids.len(), long.finish), (50, FinishReason::Length));
    assert!(long.text.contains("<|eos|>"));

    let cancelled = run(&mut GenerateOptions::greedy(40), &mut |event| match event {
        Event::Text(_) => Control::Stop,
        Event::Prefill(_) => Control::Continue,
    });
    assert_eq!(cancelled.finish, FinishReason::Cancelled);
}

#[test]
fn impossible_requests_are_refused() {
    let engine = open();
    let mut context = engine.new_context(10).unwrap();
    let mut options = GenerateOptions::greedy(1);
    let empty = engine.generate(&mut context, &[], &mut options, &mut quiet);
    assert!(matches!(empty, Err(EngineError::EmptyPrompt)));
    let outside = engine.generate(&mut context, &[5000], &mut options, &mut quiet);
    assert!(outside.unwrap_err().to_string().contains("5000"));
    assert!(context.is_empty());
    let long = engine.new_context((1 << 20) + 1).err().unwrap();
    assert!(long.is_request_error() && long.to_string().contains("1048577"));
}

#[test]
fn finished_work_leaves_and_the_rest_is_what_reading_it_alone_gives() {
    let engine = open();
    let text = "<|bos|> {\"reasoning\": [{\"tool_result\": \"The code of the old harbor is 1377. The sea was grey \
                and nobody came down to it all day long, for the wind had turned in the night.\", \
                \"conclusion\": \"not it\"}, {\"tool_result\": \"The code of the iron kettle is 4711. It stood \
                in the kitchen, where it had always stood, and the cook was fond of it.\"}]}";
    let tokens = engine.tokenizer().encode(text, Specials::Parse).unwrap();
    let read = |tokens: &[u32]| {
        let mut context = engine.new_context(tokens.len() + 50).unwrap();
        let mut on = |_| Control::Continue;
        engine.prefill(&mut context, tokens, &mut on).unwrap();
        context
    };
    let logits = |context: &mut Context| {
        let question = " {\"code of the iron kettle\": ";
        let tokens = engine
            .tokenizer()
            .encode(question, Specials::AsText)
            .unwrap();
        let segment = Segment {
            context,
            tokens: &tokens,
            wanted: Wanted::Last,
        };
        engine.pass([segment]).unwrap().logits().to_vec()
    };
    for tail in [Tail::Anew, Tail::Moved] {
        let mut context = read(&tokens);
        let before = context.kv_bytes();
        let prune = Prune { last: 1, tail };
        let pruned = engine
            .prune(&mut context, prune, &mut |_| Control::Continue)
            .unwrap();
        assert_eq!(pruned.spans.len(), 1);
        assert_eq!(pruned.tokens, tokens.len() - context.len());
        assert!(pruned.tokens > 30, "{pruned:?}");
        let left = engine
            .tokenizer()
            .decode(&context.tokens().to_vec())
            .unwrap();
        assert!(
            left.contains("is 4711") && left.contains("not it"),
            "{left}"
        );
        assert!(
            left.contains("\"tool_result\": \"") && !left.contains("1377"),
            "{left}"
        );
        // Only the work of which more than `last` pieces are finished leaves: a second time there is none.
        let again = engine
            .prune(&mut context, prune, &mut |_| Control::Continue)
            .unwrap();
        assert_eq!(again.tokens, 0);
        let mut fresh = read(&context.tokens().to_vec());
        match tail {
            Tail::Anew => {
                assert_eq!(pruned.bytes_freed, before - fresh.kv_bytes());
                assert_eq!(context.kv_bytes(), fresh.kv_bytes());
                assert!(context.is_exact() && pruned.read_again > 20);
                assert!(logits(&mut context) == logits(&mut fresh), "bits differ");
            }
            Tail::Moved => {
                assert!(!context.is_exact() && pruned.read_again < 4, "{pruned:?}");
                let (moved, anew) = (logits(&mut context), logits(&mut fresh));
                assert!(moved != anew);
                let best = |logits: &[f32]| {
                    let ranked = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
                    ranked.unwrap().0
                };
                assert_eq!(best(&moved), best(&anew));
            }
        }
    }
}

/// Writes what it was given, whatever the model thinks, and then lets the model choose.
struct Script {
    tokens: Vec<u32>,
    begun: usize,
}

impl Sampler for Script {
    fn apply(&mut self, candidates: &mut Candidates, history: &[u32]) {
        if let Some(&wanted) = self.tokens.get(history.len() - self.begun) {
            candidates.retain(|candidate| candidate.id == wanted);
        }
    }
}

#[test]
fn work_that_an_answer_finishes_leaves_while_it_is_written() {
    let engine = open();
    let encode = |text: &str| engine.tokenizer().encode(text, Specials::Parse).unwrap();
    // What stands in the prompt is not the answer's to let go.
    let prompt = encode("<|bos|><|user|> \"subtasks\": [the user wrote this]<|assistant|>");
    let task = |what: &str| {
        format!(
            "{{\"thought\": \"{what}\", \"subtasks\": [{{\"thought\": \"the sea was grey and full of foam, \
             and {what} stood where it had always stood\"}}], \"conclusion\": \"{what} is done\"}}, "
        )
    };
    let things = ["the kettle", "the harbor", "the lantern"];
    let script = format!("{{\"reasoning\": [{}", things.map(task).concat());
    let script = encode(&script);
    let more = 6;
    for tail in [Tail::Anew, Tail::Moved] {
        let options = |max_tokens| GenerateOptions {
            chain: Chain::new(
                vec![Box::new(Script {
                    tokens: script.clone(),
                    begun: prompt.len(),
                })],
                Finish::Greedy,
            ),
            end_of_text: EndOfText::Ignored,
            ..GenerateOptions::greedy(max_tokens)
        };
        let mut whole = engine.new_context(1000).unwrap();
        let written = engine
            .generate(&mut whole, &prompt, &mut options(script.len()), &mut quiet)
            .unwrap();
        assert!(written.pruned.is_empty());

        let mut context = engine.new_context(1000).unwrap();
        let prune = Prune { last: 1, tail };
        let mut all = options(script.len() + more);
        let pruned = engine
            .generate_pruning(&mut context, &prompt, &mut all, prune, &mut quiet)
            .unwrap();
        // The text that is handed back is whole, and two of three lists have left on the way.
        assert!(pruned.text.starts_with(&written.text), "{}", pruned.text);
        assert_eq!(pruned.ids[..script.len()], script);
        assert_eq!(pruned.pruned.len(), 2, "{:?}", pruned.pruned);
        assert!(pruned.pruned.iter().all(|one| one.spans.len() == 1));
        let gone: usize = pruned.pruned.iter().map(|one| one.tokens).sum();
        assert!(gone > 30, "{:?}", pruned.pruned);
        assert_eq!(context.len(), prompt.len() + script.len() + more - 1 - gone);
        let held = context.tokens().to_vec();
        let left = engine.tokenizer().decode(&held).unwrap();
        for (thing, stays) in things.into_iter().zip([false, false, true]) {
            assert_eq!(left.contains(&format!("{thing} stood")), stays, "{left}");
            assert!(left.contains(&format!("{thing} is done")), "{left}");
        }
        assert!(left.contains("the user wrote this"), "{left}");

        // What is chosen after the last gap is what a fresh reading of the rest gives.
        let mut fresh = engine.new_context(1000).unwrap();
        let (read, last) = held.split_at(held.len() + 1 - more);
        let (&next, before) = read.split_last().unwrap();
        let go_on = &mut |_| Control::Continue;
        engine.prefill(&mut fresh, before, go_on).unwrap();
        let mut greedy = GenerateOptions {
            end_of_text: EndOfText::Ignored,
            ..GenerateOptions::greedy(more)
        };
        let anew = engine
            .generate(&mut fresh, &[next], &mut greedy, &mut quiet)
            .unwrap();
        assert_eq!(context.is_exact(), tail == Tail::Anew);
        if tail == Tail::Anew {
            assert_eq!(anew.ids[..more - 1], *last);
            assert_eq!(anew.ids, pruned.ids[script.len()..]);
            assert_eq!(anew.logprobs, pruned.logprobs[script.len()..]);
            assert_eq!(context.kv_bytes(), fresh.kv_bytes());
        }
    }
}
