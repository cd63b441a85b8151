//! What `longview calibrate` measures.

use std::path::PathBuf;

use clap::Args;

use super::{EngineArgs, OverwriteArgs};
use crate::size::parse_tokens;

/// `longview calibrate`.
#[derive(Debug, Args)]
pub(crate) struct CalibrateArgs {
    /// The file to write, for --keep 'duo-attention(scores="FILE")'
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,

    #[command(flatten)]
    pub(crate) overwrite: OverwriteArgs,

    /// Tokens of a text, about
    #[arg(long, value_name = "N", default_value = "4k", value_parser = parse_tokens)]
    pub(crate) length: usize,

    /// Texts, each with eight pass keys of its own
    #[arg(long, value_name = "N", default_value = "2")]
    pub(crate) samples: usize,

    /// What the texts are drawn from: the same seed gives the same scores
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) seed: u64,

    /// The sentences with the pass keys: needle (what the reference model was trained on), general, or a
    /// file of your own [default: needle for the reference model, general for others]
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) wording: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}
