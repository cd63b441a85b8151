//! Finished samples on disk, so that a run that was stopped goes on.
//!
//! One JSON object a line: first what the run depends on, then an outcome each. A line is written
//! whole and flushed; one that was cut off at the end of the file is dropped.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::EvalError;
use crate::outcome::{Case, Outcome};
use crate::share::Share;

/// What the outcomes of a run depend on beside tasks, lengths and setups.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The model's name and the bytes of its file.
    pub model: String,
    /// The numerics class.
    pub numerics: String,
    /// The instruction set: sums run in another order on another.
    pub isa: String,
    /// Tokens a prefill computes in one pass: what acts between passes may depend on it.
    pub chunk_tokens: usize,
    /// The wording.
    pub wording: String,
    /// A hash of the wording, the haystack and the questions.
    pub material: String,
    /// The seed.
    pub seed: u64,
}

/// The outcomes of a run so far.
pub struct Record {
    outcomes: Vec<Outcome>,
    /// Where the outcome of a case and setup is among them.
    places: HashMap<String, usize>,
    file: Option<(PathBuf, File)>,
}

impl Record {
    /// A record in memory alone.
    pub fn in_memory() -> Record {
        Record {
            outcomes: Vec::new(),
            places: HashMap::new(),
            file: None,
        }
    }

    /// The record of `share` in `folder`, whose file is made where there is none, with what the files of
    /// other shares beside it hold by now: their outcomes are known, and are not measured again.
    ///
    /// # Errors
    /// [`EvalError::Record`] when a file belongs to another run or is damaged, and errors of the files.
    pub fn open(folder: &Path, share: Share, identity: &Identity) -> Result<Record, EvalError> {
        let path = folder.join(share.file_name());
        let mut options = OpenOptions::new();
        let opened = options.read(true).append(true).create(true).open(&path);
        let mut file = opened.map_err(io(&path, "open"))?;
        let bytes = fs::read(&path).map_err(io(&path, "read"))?;
        let mut record = Record::in_memory();
        // Only an unfinished first line may be replaced: anything else is somebody's file.
        let is_begun = bytes.is_empty() || bytes.starts_with(b"{\"model\"");
        if is_begun && !bytes.contains(&b'\n') {
            file.set_len(0).map_err(io(&path, "write"))?;
            write_line(&mut file, identity).map_err(io(&path, "write"))?;
        } else {
            let whole = record.read(&path, &bytes, identity)?;
            file.set_len(whole as u64).map_err(io(&path, "write"))?;
            file.seek(SeekFrom::End(0)).map_err(io(&path, "write"))?;
        }
        for beside in files_of_shares(folder)? {
            if beside != path {
                let bytes = fs::read(&beside).map_err(io(&beside, "read"))?;
                // One that was only just begun holds nothing yet.
                if bytes.contains(&b'\n') {
                    record.read(&beside, &bytes, identity)?;
                }
            }
        }
        record.file = Some((path, file));
        Ok(record)
    }

    /// Notes the outcomes in `bytes`, the contents of `path`, and returns how many bytes are whole lines.
    fn read(&mut self, path: &Path, bytes: &[u8], identity: &Identity) -> Result<usize, EvalError> {
        let wrong = |what: String| EvalError::Record {
            path: path.display().to_string(),
            what,
        };
        let foreign = || wrong("this is no record of an evaluation".to_owned());
        let end = bytes.iter().rposition(|&byte| byte == b'\n');
        let whole = end.map_or(0, |at| at + 1);
        let text = std::str::from_utf8(&bytes[..whole]).map_err(|_| foreign())?;
        let mut lines = text.lines().enumerate();
        let (_, first) = lines.next().ok_or_else(foreign)?;
        let held: Identity = serde_json::from_str(first).map_err(|_| foreign())?;
        held.same_as(identity).map_err(wrong)?;
        for (at, line) in lines {
            let outcome = serde_json::from_str(line);
            let damaged = |error| wrong(format!("line {} is damaged: {error}", at + 1));
            self.note(outcome.map_err(damaged)?);
        }
        Ok(whole)
    }

    /// All outcomes so far.
    pub fn outcomes(&self) -> &[Outcome] {
        &self.outcomes
    }

    /// The outcome of a setup for a sample, where it is known.
    pub fn find(&self, case: &Case, setup: &str) -> Option<&Outcome> {
        self.places
            .get(&place_of(case, setup))
            .map(|&at| &self.outcomes[at])
    }

    pub(crate) fn add(&mut self, outcome: Outcome) -> Result<(), EvalError> {
        if let Some((path, file)) = &mut self.file {
            write_line(file, &outcome).map_err(io(path, "write"))?;
        }
        self.note(outcome);
        Ok(())
    }

    fn note(&mut self, outcome: Outcome) {
        // Two shares may both have measured it; it came out the same.
        if let Entry::Vacant(place) = self.places.entry(place_of(&outcome.case, &outcome.setup)) {
            place.insert(self.outcomes.len());
            self.outcomes.push(outcome);
        }
    }
}

impl Identity {
    /// What differs, in words, when `wanted` is another run.
    fn same_as(&self, wanted: &Identity) -> Result<(), String> {
        let differs = |what: &str, held: String, wanted: String| {
            Err(format!(
                "the results in it belong to another evaluation ({what}: {held}, now {wanted}); \
                 give another place, or remove the file to begin anew"
            ))
        };
        for (what, held, wanted) in [
            ("model", &self.model, &wanted.model),
            ("numerics", &self.numerics, &wanted.numerics),
            ("wording", &self.wording, &wanted.wording),
            ("instruction set", &self.isa, &wanted.isa),
            ("texts", &self.material, &wanted.material),
        ] {
            if held != wanted {
                return differs(what, held.clone(), wanted.clone());
            }
        }
        if self.seed != wanted.seed {
            return differs("seed", self.seed.to_string(), wanted.seed.to_string());
        }
        if self.chunk_tokens != wanted.chunk_tokens {
            let (held, wanted) = (
                self.chunk_tokens.to_string(),
                wanted.chunk_tokens.to_string(),
            );
            return differs("chunk", held, wanted);
        }
        Ok(())
    }
}

/// The files of results in `folder`, of every share that was measured into it.
fn files_of_shares(folder: &Path) -> Result<Vec<PathBuf>, EvalError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(io(folder, "read"))? {
        let path = entry.map_err(io(folder, "read"))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| name.starts_with("results") && name.ends_with(".jsonl")) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> EvalError {
    move |source| EvalError::Io {
        path: path.display().to_string(),
        action,
        source,
    }
}

/// What an outcome is found by.
fn place_of(case: &Case, setup: &str) -> String {
    format!("{case:?} {setup}")
}

fn write_line(file: &mut File, line: &impl Serialize) -> std::io::Result<()> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    file.write_all(&bytes)?;
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::tests::outcome;

    fn identity(seed: u64) -> Identity {
        Identity {
            model: "m".to_owned(),
            numerics: "default".to_owned(),
            isa: "avx2".to_owned(),
            chunk_tokens: 512,
            wording: "needle".to_owned(),
            material: "x".to_owned(),
            seed,
        }
    }

    fn open(folder: &Path, share: &str, seed: u64) -> Result<Record, EvalError> {
        Record::open(folder, share.parse().unwrap(), &identity(seed))
    }

    #[test]
    fn what_was_finished_is_found_again_and_a_torn_line_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut record = open(folder.path(), "1/1", 1).unwrap();
        record.add(outcome("a", "q4", 0, 50.0)).unwrap();
        drop(record);
        let path = folder.path().join("results.jsonl");
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"task\":\"a\",\"len").unwrap();
        drop(file);
        let mut record = open(folder.path(), "1/1", 1).unwrap();
        let one = outcome("a", "q4", 0, 50.0);
        assert_eq!(record.find(&one.case, "q4"), Some(&one));
        assert!(record.find(&one.case, "q8").is_none());
        record.add(outcome("a", "q8", 0, 60.0)).unwrap();
        drop(record);
        assert_eq!(open(folder.path(), "1/1", 1).unwrap().outcomes().len(), 2);
    }

    #[test]
    fn shares_in_one_folder_know_of_each_other_and_write_apart() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = open(folder.path(), "1/2", 1).unwrap();
        first.add(outcome("a", "q4", 0, 50.0)).unwrap();
        let mut second = open(folder.path(), "2/2", 1).unwrap();
        assert_eq!(second.outcomes().len(), 1);
        second.add(outcome("a", "q4", 1, 60.0)).unwrap();
        // The first opened before that, so both have it.
        first.add(outcome("a", "q4", 1, 60.0)).unwrap();
        let torn = folder.path().join("results-2-of-2.jsonl");
        let mut file = OpenOptions::new().append(true).open(&torn).unwrap();
        file.write_all(b"{\"task\":\"a\",\"len").unwrap();
        let before = fs::read(&torn).unwrap();
        let all = open(folder.path(), "1/1", 1).unwrap();
        assert_eq!(all.outcomes().len(), 2);
        // It may still be written to.
        assert_eq!(fs::read(&torn).unwrap(), before);
        let message = open(folder.path(), "3/4", 2).err().unwrap().to_string();
        assert!(message.contains("seed: 1, now 2"), "{message}");
    }

    #[test]
    fn files_of_others_are_refused_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        drop(open(folder.path(), "1/1", 1).unwrap());
        let message = open(folder.path(), "1/1", 2).err().unwrap().to_string();
        assert!(message.contains("seed: 1, now 2"), "{message}");
        for foreign in ["Dear diary\n", "no line end"] {
            fs::write(&path, foreign).unwrap();
            let message = open(folder.path(), "1/1", 1).err().unwrap().to_string();
            assert!(message.contains("no record"), "{message}");
            assert_eq!(fs::read_to_string(&path).unwrap(), foreign);
        }
    }
}
