//! The keep stage: when a context's keep method decides, and what memory it will take.

use std::sync::Arc;
use std::time::Instant;

use longview_kernels::Exec;
use longview_kv::keep::{
    AttentionOf, AttentionShape, Compression, Keep, KeepBytes, Needs, Question, Repeated,
    Repetition, Scored, When,
};
use longview_kv::read::Read;
use longview_kv::{Context, KvError, KvForms, RopeSet, Segment, Wanted, largest};
use longview_text::{AskFrame, Moment, Specials};

use crate::cost::Operations;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::pass::Losses;
use crate::plan::MemoryPlan;

/// Tokens before a part that say where to begin to repeat.
const LEAD_TOKENS: usize = 8;

/// What is done to a context whose blocks must be in memory.
type Act<T> = fn(&mut Context, &Exec, &dyn AttentionOf) -> Result<T, KvError>;

/// A model with its words.
struct Reader<'a> {
    engine: &'a Engine,
}

impl AttentionOf for Reader<'_> {
    fn shape(&self, layer: usize) -> AttentionShape {
        self.engine.model().shape(layer)
    }

    fn rotate(&self, layer: usize, set: RopeSet, positions: isize, vectors: &mut [f32]) {
        self.engine.model().rotate(layer, set, positions, vectors);
    }

    fn fingerprint(&self) -> Option<&str> {
        Some(self.engine.model().fingerprint())
    }

    fn spelling(&self, token: u32) -> Option<Vec<u8>> {
        self.engine.tokenizer().token_bytes(token)
    }
}

impl Engine {
    /// What a context of `planned_tokens` tokens will need, `prompt_tokens` of them a prompt, in which
    /// `keep` decides what stays, in the form `store` where that is not the engine's, and `read` chooses from that.
    ///
    /// # Errors
    /// As [`Keep::bytes`].
    pub(crate) fn plan_keeping(
        &self,
        keep: &Keep,
        read: Option<&Read>,
        store: Option<KvForms>,
        prompt_tokens: usize,
        planned_tokens: usize,
    ) -> Result<MemoryPlan, EngineError> {
        let held = |bytes: &KeepBytes| {
            let index = read.map_or(0, |read| self.index_bytes_beside(read, store, bytes.peak));
            bytes.peak + index
        };
        let mut plan = self.plan_in(store, planned_tokens);
        let generated = planned_tokens.saturating_sub(prompt_tokens);
        let bytes = self.keep_bytes(keep, store, prompt_tokens, generated)?;
        // It is in memory while the method decides, whatever a store could hold.
        (plan.kv, plan.kv_least) = (held(&bytes), held(&bytes));
        let fixed = plan.program + plan.index + plan.weights + plan.scratch;
        plan.scratch += bytes.scratch;
        if let Some(limit) = plan.limit {
            let fits = |&tokens: &usize| {
                let prompt = tokens.saturating_sub(generated);
                let bytes = self.keep_bytes(keep, store, prompt, generated);
                bytes.is_ok_and(|bytes| fixed + held(&bytes) + bytes.scratch <= limit)
            };
            plan.longest_context = largest(plan.model_tokens, fits);
        }
        Ok(plan)
    }

    /// Lets `keep` decide which pairs of `context` stay, whose prompt will have `prompt_tokens`
    /// tokens: while it is read where the method allows that, at its end, and while text is
    /// generated where the method is told to. What the method needs to know is gathered from here
    /// on, so the tokens it needs must be read after this.
    ///
    /// # Errors
    /// [`longview_kv::KvError::KeepRefused`] where the method cannot be used.
    pub fn keep(
        &self,
        context: &mut Context,
        keep: &Arc<Keep>,
        prompt_tokens: usize,
    ) -> Result<(), EngineError> {
        Ok(context.keep(keep, prompt_tokens, &self.reader())?)
    }

    /// Refuses a method that lets a text be longer than the model's positions, where what is held
    /// at once is as well.
    pub(crate) fn check_endless(
        &self,
        keep: &Keep,
        prompt_tokens: usize,
    ) -> Result<(), EngineError> {
        let limit = self.model().blueprint().max_positions;
        let When { block, decode } = keep.when;
        let (Some(block), Some(decode)) = (block, decode) else {
            return Ok(());
        };
        let slots = keep.slots(self.model().layout(), prompt_tokens)?;
        let most = slots + block.max(decode) + self.chunk_tokens();
        if slots <= prompt_tokens && most > limit {
            return Err(EngineError::Kv(KvError::KeepRefused {
                method: keep.text.clone(),
                why: format!(
                    "it holds up to {most} tokens at once, but the model has {limit} positions; give a \
                     smaller budget"
                ),
            }));
        }
        Ok(())
    }

    /// The model with its words, as keep methods see it.
    fn reader(&self) -> Reader<'_> {
        Reader { engine: self }
    }

    /// The same, gathering what `needs` says as well: so that forks can be given other methods.
    ///
    /// # Errors
    /// As [`Engine::keep`].
    pub fn keep_with(
        &self,
        context: &mut Context,
        keep: &Arc<Keep>,
        needs: Needs,
        prompt_tokens: usize,
    ) -> Result<(), EngineError> {
        Ok(context.keep_with(keep, needs, prompt_tokens, &self.reader())?)
    }

    /// Compresses `context` now, whatever its length; what fits the budget stays as it is.
    ///
    /// # Errors
    /// As [`Context::compress`].
    pub fn compress(&self, context: &mut Context) -> Result<Compression, EngineError> {
        self.act_on(Context::compress, context)
    }

    /// Scores every pair of `context` as its keep method does when it decides, for other contexts to choose
    /// from; see [`Context::score`].
    ///
    /// # Errors
    /// As [`Engine::compress`].
    pub fn score(&self, context: &mut Context) -> Result<Option<Arc<Scored>>, EngineError> {
        self.act_on(Context::score, context)
    }

    /// Lets the model repeat `context` where its method needs that, and then does `act`, computing again
    /// what was lost.
    fn act_on<T>(&self, act: Act<T>, context: &mut Context) -> Result<T, EngineError> {
        self.repeat(context)?;
        let mut losses = Losses::default();
        loop {
            let error = match act(context, self.exec(), &self.reader()) {
                Ok(done) => return Ok(done),
                Err(error) => EngineError::from(error),
            };
            let mut workspace = self.workspace();
            let contexts = std::iter::once(&mut *context);
            self.recompute(error, contexts, &mut workspace, &mut losses)?;
        }
    }

    /// Compresses a document that questions will be asked of, if its method can do that before they
    /// are known; what is read later stays whole. Returns whether it can.
    ///
    /// # Errors
    /// As [`Engine::compress`].
    pub fn compress_document(&self, context: &mut Context) -> Result<bool, EngineError> {
        let method = context.keep_method().map(|keep| keep.question);
        if method != Some(Question::Unseen) {
            return Ok(false);
        }
        self.act_on(Context::compress_document, context)?;
        context.settle();
        Ok(true)
    }

    /// Bytes that a prompt of `prompt_tokens` tokens with `generated_tokens` more will take under
    /// `keep`, in the form `store` where that is not the engine's.
    ///
    /// # Errors
    /// As [`Keep::bytes`].
    pub fn keep_bytes(
        &self,
        keep: &Keep,
        store: Option<KvForms>,
        prompt_tokens: usize,
        generated_tokens: usize,
    ) -> Result<KeepBytes, EngineError> {
        Ok(keep.bytes(
            &self.layout_in(store),
            self.model(),
            prompt_tokens,
            generated_tokens,
            self.chunk_tokens(),
            self.exec().pool.threads(),
        )?)
    }

    /// Lets the model repeat what `context` holds, part by part in forks, if its method needs to know
    /// what that looks at and does not yet; what was repeated before is not repeated again. [`Engine::compress`] does; before it this is for forks that
    /// several methods which ask for the same repetition are put in charge of.
    ///
    /// # Errors
    /// As [`Engine::pass`].
    pub fn repeat(&self, context: &mut Context) -> Result<(), EngineError> {
        let Some((Repetition { part, prefix }, open)) = context.repeats() else {
            return Ok(());
        };
        let begun = Instant::now();
        let end = context.len();
        let mut repeated = Repeated::default();
        let mut work = Operations::default();
        let turn = self.answer_opening()?;
        for first in open.step_by(part) {
            let tokens = first..(first + part).min(end);
            let words = match first == prefix {
                true => "\n\nRepeat the previous context exactly.",
                false => "\n\nRepeat the part of the previous context exactly, starting with",
            };
            let text_error = |source| EngineError::Text {
                file: self.describe().name,
                source: Box::new(source),
            };
            let words = self.tokenizer().encode(words, Specials::AsText);
            let mut input = words.map_err(text_error)?;
            if first > prefix {
                let before = first.saturating_sub(LEAD_TOKENS);
                input.extend(context.tokens().range(before..first));
            }
            input.extend(&turn);
            input.extend(context.tokens().range(tokens.clone()));
            let width = prefix + tokens.len() + input.len() / 2;
            let watching = Operations::of_watching(self.model().blueprint(), input.len(), width);
            work = work.and(self.operations(input.len(), end)).and(watching);
            repeated.tokens += input.len();
            let mut fork = context.fork();
            fork.watch_repeat(tokens, prefix)?;
            // Of about one size: a last pass of a few rows would read all weights for them.
            let passes = input.len().div_ceil(self.chunk_tokens()).max(1);
            for chunk in input.chunks(input.len().div_ceil(passes)) {
                let segment = Segment {
                    context: &mut fork,
                    tokens: chunk,
                    wanted: Wanted::Nothing,
                };
                drop(self.pass([segment])?);
            }
            if let Some(marks) = fork.take_marks() {
                context.mark(&marks)?;
            }
        }
        repeated.time = begun.elapsed();
        let speed = self.speed.lock().unwrap_or_else(|error| error.into_inner());
        repeated.predicted = speed.predict(work);
        context.repeated(repeated);
        Ok(())
    }

    /// The tokens between what a person says and the model's answer.
    fn answer_opening(&self) -> Result<Vec<u32>, EngineError> {
        let vars = self.text().template_vars(Moment::from_unix(0));
        let Ok(frame) = AskFrame::new(self.template(), &vars) else {
            // A template that cannot hold a document: the request alone has to do.
            return Ok(Vec::new());
        };
        // The letter stands for what was said.
        let parts = [("x", Specials::AsText), (&frame.tail, Specials::Parse)];
        let tokens = self.tokenizer().encode_parts(&parts);
        let tokens = tokens.map_err(|source| EngineError::Text {
            file: self.describe().name,
            source: Box::new(source),
        })?;
        Ok(tokens[1].clone())
    }

    /// Compresses `context` if its method wants to at this point of a prefill.
    pub(crate) fn keep_pace(&self, context: &mut Context) -> Result<(), EngineError> {
        if context.keep_is_due() {
            self.compress(context)?;
        }
        Ok(())
    }
}
