//! Patterns such as `src/**/*.rs`: what stands for the names of files.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};

use crate::failure::Failure;
use crate::interrupt;

/// A path with names that are written with `*`, `?` or `[…]`; `**` stands for any folders, also none.
///
/// Hidden files and folders are only found by a name that begins with a dot, as in a shell.
#[derive(Debug)]
pub(super) struct Pattern {
    shown: String,
    /// Where to begin: everything before the first name with a wildcard.
    base: PathBuf,
    steps: Vec<Step>,
}

/// One part of a path.
#[derive(Debug)]
enum Step {
    /// A name as it stands, or `..`.
    Plain(OsString),
    /// Names that match.
    Names {
        matcher: GlobMatcher,
        hidden: Hidden,
    },
    /// A folder and all below it.
    AnyFolders,
}

/// Whether names that begin with a dot may match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hidden {
    Found,
    LeftOut,
}

/// What a pattern stands for.
#[derive(Debug, Default)]
pub(super) struct Matches {
    /// Files and folders, in no order, perhaps several times.
    pub(super) paths: Vec<PathBuf>,
    /// Folders that could not be looked into.
    pub(super) unreadable: Vec<(PathBuf, io::Error)>,
}

impl Pattern {
    /// The pattern that `path` is, if it has wildcards.
    ///
    /// # Errors
    /// Wildcards that make no sense.
    pub(super) fn parse(path: &Path) -> Result<Option<Pattern>, Failure> {
        let mut base = PathBuf::new();
        let mut steps = Vec::new();
        for component in path.components() {
            let step = match component {
                Component::Normal(name) if has_wildcard(component) => {
                    step(name.to_str()).map_err(|what| {
                        let path = path.display();
                        Failure::wrong(format!("{path}: not a pattern: {what}"))
                    })?
                }
                other => Step::Plain(other.as_os_str().to_owned()),
            };
            match step {
                Step::Plain(name) if steps.is_empty() => base.push(name),
                step => steps.push(step),
            }
        }
        let pattern = Pattern {
            shown: path.display().to_string(),
            base,
            steps,
        };
        Ok(Some(pattern).filter(|pattern| !pattern.steps.is_empty()))
    }

    /// The pattern as it was given.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// Every path that matches. Links to folders are followed where a name matches them, not where
    /// `**` would.
    ///
    /// # Errors
    /// [`Failure::Stopped`] after Ctrl-C.
    pub(super) fn matches(&self) -> Result<Matches, Failure> {
        let mut matches = Matches::default();
        follow(&self.base, &self.steps, &mut matches)?;
        Ok(matches)
    }
}

fn follow(at: &Path, steps: &[Step], matches: &mut Matches) -> Result<(), Failure> {
    interrupt::check()?;
    let Some((step, rest)) = steps.split_first() else {
        // A link that leads nowhere is there, and will be refused by name.
        if at.symlink_metadata().is_ok() {
            matches.paths.push(at.to_owned());
        }
        return Ok(());
    };
    if let Step::Plain(name) = step {
        return follow(&at.join(name), rest, matches);
    }
    if !folder_of(at).is_dir() {
        return Ok(());
    }
    if let Step::AnyFolders = step {
        follow(at, rest, matches)?;
    }
    for entry in entries(at, &mut matches.unreadable) {
        let name = entry.file_name();
        let dotted = name.as_encoded_bytes().starts_with(b".");
        match step {
            Step::Names { matcher, hidden }
                if (!dotted || *hidden == Hidden::Found) && matcher.is_match(&name) =>
            {
                follow(&at.join(&name), rest, matches)?;
            }
            Step::AnyFolders if !dotted && entry.file_type().is_ok_and(|kind| kind.is_dir()) => {
                follow(&at.join(&name), steps, matches)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// What lies in a folder, as far as the system says.
fn entries(folder: &Path, unreadable: &mut Vec<(PathBuf, io::Error)>) -> Vec<fs::DirEntry> {
    let read = fs::read_dir(folder_of(folder));
    let list = read.and_then(|entries| entries.collect::<io::Result<Vec<fs::DirEntry>>>());
    list.unwrap_or_else(|error| {
        unreadable.push((folder.to_owned(), error));
        Vec::new()
    })
}

/// The folder at `path`, where nothing is the one that the program was started in.
fn folder_of(path: &Path) -> &Path {
    match path.as_os_str().is_empty() {
        true => Path::new("."),
        false => path,
    }
}

fn has_wildcard(component: Component<'_>) -> bool {
    let name = component.as_os_str().as_encoded_bytes();
    name.iter().any(|byte| b"*?[".contains(byte))
}

fn step(name: Option<&str>) -> Result<Step, String> {
    let name = name.ok_or("the name with the wildcard is not UTF-8 text")?;
    if name == "**" {
        return Ok(Step::AnyFolders);
    }
    let glob = GlobBuilder::new(name).literal_separator(true).build();
    let glob = glob.map_err(|error| error.kind().to_string())?;
    Ok(Step::Names {
        matcher: glob.compile_matcher(),
        hidden: match name.starts_with('.') {
            true => Hidden::Found,
            false => Hidden::LeftOut,
        },
    })
}
