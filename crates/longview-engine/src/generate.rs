//! The decode loop: from a context and the end of its prompt to new text.

use std::sync::Arc;
use std::time::{Duration, Instant};

use longview_kv::keep::Keep;
use longview_kv::{Context, Segment, Wanted};
use longview_models::Work;
use longview_text::{ShowSpecials, Start, StopMatcher};

use crate::engine::Engine;
use crate::error::EngineError;
use crate::prefill::{Control, PrefillProgress};
use crate::sampling::Chain;

/// How text is generated.
pub struct GenerateOptions {
    /// How each token is chosen.
    pub chain: Chain,
    /// The most tokens to generate.
    pub max_tokens: usize,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Whether end-of-text tokens end the answer.
    pub end_of_text: EndOfText,
    /// Whether special tokens show in the text.
    pub specials: ShowSpecials,
}

/// What an end-of-text token does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndOfText {
    /// It ends the answer.
    Ends,
    /// It is generated like any other token.
    Ignored,
}

/// What happens while text is generated.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The prompt is being read.
    Prefill(PrefillProgress),
    /// A token was chosen, and this much more text is certain: often nothing, never half a
    /// character.
    Text(&'a str),
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its text.
    EndOfText,
    /// A stop text was found.
    Stop,
    /// The most tokens asked for were generated.
    Length,
    /// The model's context is full.
    ContextFull,
    /// The caller stopped it.
    Cancelled,
}

/// What was generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The text, stop texts and special tokens left out.
    pub text: String,
    /// The ids chosen, the one that ended the text included. All but the last are part of the
    /// context now.
    pub ids: Vec<u32>,
    /// Natural logarithm of the probability the model gave to each of them.
    pub logprobs: Vec<f32>,
    /// Why it ended.
    pub finish: FinishReason,
    /// From the call to the choice of the first token.
    pub time_to_first_token: Duration,
    /// From the first token to the last.
    pub decode_time: Duration,
}

impl GenerateOptions {
    /// Up to `max_tokens` tokens, the most likely one at every step.
    pub fn greedy(max_tokens: usize) -> GenerateOptions {
        GenerateOptions {
            chain: Chain::greedy(),
            max_tokens,
            stop: Vec::new(),
            end_of_text: EndOfText::Ends,
            specials: ShowSpecials::Hide,
        }
    }
}

impl Generated {
    /// Tokens a second after the first; `None` for fewer than two.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let after_first = self.ids.len().checked_sub(1).filter(|&count| count > 0)?;
        Some(after_first as f64 / self.decode_time.as_secs_f64().max(1e-9))
    }
}

impl Engine {
    /// Reads `prompt`, the end of what the model is to continue (at least one token), into
    /// `context` and generates what follows. The context's keep method decides what stays when the
    /// prompt has been read, and then as often as it was told to; its read method plans what the
    /// generated tokens read.
    ///
    /// # Errors
    /// [`EngineError::EmptyPrompt`], errors of the prefill, and [`EngineError::Sampling`] when no
    /// token can be chosen. What was read and generated until then stays in the context.
    pub fn generate(
        &self,
        context: &mut Context,
        prompt: &[u32],
        options: &mut GenerateOptions,
        on: &mut dyn FnMut(Event<'_>) -> Control,
    ) -> Result<Generated, EngineError> {
        let start = Instant::now();
        let (&last, before) = prompt.split_last().ok_or(EngineError::EmptyPrompt)?;
        context.answer_from(context.len() + prompt.len());
        let mut generated = Generated {
            text: String::new(),
            ids: Vec::new(),
            logprobs: Vec::new(),
            finish: FinishReason::Length,
            time_to_first_token: Duration::ZERO,
            decode_time: Duration::ZERO,
        };
        // The last chunk of the prompt and its last token go in one pass, unless it is full.
        let by_blocks = |keep: &Arc<Keep>| keep.when.block.is_some();
        let whole = if context.keep_method().is_some_and(by_blocks) {
            // A keep method may be due anywhere on the way, and passes end there.
            before.len()
        } else {
            before.len() - before.len() % self.chunk_tokens()
        };
        let (chunks, rest) = prompt.split_at(whole);
        debug_assert_eq!(rest.last(), Some(&last));
        let mut progress = |progress| on(Event::Prefill(progress));
        if self.prefill(context, chunks, &mut progress)? == Control::Stop {
            generated.finish = FinishReason::Cancelled;
            return Ok(generated);
        }

        let mut history = context.tokens().to_vec();
        let mut stream = self
            .tokenizer()
            .stream(Start::Continuation, options.specials);
        let mut stops = StopMatcher::new(options.stop.clone());
        let limit = self.model().positions_of(context);
        let mut next: Vec<u32> = rest.to_vec();
        let mut first_token = None;
        let text_error = |source| EngineError::Text {
            file: self.describe().name,
            source: Box::new(source),
        };
        generated.finish = loop {
            if generated.ids.len() == options.max_tokens {
                break FinishReason::Length;
            }
            if context.len() + next.len() > limit && !generated.ids.is_empty() {
                break FinishReason::ContextFull;
            }
            history.extend_from_slice(&next);
            let segment = Segment {
                context: &mut *context,
                tokens: &next,
                wanted: Wanted::Last,
            };
            let choice = {
                let mut workspace = self.pass([segment])?;
                let choice = options.chain.pick(workspace.logits(), &history)?;
                workspace.lap(Work::Sampling);
                choice
            };
            let due = match first_token {
                None => context.keep_is_due_at_end(),
                Some(_) => context.keep_is_due_in_decode(),
            };
            first_token.get_or_insert_with(Instant::now);
            if due {
                self.compress(context)?;
            }
            generated.ids.push(choice.id);
            generated.logprobs.push(choice.logprob);
            next.clear();
            next.push(choice.id);
            let ends = self.tokenizer().eos_ids().contains(&choice.id);
            if ends && options.end_of_text == EndOfText::Ends {
                break FinishReason::EndOfText;
            }
            let piece = stream.push(choice.id).map_err(text_error)?;
            let emit = stops.push(&piece);
            generated.text.push_str(&emit.text);
            // Empty pieces too, so that the caller can stop while nothing is to be shown.
            if on(Event::Text(&emit.text)) == Control::Stop {
                break FinishReason::Cancelled;
            }
            if emit.stopped {
                break FinishReason::Stop;
            }
        };
        if generated.finish != FinishReason::Stop {
            let emit = stops.push(&stream.finish());
            let tail = emit.text + &stops.finish();
            if !tail.is_empty() {
                generated.text.push_str(&tail);
                on(Event::Text(&tail));
            }
        }
        let first = first_token.unwrap_or_else(Instant::now);
        generated.time_to_first_token = first - start;
        generated.decode_time = first.elapsed();
        Ok(generated)
    }
}
