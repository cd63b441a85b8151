//! Finished samples on disk, so that a run that was stopped goes on.
//!
//! One JSON object a line: first what the run depends on, then an outcome each. A line is written
//! whole and flushed; one that was cut off at the end of the file is dropped.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::EvalError;
use crate::outcome::{Case, Outcome};

/// What the outcomes of a run depend on beside tasks, lengths and setups.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The model's name and the bytes of its file.
    pub model: String,
    /// The numerics class.
    pub numerics: String,
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

    /// The record at `path`, which is made where there is none.
    ///
    /// # Errors
    /// [`EvalError::Record`] when it belongs to another run or is damaged, and errors of the file.
    pub fn open(path: &Path, identity: &Identity) -> Result<Record, EvalError> {
        let io = |action| {
            move |source| EvalError::Io {
                path: path.display().to_string(),
                action,
                source,
            }
        };
        let wrong = |what: String| EvalError::Record {
            path: path.display().to_string(),
            what,
        };
        let mut options = OpenOptions::new();
        let opened = options.read(true).append(true).create(true).open(path);
        let mut file = opened.map_err(io("open"))?;
        let bytes = std::fs::read(path).map_err(io("read"))?;
        let whole = bytes
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |at| at + 1);
        let text = std::str::from_utf8(&bytes[..whole])
            .map_err(|_| wrong("this is no record of an evaluation".to_owned()))?;
        let mut lines = text.lines().enumerate();
        let mut outcomes: Vec<Outcome> = Vec::new();
        match lines.next() {
            // Only an unfinished first line may be replaced: anything else is somebody's file.
            None if bytes.is_empty() || bytes.starts_with(b"{\"model\"") => {
                file.set_len(0).map_err(io("write"))?;
                write_line(&mut file, identity).map_err(io("write"))?;
            }
            None => return Err(wrong("this is no record of an evaluation".to_owned())),
            Some((_, first)) => {
                let held: Identity = serde_json::from_str(first)
                    .map_err(|_| wrong("this is no record of an evaluation".to_owned()))?;
                held.same_as(identity).map_err(wrong)?;
                for (at, line) in lines {
                    let outcome = serde_json::from_str(line);
                    let damaged = |error| wrong(format!("line {} is damaged: {error}", at + 1));
                    outcomes.push(outcome.map_err(damaged)?);
                }
                file.set_len(whole as u64).map_err(io("write"))?;
                file.seek(SeekFrom::End(0)).map_err(io("write"))?;
            }
        }
        let mut record = Record::in_memory();
        outcomes
            .into_iter()
            .for_each(|outcome| record.note(outcome));
        record.file = Some((path.to_owned(), file));
        Ok(record)
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
            write_line(file, &outcome).map_err(|source| EvalError::Io {
                path: path.display().to_string(),
                action: "write",
                source,
            })?;
        }
        self.note(outcome);
        Ok(())
    }

    fn note(&mut self, outcome: Outcome) {
        let place = place_of(&outcome.case, &outcome.setup);
        self.places.insert(place, self.outcomes.len());
        self.outcomes.push(outcome);
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
            chunk_tokens: 512,
            wording: "needle".to_owned(),
            material: "x".to_owned(),
            seed,
        }
    }

    #[test]
    fn what_was_finished_is_found_again_and_a_torn_line_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("outcomes.jsonl");
        let mut record = Record::open(&path, &identity(1)).unwrap();
        record.add(outcome("a", "q4", 0, 50.0)).unwrap();
        drop(record);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"task\":\"a\",\"len").unwrap();
        drop(file);
        let mut record = Record::open(&path, &identity(1)).unwrap();
        let one = outcome("a", "q4", 0, 50.0);
        assert_eq!(record.find(&one.case, "q4"), Some(&one));
        assert!(record.find(&one.case, "q8").is_none());
        record.add(outcome("a", "q8", 0, 60.0)).unwrap();
        drop(record);
        assert_eq!(
            Record::open(&path, &identity(1)).unwrap().outcomes().len(),
            2
        );
    }

    #[test]
    fn files_of_others_are_refused_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("outcomes.jsonl");
        drop(Record::open(&path, &identity(1)).unwrap());
        let message = Record::open(&path, &identity(2)).err().unwrap().to_string();
        assert!(message.contains("seed: 1, now 2"), "{message}");
        for foreign in ["Dear diary\n", "no line end"] {
            std::fs::write(&path, foreign).unwrap();
            let message = Record::open(&path, &identity(1)).err().unwrap().to_string();
            assert!(message.contains("no record"), "{message}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), foreign);
        }
    }
}
