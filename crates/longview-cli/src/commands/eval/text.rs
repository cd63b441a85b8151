//! `longview eval perplexity` and `kld`: how good a model or a method is on a text.

use std::path::Path;

use longview::{Control, Engine, EngineOptions, Numerics, Specials};
use longview_eval::report::nats;
use longview_eval::{EvalError, divergence, perplexity};
use serde_json::{Map, Value, json};

use super::failed;
use crate::args::{EvalTextArgs, Format, ModelArgs};
use crate::commands::read_text;
use crate::failure::Failure;
use crate::interrupt;
use crate::output;
use crate::progress::Progress;
use crate::session::{Session, refused};

/// How well a text is predicted.
pub(super) fn perplexity_of(args: &EvalTextArgs, format: Format) -> Result<(), Failure> {
    let (session, tokens) = open(args)?;
    let result = with_progress(|on| perplexity(&session.engine, &tokens, args.window, on))?;
    match format {
        Format::Json => print(
            &session,
            json!({
                "task": "perplexity",
                "file": args.file.display().to_string(),
                "perplexity": result.perplexity,
                "interval": result.interval,
                "nats_per_token": result.nats_per_token,
                "tokens": result.tokens,
                "window": result.window,
            }),
        ),
        Format::Text => output::print(&format!(
            "perplexity {:.4} ± {:.4} ({:.4} nats a token, {} tokens predicted in windows of {})\n",
            result.perplexity, result.interval, result.nats_per_token, result.tokens, result.window
        )),
    }
}

/// How far the predictions are from a reference's.
pub(super) fn divergence_of(
    args: &EvalTextArgs,
    reference: Option<&Path>,
    format: Format,
) -> Result<(), Failure> {
    let (session, tokens) = open(args)?;
    let (other, name) = open_reference(args, reference)?;
    let result = with_progress(|on| divergence(&session.engine, &other, &tokens, args.window, on))?;
    match format {
        Format::Json => print(
            &session,
            json!({
                "task": "kld",
                "file": args.file.display().to_string(),
                "reference": name,
                "mean": result.mean,
                "interval": result.interval,
                "max": result.max,
                "percentile_99": result.percentile_99,
                "same_top": result.same_top,
                "perplexity": result.perplexity,
                "reference_perplexity": result.reference_perplexity,
                "tokens": result.tokens,
                "window": args.window,
            }),
        ),
        Format::Text => output::print(&format!(
            "KL divergence from {name}: mean {} ± {} nats, 99 % below {}, at most {}\nsame most likely token: {:.3} % of {} tokens\nperplexity {:.4}, reference \
             {:.4}\n",
            nats(result.mean, 3),
            nats(result.interval, 1),
            nats(result.percentile_99, 3),
            nats(result.max, 3),
            100.0 * result.same_top,
            result.tokens,
            result.perplexity,
            result.reference_perplexity
        )),
    }
}

fn open(args: &EvalTextArgs) -> Result<(Session, Vec<u32>), Failure> {
    let text = read_text(&args.file)?;
    let session = Session::open(&args.engine, &args.methods)?;
    session.refuse_acting("eval of a text")?;
    session.engine.check_text(&text)?;
    let mut tokens = session.engine.tokenizer().encode(&text, Specials::AsText)?;
    if let Some(count) = args.tokens {
        tokens.truncate(count);
    }
    Ok((session, tokens))
}

/// The model to compare with: another one, or the same in f32. It may
/// use as much memory as the one that is measured.
fn open_reference(
    args: &EvalTextArgs,
    reference: Option<&Path>,
) -> Result<(Engine, String), Failure> {
    let (model, numerics, name) = match reference {
        Some(name) => {
            let shown = name.display().to_string();
            let model = ModelArgs::named(name, &format!("--reference {shown}"))?;
            (model, args.engine.numerics.into(), shown)
        }
        None => {
            let source = args.engine.model.source()?;
            (source, Numerics::F32, "the same model in f32".to_owned())
        }
    };
    let options = EngineOptions {
        model,
        memory_bytes: args.engine.memory,
        numerics,
        threads: args.engine.threads,
        chunk_tokens: args.engine.chunk,
        ..EngineOptions::default()
    };
    let engine = Engine::open(&options).map_err(|error| refused(&options.model, error))?;
    Ok((engine, name))
}

fn with_progress<T>(
    evaluate: impl FnOnce(&mut dyn FnMut(longview_eval::Progress) -> Control) -> Result<T, EvalError>,
) -> Result<T, Failure> {
    let mut bar: Option<Progress> = None;
    let start = std::time::Instant::now();
    let result = evaluate(&mut |progress| {
        bar.get_or_insert_with(|| Progress::tokens("predicting", 0, progress.total))
            .update(progress.done, start.elapsed().as_secs_f64());
        if interrupt::pressed() {
            Control::Stop
        } else {
            Control::Continue
        }
    });
    drop(bar);
    result.map_err(failed)
}

fn print(session: &Session, result: Value) -> Result<(), Failure> {
    let mut object: Map<String, Value> = match result {
        Value::Object(object) => object,
        _ => Map::new(),
    };
    object.extend(session.summary());
    output::print_json(&object)
}
