//! How a method describes itself.

use std::fmt;

use longview_engine::sampling::{Finish, Sampler};
use longview_engine::{Prune, Reuse};
use longview_kv::KvForm;
use longview_kv::keep::{Allocate, Keep, Merge};
use longview_kv::pattern::Pattern;
use longview_kv::read::Select;
use serde::Serialize;

use crate::arguments::Arguments;
use crate::error::MethodError;

/// The stages of a token's life; every method belongs to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Which text enters the model.
    Prompt,
    /// Which key blocks a query block attends to.
    Prefill,
    /// Which pairs stay, per layer and head.
    Keep,
    /// In what form and where the pairs are held.
    Store,
    /// Which of the stored pairs one decode step reads.
    Read,
    /// What another request may take over.
    Reuse,
    /// Which token comes next.
    Decode,
}

/// What a method is: the row that `longview methods` prints.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Method {
    /// Where it plugs in.
    pub stage: Stage,
    /// Its name in method texts.
    pub name: &'static str,
    /// Whether the model's logits stay those that the model defines. A decode method is exact when
    /// it chooses from such logits, whatever it chooses.
    pub exact: bool,
    /// Where it was published.
    pub paper: Option<&'static str>,
    /// What was said of it where it was published, on other models and tasks than the evaluation's.
    pub claim: Option<&'static str>,
    /// What it does, in one sentence.
    pub doc: &'static str,
    /// Its parameters, in the order in which values without a name are taken.
    pub parameters: &'static [Parameter],
    /// What is made of it; shown as the role it has in its stage.
    #[serde(rename = "role", serialize_with = "role_of")]
    pub(crate) build: Build,
}

/// One parameter of a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Parameter {
    /// Its name in method texts.
    pub name: &'static str,
    /// The value it has when it is not given; empty when it must be given or is drawn anew.
    pub default: &'static str,
    /// What its numbers count.
    pub unit: &'static str,
    /// What it means.
    pub doc: &'static str,
    /// The values it may have.
    #[serde(skip)]
    pub domain: Domain,
}

/// The values a parameter may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Domain {
    /// Any finite number.
    Number,
    /// A finite number of at least 0.
    NotNegative,
    /// A finite number above 0.
    Positive,
    /// A share from 0 to 1; `50%` is 0.5.
    Share,
    /// A whole number of at least 1; `4k` is 4,096.
    Count,
    /// A whole number below 2⁶⁴ which, when it is not given, is chosen anew for every generation.
    Seed,
    /// A whole number of at least 0.
    Whole,
    /// A whole number of tokens of at least 1, or `never`.
    Every,
    /// How much stays: pairs a head, a share of the prompt as `10%`, or bytes as `64MiB`.
    Budget,
    /// How much a step reads: tokens, or a share of those before it as `10%`.
    Reading,
    /// One of these words.
    Word(&'static [&'static str]),
    /// The same in a method that had been without: at its default it is not printed, so that what is kept
    /// under the older text is still found.
    Added(&'static Domain),
    /// A method with this role, or `none` where the role allows that.
    Part(Role),
    /// The name of a file, in quotation marks.
    Path,
    /// Any text, in quotation marks.
    Text,
    /// Not one value but any number of them, `TOKEN=NUMBER`, the names being token ids; `-inf` is
    /// allowed.
    PerToken,
}

/// What a method is in its stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A method that can be chosen alone.
    Method,
    /// A rule that spreads a keep method's budget over heads and layers, given as `alloc=`.
    Budgets,
    /// What the pairs that a keep method drops leave behind, given as `merge=`.
    Merge,
}

/// What the stage's caller gets.
#[derive(Clone, Copy)]
pub(crate) enum Build {
    /// The exact path: nothing to make.
    Nothing,
    /// The form of keys and values.
    Store(fn(&Arguments) -> Result<KvForm, MethodError>),
    /// What a request may take over.
    Reuse(fn(&Arguments) -> Reuse),
    /// Which pairs stay.
    Keep(fn(&Arguments) -> Result<Keep, MethodError>),
    /// What leaves a conversation.
    Prune(fn(&Arguments) -> Prune),
    /// What the queries of a prompt attend to.
    Prefill(fn(&Arguments) -> Box<dyn Pattern>),
    /// Which pages the tokens of an answer read.
    Read(fn(&Arguments) -> Result<Box<dyn Select>, MethodError>),
    /// How a keep method's budget is spread.
    Allocate(fn(&Arguments) -> Box<dyn Allocate>),
    /// What evicted pairs leave behind.
    Merge(fn(&Arguments) -> Box<dyn Merge>),
    /// A sampler of a chain.
    Sampler(fn(&Arguments) -> Box<dyn Sampler>),
    /// The end of a chain.
    Finish(fn(&Arguments) -> Finish),
}

impl Method {
    /// What it is in its stage.
    pub fn role(&self) -> Role {
        self.build.role()
    }
}

/// Names are single within a stage and a role.
impl PartialEq for Method {
    fn eq(&self, other: &Method) -> bool {
        (self.stage, self.role(), self.name) == (other.stage, other.role(), other.name)
    }
}

impl Build {
    fn role(self) -> Role {
        match self {
            Build::Allocate(_) => Role::Budgets,
            Build::Merge(_) => Role::Merge,
            _ => Role::Method,
        }
    }
}

impl Role {
    /// The parameter by which a keep method takes it.
    pub fn parameter(self) -> &'static str {
        match self {
            Role::Method => "",
            Role::Budgets => "alloc",
            Role::Merge => "merge",
        }
    }

    /// Whether a method can do without one.
    pub(crate) fn may_be_none(self) -> bool {
        self == Role::Merge
    }
}

fn role_of<S: serde::Serializer>(build: &Build, serializer: S) -> Result<S::Ok, S::Error> {
    build.role().serialize(serializer)
}

impl Stage {
    /// All stages, in the order in which a token meets them.
    pub const ALL: [Stage; 7] = [
        Stage::Prompt,
        Stage::Prefill,
        Stage::Keep,
        Stage::Store,
        Stage::Read,
        Stage::Reuse,
        Stage::Decode,
    ];

    /// The name used in folders, JSON and documents.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Prompt => "prompt",
            Stage::Prefill => "prefill",
            Stage::Keep => "keep",
            Stage::Store => "store",
            Stage::Read => "read",
            Stage::Reuse => "reuse",
            Stage::Decode => "decode",
        }
    }

    /// The command-line flag that takes methods of this stage.
    pub fn flag(self) -> &'static str {
        match self {
            Stage::Prompt => "--prompt-method",
            Stage::Prefill => "--prefill",
            Stage::Keep => "--keep",
            Stage::Store => "--store",
            Stage::Read => "--read",
            Stage::Reuse => "--reuse",
            Stage::Decode => "--decode",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Domain {
    /// What values there are, whether or not it was added later.
    pub(crate) fn values(self) -> Domain {
        match self {
            Domain::Added(domain) => domain.values(),
            domain => domain,
        }
    }

    /// The values in words, to follow "is not".
    pub(crate) fn wanted(self) -> String {
        let fixed = match self {
            Domain::Number => "a number",
            Domain::NotNegative => "a number of at least 0",
            Domain::Positive => "a number above 0",
            Domain::Share => "a share from 0 to 1 (or 0% to 100%)",
            Domain::Count => "a whole number of at least 1",
            Domain::Seed => "a whole number from 0 to 18446744073709551615",
            Domain::PerToken => "a number or -inf for a token id, as in 123=-5",
            Domain::Whole => "a whole number of at least 0",
            Domain::Every => "a whole number of tokens of at least 1, or the word never",
            Domain::Budget => {
                "a budget above nothing: a whole number of pairs a head as 4096, a share of the prompt \
                 up to 100% as 10%, or bytes as 64MiB"
            }
            Domain::Reading => {
                "a whole number of tokens of at least 1 as 2048, or a share up to 100% as 10%"
            }
            Domain::Word(words) => return format!("one of {}", words.join(", ")),
            Domain::Added(domain) => return domain.wanted(),
            Domain::Part(role) => {
                return format!(
                    "a method such as the registry lists for {}=",
                    role.parameter()
                );
            }
            Domain::Path => "the name of a file in quotation marks",
            Domain::Text => "a text in quotation marks",
        };
        fixed.to_owned()
    }
}

impl fmt::Debug for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Build::Nothing => "Nothing",
            Build::Store(_) => "Store",
            Build::Reuse(_) => "Reuse",
            Build::Keep(_) => "Keep",
            Build::Prune(_) => "Prune",
            Build::Prefill(_) => "Prefill",
            Build::Read(_) => "Read",
            Build::Allocate(_) => "Allocate",
            Build::Merge(_) => "Merge",
            Build::Sampler(_) => "Sampler",
            Build::Finish(_) => "Finish",
        })
    }
}
