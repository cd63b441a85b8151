//! `longview contexts`.

use std::ops::Range;
use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};
use longview::text::Moment;

use super::{EngineArgs, MethodArgs, ModelArgs, OverwriteArgs, StoreArgs};
use crate::size::{parse_bytes, parse_duration, parse_tokens};

/// `longview contexts`.
#[derive(Debug, Args)]
pub(crate) struct ContextsArgs {
    #[command(subcommand)]
    pub(crate) action: ContextsAction,

    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// What is done. CONTEXT is a label or the beginning of an id.
#[derive(Debug, Subcommand)]
pub(crate) enum ContextsAction {
    /// List the contexts and what the folder holds
    Ls,
    /// Show all that is known of a context, and how its text begins and ends
    Show {
        /// A label or the beginning of an id
        context: String,

        #[command(flatten)]
        model: ModelArgs,
    },
    /// Read documents or a text and keep them under a name; without either, name the last conversation
    Save(Box<SaveArgs>),
    /// Read more text after a saved one
    Append(Box<AppendArgs>),
    /// Take a span out of a saved text; what follows it is read again
    Cut(Box<CutArgs>),
    /// Forget the end of a saved text. What it has in common with others stays
    Truncate(Box<TruncateArgs>),
    /// Remove contexts whose time is over, then the least valuable blocks until the rest fits
    Gc {
        /// The most the folder may take afterwards [default: --cache-max]
        #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
        max: Option<u64>,
    },
    /// Read every byte of the folder and compare checksums; exit code 1 when something is wrong
    Fsck {
        /// Remove what is damaged or foreign; it is computed again when needed
        #[arg(long)]
        repair: bool,
    },
    /// Write a context and its blocks into one file, to be imported elsewhere
    Export {
        /// A label or the beginning of an id
        context: String,

        /// The file
        file: PathBuf,

        #[command(flatten)]
        overwrite: OverwriteArgs,
    },
    /// Take in a context that was exported. What its numbers are cannot be checked: take such files
    /// from people you trust
    Import {
        /// The file
        file: PathBuf,
    },
    /// Remove contexts, and of their blocks those that no other listed context has
    Rm {
        /// Labels or beginnings of ids
        #[arg(required = true, value_name = "CONTEXT")]
        contexts: Vec<String>,
    },
    /// Never evict a context, nor let it expire
    Pin {
        /// A label or the beginning of an id
        context: String,
    },
    /// Take that back
    Unpin {
        /// A label or the beginning of an id
        context: String,
    },
    /// Give a context a name, or none
    Label {
        /// A label or the beginning of an id
        context: String,

        /// Its name from now on; without, it has none
        label: Option<String>,
    },
    /// Say after how long without use a context expires
    Ttl {
        /// A label or the beginning of an id
        context: String,

        /// Such as 12h, 30d or never
        #[arg(value_name = "TIME|never", value_parser = parse_life)]
        life: Life,
    },
}

/// `longview contexts save`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("text").args(["file", "prompt", "prompt_file"]))]
pub(crate) struct SaveArgs {
    /// Its name from now on
    #[arg(value_name = "NAME")]
    pub(crate) label: String,

    /// Documents as in `longview ask`, to be asked about with `ask --load`; may be repeated
    #[arg(long, short, value_name = "PATH")]
    pub(crate) file: Vec<PathBuf>,

    /// The date that the chat template writes, as in `longview ask`
    #[arg(long, value_name = "DATE", requires = "file")]
    pub(crate) date: Option<Moment>,

    #[command(flatten)]
    pub(crate) text: TextArgs,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,

    #[command(flatten)]
    pub(crate) methods: MethodArgs,
}

/// A text as `longview run` takes it.
#[derive(Debug, Args)]
pub(crate) struct TextArgs {
    /// A text, to be continued with `run --load`
    #[arg(long, short, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,

    /// A file with such a text, or - for standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) prompt_file: Option<PathBuf>,

    /// Read special tokens written out in the text, such as <|user|>, as such
    #[arg(long, conflicts_with = "file")]
    pub(crate) special_tokens: bool,
}

/// `longview contexts append`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("more").required(true).args(["prompt", "prompt_file"]))]
pub(crate) struct AppendArgs {
    /// A label or the beginning of an id
    pub(crate) context: String,

    /// The text to add
    #[arg(long, short, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,

    /// A file with it, or - for standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) prompt_file: Option<PathBuf>,

    /// Read special tokens written out in the text, such as <|user|>, as such
    #[arg(long)]
    pub(crate) special_tokens: bool,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,

    #[command(flatten)]
    pub(crate) methods: MethodArgs,
}

/// `longview contexts cut`.
#[derive(Debug, Args)]
pub(crate) struct CutArgs {
    /// A label or the beginning of an id
    pub(crate) context: String,

    /// The tokens that go, counted from 0, the second number not among them, such as 100..250
    /// (`longview tokenize` numbers a text's tokens)
    #[arg(value_name = "FROM..TO", value_parser = parse_span)]
    pub(crate) span: Range<usize>,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,

    #[command(flatten)]
    pub(crate) methods: MethodArgs,
}

/// `longview contexts truncate`.
#[derive(Debug, Args)]
pub(crate) struct TruncateArgs {
    /// A label or the beginning of an id
    pub(crate) context: String,

    /// How many tokens stay
    #[arg(value_name = "TOKENS", value_parser = parse_tokens)]
    pub(crate) tokens: usize,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,

    #[command(flatten)]
    pub(crate) methods: MethodArgs,
}

/// How long a context lives without being used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    Seconds(u64),
    Endless,
}

fn parse_life(text: &str) -> Result<Life, String> {
    match text.trim() {
        "never" => Ok(Life::Endless),
        time => Ok(Life::Seconds(parse_duration(time)?)),
    }
}

/// A span of tokens from text such as `100..250`.
fn parse_span(text: &str) -> Result<Range<usize>, String> {
    let (from, to) = text
        .split_once("..")
        .ok_or_else(|| format!("{text:?} is not a span of tokens; write 100..250"))?;
    let span = parse_tokens(from)?..parse_tokens(to)?;
    match span.is_empty() {
        true => Err(format!(
            "the span {text:?} is empty; the second number must be the larger one"
        )),
        false => Ok(span),
    }
}
