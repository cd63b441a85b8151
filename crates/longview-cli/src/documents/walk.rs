//! Which files a folder or a pattern stands for.

use std::path::{Path, PathBuf};

use ignore::WalkBuilder;

use super::pattern::Pattern;
use crate::failure::Failure;

/// Files to read, and places that could not be looked into, each with what the system said.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) files: Vec<PathBuf>,
    pub(super) unreadable: Vec<(String, String)>,
}

impl Found {
    /// The files below a folder in the order of their paths, without hidden ones and those that
    /// `.gitignore` names, also outside a git repository. Links are not followed.
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
            let place = place.display().to_string();
            found.unreadable.push((place, error.to_string()));
        }
        found.files.sort();
        found.files.dedup();
        if found.files.is_empty() && found.unreadable.is_empty() {
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
            .sort_by_file_path(Path::cmp)
            .build();
        for entry in walk {
            crate::interrupt::check()?;
            match entry {
                Ok(entry) if entry.file_type().is_some_and(|kind| kind.is_file()) => {
                    self.files.push(entry.into_path());
                }
                Ok(_) => {}
                Err(error) => {
                    let place = folder.display().to_string();
                    self.unreadable.push((place, error.to_string()));
                }
            }
        }
        Ok(())
    }
}
