//! Commands that write models.

use std::path::PathBuf;

use clap::Args;
use longview::ModelSource;

use super::ModelArgs;
use super::model::parse_threads;
use crate::failure::Failure;

/// `longview quantize`.
#[derive(Debug, Args)]
pub(crate) struct QuantizeArgs {
    /// A safetensors folder or a GGUF file with float weights, or a name that `longview models`
    /// lists
    #[arg(value_name = "MODEL")]
    pub(crate) input: PathBuf,

    /// The GGUF file to write
    #[arg(value_name = "OUT.gguf")]
    pub(crate) output: PathBuf,

    /// F16, BF16, Q8_0, Q6_K, Q5_K_M, Q4_K_M or Q4_0
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) kind: String,

    #[command(flatten)]
    pub(crate) overwrite: OverwriteArgs,

    /// Threads to compute with [default: one a core]
    #[arg(long, short, value_name = "N", value_parser = parse_threads)]
    pub(crate) threads: Option<usize>,
}

/// `longview make-model`.
#[derive(Debug, Args)]
pub(crate) struct MakeModelArgs {
    /// The GGUF file to write
    #[arg(value_name = "OUT.gguf")]
    pub(crate) output: PathBuf,

    /// A well-known shape, such as llama-3.2-1b
    #[arg(long, value_name = "SHAPE")]
    pub(crate) shape: String,

    /// F16, BF16, Q8_0, Q6_K, Q5_K_M, Q4_K_M or Q4_0
    #[arg(long = "type", value_name = "TYPE", default_value = "q4_0")]
    pub(crate) kind: String,

    /// The same seed gives the same weights
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,

    #[command(flatten)]
    pub(crate) overwrite: OverwriteArgs,
}

/// `--force`, for commands that write a file.
#[derive(Debug, Args)]
pub(crate) struct OverwriteArgs {
    /// Overwrite the file if it exists
    #[arg(long)]
    force: bool,
}

/// What becomes of a file that has the name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It stays, and the command is refused.
    Refused,
    /// The new one takes its place.
    Replaced,
}

impl OverwriteArgs {
    /// What becomes of a file that has the name already.
    pub(crate) fn taken(&self) -> Taken {
        match self.force {
            true => Taken::Replaced,
            false => Taken::Refused,
        }
    }
}

impl QuantizeArgs {
    /// The model to read.
    pub(crate) fn source(&self) -> Result<ModelSource, Failure> {
        ModelArgs::named(&self.input, &self.input.display().to_string())
    }
}
