//! Tasks with questions and answers.

use longview_engine::{Continuation, GenerateOptions, Generated};
use longview_kv::Context;

use super::lengths::held_bytes;
use super::reading::{Compressed, Lengths, Reading, all_or_refused};
use super::{Evaluation, Measured, compression_seconds, read_share, seconds};
use crate::error::EvalError;
use crate::outcome::{Case, Measure, Outcome, Sight};
use crate::prompt::Prompt;
use crate::setup::Setup;
use crate::task::{Sample, Task};

/// Bytes of keys and values that contexts may hold, each counted whole, which answer together.
const TOGETHER_BYTES: u64 = 1 << 30;

/// Said where a setup is asked after its last question, which nothing does.
const ASKED_ONCE: &str = "a context is there until its last question";

/// One sample of a task as it is asked.
struct Asked<'a> {
    task: &'a Task,
    case: &'a Case,
    sample: &'a Sample,
    prompt: &'a Prompt,
    lengths: Lengths,
}

/// A setup that has read a sample's document and is to answer.
struct Ready<'s> {
    setup: &'s Setup,
    /// What it answers from, until its last question takes it.
    context: Option<Context>,
    outcome: Outcome,
    /// One for each question answered.
    scores: Vec<f64>,
    shares: Vec<f64>,
}

impl Evaluation<'_> {
    /// Asks the questions of one sample under every one of `setups`.
    ///
    /// Under the first sample every setup answers alone, which says how fast it decodes; of the others
    /// the setups answer side by side, which takes a fraction of the time and changes no answer.
    pub(super) fn ask(
        &self,
        task: &Task,
        case: &Case,
        setups: &[&Setup],
        measured: &mut Measured<'_>,
    ) -> Result<(), EvalError> {
        let making = self.making(case);
        let (sample, prompt) = self
            .prompter
            .fitted(task, &making, self.seed(case), case.length)?;
        let answers: usize = sample.questions.iter().map(|asked| asked.max_tokens).sum();
        let questions: usize = prompt.questions.iter().map(Vec::len).sum();
        let limit = self.engine.model().blueprint().max_positions;
        let seen = match case.question {
            Sight::Unseen => 0,
            Sight::Seen => prompt.questions[0].len(),
        };
        let asked = Asked {
            task,
            case,
            sample: &sample,
            prompt: &prompt,
            lengths: Lengths {
                prompt: prompt.document.len() + seen,
                planned: (prompt.document.len() + questions + answers).min(limit),
            },
        };
        // What is held together must fit: under a limit of memory it is one setup at a time.
        let room = match case.sample > 0 && self.engine.ledger().limit() == u64::MAX {
            true => TOGETHER_BYTES,
            false => 0,
        };
        let mut ready: Vec<Ready<'_>> = Vec::new();
        let mut held = 0;
        for part in self.by_reading(setups) {
            let reading = self.read(&part, &prompt.document, asked.lengths);
            let Some(mut reading) = all_or_refused(reading, &part, measured)? else {
                continue;
            };
            for setup in part {
                match self.prepare(&asked, setup, &mut reading) {
                    Ok(one) => {
                        held += one.context().kv_bytes();
                        ready.push(one);
                    }
                    Err(error) => measured(setup, Err(error))?,
                }
                if held > room {
                    self.answer(&asked, std::mem::take(&mut ready), measured)?;
                    held = 0;
                }
            }
        }
        self.answer(&asked, ready, measured)
    }

    /// Makes a fork of `reading` ready to be asked under `setup`.
    fn prepare<'s>(
        &self,
        asked: &Asked<'_>,
        setup: &'s Setup,
        reading: &mut Reading,
    ) -> Result<Ready<'s>, EvalError> {
        let Compressed {
            context,
            bytes_held,
            peak_bytes,
            seconds,
        } = match asked.case.question {
            Sight::Unseen => self.compress(setup, reading, asked.lengths)?,
            // It is compressed when a question has been read.
            Sight::Seen => {
                let context = self.put_in_charge(setup, reading, asked.lengths)?;
                Compressed {
                    bytes_held: self.held(setup, &context),
                    peak_bytes: reading.peak_with(setup, 0),
                    seconds: 0.0,
                    context,
                }
            }
        };
        Ok(Ready {
            setup,
            context: Some(context),
            scores: Vec::new(),
            shares: Vec::new(),
            outcome: Outcome {
                case: asked.case.clone(),
                setup: setup.to_string(),
                measure: Measure::Recall,
                score: 0.0,
                divergence: None,
                same_until: None,
                read_share: None,
                tokens: asked.prompt.tokens(),
                bytes_held,
                peak_bytes,
                prefill_seconds: reading.seconds,
                compression_seconds: seconds,
                decode_tokens: 0,
                decode_seconds: 0.0,
                answers: Vec::new(),
            },
        })
    }

    /// Asks `ready` all questions of the sample, each of all of them at once.
    fn answer(
        &self,
        asked: &Asked<'_>,
        mut ready: Vec<Ready<'_>>,
        measured: &mut Measured<'_>,
    ) -> Result<(), EvalError> {
        for index in 0..asked.sample.questions.len() {
            let asked_all = self.ask_together(asked, index, &mut ready);
            match (asked_all, ready.as_slice()) {
                (Ok(()), _) => continue,
                (Err(error), [one]) => return measured(one.setup, Err(error)),
                _ => {}
            }
            // One of them cannot answer: the others do without it.
            let mut left = Vec::new();
            for mut one in ready {
                match self.ask_together(asked, index, std::slice::from_mut(&mut one)) {
                    Ok(()) => left.push(one),
                    Err(error) => measured(one.setup, Err(error))?,
                }
            }
            ready = left;
        }
        for one in ready {
            measured(one.setup, Ok(one.outcome()))?;
        }
        Ok(())
    }

    /// Asks all of `ready` question `index`. On an error none of them has changed, unless it is one alone.
    fn ask_together(
        &self,
        asked: &Asked<'_>,
        index: usize,
        ready: &mut [Ready<'_>],
    ) -> Result<(), EvalError> {
        let question = &asked.sample.questions[index];
        let alone = ready.len() == 1;
        let goes_on = asked.task.conversation && asked.case.question == Sight::Seen;
        // One that answers alone takes what it will not need again, so that what leaves is free.
        let takes = alone && (goes_on || index + 1 == asked.sample.questions.len());
        let Some(first) = ready.first() else {
            return Ok(());
        };
        let document_bytes = first.context().kv_bytes();
        let fork_of = |one: &mut Ready<'_>| match takes {
            true => one.context.take().expect(ASKED_ONCE),
            false => one.context().fork(),
        };
        let mut forks: Vec<Context> = ready.iter_mut().map(fork_of).collect();
        let text = |context| Continuation {
            context,
            prompt: &asked.prompt.questions[index],
            options: GenerateOptions::greedy(question.max_tokens),
        };
        let mut texts: Vec<Continuation<'_>> = forks.iter_mut().map(text).collect();
        let before = self.engine.ledger().watch_kv();
        let generated = self.engine.generate_together(&mut texts)?;
        drop(texts);
        let more = self.engine.ledger().usage().kv_peak - before;
        for ((one, generated), fork) in ready.iter_mut().zip(generated).zip(forks) {
            let score = question.scorer.score(&generated.text, &question.answers);
            one.scores.push(score);
            one.shares.extend(read_share(&fork));
            if alone {
                one.outcome.note_speed(&generated);
            }
            one.outcome.answers.push(generated.text.clone());
            if asked.case.question == Sight::Unseen {
                continue;
            }
            if index == 0 {
                let prompt = asked.lengths.prompt;
                let mut bytes = generated.prompt_kv_bytes;
                if !fork.is_compressed() {
                    // What the last chunk was read with is no part of what is held.
                    bytes = bytes.min(held_bytes(fork.layout(), prompt));
                }
                one.outcome.bytes_held = bytes + self.index_bytes(one.setup, &fork, prompt, bytes);
                one.outcome.compression_seconds = compression_seconds(&fork);
            }
            // Of several that answer together nobody knows whose it is, and what further questions need would be
            // there twice.
            if takes && (index == 0 || !goes_on) {
                let both = document_bytes + more;
                one.outcome.peak_bytes = one.outcome.peak_bytes.max(both);
            }
            if goes_on {
                // Every question goes on from the answer before it.
                one.context = Some(fork);
            }
        }
        Ok(())
    }
}

impl Ready<'_> {
    fn context(&self) -> &Context {
        self.context.as_ref().expect(ASKED_ONCE)
    }

    /// What came of it when all questions were answered.
    fn outcome(self) -> Outcome {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        Outcome {
            score: 100.0 * mean(&self.scores),
            read_share: (!self.shares.is_empty()).then(|| mean(&self.shares)),
            ..self.outcome
        }
    }
}

impl Outcome {
    /// Counts an answer that was written alone.
    fn note_speed(&mut self, generated: &Generated) {
        self.decode_tokens += generated.ids.len().saturating_sub(1);
        self.decode_seconds += seconds(generated.decode_time);
    }
}
