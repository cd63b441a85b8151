//! Many requests at once, on the stand-in of the reference model: the same texts as alone, and nobody waits long.

mod damage;
mod moved;
mod other_models;
mod pressure;
mod scores;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use half::f16;
use longview_engine::sampling::{Chain, Finish, Rng};
use longview_engine::schedule::{
    AnswerOptions, Goal, Listener, Observe, Priority, Request, SCORED_ROWS, ScheduleOptions,
    Scheduler, Scored, Start, Step, Summary, Update,
};
use longview_engine::{
    ContextMethods, Control, Engine, EngineOptions, FinishReason, GenerateOptions, ModelSource,
    StoreOptions, StorePlace, Tenant,
};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

/// Memory is measured for the whole process, so tests take turns.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|failed| failed.into_inner())
}

/// What a request's listener heard.
#[derive(Default)]
struct Heard {
    texts: Vec<String>,
    ids: Vec<Vec<u32>>,
    finished: Vec<(usize, FinishReason)>,
    reused: usize,
    read: Vec<usize>,
    scored: Vec<Scored>,
    summary: Option<Summary>,
    error: Option<String>,
    /// Tokens of the context that was handed back.
    context: Option<usize>,
    embedding: Option<Vec<f32>>,
}

#[derive(Clone, Default)]
struct Ear {
    heard: Arc<Mutex<Heard>>,
    gone: Arc<AtomicBool>,
    /// Gone after so many tokens of the prompt.
    leaves_at: Option<usize>,
}

impl Listener for Ear {
    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    fn hear(&mut self, update: Update) {
        let mut heard = self.heard.lock().unwrap();
        match update {
            Update::Started { reused_tokens } => heard.reused = reused_tokens,
            Update::Read { done, .. } => {
                heard.read.push(done);
                if self.leaves_at.is_some_and(|at| done >= at) {
                    self.gone.store(true, Ordering::Relaxed);
                }
            }
            Update::Scored(tokens) => heard.scored = tokens,
            Update::Token(token) => {
                let answers = heard.texts.len().max(token.answer + 1);
                heard.texts.resize(answers, String::new());
                heard.ids.resize(answers, Vec::new());
                heard.texts[token.answer].push_str(&token.text);
                heard.ids[token.answer].push(token.id);
            }
            Update::Finished {
                answer,
                reason,
                rest,
                ..
            } => {
                if let Some(text) = heard.texts.get_mut(answer) {
                    text.push_str(&rest);
                }
                heard.finished.push((answer, reason));
            }
            Update::Ended(ended) => {
                heard.summary = Some(ended.summary);
                heard.context = ended.context.as_ref().map(|context| context.len());
                heard.embedding = ended.embedding;
                heard.error = ended.error.map(|error| error.to_string());
            }
        }
    }
}

/// The reference model's tokenizer and keys and values, of small random matrices.
const STAND_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/stand-in");

fn engine(memory_bytes: Option<u64>) -> Arc<Engine> {
    engine_at(StorePlace::Temporary, memory_bytes)
}

fn engine_at(place: StorePlace, memory_bytes: Option<u64>) -> Arc<Engine> {
    let options = EngineOptions {
        model: ModelSource::Path(STAND_IN.into()),
        chunk_tokens: 128,
        threads: Some(2),
        memory_bytes,
        store: Some(StoreOptions::new(place, 1 << 30)),
        ..EngineOptions::default()
    };
    Arc::new(Engine::open(&options).unwrap())
}

/// Tokens of a text that does not repeat itself and is like no other of another seed.
fn text(seed: u32, count: usize) -> Vec<u32> {
    let mut x = seed;
    let mut next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        300 + (x >> 8) % 3000
    };
    (0..count).map(|_| next()).collect()
}

fn drawn(seed: u64, max_tokens: usize) -> AnswerOptions {
    let mut answer = AnswerOptions::greedy(max_tokens);
    answer.generate.chain = Chain::new(Vec::new(), Finish::Draw(Rng::new(seed)));
    answer
}

fn request(
    tenant: &Arc<Tenant>,
    prompt: &[u32],
    answers: Vec<AnswerOptions>,
    ear: &Ear,
) -> Request {
    Request {
        tenant: Arc::clone(tenant),
        prompt: prompt.to_vec(),
        start: Start::Nothing,
        planned_tokens: prompt.len() + 64,
        goal: Goal::Write(answers),
        methods: ContextMethods::default(),
        moved: None,
        prompt_logprobs: None,
        observe: Observe::Nothing,
        priority: Priority::Normal,
        listener: Box::new(ear.clone()),
    }
}

fn finish(scheduler: &mut Scheduler) {
    while scheduler.step() == Step::Worked {}
    assert!(scheduler.is_idle());
}

/// What the engine alone writes after `prompt` with this chain.
fn alone(engine: &Engine, prompt: &[u32], seed: u64, max_tokens: usize) -> Vec<u32> {
    let mut context = engine.new_context(prompt.len() + max_tokens).unwrap();
    let mut options = GenerateOptions::greedy(max_tokens);
    options.chain = Chain::new(Vec::new(), Finish::Draw(Rng::new(seed)));
    let generated = engine.generate(&mut context, prompt, &mut options, &mut |_| {
        Control::Continue
    });
    generated.unwrap().ids
}

#[test]
fn texts_are_the_same_in_any_company() {
    let _turn = turn();
    let engine = engine(None);
    let tenant = Arc::new(engine.tenant(""));
    let mut scheduler = Scheduler::new(Arc::clone(&engine), ScheduleOptions::default());
    let prompts: Vec<Vec<u32>> = (0..5).map(|at| text(at, 40 + 130 * at as usize)).collect();
    let ears: Vec<Ear> = prompts.iter().map(|_| Ear::default()).collect();
    for (at, (prompt, ear)) in prompts.iter().zip(&ears).enumerate() {
        let answers = (0..=at as u64 % 3)
            .map(|n| drawn(10 * at as u64 + n, 12))
            .collect();
        scheduler.submit(request(&tenant, prompt, answers, ear));
        // They arrive while others are at work.
        scheduler.step();
    }
    finish(&mut scheduler);
    for (at, (prompt, ear)) in prompts.iter().zip(&ears).enumerate() {
        let heard = ear.heard.lock().unwrap();
        assert_eq!(heard.error, None);
        for (n, ids) in heard.ids.iter().enumerate() {
            let wanted = alone(&engine, prompt, 10 * at as u64 + n as u64, 12);
            assert_eq!(*ids, wanted, "request {at}, answer {n}");
        }
        assert_eq!(heard.ids.len(), at % 3 + 1);
        assert_eq!(heard.finished.len(), at % 3 + 1);
    }
}

#[test]
fn a_long_prompt_leaves_one_pass_between_tokens() {
    let _turn = turn();
    let engine = engine(None);
    let tenant = Arc::new(engine.tenant(""));
    let mut scheduler = Scheduler::new(Arc::clone(&engine), ScheduleOptions::default());
    let (short, long) = (Ear::default(), Ear::default());
    let mut answer = AnswerOptions::greedy(40);
    answer.generate.end_of_text = longview_engine::EndOfText::Ignored;
    scheduler.submit(request(&tenant, &text(1, 20), vec![answer], &short));
    scheduler.step();
    scheduler.submit(request(
        &tenant,
        &text(2, 6000),
        vec![AnswerOptions::greedy(1)],
        &long,
    ));
    let written = || {
        short
            .heard
            .lock()
            .unwrap()
            .ids
            .iter()
            .map(Vec::len)
            .sum::<usize>()
    };
    for step in 1..40 {
        assert_eq!(written(), step, "every pass writes a token");
        scheduler.step();
        let read = long.heard.lock().unwrap().read.len();
        assert_eq!(read, step, "and every pass reads a slice");
    }
    assert_eq!(written(), 40);
    finish(&mut scheduler);
    let read = long.heard.lock().unwrap().read.clone();
    assert!(
        read.windows(2).all(|pair| pair[1] - pair[0] <= 128),
        "{read:?}"
    );
    assert_eq!(*read.last().unwrap(), 6000);
}

#[test]
fn whoever_leaves_leaves_finished_blocks() {
    let _turn = turn();
    let engine = engine(None);
    let tenant = Arc::new(engine.tenant(""));
    let mut scheduler = Scheduler::new(Arc::clone(&engine), ScheduleOptions::default());
    let prompt = text(3, 1000);
    let leaves = Ear {
        leaves_at: Some(400),
        ..Ear::default()
    };
    scheduler.submit(request(
        &tenant,
        &prompt,
        vec![AnswerOptions::greedy(4)],
        &leaves,
    ));
    finish(&mut scheduler);
    let done = *leaves.heard.lock().unwrap().read.last().unwrap();
    assert!((400..1000).contains(&done));
    assert!(leaves.heard.lock().unwrap().texts.is_empty());

    let stays = Ear::default();
    scheduler.submit(request(&tenant, &prompt, vec![drawn(1, 4)], &stays));
    // Another tenant finds nothing of it.
    let (other, stranger) = (Arc::new(engine.tenant("other")), Ear::default());
    scheduler.submit(request(&other, &prompt, vec![drawn(1, 4)], &stranger));
    finish(&mut scheduler);
    let (stays, stranger) = (stays.heard.lock().unwrap(), stranger.heard.lock().unwrap());
    assert_eq!(stays.reused, done / 64 * 64);
    assert_eq!(stays.ids[0], alone(&engine, &prompt, 1, 4));
    assert_eq!((stranger.reused, stranger.error.as_deref()), (0, None));
    assert_eq!(stays.ids, stranger.ids);
}

#[test]
fn a_shared_beginning_is_computed_once() {
    let _turn = turn();
    let engine = engine(Some(1 << 30));
    let tenant = Arc::new(engine.tenant(""));
    let mut scheduler = Scheduler::new(Arc::clone(&engine), ScheduleOptions::default());
    // It ends in the middle of a block.
    let shared = text(4, 670);
    let prompts: Vec<Vec<u32>> = (0..6)
        .map(|at| [shared.clone(), text(50 + at, 30)].concat())
        .collect();
    let ears: Vec<Ear> = prompts.iter().map(|_| Ear::default()).collect();
    for (prompt, ear) in prompts.iter().zip(&ears) {
        scheduler.submit(request(&tenant, prompt, vec![drawn(1, 3)], ear));
    }
    finish(&mut scheduler);
    let counts = scheduler.counts();
    assert_eq!(counts.prompt_tokens, 670 + 6 * 30);
    assert_eq!(counts.reused_tokens, 5 * 670);
    assert_eq!((counts.ended, counts.generated_tokens), (6, 18));
    let elsewhere = self::engine(None);
    for (prompt, ear) in prompts.iter().zip(&ears) {
        let wanted = alone(&elsewhere, prompt, 1, 3);
        assert_eq!(ear.heard.lock().unwrap().ids[0], wanted);
    }
    drop(scheduler);
    let store = engine.store().unwrap();
    store.make_space(engine.ledger().limit());
    assert_eq!(engine.ledger().usage().kv, 0, "no block is left behind");
}

#[test]
fn prompts_that_part_in_one_place_are_read_on_side_by_side() {
    let _turn = turn();
    let engine = engine(None);
    let tenant = Arc::new(engine.tenant(""));
    let mut scheduler = Scheduler::new(Arc::clone(&engine), ScheduleOptions::default());
    let shared = text(4, 100);
    let ears: [Ear; 4] = Default::default();
    for (at, ear) in (0..).zip(&ears) {
        let prompt = [shared.clone(), text(50 + at, 25)].concat();
        scheduler.submit(request(&tenant, &prompt, vec![drawn(1, 8)], ear));
    }
    let written = || {
        let ids = ears
            .iter()
            .map(|ear| ear.heard.lock().unwrap().ids.concat().len());
        ids.collect::<Vec<_>>()
    };
    // What they share, though the first of them has room for all of its prompt.
    scheduler.step();
    assert_eq!(ears[0].heard.lock().unwrap().read, [100]);
    assert_eq!(scheduler.counts().running, 1);
    // 4 × 25 tokens.
    scheduler.step();
    assert_eq!(written(), [1; 4]);
    scheduler.step();
    assert_eq!(written(), [2; 4]);
    finish(&mut scheduler);
    assert_eq!(scheduler.counts().prompt_tokens, 100 + 4 * 25);
}

#[test]
fn memory_that_runs_out_makes_some_wait_and_changes_no_text() {
    let _turn = turn();
    // Found out first what the engine holds without contexts.
    let fixed = {
        let engine = engine(Some(1 << 30));
        let usage = engine.ledger().usage();
        usage.program + usage.index + usage.weights + usage.scratch
    };
    let kv_bytes = 3 << 20;
    let engine = engine(Some(fixed + (12 << 20) + kv_bytes));
    let tenant = Arc::new(engine.tenant(""));
    let start = engine.ledger().usage().kv;
    let mut scheduler = Scheduler::new(Arc::clone(&engine), ScheduleOptions::default());
    let prompts: Vec<Vec<u32>> = (0..8).map(|at| text(70 + at, 1500)).collect();
    let ears: Vec<Ear> = prompts.iter().map(|_| Ear::default()).collect();
    for (prompt, ear) in prompts.iter().zip(&ears) {
        // 8 × 1,500 tokens of 2 KiB are more than there is.
        scheduler.submit(request(&tenant, prompt, vec![drawn(5, 30)], ear));
    }
    let (mut peak, mut waited) = (0, 0);
    while scheduler.step() == Step::Worked {
        peak = peak.max(engine.ledger().usage().total());
        waited = waited.max(scheduler.counts().waiting);
    }
    assert!(peak <= engine.ledger().limit(), "{peak}");
    assert!(waited > 0, "there was room for all");
    for ear in &ears {
        let heard = ear.heard.lock().unwrap();
        assert_eq!((&heard.error, heard.ids[0].len()), (&None, 30));
    }
    // Of one that was admitted at once, and of the one that waited longest.
    let roomy = self::engine(None);
    for at in [0, 7] {
        let wanted = alone(&roomy, &prompts[at], 5, 30);
        assert_eq!(ears[at].heard.lock().unwrap().ids[0], wanted);
    }
    drop(scheduler);
    let store = engine.store().unwrap();
    store.make_space(engine.ledger().limit());
    assert_eq!(engine.ledger().usage().kv, start, "no block is left behind");
}

#[test]
fn ranks_and_tenants_decide_who_is_first() {
    let _turn = turn();
    let engine = engine(None);
    let busy = Arc::new(engine.tenant("a"));
    let quiet = Arc::new(engine.tenant("b"));
    let options = ScheduleOptions {
        most_running: 1,
        ..ScheduleOptions::default()
    };
    let mut scheduler = Scheduler::new(Arc::clone(&engine), options);
    let order = Arc::new(Mutex::new(Vec::new()));
    struct Starts(&'static str, Arc<Mutex<Vec<&'static str>>>);
    impl Listener for Starts {
        fn is_gone(&self) -> bool {
            false
        }
        fn hear(&mut self, update: Update) {
            if let Update::Started { .. } = update {
                self.1.lock().unwrap().push(self.0);
            }
        }
    }
    let mut submit = |name, tenant: &Arc<Tenant>, seed, priority| {
        let prompt = text(seed, 200);
        let ear = Ear::default();
        scheduler.submit(Request {
            priority,
            listener: Box::new(Starts(name, Arc::clone(&order))),
            ..request(tenant, &prompt, vec![AnswerOptions::greedy(1)], &ear)
        });
    };
    submit("a1", &busy, 1, Priority::Normal);
    submit("a low", &busy, 2, Priority::Low);
    submit("a2", &busy, 3, Priority::Normal);
    submit("b1", &quiet, 4, Priority::Normal);
    submit("a high", &busy, 5, Priority::High);
    finish(&mut scheduler);
    // After "a high", tenant b has been served least.
    assert_eq!(
        *order.lock().unwrap(),
        ["a high", "b1", "a1", "a2", "a low"]
    );
}

#[test]
fn no_more_texts_run_than_may() {
    let _turn = turn();
    let engine = engine(None);
    let tenant = Arc::new(engine.tenant(""));
    let options = ScheduleOptions {
        most_running: 4,
        ..ScheduleOptions::default()
    };
    let mut scheduler = Scheduler::new(Arc::clone(&engine), options);
    let ears: Vec<Ear> = (0..4).map(|_| Ear::default()).collect();
    for (at, (ear, count)) in ears.iter().zip([3, 2, 3, 1]).enumerate() {
        // One text of a request is shorter than the others.
        let answers = (0..count).map(|n| drawn(n, 4 + 4 * n as usize)).collect();
        scheduler.submit(request(&tenant, &text(at as u32, 40), answers, ear));
    }
    let mut most = 0;
    while scheduler.step() == Step::Worked {
        most = most.max(scheduler.counts().running);
    }
    assert_eq!(most, 4);
    assert!(scheduler.is_idle());
    for (ear, count) in ears.iter().zip([3, 2, 3, 1]) {
        let heard = ear.heard.lock().unwrap();
        assert_eq!((heard.error.as_deref(), heard.ids.len()), (None, count));
    }
}

#[test]
fn what_others_wait_for_is_read_at_their_rank() {
    let _turn = turn();
    let engine = engine(None);
    let tenant = Arc::new(engine.tenant(""));
    let mut scheduler = Scheduler::new(Arc::clone(&engine), ScheduleOptions::default());
    let shared = text(4, 1500);
    let (low, other, waits) = (Ear::default(), Ear::default(), Ear::default());
    let mut submit = |priority, prompt: &[u32], ear: &Ear| {
        scheduler.submit(Request {
            priority,
            ..request(&tenant, prompt, vec![drawn(1, 2)], ear)
        });
        scheduler.step();
    };
    submit(Priority::Low, &shared, &low);
    submit(Priority::Normal, &text(5, 3000), &other);
    let question = [shared.clone(), text(6, 30)].concat();
    submit(Priority::Normal, &question, &waits);
    let read = || *low.heard.lock().unwrap().read.last().unwrap();
    let before = read();
    for _ in 0..5 {
        scheduler.step();
    }
    // Half of every slice of 128, and not the few tokens that a lower rank has.
    assert_eq!(read() - before, 5 * 64);
    finish(&mut scheduler);
    assert!(waits.heard.lock().unwrap().reused >= 1472);
}

#[test]
fn embeddings_of_texts_that_begin_alike_do_not_wait_for_one_another() {
    let _turn = turn();
    let engine = engine(None);
    let tenant = Arc::new(engine.tenant(""));
    let mut scheduler = Scheduler::new(Arc::clone(&engine), ScheduleOptions::default());
    let prompt = text(6, 300);
    for _ in 0..2 {
        scheduler.submit(Request {
            goal: Goal::Embed,
            ..request(&tenant, &prompt, Vec::new(), &Ear::default())
        });
    }
    scheduler.step();
    assert_eq!(scheduler.counts().running, 2);
    finish(&mut scheduler);
}

#[test]
fn a_text_of_no_tokens_is_complete_at_once() {
    let _turn = turn();
    let engine = engine(None);
    let tenant = Arc::new(engine.tenant(""));
    let mut scheduler = Scheduler::new(Arc::clone(&engine), ScheduleOptions::default());
    let (alone, beside) = (Ear::default(), Ear::default());
    scheduler.submit(request(
        &tenant,
        &text(1, 50),
        vec![AnswerOptions::greedy(0)],
        &alone,
    ));
    assert!(scheduler.is_idle());
    let answers = vec![drawn(1, 0), drawn(2, 4), drawn(3, 0), drawn(4, 3)];
    scheduler.submit(request(&tenant, &text(1, 50), answers, &beside));
    finish(&mut scheduler);
    let (alone, beside) = (alone.heard.lock().unwrap(), beside.heard.lock().unwrap());
    assert_eq!(alone.finished, [(0, FinishReason::Length)]);
    assert!(alone.summary.is_some() && alone.error.is_none());
    let mut finished = beside.finished.clone();
    finished.sort_by_key(|(answer, _)| *answer);
    assert_eq!(finished, [0, 1, 2, 3].map(|at| (at, FinishReason::Length)));
    let lengths: Vec<usize> = beside.ids.iter().map(Vec::len).collect();
    assert_eq!(lengths, [0, 4, 0, 3]);
}

#[test]
fn what_a_request_was_given_is_handed_back_when_it_never_began() {
    let _turn = turn();
    let fixed = {
        let engine = engine(Some(1 << 30));
        let usage = engine.ledger().usage();
        usage.program + usage.index + usage.weights + usage.scratch
    };
    let engine = engine(Some(fixed + (24 << 20) + (3 << 20)));
    let tenant = Arc::new(engine.tenant(""));
    let mut scheduler = Scheduler::new(Arc::clone(&engine), ScheduleOptions::default());
    let (busy, waits) = (Ear::default(), Ear::default());
    let others = text(1, 12_000);
    scheduler.submit(request(&tenant, &others, vec![drawn(1, 30)], &busy));
    scheduler.step();
    // Forty tokens that no store has.
    let mut start = engine.new_context(9000).unwrap();
    let prompt = text(2, 9000);
    let mut quiet = |_| Control::Continue;
    engine
        .prefill(&mut start, &prompt[..40], &mut quiet)
        .unwrap();
    let id = scheduler.submit(Request {
        start: Start::Beginning(start),
        goal: Goal::Read,
        ..request(&tenant, &prompt, Vec::new(), &waits)
    });
    scheduler.step();
    assert_eq!(scheduler.counts().waiting, 1, "there is no room for both");
    scheduler.cancel(id);
    assert_eq!(waits.heard.lock().unwrap().context, Some(40));
    scheduler.cancel_all();
}

#[test]
fn an_embedding_is_of_all_tokens_whatever_is_known_of_them() {
    let _turn = turn();
    let engine = engine(None);
    let tenant = Arc::new(engine.tenant(""));
    let mut scheduler = Scheduler::new(Arc::clone(&engine), ScheduleOptions::default());
    let prompt = text(6, 300);
    let mut start = engine.new_context(400).unwrap();
    let mut quiet = |_| Control::Continue;
    engine
        .prefill(&mut start, &prompt[..200], &mut quiet)
        .unwrap();
    let embeddings = [Start::Nothing, Start::Beginning(start)].map(|start| {
        let ear = Ear::default();
        scheduler.submit(Request {
            start,
            goal: Goal::Embed,
            ..request(&tenant, &prompt, Vec::new(), &ear)
        });
        finish(&mut scheduler);
        ear.heard.lock().unwrap().embedding.take().unwrap()
    });
    assert!(embeddings[0] == embeddings[1]);
}
