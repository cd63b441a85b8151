//! `longview calibrate`: which heads of a model retrieve.

use std::fs;
use std::time::Instant;

use longview::Control;
use longview_eval::{Calibration, Material, calibrate};
use serde_json::{Map, json};

use super::{eval, written};
use crate::args::{CalibrateArgs, Format, MethodArgs};
use crate::failure::Failure;
use crate::interrupt;
use crate::output::{self, note};
use crate::progress::Progress;
use crate::session::Session;

/// Finds the scores and writes them.
pub(crate) fn run(args: &CalibrateArgs, format: Format) -> Result<(), Failure> {
    written::Output::new(&args.output, args.overwrite.taken())?;
    let wording = eval::wording(args.wording.as_deref())?;
    let session = Session::open(&args.engine, &MethodArgs::default())?;
    let wording = eval::wording_for(wording, &session.engine);
    let plan = Calibration {
        length: args.length,
        samples: args.samples,
        seed: args.seed,
    };
    let begun = Instant::now();
    let material = Material::shipped(wording);
    let bar = Progress::spinner("scoring heads".to_owned());
    let scores = calibrate(&session.engine, &material, &plan, &mut |progress| {
        let (done, total) = (progress.done, progress.total);
        bar.say(format!(
            "scoring heads: {done} of {total} texts and questions"
        ));
        match interrupt::pressed() {
            true => Control::Stop,
            false => Control::Continue,
        }
    })
    .map_err(eval::failed)?;
    bar.finish();
    let seconds = begun.elapsed().as_secs_f64();
    let path = args.output.display();
    fs::write(&args.output, scores.to_string()).map_err(|error| Failure::io(&path, &error))?;
    match format {
        Format::Json => {
            let mut object = Map::new();
            object.insert("file".to_owned(), path.to_string().into());
            object.insert("scores".to_owned(), json!(scores.scores));
            object.insert("fingerprint".to_owned(), json!(scores.fingerprint));
            object.insert("length".to_owned(), args.length.into());
            object.insert("samples".to_owned(), args.samples.into());
            object.insert("seed".to_owned(), args.seed.into());
            object.insert("wording".to_owned(), material.wording.name.clone().into());
            object.insert("seconds".to_owned(), seconds.into());
            object.extend(session.summary());
            output::print_json(&object)
        }
        Format::Text => {
            let heads = scores.scores.iter().map(Vec::len).max().unwrap_or(0);
            let mut rows = vec![vec!["layer".to_owned()]];
            rows[0].extend((0..heads).map(|head| format!("head {head}")));
            for (layer, scores) in scores.scores.iter().enumerate() {
                let mut row = vec![layer.to_string()];
                row.extend(scores.iter().map(|score| format!("{score:.2}")));
                rows.push(row);
            }
            let columns: Vec<usize> = (0..=heads).collect();
            output::print(&output::table(&rows, &columns))?;
            note(format!(
                "[{} · {seconds:.1} s] the higher, the more a head retrieves; use them with --keep \
                 'duo-attention(scores=\"{path}\", budget=50%)'",
                session.engine.describe().name
            ));
            Ok(())
        }
    }
}
