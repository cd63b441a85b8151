//! A text that goes on: `continuation` and `drift`.

use std::time::Instant;

use longview_engine::sampling::Rng;
use longview_engine::{Control, EndOfText, GenerateOptions};
use longview_kv::{Context, Segment, Wanted};
use longview_text::Specials;

use super::reading::{Compressed, Lengths, Reading, all_or_refused};
use super::{Evaluation, Measured, Subject, read_share, seconds};
use crate::divergence::divergence_of;
use crate::draw::below;
use crate::error::EvalError;
use crate::outcome::{Case, Measure, Outcome};
use crate::setup::Setup;
use crate::windows::log_softmax;

/// Tokens predicted by a continuation: an eighth of the length, at most this many.
const CONTINUATION_TOKENS: usize = 512;

/// Rows of a pass whose logits are compared.
const PASS_TOKENS: usize = 32;

/// Tokens predicted of a piece of `tokens` tokens.
fn predicted_of(tokens: usize) -> usize {
    (tokens / 8).clamp(1, CONTINUATION_TOKENS)
}

/// A text of which the beginning is read and the end predicted.
#[derive(Clone, Copy)]
struct Followed<'a> {
    case: &'a Case,
    /// The beginning.
    before: &'a [u32],
    lengths: Lengths,
    /// Tokens of the text that count as its length.
    length: usize,
    /// What the dense path has read of it.
    dense: &'a Context,
    /// Tokens read after the beginning, and what should follow each.
    rows: &'a [u32],
    targets: &'a [u32],
    /// Rows of a pass.
    at_once: usize,
}

impl Evaluation<'_> {
    /// Perplexity and divergence of the end of a piece of text whose beginning was read.
    pub(super) fn continuation(
        &self,
        case: &Case,
        setups: &[&Setup],
        measured: &mut Measured<'_>,
    ) -> Result<(), EvalError> {
        let piece = self.piece(case)?;
        let predicted = predicted_of(piece.len());
        let (read, rest) = piece.split_at(piece.len() - predicted);
        let (&last, before) = read.split_last().expect("a piece has several tokens");
        let rows: Vec<u32> = [&[last], &rest[..predicted - 1]].concat();
        let lengths = Lengths {
            prompt: before.len(),
            planned: piece.len(),
        };
        let dense = self.read(&[&Setup::dense()], before, lengths)?;
        let followed = Followed {
            case,
            before,
            lengths,
            length: piece.len(),
            dense: dense.document(),
            rows: &rows,
            targets: rest,
            at_once: PASS_TOKENS,
        };
        self.follow(&followed, setups, measured, &|outcome, compared| {
            outcome.measure = Measure::Perplexity;
            outcome.score = (compared.loss / compared.tokens as f64).exp();
            outcome.same_until = None;
        })
    }

    /// The dense path generates; every setup reads what it generated token by token, and is asked
    /// what it would have chosen. Until they first differ that is what it would have generated.
    pub(super) fn drift(
        &self,
        case: &Case,
        setups: &[&Setup],
        measured: &mut Measured<'_>,
    ) -> Result<(), EvalError> {
        let piece = self.piece(case)?;
        let limit = self.engine.model().blueprint().max_positions;
        let planned = piece.len() + self.plan.generate;
        if planned > limit {
            return Err(EvalError::TooLong {
                length: planned,
                limit,
            });
        }
        let (&last, before) = piece.split_last().expect("a piece has several tokens");
        let lengths = Lengths {
            prompt: before.len(),
            planned,
        };
        let dense = self.read(&[&Setup::dense()], before, lengths)?;
        let mut options = GenerateOptions {
            end_of_text: EndOfText::Ignored,
            ..GenerateOptions::greedy(self.plan.generate)
        };
        let go_on = &mut |_: longview_engine::Event<'_>| Control::Continue;
        let fork = &mut dense.document().fork();
        let generated = self
            .engine
            .generate(fork, &[last], &mut options, go_on)?
            .ids;
        let (_, read) = generated.split_last().unwrap_or((&0, &[]));
        let rows: Vec<u32> = [&[last], read].concat();
        let followed = Followed {
            case,
            before,
            lengths,
            length: piece.len(),
            dense: dense.document(),
            rows: &rows,
            targets: &generated,
            at_once: 1,
        };
        self.follow(&followed, setups, measured, &|outcome, compared| {
            outcome.decode_tokens = rows.len();
            outcome.decode_seconds = compared.seconds;
        })
    }

    /// Reads the beginning of a text under every setup and compares what is predicted of its end with
    /// what the dense path predicts; `finish` completes an outcome.
    fn follow(
        &self,
        followed: &Followed<'_>,
        setups: &[&Setup],
        measured: &mut Measured<'_>,
        finish: &dyn Fn(&mut Outcome, &Compared),
    ) -> Result<(), EvalError> {
        let Followed {
            case,
            before,
            lengths,
            length,
            dense,
            rows,
            targets,
            at_once,
        } = *followed;
        for part in self.by_reading(setups) {
            let reading = self.read(&part, before, lengths);
            let Some(mut reading) = all_or_refused(reading, &part, measured)? else {
                continue;
            };
            for setup in part {
                let held = match self.compress(setup, &mut reading, lengths) {
                    Ok(held) => held,
                    Err(error) => {
                        measured(setup, Err(error))?;
                        continue;
                    }
                };
                let mut compared = Compared::default();
                // Pairs leave between passes: one ends wherever some may be due to.
                let due = setup.methods().keep().and_then(|keep| keep.when.decode);
                let at_once = due.map_or(at_once, |every| every.min(at_once));
                let mut contexts = [held.context.fork(), dense.fork()];
                // What is predicted is read as an answer is.
                contexts[0].answer_from(before.len() + 1);
                for (rows, targets) in rows.chunks(at_once).zip(targets.chunks(at_once)) {
                    self.compare(&mut contexts, rows, targets, &mut compared)?;
                }
                let mut outcome = compared.outcome(case, setup, &reading, &held, length);
                outcome.read_share = read_share(&contexts[0]);
                finish(&mut outcome, &compared);
                measured(setup, Ok(outcome))?;
            }
        }
        Ok(())
    }

    /// Tokens that are read before anything is predicted, of a piece of `tokens` tokens for `subject`.
    pub(super) fn read_of_piece(&self, subject: Subject, tokens: usize) -> usize {
        let predicted = match subject {
            Subject::Continuation => predicted_of(tokens),
            _ => 0,
        };
        tokens - predicted - 1
    }

    /// A piece of the text, drawn, of the length of `case`, with what a text begins with.
    pub(super) fn piece(&self, case: &Case) -> Result<Vec<u32>, EvalError> {
        let tokenizer = self.engine.tokenizer();
        let tokens = tokenizer.encode(&self.material.text, Specials::AsText)?;
        let prefix = tokenizer.prefix_ids();
        let count = case.length.saturating_sub(prefix.len()).max(1);
        if case.length < 16 {
            return Err(EvalError::TooShortForTask {
                task: case.task.clone(),
                length: case.length,
                least: 16,
            });
        }
        if count > tokens.len() {
            return Err(EvalError::TextTooShort {
                task: case.task.clone(),
                length: case.length,
                tokens: tokens.len(),
            });
        }
        let mut rng = Rng::new(self.seed(case));
        let start = below(&mut rng, tokens.len() - count + 1);
        Ok([prefix, &tokens[start..start + count]].concat())
    }

    /// Both contexts read `rows`; what the first predicts of `targets` is compared with what the
    /// second, the dense path, does.
    fn compare(
        &self,
        contexts: &mut [Context; 2],
        rows: &[u32],
        targets: &[u32],
        compared: &mut Compared,
    ) -> Result<(), EvalError> {
        let mut logits = Vec::with_capacity(2);
        for (at, context) in contexts.iter_mut().enumerate() {
            let segment = Segment {
                context: &mut *context,
                tokens: rows,
                wanted: Wanted::All,
            };
            let start = Instant::now();
            logits.push(self.engine.pass([segment])?.logits().to_vec());
            if at == 0 {
                compared.seconds += seconds(start.elapsed());
            }
            if context.keep_is_due_in_decode() {
                self.engine.compress(context)?;
            }
        }
        let vocab = logits[0].len() / rows.len();
        let (mut q, mut p) = (Vec::new(), Vec::new());
        for (at, &target) in targets.iter().enumerate() {
            log_softmax(&logits[0][at * vocab..(at + 1) * vocab], &mut q);
            log_softmax(&logits[1][at * vocab..(at + 1) * vocab], &mut p);
            compared.add(&q, &p, target);
        }
        Ok(())
    }
}

/// Sums over the tokens compared so far.
#[derive(Default)]
struct Compared {
    tokens: usize,
    /// Negative log-likelihood of the text, in nats.
    loss: f64,
    divergence: f64,
    /// Tokens that both put first.
    same: usize,
    /// Tokens before the first that they do not.
    same_until: usize,
    seconds: f64,
}

impl Compared {
    fn add(&mut self, q: &[f64], p: &[f64], target: u32) {
        let (divergence, same) = divergence_of(q, p);
        if same && self.same == self.tokens {
            self.same_until += 1;
        }
        self.tokens += 1;
        self.same += usize::from(same);
        self.divergence += divergence;
        self.loss -= q[target as usize];
    }

    fn outcome(
        &self,
        case: &Case,
        setup: &Setup,
        reading: &Reading,
        held: &Compressed,
        tokens: usize,
    ) -> Outcome {
        Outcome {
            case: case.clone(),
            setup: setup.to_string(),
            measure: Measure::SameToken,
            score: 100.0 * self.same as f64 / self.tokens as f64,
            divergence: Some(self.divergence / self.tokens as f64),
            same_until: Some(self.same_until),
            read_share: None,
            tokens,
            bytes_held: held.bytes_held,
            peak_bytes: held.peak_bytes,
            prefill_seconds: reading.seconds,
            compression_seconds: held.seconds,
            decode_tokens: 0,
            decode_seconds: 0.0,
            answers: Vec::new(),
        }
    }
}
