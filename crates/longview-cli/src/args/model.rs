//! Which model, and within what limits.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use longview::{EngineOptions, ModelSource, Numerics};

use crate::failure::Failure;
use crate::installed::Places;
use crate::size::{parse_bytes, parse_tokens};

/// The model alone.
#[derive(Clone, Debug, Args)]
pub(crate) struct ModelArgs {
    /// A GGUF file, a Hugging Face folder, or a name that `longview models` lists
    /// [default: the reference model inside the program]
    #[arg(long, short, value_name = "PATH|NAME")]
    pub(crate) model: Option<PathBuf>,
}

/// The model and how it is run.
#[derive(Clone, Debug, Args)]
pub(crate) struct EngineArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// The most memory to use, such as 8GiB: weights, keys and values, and scratch together.
    /// What cannot fit is refused before work starts
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(crate) memory: Option<u64>,

    /// Threads to compute with [default: one a core]
    #[arg(long, short, value_name = "N", value_parser = parse_threads)]
    pub(crate) threads: Option<usize>,

    /// The roundings allowed: `default` (int8 activations where weights are quantised, f16 keys and
    /// values) or `f32` (neither)
    #[arg(long, value_enum, default_value_t = NumericsArg::Default)]
    pub(crate) numerics: NumericsArg,

    /// Tokens read at a time; more is faster and needs more scratch memory
    #[arg(long, value_name = "N", default_value = "512", value_parser = parse_chunk)]
    pub(crate) chunk: usize,
}

/// `--numerics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum NumericsArg {
    /// Weights as in the file, int8 activations where they are quantised, f16 keys and values.
    Default,
    /// Weights as in the file, everything else in single precision.
    F32,
}

impl ModelArgs {
    /// The model meant: a path that exists, or a model that another program keeps.
    pub(crate) fn source(&self) -> Result<ModelSource, Failure> {
        match &self.model {
            None => Ok(ModelSource::Embedded),
            Some(name) => ModelArgs::named(name, &format!("--model {}", name.display())),
        }
    }

    /// The model at `path`, or the installed one of that name; `shown` is what the user wrote.
    ///
    /// # Errors
    /// When there is neither a path nor an installed model of that name.
    pub(crate) fn named(path: &Path, shown: &str) -> Result<ModelSource, Failure> {
        if path.exists() {
            return Ok(ModelSource::Path(path.to_owned()));
        }
        let name = path.to_string_lossy();
        let models = Places::of_user().list();
        if let Some(model) = models.iter().find(|model| model.name == name) {
            return Ok(ModelSource::Path(model.path.clone()));
        }
        let names = models.iter().map(|model| model.name.as_str());
        let near = longview::methods::nearest(&name, names);
        let hint = near.map_or_else(String::new, |near| format!("; did you mean {near:?}?"));
        Err(Failure::wrong(format!(
            "{shown}: there is no such file or folder, and no model on this machine has \
             that name{hint} (`longview models` lists them)"
        )))
    }
}

impl EngineArgs {
    /// What the engine needs to know, the store method's forms included.
    pub(crate) fn options(
        &self,
        methods: &longview::methods::Methods,
    ) -> Result<EngineOptions, Failure> {
        Ok(EngineOptions {
            model: self.model.source()?,
            memory_bytes: self.memory,
            threads: self.threads,
            numerics: self.numerics.into(),
            kv_forms: methods.kv_forms(),
            chunk_tokens: self.chunk,
            store: None,
        })
    }
}

impl From<NumericsArg> for Numerics {
    fn from(numerics: NumericsArg) -> Numerics {
        match numerics {
            NumericsArg::Default => Numerics::Default,
            NumericsArg::F32 => Numerics::F32,
        }
    }
}

pub(super) fn parse_threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads @ 1..=1024) => Ok(threads),
        _ => Err(format!(
            "{text:?} is not a number of threads from 1 to 1024"
        )),
    }
}

fn parse_chunk(text: &str) -> Result<usize, String> {
    match parse_tokens(text) {
        Ok(tokens @ 1..=65_536) => Ok(tokens),
        _ => Err(format!(
            "{text:?} is not a number of tokens from 1 to 65536"
        )),
    }
}
