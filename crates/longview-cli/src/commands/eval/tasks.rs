//! Tasks under methods beside the dense path.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;

use longview::{Control, human_bytes};
use longview_eval::{
    EvalError, Evaluation, Foretold, Haystack, LeftOut, Material, Plan, Record, Refusal, Row,
    RunProgress, Setup, Subject, Wording, report,
};
use serde_json::{Map, Value, json};

use super::{failed, wording, wording_for};
use crate::args::{EvalTasksArgs, Format, MethodArgs};
use crate::commands::read_text;
use crate::failure::Failure;
use crate::interrupt;
use crate::output::{self, note};
use crate::progress::Progress;
use crate::session::Session;
use crate::size::human_count;

/// Runs tasks and reports on them.
pub(super) fn run(args: &EvalTasksArgs, format: Format) -> Result<(), Failure> {
    // Everything that can be wrong with the request is found before the model is loaded.
    let plan = plan(args)?;
    let wording = wording(args.wording.as_deref())?;
    let texts = Texts::read(args)?;
    let session = Session::open(&args.engine, &MethodArgs::default())?;
    let material = texts.with(wording_for(wording, &session.engine));
    let evaluation = Evaluation::new(&session.engine, &material, &plan).map_err(failed)?;
    evaluation.check_setups().map_err(failed)?;
    for LeftOut { why, .. } in evaluation.left_out() {
        note(format!("note: left out: {why}"));
    }
    if let Some(path) = &args.export {
        let count = export(&evaluation, path)?;
        return match format {
            Format::Json => {
                let mut object = Map::new();
                object.insert("samples".to_owned(), count.into());
                object.extend(session.summary());
                output::print_json(&object)
            }
            Format::Text => output::print(&format!("{count} samples in {}\n", path.display())),
        };
    }
    let mut record = match &args.output {
        None => Record::in_memory(),
        Some(folder) => {
            fs::create_dir_all(folder).map_err(|error| Failure::io(folder.display(), &error))?;
            Record::open(folder, args.share, &evaluation.identity()).map_err(failed)?
        }
    };
    for Foretold {
        setup,
        length,
        bytes,
        dense,
    } in evaluation.foretell()
    {
        note(format!(
            "{setup} with samples of {} tokens: at most {} of keys and values while they are read, {} when they \
             are, instead of {}",
            human_count(length),
            human_bytes(bytes.peak),
            human_bytes(bytes.steady),
            human_bytes(dense),
        ));
    }
    let bar = Progress::spinner("measuring".to_owned());
    let ended = evaluation.run(&mut record, &mut |progress| show(&bar, progress));
    bar.finish();
    if let (Err(_), Some(folder)) = (&ended, &args.output) {
        note(format!(
            "{} results are kept in {}; the same command goes on from there",
            record.outcomes().len(),
            folder.display()
        ));
    }
    let refused = ended.map_err(failed)?;
    for Refusal { setup, why } in &refused {
        note(format!("note: {setup} was not measured: {why}"));
    }
    // What an earlier run left in the folder for other tasks and setups is kept, not shown.
    let rows = evaluation.rows(&record);
    if let (Some(folder), true) = (&args.output, args.share.is_all()) {
        write(folder, &rows, &about(&session, args, &material))?;
        if report::lacks_means(&rows) {
            note(format!(
                "no chart of scores: the dense path scores below {} on every task, which says nothing of methods; \
                 choose other tasks or shorter --lengths",
                report::DENSE_FAILS_BELOW
            ));
        }
    }
    match format {
        Format::Json => {
            let mut notices: Vec<String> = evaluation
                .left_out()
                .iter()
                .map(|LeftOut { why, .. }| format!("left out: {why}"))
                .collect();
            notices.extend(
                refused
                    .iter()
                    .map(|Refusal { setup, why }| format!("{setup} was not measured: {why}")),
            );
            output::print_json(&object(&session, args, &material, &rows, notices)?)
        }
        Format::Text => {
            let numbers: Vec<usize> = (3..11).collect();
            let mut text = output::table(&report::table(&rows), &numbers);
            for line in report::remarks(&rows) {
                text.push_str(&format!("{line}\n"));
            }
            output::print(&text)
        }
    }
}

/// Writes the samples to `path` and returns how many there are.
fn export(evaluation: &Evaluation<'_>, path: &Path) -> Result<usize, Failure> {
    let io = |error: &std::io::Error| Failure::io(path.display(), error);
    let file = fs::File::create(path).map_err(|error| io(&error))?;
    let mut file = BufWriter::new(file);
    let mut count = 0;
    let exported = evaluation.export(&mut |sample| {
        count += 1;
        let line = json!(sample).to_string();
        writeln!(file, "{line}").map_err(|source| EvalError::Io {
            path: path.display().to_string(),
            action: "write",
            source,
        })
    });
    exported.map_err(failed)?;
    file.flush().map_err(|error| io(&error))?;
    Ok(count)
}

fn plan(args: &EvalTasksArgs) -> Result<Plan, Failure> {
    let mut subjects: Vec<Subject> = Vec::new();
    for name in &args.tasks {
        for subject in Subject::find(name).map_err(failed)? {
            if !subjects.iter().any(|known| known.name() == subject.name()) {
                subjects.push(subject);
            }
        }
    }
    let mut setups = Vec::new();
    for text in &args.methods {
        setups.extend(Setup::parse_list(text).map_err(failed)?);
    }
    Ok(Plan {
        subjects,
        lengths: args.lengths.clone(),
        setups,
        floors: true,
        samples: args.samples,
        depths: args
            .depths
            .iter()
            .map(|&depth| f64::from(depth) / 100.0)
            .collect(),
        question: args.question.into(),
        generate: args.generate,
        seed: args.seed,
        share: args.share,
    })
}

/// Texts of the user's own.
struct Texts {
    haystack: Option<Haystack>,
    text: Option<String>,
}

impl Texts {
    fn read(args: &EvalTasksArgs) -> Result<Texts, Failure> {
        let haystack = args.haystack.as_ref().map(|path| {
            Haystack::new(&read_text(path)?).ok_or_else(|| {
                Failure::wrong(format!("{}: no words to hide things in", path.display()))
            })
        });
        let text = args.text.as_ref().map(|path| read_text(path));
        Ok(Texts {
            haystack: haystack.transpose()?,
            text: text.transpose()?,
        })
    }

    /// What samples are made of, in `wording`.
    fn with(self, wording: Wording) -> Material {
        let shipped = Material::shipped(wording);
        Material {
            haystack: self.haystack.unwrap_or(shipped.haystack),
            text: self.text.unwrap_or(shipped.text),
            ..shipped
        }
    }
}

/// Shows how far an evaluation has come, and whether to go on.
pub(super) fn show(bar: &Progress, progress: &RunProgress) -> Control {
    let RunProgress { done, total, doing } = progress;
    bar.say(format!("measuring {doing}: {done} of {total} results"));
    if interrupt::pressed() {
        Control::Stop
    } else {
        Control::Continue
    }
}

/// What was run, for people.
fn about(session: &Session, args: &EvalTasksArgs, material: &Material) -> Vec<String> {
    vec![format!(
        "Model {}, numerics {}, wording {}, seed {}, {} samples of a task and length at most.",
        session.engine.describe().name,
        session.engine.exec().numerics,
        material.wording.name,
        args.seed,
        args.samples,
    )]
}

fn write(folder: &Path, rows: &[Row], about: &[String]) -> Result<(), Failure> {
    let mut files = report::charts(rows);
    files.push(("report.md".to_owned(), report::markdown(rows, about)));
    for (name, text) in files {
        let path = folder.join(name);
        fs::write(&path, text).map_err(|error| Failure::io(path.display(), &error))?;
    }
    Ok(())
}

fn object(
    session: &Session,
    args: &EvalTasksArgs,
    material: &Material,
    rows: &[Row],
    notices: Vec<String>,
) -> Result<Map<String, Value>, Failure> {
    let mut list = Vec::new();
    for row in rows {
        let mut value = json!(row);
        let texts = Setup::parse(&row.setup)
            .map_err(failed)?
            .texts(session.engine.kv_type());
        let methods: Map<String, Value> = texts
            .into_iter()
            .map(|(stage, text)| (stage.name().to_owned(), text.into()))
            .collect();
        value["methods"] = methods.into();
        value["dense_fails"] = report::dense_fails(row).into();
        list.push(value);
    }
    let mut object = Map::new();
    object.insert("rows".to_owned(), list.into());
    object.insert("seed".to_owned(), args.seed.into());
    object.insert("wording".to_owned(), material.wording.name.clone().into());
    object.extend(session.summary());
    let notices = [session.notices.clone(), notices].concat();
    object.insert("notices".to_owned(), notices.into());
    Ok(object)
}
