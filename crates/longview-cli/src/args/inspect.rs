//! Commands that measure and show.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use longview::methods::Stage;

use super::{EngineArgs, MethodArgs, ModelArgs, StoreArgs};
use crate::size::parse_tokens;

/// `longview bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Tokens of the prompts that are read; several lengths are measured one after another
    #[arg(long, value_name = "N,…", default_value = "512", value_parser = parse_tokens,
          value_delimiter = ',')]
    pub(crate) prompt: Vec<usize>,

    /// Tokens generated
    #[arg(long, value_name = "N", default_value = "64", value_parser = parse_tokens)]
    pub(crate) generate: usize,

    /// Texts that are generated side by side, as a server does it; several numbers are measured one
    /// after another. They share what the depth holds
    #[arg(long, value_name = "N,…", default_value = "1", value_parser = parse_streams,
          value_delimiter = ',')]
    pub(crate) streams: Vec<usize>,

    /// Tokens that the context holds before; several depths are measured one after another
    #[arg(long, value_name = "N,…", default_value = "0", value_parser = parse_tokens,
          value_delimiter = ',')]
    pub(crate) depth: Vec<usize>,

    /// Fill the depth with random keys and values instead of reading a text; the speed is the same
    /// and the output says so
    #[arg(long)]
    pub(crate) synthetic_kv: bool,

    /// Take the best of this many rounds
    #[arg(long, value_name = "N", default_value = "3")]
    pub(crate) rounds: usize,

    /// Also measure, in a round of its own, what the time is spent on, by kind of layer and of work
    #[arg(long)]
    pub(crate) profile: bool,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,

    #[command(flatten)]
    pub(crate) methods: MethodArgs,
}

fn parse_streams(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(streams @ 1..=1024) => Ok(streams),
        Ok(0) => {
            Err("nothing would be generated; to measure only prompts give --generate 0".into())
        }
        _ => Err(format!("{text:?} is not a number of texts from 1 to 1024")),
    }
}

/// `longview methods`.
#[derive(Debug, Args)]
pub(crate) struct MethodsArgs {
    /// Only the methods of this stage
    #[arg(value_enum)]
    pub(crate) stage: Option<StageArg>,
}

/// A stage on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum StageArg {
    /// Which text enters the model.
    Prompt,
    /// Which keys a query attends to while a text is read.
    Prefill,
    /// Which keys and values stay.
    Keep,
    /// In what form they are held.
    Store,
    /// Which of them a decode step reads.
    Read,
    /// What another request may take over.
    Reuse,
    /// Which token comes next.
    Decode,
}

impl From<StageArg> for Stage {
    fn from(stage: StageArg) -> Stage {
        match stage {
            StageArg::Prompt => Stage::Prompt,
            StageArg::Prefill => Stage::Prefill,
            StageArg::Keep => Stage::Keep,
            StageArg::Store => Stage::Store,
            StageArg::Read => Stage::Read,
            StageArg::Reuse => Stage::Reuse,
            StageArg::Decode => Stage::Decode,
        }
    }
}

/// `longview doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) engine: EngineArgs,

    #[command(flatten)]
    pub(crate) methods: MethodArgs,

    /// Say whether a context of this many tokens fits
    #[arg(long, value_name = "N", value_parser = parse_tokens)]
    pub(crate) tokens: Option<usize>,

    /// Measure memory bandwidth and arithmetic; takes seconds and up to 1 GiB
    #[arg(long)]
    pub(crate) measure: bool,

    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// `longview tokenize`.
#[derive(Debug, Args)]
pub(crate) struct TokenizeArgs {
    /// The text
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    pub(crate) text: Option<String>,

    /// A file with the text, or - for standard input
    #[arg(long, short, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// Read special tokens written out in the text as such
    #[arg(long)]
    pub(crate) special_tokens: bool,

    /// Add the tokens that the model expects before and after a text
    #[arg(long)]
    pub(crate) surround: bool,

    #[command(flatten)]
    pub(crate) model: ModelArgs,
}
