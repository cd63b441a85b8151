//! `longview eval leaderboard`: every method on one page.

use std::fs;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use longview::Control;
use longview_eval::{
    Board, EvalError, Leaderboard, Material, Record, Row, Setup, leaderboard_page, remarks_of,
    report,
};
use serde_json::{Map, json};

use super::failed;
use super::tasks::show;
use super::{wording, wording_for};
use crate::args::{Format, LeaderboardArgs, MethodArgs, Taken};
use crate::commands::read_text;
use crate::commands::written::Output;
use crate::failure::Failure;
use crate::interrupt;
use crate::output::{self, note};
use crate::progress::Progress;
use crate::session::Session;

/// Measures what is missing and writes the page.
pub(super) fn run(args: &LeaderboardArgs, format: Format) -> Result<(), Failure> {
    let wording = wording(args.wording.as_deref())?;
    let remarks = remarks(args)?;
    for text in &args.also {
        Setup::parse(text).map_err(failed)?;
    }
    let mut boards = vec![Board {
        length: 4096,
        samples: args.samples,
        budgets: vec![50, 25, 10, 5],
        also: args.also.clone(),
    }];
    if args.long_samples > 0 {
        boards.push(Board {
            length: 16384,
            samples: args.long_samples,
            budgets: vec![10],
            also: args.also.clone(),
        });
    }
    let page_path = args.page();
    if args.page.is_some() && args.share.is_all() {
        // Hours later would be late to find out; the usual one is in a folder that is made.
        Output::new(&page_path, Taken::Replaced)?;
    }
    let session = Session::open(&args.engine, &MethodArgs::default())?;
    let material = Material::shipped(wording_for(wording, &session.engine));
    let mut leaderboard =
        Leaderboard::new(&session.engine, &material, &boards, args.seed, args.share);
    let identity = leaderboard.identity().map_err(failed)?;
    fs::create_dir_all(&args.output).map_err(|error| Failure::io(args.output.display(), &error))?;
    let mut record = Record::open(&args.output, args.share, &identity).map_err(failed)?;
    let bar = Progress::spinner("measuring".to_owned());
    let begun = Instant::now();
    let is_over = || {
        let minutes = args
            .minutes
            .map(|minutes| Duration::from_secs(minutes.saturating_mul(60)));
        minutes.is_some_and(|minutes| begun.elapsed() >= minutes)
    };
    let ended = leaderboard.run(&mut record, &mut |progress| match is_over() {
        true => Control::Stop,
        false => show(&bar, progress),
    });
    bar.finish();
    if ended.is_err() {
        note(format!(
            "{} results are kept in {}; the same command goes on from there",
            record.outcomes().len(),
            args.output.display()
        ));
    }
    match ended {
        // What was asked for is done: the page says how many samples there are.
        Err(EvalError::Stopped) if is_over() && !interrupt::pressed() => {}
        ended => ended.map_err(failed)?,
    }
    if !args.share.is_all() {
        return share_done(args, record.outcomes().len(), format);
    }
    let standings = leaderboard.standings(&record).map_err(failed)?;
    let about = format!(
        "Written by `longview eval leaderboard --output FOLDER --samples {} --long-samples {} --seed {}{}`, \
         model {}, numerics {}, wording {}. Tasks and tables: [evaluation.md](evaluation.md). Methods compress \
         a document before the question is known; those that look at the question are measured both \
         ways.",
        args.samples,
        args.long_samples,
        args.seed,
        args.also
            .iter()
            .map(|text| format!(" --also '{text}'"))
            .collect::<String>(),
        session.engine.describe().name,
        session.engine.exec().numerics,
        material.wording.name,
    );
    let page = leaderboard_page(&standings, &[about], &remarks);
    fs::write(&page_path, &page).map_err(|error| Failure::io(page_path.display(), &error))?;
    let rows: Vec<Row> = standings.iter().flat_map(|one| one.rows.clone()).collect();
    for (name, svg) in report::charts(&rows) {
        let path = args.output.join(name);
        fs::write(&path, svg).map_err(|error| Failure::io(path.display(), &error))?;
    }
    match format {
        Format::Text => output::print(&format!("{}\n", page_path.display())),
        Format::Json => {
            let mut object = Map::new();
            object.insert("page".to_owned(), page_path.display().to_string().into());
            object.insert("rows".to_owned(), json!(rows));
            object.extend(session.summary());
            output::print_json(&object)
        }
    }
}

/// Says that a share is measured; the page is for whoever has them all.
fn share_done(args: &LeaderboardArgs, results: usize, format: Format) -> Result<(), Failure> {
    let folder = args.output.display().to_string();
    match format {
        Format::Text => output::print(&format!(
            "share {} is measured: {results} results in {folder}; the same command without --share \
             writes the page\n",
            args.share
        )),
        Format::Json => {
            let mut object = Map::new();
            object.insert("share".to_owned(), args.share.to_string().into());
            object.insert("results".to_owned(), results.into());
            object.insert("output".to_owned(), folder.into());
            output::print_json(&object)
        }
    }
}

/// What people say on the page: a file of theirs, or what stands on the page that is written anew.
fn remarks(args: &LeaderboardArgs) -> Result<String, Failure> {
    if let Some(path) = &args.remarks {
        return read_text(path);
    }
    let page = args.page();
    match fs::read_to_string(&page) {
        Ok(page) => Ok(remarks_of(&page).unwrap_or_default().to_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(Failure::io(page.display(), &error)),
    }
}
