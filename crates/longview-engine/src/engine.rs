//! A loaded model with everything needed to run it.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use longview_kernels::{Exec, Isa, Numerics};
use longview_kv::{Context, KvType, Ledger, Purpose, Reservation, Segment};
use longview_models::{Model, ModelFile, Workspace};
use longview_text::{ChatTemplate, Moment, TemplateVars, Tokenizer, Vocabulary};
use longview_weights::{GgufFile, WeightFile};
use serde_json::Value;

use crate::error::EngineError;
use crate::plan::MemoryPlan;

/// The reference model, so that the program answers without any download.
static EMBEDDED: &[u8] = include_bytes!("../../../models/needle/needle-f16.gguf");

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

/// What is known of a model.
#[derive(Clone, Debug)]
pub struct ModelDescription {
    /// Its name, from its metadata or its path.
    pub name: String,
    /// Its architecture.
    pub architecture: &'static str,
    /// Parameters in all.
    pub parameters: u64,
    /// Bytes on disk.
    pub file_bytes: u64,
    /// Bytes in memory, in the form the kernels read.
    pub weights_bytes: u64,
    /// Positions it was made for.
    pub context_length: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Bytes of keys and values a token adds, averaged over the model's own context length.
    pub kv_bytes_per_token: f64,
    /// The tensor format that most parameters are stored in.
    pub format: String,
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
            .map_err(|source| EngineError::Text { file: name, source })?;

        let threads = options.threads.unwrap_or_else(processor_cores);
        let exec = Exec::new(threads, Isa::from_environment()?, options.numerics);
        let kv_type = options.kv_type.unwrap_or(match options.numerics {
            Numerics::Default => KvType::F16,
            Numerics::F32 => KvType::F32,
        });
        let chunk_tokens = options.chunk_tokens.max(1);
        let ledger = Ledger::with_limit(options.memory_bytes.unwrap_or(u64::MAX));
        let program_bytes = resident_bytes();
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

    /// What a context of `tokens` tokens will need.
    pub fn plan(&self, tokens: usize) -> MemoryPlan {
        plan_for(
            self.model.file(),
            self.kv_type(),
            self.chunk_tokens,
            self.exec.pool.threads(),
            self.program_bytes,
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
        self.model.forward(&self.exec, segments, &mut workspace)?;
        Ok(workspace)
    }
}

/// A model's description without loading its weights.
///
/// # Errors
/// When the file cannot be read or understood.
pub fn inspect(
    source: &ModelSource,
    numerics: Numerics,
) -> Result<(ModelDescription, ModelFile), EngineError> {
    let file = ModelFile::new(open_file(source)?)?;
    let kv_type = match numerics {
        Numerics::Default => KvType::F16,
        Numerics::F32 => KvType::F32,
    };
    Ok((describe(&file, kv_type), file))
}

/// What a context of `tokens` tokens would need, without loading the weights.
///
/// # Errors
/// When the file cannot be read or understood.
pub fn plan(options: &EngineOptions, tokens: usize) -> Result<MemoryPlan, EngineError> {
    let file = ModelFile::new(open_file(&options.model)?)?;
    let kv_type = options.kv_type.unwrap_or(match options.numerics {
        Numerics::Default => KvType::F16,
        Numerics::F32 => KvType::F32,
    });
    Ok(plan_for(
        &file,
        kv_type,
        options.chunk_tokens.max(1),
        options.threads.unwrap_or_else(processor_cores),
        resident_bytes(),
        &Ledger::with_limit(options.memory_bytes.unwrap_or(u64::MAX)),
        tokens,
    ))
}

/// A model's tokenizer alone; a GGUF file with a vocabulary and no tensors is enough.
///
/// # Errors
/// When the file cannot be read or its vocabulary cannot be understood.
pub fn open_tokenizer(source: &ModelSource) -> Result<Tokenizer, EngineError> {
    let file = open_file(source)?;
    let (tokenizer, ..) = text_side(&file).map_err(|error| error.in_file(&file.name()))?;
    Ok(tokenizer)
}

fn open_file(source: &ModelSource) -> Result<WeightFile, EngineError> {
    Ok(match source {
        ModelSource::Embedded => WeightFile::Gguf(GgufFile::from_static("needle", EMBEDDED)?),
        ModelSource::Path(path) => WeightFile::open(path)?,
    })
}

/// An error of the text side, before the file's name is known to it.
enum TextSideError {
    Text(longview_text::TextError),
    Weights(longview_weights::WeightsError),
    Io(PathBuf, std::io::Error),
}

impl TextSideError {
    fn in_file(self, file: &str) -> EngineError {
        match self {
            TextSideError::Text(source) => EngineError::Text {
                file: file.to_owned(),
                source,
            },
            TextSideError::Weights(source) => EngineError::Weights(source),
            TextSideError::Io(path, source) => EngineError::Read { path, source },
        }
    }
}

impl From<longview_text::TextError> for TextSideError {
    fn from(error: longview_text::TextError) -> TextSideError {
        TextSideError::Text(error)
    }
}

impl From<longview_weights::WeightsError> for TextSideError {
    fn from(error: longview_weights::WeightsError) -> TextSideError {
        TextSideError::Weights(error)
    }
}

/// The tokenizer and the chat template of a model.
fn text_side(
    file: &WeightFile,
) -> Result<(Tokenizer, ChatTemplate, TemplateOrigin), TextSideError> {
    let (tokenizer, own_template) = match file {
        WeightFile::HuggingFace(folder) => {
            let path = folder.tokenizer_path()?;
            let json = std::fs::read(&path).map_err(|error| TextSideError::Io(path, error))?;
            let tokenizer = Tokenizer::from_huggingface(
                &json,
                folder.tokenizer_config(),
                folder.generation_config(),
            )?;
            (tokenizer, folder.chat_template()?)
        }
        WeightFile::Gguf(gguf) => (
            Tokenizer::from_vocabulary(Vocabulary::from_gguf(gguf)?)?,
            None,
        ),
        _ => unreachable!("ModelFile::new refuses other kinds"),
    };
    let source = own_template.or_else(|| tokenizer.chat_template().map(str::to_owned));
    let template = ChatTemplate::new(source.as_deref().unwrap_or(ChatTemplate::PLAIN))?;
    let origin = if source.is_some() {
        TemplateOrigin::Model
    } else {
        TemplateOrigin::Plain
    };
    Ok((tokenizer, template, origin))
}

fn describe(file: &ModelFile, kv_type: KvType) -> ModelDescription {
    let blueprint = file.blueprint();
    let weight_file = file.weight_file();
    let mut by_format = std::collections::BTreeMap::new();
    for tensor in weight_file.tensors() {
        *by_format.entry(tensor.format).or_insert(0) += tensor.elements();
    }
    let format = by_format.into_iter().max_by_key(|(_, elements)| *elements);
    let context = blueprint.max_positions;
    let layout = blueprint.kv_layout(kv_type);
    let own_name = match weight_file {
        WeightFile::Gguf(gguf) => gguf
            .find_str("general.name")
            .ok()
            .flatten()
            .map(str::to_owned),
        _ => None,
    };
    ModelDescription {
        name: own_name.unwrap_or_else(|| weight_file.name()),
        architecture: blueprint.architecture,
        parameters: file.parameters(),
        file_bytes: weight_file.file_bytes(),
        weights_bytes: file.weights_bytes(),
        context_length: context,
        layers: blueprint.layers.len(),
        kv_bytes_per_token: layout.context_bytes(context, 1) as f64 / context as f64,
        format: format.map_or_else(String::new, |(format, _)| format.to_string()),
    }
}

fn plan_for(
    file: &ModelFile,
    kv_type: KvType,
    chunk_tokens: usize,
    threads: usize,
    program: u64,
    ledger: &Ledger,
    tokens: usize,
) -> MemoryPlan {
    let blueprint = file.blueprint();
    let layout = blueprint.kv_layout(kv_type);
    let limit = Some(ledger.limit()).filter(|&limit| limit != u64::MAX);
    let weights = file.weights_bytes();
    let scratch = Workspace::predicted_bytes(blueprint, chunk_tokens, 1, threads);
    let kv = |tokens: usize| layout.context_bytes(tokens, chunk_tokens);
    let fixed = program + weights + scratch;
    let model_tokens = blueprint.max_positions;
    let longest_context = match limit {
        None => model_tokens,
        Some(limit) => {
            let fits = |&tokens: &usize| fixed + kv(tokens) <= limit;
            largest(model_tokens, fits)
        }
    };
    MemoryPlan {
        tokens,
        model_tokens,
        program,
        weights,
        kv: kv(tokens),
        scratch,
        limit,
        longest_context,
    }
}

/// The largest number from 0 to `most` for which `fits` holds; it holds for all smaller ones.
fn largest(most: usize, fits: impl Fn(&usize) -> bool) -> usize {
    let (mut fitting, mut beyond) = (0, most + 1);
    while beyond - fitting > 1 {
        let middle = fitting + (beyond - fitting) / 2;
        if fits(&middle) {
            fitting = middle
        } else {
            beyond = middle
        }
    }
    fitting
}

fn processor_cores() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get())
}

/// Bytes of memory this process holds now; 0 where the system does not say.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
    kibibytes.unwrap_or(0u64) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_fitting_number_is_found() {
        for limit in [0, 1, 17, 99, 100] {
            assert_eq!(largest(100, |&n| n <= limit), limit);
        }
        assert_eq!(largest(100, |_| true), 100);
    }

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
