//! Commands that generate text.

use std::path::PathBuf;

use clap::Args;
use longview::text::Moment;

use super::{EngineArgs, GenerationArgs, MethodArgs, StoreArgs};

/// `longview ask`.
#[derive(Debug, Args)]
pub(crate) struct AskArgs {
    /// The questions; without any, they are asked for on a terminal
    #[arg(value_name = "QUESTION")]
    pub(crate) questions: Vec<String>,

    /// A text file, a folder (read recursively, .gitignore honoured), a pattern such as
    /// 'src/**/*.rs' (hidden files only where it names them), or - for standard input; may be
    /// repeated, read in the order given
    #[arg(long, short, value_name = "PATH", required_unless_present = "load")]
    pub(crate) file: Vec<PathBuf>,

    /// Ask about documents that were read before, by their label or the beginning of their id
    #[arg(long, value_name = "NAME|ID", conflicts_with = "file")]
    pub(crate) load: Option<String>,

    /// A file with one question a line, asked after those on the command line
    #[arg(long = "questions", value_name = "FILE")]
    pub(crate) questions_file: Option<PathBuf>,

    /// Show what the model would read, and stop
    #[arg(long)]
    pub(crate) print_prompt: bool,

    /// Say which parts of the documents each answer's attention rested on; takes a second product of
    /// queries and keys at every step
    #[arg(long)]
    pub(crate) attention: bool,

    /// The date that the model's chat template writes, if it writes one, such as 2026-11-26 or
    /// 2026-11-26T14:30 [default: the day on which the documents were read first]
    #[arg(long, value_name = "DATE", conflicts_with = "load")]
    pub(crate) date: Option<Moment>,

    /// A name for the documents' context; `longview contexts` finds it by that
    #[arg(long, value_name = "NAME")]
    pub(crate) label: Option<String>,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,

    #[command(flatten)]
    pub(crate) methods: MethodArgs,

    #[command(flatten)]
    pub(crate) generation: GenerationArgs,

    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// `longview run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The text to continue
    #[arg(
        long,
        short,
        value_name = "TEXT",
        required_unless_present_any = ["prompt_file", "load"]
    )]
    pub(crate) prompt: Option<String>,

    /// A file with the text to continue, or - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub(crate) prompt_file: Option<PathBuf>,

    /// Continue a saved text, by its label or the beginning of its id; a prompt is put after it
    #[arg(long, value_name = "NAME|ID", conflicts_with = "print_prompt")]
    pub(crate) load: Option<String>,

    /// Read special tokens written out in the prompt, such as <|user|>, as such
    #[arg(long)]
    pub(crate) special_tokens: bool,

    /// Show what the model would read, and stop
    #[arg(long)]
    pub(crate) print_prompt: bool,

    /// A name for the context, the text that was generated included; that of the text loaded goes on
    /// under it
    #[arg(long, value_name = "NAME")]
    pub(crate) label: Option<String>,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,

    #[command(flatten)]
    pub(crate) methods: MethodArgs,

    #[command(flatten)]
    pub(crate) generation: GenerationArgs,

    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// `longview chat`.
#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// Instructions for the model
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,

    /// The date that the model's chat template writes, if it writes one, such as 2026-11-26 or
    /// 2026-11-26T14:30 [default: the day on which the conversation began]
    #[arg(long, value_name = "DATE", conflicts_with = "load")]
    pub(crate) date: Option<Moment>,

    /// A name for the conversation: it is saved at every turn, and goes on where it ended when there is
    /// one of that name
    #[arg(long, value_name = "NAME")]
    pub(crate) label: Option<String>,

    /// Begin with a saved conversation, by its label or the beginning of its id
    #[arg(long, value_name = "NAME|ID", conflicts_with = "system")]
    pub(crate) load: Option<String>,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,

    #[command(flatten)]
    pub(crate) methods: MethodArgs,

    #[command(flatten)]
    pub(crate) generation: GenerationArgs,

    #[command(flatten)]
    pub(crate) store: StoreArgs,
}
