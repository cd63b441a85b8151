//! What `longview eval` measures.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use longview_eval::{Share, Sight};

use super::{EngineArgs, MethodArgs};
use crate::size::parse_tokens;

/// `longview eval`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct EvalArgs {
    #[command(subcommand)]
    pub(crate) task: Option<EvalTask>,

    #[command(flatten)]
    pub(crate) tasks: EvalTasksArgs,
}

/// Tasks, and the setups that are compared on them.
#[derive(Debug, Args)]
pub(crate) struct EvalTasksArgs {
    /// What is measured: ruler (its thirteen tasks), or some of niah-single-1 to -3, niah-multikey-1
    /// to -3, niah-multivalue, niah-multiquery, vt, cwe, fwe, qa-1, qa-2, heatmap, reuse,
    /// continuation, drift
    #[arg(required = true, value_name = "TASKS", value_delimiter = ',')]
    pub(crate) tasks: Vec<String>,

    /// Tokens of a sample, prompt and answer together
    #[arg(long, value_name = "N,…", default_value = "4k", value_parser = parse_tokens,
          value_delimiter = ',')]
    pub(crate) lengths: Vec<usize>,

    /// The methods compared with the dense path; beside keep methods and forms of keys and values also
    /// streaming-llm and random with as many bytes. Methods of several stages are joined by +, as in
    /// store=q8 or keep=NAME(budget=10%)+store=q8; the stage may be left out where its name is single
    #[arg(long, value_name = "A,B…")]
    pub(crate) methods: Vec<String>,

    /// Samples of a task and length
    #[arg(long, value_name = "N", default_value = "20", value_parser = parse_samples)]
    pub(crate) samples: usize,

    /// Whether the methods see the question while they compress
    #[arg(long, value_enum, default_value_t = SightArg::Unseen)]
    pub(crate) question: SightArg,

    /// Depths of the heat map, in per cent
    #[arg(long, value_name = "N,…", default_value = "0,25,50,75,100", value_delimiter = ',',
          value_parser = parse_depth)]
    pub(crate) depths: Vec<u8>,

    /// Tokens that `drift` generates
    #[arg(long, value_name = "N", default_value = "4k", value_parser = parse_tokens)]
    pub(crate) generate: usize,

    /// What samples are drawn from: the same seed gives the same samples and scores
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) seed: u64,

    /// The sentences of the tasks: needle (what the reference model was trained on), general, or a
    /// file of your own [default: needle for the reference model, general for others]
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) wording: Option<PathBuf>,

    /// The text that things are hidden in [default: a book that is shipped]
    #[arg(long, value_name = "FILE")]
    pub(crate) haystack: Option<PathBuf>,

    /// The text that `continuation` and `drift` read [default: a book that is shipped]
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,

    /// Write the report, its charts and every result to this folder, and go on from what it holds
    #[arg(long, short, value_name = "FOLDER")]
    pub(crate) output: Option<PathBuf>,

    /// Measure every N-th sample only, beginning with the K-th, into a file of their own in the folder, and
    /// write no report: N processes or machines share the work, and the command without this puts
    /// together what the folder holds by then
    #[arg(long, value_name = "K/N", default_value_t = Share::ALL, hide_default_value = true, requires = "output")]
    pub(crate) share: Share,

    /// Write every sample to this file as the model reads it (token ids, one JSON object a line), so that
    /// another program can be asked the same, and measure nothing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["output", "methods"])]
    pub(crate) export: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

/// `--question`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SightArg {
    /// The document is compressed before any question is known.
    Unseen,
    /// Each question is read with the document before that is compressed; in `reuse` only the first, and further
    /// ones find what was kept for it.
    Seen,
}

impl From<SightArg> for Sight {
    fn from(sight: SightArg) -> Sight {
        match sight {
            SightArg::Unseen => Sight::Unseen,
            SightArg::Seen => Sight::Seen,
        }
    }
}

fn parse_depth(text: &str) -> Result<u8, String> {
    match text.trim().parse() {
        Ok(depth @ 0..=100) => Ok(depth),
        _ => Err(format!(
            "{text:?} is not a depth: whole per cent of the document, from 0 to 100, such as 50"
        )),
    }
}

fn parse_samples(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=1_000_000) => Ok(count),
        _ => Err(format!(
            "{text:?} is not a number of samples from 1 to 1000000"
        )),
    }
}

/// What is evaluated.
#[derive(Debug, Subcommand)]
pub(crate) enum EvalTask {
    /// How well the model predicts a text; lower is better
    Perplexity(EvalTextArgs),
    /// How far the model's predictions are from another model's, or from those in f32
    Kld {
        #[command(flatten)]
        text: EvalTextArgs,

        /// The model to compare with [default: the same model under --numerics f32]
        #[arg(long, value_name = "PATH|NAME")]
        reference: Option<PathBuf>,
    },
    /// Measure every keep, read, prefill and store method on RULER's tasks, and write a page about it
    Leaderboard(LeaderboardArgs),
}

/// `longview eval leaderboard`.
#[derive(Debug, Args)]
pub(crate) struct LeaderboardArgs {
    /// Keep every result in this folder, and go on from what it holds
    #[arg(long, short, value_name = "FOLDER")]
    pub(crate) output: PathBuf,

    /// The page that is written [default: leaderboard.md in the folder]
    #[arg(long, value_name = "FILE")]
    pub(crate) page: Option<PathBuf>,

    /// A page with what there is to say of the results, put before them [default: what stands there on
    /// the page that is written anew]
    #[arg(long, value_name = "FILE")]
    pub(crate) remarks: Option<PathBuf>,

    /// A method with parameters, measured beside those of the registry, with every budget unless it names
    /// one, such as locret(heads="FILE"); may be repeated
    #[arg(long, value_name = "METHODS")]
    pub(crate) also: Vec<String>,

    /// Stop after so many minutes and write the page from what was measured by then; the same command
    /// goes on
    #[arg(long, value_name = "N")]
    pub(crate) minutes: Option<u64>,

    /// Measure every N-th sample only, beginning with the K-th, into a file of their own in the folder, and
    /// write no page: N processes or machines share the work, and the command without this puts
    /// together what the folder holds by then
    #[arg(long, value_name = "K/N", default_value_t = Share::ALL, hide_default_value = true)]
    pub(crate) share: Share,

    /// Samples of a task at 4,096 tokens, with budgets of 50, 25, 10 and 5 %
    #[arg(long, value_name = "N", default_value = "100", value_parser = parse_samples)]
    pub(crate) samples: usize,

    /// Samples of a task at 16,384 tokens, with a budget of 10 %; 0 leaves that length out
    #[arg(long, value_name = "N", default_value = "25")]
    pub(crate) long_samples: usize,

    /// What samples are drawn from
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) seed: u64,

    /// The sentences of the tasks, as for tasks
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) wording: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

impl LeaderboardArgs {
    /// Where the page is written to.
    pub(crate) fn page(&self) -> PathBuf {
        let usual = || self.output.join("leaderboard.md");
        self.page.clone().unwrap_or_else(usual)
    }
}

/// A text and how it is read.
#[derive(Debug, Args)]
pub(crate) struct EvalTextArgs {
    /// The text
    #[arg(long, short, value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// Tokens read in one go; every window starts anew
    #[arg(long, value_name = "N", default_value = "2048", value_parser = parse_tokens)]
    pub(crate) window: usize,

    /// Use only so many tokens of the text [default: all]
    #[arg(long, value_name = "N", value_parser = parse_tokens)]
    pub(crate) tokens: Option<usize>,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,

    #[command(flatten)]
    pub(crate) methods: MethodArgs,
}
