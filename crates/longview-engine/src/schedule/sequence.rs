//! A sequence of tokens on its way into a context.

use std::sync::Arc;

use longview_kv::keep::Keep;
use longview_kv::{BLOCK_TOKENS, Context, Segment, Wanted};
use longview_models::ModelError;

use super::RequestId;
use super::job::{Job, Kind};
use super::moved::Moves;
use super::request::{Observe, Start, Update};
use super::writer::{Writer, Written};
use crate::engine::Engine;
use crate::error::EngineError;

/// Tokens, the context that some of them are in, and what writes more of them.
///
/// What is not in the context is to be read. A text being written has exactly one such token, the one
/// chosen last; after its context was given up it has many, and is a prompt again until they are
/// read.
pub(super) struct Sequence {
    pub(super) job: RequestId,
    /// All tokens: the prompt, and what was written.
    pub(super) tokens: Vec<u32>,
    pub(super) writer: Option<Writer>,
    /// Whether it had to give its memory to others and waits for the second time.
    pub(super) gave_way: bool,
    planned_tokens: usize,
    /// Whether its prompt was read in the last pass.
    at_end: bool,
    /// Whether its context began with keys and values that reading its tokens does not give.
    began_moved: bool,
    /// What it takes over from elsewhere in a text, and has.
    pub(super) moves: Moves,
    /// [`Context::computed_again`] when that was asked last.
    again: usize,
    state: State,
}

enum State {
    /// It waits; the context is what it begins with.
    Closed(Start),
    Open(Context),
    Done,
}

/// A text that is to choose its next token. Choices are made side by side: each looks at all of the
/// vocabulary, so one after another they would take as long as a tenth of a pass.
pub(super) struct NextChoice<'a> {
    writer: &'a mut Writer,
    /// `[vocabulary]`
    logits: &'a [f32],
    history: &'a [u32],
}

impl NextChoice<'_> {
    pub(super) fn make(&mut self) {
        self.writer.choose(self.logits, self.history);
    }
}

/// What a step of writing leads to.
pub(super) struct More {
    /// Tokens chosen.
    pub(super) tokens: usize,
    /// Further texts to the same prompt, which begin here.
    pub(super) sequences: Vec<Sequence>,
}

impl Sequence {
    /// The prompt of request `job`, of which nothing is read that `start` does not hold.
    pub(super) fn new(
        job: RequestId,
        tokens: Vec<u32>,
        planned_tokens: usize,
        start: Start,
    ) -> Sequence {
        Sequence {
            job,
            tokens,
            writer: None,
            gave_way: false,
            planned_tokens,
            at_end: false,
            began_moved: false,
            moves: Moves::default(),
            again: 0,
            state: State::Closed(start),
        }
    }

    /// Makes the context: the one it begins with or a new one, with what the store has of the tokens.
    /// The last token is always computed where its logits are wanted.
    pub(super) fn open(&mut self, engine: &Engine, job: &mut Job) -> Result<(), EngineError> {
        let State::Closed(start) = &mut self.state else {
            return Ok(());
        };
        let planned = self.planned_tokens.max(self.tokens.len());
        let (methods, prompt) = (&job.methods, job.summary.prompt_tokens);
        let embeds = job.kind == Kind::Embeds;
        if embeds {
            // The mean is of all tokens' states, which none but a pass gives.
            *start = Start::Nothing;
            job.states.clear();
        }
        let known = job.known_tokens();
        if job.is_scoring() {
            *start = Start::Nothing;
        }
        let start = std::mem::take(start);
        if let Start::Made(mut context) = start {
            // It cannot go back to have its last token computed once more.
            if self.tokens.len() <= context.len() {
                return Err(EngineError::EmptyPrompt);
            }
            let (wanted, limit) = (self.tokens.len(), engine.model().positions_of(&context));
            if wanted > limit {
                return Err(ModelError::TooLong { wanted, limit }.into());
            }
            if let Some(read) = &methods.read {
                context.read_by(read)?;
            }
            job.observe(&mut context)?;
            context.answer_from(prompt);
            self.state = State::Open(context);
            return Ok(());
        }
        if methods.keep.is_some() || !methods.reads_alike() {
            let mut context = engine.new_context_with_of(&job.tenant, methods, prompt, planned)?;
            let reusable = match embeds {
                true => 0,
                false => methods.reusable_tokens(prompt).min(prompt - 1).min(known),
            };
            context.attach(&self.tokens[..reusable])?;
            job.observe(&mut context)?;
            context.answer_from(prompt);
            self.state = State::Open(context);
            return Ok(());
        }
        let mut context = match start {
            Start::Beginning(start) if engine.model().positions_of(&start) >= planned => start,
            // One with the rotary frequencies of shorter contexts cannot grow so long; what was read under
            // those of longer ones is in the store, if it is anywhere.
            Start::Beginning(_) | Start::Nothing | Start::Made(_) => {
                engine.new_context_of(&job.tenant, planned)?
            }
        };
        if embeds {
            self.state = State::Open(context);
            return Ok(());
        }
        // What an answer has computed by a read method is nowhere: it is computed again, even where
        // others have read the same text whole.
        let known = match &methods.read {
            Some(_) => known.min(prompt),
            None => known,
        };
        let known = &self.tokens[..self.tokens.len().min(known.saturating_add(1))];
        if let Err(error) = engine.align(&mut context, known) {
            if context.is_empty() {
                return Err(error);
            }
            // Windows have passed what going back would need: begin anew.
            context = engine.new_context_of(&job.tenant, planned)?;
            engine.align(&mut context, known)?;
        }
        self.began_moved = !context.is_exact() && context.approximate_from().is_none();
        engine.put_in_charge(&mut context, methods, prompt)?;
        job.observe(&mut context)?;
        context.answer_from(prompt);
        self.state = State::Open(context);
        Ok(())
    }

    /// A fork of what it begins with, if it waits.
    pub(super) fn start(&self) -> Start {
        match &self.state {
            State::Closed(start) => start.fork(),
            State::Open(_) | State::Done => Start::Nothing,
        }
    }

    /// Gives the context up; what is sealed of it is found again. It will begin with `start`.
    pub(super) fn close(&mut self, start: Start) {
        self.moves = Moves::default();
        self.state = State::Closed(start);
    }

    /// Has it take `moves` over on the way, and begin with `begun`, where that holds more of its tokens.
    pub(super) fn take_over(
        &mut self,
        begun: Option<Context>,
        moves: Moves,
        job: &Job,
    ) -> Result<(), EngineError> {
        if let Some(mut context) = begun {
            job.observe(&mut context)?;
            context.answer_from(job.summary.prompt_tokens);
            self.state = State::Open(context);
        }
        self.moves = moves;
        Ok(())
    }

    /// Tokens that were computed again since the last call, because they could not be read.
    pub(super) fn take_again(&mut self) -> usize {
        let State::Open(context) = &self.state else {
            return 0;
        };
        let before = std::mem::replace(&mut self.again, context.computed_again());
        self.again.saturating_sub(before)
    }

    /// Takes over what is to be moved to where its context ends. Returns how many tokens that is.
    pub(super) fn take_moved(&mut self) -> usize {
        match &mut self.state {
            State::Open(context) => self.moves.take(context),
            State::Closed(_) | State::Done => 0,
        }
    }

    /// Whether its context can be had again by reading its tokens.
    pub(super) fn can_give_way(&self, job: &Job) -> bool {
        let is_moved = self.began_moved || self.moves.have_moved();
        job.methods.keep.is_none() && !job.goes_on && !is_moved
    }

    pub(super) fn context(&self) -> &Context {
        match &self.state {
            State::Open(context) => context,
            State::Closed(_) | State::Done => unreachable!("running sequences have a context"),
        }
    }

    /// Tokens in the context.
    pub(super) fn held(&self) -> usize {
        match &self.state {
            State::Open(context) => context.len(),
            State::Closed(_) | State::Done => 0,
        }
    }

    /// Bytes of what its read method goes by that are made.
    pub(super) fn index_bytes(&self) -> u64 {
        let report = match &self.state {
            State::Open(context) => context.read_report(),
            State::Closed(_) | State::Done => None,
        };
        report.map_or(0, |report| report.index_bytes)
    }

    /// Tokens that are not in the context.
    pub(super) fn left_to_read(&self) -> usize {
        self.tokens.len() - self.held()
    }

    /// Whether it reads rather than writes.
    pub(super) fn is_reading(&self) -> bool {
        self.writer.is_none() || self.left_to_read() > 1
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    pub(super) fn kv_bytes(&self) -> u64 {
        match &self.state {
            State::Open(context) => context.kv_bytes(),
            State::Closed(_) | State::Done => 0,
        }
    }

    pub(super) fn take_context(&mut self) -> Option<Context> {
        match std::mem::replace(&mut self.state, State::Done) {
            State::Open(context)
            | State::Closed(Start::Beginning(context) | Start::Made(context)) => Some(context),
            State::Closed(Start::Nothing) | State::Done => None,
        }
    }

    /// Rows of the next pass, when it may be of `part` rows and `left` are to be read at most.
    pub(super) fn next_rows(&self, part: usize, left: usize) -> usize {
        let context = self.context();
        let by_blocks = |keep: &Arc<Keep>| keep.when.block.is_some();
        let before_last = self.left_to_read().saturating_sub(1);
        let left = match context.keep_method().is_some_and(by_blocks) {
            // A method that decides on the way does so before the last token.
            true if before_last > 0 => left.min(before_last),
            _ => left,
        };
        let left = match self.moves.next() {
            Some(next) => left.min(next - context.len()),
            None => left,
        };
        match part {
            0 => 0,
            part => context.next_pass(left, part),
        }
    }

    /// Lets the keep method decide what stays, if it is to after the pass that was just computed.
    pub(super) fn keep(&mut self, engine: &Engine) -> Result<(), EngineError> {
        let at_end = std::mem::take(&mut self.at_end);
        let writes = !self.is_reading();
        let is_document = at_end && self.writer.is_none();
        let State::Open(context) = &mut self.state else {
            return Ok(());
        };
        if is_document {
            engine.compress_document(context)?;
            return Ok(());
        }
        let due = match (writes, at_end) {
            (false, _) => context.keep_is_due(),
            (true, true) => context.end_prompt(),
            (true, false) => context.keep_is_due_in_decode(),
        };
        if due {
            engine.compress(context)?;
        }
        Ok(())
    }

    /// Whether it takes over, when it is opened, what is read in `context`: that has its rotary frequencies.
    pub(super) fn can_take_over(&self, context: &Context, engine: &Engine) -> bool {
        let planned = self.planned_tokens.max(self.tokens.len());
        let set = engine.model().file().rope_set(planned);
        set.is_ok_and(|set| set == context.identity().rope)
    }

    /// Whether it has read, or will have, the first `end` of `tokens`, of which one at least must be left to
    /// compute.
    pub(super) fn will_have(&self, tokens: &[u32], end: usize) -> bool {
        tokens.len() > end && self.tokens.len() >= end && tokens[..end] == self.tokens[..end]
    }

    /// How many of the first of `tokens` are in its context.
    pub(super) fn has_in_common(&self, tokens: &[u32]) -> usize {
        self.context().tokens().common_prefix(tokens)
    }

    /// What it leaves when it is ended early, where it holds moved text.
    pub(super) fn leave_early(&mut self) -> Option<(Context, Moves)> {
        if !self.moves.have_moved() {
            return None;
        }
        let moves = std::mem::take(&mut self.moves);
        Some((self.take_context()?, moves))
    }

    /// Whether a fork of its context is what reading the tokens gives, with nothing that acts on it.
    pub(super) fn is_plain(&self, job: &Job) -> bool {
        job.methods.is_nothing()
            && job.observe == Observe::Nothing
            && !job.goes_on
            && self.is_exact()
    }

    /// Whether what it holds and will hold is what reading its tokens gives.
    pub(super) fn is_exact(&self) -> bool {
        self.moves.is_nothing() && self.context().is_exact()
    }

    /// The next `rows` tokens as a segment of a pass.
    pub(super) fn segment(&mut self, rows: usize, wanted: Wanted) -> Segment<'_> {
        let State::Open(context) = &mut self.state else {
            unreachable!("running sequences have a context");
        };
        let from = context.len();
        Segment {
            tokens: &self.tokens[from..from + rows],
            context,
            wanted,
        }
    }

    /// Tells how far the prompt is read.
    pub(super) fn after_read(&mut self, job: &mut Job) {
        let left = self.left_to_read();
        if let State::Open(context) = &mut self.state
            && left < BLOCK_TOKENS
        {
            context.checkpoint();
        }
        if self.writer.is_some() {
            // It is read again; its prompt was told of before.
            return;
        }
        if left == 0 {
            self.at_end = job.kind == Kind::Reads;
            if let Some(started) = job.started {
                job.summary.prefill = started.elapsed();
            }
        }
        job.hear(Update::Read {
            done: self.held(),
            total: self.tokens.len(),
        });
    }

    /// The choice of the next token of its text from `logits`, to be made before [`Sequence::write`];
    /// `None` where no text was begun.
    pub(super) fn choice<'a>(&'a mut self, logits: &'a [f32]) -> Option<NextChoice<'a>> {
        let writer = self.writer.as_mut()?;
        Some(NextChoice {
            writer,
            logits,
            history: &self.tokens,
        })
    }

    /// Writes the next token of its text, or the first of every text when the prompt was just read.
    pub(super) fn write(
        &mut self,
        job: &mut Job,
        logits: &[f32],
        engine: &Engine,
    ) -> Result<More, EngineError> {
        let mut more = More {
            tokens: 0,
            sequences: Vec::new(),
        };
        if self.writer.is_some() {
            self.step(job, logits, engine)?;
            more.tokens = 1;
            return Ok(more);
        }
        self.at_end = true;
        if job.prompt_logprobs.take().is_some() {
            let scored = std::mem::take(&mut job.scored);
            job.hear(Update::Scored(scored));
            job.finish_empty();
        }
        let answers = std::mem::take(&mut job.answers);
        let count = answers.len();
        for (at, (answer, options)) in answers.into_iter().enumerate() {
            let writer = Writer::new(answer, options, engine.tokenizer());
            if at + 1 == count {
                self.writer = Some(writer);
                self.step(job, logits, engine)?;
            } else {
                let mut sequence = Sequence {
                    job: self.job,
                    tokens: self.tokens.clone(),
                    writer: Some(writer),
                    gave_way: false,
                    planned_tokens: self.planned_tokens,
                    at_end: true,
                    began_moved: self.began_moved,
                    again: self.again,
                    moves: self.moves.moved(),
                    state: State::Open(self.context().fork()),
                };
                sequence.step(job, logits, engine)?;
                if !sequence.is_done() {
                    more.sequences.push(sequence);
                }
            }
            more.tokens += 1;
        }
        Ok(more)
    }

    fn step(&mut self, job: &mut Job, logits: &[f32], engine: &Engine) -> Result<(), EngineError> {
        let (Some(writer), State::Open(context)) = (&mut self.writer, &self.state) else {
            unreachable!("only what has a context and a writer is written");
        };
        let room = engine.model().positions_of(context) - context.len();
        let Written { token, end } = writer.step(logits, &self.tokens, room, engine.tokenizer())?;
        let summary = &mut job.summary;
        summary.generated_tokens += 1;
        summary
            .to_first_token
            .get_or_insert_with(|| job.arrived.elapsed());
        summary.longest_gap = summary.longest_gap.max(writer.longest_gap);
        let answer = writer.answer;
        self.tokens.push(token.id);
        job.listener.hear(Update::Token(token));
        if let Some((reason, rest)) = end {
            let stop = writer.stop();
            summary.kv_bytes += context.kv_bytes();
            job.report = context.keep_report();
            job.prefill = context.prefill_report();
            job.add_read(context.read_report());
            if let Some(map) = context.attention_map() {
                let prompt = job.summary.prompt_tokens;
                job.attention = Some(engine.picture(&map, &self.tokens, prompt));
            }
            job.listener.hear(Update::Finished {
                answer,
                reason,
                stop,
                rest,
            });
            job.open_answers -= 1;
            self.leave(job);
        }
        Ok(())
    }

    /// Ends it; what it leaves is its request's.
    fn leave(&mut self, job: &mut Job) {
        let state = std::mem::replace(&mut self.state, State::Done);
        if let State::Open(context) = state
            && job.moved.is_some()
        {
            job.left = Some((context, std::mem::take(&mut self.moves)));
        }
    }
}
