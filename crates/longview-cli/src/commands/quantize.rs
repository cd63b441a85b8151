//! `longview quantize`: a model in fewer bits.

use longview::models::{Recipe, quantize};
use longview::{EngineOptions, ModelSource, Pool, inspect};

use super::written;
use crate::args::{Format, QuantizeArgs};
use crate::failure::Failure;
use crate::session::refused;

/// Writes a quantised GGUF file.
pub(crate) fn run(args: &QuantizeArgs, format: Format) -> Result<(), Failure> {
    let recipe: Recipe = args.kind.parse().map_err(Failure::wrong)?;
    let output = written::Output::new(&args.output, args.overwrite.taken())?;
    let source = args.source()?;
    if let ModelSource::Path(input) = &source {
        output.differs_from(input)?;
    }
    let options = EngineOptions {
        model: source,
        ..EngineOptions::default()
    };
    let (_, model) = inspect(&options).map_err(|error| refused(&options.model, error))?;
    let pool = Pool::new(args.threads.unwrap_or_else(written::cores));
    output.write(format, |path, on_progress| {
        quantize(&model, recipe, path, &pool, &mut |progress| {
            on_progress(progress.tensor, progress.done, progress.total)
        })
    })
}
