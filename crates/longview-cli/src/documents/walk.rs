//! Which files a folder or a pattern stands for.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ignore::WalkBuilder;

use super::kind::Unreadable;
use super::pattern::Pattern;
use crate::failure::Failure;

/// Files to read, and what lies beside them and is not read.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) files: Vec<PathBuf>,
    /// By the name it is to be shown under.
    pub(super) left_out: Vec<(Unreadable, String)>,
}

impl Found {
    /// The files below a folder in the order of their paths. Hidden ones, those that `.gitignore` names
    /// (also outside a git repository), links, and what is no file are left out by name; what lies in a
    /// folder that is left out goes without saying.
    pub(super) fn below(folder: &Path) -> Result<Found, Failure> {
        let mut found = Found::default();
        found.add_folder(folder)?;
        Ok(found)
    }

    /// The files that match a pattern, each once, in the order of their paths; folders among the
    /// matches stand for the files below them.
    pub(super) fn matching(pattern: &Pattern) -> Result<Found, Failure> {
        let mut found = Found::default();
        let matches = pattern.matches()?;
        for path in matches.paths {
            if path.is_dir() {
                found.add_folder(&path)?;
            } else {
                found.files.push(path);
            }
        }
        for (place, error) in matches.unreadable {
            found.leave_out(Unreadable::Io(error), &place);
        }
        found.files.sort();
        found.files.dedup();
        if found.files.is_empty() && found.left_out.is_empty() {
            return Err(Failure::wrong(format!(
                "{}: no file matches",
                pattern.shown()
            )));
        }
        Ok(found)
    }

    fn add_folder(&mut self, folder: &Path) -> Result<(), Failure> {
        let walk = WalkBuilder::new(folder)
            .require_git(false)
            .git_global(false)
            .git_exclude(false)
            .ignore(false)
            .sort_by_file_path(Path::cmp)
            .build();
        let mut folders = Vec::new();
        let mut seen = HashSet::new();
        for entry in walk {
            crate::interrupt::check()?;
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    self.leave_out(Unreadable::Io(io::Error::other(error)), folder);
                    continue;
                }
            };
            let kind = entry.file_type();
            let path = entry.into_path();
            match kind {
                Some(kind) if kind.is_file() => self.files.push(path.clone()),
                Some(kind) if kind.is_dir() => folders.push(path.clone()),
                Some(kind) if kind.is_symlink() => self.leave_out(Unreadable::Link, &path),
                _ => self.leave_out(Unreadable::Special, &path),
            }
            seen.insert(path);
        }
        for folder in folders {
            crate::interrupt::check()?;
            // One that cannot be looked into was told of by the walk.
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            let mut passed: Vec<PathBuf> = entries
                .map(|entry| entry.path())
                .filter(|path| !seen.contains(path))
                .collect();
            passed.sort();
            for path in passed {
                let name = path.file_name().unwrap_or_default();
                let why = match name.as_encoded_bytes().starts_with(b".") {
                    true => Unreadable::Hidden,
                    false => Unreadable::Ignored,
                };
                self.leave_out(why, &path);
            }
        }
        Ok(())
    }

    fn leave_out(&mut self, why: Unreadable, path: &Path) {
        self.left_out.push((why, path.display().to_string()));
    }
}
