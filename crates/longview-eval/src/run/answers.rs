//! Tasks with questions and answers.

use longview_engine::{Control, GenerateOptions, Generated};
use longview_kv::Context;

use super::{Evaluation, Lengths, Measured, Reading, all_or_refused, read_share, seconds};
use crate::error::EvalError;
use crate::outcome::{Case, Measure, Outcome, Sight};
use crate::prompt::Prompt;
use crate::setup::Setup;
use crate::task::{Question, Sample, Task};

impl Evaluation<'_> {
    /// Asks the questions of one sample under every one of `setups`.
    pub(super) fn ask(
        &self,
        task: &Task,
        case: &Case,
        setups: &[&Setup],
        measured: &mut Measured<'_>,
    ) -> Result<(), EvalError> {
        let making = self.making(case.depth);
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
        let lengths = Lengths {
            prompt: prompt.document.len() + seen,
            planned: (prompt.document.len() + questions + answers).min(limit),
        };
        for part in self.by_reading(setups) {
            let reading = self.read(&part, &prompt.document, lengths);
            let Some(reading) = all_or_refused(reading, &part, measured)? else {
                continue;
            };
            for setup in part {
                measured(
                    setup,
                    self.answer(case, setup, &sample, &prompt, &reading, lengths),
                )?;
            }
        }
        Ok(())
    }

    fn answer(
        &self,
        case: &Case,
        setup: &Setup,
        sample: &Sample,
        prompt: &Prompt,
        reading: &Reading,
        lengths: Lengths,
    ) -> Result<Outcome, EvalError> {
        let mut context = reading.context.fork();
        match case.question {
            Sight::Unseen => self.compress(setup, &mut context, lengths)?,
            // It is compressed when the first question has been read.
            Sight::Seen => self.put_in_charge(setup, &mut context, lengths)?,
        }
        let asked = sample.questions.iter().zip(&prompt.questions);
        let (mut scores, mut shares) = (Vec::new(), Vec::new());
        let mut outcome = Outcome {
            case: case.clone(),
            setup: setup.to_string(),
            measure: Measure::Recall,
            score: 0.0,
            divergence: None,
            same_until: None,
            read_share: None,
            tokens: prompt.tokens(),
            bytes_held: self.held(setup, &context),
            peak_bytes: reading.peak_bytes,
            prefill_seconds: reading.seconds,
            compression_seconds: 0.0,
            decode_tokens: 0,
            decode_seconds: 0.0,
            answers: Vec::new(),
        };
        for (index, (question, tokens)) in asked.enumerate() {
            let mut fork;
            let asked = match case.question {
                Sight::Unseen => {
                    fork = context.fork();
                    &mut fork
                }
                // A conversation: every question goes on from the answer before it.
                Sight::Seen => &mut context,
            };
            let generated = self.generate(asked, tokens, question)?;
            shares.extend(read_share(asked));
            if index == 0 && case.question == Sight::Seen {
                outcome.bytes_held = context.kv_bytes();
            }
            scores.push(question.scorer.score(&generated.text, &question.answers));
            outcome.decode_tokens += generated.ids.len().saturating_sub(1);
            outcome.decode_seconds += seconds(generated.decode_time);
            outcome.answers.push(generated.text);
        }
        let report = context.keep_report();
        outcome.compression_seconds = report.map_or(0.0, |report| seconds(report.time));
        if !shares.is_empty() {
            outcome.read_share = Some(shares.iter().sum::<f64>() / shares.len() as f64);
        }
        outcome.score = 100.0 * scores.iter().sum::<f64>() / scores.len() as f64;
        Ok(outcome)
    }

    fn generate(
        &self,
        context: &mut Context,
        question: &[u32],
        asked: &Question,
    ) -> Result<Generated, EvalError> {
        let mut options = GenerateOptions::greedy(asked.max_tokens);
        let go_on = &mut |_: longview_engine::Event<'_>| Control::Continue;
        Ok(self
            .engine
            .generate(context, question, &mut options, go_on)?)
    }
}
