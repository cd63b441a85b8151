//! An open model and the methods chosen: what every command that computes begins with.

use std::time::Instant;

use longview::methods::{Methods, Stage};
use longview::models::ModelError;
use longview::text::{Moment, TemplateVars, TextError};
use longview::weights::WeightFile;
use longview::{
    Context, Control, Engine, EngineError, ModelSource, PrefillProgress, TemplateOrigin,
};
use serde_json::{Map, Value, json};

use crate::args::{EngineArgs, Fallback, GenerationArgs, MethodArgs};
use crate::failure::Failure;
use crate::interrupt;
use crate::machine::peak_memory_bytes;
use crate::progress::Progress;

/// A model ready to run.
pub(crate) struct Session {
    /// The engine.
    pub(crate) engine: Engine,
    /// What was chosen for every stage.
    pub(crate) methods: Methods,
    /// What the user should know, in the order in which it turned up.
    pub(crate) notices: Vec<String>,
    seconds_to_load: f64,
}

impl Session {
    /// Checks the methods and loads the model.
    pub(crate) fn open(engine: &EngineArgs, methods: &MethodArgs) -> Result<Session, Failure> {
        let methods = methods.methods()?;
        let options = engine.options(&methods)?;
        let start = Instant::now();
        let name = engine
            .model
            .model
            .as_deref()
            .unwrap_or("the reference model");
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
        let mut notices = engine.model().file().notices().to_vec();
        notices.extend(methods.notices());
        let seconds_to_load = start.elapsed().as_secs_f64();
        Ok(Session {
            engine,
            methods,
            notices,
            seconds_to_load,
        })
    }

    /// Settles the decode methods, what the flags leave open by `fallback`.
    pub(crate) fn settle_decode(
        &mut self,
        generation: &GenerationArgs,
        fallback: Fallback<'_>,
    ) -> Result<(), Failure> {
        let decode = generation.decode(fallback)?;
        let vocabulary = self.engine.model().blueprint().vocab;
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

    /// Reads `tokens` into `context` under a progress bar.
    ///
    /// # Errors
    /// [`Failure::Stopped`] after Ctrl-C, with a line that says how far it came.
    pub(crate) fn read(&self, context: &mut Context, tokens: &[u32]) -> Result<(), Failure> {
        let bar = Progress::tokens("reading", tokens.len());
        let mut done = 0;
        let control = self.engine.prefill(context, tokens, &mut |progress| {
            done = progress.done;
            show(&bar, progress)
        })?;
        bar.finish();
        if control == Control::Stop {
            let total = tokens.len();
            crate::output::note(format!("{done} of {total} tokens were read"));
            return Err(Failure::Stopped);
        }
        Ok(())
    }

    /// What the chat template sees beside the messages. A model without a template of its own is
    /// worth a notice.
    pub(crate) fn template_vars(&mut self) -> TemplateVars {
        if self.engine.template_origin() == TemplateOrigin::Plain {
            self.notices.push(
                "the model has no chat template: a plain one is used, which it was not trained for"
                    .to_owned(),
            );
        }
        // Fixed here, once: a prompt that changes with the clock could never be reused.
        let now = std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .map_or(0, |time| time.as_secs());
        self.engine
            .template_vars(Moment::from_unix(i64::try_from(now).unwrap_or(i64::MAX)))
    }

    /// Puts the tokens that the model expects before every text in front, unless they are there.
    pub(crate) fn with_prefix(&self, tokens: Vec<u32>) -> Vec<u32> {
        let prefix = self.engine.tokenizer().prefix_ids();
        if tokens.starts_with(prefix) {
            tokens
        } else {
            [prefix, &tokens].concat()
        }
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
        let limit = self.engine.model().blueprint().max_positions;
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
    bar.update(
        progress.done,
        progress.total,
        progress.elapsed.as_secs_f64(),
    );
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
