//! One file a command.

mod ask;
mod batch;
mod bench;
mod calibrate;
mod chat;
mod contexts;
mod doctor;
mod eval;
mod explain;
mod make_model;
mod methods;
mod models;
mod quantize;
mod run;
mod serve;
mod tokenize;
mod written;

use std::path::Path;

use crate::args::{Cli, Command};
use crate::failure::Failure;
use crate::input::{self, Begun, LARGEST_TEXT};

/// Does what was asked for.
pub(crate) fn execute(cli: &Cli) -> Result<(), Failure> {
    let format = cli.format();
    match &cli.command {
        Command::Ask(args) => ask::run(args, format),
        Command::Run(args) => run::run(args, format),
        Command::Chat(args) => chat::run(args, format),
        Command::Batch(args) => batch::run(args, format),
        Command::Serve(args) => serve::run(args, format),
        Command::Explain(args) => explain::run(args, format),
        Command::Contexts(args) => contexts::run(args, format),
        Command::Bench(args) => bench::run(args, format),
        Command::Eval(args) => eval::run(args, format),
        Command::Calibrate(args) => calibrate::run(args, format),
        Command::Methods(args) => methods::run(args, format),
        Command::Models => models::run(format),
        Command::Doctor(args) => doctor::run(args, format),
        Command::Tokenize(args) => tokenize::run(args, format),
        Command::Quantize(args) => quantize::run(args, format),
        Command::MakeModel(args) => make_model::run(args, format),
    }
}

/// The text of a file, or of standard input for `-`, byte for byte.
fn read_text(path: &Path) -> Result<String, Failure> {
    let (name, read) = if input::is_stdin(path) {
        ("standard input".to_owned(), input::stdin(LARGEST_TEXT))
    } else {
        let read = Begun::open(path).and_then(|begun| begun.read(LARGEST_TEXT));
        (path.display().to_string(), read)
    };
    let bytes = read.map_err(|error| Failure::io(&name, &error))?;
    String::from_utf8(bytes).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        Failure::wrong(format!("{name}: not UTF-8 text: byte {place} is wrong"))
    })
}
