//! `longview batch`: a file of requests, answered for throughput.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};

use longview::Control;
use longview::methods::Sampling;
use longview::schedule::ScheduleOptions;
use longview_server::{ServerOptions, run_batch};
use serde_json::json;

use super::serve::usual_memory;
use super::written::Output;
use crate::args::{BatchArgs, Format};
use crate::failure::Failure;
use crate::input;
use crate::interrupt;
use crate::machine::peak_memory_bytes;
use crate::output::{note, print_json, tell};
use crate::progress::Progress;
use crate::session::Session;

/// Answers a file of requests.
pub(crate) fn run(args: &BatchArgs, format: Format) -> Result<(), Failure> {
    if format == Format::Json && args.output.is_none() {
        return Err(Failure::wrong(
            "--json prints one object on standard output, where the answers would go; name a file for them \
             with --output",
        ));
    }
    let requests: Box<dyn BufRead> = if input::is_stdin(&args.file) {
        Box::new(BufReader::new(io::stdin()))
    } else {
        let shown = args.file.display();
        let file = File::open(&args.file).map_err(|error| Failure::io(shown, &error))?;
        Box::new(BufReader::new(file))
    };
    let output = match &args.output {
        None => None,
        Some(path) => {
            let output = Output::new(path, args.overwrite.taken())?;
            output.differs_from(&args.file)?;
            Some(output)
        }
    };
    let mut engine = args.engine.clone();
    engine.memory = engine.memory.or_else(usual_memory);
    let session = Session::open_keeping(&engine, &args.methods, &args.store)?;
    // Not before: a command that was refused leaves earlier answers as they were.
    let answers: Box<dyn Write> = match output.as_ref().map(Output::path) {
        None => Box::new(io::stdout()),
        Some(path) => {
            let shown = path.display();
            let file = File::create(path).map_err(|error| Failure::io(shown, &error))?;
            Box::new(BufWriter::new(file))
        }
    };
    let recommended = session.recommended(&engine);
    let options = ServerOptions {
        methods: session.methods.clone(),
        sampling: recommended
            .as_ref()
            .and_then(Sampling::from_generation_config),
        schedule: ScheduleOptions {
            most_running: args.most_running as usize,
            ..ScheduleOptions::default()
        },
        salt: args.store.salt().to_owned(),
        ..ServerOptions::default()
    };
    let Session {
        engine, notices, ..
    } = session;
    for notice in notices {
        tell(&notice);
    }
    let progress = Progress::spinner("answering".to_owned());
    let summary = run_batch(engine, options, requests, answers, &mut |summary| {
        let done = summary.completed + summary.failed;
        let rate = summary.generated_tokens as f64 / summary.seconds.max(1e-9);
        progress.say(format!(
            "{done} of {} answered, {rate:.0} tokens a second",
            summary.total
        ));
        match interrupt::pressed() {
            true => Control::Stop,
            false => Control::Continue,
        }
    })?;
    progress.finish();
    let rate = summary.generated_tokens as f64 / summary.seconds.max(1e-9);
    note(format!(
        "{} of {} answered, {} failed; {} tokens of prompts, {} of them taken over; {} generated, {rate:.1} a \
         second",
        summary.completed,
        summary.total,
        summary.failed,
        summary.prompt_tokens,
        summary.reused_tokens,
        summary.generated_tokens
    ));
    if format == Format::Json {
        let mut object = json!(summary);
        object["generated_tokens_per_second"] = rate.into();
        object["peak_memory_bytes"] = peak_memory_bytes().into();
        print_json(&object)?;
    }
    interrupt::check()?;
    match summary.failed {
        0 => Ok(()),
        failed => Err(Failure::failed(format!(
            "{failed} requests failed; their lines in the output say why"
        ))),
    }
}
