//! An open model and the methods chosen: what every command that computes begins with.

mod saving;

use std::sync::Arc;
use std::time::Instant;

use longview::methods::{Methods, Stage};
use longview::models::ModelError;
use longview::text::{Moment, TextError};
use longview::weights::WeightFile;
use longview::{
    BLOCK_TOKENS, Context, Control, Engine, EngineError, EngineOptions, ModelSource,
    PrefillProgress, Reuse, StorePlace, human_bytes,
};
use serde_json::{Map, Value, json};

use crate::args::{EngineArgs, Fallback, Format, GenerationArgs, MethodArgs, StoreArgs};
use crate::date;
use crate::documents::Documents;
use crate::failure::Failure;
use crate::interrupt;
use crate::machine::peak_memory_bytes;
use crate::progress::Progress;
use crate::prompt::{DocumentPrompt, Earlier, template_notice};
use crate::saved::Saved;
use crate::size::human_count;

/// A model ready to run.
pub(crate) struct Session {
    /// The engine.
    pub(crate) engine: Arc<Engine>,
    /// What was chosen for every stage.
    pub(crate) methods: Methods,
    /// What the user should know, in the order in which it turned up.
    pub(crate) notices: Vec<String>,
    seconds_to_load: f64,
    /// Whether what is read outlives this process.
    keeps: Keeps,
    /// The records of contexts, where they are kept.
    pub(crate) saved: Option<Saved>,
    /// Where contexts are kept, if anywhere.
    store_place: Option<StorePlace>,
    /// Why the last context that could not be kept was not, which is told once.
    not_kept: Option<String>,
    /// Whether what a keep method has left of a text is gone on with, so that nothing of it is computed.
    pub(crate) goes_on: bool,
}

/// Whether what is read outlives this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keeps {
    Contexts,
    Nothing,
}

impl Session {
    /// Checks the methods and loads the model. Nothing is kept from one run to the next.
    pub(crate) fn open(engine: &EngineArgs, methods: &MethodArgs) -> Result<Session, Failure> {
        let methods = methods.methods()?;
        let options = engine.options(&methods)?;
        Session::load(engine, methods, options, Vec::new())
    }

    /// The same for commands that keep what they read, and take over what was read before.
    pub(crate) fn open_keeping(
        engine: &EngineArgs,
        methods: &MethodArgs,
        store: &StoreArgs,
    ) -> Result<Session, Failure> {
        Session::load_keeping(engine, methods.methods()?, store)
    }

    /// The same for a conversation, which has methods that act between its turns.
    pub(crate) fn open_conversation(
        engine: &EngineArgs,
        methods: &MethodArgs,
        store: &StoreArgs,
    ) -> Result<Session, Failure> {
        Session::load_keeping(engine, methods.in_conversation()?, store)
    }

    fn load_keeping(
        engine: &EngineArgs,
        methods: Methods,
        store: &StoreArgs,
    ) -> Result<Session, Failure> {
        let mut notices = Vec::new();
        let kept = store.options(engine.memory, &mut notices)?;
        let options = EngineOptions {
            store: kept.options,
            ..engine.options(&methods)?
        };
        let mut session = Session::load(engine, methods, options, notices)?;
        session.saved = kept.records.map(Saved::new);
        if let Some(saved) = &session.saved {
            saved.expire();
        }
        Ok(session)
    }

    /// Where contexts are kept, if anywhere.
    pub(crate) fn store_place(&self) -> Option<&StorePlace> {
        self.store_place.as_ref()
    }

    fn load(
        engine: &EngineArgs,
        methods: Methods,
        options: EngineOptions,
        mut notices: Vec<String>,
    ) -> Result<Session, Failure> {
        let start = Instant::now();
        let name = match &engine.model.model {
            Some(path) => path.display().to_string(),
            None => "the reference model".to_owned(),
        };
        let progress = Progress::spinner(format!("loading {name}"));
        let engine = Engine::open_with_progress(&options, &mut |done, total| {
            progress.say(format!("loading {name}: layer {done} of {total}"));
            if interrupt::pressed() {
                // Nothing was begun that would have to be put away.
                progress.finish();
                interrupt::leave();
            }
        })
        .map_err(|error| refused(&options.model, error))?;
        progress.finish();
        interrupt::check()?;
        notices.extend(engine.model().file().notices().iter().cloned());
        notices.extend(methods.notices());
        let kept = |place: &StorePlace| matches!(place, StorePlace::Folder(_));
        let store_place = options.store.map(|store| store.place);
        let keeps = match store_place.as_ref().is_some_and(kept) {
            true => Keeps::Contexts,
            false => Keeps::Nothing,
        };
        let seconds_to_load = start.elapsed().as_secs_f64();
        Ok(Session {
            engine: Arc::new(engine),
            methods,
            notices,
            seconds_to_load,
            keeps,
            saved: None,
            store_place,
            not_kept: None,
            goes_on: false,
        })
    }

    /// An empty context for a prompt of `prompt` tokens, planned to hold `planned`, with the methods
    /// chosen in charge; what they take is told before anything is computed.
    pub(crate) fn new_context(
        &mut self,
        prompt: usize,
        planned: usize,
    ) -> Result<Context, Failure> {
        let methods = self.methods.acting();
        let context = self.engine.new_context_with(&methods, prompt, planned)?;
        self.foretell(prompt, planned)?;
        Ok(context)
    }

    /// Adds to the notices what the methods chosen take with a prompt of `prompt` tokens in a context planned
    /// to hold `planned`.
    pub(crate) fn foretell(&mut self, prompt: usize, planned: usize) -> Result<(), Failure> {
        let methods = self.methods.acting();
        let layout = self.engine.model().layout();
        let mut notices = Vec::new();
        let mut kept = None;
        if let Some(keep) = &methods.keep {
            let bytes =
                self.engine
                    .keep_bytes(keep, None, prompt, planned.saturating_sub(prompt))?;
            kept = Some(bytes.peak);
            notices.push(format!(
                "keep: at most {} of keys and values while reading and writing, {} when the prompt of \
                 {} tokens is read, instead of {}",
                human_bytes(bytes.peak),
                human_bytes(bytes.steady),
                human_count(prompt),
                human_bytes(layout.context_bytes(prompt, self.engine.chunk_tokens())),
            ));
        }
        if self.methods.prune().is_some() {
            notices.push(format!(
                "keep: what is finished leaves after each answer; with nothing gone, {} tokens take {} of keys \
                 and values",
                human_count(planned),
                human_bytes(layout.context_bytes(planned, self.engine.chunk_tokens())),
            ));
        }
        let stored = self.engine.store().is_some();
        if let Some(why) = methods.computes_all().filter(|_| stored && !self.goes_on) {
            notices.push(format!(
                "keep: the whole prompt is computed, whatever is kept of it: {why}"
            ));
        }
        if let Some(read) = methods.read.filter(|read| read.bytes(layout, planned) > 0) {
            notices.push(match kept {
                Some(bytes) => format!(
                    "read: at most {} beside the keys and values that are kept, to choose by",
                    human_bytes(read.bytes_beside(layout, bytes)),
                ),
                None => format!(
                    "read: {} beside the {} of keys and values of {} tokens, to choose by",
                    human_bytes(read.bytes(layout, planned)),
                    human_bytes(layout.context_bytes(planned, 1)),
                    human_count(planned),
                ),
            });
        }
        self.add_notices(notices);
        Ok(())
    }

    /// The most tokens that a context may have: the model's positions, or any number under a keep
    /// method that counts them by what is held.
    pub(crate) fn position_limit(&self) -> usize {
        match self.methods.keep() {
            Some(keep) if keep.is_endless() => usize::MAX,
            _ => self.engine.model().blueprint().max_positions,
        }
    }

    /// What of a prompt's `tokens` may be taken over from what was read before, under the methods
    /// chosen.
    pub(crate) fn usable<'t>(&self, tokens: &'t [u32]) -> &'t [u32] {
        &tokens[..self.methods.acting().reusable_tokens(tokens.len())]
    }

    /// Refuses methods that act on contexts in a command that has no use for them.
    pub(crate) fn refuse_acting(&self, command: &str) -> Result<(), Failure> {
        self.refuse_shift(command)?;
        let acting = self.methods.acting();
        let keep = acting.keep.map(|keep| ("--keep", keep.text.clone()));
        let prefill = acting
            .prefill
            .map(|prefill| ("--prefill", prefill.text.clone()));
        let read = acting.read.map(|read| ("--read", read.text.clone()));
        match keep.or(prefill).or(read) {
            None => Ok(()),
            Some((flag, text)) => Err(Failure::wrong(format!(
                "longview {command} has no use for {flag} {text}: ask, run, chat, serve, batch and bench \
                 have, and eval's tasks by --methods"
            ))),
        }
    }

    /// Refuses to move text in a command that takes over beginnings only.
    pub(crate) fn refuse_shift(&self, command: &str) -> Result<(), Failure> {
        match self.methods.reuse() {
            Reuse::Prefix => Ok(()),
            Reuse::Shift { .. } => Err(Failure::wrong(format!(
                "longview {command} has no use for --reuse {}: chat, serve and batch have",
                self.methods.text(Stage::Reuse, self.engine.kv_type())
            ))),
        }
    }

    /// Settles the decode methods, what the flags leave open by `fallback`.
    pub(crate) fn settle_decode(
        &mut self,
        generation: &GenerationArgs,
        fallback: Fallback<'_>,
    ) -> Result<(), Failure> {
        let decode = generation.decode(fallback)?;
        let vocabulary = self.engine.vocabulary();
        if let Some(id) = decode.largest_token()
            && id as usize >= vocabulary
        {
            return Err(Failure::wrong(format!(
                "logit-bias: token {id} is not in the model's vocabulary, whose ids go from 0 to {}",
                vocabulary - 1
            )));
        }
        self.methods.set_decode(decode);
        Ok(())
    }

    /// What the model's files recommend for sampling. The reference model's answers are the most
    /// likely ones.
    pub(crate) fn recommended(&self, args: &EngineArgs) -> Option<Value> {
        match args.model.model {
            None => Some(json!({ "do_sample": false })),
            Some(_) => self.engine.generation_config().cloned(),
        }
    }

    /// Documents in the model's chat template, with the date given or the one they were read with.
    pub(crate) fn document_prompt(
        &mut self,
        documents: &Documents,
        date: Option<Moment>,
    ) -> Result<DocumentPrompt, Failure> {
        self.notices.extend(documents.notices.iter().cloned());
        let texts = documents.list.iter();
        self.engine
            .check_texts(texts.map(|document| document.text.as_str()))?;
        let text = self.engine.text();
        self.notices.extend(template_notice(text));
        if let Some(date) = date {
            return DocumentPrompt::new(text, date, documents);
        }
        let saved = self.saved.as_ref();
        let earlier = Earlier {
            dates: &|| saved.map_or_else(Vec::new, |saved| saved.document_dates(&self.origins())),
            // A prompt that is too long is refused later, in better words.
            reused: &|tokens| {
                let known = self.engine.explain(tokens);
                known.map_or(0, |known| known.reused_tokens)
            },
        };
        let today = date::today();
        let prompt = DocumentPrompt::as_read(text, today, documents, &earlier)?;
        self.notices.extend(date::notice(prompt.now, today));
        Ok(prompt)
    }

    /// Reads what `context` does not hold of `tokens` under a progress bar.
    ///
    /// # Errors
    /// [`Failure::Stopped`] after Ctrl-C, with a line that says how far it came.
    pub(crate) fn read(&self, context: &mut Context, tokens: &[u32]) -> Result<(), Failure> {
        let held = context.len();
        let bar = Progress::tokens("reading", held, tokens.len());
        let control = self
            .engine
            .prefill(context, &tokens[held..], &mut |progress| {
                show(&bar, progress)
            })?;
        bar.finish();
        if control == Control::Stop {
            crate::output::note(self.stopped_at(context.len(), tokens.len()));
            return Err(Failure::Stopped);
        }
        Ok(())
    }

    /// What to say when Ctrl-C stopped the reading of `total` tokens after `read` of them.
    pub(crate) fn stopped_at(&self, read: usize, total: usize) -> String {
        let total = human_count(total);
        match self.keeps {
            Keeps::Contexts => format!(
                "{} of {total} tokens were read and are kept; the same command goes on from there",
                human_count(read - read % BLOCK_TOKENS)
            ),
            Keeps::Nothing => format!("{} of {total} tokens were read", human_count(read)),
        }
    }

    /// Adds what was not said yet.
    fn add_notices(&mut self, notices: Vec<String>) {
        for notice in notices {
            if !self.notices.contains(&notice) {
                self.notices.push(notice);
            }
        }
    }

    /// Says what there is to say before an answer is written, where a person reads it.
    pub(crate) fn say_notices(&mut self, format: Format) {
        if format == Format::Text {
            self.notices
                .drain(..)
                .for_each(|notice| crate::output::tell(&notice));
        }
    }

    /// Adds what the store has to say to the notices.
    pub(crate) fn hear_store(&mut self) {
        if let Some(store) = self.engine.store() {
            let warnings = store.take_warnings();
            self.add_notices(warnings);
        }
    }

    /// Adds a notice when a context of `tokens` tokens will be partly on disk for want of memory.
    pub(crate) fn tell_of_disk(&mut self, tokens: usize) {
        let plan = self.engine.plan(tokens);
        let on_disk = plan.kv_on_disk();
        if on_disk > 0 && plan.fits() {
            self.notices.push(format!(
                "--memory has no room for {} of the {} that a context of {} tokens takes: they are \
                 on disk and read back when needed, which is exact and slower",
                human_bytes(on_disk),
                human_bytes(plan.kv),
                human_count(tokens),
            ));
        }
    }

    /// Bytes read back from below memory so far.
    pub(crate) fn store_read_bytes(&self) -> u64 {
        let store = self.engine.store();
        store.map_or(0, |store| store.counts().read_bytes)
    }

    /// How many tokens a context must be planned for, so that `prompt` tokens and an answer fit.
    ///
    /// An answer that would not fit whole is shortened, with a notice.
    ///
    /// # Errors
    /// A prompt longer than the model's context or than the plan, with both numbers.
    pub(crate) fn planned_tokens(
        &mut self,
        prompt: usize,
        generation: &GenerationArgs,
    ) -> Result<usize, Failure> {
        let limit = self.position_limit();
        check_prompt(prompt, limit, generation)?;
        let room = generation.room(prompt);
        let wanted = prompt.saturating_add(room);
        let (left, end) = if wanted > limit {
            (
                limit - prompt,
                format!("the model's context ends at {limit}"),
            )
        } else {
            let planned = generation.planned_tokens.unwrap_or(wanted);
            (room, format!("--planned-tokens is {planned}"))
        };
        if left < generation.max_tokens {
            self.notices.push(format!(
                "the answer may have {left} tokens instead of {}: the prompt has {prompt} and {end}",
                generation.max_tokens
            ));
        }
        match generation.planned_tokens {
            Some(planned) if planned > limit => Err(Failure::wrong(format!(
                "--planned-tokens {planned} is more than the model's context of {limit} tokens"
            ))),
            Some(planned) => Ok(planned),
            None => Ok(wanted.min(limit)),
        }
    }

    /// The fields that every JSON object of a computing command ends with.
    pub(crate) fn summary(&self) -> Map<String, Value> {
        let kv_type = self.engine.kv_type();
        let texts = self.methods.texts(kv_type).into_iter();
        let methods: Map<String, Value> = texts
            .map(|(stage, text)| (stage.name().to_owned(), text.into()))
            .collect();
        let mut fields = Map::new();
        fields.insert("peak_memory_bytes".to_owned(), peak_memory_bytes().into());
        fields.insert("seconds_to_load".to_owned(), self.seconds_to_load.into());
        fields.insert("model".to_owned(), self.engine.describe().name.into());
        fields.insert(
            "numerics".to_owned(),
            self.engine.exec().numerics.to_string().into(),
        );
        fields.insert(
            "threads".to_owned(),
            self.engine.exec().pool.threads().into(),
        );
        fields.insert("methods".to_owned(), methods.into());
        fields.insert("notices".to_owned(), self.notices.clone().into());
        fields
    }

    /// The canonical text of the decode stage.
    pub(crate) fn decode_text(&self) -> String {
        self.methods.text(Stage::Decode, self.engine.kv_type())
    }
}

/// Refuses a prompt that the model's `limit` or the plan has no room for.
pub(crate) fn check_prompt(
    prompt: usize,
    limit: usize,
    generation: &GenerationArgs,
) -> Result<(), Failure> {
    if prompt >= limit {
        return Err(Failure::wrong(format!(
            "the prompt has {prompt} tokens, but the model reads at most {limit}: give less \
             text (fewer or shorter documents), or use a model with a longer context (--model)"
        )));
    }
    match generation.planned_tokens {
        Some(planned) if planned < prompt => Err(Failure::wrong(format!(
            "the prompt has {prompt} tokens, more than --planned-tokens {planned}"
        ))),
        Some(planned) if planned == prompt && generation.max_tokens > 0 => {
            Err(Failure::wrong(format!(
                "the prompt has {prompt} tokens, and --planned-tokens {planned} leaves none for \
                 the answer"
            )))
        }
        _ => Ok(()),
    }
}

/// Shows a prefill's progress and whether to go on.
pub(crate) fn show(bar: &Progress, progress: PrefillProgress) -> Control {
    bar.update(progress.done, progress.elapsed.as_secs_f64());
    if interrupt::pressed() {
        Control::Stop
    } else {
        Control::Continue
    }
}

/// What to say of a model that cannot be opened.
pub(crate) fn refused(model: &ModelSource, error: EngineError) -> Failure {
    if let ModelSource::Path(path) = model
        && let Ok(file) = WeightFile::open(path)
        && file.tensors().next().is_none()
    {
        return Failure::wrong(format!(
            "{}: this file holds a vocabulary and no tensors; only `longview tokenize` can use it",
            path.display()
        ));
    }
    error.into()
}

/// What the user named is wrong, or the work failed: the library's own rule.
impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Failure {
        if error.is_request_error() {
            Failure::wrong(error)
        } else {
            Failure::failed(error)
        }
    }
}

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Failure {
        EngineError::from(error).into()
    }
}

impl From<TextError> for Failure {
    fn from(error: TextError) -> Failure {
        if error.is_request_error() {
            Failure::wrong(error)
        } else {
            Failure::failed(error)
        }
    }
}
