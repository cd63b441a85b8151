//! The keep stage: which pairs of keys and values stay in memory, per layer and KV head.
//!
//! A [`Keep`] is a score (how much each pair matters), a rule that spreads a budget over heads and
//! layers, perhaps a rule for what evicted pairs leave behind, and when all this happens. A context
//! that has one is compressed by [`Context::compress`](crate::Context::compress): what stays of its
//! full layers moves to ragged streams ([`stream`]), the blocks are freed, and what is read later
//! follows in new blocks. Layers with a sliding window stay as they are: they are bounded already.

mod allocate;
mod compress;
mod footprint;
mod images;
mod observe;
mod pace;
mod pairs;
mod repeat;
mod scored;
mod seen;
mod snapshot;
mod stays;
pub(crate) mod stream;
mod view;

use std::fmt;
use std::ops::Range;

pub use allocate::{Allocation, Counts, share_out};
pub use compress::Compression;
pub use footprint::KeepBytes;
pub use images::LeavesFirst;
pub use observe::LayerRows;
pub use pace::KeepReport;
pub(crate) use pace::Kept;
pub use pairs::Pairs;
pub use repeat::{Marks, Repeated, Repetition};
pub use scored::Scored;
pub use view::{KeyPage, LayerView, Queries, ValuePage};

use longview_kernels::{Exec, Isa};

use crate::context::RopeSet;
use crate::error::KvError;
use crate::layout::{Group, KvLayout};
use crate::ledger::largest;
use stream::Stream;

/// A keep method with all its parts.
pub struct Keep {
    /// Its canonical text, such as `snapkv(budget=4096, window=32)`.
    pub text: String,
    /// How much each pair matters.
    pub score: Box<dyn Score>,
    /// How the budget is spread.
    pub allocate: Box<dyn Allocate>,
    /// What evicted pairs leave behind; `None` for nothing.
    pub merge: Option<Box<dyn Merge>>,
    /// How much stays.
    pub budget: Budget,
    /// Pairs that stay whatever they score.
    pub protected: Protected,
    /// When pairs leave.
    pub when: When,
    /// Whether what stays depends on the question.
    pub question: Question,
    /// What positions are counted by once pairs have left.
    pub positions: Positions,
    /// The [`AttentionOf::fingerprint`] of the model it was made for, where it was made for one.
    pub made_for: Option<String>,
    /// What its scores follow from beside the context, such as `snapkv(window=32)`: methods with the same
    /// text give every pair the same score, whatever stays of it. `None` where it scores as no other does.
    pub scored_as: Option<String>,
}

/// How much of a context stays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// So many pairs a KV head, on average over the heads and layers that are compressed.
    Pairs(usize),
    /// This share of the prompt's pairs, 0 to 1.
    Share(f64),
    /// So many bytes for all layers that are compressed, in whole slots.
    Bytes(u64),
}

/// Pairs that stay whatever they score.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Protected {
    /// Of the first so many tokens of the context.
    pub sinks: usize,
    /// Of the last so many tokens.
    pub recent: usize,
    /// Of so many of the last tokens as this share of the budget, 0 to 1, where that is more.
    pub recent_share: f64,
    /// Of so many of the last tokens while more of the prompt is to come, where that is more; of half of
    /// what the budget has room for where they would take all of it.
    pub reading: usize,
}

/// What positions are counted by once pairs have left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Positions {
    /// Tokens read: keys keep the rotation of their tokens' places in the text.
    #[default]
    Text,
    /// Places among the pairs that a head holds. What stays moves up over the gaps at every
    /// compaction, each key turned on by as much, up to the newest token, whose place stays that in the
    /// text. So no distance is ever larger than what is held, however long the text is.
    Slots,
}

/// When pairs leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct When {
    /// While a prompt is read, each time so many tokens have been read since; `None` for only at its
    /// end, which takes memory for the whole prompt.
    pub block: Option<usize>,
    /// While text is generated, each time so many tokens were; `None` for never.
    pub decode: Option<usize>,
}

/// Whether what stays depends on the question that is asked of a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// It is tuned to what stands at the end of the prompt: another question needs the whole context
    /// again.
    Seen,
    /// A document is compressed once and then asked anything.
    Unseen,
}

/// What a score has to be told of the passes that fill a context. What nobody needs is not gathered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Queries of the last so many tokens.
    pub last_queries: usize,
    /// For every pair the attention that it was given, summed over all rows so far: costs a second
    /// product of queries and keys.
    pub column_sums: Gather,
    /// For every pair how widely its own token spread its attention: the entropy of its row, averaged
    /// over the query heads of the group. Gathered with the column sums.
    pub row_entropies: Gather,
    /// Sums of all queries and of their products, turned back to position 0.
    pub query_moments: Gather,
    /// The first tokens whose queries are left out of them.
    pub moments_from: usize,
    /// The attention that pairs are given when the model repeats the context, in parts of so many
    /// tokens: takes passes of its own, whose pairs are dropped. 0 for none.
    pub repeat: usize,
    /// A number for every pair that [`Score::own`] makes of its token's query, key and value when they
    /// are computed, and that stays with it.
    pub own: Gather,
}

/// Whether something is gathered while a context is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gather {
    /// It is not.
    #[default]
    No,
    /// It is, from the first token on.
    Yes,
}

/// keep: how much each cached pair matters.
pub trait Score: Send + Sync {
    /// What it must be told while the context is read.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// Scores every pair of every KV head of a layer; a higher score stays, of equal ones the lower
    /// position. `scores` are zeros when it is called. Infinity keeps a pair in any case, and minus
    /// infinity lets it go even where the budget has room for it.
    ///
    /// # Errors
    /// [`KvError::NotObserved`] when something it needs was not gathered.
    fn score(&self, layer: &LayerView<'_>, scores: &mut Scores) -> Result<(), KvError>;

    /// Why it cannot be used with a model that has these layers; `None` where it can.
    fn refuses(&self, _layers: &[LayerShape]) -> Option<String> {
        None
    }

    /// Writes the number that each row of a pass gets of its own over `out [kv heads][rows]`, where
    /// [`Needs::own`] asks for it. A row's number must not depend on the other rows.
    fn own(&self, _exec: &Exec, _rows: &PlainRows<'_>, _out: &mut [Vec<f32>]) {}
}

/// A layer of a model, as far as a method may have to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerShape {
    /// Query heads.
    pub heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Channels of a key.
    pub head_dim: usize,
    /// Channels of a value.
    pub v_dim: usize,
}

/// Rows of one layer in a pass, before rotary embedding.
pub struct PlainRows<'a> {
    /// The layer.
    pub layer: usize,
    /// `[rows][heads][head_dim]`
    pub q: &'a [f32],
    /// `[rows][kv heads][head_dim]`
    pub k: &'a [f32],
    /// `[rows][kv heads][v_dim]`
    pub v: &'a [f32],
}

/// keep: spreads a budget over the KV heads of a layer, or over layers and heads.
pub trait Allocate: Send + Sync {
    /// Over what.
    fn scope(&self) -> Scope {
        Scope::Layer
    }

    /// Pairs wanted for every head, `[layers][heads]`, protected ones included. What is asked for
    /// is then rounded and clamped such that totals are exact; see [`Allocation`].
    fn wanted(&self, ask: &Allocation<'_>) -> Vec<Vec<f64>>;

    /// Pairs a head that stay on average when `tokens` tokens have been read: more than what was planned
    /// for a prompt where whole heads grow with the text.
    fn grown(&self, planned: &Planned, _tokens: usize) -> usize {
        planned.slots
    }
}

/// What a budget has room for, as planned for a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Pairs a KV head on average.
    pub slots: usize,
    /// Tokens that the prompt is expected to have.
    pub prompt: usize,
    /// KV heads that are compressed, of all layers together.
    pub heads: usize,
    /// Pairs of a head that always stay at most: of the first and the last tokens.
    pub least: usize,
}

/// What a budget is spread over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every layer has as much as every other.
    Layer,
    /// Layers may have more or less.
    Model,
}

/// Whether it is known of how many tokens each pair is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Counting {
    /// It is not.
    #[default]
    No,
    /// For later merges alone, in 4 bytes a pair.
    Merges,
    /// Attention counts a pair as so many as well: their logarithm is added to its score. 8 bytes a pair.
    Attention,
}

/// keep: what evicted pairs leave behind.
pub trait Merge: Send + Sync {
    /// Whether it must know of how many tokens each pair is made: then it counts them in
    /// [`Pairs::tokens`], and that is remembered.
    fn counting(&self) -> Counting {
        Counting::No
    }

    /// Which tokens it wants to let go of first.
    fn leaves_first(&self) -> LeavesFirst {
        LeavesFirst::Least
    }

    /// Bytes it takes at most, beside the pairs it is given, for a head of which `gone` pairs go and `kept`
    /// stay.
    fn scratch(&self, gone: usize, kept: usize, head_dim: usize) -> usize;

    /// Changes the pairs that are kept of one KV head by those that go. Keys are rotated as they are
    /// cached.
    fn merge(&self, gone: &Pairs, kept: &mut Pairs, with: &mut Merging<'_>);
}

/// What a merge is told beside the pairs.
pub struct Merging<'a> {
    /// The instructions that vectors are computed with.
    pub isa: Isa,
    /// The tokens between the first and the last ones, which always stay.
    pub open: Range<u32>,
    /// Rotates a key by so many positions.
    pub turn: &'a dyn Fn(isize, &mut [f32]),
    /// What the last call left here for this head of this context; nothing before the first.
    pub memory: &'a mut Option<f32>,
}

/// The scores of one layer, `[heads][pairs of the head]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    pub(crate) heads: Vec<Vec<f32>>,
}

/// A model's attention, as far as compression has to know it.
pub trait AttentionOf: Sync {
    /// How layer `layer` attends.
    fn shape(&self, layer: usize) -> AttentionShape;

    /// Rotates vectors `[count][head_dim]` of layer `layer` by so many positions.
    fn rotate(&self, layer: usize, set: RopeSet, positions: isize, vectors: &mut [f32]);

    /// What tells the model from others, however its weights are stored; `None` where that is not
    /// known.
    fn fingerprint(&self) -> Option<&str> {
        None
    }

    /// The bytes that a token writes; `None` where that is not known.
    fn spelling(&self, _token: u32) -> Option<Vec<u8>> {
        None
    }
}

/// The numbers of an attention.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AttentionShape {
    /// Query heads; a multiple of the KV heads.
    pub heads: usize,
    /// Factor on the scores before the softmax.
    pub scale: f32,
    /// Scores become `softcap · tanh(score / softcap)`; 0 leaves them.
    pub softcap: f32,
}

impl Keep {
    /// Pairs a KV head that stay on average of a prompt of `prompt_tokens` tokens. A share of a prompt that is no
    /// longer than what always stays is all of it.
    ///
    /// # Errors
    /// [`KvError::KeepRefused`] for a budget that keeps nothing or less than what is protected.
    pub fn slots(&self, layout: &KvLayout, prompt_tokens: usize) -> Result<usize, KvError> {
        let [sinks, recent] = self.always(layout);
        let least = (sinks + recent).max(1);
        let bytes_of = |slots| {
            self.stream_bytes(layout, slots) + layout.keep_tail_bytes() + layout.apart_bytes()
        };
        let slots = match self.budget {
            Budget::Pairs(pairs) => pairs,
            Budget::Share(share) => share_of(share, prompt_tokens),
            Budget::Bytes(bytes) => largest(prompt_tokens.max(least), |&slots: &usize| {
                bytes_of(slots) <= bytes
            }),
        };
        if slots >= least {
            return Ok(slots);
        }
        if matches!(self.budget, Budget::Share(_)) && (1..=least).contains(&prompt_tokens) {
            return Ok(least);
        }
        let what = match self.budget {
            Budget::Pairs(_) => String::new(),
            Budget::Share(share) => format!(
                " ({} % of a prompt of {prompt_tokens} tokens)",
                share * 100.0
            ),
            Budget::Bytes(bytes) => format!(" (what {bytes} bytes have room for)"),
        };
        let why = match slots {
            0 => format!("its budget keeps nothing{what}"),
            _ => format!(
                "its budget of {slots} pairs a head{what} is below the {sinks} first and {recent} last \
                 tokens that always stay"
            ),
        };
        let enough = match self.budget {
            Budget::Pairs(_) => least.to_string(),
            // In tenths, rounded up.
            Budget::Share(_) => {
                let tenths = (1000 * least).div_ceil(prompt_tokens.max(1));
                format!("{} %, which is {least}", tenths as f64 / 10.0)
            }
            Budget::Bytes(_) => format!("{} bytes, which is {least}", bytes_of(least)),
        };
        Err(self.refused(format!("{why}; give at least {enough}")))
    }

    /// How many of the first and of the last tokens always stay, at most.
    fn always(&self, layout: &KvLayout) -> [usize; 2] {
        let Protected { sinks, recent, .. } = self.protected;
        // Tokens that the store holds apart as the first or the latest stay as well.
        [sinks.max(layout.apart()), recent.max(layout.keep_tail())]
    }

    /// What the budget has room for of a prompt of `prompt` tokens.
    ///
    /// # Errors
    /// As [`Keep::slots`].
    pub(crate) fn planned(&self, layout: &KvLayout, prompt: usize) -> Result<Planned, KvError> {
        Ok(Planned {
            slots: self.slots(layout, prompt)?,
            prompt,
            heads: layout
                .full_layers()
                .map(|(_, place)| layout.groups[place].kind.kv_heads)
                .sum(),
            least: self.always(layout).iter().sum(),
        })
    }

    /// Bytes that a pair of a stream takes beside its key and value: its position, and of how many tokens
    /// it is where that is counted.
    pub(super) fn place_bytes(&self) -> usize {
        let of_count = match self.counting() {
            Counting::No => 0,
            Counting::Merges => size_of::<u32>(),
            Counting::Attention => size_of::<u32>() + size_of::<f32>(),
        };
        size_of::<u32>() + of_count
    }

    /// Whether it is known of how many tokens each pair is made.
    pub(super) fn counting(&self) -> Counting {
        let merge = self.merge.as_ref();
        merge.map_or(Counting::No, |merge| merge.counting())
    }

    /// Bytes that moving a head of a layer of `group` takes, of which `kept` pairs stay and `gone` go, where
    /// its pairs are taken out of their pages for that.
    pub(super) fn moving_bytes(&self, group: &Group, kept: usize, gone: usize) -> usize {
        if !group.geometry.is_whole() && self.merge.is_none() {
            return 0;
        }
        let pair = Pairs::bytes_of(group.kind.head_dim, group.kind.v_dim);
        let merging = self.merge.as_ref().map_or(0, |merge| {
            let number = size_of::<u32>();
            gone * (pair + number) + merge.scratch(gone, kept, group.kind.head_dim)
        });
        // As they were and as they become.
        2 * kept * pair + merging
    }

    /// The most bytes that streams take which keep `slots` pairs a KV head.
    pub(crate) fn stream_bytes(&self, layout: &KvLayout, slots: usize) -> u64 {
        let of_layer = |(_, place): (usize, usize)| {
            let group = &layout.groups[place];
            let heads = group.kind.kv_heads;
            let slots = slots.saturating_sub(layout.apart_of(place));
            let even = Stream::most_bytes(group, heads, slots * heads, self.place_bytes());
            match self.allocate.scope() {
                Scope::Layer => even,
                // The last page of every layer may be begun only.
                Scope::Model => even + group.page_bytes() as u64,
            }
        };
        layout.full_layers().map(of_layer).sum()
    }

    /// The last tokens that stay in any case, of a budget of `slots` pairs a head.
    pub(crate) fn recent(&self, slots: usize, at: Moment) -> usize {
        let Protected {
            sinks,
            recent,
            recent_share,
            reading,
        } = self.protected;
        let room = slots.saturating_sub(sinks);
        let share = (recent_share * slots as f64) as usize;
        // A budget that these would use up alone still chooses half of what stays.
        let reading = match at {
            Moment::Reading if reading < room => reading,
            Moment::Reading => room / 2,
            Moment::Read => 0,
        };
        recent.max(share.min(room)).max(reading)
    }

    /// Whether its budget is one of bytes, against which everything counts that is held.
    pub(super) fn is_in_bytes(&self) -> bool {
        matches!(self.budget, Budget::Bytes(_))
    }

    /// Whether a text of any length can be read and continued under it by a model whose positions
    /// end: what distances there are, what is held bounds.
    pub fn is_endless(&self) -> bool {
        let When { block, decode } = self.when;
        self.positions == Positions::Slots && block.is_some() && decode.is_some()
    }

    /// How it has the model repeat a context, if it does. What was seen of one repetition serves every
    /// method that asks for the same.
    pub fn repetition(&self) -> Option<Repetition> {
        let Needs { repeat: part, .. } = self.score.needs();
        (part > 0).then_some(Repetition {
            part,
            prefix: self.protected.sinks,
        })
    }

    pub(crate) fn refused(&self, why: String) -> KvError {
        KvError::KeepRefused {
            method: self.text.clone(),
            why,
        }
    }
}

/// Whether more of a prompt is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// It is.
    Reading,
    /// It has been read.
    Read,
}

/// `share` of `tokens`, in whole tokens: a share that was rounded to a number of them is that number.
fn share_of(share: f64, tokens: usize) -> usize {
    (share * tokens as f64 + 1e-9).floor() as usize
}

/// The larger of two numbers, and no number where one of them is none: so that none is lost on the way
/// to a score.
pub fn larger(a: f32, b: f32) -> f32 {
    if b > a || b.is_nan() { b } else { a }
}

impl Scores {
    /// The scores of one KV head.
    pub fn head(&self, head: usize) -> &[f32] {
        &self.heads[head]
    }

    /// The same, to be written.
    pub fn head_mut(&mut self, head: usize) -> &mut [f32] {
        &mut self.heads[head]
    }

    /// KV heads.
    pub fn heads(&self) -> usize {
        self.heads.len()
    }
}

impl From<Vec<Vec<f32>>> for Scores {
    /// Scores of `[heads][pairs]`.
    fn from(heads: Vec<Vec<f32>>) -> Scores {
        Scores { heads }
    }
}

impl Needs {
    /// What is needed for both.
    #[must_use]
    pub fn and(self, other: Needs) -> Needs {
        Needs {
            last_queries: self.last_queries.max(other.last_queries),
            column_sums: self.column_sums.max(other.column_sums),
            row_entropies: self.row_entropies.max(other.row_entropies),
            query_moments: self.query_moments.max(other.query_moments),
            moments_from: self.moments_from.max(other.moments_from),
            repeat: self.repeat.max(other.repeat),
            own: self.own.max(other.own),
        }
    }

    /// Whether it needs nothing at all.
    pub fn is_nothing(&self) -> bool {
        *self == Needs::default()
    }

    /// Whether every token must be computed while it watches, so that nothing can be taken over.
    pub fn every_token(&self) -> bool {
        let gathered = [
            self.column_sums,
            self.row_entropies,
            self.query_moments,
            self.own,
        ];
        gathered.contains(&Gather::Yes)
    }
}

impl fmt::Debug for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Two are the same when they are written the same.
impl PartialEq for Keep {
    fn eq(&self, other: &Keep) -> bool {
        self.text == other.text
    }
}
