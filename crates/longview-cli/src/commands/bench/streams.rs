//! Several texts written side by side, as a server writes them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use longview::schedule::{
    AnswerOptions, Goal, Listener, Observe, Priority, Request, ScheduleOptions, Scheduler, Start,
    Update,
};
use longview::{Context, ContextMethods, EndOfText};

use super::{Decoded, Pages};
use crate::failure::Failure;
use crate::interrupt;
use crate::session::Session;

/// The time in which `streams` texts that share `base` and go on with tokens of their own grow by
/// `count` tokens each, and how many that were in all.
pub(super) fn decode(
    session: &Session,
    base: &Context,
    streams: usize,
    count: usize,
) -> Result<Decoded, Failure> {
    let engine = &session.engine;
    let options = ScheduleOptions {
        most_running: streams,
        ..ScheduleOptions::default()
    };
    let mut scheduler = Scheduler::new(Arc::clone(engine), options);
    let tenant = Arc::new(engine.tenant(""));
    let errors = Errors::default();
    for first in super::tokens(engine.tokenizer(), streams) {
        let mut prompt = base.tokens().to_vec();
        prompt.push(first);
        // The first token comes with the prompt's pass and is not part of the time.
        let mut answer = AnswerOptions::greedy(count + 1);
        answer.generate.end_of_text = EndOfText::Ignored;
        scheduler.submit(Request {
            tenant: Arc::clone(&tenant),
            planned_tokens: prompt.len() + count,
            prompt,
            start: Start::Beginning(base.fork()),
            goal: Goal::Write(vec![answer]),
            methods: ContextMethods::default(),
            moved: None,
            prompt_logprobs: None,
            observe: Observe::Nothing,
            priority: Priority::Normal,
            listener: Box::new(errors.clone()),
        });
    }
    scheduler.step();
    let before = scheduler.counts();
    if before.running < streams {
        errors.check()?;
        return Err(Failure::wrong(format!(
            "--streams {streams}: only {} of them have room at once; allow more memory (--memory) or fewer \
             streams",
            before.running
        )));
    }
    let start = Instant::now();
    for _ in 0..count {
        scheduler.step();
        interrupt::check()?;
    }
    let time = start.elapsed();
    errors.check()?;
    let written = scheduler.counts().generated_tokens - before.generated_tokens;
    Ok(Decoded {
        time,
        count: written as usize,
        read: Pages::default(),
    })
}

/// The first error that a stream ended with.
#[derive(Clone, Default)]
struct Errors(Arc<Mutex<Option<longview::EngineError>>>);

impl Errors {
    fn check(&self) -> Result<(), Failure> {
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        first.take().map_or(Ok(()), |error| Err(error.into()))
    }
}

impl Listener for Errors {
    fn is_gone(&self) -> bool {
        false
    }

    fn hear(&mut self, update: Update) {
        if let Update::Ended(ended) = update
            && let Some(error) = ended.error
        {
            let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(error);
        }
    }
}
