use longview_kv::read::{Part, Read, ReadPlan, RowQuery, Select};

use super::*;
use crate::acting::ContextMethods;
use crate::engine::{EngineOptions, ModelSource};
use crate::prefill::Control;
use crate::store::{StoreOptions, StorePlace};

struct Deaf;

impl Listener for Deaf {
    fn is_gone(&self) -> bool {
        false
    }

    fn hear(&mut self, _update: Update) {}
}

struct Everything;

impl Select for Everything {
    fn bounds(&self) -> Option<Part> {
        None
    }

    fn reads_all(&self, _layer: usize, _blocks: usize) -> bool {
        false
    }

    fn select(&self, row: &mut RowQuery<'_>, plan: &mut ReadPlan) {
        plan.add(0..row.own() + 1);
    }
}

#[test]
fn what_a_read_method_has_written_is_not_taken_over_from_others() {
    let stand_in = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/stand-in");
    let options = EngineOptions {
        model: ModelSource::Path(stand_in.into()),
        chunk_tokens: 128,
        threads: Some(2),
        store: Some(StoreOptions::new(StorePlace::Temporary, 1 << 30)),
        ..EngineOptions::default()
    };
    let engine = Engine::open(&options).unwrap();
    let tenant = Arc::new(engine.tenant(""));
    let all: Vec<u32> = (0..900).map(|at| 300 + at * at % 3000).collect();
    // Another request has read the prompt and, as part of its own, the answer: all of it whole.
    let mut other = engine.new_context(1000).unwrap();
    engine
        .prefill(&mut other, &all, &mut |_| Control::Continue)
        .unwrap();
    let read = Arc::new(Read {
        text: "everything".to_owned(),
        select: Box::new(Everything),
    });
    for (read, again) in [(None, 832), (Some(read), 640)] {
        let request = Request {
            tenant: Arc::clone(&tenant),
            prompt: all[..650].to_vec(),
            start: Start::Nothing,
            planned_tokens: 900,
            goal: Goal::Write(vec![AnswerOptions::greedy(200)]),
            methods: ContextMethods {
                read,
                ..ContextMethods::default()
            },
            moved: None,
            prompt_logprobs: None,
            observe: Observe::Nothing,
            priority: Priority::Normal,
            listener: Box::new(Deaf),
        };
        let (mut job, mut sequence) = Job::new(0, request);
        sequence.open(&engine, &mut job).unwrap();
        assert_eq!(sequence.held(), 640);
        // It had to give way when it had written 200 tokens.
        sequence.close(Start::Nothing);
        sequence.tokens = all[..850].to_vec();
        sequence.open(&engine, &mut job).unwrap();
        assert_eq!(sequence.held(), again);
    }
}
