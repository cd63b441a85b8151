//! The keep stage: which pairs of keys and values stay in memory.
//!
//! A method here is a score and what goes with it: how the budget is spread (`budgets/`), what
//! evicted pairs leave behind (`merge/`), and when all this happens. A file declares what the method
//! is, with the parameters that every such method has taken from [`parameter`], and implements
//! [`Score`].

mod all;
mod budgets;
mod chelsea;
mod chunks;
mod critic;
mod duo_attention;
mod expected_attention;
mod h2o;
mod head_scores;
mod keydiff;
mod knorm;
mod kvzip;
mod label_words;
mod locret;
mod merge;
pub(crate) mod parameter;
mod random;
mod sage_kv;
mod snapkv;
mod streaming_llm;
#[cfg(test)]
pub(crate) mod testing;
mod timrun;
mod tova;

pub use head_scores::HeadScores;
use longview_kv::keep::{Keep, Positions, Protected, Question, Score, When};

use crate::arguments::Arguments;
use crate::error::MethodError;
use crate::method::{Build, Method};

/// The methods of this stage; the first is the default.
pub(crate) static METHODS: &[Method] = &[
    all::METHOD,
    streaming_llm::METHOD,
    snapkv::METHOD,
    tova::METHOD,
    sage_kv::METHOD,
    h2o::METHOD,
    expected_attention::METHOD,
    keydiff::METHOD,
    kvzip::METHOD,
    chelsea::METHOD,
    critic::METHOD,
    duo_attention::METHOD,
    locret::METHOD,
    label_words::METHOD,
    timrun::METHOD,
    knorm::METHOD,
    random::METHOD,
    budgets::uniform::METHOD,
    budgets::adakv::METHOD,
    budgets::pyramidkv::METHOD,
    budgets::zigzagkv::METHOD,
    budgets::d2o::METHOD,
    budgets::threshold::METHOD,
    budgets::heads::METHOD,
    merge::d2o::METHOD,
    merge::chelsea::METHOD,
    merge::look_m::METHOD,
];

/// Parameters that say what becomes of scores, and not what they are.
const NOT_SCORED_BY: [&str; 6] = ["budget", "alloc", "merge", "block", "decode", "positions"];

/// What every keep method is made of: its score, and what its parameters of the usual names say.
///
/// # Errors
/// None yet: budgets are checked against the prompt, which is not known here.
fn keep(
    arguments: &Arguments,
    question: Question,
    score: impl Score + 'static,
) -> Result<Keep, MethodError> {
    let count = |name| match arguments.declares(name) {
        true => arguments.count(name),
        false => 0,
    };
    let every = |name| {
        arguments
            .declares(name)
            .then(|| arguments.every(name))
            .flatten()
    };
    let allocate = match arguments
        .declares("alloc")
        .then(|| arguments.part("alloc"))
        .flatten()
    {
        Some((method, arguments)) => match method.build {
            Build::Allocate(build) => build(arguments),
            _ => unreachable!("the registry finds rules for budgets only"),
        },
        None => Box::new(budgets::uniform::Uniform),
    };
    let merge = arguments
        .declares("merge")
        .then(|| arguments.part("merge"))
        .flatten();
    Ok(Keep {
        text: arguments.to_string(),
        score: match count(parameter::CHUNKS.name) {
            0 | 1 => Box::new(score),
            tokens => Box::new(chunks::Chunks {
                score: Box::new(score),
                tokens,
            }),
        },
        allocate,
        merge: merge.map(|(method, arguments)| match method.build {
            Build::Merge(build) => build(arguments),
            _ => unreachable!("the registry finds merges only"),
        }),
        budget: arguments.budget("budget"),
        protected: Protected {
            sinks: count("sinks"),
            recent: count("recent"),
            recent_share: match arguments.declares("recent-share") {
                true => arguments.number("recent-share"),
                false => 0.0,
            },
            reading: 0,
        },
        when: When {
            block: every("block"),
            decode: every("decode"),
        },
        question,
        positions: match arguments.declares("positions") && arguments.word("positions") == "slots" {
            true => Positions::Slots,
            false => Positions::Text,
        },
        made_for: None,
        scored_as: Some(arguments.without(&NOT_SCORED_BY)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_lists_every_method_in_the_registrys_words() {
        let document = include_str!("../../../../docs/keep.md");
        for method in METHODS {
            let row = format!("| `{}` | {} |", method.name, method.doc);
            assert!(document.contains(&row), "docs/keep.md lacks {row}");
        }
    }
}
