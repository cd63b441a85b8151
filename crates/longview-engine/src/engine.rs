//! A loaded model with everything needed to run it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use longview_kernels::{Exec, Isa, Numerics};
use longview_kv::{Context, KvType, Ledger, Purpose, Reservation, Segment};
use longview_models::{Model, ModelFile, Workspace};
use longview_text::{ChatTemplate, Moment, TemplateVars, Tokenizer};
use longview_weights::WeightFile;
use serde_json::Value;

use crate::error::EngineError;
use crate::inspect::{
    ModelDescription, describe, open_file, plan_for, processor_cores, program_bytes,
    resident_bytes, text_side,
};
use crate::plan::MemoryPlan;

/// Where a model comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ModelSource {
    /// The reference model inside the program.
    #[default]
    Embedded,
    /// A GGUF file or a Hugging Face folder.
    Path(PathBuf),
}

/// How an engine is opened.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The model.
    pub model: ModelSource,
    /// The most memory to use, in bytes; `None` for no limit.
    pub memory_bytes: Option<u64>,
    /// Threads; `None` for one a processor core.
    pub threads: Option<usize>,
    /// Numerics class.
    pub numerics: Numerics,
    /// Element type of keys and values; `None` for the numerics class's own.
    pub kv_type: Option<KvType>,
    /// Tokens a prefill computes in one pass.
    pub chunk_tokens: usize,
}

/// Whose chat template an engine uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemplateOrigin {
    /// The model's own.
    Model,
    /// Longview's plain one, because the model has none and was not trained for any.
    Plain,
}

/// A model, its tokenizer, and the threads and memory to run it.
pub struct Engine {
    model: Model,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    template_origin: TemplateOrigin,
    generation_config: Option<Value>,
    exec: Exec,
    ledger: Ledger,
    program_bytes: u64,
    /// Bytes the process held when the model was ready.
    resident_when_ready: u64,
    /// Whether a pass has touched the scratch buffers.
    has_run: AtomicBool,
    chunk_tokens: usize,
    workspace: Mutex<Workspace>,
    _held: [Reservation; 2],
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            model: ModelSource::Embedded,
            memory_bytes: None,
            threads: None,
            numerics: Numerics::Default,
            kv_type: None,
            chunk_tokens: 512,
        }
    }
}

impl EngineOptions {
    /// Element type of keys and values: the one chosen, or the numerics class's own.
    pub fn kv_type(&self) -> KvType {
        self.kv_type.unwrap_or(match self.numerics {
            Numerics::Default => KvType::F16,
            Numerics::F32 => KvType::F32,
        })
    }
}

impl Engine {
    /// Opens a model and packs its weights.
    ///
    /// # Errors
    /// When the file cannot be read or understood, or does not fit the memory allowed.
    pub fn open(options: &EngineOptions) -> Result<Engine, EngineError> {
        Engine::open_with_progress(options, &mut |_, _| {})
    }

    /// The same, calling `on_layer(done, total)` as layers are packed.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_with_progress(
        options: &EngineOptions,
        on_layer: &mut dyn FnMut(usize, usize),
    ) -> Result<Engine, EngineError> {
        let file = open_file(&options.model)?;
        let name = file.name();
        let (tokenizer, template, template_origin) =
            text_side(&file).map_err(|error| error.in_file(&name))?;
        let generation_config = match &file {
            WeightFile::HuggingFace(folder) => folder.generation_config().cloned(),
            _ => None,
        };
        let file = ModelFile::new(file)?;
        tokenizer
            .check_embedding_rows(file.blueprint().vocab)
            .map_err(|source| EngineError::Text {
                file: name,
                source: Box::new(source),
            })?;

        let threads = options.threads.unwrap_or_else(processor_cores);
        let exec = Exec::new(threads, Isa::from_environment()?, options.numerics);
        let kv_type = options.kv_type();
        let chunk_tokens = options.chunk_tokens.max(1);
        let ledger = Ledger::with_limit(options.memory_bytes.unwrap_or(u64::MAX));
        let program_bytes = program_bytes(&options.model);
        let plan = plan_for(
            &file,
            kv_type,
            chunk_tokens,
            threads,
            program_bytes,
            &ledger,
            1,
        );
        if !plan.fits() {
            return Err(EngineError::DoesNotFit(Box::new(plan)));
        }
        let held = [
            ledger.reserve(Purpose::Program, program_bytes)?,
            ledger.reserve(Purpose::Scratch, plan.scratch)?,
        ];
        let model = file.load(&exec, kv_type, &ledger, on_layer)?;
        Ok(Engine {
            model,
            tokenizer,
            template,
            template_origin,
            generation_config,
            exec,
            ledger,
            program_bytes,
            resident_when_ready: resident_bytes(),
            has_run: AtomicBool::new(false),
            chunk_tokens,
            workspace: Mutex::default(),
            _held: held,
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template; [`ChatTemplate::PLAIN`] where the model has none.
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// Whose template that is.
    pub fn template_origin(&self) -> TemplateOrigin {
        self.template_origin
    }

    /// What a template of this model sees beside the messages, with `now` as the date.
    pub fn template_vars(&self, now: Moment) -> TemplateVars {
        let text = |id: Option<u32>| {
            let bytes = id
                .and_then(|id| self.tokenizer.token_bytes(id))
                .unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        TemplateVars::new(text(self.tokenizer.bos()), text(self.tokenizer.eos()), now)
    }

    /// `generation_config.json`, where the model has one.
    pub fn generation_config(&self) -> Option<&Value> {
        self.generation_config.as_ref()
    }

    /// Threads, instruction set and numerics class.
    pub fn exec(&self) -> &Exec {
        &self.exec
    }

    /// The account of memory.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Element type of keys and values.
    pub fn kv_type(&self) -> KvType {
        self.model.layout().kv_type()
    }

    /// Tokens a prefill computes in one pass.
    pub fn chunk_tokens(&self) -> usize {
        self.chunk_tokens
    }

    /// What is known of the model.
    pub fn describe(&self) -> ModelDescription {
        describe(self.model.file(), self.kv_type())
    }

    /// What a context of `tokens` tokens will need. What the program has taken since the model
    /// was ready (documents, token ids, a tokenizer's own memory) counts as the program's.
    pub fn plan(&self, tokens: usize) -> MemoryPlan {
        plan_for(
            self.model.file(),
            self.kv_type(),
            self.chunk_tokens,
            self.exec.pool.threads(),
            self.program_bytes + self.program_growth(),
            &self.ledger,
            tokens,
        )
    }

    /// An empty context planned to hold `planned_tokens` tokens.
    ///
    /// # Errors
    /// [`EngineError::DoesNotFit`] with a table when the memory allowed cannot hold it, and the
    /// model's refusal when it is longer than the model can read.
    pub fn new_context(&self, planned_tokens: usize) -> Result<Context, EngineError> {
        let context = self.model.new_context(planned_tokens, &self.ledger)?;
        let plan = self.plan(planned_tokens);
        if !plan.fits() {
            return Err(EngineError::DoesNotFit(Box::new(plan)));
        }
        Ok(context)
    }

    /// Shortens `context` to what it has in common with `tokens`, at most all but the last of
    /// them, and returns how many tokens of `tokens` it therefore already holds.
    ///
    /// # Errors
    /// When sliding-window layers no longer hold what going back would need; the context is then
    /// as it was.
    pub fn align(&self, context: &mut Context, tokens: &[u32]) -> Result<usize, EngineError> {
        let usable = &tokens[..tokens.len().saturating_sub(1)];
        let held = context.tokens();
        let common = held
            .iter()
            .zip(usable)
            .take_while(|(held, wanted)| held == wanted)
            .count();
        if common < held.len() {
            context.truncate(common)?;
        }
        Ok(common)
    }

    /// Bytes the process has taken since the model was ready, beside what the ledger knows of.
    fn program_growth(&self) -> u64 {
        let usage = self.ledger.usage();
        let scratch = if self.has_run.load(Ordering::Relaxed) {
            usage.scratch
        } else {
            0
        };
        resident_bytes().saturating_sub(self.resident_when_ready + usage.kv + scratch)
    }

    /// One forward pass; the guard gives the logits.
    pub fn pass(
        &self,
        segments: Vec<Segment<'_>>,
    ) -> Result<MutexGuard<'_, Workspace>, EngineError> {
        // A panic during a pass leaves buffers that the next pass overwrites anyway.
        let mut workspace = self
            .workspace
            .lock()
            .unwrap_or_else(|error| error.into_inner());
        self.has_run.store(true, Ordering::Relaxed);
        self.model.forward(&self.exec, segments, &mut workspace)?;
        Ok(workspace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_model_opens_and_is_described() {
        let engine = Engine::open(&EngineOptions::default()).unwrap();
        let about = engine.describe();
        assert_eq!((about.architecture, about.layers), ("llama", 4));
        assert_eq!(about.kv_bytes_per_token, 2048.0);
        assert_eq!(about.context_length, 1 << 20);
        assert!(engine.plan(1000).fits());
    }

    #[test]
    fn memory_is_refused_with_a_table_before_work() {
        let open = |memory| {
            Engine::open(&EngineOptions {
                memory_bytes: Some(memory),
                ..EngineOptions::default()
            })
        };
        let error = open(1 << 20).err().unwrap();
        assert!(matches!(error, EngineError::DoesNotFit(_)) && error.is_request_error());
        let engine = open(400 << 20).unwrap();
        let longest = engine.plan(1).longest_context;
        assert!(longest > 1000 && longest < 1 << 20, "{longest}");
        engine.new_context(longest).unwrap();
        let error = engine.new_context(longest + 64).err().unwrap();
        assert!(error.to_string().contains("longest context"), "{error}");
    }
}
