//! `longview make-model`: random weights in a well-known shape.

use longview::Pool;
use longview::models::Recipe;
use longview::models::shapes::{Shape, make_model};

use super::written;
use crate::args::{Format, MakeModelArgs};
use crate::failure::Failure;

/// Writes a GGUF file that is as fast and as large as the real model, and says nothing sensible.
pub(crate) fn run(args: &MakeModelArgs, format: Format) -> Result<(), Failure> {
    let recipe: Recipe = args.kind.parse().map_err(Failure::wrong)?;
    let shape = Shape::named(&args.shape).map_err(Failure::wrong)?;
    let output = written::Output::new(&args.output, args.overwrite.taken())?;
    let pool = Pool::new(written::cores());
    output.write(format, |path, on_progress| {
        make_model(shape, recipe, args.seed, path, &pool, &mut |progress| {
            on_progress(progress.tensor, progress.done, progress.total)
        })
    })
}
