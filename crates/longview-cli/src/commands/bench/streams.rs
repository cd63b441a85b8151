//! Several texts written side by side, as a server writes them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use longview::schedule::{
    AnswerOptions, Goal, Listener, Observe, Priority, Request, ScheduleOptions, Scheduler, Start,
    Update,
};
use longview::{Context, EndOfText, EngineError};

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
    let heard = Heard::default();
    let methods = session.methods.acting();
    for first in super::tokens(engine.tokenizer(), streams) {
        let mut prompt = base.tokens().to_vec();
        prompt.push(first);
        // The first token comes with the prompt's pass and is not part of the time.
        let mut answer = AnswerOptions::greedy(count + 1);
        answer.generate.end_of_text = EndOfText::Ignored;
        let mut beginning = base.fork();
        // What is generated attends to everything, whatever the prompts did.
        beginning.attend_until(beginning.len());
        scheduler.submit(Request {
            tenant: Arc::clone(&tenant),
            planned_tokens: prompt.len() + count,
            prompt,
            start: match methods.is_nothing() {
                true => Start::Beginning(beginning),
                false => Start::Made(beginning),
            },
            goal: Goal::Write(vec![answer]),
            methods: methods.clone(),
            moved: None,
            prompt_logprobs: None,
            observe: Observe::Nothing,
            priority: Priority::Normal,
            listener: Box::new(heard.clone()),
        });
    }
    scheduler.step();
    let before = scheduler.counts();
    if before.running < streams {
        heard.check()?;
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
    heard.check()?;
    let written = scheduler.counts().generated_tokens - before.generated_tokens;
    Ok(Decoded {
        time,
        count: written as usize,
        read: heard.pages(),
    })
}

/// What the streams ended with.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Ends>>);

#[derive(Default)]
struct Ends {
    /// The first error.
    error: Option<EngineError>,
    /// What those that a keep or a read method was in charge of have read, of all there was.
    read: Pages,
}

impl Heard {
    fn check(&self) -> Result<(), Failure> {
        let error = self.ends().error.take();
        error.map_or(Ok(()), |error| Err(error.into()))
    }

    fn pages(&self) -> Pages {
        self.ends().read
    }

    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener for Heard {
    fn is_gone(&self) -> bool {
        false
    }

    fn hear(&mut self, update: Update) {
        let Update::Ended(ended) = update else {
            return;
        };
        let read = Pages::of(ended.keep.as_ref(), ended.read.as_ref());
        let mut ends = self.ends();
        ends.read.read += read.read;
        ends.read.present += read.present;
        if let Some(error) = ended.error {
            ends.error.get_or_insert(error);
        }
    }
}
