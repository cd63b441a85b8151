//! What is asked of a scheduler, and what it tells whoever asked.

use std::sync::Arc;
use std::time::Duration;

use longview_kv::Context;
use longview_kv::keep::KeepReport;
use longview_kv::pattern::PrefillReport;
use longview_kv::read::ReadReport;

use crate::acting::ContextMethods;
use crate::engine::Tenant;
use crate::error::EngineError;
use crate::generate::{FinishReason, GenerateOptions};
use crate::picture::AttentionPicture;

/// Which of several requests goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Work that nobody waits for: read when there is nothing else to read.
    Low,
    /// Everything else.
    #[default]
    Normal,
    /// Before all others.
    High,
}

/// A prompt to be read and answers to be written to it.
pub struct Request {
    /// Whose contexts may be taken over, and whose share of the machine this counts against.
    pub tenant: Arc<Tenant>,
    /// All tokens of the prompt, at least one.
    pub prompt: Vec<u32>,
    /// What its context begins as.
    pub start: Start,
    /// How long the context may become, in tokens. Models with longrope choose their rotary
    /// frequencies by it.
    pub planned_tokens: usize,
    /// What is to be made of the prompt.
    pub goal: Goal,
    /// What acts on its contexts. A keep method takes time between two passes, and a request with one
    /// never gives way: what was dropped could not be had again; nor does one whose `start` holds
    /// moved text. Under a keep or a prefill method, or
    /// in another form, the prompt is read in a context of its own, unless `start` was made so.
    pub methods: ContextMethods,
    /// What it takes over beside what its prompt begins with, which makes it an approximation; only where
    /// no method acts on its context.
    pub moved: Option<MovedText>,
    /// How many of the most likely tokens are reported with each token of the prompt, and its own
    /// probability; `None` for neither. The prompt is then read anew, whatever is known of it, in passes of
    /// at most [`SCORED_ROWS`] rows. Not for a prompt that begins with [`Start::Made`].
    pub prompt_logprobs: Option<usize>,
    /// What is observed of its answers.
    pub observe: Observe,
    /// Its rank among others.
    pub priority: Priority,
    /// Who is told what happens.
    pub listener: Box<dyn Listener>,
}

/// The most rows of a prompt whose probabilities are wanted that one pass computes: each has logits of its
/// own, which take memory.
pub const SCORED_ROWS: usize = 32;

/// What the context of a request begins as.
#[derive(Default)]
pub enum Start {
    /// Empty.
    #[default]
    Nothing,
    /// One that holds the beginning of the prompt as the model defines it, such as a fork of one with a
    /// name. What the store has beyond it is taken over either way.
    Beginning(Context),
    /// One that holds the beginning of the prompt and was read under the request's own methods: it is
    /// gone on with as it is. Such a request never gives way, for it could not be had again.
    Made(Context),
}

impl Start {
    /// The same once more, which costs no keys or values.
    pub(super) fn fork(&self) -> Start {
        match self {
            Start::Nothing => Start::Nothing,
            Start::Beginning(context) => Start::Beginning(context.fork()),
            Start::Made(context) => Start::Made(context.fork()),
        }
    }
}

/// Text that is taken over from an earlier version of a prompt, moved to where it stands now; see
/// [`Reuse::Shift`](crate::Reuse::Shift).
pub struct MovedText {
    /// Shorter spans are computed again.
    pub least_tokens: usize,
    /// A context that holds such a version, as [`Engine::earlier_version`](crate::Engine::earlier_version)
    /// finds it. Contexts of earlier requests of the same kind and tenant are looked at as well.
    pub earlier: Option<Context>,
}

/// What is observed while answers are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Observe {
    /// Nothing beside what is always counted.
    #[default]
    Nothing,
    /// What their attention rests on, at the cost of a second product of queries and keys. Not under a
    /// keep method.
    Attention,
}

/// What is to be made of a prompt.
pub enum Goal {
    /// One text for each of these, at least one.
    Write(Vec<AnswerOptions>),
    /// It is only read; the context is handed back. A keep method that can tell what stays before a
    /// question is known does so at its end.
    Read,
    /// The mean of its tokens' last hidden states, scaled to length 1. Hidden states are not kept, so
    /// nothing is taken over.
    Embed,
}

/// How one text is written.
pub struct AnswerOptions {
    /// How tokens are chosen, and when the text ends.
    pub generate: GenerateOptions,
    /// How many of the most likely tokens are reported with each token, and its own probability; `None`
    /// for neither, which saves a sum over the vocabulary a token.
    pub logprobs: Option<usize>,
}

/// Who is told what happens to a request. Called on the thread that computes, so it must not wait.
pub trait Listener: Send {
    /// Whether nobody wants the result any more.
    fn is_gone(&self) -> bool;

    /// Takes the news.
    fn hear(&mut self, update: Update);
}

/// What happened to a request.
pub enum Update {
    /// It left the queue; so many tokens of its prompt need not be computed.
    Started {
        /// Tokens of the prompt taken over from work done before.
        reused_tokens: usize,
    },
    /// More of its prompt was read.
    Read {
        /// Tokens of the prompt in the context, those taken over included.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
    },
    /// All of its prompt is read: how likely the model held each token of it, where that is asked for.
    Scored(Vec<Scored>),
    /// A token was chosen.
    Token(Token),
    /// A text is complete.
    Finished {
        /// Which.
        answer: usize,
        /// Why.
        reason: FinishReason,
        /// The stop string that ended it, if one did.
        stop: Option<String>,
        /// Text that was held back until now.
        rest: String,
    },
    /// Nothing more happens.
    Ended(Box<Ended>),
}

/// One token of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Which text.
    pub answer: usize,
    /// Its id.
    pub id: u32,
    /// Natural logarithm of the probability the model gave it, where that is asked for.
    pub logprob: Option<f32>,
    /// The most likely tokens of the step with theirs, most likely first; as many as asked for.
    pub top: Vec<(u32, f32)>,
    /// Text that is certain now: often nothing, never half a character.
    pub text: String,
    /// Whether it says that the text is over, and is no part of it.
    pub ends_text: bool,
}

/// How likely the model held a token of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// Its id.
    pub id: u32,
    /// Natural logarithm of the probability the model gave it; `None` for the first, before which nothing
    /// stands.
    pub logprob: Option<f32>,
    /// The most likely tokens in its place with theirs, most likely first; as many as asked for.
    pub top: Vec<(u32, f32)>,
}

/// How a request ended.
pub struct Ended {
    /// What went wrong, if something did.
    pub error: Option<EngineError>,
    /// What was measured.
    pub summary: Summary,
    /// The context with what was read of the prompt, for [`Goal::Read`]; where nothing was, the one it
    /// was to begin with.
    pub context: Option<Context>,
    /// What the keep method has done to the text that was complete last.
    pub keep: Option<KeepReport>,
    /// What the read method has read for all texts that were completed.
    pub read: Option<ReadReport>,
    /// What the prefill pattern has left out of the prompt of the text that was complete last.
    pub prefill: Option<PrefillReport>,
    /// What the attention of the text that was complete last has rested on, where that was observed.
    pub attention: Option<AttentionPicture>,
    /// `[hidden]`, for [`Goal::Embed`].
    pub embedding: Option<Vec<f32>>,
}

/// What was measured of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them taken over from work done before, moved ones included.
    pub reused_tokens: usize,
    /// Those of them whose keys and values were computed for another place: with any, its answers are
    /// approximate.
    pub moved_tokens: usize,
    /// Tokens generated, of all answers.
    pub generated_tokens: usize,
    /// Tokens read again because others needed the memory meanwhile.
    pub reread_tokens: usize,
    /// How long it waited to be started.
    pub queued: Duration,
    /// From its arrival until its first token.
    pub to_first_token: Option<Duration>,
    /// From its start until all of its prompt was read.
    pub prefill: Duration,
    /// The longest time between two tokens of one of its answers.
    pub longest_gap: Duration,
    /// Bytes of keys and values it held at its end.
    pub kv_bytes: u64,
}
