//! Which files a folder or a pattern stands for.

use std::path::{Path, PathBuf};

use ignore::WalkBuilder;

use crate::failure::Failure;

/// The files below a folder in the order of their paths, without hidden ones and those that
/// `.gitignore` names, also outside a git repository. Links are not followed.
pub(super) fn files(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let walk = WalkBuilder::new(folder)
        .require_git(false)
        .git_global(false)
        .git_exclude(false)
        .sort_by_file_path(Path::cmp)
        .build();
    let mut files = Vec::new();
    for entry in walk {
        crate::interrupt::check()?;
        let entry = entry.map_err(|error| {
            Failure::wrong(format!(
                "{}: cannot read the folder: {error}",
                folder.display()
            ))
        })?;
        if entry.file_type().is_some_and(|kind| kind.is_file()) {
            files.push(entry.into_path());
        }
    }
    Ok(files)
}

/// The files that match a pattern, in the order of their paths; folders among the matches stand for
/// the files below them.
pub(super) fn matches(pattern: &str) -> Result<Vec<PathBuf>, Failure> {
    let matches = glob::glob(pattern)
        .map_err(|error| Failure::wrong(format!("{pattern}: not a pattern: {error}")))?;
    let mut found = Vec::new();
    for path in matches {
        let path =
            path.map_err(|error| Failure::io(error.path().display().to_string(), error.error()))?;
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    if found.is_empty() {
        return Err(Failure::wrong(format!("{pattern}: no file matches")));
    }
    Ok(found)
}
