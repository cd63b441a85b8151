//! What is known of a model before its weights are loaded: its description, its tokenizer, and the
//! memory a context will need.

use longview_kernels::Isa;
use longview_kv::{KvForms, Ledger, largest};
use longview_models::ModelFile;
use longview_text::{ChatTemplate, TextError, Tokenizer, Vocabulary};
use longview_weights::{GgufFile, WeightFile, WeightsError};

use crate::account::FirstProgram;
use crate::engine::{EngineOptions, ModelSource, TemplateOrigin};
use crate::error::EngineError;
use crate::plan::MemoryPlan;
use crate::store::open_place;

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

/// The reference model, so that the program answers without any download.
static EMBEDDED: &[u8] = include_bytes!("../../../models/needle/needle-f16.gguf");

/// A model's description without loading its weights.
///
/// # Errors
/// When the file cannot be read or understood.
pub fn inspect(options: &EngineOptions) -> Result<(ModelDescription, ModelFile), EngineError> {
    let file = ModelFile::new(open_file(&options.model)?)?;
    Ok((describe(&file, options.kv_forms()), file))
}

/// What a context of `tokens` tokens would need, without loading the weights. With a store in
/// `options`, keys and values that memory has no room for may be there, as far as it has room.
///
/// # Errors
/// When the file cannot be read or understood, or the store cannot be opened.
pub fn plan(options: &EngineOptions, tokens: usize) -> Result<MemoryPlan, EngineError> {
    let file = ModelFile::new(open_file(&options.model)?)?;
    let kv_forms = options.kv_forms();
    let circumstances = Circumstances {
        kv_forms,
        chunk_tokens: options.chunk_tokens.max(1),
        threads: options.threads.unwrap_or_else(processor_cores),
        isa: Isa::from_environment()?,
        program: FirstProgram::now(file.weight_file()).planned_bytes(),
        index: 0,
        ledger: &Ledger::with_limit(options.memory_bytes.unwrap_or(u64::MAX)),
        overflow: match &options.store {
            None => Overflow::Refused,
            Some(store) => Overflow::Store {
                room: open_place(store)?.room(),
            },
        },
    };
    Ok(plan_for(&file, &circumstances, tokens))
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

pub(crate) fn open_file(source: &ModelSource) -> Result<WeightFile, EngineError> {
    Ok(match source {
        ModelSource::Embedded => WeightFile::Gguf(GgufFile::from_static("needle", EMBEDDED)?),
        ModelSource::Path(path) => WeightFile::open(path)?,
    })
}

/// An error of the text side, before the file's name is known to it.
pub(crate) enum TextSideError {
    Text(longview_text::TextError),
    Weights(WeightsError),
}

impl TextSideError {
    pub(crate) fn in_file(self, file: &str) -> EngineError {
        match self {
            // It names the file by itself.
            TextSideError::Text(TextError::Weights(source)) => EngineError::Weights(source),
            TextSideError::Text(source) => EngineError::Text {
                file: file.to_owned(),
                source: Box::new(source),
            },
            TextSideError::Weights(source) => EngineError::Weights(source),
        }
    }
}

impl From<longview_text::TextError> for TextSideError {
    fn from(error: longview_text::TextError) -> TextSideError {
        TextSideError::Text(error)
    }
}

impl From<WeightsError> for TextSideError {
    fn from(error: WeightsError) -> TextSideError {
        TextSideError::Weights(error)
    }
}

/// The tokenizer and the chat template of a model.
pub(crate) fn text_side(
    file: &WeightFile,
) -> Result<(Tokenizer, ChatTemplate, TemplateOrigin), TextSideError> {
    let (tokenizer, own_template) = match file {
        WeightFile::HuggingFace(folder) => {
            let tokenizer = Tokenizer::from_huggingface(
                &folder.tokenizer_json()?,
                folder.tokenizer_config(),
                folder.generation_config(),
            )?;
            (tokenizer, folder.chat_template()?)
        }
        WeightFile::Gguf(gguf) => (
            Tokenizer::from_vocabulary(Vocabulary::from_gguf(gguf)?)?,
            None,
        ),
        _ => unreachable!("a model is one or the other: WeightFile has no third kind"),
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

pub(crate) fn describe(file: &ModelFile, kv_forms: KvForms) -> ModelDescription {
    let blueprint = file.blueprint();
    let weight_file = file.weight_file();
    let mut by_format = std::collections::BTreeMap::new();
    for tensor in weight_file.tensors() {
        *by_format.entry(tensor.format).or_insert(0) += tensor.elements();
    }
    let format = by_format.into_iter().max_by_key(|(_, elements)| *elements);
    let context = blueprint.max_positions;
    let layout = blueprint.kv_layout(kv_forms);
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

/// What a plan follows from beside the model and the length.
pub(crate) struct Circumstances<'a> {
    pub(crate) kv_forms: KvForms,
    pub(crate) chunk_tokens: usize,
    pub(crate) threads: usize,
    pub(crate) isa: Isa,
    /// Bytes of the program with the vocabulary.
    pub(crate) program: u64,
    /// Bytes of what is known of the blocks in the store.
    pub(crate) index: u64,
    pub(crate) ledger: &'a Ledger,
    /// Whether there is a store that can hold what memory has no room for.
    pub(crate) overflow: Overflow,
}

/// Where keys and values go that memory has no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overflow {
    /// Nowhere: they are refused.
    Refused,
    /// Into a store, to be read back when needed.
    Store {
        /// The most bytes it can hold.
        room: u64,
    },
}

pub(crate) fn plan_for(file: &ModelFile, of: &Circumstances<'_>, tokens: usize) -> MemoryPlan {
    let Circumstances {
        kv_forms,
        chunk_tokens,
        threads,
        isa,
        program,
        index,
        ledger,
        overflow,
    } = *of;
    let blueprint = file.blueprint();
    let layout = blueprint.kv_layout(kv_forms);
    let limit = Some(ledger.limit()).filter(|&limit| limit != u64::MAX);
    let weights = file.weights_bytes();
    let scratch = file.scratch_bytes(chunk_tokens, 1, threads, isa);
    // Every question is asked of a fork, so that the document can be asked again.
    let kv = |tokens: usize| {
        layout.context_bytes(tokens, chunk_tokens) + layout.fork_bytes(chunk_tokens)
    };
    let least = |tokens: usize| match overflow {
        Overflow::Refused => kv(tokens),
        Overflow::Store { .. } => kv(tokens).min(layout.least_bytes(chunk_tokens)),
    };
    let room = match overflow {
        Overflow::Refused => 0,
        Overflow::Store { room } => room,
    };
    let fixed = program + index + weights + scratch;
    let model_tokens = blueprint.max_positions;
    let longest_context = match limit {
        None => model_tokens,
        Some(limit) => {
            let fits = |&tokens: &usize| {
                let over = (fixed + kv(tokens)).saturating_sub(limit);
                fixed + least(tokens) <= limit && over <= room
            };
            largest(model_tokens, fits)
        }
    };
    MemoryPlan {
        tokens,
        model_tokens,
        program,
        index,
        weights,
        kv: kv(tokens),
        kv_least: least(tokens),
        disk_room: room,
        scratch,
        limit,
        longest_context,
    }
}

pub(crate) fn processor_cores() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get())
}
