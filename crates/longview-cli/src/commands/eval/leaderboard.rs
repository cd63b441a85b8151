//! `longview eval leaderboard`: every method on one page.

use std::fs;

use longview_eval::{Board, Leaderboard, Material, Record, leaderboard_page, report};
use serde_json::{Map, json};

use super::failed;
use super::tasks::{RESULTS, show};
use super::wording;
use crate::args::{Format, LeaderboardArgs, MethodArgs};
use crate::commands::read_text;
use crate::failure::Failure;
use crate::output::{self, note};
use crate::progress::Progress;
use crate::session::Session;

/// Measures what is missing and writes the page.
pub(super) fn run(args: &LeaderboardArgs, format: Format) -> Result<(), Failure> {
    let material = Material::shipped(wording(args.wording.as_deref(), &args.engine)?);
    let remarks = match &args.remarks {
        None => String::new(),
        Some(path) => read_text(&path.display().to_string())?,
    };
    let mut boards = vec![Board {
        length: 4096,
        samples: args.samples,
        budgets: vec![50, 25, 10, 5],
    }];
    if args.long_samples > 0 {
        boards.push(Board {
            length: 16384,
            samples: args.long_samples,
            budgets: vec![10],
        });
    }
    let session = Session::open(&args.engine, &MethodArgs::default())?;
    let leaderboard = Leaderboard::new(&session.engine, &material, &boards, args.seed);
    let identity = leaderboard.identity().map_err(failed)?;
    fs::create_dir_all(&args.output).map_err(|error| Failure::io(args.output.display(), &error))?;
    let mut record = Record::open(&args.output.join(RESULTS), &identity).map_err(failed)?;
    let bar = Progress::spinner("measuring".to_owned());
    let ended = leaderboard.run(&mut record, &mut |progress| show(&bar, progress));
    bar.finish();
    if ended.is_err() {
        note(format!(
            "{} results are kept in {}; the same command goes on from there",
            record.outcomes().len(),
            args.output.display()
        ));
    }
    let standings = ended.map_err(failed)?;
    let about = format!(
        "Written by `longview eval leaderboard --output FOLDER --samples {} --long-samples {} --seed {}`, \
         model {}, numerics {}, wording {}, question unseen while methods compress.",
        args.samples,
        args.long_samples,
        args.seed,
        session.engine.describe().name,
        session.engine.exec().numerics,
        material.wording.name,
    );
    let page = leaderboard_page(&standings, &[about], &remarks);
    fs::write(&args.page, &page).map_err(|error| Failure::io(args.page.display(), &error))?;
    for standing in &standings {
        for (name, svg) in report::charts(&standing.rows) {
            let path = args.output.join(name);
            fs::write(&path, svg).map_err(|error| Failure::io(path.display(), &error))?;
        }
    }
    match format {
        Format::Text => output::print(&format!("{}\n", args.page.display())),
        Format::Json => {
            let rows: Vec<_> = standings
                .iter()
                .flat_map(|standing| &standing.rows)
                .collect();
            let mut object = Map::new();
            object.insert("page".to_owned(), args.page.display().to_string().into());
            object.insert("rows".to_owned(), json!(rows));
            object.extend(session.summary());
            output::print_json(&object)
        }
    }
}
