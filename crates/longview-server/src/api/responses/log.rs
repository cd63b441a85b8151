//! Stored responses on disk: a file of lines that only grows, and is written anew when most of it is of no
//! use any more.
//!
//! A line says that a response was stored, `{"kept": {…}}`, or forgotten, `{"gone": "resp_…"}`. Lines may come
//! in any order, since each is written when a disk has time for it. One that was torn by the end of a
//! process is cut off.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use crate::error::ApiError;
use crate::folder::{append_line, io_error, private};

/// What a line says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Line {
    Kept(KeptTurn),
    Gone(String),
}

/// A request's items and the answer's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct KeptTurn {
    pub(super) id: String,
    /// The turn that it follows.
    pub(super) previous: Option<String>,
    /// How many of the items were given.
    pub(super) inputs: usize,
    /// A JSON list.
    pub(super) items: Box<str>,
    /// The response as JSON; `None` where it was forgotten and others follow it.
    pub(super) response: Option<Box<str>>,
}

/// The file of one tenant.
pub(super) struct Log {
    path: PathBuf,
    file: Mutex<Growing>,
}

struct Growing {
    /// Made when there is something to write.
    file: Option<File>,
    bytes: u64,
}

impl Log {
    /// Opens the file at `path`, which need not be there; returns what its lines say.
    pub(super) fn open(path: &Path) -> Result<(Log, Vec<Line>), ApiError> {
        let log = |file, bytes| Log {
            path: path.to_owned(),
            file: Mutex::new(Growing { file, bytes }),
        };
        let file = match private().read(true).append(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok((log(None, 0), Vec::new()));
            }
            opened => opened.map_err(io_error)?,
        };
        let (mut lines, mut whole) = (Vec::new(), 0);
        let (mut reader, mut line) = (BufReader::new(&file), Vec::new());
        while reader.read_until(b'\n', &mut line).map_err(io_error)? > 0 {
            if !line.ends_with(b"\n") {
                break;
            }
            whole += line.len() as u64;
            // A line of another version, or one that a disk has damaged, says nothing.
            lines.extend(serde_json::from_slice::<Line>(&line));
            line.clear();
        }
        file.set_len(whole).map_err(io_error)?;
        Ok((log(Some(file), whole), lines))
    }

    /// Writes a line; returns how long the file is then.
    pub(super) fn append(&self, line: &Line) -> Result<u64, ApiError> {
        let text = serde_json::to_string(line).map_err(|error| io_error(error.into()))?;
        let mut growing = self.lock();
        let file = match growing.file.take() {
            Some(file) => file,
            None => open(&self.path).map_err(io_error)?,
        };
        let written = append_line(&file, &text);
        growing.file = Some(file);
        written.map_err(io_error)?;
        growing.bytes += text.len() as u64 + 1;
        Ok(growing.bytes)
    }

    /// Writes the file anew with what `lines` says, which is asked when no other line is being written.
    pub(super) fn rewrite(&self, lines: impl FnOnce() -> Vec<KeptTurn>) -> Result<(), ApiError> {
        let mut growing = self.lock();
        let written = (|| {
            let folder = self.path.parent().unwrap_or(Path::new("."));
            let mut out = BufWriter::new(NamedTempFile::new_in(folder)?);
            let mut bytes = 0;
            for turn in lines() {
                let line = serde_json::to_string(&Line::Kept(turn)).map_err(io::Error::from)?;
                out.write_all(line.as_bytes())?;
                out.write_all(b"\n")?;
                bytes += line.len() as u64 + 1;
            }
            let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.as_file().sync_all()?;
            file.persist(&self.path)?;
            let file = Some(open(&self.path)?);
            Ok(Growing { file, bytes })
        })();
        *growing = written.map_err(io_error)?;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Growing> {
        // The file is whole at every unlock, so a panic elsewhere does not spoil it.
        self.file
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn open(path: &Path) -> io::Result<File> {
    private().read(true).append(true).create(true).open(path)
}
