//! One text being written: tokens chosen from logits, and the text they are.

use std::time::{Duration, Instant};

use longview_text::{ShowSpecials, Start, StopMatcher, StreamDecoder, TextError, Tokenizer};

use super::request::{AnswerOptions, Token};
use crate::error::EngineError;
use crate::generate::{EndOfText, FinishReason, GenerateOptions};
use crate::sampling::{Choice, SamplingError, top_logprobs};

/// What a text needs beside its context.
pub(super) struct Writer {
    /// Which of its request's texts it is.
    pub(super) answer: usize,
    options: GenerateOptions,
    logprobs: Option<usize>,
    stream: StreamDecoder,
    stops: StopMatcher,
    generated: usize,
    /// What [`Writer::choose`] chose and no step has taken yet.
    chosen: Option<Result<Chosen, SamplingError>>,
    last: Option<Instant>,
    pub(super) longest_gap: Duration,
}

/// A token chosen from logits.
struct Chosen {
    id: u32,
    logprob: Option<f32>,
    top: Vec<(u32, f32)>,
}

/// What came of one step.
pub(super) struct Written {
    /// The token that was chosen.
    pub(super) token: Token,
    /// Whether the text ends with it, and text that was held back until then.
    pub(super) end: Option<(FinishReason, String)>,
}

impl Writer {
    pub(super) fn new(answer: usize, options: AnswerOptions, tokenizer: &Tokenizer) -> Writer {
        let AnswerOptions { generate, logprobs } = options;
        Writer {
            answer,
            stream: tokenizer.stream(Start::Continuation, generate.specials),
            stops: StopMatcher::new(generate.stop.clone()),
            options: generate,
            logprobs,
            generated: 0,
            chosen: None,
            last: None,
            longest_gap: Duration::ZERO,
        }
    }

    /// Tokens that may still be written.
    pub(super) fn left(&self) -> usize {
        self.options.max_tokens.saturating_sub(self.generated)
    }

    /// Chooses the next token from `logits` (`[vocabulary]`) for the step that follows; `history`
    /// holds every token so far. Texts choose independently, on any thread.
    pub(super) fn choose(&mut self, logits: &[f32], history: &[u32]) {
        self.chosen = Some(self.pick(logits, history));
    }

    fn pick(&mut self, logits: &[f32], history: &[u32]) -> Result<Chosen, SamplingError> {
        let chain = &mut self.options.chain;
        let Some(count) = self.logprobs else {
            return Ok(Chosen {
                id: chain.choose(logits, history)?,
                logprob: None,
                top: Vec::new(),
            });
        };
        let Choice { id, logprob } = chain.pick(logits, history)?;
        Ok(Chosen {
            id,
            logprob: Some(logprob),
            top: top_logprobs(logits, count)?,
        })
    }

    /// Writes the token that was chosen, or chooses it now from `logits`, `[vocabulary]`. `history`
    /// holds every token so far and `room` is how many more the context may take.
    pub(super) fn step(
        &mut self,
        logits: &[f32],
        history: &[u32],
        room: usize,
        tokenizer: &Tokenizer,
    ) -> Result<Written, EngineError> {
        let chosen = self.chosen.take();
        let Chosen { id, logprob, top } = chosen.unwrap_or_else(|| self.pick(logits, history))?;
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            self.longest_gap = self.longest_gap.max(now - last);
        }
        self.generated += 1;
        let mut token = Token {
            answer: self.answer,
            id,
            logprob,
            top,
            text: String::new(),
            ends_text: false,
        };
        if tokenizer.eos_ids().contains(&id) && self.options.end_of_text == EndOfText::Ends {
            token.ends_text = true;
            let rest = self.finish();
            return Ok(Written {
                token,
                end: Some((FinishReason::EndOfText, rest)),
            });
        }
        let text_error = |source: TextError| EngineError::Text {
            file: "the tokenizer".to_owned(),
            source: Box::new(source),
        };
        let emit = self.stops.push(&self.stream.push(id).map_err(text_error)?);
        token.text = emit.text;
        let reason = if emit.stopped {
            Some(FinishReason::Stop)
        } else if self.left() == 0 {
            Some(FinishReason::Length)
        } else if room == 0 {
            Some(FinishReason::ContextFull)
        } else {
            None
        };
        let end = reason.map(|reason| match reason {
            FinishReason::Stop => (reason, String::new()),
            _ => (reason, self.finish()),
        });
        Ok(Written { token, end })
    }

    /// The stop string that has ended the text.
    pub(super) fn stop(&self) -> Option<String> {
        self.stops.found().map(str::to_owned)
    }

    /// Ends the text early; returns what was held back.
    pub(super) fn finish(&mut self) -> String {
        let emit = self.stops.push(&self.stream.finish());
        emit.text + &self.stops.finish()
    }
}

impl AnswerOptions {
    /// Up to `max_tokens` tokens, the most likely one at every step.
    pub fn greedy(max_tokens: usize) -> AnswerOptions {
        AnswerOptions {
            generate: GenerateOptions {
                specials: ShowSpecials::Hide,
                ..GenerateOptions::greedy(max_tokens)
            },
            logprobs: None,
        }
    }
}
