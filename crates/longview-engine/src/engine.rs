//! A loaded model with everything needed to run it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use longview_kernels::memory::give_back_freed;
use longview_kernels::{Exec, Isa, Numerics};
use longview_kv::tier::Origin;
use longview_kv::{Context, Explanation, KvForms, KvType, Ledger, Purpose, RopeSet, Store};
use longview_models::{Model, ModelFile, Profile, Workspace};
use longview_text::{ChatTemplate, Tokenizer};
use longview_weights::WeightFile;
use serde_json::Value;

use crate::account::{Account, FirstProgram, Growth};
use crate::cost::{Operations, Speed};
use crate::error::EngineError;
use crate::inspect::{
    Circumstances, ModelDescription, Overflow, describe, open_file, plan_for, processor_cores,
    text_side,
};
use crate::memory::ProcessMemory;
use crate::plan::MemoryPlan;
use crate::store::{self, StoreOptions};
use crate::text_side::TextSide;

/// Bytes of weights that the disk is asked for before anything else.
const FIRST_READ: usize = 128 << 20;

/// The most bytes that what is known of one block takes: its tokens, a checksum for each of a hundred
/// layers, and its places in tables.
const MOST_INDEX_BYTES: u64 = 4 << 10;

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
    /// Forms of keys and values; `None` for the numerics class's own.
    pub kv_forms: Option<KvForms>,
    /// Tokens a prefill computes in one pass.
    pub chunk_tokens: usize,
    /// Where contexts are kept; `None` keeps them in memory as long as they live, and refuses
    /// what memory has no room for.
    pub store: Option<StoreOptions>,
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
    pub(crate) model: Model,
    text: TextSide,
    generation_config: Option<Value>,
    pub(crate) exec: Exec,
    pub(crate) ledger: Ledger,
    /// Whether a pass has touched the scratch buffers.
    pub(crate) has_run: AtomicBool,
    pub(crate) chunk_tokens: usize,
    pub(crate) workspace: Mutex<Workspace>,
    pub(crate) store: Option<Kept>,
    pub(crate) growth: Growth,
    pub(crate) account: Mutex<Account>,
    /// How fast prompts were read.
    pub(crate) speed: Mutex<Speed>,
}

/// Somebody whose contexts are found by nobody else.
pub struct Tenant {
    id: u64,
    /// What its contexts are found by, where there is a store.
    origins: Option<[Arc<Origin>; 2]>,
}

/// A store, and what this model's contexts are found by in it.
pub(crate) struct Kept {
    pub(crate) store: Arc<Store>,
    /// For the short and the long rotary set.
    origins: [Arc<Origin>; 2],
    /// What the seeds of origins are made of beside the salt.
    ingredients: store::Ingredients,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            model: ModelSource::Embedded,
            memory_bytes: None,
            threads: None,
            numerics: Numerics::Default,
            kv_forms: None,
            chunk_tokens: 512,
            store: None,
        }
    }
}

impl EngineOptions {
    /// Forms of keys and values: those chosen, or the numerics class's own.
    pub fn kv_forms(&self) -> KvForms {
        self.kv_forms.unwrap_or(match self.numerics {
            Numerics::Default => KvType::F16.into(),
            Numerics::F32 => KvType::F32.into(),
        })
    }

    pub(crate) fn overflow(&self) -> Overflow {
        match self.store {
            None => Overflow::Refused,
            // It is not open yet.
            Some(_) => Overflow::Store { room: u64::MAX },
        }
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
        // The disk works while the vocabulary is read.
        let text = std::thread::scope(|scope| {
            let ask = || file.read_ahead_first(FIRST_READ);
            let _ = std::thread::Builder::new().spawn_scoped(scope, ask);
            text_side(&file).map_err(|error| error.in_file(&name))
        })?;
        let text = TextSide::new(text);
        // A large vocabulary leaves megabytes behind when it is read.
        give_back_freed();
        let generation_config = match &file {
            WeightFile::HuggingFace(folder) => folder.generation_config().cloned(),
            _ => None,
        };
        let file = ModelFile::new(file)?;
        text.tokenizer()
            .check_embedding_rows(file.blueprint().vocab)
            .map_err(|source| EngineError::Text {
                file: name,
                source: Box::new(source),
            })?;

        let threads = options.threads.unwrap_or_else(processor_cores);
        let exec = Exec::new(threads, Isa::from_environment()?, options.numerics);
        let kv_forms = options.kv_forms();
        let chunk_tokens = options.chunk_tokens.max(1);
        let ledger = Ledger::with_limit(options.memory_bytes.unwrap_or(u64::MAX));
        let first = FirstProgram::now(file.weight_file());
        let program = first.planned_bytes();
        let circumstances = Circumstances {
            kv_forms,
            chunk_tokens,
            threads,
            isa: exec.isa,
            program,
            index: 0,
            ledger: &ledger,
            overflow: options.overflow(),
        };
        let plan = plan_for(&file, &circumstances, 1);
        if !plan.fits() {
            return Err(EngineError::DoesNotFit(Box::new(plan)));
        }
        let mut account = Account {
            program: ledger.reserve(Purpose::Program, program)?,
            scratch: ledger.reserve(Purpose::Scratch, plan.scratch)?,
            index: ledger.reserve(Purpose::Index, 0)?,
        };
        let model = file.load(&exec, kv_forms, &ledger, on_layer)?;
        let before = ProcessMemory::now().resident_bytes;
        let store = match &options.store {
            None => None,
            Some(store) => Some(Kept::open(store, model.file(), kv_forms, &exec, &ledger)?),
        };
        // All that a folder holds is in the index, whoever has put it there: it may be as large as a
        // small model.
        let measured = ProcessMemory::now().resident_bytes.saturating_sub(before);
        let tiers = store.iter().flat_map(|kept| kept.store.tiers());
        let blocks: u64 = tiers.map(|tier| tier.usage().blocks).sum();
        // Others of this process may have taken memory meanwhile.
        let index = measured.min(blocks.saturating_mul(MOST_INDEX_BYTES));
        let circumstances = Circumstances {
            index,
            ..circumstances
        };
        let plan = plan_for(model.file(), &circumstances, 1);
        if !plan.fits() {
            return Err(EngineError::DoesNotFit(Box::new(plan)));
        }
        account.index.resize(index);
        let growth = Growth::from_now(first, &ledger);
        Ok(Engine {
            growth,
            model,
            text,
            generation_config,
            exec,
            ledger,
            has_run: AtomicBool::new(false),
            chunk_tokens,
            workspace: Mutex::default(),
            store,
            account: Mutex::new(account),
            speed: Mutex::default(),
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The tokenizer and the chat template.
    pub fn text(&self) -> &TextSide {
        &self.text
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        self.text.tokenizer()
    }

    /// The chat template; [`ChatTemplate::PLAIN`] where the model has none.
    pub fn template(&self) -> &ChatTemplate {
        self.text.template()
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

    /// Element type of keys of layers without a form of their own.
    pub fn kv_type(&self) -> KvType {
        self.model.layout().kv_type()
    }

    /// Forms of keys and values.
    pub fn kv_forms(&self) -> KvForms {
        *self.model.layout().forms()
    }

    /// Tokens a prefill computes in one pass.
    pub fn chunk_tokens(&self) -> usize {
        self.chunk_tokens
    }

    /// What is known of the model.
    pub fn describe(&self) -> ModelDescription {
        describe(self.model.file(), self.kv_forms())
    }

    /// What a context of `tokens` tokens will need. What the program has taken since the model
    /// was ready (documents, token ids, a tokenizer's own memory) counts as the program's.
    pub fn plan(&self, tokens: usize) -> MemoryPlan {
        let overflow = match &self.store {
            Some(kept) => Overflow::Store {
                room: kept.store.room(),
            },
            None => Overflow::Refused,
        };
        self.plan_as(tokens, self.kv_forms(), overflow)
    }

    /// The same in the form `store`, where that is not the engine's.
    pub(crate) fn plan_in(&self, store: Option<KvForms>, tokens: usize) -> MemoryPlan {
        match store {
            Some(forms) => self.plan_as(tokens, forms, Overflow::Refused),
            None => self.plan(tokens),
        }
    }

    fn plan_as(&self, tokens: usize, kv_forms: KvForms, overflow: Overflow) -> MemoryPlan {
        let circumstances = Circumstances {
            kv_forms,
            chunk_tokens: self.chunk_tokens,
            threads: self.exec.pool.threads(),
            isa: self.exec.isa,
            program: self.program_now(),
            index: self.ledger.usage().index,
            ledger: &self.ledger,
            overflow,
        };
        plan_for(self.model.file(), &circumstances, tokens)
    }

    /// An empty context planned to hold `planned_tokens` tokens.
    ///
    /// # Errors
    /// [`EngineError::DoesNotFit`] with a table when the memory allowed cannot hold it, and the
    /// model's refusal when it is longer than the model can read.
    pub fn new_context(&self, planned_tokens: usize) -> Result<Context, EngineError> {
        self.new_context_of(&self.tenant(""), planned_tokens)
    }

    /// Somebody whose contexts are kept apart by `salt`; an empty one is the engine's own.
    pub fn tenant(&self, salt: &str) -> Tenant {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let origins = self.store.as_ref().map(|kept| match salt {
            "" => kept.origins.clone(),
            salt => kept.ingredients.origins(salt),
        });
        Tenant {
            id: MADE.fetch_add(1, Ordering::Relaxed),
            origins,
        }
    }

    /// What a context of a tenant that is planned to hold `planned_tokens` tokens is found by, where there is
    /// a store.
    ///
    /// # Errors
    /// The model's refusal when it is longer than the model can read.
    pub fn origin_of<'t>(
        &self,
        tenant: &'t Tenant,
        planned_tokens: usize,
    ) -> Result<Option<&'t Arc<Origin>>, EngineError> {
        let rope = self.model.file().rope_set(planned_tokens)?;
        let of_set = |[short, long]: &'t [Arc<Origin>; 2]| match rope {
            RopeSet::Short => short,
            RopeSet::Long => long,
        };
        Ok(tenant.origins().map(of_set))
    }

    /// [`Engine::new_context`] of a tenant.
    ///
    /// # Errors
    /// As [`Engine::new_context`].
    pub fn new_context_of(
        &self,
        tenant: &Tenant,
        planned_tokens: usize,
    ) -> Result<Context, EngineError> {
        let context = self.unplanned_context(tenant, planned_tokens)?;
        let plan = self.plan(planned_tokens);
        if !plan.fits() {
            return Err(EngineError::DoesNotFit(Box::new(plan)));
        }
        Ok(context)
    }

    /// The same with keys and values stored in `kv_forms`, whatever the engine's own are. It lives
    /// in memory alone.
    ///
    /// # Errors
    /// As [`Engine::new_context`].
    pub fn new_context_as(
        &self,
        planned_tokens: usize,
        kv_forms: KvForms,
    ) -> Result<Context, EngineError> {
        let context = self
            .model
            .new_context_as(planned_tokens, kv_forms, &self.ledger)?;
        let plan = self.plan_as(planned_tokens, kv_forms, Overflow::Refused);
        if !plan.fits() {
            return Err(EngineError::DoesNotFit(Box::new(plan)));
        }
        Ok(context)
    }

    /// The same without asking whether there is memory for it.
    pub(crate) fn unplanned_context(
        &self,
        tenant: &Tenant,
        planned_tokens: usize,
    ) -> Result<Context, EngineError> {
        Ok(match (&self.store, &tenant.origins) {
            (Some(kept), Some(origins)) => {
                self.model
                    .new_context_in(planned_tokens, &kept.store, origins)?
            }
            _ => self.model.new_context(planned_tokens, &self.ledger)?,
        })
    }

    /// A context that holds what the store has of `tokens`, and how many tokens that is; at most
    /// all but the last. The rest is still to be read.
    ///
    /// # Errors
    /// As [`Engine::new_context`].
    pub fn open_context(
        &self,
        tokens: &[u32],
        planned_tokens: usize,
    ) -> Result<(Context, usize), EngineError> {
        let mut context = self.new_context(planned_tokens)?;
        let held = self.align(&mut context, tokens)?;
        Ok((context, held))
    }

    /// Makes `context` hold as much of `tokens` as is known, at most all but the last: shortens it
    /// to what it has in common with them and takes over what the store has beyond. Returns how many
    /// tokens of `tokens` it therefore already holds.
    ///
    /// # Errors
    /// When sliding-window layers no longer hold what going back would need; the context is then
    /// as it was.
    pub fn align(&self, context: &mut Context, tokens: &[u32]) -> Result<usize, EngineError> {
        let usable = &tokens[..tokens.len().saturating_sub(1)];
        let common = context.tokens().common_prefix(usable);
        if common < context.len() {
            // Recurrent layers may go back to some places only.
            context.truncate(context.resumable(common).unwrap_or(common))?;
        }
        Ok(context.attach(usable)?)
    }

    /// What the store has of `tokens`, from where, and where and why that ends. Without a store
    /// nothing is kept.
    ///
    /// # Errors
    /// As [`Engine::new_context`].
    pub fn explain(&self, tokens: &[u32]) -> Result<Explanation, EngineError> {
        let context = self.new_context(tokens.len().max(1))?;
        Ok(context.explain(&tokens[..tokens.len().saturating_sub(1)])?)
    }

    /// Tokens that may be chosen: those the tokenizer knows. Models have rows of logits beyond them, to
    /// make the number of rows a round one, which no text stands for.
    pub fn vocabulary(&self) -> usize {
        self.tokenizer()
            .vocab_size()
            .min(self.model().blueprint().vocab)
    }

    /// The store that contexts are kept in.
    pub fn store(&self) -> Option<&Arc<Store>> {
        self.store.as_ref().map(|kept| &kept.store)
    }

    /// Operations of a pass of `rows` rows after `depth` tokens.
    pub(crate) fn operations(&self, rows: usize, depth: usize) -> Operations {
        let weights = self.model.file().parameters();
        Operations::of_pass(self.model.blueprint(), rows, depth, weights)
    }

    /// Runs `work` and measures where the time of its passes goes.
    pub fn profiled<T>(&self, work: impl FnOnce() -> T) -> (T, Profile) {
        self.workspace().start_profile(self.model.blueprint());
        self.exec.pool.count_waiting();
        let result = work();
        let waiting = self.exec.pool.take_waiting();
        let measured = self.workspace().take_profile();
        // Another call beside this one may have taken it.
        let mut profile = measured.unwrap_or_else(|| Profile::new(self.model.blueprint()));
        profile.waiting = waiting;
        (result, profile)
    }
}

impl Tenant {
    /// A number that tells tenants of one process apart.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What its contexts are found by where there is a store: those with the rotary frequencies of short
    /// contexts and those with the ones of long contexts.
    pub fn origins(&self) -> Option<&[Arc<Origin>; 2]> {
        self.origins.as_ref()
    }
}

impl Kept {
    /// Opens the place of `options` for the model in `file`.
    pub(crate) fn open(
        options: &StoreOptions,
        file: &ModelFile,
        kv_forms: KvForms,
        exec: &Exec,
        ledger: &Ledger,
    ) -> Result<Kept, EngineError> {
        let place = store::open_place(options)?;
        let known = place.folder.as_deref();
        let name = describe(file, kv_forms).name;
        let weights = file.weight_file();
        let ingredients = store::Ingredients::new(weights, name, exec, kv_forms, known)?;
        Ok(Kept {
            origins: ingredients.origins(&options.salt),
            ingredients,
            store: Arc::new(Store::new(ledger.clone(), place.tiers)),
        })
    }

    /// What contexts with a rotary set are found by.
    pub(crate) fn origin(&self, rope: RopeSet) -> &Arc<Origin> {
        match rope {
            RopeSet::Short => &self.origins[0],
            RopeSet::Long => &self.origins[1],
        }
    }

    /// What all of its contexts are found by.
    pub(crate) fn origins(&self) -> &[Arc<Origin>] {
        &self.origins
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
        // Not to the token: what other tests of this process take meanwhile counts as well.
        engine.new_context(longest / 2).unwrap();
        let error = engine.new_context(longest * 2).err().unwrap();
        assert!(error.to_string().contains("longest context"), "{error}");
    }
}
