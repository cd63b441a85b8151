//! From a task and a length to token ids.

use longview_engine::TextSide;
use longview_text::{AskFrame, Moment};

use crate::draw::seed_of;
use crate::error::EvalError;
use crate::task::{Making, Sample, Task};

/// A prompt is as long as was asked for when no more than this many tokens are missing.
const SLACK_TOKENS: usize = 8;

/// The most tries to come that near.
const TRIES: usize = 24;

/// The date that a chat template sees, the same in every run: 2026-01-01.
const DATE: i64 = 1_767_225_600;

/// A sample as the model reads it.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// The document with what a template puts around it.
    pub document: Vec<u32>,
    /// For each question its tokens up to where the answer begins.
    pub questions: Vec<Vec<u32>>,
}

/// What turns samples into prompts: the model's tokenizer and chat template.
pub struct Prompter<'a> {
    text: &'a TextSide,
    frame: AskFrame,
}

impl Prompt {
    /// Tokens of the document and the longest question.
    pub fn tokens(&self) -> usize {
        self.document.len() + self.questions.iter().map(Vec::len).max().unwrap_or(0)
    }
}

impl<'a> Prompter<'a> {
    /// The prompts of a model.
    ///
    /// # Errors
    /// When the template drops or changes what it is given.
    pub fn new(text: &'a TextSide) -> Result<Prompter<'a>, EvalError> {
        let vars = text.template_vars(Moment::from_unix(DATE));
        Ok(Prompter {
            text,
            frame: AskFrame::new(text.template(), &vars)?,
        })
    }

    /// The prompt of a sample.
    ///
    /// # Errors
    /// When a text cannot be turned into tokens.
    pub fn prompt(&self, sample: &Sample) -> Result<Prompt, EvalError> {
        let tokenizer = self.text.tokenizer();
        let encode = |question: &str| {
            let parts = self.frame.parts(&sample.document, question);
            tokenizer.encode_parts(&parts)
        };
        let document = self.text.with_prefix(encode("")?[..3].concat());
        // Documents and questions are turned into tokens apart; the document's first character
        // stands for it, since what comes before decides only whether a part begins a text.
        let first: String = sample.document.chars().take(1).collect();
        let question = |text: &str| -> Result<Vec<u32>, EvalError> {
            let parts = self.frame.parts(&first, text);
            Ok(tokenizer.encode_parts(&parts)?[3..].concat())
        };
        let questions = sample.questions.iter().map(|asked| question(&asked.text));
        Ok(Prompt {
            document,
            questions: questions.collect::<Result<_, _>>()?,
        })
    }

    /// Tokens of the smallest sample of `task`, prompt and answer together.
    ///
    /// # Errors
    /// When a text cannot be turned into tokens.
    pub(crate) fn least(
        &self,
        task: &Task,
        making: &Making<'_>,
        seed: u64,
    ) -> Result<usize, EvalError> {
        let (_, _, tokens) = self.made(task, making, seed, task.least_units())?;
        Ok(tokens)
    }

    /// A sample of `task` with `units` of its haystack, and the tokens of prompt and answer together.
    fn made(
        &self,
        task: &Task,
        making: &Making<'_>,
        seed: u64,
        units: usize,
    ) -> Result<(Sample, Prompt, usize), EvalError> {
        let sample = task.sample(making, seed_of(seed, task.name), units);
        let prompt = self.prompt(&sample)?;
        let answers = sample.questions.iter().map(|asked| asked.max_tokens);
        let tokens = prompt.tokens() + answers.max().unwrap_or(0);
        Ok((sample, prompt, tokens))
    }

    /// The largest sample of `task` whose prompt and answer have at most `length` tokens together;
    /// few are missing unless a unit of the task's haystack is larger.
    ///
    /// # Errors
    /// [`EvalError::TooShortForTask`] when even the smallest is larger.
    pub fn fitted(
        &self,
        task: &Task,
        making: &Making<'_>,
        seed: u64,
        length: usize,
    ) -> Result<(Sample, Prompt), EvalError> {
        let make = |units: usize| self.made(task, making, seed, units);
        let (mut units, mut best) = (task.least_units(), make(task.least_units())?);
        if best.2 > length {
            return Err(EvalError::TooShortForTask {
                task: task.name.to_owned(),
                length,
                least: best.2,
            });
        }
        // The fewest units known to be too many, with their tokens.
        let mut beyond: Option<(usize, usize)> = None;
        let mut tokens_a_unit = 8.0;
        for _ in 0..TRIES {
            let missing = length - best.2;
            if missing <= SLACK_TOKENS || beyond.is_some_and(|(many, _)| many - units <= 1) {
                break;
            }
            if let Some((many, tokens)) = beyond {
                tokens_a_unit = (tokens - best.2) as f64 / (many - units) as f64;
            }
            // A little less than seems to fit: the last tries then come from below.
            let step = ((missing - SLACK_TOKENS / 2) as f64 / tokens_a_unit.max(0.01)) as usize;
            let highest = beyond.map_or(usize::MAX, |(many, _)| many - 1);
            let next = (units + step.max(1)).min(highest);
            let made = make(next)?;
            if made.2 <= length {
                if beyond.is_none() && made.2 > best.2 {
                    tokens_a_unit = (made.2 - best.2) as f64 / (next - units) as f64;
                }
                (units, best) = (next, made);
            } else {
                beyond = Some((next, made.2));
            }
        }
        Ok((best.0, best.1))
    }
}
