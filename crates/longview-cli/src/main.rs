//! The `longview` program: arguments → plan → act.

mod answer;
mod args;
mod commands;
mod date;
mod documents;
mod failure;
mod input;
mod installed;
mod interrupt;
mod machine;
mod output;
mod progress;
mod prompt;
mod saved;
mod session;
mod size;
mod taken_over;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    longview::tier::show_at_once(output::tell_at_once);
    let result = interrupt::install().and_then(|()| commands::execute(&cli));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(message) = failure.message() {
                output::note(format!("longview: {message}"));
            }
            ExitCode::from(failure.code())
        }
    }
}
