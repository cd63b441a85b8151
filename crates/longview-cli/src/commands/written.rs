//! A file that a command writes: checked before; a model is also shown while, and summed up after.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use longview::models::ModelError;
use longview::models::convert::Report;
use serde_json::{Value, json};

use crate::args::{Format, Taken};
use crate::failure::Failure;
use crate::interrupt;
use crate::output;
use crate::progress::Progress;
use longview::human_bytes;

/// Shows a tensor's name, bytes written and bytes in all; a break asks to stop.
type Tell<'a> = dyn FnMut(&str, u64, u64) -> ControlFlow<()> + 'a;

/// Where a file is written to.
pub(super) struct Output {
    path: PathBuf,
}

impl Output {
    /// Refuses what would be lost or cannot be written, before any work.
    pub(super) fn new(path: &Path, taken: Taken) -> Result<Output, Failure> {
        let name = path.display();
        if path.is_dir() {
            return Err(Failure::wrong(format!(
                "{name}: this is a folder, name a file"
            )));
        }
        if path.exists() && taken == Taken::Refused {
            return Err(Failure::wrong(format!(
                "{name}: the file exists already; --force overwrites it"
            )));
        }
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        if !folder.is_dir() {
            return Err(Failure::wrong(format!(
                "{}: there is no such folder",
                folder.display()
            )));
        }
        let written_to = if path.exists() { path } else { folder };
        check_permission(written_to).map_err(|error| Failure::io(name, &error))?;
        Ok(Output {
            path: path.to_owned(),
        })
    }

    /// Where that is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses to write over what is read.
    pub(super) fn differs_from(&self, input: &Path) -> Result<(), Failure> {
        let same = match (self.path.canonicalize(), input.canonicalize()) {
            (Ok(output), Ok(input)) => output == input,
            _ => false,
        };
        if same {
            let name = self.path.display();
            return Err(Failure::wrong(format!(
                "{name}: this is what is read; write to another file"
            )));
        }
        Ok(())
    }

    /// Runs `write` under a progress display and prints what came of it.
    pub(super) fn write(
        &self,
        format: Format,
        write: impl FnOnce(&Path, &mut Tell<'_>) -> Result<Report, ModelError>,
    ) -> Result<(), Failure> {
        let start = Instant::now();
        let progress = Progress::spinner(format!("writing {}", self.path.display()));
        let report = write(&self.path, &mut |tensor, done, total| {
            let (done, total) = (human_bytes(done), human_bytes(total));
            progress.say(format!("writing {tensor}: {done} of {total}"));
            if interrupt::pressed() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        interrupt::check()?;
        let report = report?;
        progress.finish();
        self.print(&report, start.elapsed().as_secs_f64(), format)
    }

    fn print(&self, report: &Report, seconds: f64, format: Format) -> Result<(), Failure> {
        let path = self.path.display().to_string();
        match format {
            Format::Json => {
                let formats: serde_json::Map<String, Value> = report
                    .formats
                    .iter()
                    .map(|(format, (tensors, bytes))| {
                        (
                            format.to_string(),
                            json!({ "tensors": tensors, "bytes": bytes }),
                        )
                    })
                    .collect();
                output::print_json(&json!({
                    "path": path,
                    "bytes": report.bytes,
                    "tensors": report.tensors,
                    "formats": formats,
                    "seconds": seconds,
                    "peak_memory_bytes": crate::machine::peak_memory_bytes(),
                    "notices": report.notices,
                }))
            }
            Format::Text => {
                report
                    .notices
                    .iter()
                    .for_each(|notice| output::tell(notice));
                let formats: Vec<String> = report
                    .formats
                    .iter()
                    .map(|(format, (tensors, bytes))| {
                        format!("{tensors} tensors of {format} ({})", human_bytes(*bytes))
                    })
                    .collect();
                output::print(&format!(
                    "{path}: {} in {seconds:.1} s, {}\n",
                    human_bytes(report.bytes),
                    formats.join(", ")
                ))
            }
        }
    }
}

/// Whether the system lets this process write to a file or into a folder, as far as it says without
/// being put to the test.
fn check_permission(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK)?;
    #[cfg(not(unix))]
    if path.is_file() && path.metadata()?.permissions().readonly() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(())
}

/// Processor cores.
pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
