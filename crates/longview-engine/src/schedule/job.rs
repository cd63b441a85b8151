//! A request: what its sequences share, and who hears of it.

use std::sync::Arc;
use std::time::Instant;

use longview_kv::Context;
use longview_kv::keep::KeepReport;
use longview_kv::pattern::PrefillReport;
use longview_kv::read::ReadReport;

use super::RequestId;
use super::moved::Moves;
use super::request::{
    AnswerOptions, Ended, Goal, Listener, MovedText, Observe, Priority, Request, Scored, Start,
    Summary, Update,
};
use super::sequence::Sequence;
use crate::acting::ContextMethods;
use crate::engine::Tenant;
use crate::error::EngineError;
use crate::generate::FinishReason;
use crate::picture::AttentionPicture;

/// What the sequences of one request share.
pub(super) struct Job {
    pub(super) tenant: Arc<Tenant>,
    pub(super) priority: Priority,
    pub(super) listener: Box<dyn Listener>,
    pub(super) kind: Kind,
    /// Texts not begun, with their numbers.
    pub(super) answers: Vec<(usize, AnswerOptions)>,
    /// Texts not complete, those not begun included.
    pub(super) open_answers: usize,
    pub(super) arrived: Instant,
    pub(super) started: Option<Instant>,
    pub(super) summary: Summary,
    pub(super) methods: ContextMethods,
    /// Whether its context was made under these methods before, and cannot be made again.
    pub(super) goes_on: bool,
    /// How many alternatives are wanted with each token of the prompt, until they are told.
    pub(super) prompt_logprobs: Option<usize>,
    /// What is to be told of the first tokens of the prompt.
    pub(super) scored: Vec<Scored>,
    pub(super) moved: Option<MovedText>,
    /// What a text that is complete leaves for a request that goes on from it, with its moved tokens.
    pub(super) left: Option<(Context, Moves)>,
    pub(super) report: Option<KeepReport>,
    read: Option<ReadReport>,
    pub(super) prefill: Option<PrefillReport>,
    pub(super) observe: Observe,
    pub(super) attention: Option<AttentionPicture>,
    /// The sum of the hidden states so far, `[hidden]`.
    pub(super) states: Vec<f64>,
}

/// What is made of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Writes,
    Reads,
    Embeds,
}

impl Job {
    /// A request and the sequence it begins with.
    pub(super) fn new(id: RequestId, request: Request) -> (Job, Sequence) {
        let (kind, answers) = match request.goal {
            Goal::Write(answers) => (Kind::Writes, answers),
            Goal::Read => (Kind::Reads, Vec::new()),
            Goal::Embed => (Kind::Embeds, Vec::new()),
        };
        let goes_on = matches!(request.start, Start::Made(_));
        let first = request.prompt.first().map(|&id| Scored {
            id,
            logprob: None,
            top: Vec::new(),
        });
        let job = Job {
            tenant: request.tenant,
            priority: request.priority,
            listener: request.listener,
            kind,
            methods: request.methods,
            goes_on,
            prompt_logprobs: request.prompt_logprobs.filter(|_| !goes_on),
            scored: first.into_iter().collect(),
            moved: request.moved,
            left: None,
            report: None,
            read: None,
            prefill: None,
            observe: request.observe,
            attention: None,
            open_answers: answers.len(),
            answers: answers.into_iter().enumerate().collect(),
            states: Vec::new(),
            arrived: Instant::now(),
            started: None,
            summary: Summary {
                prompt_tokens: request.prompt.len(),
                ..Summary::default()
            },
        };
        let sequence = Sequence::new(id, request.prompt, request.planned_tokens, request.start);
        (job, sequence)
    }

    pub(super) fn hear(&mut self, update: Update) {
        self.listener.hear(update);
    }

    /// Ends texts that are to have no token, unless something is to be told of their prompt first. Returns
    /// whether that leaves no text to be written, where there was one.
    pub(super) fn finish_empty(&mut self) -> bool {
        if self.prompt_logprobs.is_some() {
            return false;
        }
        let is_empty = |(_, options): &mut (usize, AnswerOptions)| options.generate.max_tokens == 0;
        let empty: Vec<_> = self.answers.extract_if(.., is_empty).collect();
        for (answer, _) in &empty {
            self.hear(Update::Finished {
                answer: *answer,
                reason: FinishReason::Length,
                stop: None,
                rest: String::new(),
            });
        }
        self.open_answers -= empty.len();
        !empty.is_empty() && self.open_answers == 0
    }

    pub(super) fn end(mut self, error: Option<EngineError>, context: Option<Context>) {
        let embedding = match (&error, self.kind) {
            (None, Kind::Embeds) => unit(&self.states),
            _ => None,
        };
        self.listener.hear(Update::Ended(Box::new(Ended {
            error,
            summary: self.summary,
            context,
            keep: self.report,
            read: self.read,
            prefill: self.prefill,
            attention: self.attention,
            embedding,
        })));
    }

    /// Whether it takes over what others read of its prompt: what is read otherwise is found by nobody, and
    /// embeddings and probabilities of a prompt are told by its passes alone.
    pub(super) fn takes_over(&self) -> bool {
        let reads_all = self.kind == Kind::Embeds || self.is_scoring();
        !self.goes_on && self.methods.reads_alike() && !reads_all
    }

    /// Has observed in `context` what is asked for.
    pub(super) fn observe(&self, context: &mut Context) -> Result<(), EngineError> {
        match self.observe {
            Observe::Nothing => Ok(()),
            Observe::Attention => Ok(context.watch_attention()?),
        }
    }

    /// Takes in what a text has read that is complete.
    pub(super) fn add_read(&mut self, report: Option<ReadReport>) {
        match (&mut self.read, report) {
            (Some(all), Some(report)) => all.add(&report),
            (all, report) => *all = all.take().or(report),
        }
    }

    /// Takes in the hidden state of one token.
    pub(super) fn add_state(&mut self, state: &[f32]) {
        self.states.resize(state.len(), 0.0);
        let sums = self.states.iter_mut().zip(state);
        sums.for_each(|(sum, &value)| *sum += f64::from(value));
    }

    /// Tokens that its longest text may have, as far as texts have not begun.
    pub(super) fn longest_answer(&self) -> usize {
        let answers = self.answers.iter();
        let lengths = answers.map(|(_, options)| options.generate.max_tokens);
        lengths.max().unwrap_or(0)
    }
}

/// A vector in the direction of `sum` of length 1; `None` when it has no direction.
fn unit(sum: &[f64]) -> Option<Vec<f32>> {
    let length = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
    let scaled = || sum.iter().map(|value| (value / length) as f32).collect();
    (length.is_finite() && length > 0.0).then(scaled)
}
