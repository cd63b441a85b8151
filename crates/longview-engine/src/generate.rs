//! The decode loop: from a context and the end of its prompt to new text, or several side by side.

use std::sync::Arc;
use std::time::{Duration, Instant};

use longview_kv::keep::Keep;
use longview_kv::{Context, Segment, Wanted};
use longview_models::Work;
use longview_text::{ShowSpecials, Start, StopMatcher, StreamDecoder};

use crate::engine::Engine;
use crate::error::EngineError;
use crate::prefill::{Control, LastChunk, PrefillProgress};
use crate::prune::{Leaving, Prune, Pruned};
use crate::sampling::{Chain, Choice};

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
    /// Bytes of keys and values that the context held when the first token was chosen: the prompt was read,
    /// and what a keep method drops at its end was dropped.
    pub prompt_kv_bytes: u64,
    /// What left the context on the way, one after another; see [`Engine::generate_pruning`].
    pub pruned: Vec<Pruned>,
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
    fn nothing(finish: FinishReason) -> Generated {
        Generated {
            text: String::new(),
            ids: Vec::new(),
            logprobs: Vec::new(),
            finish,
            time_to_first_token: Duration::ZERO,
            decode_time: Duration::ZERO,
            prompt_kv_bytes: 0,
            pruned: Vec::new(),
        }
    }

    /// Tokens a second after the first; `None` for fewer than two.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let after_first = self.ids.len().checked_sub(1).filter(|&count| count > 0)?;
        Some(after_first as f64 / self.decode_time.as_secs_f64().max(1e-9))
    }
}

/// A text to be written and where it goes on.
pub struct Continuation<'a> {
    /// What the model has read so far.
    pub context: &'a mut Context,
    /// The end of what it is to continue, at least one token.
    pub prompt: &'a [u32],
    /// How it goes on.
    pub options: GenerateOptions,
}

/// A text being written.
struct Writing<'o> {
    options: &'o mut GenerateOptions,
    /// Every token so far.
    history: Vec<u32>,
    /// What the next pass reads.
    next: Vec<u32>,
    stream: StreamDecoder,
    stops: StopMatcher,
    /// Tokens that the context may grow to.
    limit: usize,
    /// Tokens that may be chosen.
    vocabulary: usize,
    begun: Instant,
    first_token: Option<Instant>,
    generated: Generated,
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
        self.write(context, prompt, options, None, on)
    }

    /// [`Engine::generate`] where work that the text reports as finished leaves the context while it is
    /// written, as `prune` says: its tokens are removed, what follows them is read again or moved up, and
    /// the next token is chosen from what remains. The text that is handed back is whole. What stood in
    /// the prompt stays; where the context cannot go back (a window has passed, a keep method has dropped
    /// pairs) nothing leaves.
    ///
    /// # Errors
    /// As [`Engine::generate`].
    pub fn generate_pruning(
        &self,
        context: &mut Context,
        prompt: &[u32],
        options: &mut GenerateOptions,
        prune: Prune,
        on: &mut dyn FnMut(Event<'_>) -> Control,
    ) -> Result<Generated, EngineError> {
        self.write(context, prompt, options, Some(Leaving::new(prune)), on)
    }

    fn write(
        &self,
        context: &mut Context,
        prompt: &[u32],
        options: &mut GenerateOptions,
        mut leaving: Option<Leaving>,
        on: &mut dyn FnMut(Event<'_>) -> Control,
    ) -> Result<Generated, EngineError> {
        let begun = Instant::now();
        let limited = self.ledger().limit() != u64::MAX;
        // Recurrent layers keep their state at the end of chunks of the usual size.
        let most = match limited && !context.layout().is_recurrent() {
            true => LastPass::AsMemoryAllows,
            false => LastPass::Usual,
        };
        let Some(rest) = self.read_whole_chunks(context, prompt, most, on)? else {
            return Ok(Generated::nothing(FinishReason::Cancelled));
        };
        let mut writing = Writing::new(self, context, rest, options, begun);
        let finish = loop {
            if let Some(reason) = writing.is_over(context) {
                break reason;
            }
            let choice = {
                let mut workspace = match self.pass([writing.segment(context)]) {
                    Ok(workspace) => workspace,
                    Err(error) => {
                        self.smaller_pass(error, writing.next.len())?;
                        let before = writing.next.len() - 1;
                        let go_on = &mut |_| Control::Continue;
                        self.prefill(context, &writing.next[..before], go_on)?;
                        writing.next.drain(..before);
                        continue;
                    }
                };
                let choice = writing.choose(workspace.logits())?;
                workspace.lap(Work::Sampling);
                choice
            };
            if let Some(reason) = writing.take(self, context, choice, on)? {
                break reason;
            }
            if let Some(leaving) = &mut leaving {
                let left = leaving.leave(self, context)?;
                writing.generated.pruned.extend(left);
            }
        };
        Ok(writing.finish(finish, on))
    }

    /// Continues several texts side by side, a token of each in one pass. Every text is what
    /// [`Engine::generate`] makes of it alone, to the bit; its times are those of all together.
    ///
    /// # Errors
    /// As [`Engine::generate`], of the first text that has one.
    pub fn generate_together(
        &self,
        texts: &mut [Continuation<'_>],
    ) -> Result<Vec<Generated>, EngineError> {
        let begun = Instant::now();
        let on = &mut |_: Event<'_>| Control::Continue;
        let mut contexts = Vec::with_capacity(texts.len());
        let mut writings = Vec::with_capacity(texts.len());
        for text in texts {
            let usual = LastPass::Usual;
            let rest = self.read_whole_chunks(text.context, text.prompt, usual, on)?;
            let rest = rest.expect("nobody stops the reading");
            writings.push(Writing::new(
                self,
                text.context,
                rest,
                &mut text.options,
                begun,
            ));
            contexts.push(&mut *text.context);
        }
        let mut ends: Vec<Option<FinishReason>> = vec![None; writings.len()];
        loop {
            let mut going = Vec::new();
            for (at, (writing, context)) in writings.iter().zip(&contexts).enumerate() {
                if ends[at].is_none() {
                    ends[at] = writing.is_over(context);
                }
                if ends[at].is_none() {
                    going.push(at);
                }
            }
            if going.is_empty() {
                break;
            }
            let mut left = &*going;
            while !left.is_empty() {
                // What one pass of a prefill may have, and one text at least.
                let mut rows = 0;
                let fits = |&at: &usize| {
                    rows += writings[at].next.len();
                    rows <= self.chunk_tokens()
                };
                let count = left.iter().copied().take_while(fits).count().max(1);
                let (now, later) = left.split_at(count);
                left = later;
                let picked = contexts.iter_mut().zip(&writings).enumerate();
                let picked = picked.filter(|(at, _)| now.contains(at));
                let segments = picked.map(|(_, (context, writing))| writing.segment(context));
                let mut choices: Vec<Choosing<'_, '_>> = Vec::with_capacity(count);
                let mut workspace = self.pass(segments)?;
                let vocabulary = workspace.logits().len() / count;
                let logits = workspace.logits().chunks_exact(vocabulary);
                let chosen = writings.iter_mut().enumerate();
                let chosen = chosen.filter(|(at, _)| now.contains(at));
                for ((_, writing), logits) in chosen.zip(logits) {
                    choices.push((writing, logits, None));
                }
                let pool = &self.exec().pool;
                pool.for_each(&mut choices, |_, (writing, logits, choice), _| {
                    *choice = Some(writing.choose(logits));
                });
                let choices: Vec<_> = choices.into_iter().map(|(_, _, choice)| choice).collect();
                workspace.lap(Work::Sampling);
                drop(workspace);
                for (&at, choice) in now.iter().zip(choices) {
                    let choice = choice.expect("every one was made")?;
                    ends[at] = writings[at].take(self, contexts[at], choice, on)?;
                }
            }
        }
        let ended = writings.into_iter().zip(ends);
        let ended = ended.map(|(writing, end)| {
            let end = end.expect("the loop ends when every text has");
            writing.finish(end, on)
        });
        Ok(ended.collect())
    }

    /// Reads those chunks of `prompt` that need a pass of their own and returns the rest, its last
    /// token included; nothing when `on` stopped the reading.
    fn read_whole_chunks<'p>(
        &self,
        context: &mut Context,
        prompt: &'p [u32],
        last: LastPass,
        on: &mut dyn FnMut(Event<'_>) -> Control,
    ) -> Result<Option<&'p [u32]>, EngineError> {
        let (_, before) = prompt.split_last().ok_or(EngineError::EmptyPrompt)?;
        context.answer_from(context.len() + prompt.len());
        let by_blocks = |keep: &Arc<Keep>| keep.when.block.is_some();
        let decides = context.keep_method().is_some_and(by_blocks)
            && context.next_pass(prompt.len(), self.chunk_tokens()) < prompt.len();
        // The last chunk of the prompt and its last token go in one pass, unless it is full.
        let (whole, left) = match last {
            // A keep method is due on the way, and passes end there.
            _ if decides => (before.len(), LastChunk::Read),
            LastPass::Usual => (
                before.len() - before.len() % self.chunk_tokens(),
                LastChunk::Read,
            ),
            LastPass::AsMemoryAllows => (before.len(), LastChunk::LeftUnlessFull),
        };
        let mut progress = |progress| on(Event::Prefill(progress));
        let (read, done) = self.read_chunks(context, &prompt[..whole], left, &mut progress)?;
        let rest = &prompt[done..];
        Ok((read == Control::Continue).then_some(rest))
    }
}

/// The most tokens of a prompt in the pass that begins its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LastPass {
    /// A chunk.
    Usual,
    /// What a pass may have of a context whose blocks are away, each of which every pass reads.
    AsMemoryAllows,
}

/// A text, the logits of its next token, `[vocabulary]`, and what was chosen of them.
type Choosing<'w, 'o> = (
    &'w mut Writing<'o>,
    &'w [f32],
    Option<Result<Choice, EngineError>>,
);

impl<'o> Writing<'o> {
    /// A text that begins with `next`, which is read but for `context`.
    fn new(
        engine: &Engine,
        context: &Context,
        next: &[u32],
        options: &'o mut GenerateOptions,
        begun: Instant,
    ) -> Writing<'o> {
        let mut history = context.tokens().to_vec();
        history.extend_from_slice(next);
        Writing {
            history,
            next: next.to_vec(),
            stream: engine
                .tokenizer()
                .stream(Start::Continuation, options.specials),
            stops: StopMatcher::new(options.stop.clone()),
            limit: engine.model().positions_of(context),
            vocabulary: engine.vocabulary(),
            options,
            begun,
            first_token: None,
            generated: Generated::nothing(FinishReason::Length),
        }
    }

    /// Why no further token is to be chosen, if none is.
    fn is_over(&self, context: &Context) -> Option<FinishReason> {
        if self.generated.ids.len() == self.options.max_tokens {
            return Some(FinishReason::Length);
        }
        let is_full = context.len() + self.next.len() > self.limit;
        (is_full && !self.generated.ids.is_empty()).then_some(FinishReason::ContextFull)
    }

    /// What the next pass reads.
    fn segment<'a>(&'a self, context: &'a mut Context) -> Segment<'a> {
        Segment {
            context,
            tokens: &self.next,
            wanted: Wanted::Last,
        }
    }

    /// Chooses the next token from `logits`, `[vocabulary]`.
    fn choose(&mut self, logits: &[f32]) -> Result<Choice, EngineError> {
        let known = &logits[..self.vocabulary];
        Ok(self.options.chain.pick(known, &self.history)?)
    }

    /// Takes the token that was chosen after a pass over `context`, whose keep method decides now if
    /// it is due. Returns why the text ends, if it does.
    fn take(
        &mut self,
        engine: &Engine,
        context: &mut Context,
        choice: Choice,
        on: &mut dyn FnMut(Event<'_>) -> Control,
    ) -> Result<Option<FinishReason>, EngineError> {
        let due = match self.first_token {
            None => context.end_prompt(),
            Some(_) => context.keep_is_due_in_decode(),
        };
        if due {
            engine.compress(context)?;
        }
        // Nobody has the first token before what is decided at the end of the prompt.
        if self.first_token.is_none() {
            self.generated.prompt_kv_bytes = context.kv_bytes();
            self.first_token = Some(Instant::now());
        }
        self.generated.ids.push(choice.id);
        self.generated.logprobs.push(choice.logprob);
        self.history.push(choice.id);
        self.next.clear();
        self.next.push(choice.id);
        let ends = engine.tokenizer().eos_ids().contains(&choice.id);
        if ends && self.options.end_of_text == EndOfText::Ends {
            return Ok(Some(FinishReason::EndOfText));
        }
        let piece = self.stream.push(choice.id);
        let piece = piece.map_err(|source| EngineError::Text {
            file: engine.describe().name,
            source: Box::new(source),
        })?;
        let emit = self.stops.push(&piece);
        self.generated.text.push_str(&emit.text);
        // Empty pieces too, so that the caller can stop while nothing is to be shown.
        if on(Event::Text(&emit.text)) == Control::Stop {
            return Ok(Some(FinishReason::Cancelled));
        }
        Ok(emit.stopped.then_some(FinishReason::Stop))
    }

    /// What was generated, when it ends for the reason `finish`.
    fn finish(
        mut self,
        finish: FinishReason,
        on: &mut dyn FnMut(Event<'_>) -> Control,
    ) -> Generated {
        if finish != FinishReason::Stop {
            let emit = self.stops.push(&self.stream.finish());
            let tail = emit.text + &self.stops.finish();
            if !tail.is_empty() {
                self.generated.text.push_str(&tail);
                on(Event::Text(&tail));
            }
        }
        let first = self.first_token.unwrap_or_else(Instant::now);
        Generated {
            finish,
            time_to_first_token: first - self.begun,
            decode_time: first.elapsed(),
            ..self.generated
        }
    }
}
