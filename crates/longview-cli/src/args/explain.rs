//! `longview explain`.

use std::path::PathBuf;

use clap::{ArgGroup, Args};
use longview::text::Moment;

use super::{EngineArgs, MethodArgs, StoreArgs};
use crate::size::parse_tokens;

/// `longview explain`: the arguments of `ask` or `run`, and nothing is computed.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("text").required(true).args(["file", "prompt", "prompt_file"]))]
pub(crate) struct ExplainArgs {
    /// The question that would be asked about the documents
    #[arg(value_name = "QUESTION", requires = "file")]
    pub(crate) question: Option<String>,

    /// Documents as in `longview ask`; may be repeated
    #[arg(long, short, value_name = "PATH")]
    pub(crate) file: Vec<PathBuf>,

    /// The date that the chat template writes, as in `longview ask`
    #[arg(long, value_name = "DATE", requires = "file")]
    pub(crate) date: Option<Moment>,

    /// A text as in `longview run`
    #[arg(long, short, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,

    /// A file with such a text, or - for standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) prompt_file: Option<PathBuf>,

    /// Read special tokens written out in the text, such as <|user|>, as such
    #[arg(long, conflicts_with = "file")]
    pub(crate) special_tokens: bool,

    /// Tokens the context would be planned for, which matters for models with two rotary sets
    /// [default: the prompt and 512]
    #[arg(long, value_name = "N", value_parser = parse_tokens)]
    pub(crate) planned_tokens: Option<usize>,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,

    #[command(flatten)]
    pub(crate) methods: MethodArgs,

    #[command(flatten)]
    pub(crate) store: StoreArgs,
}
