//! The tasks: a document, questions about it, and what the answers must hold.

mod facts;
mod list;
mod passages;
mod variables;

use longview_engine::sampling::Rng;

use crate::error::EvalError;
use crate::haystack::Haystack;
use crate::outcome::Sight;
use crate::score::Scorer;
use crate::wording::Wording;

use facts::{Hay, Value};
pub use passages::Questions;

/// A task whose samples are made for a length.
#[derive(Debug)]
pub struct Task {
    /// Its name on the command line and in reports.
    pub name: &'static str,
    /// What it asks for, in one sentence without a full stop.
    pub doc: &'static str,
    /// Makes a sample with so many units of haystack, whatever they are in this task. More units
    /// never make a shorter document, and the questions do not depend on their number.
    make: fn(&Making<'_>, &mut Rng, usize) -> Sample,
    /// The fewest units it makes sense with.
    least: usize,
    /// How often the way its samples are drawn or asked has changed since results are kept, with the question
    /// unseen and seen.
    drawn: [u32; 2],
    /// Whether its questions are asked one after another where they are seen: otherwise each is, with the
    /// document, a prompt of its own.
    pub(crate) conversation: bool,
}

/// What samples are made from.
#[derive(Clone, Copy, Debug)]
pub struct Making<'a> {
    /// The sentences.
    pub wording: &'a Wording,
    /// What things are hidden in.
    pub haystack: &'a Haystack,
    /// Questions about passages.
    pub questions: &'a Questions,
    /// Where the fact of a task with one fact stands, 0 for the beginning and 1 for the end; drawn
    /// where it is not said.
    pub depth: Option<f64>,
    /// Whose turn it is where a task has few questions.
    pub turn: Turn,
}

/// A sample among those of its task and length: where these ask few questions, each has its turn before
/// any is asked again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// What the order is drawn from, for all samples of the set.
    pub seed: u64,
    /// The number of the sample.
    pub sample: usize,
}

/// A document and questions about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// What is read.
    pub document: String,
    /// What is asked, each from the document alone.
    pub questions: Vec<Question>,
}

/// A question and what its answer must hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// What is asked.
    pub text: String,
    /// What is expected in the answer.
    pub answers: Vec<String>,
    /// How much of it.
    pub scorer: Scorer,
    /// The most tokens of an answer.
    pub max_tokens: usize,
}

/// Tokens of an answer with one fact.
const ONE_FACT: usize = 64;

/// The thirteen tasks of RULER (Hsieh et al., 2024, <https://arxiv.org/abs/2404.06654>), made anew
/// from texts and questions that are shipped.
static RULER: [Task; 13] = [
    Task {
        name: "niah-single-1",
        doc: "one number hidden in sentences that say nothing",
        make: |making, rng, units| facts::single(making, rng, units, Hay::Noise, Value::Number),
        least: 0,
        drawn: [0, 0],
        conversation: false,
    },
    Task {
        name: "niah-single-2",
        doc: "one number hidden in a book",
        make: |making, rng, units| facts::single(making, rng, units, Hay::Book, Value::Number),
        least: 0,
        drawn: [0, 0],
        conversation: false,
    },
    Task {
        name: "niah-single-3",
        doc: "one UUID hidden in a book",
        make: |making, rng, units| facts::single(making, rng, units, Hay::Book, Value::Uuid),
        least: 0,
        drawn: [0, 0],
        conversation: false,
    },
    Task {
        name: "niah-multikey-1",
        doc: "one of four numbers hidden in a book",
        make: facts::one_of_four,
        least: 0,
        drawn: [0, 0],
        conversation: false,
    },
    Task {
        name: "niah-multikey-2",
        doc: "one number among nothing but such numbers",
        make: |making, rng, units| facts::one_of_many(making, rng, units, Value::Number),
        least: 1,
        drawn: [0, 0],
        conversation: false,
    },
    Task {
        name: "niah-multikey-3",
        doc: "the UUID of one UUID among nothing but such pairs",
        make: |making, rng, units| facts::one_of_many(making, rng, units, Value::Uuid),
        least: 1,
        drawn: [0, 0],
        conversation: false,
    },
    Task {
        name: "niah-multivalue",
        doc: "all four numbers that a book says of one thing",
        make: facts::four_values,
        least: 0,
        drawn: [0, 0],
        conversation: false,
    },
    Task {
        name: "niah-multiquery",
        doc: "the numbers that a book says of four things",
        make: facts::four_keys,
        least: 0,
        drawn: [0, 1],
        conversation: false,
    },
    Task {
        name: "vt",
        doc: "variables that are assigned from one another over four steps",
        make: variables::chain,
        least: 0,
        drawn: [0, 0],
        conversation: false,
    },
    Task {
        name: "cwe",
        doc: "the ten words that come up thirty times in a list where others come up three times",
        make: list::common,
        least: 10,
        drawn: [0, 0],
        conversation: false,
    },
    Task {
        name: "fwe",
        doc: "the three most frequent words of a coded text",
        make: list::frequent,
        least: 100,
        drawn: [0, 0],
        conversation: false,
    },
    Task {
        name: "qa-1",
        doc: "a question that one paragraph of a book answers, among others",
        make: |making, rng, units| passages::ask(making, rng, units, 1),
        least: 0,
        drawn: [1, 1],
        conversation: false,
    },
    Task {
        name: "qa-2",
        doc: "a question that takes two paragraphs of a book, among others",
        make: |making, rng, units| passages::ask(making, rng, units, 2),
        least: 0,
        drawn: [1, 1],
        conversation: false,
    },
];

/// Tasks of Longview's own.
static OWN: [Task; 2] = [
    Task {
        name: "heatmap",
        doc: "one number hidden in a book at set depths",
        make: |making, rng, units| facts::single(making, rng, units, Hay::Book, Value::Number),
        least: 0,
        drawn: [0, 0],
        conversation: false,
    },
    Task {
        name: "reuse",
        doc: "eight questions, one after another, about sixteen numbers hidden in a book",
        make: facts::many_questions,
        least: 0,
        drawn: [0, 0],
        conversation: true,
    },
];

impl Task {
    /// The thirteen tasks of RULER.
    pub fn ruler() -> &'static [Task] {
        &RULER
    }

    /// Every task.
    pub fn all() -> impl Iterator<Item = &'static Task> {
        RULER.iter().chain(&OWN)
    }

    /// The task called `name`; `_` may stand for `-`.
    pub fn find(name: &str) -> Option<&'static Task> {
        let name = name.replace('_', "-");
        Task::all().find(|task| task.name == name)
    }

    /// The fewest units that [`Task::sample`] takes.
    pub fn least_units(&self) -> usize {
        self.least
    }

    /// How often the way its samples are drawn or asked has changed since results are kept.
    pub(crate) fn drawn(&self, question: Sight) -> u32 {
        self.drawn[usize::from(question == Sight::Seen)]
    }

    /// The sample of a seed with `units` units of haystack.
    pub fn sample(&self, making: &Making<'_>, seed: u64, units: usize) -> Sample {
        (self.make)(making, &mut Rng::new(seed), units.max(self.least))
    }
}

/// Whether something went wrong with the questions shipped or given.
pub(crate) fn questions_error(what: String) -> EvalError {
    EvalError::Questions { what }
}
