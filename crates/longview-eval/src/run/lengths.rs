//! What can be measured at a length: tasks that can be made of so many tokens, setups that can be used, and
//! beside them floors that hold as many bytes.

use longview_engine::EngineError;
use longview_kv::{BLOCK_TOKENS, KvForms, KvLayout};

use super::{Evaluation, Subject};
use crate::error::EvalError;
use crate::outcome::Sight;
use crate::setup::{Setup, brief};

/// Slots that the heads of a stream of pairs are given at a time.
const STEP: usize = 16;

/// This part of the bytes may be more: a whole page is not left out because there is no room for the few bytes
/// that say where its pairs are from.
const MORE: u64 = 200;

/// What is measured at one length.
pub(super) struct AtLength {
    /// Tokens of a sample.
    pub(super) length: usize,
    pub(super) subjects: Vec<Subject>,
    /// The dense path first, each once.
    pub(super) setups: Vec<Setup>,
}

/// A task that is not measured at a length, because no sample can be made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// The task.
    pub task: String,
    /// Tokens of a sample.
    pub length: usize,
    /// What stands in the way.
    pub why: String,
}

impl Evaluation<'_> {
    /// What the plan has at every length, and the tasks of it that cannot be made there.
    ///
    /// # Errors
    /// Why a task cannot be made, where it is the only one or no other is left.
    pub(super) fn plan_lengths(&self) -> Result<(Vec<AtLength>, Vec<LeftOut>), EvalError> {
        let (mut all, mut left_out) = (Vec::new(), Vec::new());
        let mut first = None;
        for &length in &self.plan.lengths {
            let mut subjects = Vec::new();
            for &subject in &self.plan.subjects {
                let error = match self.check_length(subject, length) {
                    Ok(()) => {
                        subjects.push(subject);
                        continue;
                    }
                    Err(error) if self.plan.subjects.len() > 1 && error.is_of_length() => error,
                    Err(error) => return Err(error),
                };
                left_out.push(LeftOut {
                    task: subject.name().to_owned(),
                    length,
                    why: error.to_string(),
                });
                first.get_or_insert(error);
            }
            let setups = self.setups_at(length, &subjects)?;
            all.push(AtLength {
                length,
                subjects,
                setups,
            });
        }
        let is_empty = all.iter().all(|at| at.subjects.is_empty());
        match first {
            Some(error) if is_empty => Err(error),
            _ => Ok((all, left_out)),
        }
    }

    /// Asks the engine for every setup that was asked for, as far as it answers without computing.
    ///
    /// # Errors
    /// [`EvalError::Unusable`] with the first that is refused.
    pub fn check_setups(&self) -> Result<(), EvalError> {
        for at in &self.lengths {
            let Some(&subject) = at.subjects.first() else {
                continue;
            };
            let tokens = self.prompt_tokens(subject, at.length)?;
            for setup in &self.plan.setups {
                match self.check_setup(setup, tokens, at.length) {
                    Ok(()) => {}
                    Err(error) if error.is_request_error() => {
                        return Err(EvalError::Unusable {
                            setup: brief(&setup.to_string()),
                            length: at.length,
                            why: error.to_string(),
                        });
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Puts the methods of `setup` in charge of a context that has read nothing.
    fn check_setup(&self, setup: &Setup, tokens: usize, planned: usize) -> Result<(), EvalError> {
        let methods = setup.methods();
        let forms = methods.kv_forms().unwrap_or(self.engine.kv_forms());
        let mut context = self.engine.new_context_as(planned, forms)?;
        if let Some(prefill) = methods.prefill() {
            context
                .attend_by(prefill, tokens)
                .map_err(EngineError::from)?;
        }
        if let Some(keep) = methods.keep() {
            self.engine.keep(&mut context, keep, tokens)?;
        }
        if let Some(read) = methods.read() {
            context.read_by(read).map_err(EngineError::from)?;
        }
        Ok(())
    }

    /// Whether samples of `subject` can be made of `length` tokens.
    fn check_length(&self, subject: Subject, length: usize) -> Result<(), EvalError> {
        let depth = self.depths_of(subject).first().copied().flatten();
        let Subject::Task(task) = subject else {
            self.piece(&self.case(subject, length, depth, 0))?;
            let limit = self.engine.model().blueprint().max_positions;
            let length = length + self.generated(subject).unwrap_or(0);
            return match length > limit {
                true => Err(EvalError::TooLong { length, limit }),
                false => Ok(()),
            };
        };
        // Those of other shares as well: all shares are to leave out the same.
        for sample in 0..self.plan.samples {
            let case = self.case(subject, length, depth, sample);
            let making = self.making(&case);
            let least = self.prompter.least(task, &making, self.seed(&case))?;
            if least > length {
                return Err(EvalError::TooShortForTask {
                    task: task.name.to_owned(),
                    length,
                    least,
                });
            }
            // They differ by their words, and by no more than that.
            if least + least / 4 <= length {
                break;
            }
        }
        Ok(())
    }

    /// Tokens of the first sample of `subject` that a setup compresses.
    fn prompt_tokens(&self, subject: Subject, length: usize) -> Result<usize, EvalError> {
        let depth = self.depths_of(subject).first().copied().flatten();
        let case = self.case(subject, length, depth, 0);
        let Subject::Task(task) = subject else {
            return Ok(self.read_of_piece(subject, self.piece(&case)?.len()));
        };
        let making = self.making(&case);
        let (_, prompt) = self
            .prompter
            .fitted(task, &making, self.seed(&case), length)?;
        let question = match self.plan.question {
            Sight::Unseen => 0,
            Sight::Seen => prompt.questions[0].len(),
        };
        Ok(prompt.document.len() + question)
    }

    /// The dense path, the plan's setups and, where it says so, floors beside each of them.
    fn setups_at(&self, length: usize, subjects: &[Subject]) -> Result<Vec<Setup>, EvalError> {
        let mut all = vec![Setup::dense()];
        let mut add = |setup: Setup| {
            if !all.contains(&setup) {
                all.push(setup);
            }
        };
        let tokens = match subjects.first() {
            Some(&subject) if self.plan.floors => Some(self.prompt_tokens(subject, length)?),
            _ => None,
        };
        for setup in &self.plan.setups {
            add(setup.clone());
            if let Some(tokens) = tokens {
                let floors = setup.floors(&|forms| self.share_as_large(forms, tokens));
                floors.into_iter().for_each(&mut add);
            }
        }
        Ok(all)
    }

    /// The share of a prompt of `tokens` tokens that a keep method over the engine's own form can leave in the
    /// bytes that `forms` hold all of it in; 1 where these hold more than the engine's own.
    fn share_as_large(&self, forms: KvForms, tokens: usize) -> f64 {
        let held = |forms| held_bytes(&self.engine.model().blueprint().kv_layout(forms), tokens);
        let bytes = held(forms);
        if bytes >= held(self.engine.kv_forms()) {
            return 1.0;
        }
        let fits = |pairs: usize| {
            let setup = Setup::parse(&format!("keep=streaming-llm(budget={pairs})"));
            let setup = setup.expect("a budget of some pairs is one");
            let keep = setup.methods().keep();
            keep.is_some_and(|keep| {
                let told = self.engine.keep_bytes(keep, None, tokens, 0);
                told.is_ok_and(|told| told.steady <= bytes + bytes / MORE)
            })
        };
        let (mut most, mut beyond) = (STEP, tokens.max(STEP + 1));
        if !fits(most) {
            return 0.0;
        }
        while beyond - most > 1 {
            let middle = most + (beyond - most) / 2;
            match fits(middle) {
                true => most = middle,
                false => beyond = middle,
            }
        }
        // What is foretold has room for all heads to begin a step they do not fill: these fill theirs.
        let most = most.next_multiple_of(STEP);
        most as f64 / tokens as f64
    }
}

/// Bytes that a context of `tokens` tokens holds between passes, all of them kept.
pub(super) fn held_bytes(layout: &KvLayout, tokens: usize) -> u64 {
    let chunk = BLOCK_TOKENS - 1;
    let full = layout.filled_bytes(tokens.next_multiple_of(BLOCK_TOKENS));
    let reading = layout.context_bytes(tokens, chunk);
    // Windows that the text does not fit have room for such a chunk then: two blocks that need not be there, and
    // a third where none is open.
    let block = layout.context_bytes(tokens, chunk + BLOCK_TOKENS) - reading;
    let spare = match tokens % BLOCK_TOKENS {
        0 => 3,
        _ => 2,
    };
    (reading - spare * block).max(full)
}
