//! `longview serve` and `longview batch`.

use std::path::PathBuf;

use clap::Args;

use super::{EngineArgs, MethodArgs, OverwriteArgs, StoreArgs};
use crate::size::{parse_bytes, parse_tokens};

/// `longview serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// The port to listen on; 0 for any that is free
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub(crate) port: u16,

    /// The address to listen on; others than this machine's programs reach 0.0.0.0 or ::, which wants
    /// API keys
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub(crate) host: String,

    #[command(flatten)]
    pub(crate) access: AccessArgs,

    #[cfg(feature = "tls")]
    #[command(flatten)]
    pub(crate) tls: TlsArgs,

    #[command(flatten)]
    pub(crate) limits: LimitArgs,

    /// A name that requests may call the model by, in place of its own; may be repeated
    #[arg(long = "model-name", value_name = "NAME")]
    pub(crate) names: Vec<String>,

    /// A folder whose files may be read into contexts by name, and nothing outside it; may be repeated
    #[arg(long = "folder", value_name = "DIR")]
    pub(crate) folders: Vec<PathBuf>,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,

    #[command(flatten)]
    pub(crate) methods: MethodArgs,

    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// `longview batch`.
#[derive(Debug, Args)]
pub(crate) struct BatchArgs {
    /// The requests, one JSON object a line, or - for standard input
    #[arg(value_name = "FILE.jsonl")]
    pub(crate) file: PathBuf,

    /// Where the answers go, one JSON object a line [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) overwrite: OverwriteArgs,

    /// The most prompts and answers at work at once; memory decides below that
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) most_running: u32,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,

    #[command(flatten)]
    pub(crate) methods: MethodArgs,

    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// Who may come in.
#[derive(Debug, Args)]
#[command(next_help_heading = "Access")]
pub(crate) struct AccessArgs {
    /// A file of API keys, one a line, each KEY or NAME=KEY; what is read under one name is found under
    /// no other. $LONGVIEW_API_KEYS may hold keys as well, apart by commas
    #[arg(long = "api-keys", value_name = "FILE")]
    pub(crate) keys: Option<PathBuf>,

    /// Listen beyond this machine without API keys
    #[arg(long)]
    pub(crate) allow_anyone: bool,

    /// An origin whose web pages may ask, such as https://chat.example, or * for all; may be repeated
    #[arg(long, value_name = "ORIGIN")]
    pub(crate) cors: Vec<String>,

    /// A host name that the server answers to without API keys, beside localhost and addresses; may
    /// be repeated
    #[arg(long = "allowed-host", value_name = "NAME")]
    pub(crate) hosts: Vec<String>,
}

/// HTTPS.
#[cfg(feature = "tls")]
#[derive(Debug, Args)]
#[command(next_help_heading = "Access")]
pub(crate) struct TlsArgs {
    /// The server's certificate, and those between it and a root, in a PEM file; with it HTTPS is spoken
    /// and plain HTTP is not
    #[arg(long = "tls-cert", value_name = "FILE", requires = "key")]
    pub(crate) certificate: Option<PathBuf>,

    /// The certificate's private key, in a PEM file
    #[arg(
        id = "key",
        long = "tls-key",
        value_name = "FILE",
        requires = "certificate"
    )]
    pub(crate) key: Option<PathBuf>,
}

/// How much at a time.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitArgs {
    /// The most requests that wait for their turn; more are told to come back (429)
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) queue: u32,

    /// The most prompts and answers at work at once; memory decides below that
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) most_running: u32,

    /// How long running answers may wait for a piece of another's prompt to be read, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 250, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub(crate) decode_gap: u32,

    /// The largest body of a request
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = parse_bytes)]
    pub(crate) max_body: u64,

    /// The longest prompt in tokens, if shorter than the model's context
    #[arg(long, value_name = "TOKENS", value_parser = parse_tokens)]
    pub(crate) max_prompt: Option<usize>,

    /// The longest answer in tokens where a request does not say
    #[arg(long, value_name = "TOKENS", default_value = "8k", value_parser = parse_tokens)]
    pub(crate) max_answer: usize,

    /// How long a request may take in all, in seconds; 0 for as long as it takes
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(crate) timeout: u64,

    /// How long running requests may go on after the server was told to stop, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) drain: u64,
}
