//! Samples as other programs can ask them.

use serde::Serialize;

use crate::outcome::Case;
use crate::prompt::Prompt;
use crate::score::Scorer;
use crate::task::Sample;

/// A sample of a task as the model reads it.
#[derive(Clone, Debug, Serialize)]
pub struct ExportedSample {
    /// The sample.
    #[serde(flatten)]
    pub case: Case,
    /// Ids of the document with what a template puts around it.
    pub document: Vec<u32>,
    /// What is asked, each after the document alone.
    pub questions: Vec<ExportedQuestion>,
}

/// A question and what its answer must hold.
#[derive(Clone, Debug, Serialize)]
pub struct ExportedQuestion {
    /// Ids up to where the answer begins.
    pub tokens: Vec<u32>,
    /// What is expected in the answer.
    pub answers: Vec<String>,
    /// How much of it.
    pub scorer: Scorer,
    /// The most tokens of an answer.
    pub max_tokens: usize,
}

impl ExportedSample {
    pub(crate) fn new(case: Case, sample: &Sample, prompt: Prompt) -> ExportedSample {
        let asked = sample.questions.iter().zip(prompt.questions);
        let questions = asked.map(|(question, tokens)| ExportedQuestion {
            tokens,
            answers: question.answers.clone(),
            scorer: question.scorer,
            max_tokens: question.max_tokens,
        });
        ExportedSample {
            case,
            document: prompt.document,
            questions: questions.collect(),
        }
    }
}
