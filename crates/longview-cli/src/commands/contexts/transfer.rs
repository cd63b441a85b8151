//! `longview contexts export` and `import`.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use longview::bundle::{self, BundleError};
use longview::tier::Tier;
use longview::{Ledger, human_bytes};
use serde_json::json;

use super::{Kept, line, object};
use crate::args::{Format, Taken};
use crate::commands::written::Output;
use crate::failure::Failure;
use crate::output::{self, note};
use crate::saved::failure;

/// Writes a context into a file, which appears when it is whole.
pub(super) fn export(
    kept: &Kept,
    name: &str,
    file: &Path,
    taken: Taken,
    format: Format,
) -> Result<(), Failure> {
    let record = kept.find(name)?;
    Output::new(file, taken)?;
    let presence = kept.presence(&record);
    if presence.blocks_there < presence.blocks {
        return Err(Failure::failed(format!(
            "context {} is only partly kept ({}): read its text again with the command that made it, \
             then export it",
            record.summary.id,
            presence.words()
        )));
    }
    let io = |error: &std::io::Error| Failure::io(file.display(), error);
    // Beside it, under a name that is nobody's, and gone if writing fails.
    let folder = file
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let mut beside = tempfile::Builder::new();
    #[cfg(unix)]
    beside.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let part = beside.tempfile_in(folder.unwrap_or(Path::new(".")));
    let mut part = part.map_err(|error| io(&error))?;
    let tiers: Vec<Arc<dyn Tier>> = vec![Arc::clone(&kept.tier) as Arc<dyn Tier>];
    let mut out = BufWriter::new(&mut part);
    bundle::export(&record, &tiers, &mut out).map_err(|error| refused(file, error))?;
    out.flush().map_err(|error| io(&error))?;
    drop(out);
    part.as_file().sync_all().map_err(|error| io(&error))?;
    part.persist(file).map_err(|error| io(&error.error))?;
    let bytes = fs::metadata(file).map_or(0, |about| about.len());
    match format {
        Format::Json => output::print_json(&json!({
            "id": record.summary.id,
            "file": file.display().to_string(),
            "bytes": bytes,
        })),
        Format::Text => output::print(&format!(
            "{}: {}\n{}\n",
            file.display(),
            human_bytes(bytes),
            line(&record.summary)
        )),
    }
}

/// Takes a context in.
pub(super) fn import(kept: &Kept, file: &Path, format: Format) -> Result<(), Failure> {
    let bundle = File::open(file).map_err(|error| Failure::io(file.display(), &error))?;
    let ledger = Ledger::with_limit(u64::MAX);
    let imported = bundle::import(
        BufReader::new(bundle),
        &*kept.tier,
        &kept.records,
        &ledger,
        &[],
    )
    .map_err(|error| refused(file, error))?;
    if let Some(label) = &imported.label_taken {
        note(format!(
            "note: another context is labelled {label:?}: this one has no label now"
        ));
    }
    match format {
        Format::Json => {
            let mut value = object(&imported.record, &kept.presence(&imported.record));
            value["new_blocks"] = json!(imported.new_blocks);
            output::print_json(&value)
        }
        Format::Text => output::print(&format!(
            "{}\n{} blocks were new\n",
            line(&imported.record.summary),
            imported.new_blocks
        )),
    }
}

fn refused(file: &Path, error: BundleError) -> Failure {
    match error {
        BundleError::Io(error) => Failure::io(file.display(), &error),
        BundleError::Tier(error) => failure(error),
        error @ BundleError::Memory(_) => Failure::failed(error),
        error => Failure::wrong(format!("{}: {error}", file.display())),
    }
}
