//! What the user typed, checked as far as one flag can be checked alone.

mod answers;
mod calibrate;
mod contexts;
mod eval;
mod explain;
mod generation;
mod inspect;
mod make;
mod methods;
mod model;
mod serve;
mod store;

use clap::{Parser, Subcommand};

pub(crate) use answers::{AskArgs, ChatArgs, RunArgs};
pub(crate) use calibrate::CalibrateArgs;
pub(crate) use contexts::{
    AppendArgs, ContextsAction, ContextsArgs, CutArgs, Life, SaveArgs, TruncateArgs,
};
pub(crate) use eval::{EvalArgs, EvalTask, EvalTasksArgs, EvalTextArgs, LeaderboardArgs};
pub(crate) use explain::ExplainArgs;
pub(crate) use generation::{Fallback, GenerationArgs};
pub(crate) use inspect::{BenchArgs, DoctorArgs, MethodsArgs, TokenizeArgs};
pub(crate) use make::{MakeModelArgs, OverwriteArgs, QuantizeArgs, Taken};
pub(crate) use methods::MethodArgs;
pub(crate) use model::{EngineArgs, ModelArgs};
pub(crate) use serve::{BatchArgs, ServeArgs};
pub(crate) use store::StoreArgs;

/// Long-context inference on an ordinary computer: give it a model and a text of any length, and
/// ask.
#[derive(Debug, Parser)]
#[command(
    name = "longview",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 1 failed while running, 2 the request was wrong, \
                  130 stopped by Ctrl-C."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Print one JSON object with all measured numbers on standard output, and nothing else
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Answer questions about documents
    Ask(AskArgs),
    /// Continue a text
    Run(RunArgs),
    /// Talk with the model
    Chat(ChatArgs),
    /// Answer requests over HTTP: OpenAI's and Anthropic's protocols, contexts with names, a web page
    Serve(Box<ServeArgs>),
    /// Answer a file of requests in OpenAI's batch format, for throughput
    Batch(Box<BatchArgs>),
    /// Say for a prompt what of it was read before, where that is kept, and why it ends there
    Explain(ExplainArgs),
    /// List, show, check, move and remove what is kept from one run to the next
    Contexts(ContextsArgs),
    /// Measure tokens a second, also as shares of what this machine can do
    Bench(BenchArgs),
    /// Measure what models and methods get right, and how far they are from the dense path
    Eval(EvalArgs),
    /// Find the heads of a model that retrieve, for --keep duo-attention
    Calibrate(CalibrateArgs),
    /// List every method of every stage with its parameters
    Methods(MethodsArgs),
    /// List the models on this machine
    Models,
    /// Say what this machine offers, and what fits into it
    Doctor(DoctorArgs),
    /// Turn a text into token ids
    Tokenize(TokenizeArgs),
    /// Write a quantised GGUF file of a model
    Quantize(QuantizeArgs),
    /// Write a model with random weights in a well-known shape, to measure with
    MakeModel(MakeModelArgs),
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

impl Cli {
    /// How results are printed.
    pub(crate) fn format(&self) -> Format {
        if self.json {
            Format::Json
        } else {
            Format::Text
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn json_may_stand_anywhere() {
        for line in [
            ["longview", "--json", "models"],
            ["longview", "models", "--json"],
        ] {
            assert_eq!(Cli::try_parse_from(line).unwrap().format(), Format::Json);
        }
        assert_eq!(
            Cli::try_parse_from(["longview", "models"])
                .unwrap()
                .format(),
            Format::Text
        );
    }
}
