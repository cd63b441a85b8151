//! Where contexts are kept between runs.

use std::env;
use std::path::PathBuf;

use clap::Args;
use etcetera::BaseStrategy;
use longview::records::Records;
use longview::tier::StoreFolder;
use longview::{StoreOptions, StorePlace};

use crate::failure::Failure;
use crate::input::variable;
use crate::size::parse_bytes;

/// What `--cache-max` is when nobody says: room for five million tokens of the reference model, or
/// 300,000 of a 1B model.
const DEFAULT_MAX: u64 = 10 << 30;

/// Names the folder, in place of `--cache-dir`.
const FOLDER_VARIABLE: &str = "LONGVIEW_CACHE_DIR";

/// Says how large it may become, in place of `--cache-max`.
const MAX_VARIABLE: &str = "LONGVIEW_CACHE_MAX";

/// Names the store that machines share, in place of `--cache-remote`.
const REMOTE_VARIABLE: &str = "LONGVIEW_CACHE_REMOTE";

/// The folder of a user's caches gets one of this name.
const FOLDER: &str = "longview";

/// Where contexts are kept.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Contexts kept on disk")]
pub(crate) struct StoreArgs {
    /// The folder in which what was read is kept, so that it is never read twice
    /// [default: $LONGVIEW_CACHE_DIR, or longview in your cache folder]
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) cache_dir: Option<PathBuf>,

    /// The most that folder may take, such as 50GiB; what is least worth keeping goes first. 0 keeps
    /// nothing from one run to the next [default: $LONGVIEW_CACHE_MAX, or 10GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_cache_max, global = true)]
    pub(crate) cache_max: Option<u64>,

    /// A store that several machines share, beside the folder: a bucket that speaks the S3 protocol
    /// (s3://bucket/folder; AWS_ENDPOINT, AWS_ACCESS_KEY_ID and the like say where and who) or a folder
    /// (file:///folder). Needs a build with the cargo feature `remote` [default: $LONGVIEW_CACHE_REMOTE]
    #[arg(long, value_name = "URL", global = true)]
    pub(crate) cache_remote: Option<String>,

    /// Keeps apart what must not be shared: contexts are found only under the salt they were made
    /// under
    #[arg(long, value_name = "TEXT", global = true)]
    pub(crate) salt: Option<String>,
}

/// What a command that computes keeps.
pub(crate) struct Kept {
    /// Where keys and values go.
    pub(crate) options: Option<StoreOptions>,
    /// The records of contexts, where there is a folder that can be written to.
    pub(crate) records: Option<Records>,
}

/// Whether a person chose the folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chosen {
    ByName,
    ByDefault,
}

impl StoreArgs {
    /// Where a command that computes keeps contexts. `memory` is the limit given, if any: what it has
    /// no room for needs a place on disk even where nothing is kept.
    ///
    /// A folder that nobody named and that cannot be used is worth a notice, and nothing is kept.
    ///
    /// # Errors
    /// When a folder that was named cannot be used.
    pub(crate) fn options(
        &self,
        memory: Option<u64>,
        notices: &mut Vec<String>,
    ) -> Result<Kept, Failure> {
        let remote = self.remote()?;
        let needed = memory.is_some() || remote.is_some();
        let in_place = |place, max_bytes| StoreOptions {
            place,
            remote: remote.clone(),
            max_bytes,
            salt: self.salt().to_owned(),
        };
        // Whatever does not fit into memory, and it goes when the program ends.
        let temporary = || Kept {
            options: needed.then(|| in_place(StorePlace::Temporary, u64::MAX)),
            records: None,
        };
        let max = self.max()?;
        if max == 0 {
            return Ok(temporary());
        }
        let (folder, chosen) = self.folder();
        let opened =
            folder.and_then(|folder| StoreFolder::open(&folder).map_err(|error| error.to_string()));
        match (opened, chosen) {
            (Ok(folder), _) => Ok(Kept {
                records: (!folder.read_only()).then(|| self.records(&folder)),
                options: Some(in_place(StorePlace::Folder(folder.root().to_owned()), max)),
            }),
            (Err(error), Chosen::ByName) => {
                Err(Failure::wrong(format!("contexts cannot be kept: {error}")))
            }
            (Err(error), Chosen::ByDefault) => {
                notices.push(format!(
                    "what is read is not kept for the next time: {error} (--cache-dir names another \
                     folder, --cache-max 0 none)"
                ));
                Ok(temporary())
            }
        }
    }

    /// The folder, for commands that look into it.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(crate) fn open_folder(&self) -> Result<StoreFolder, Failure> {
        let (folder, _) = self.folder();
        StoreFolder::open(&folder.map_err(Failure::wrong)?).map_err(Failure::wrong)
    }

    /// The records in it that belong to the salt.
    pub(crate) fn records(&self, folder: &StoreFolder) -> Records {
        Records::open(folder, self.salt().as_bytes())
    }

    /// The most bytes it may take.
    pub(crate) fn max(&self) -> Result<u64, Failure> {
        if let Some(max) = self.cache_max {
            return Ok(max);
        }
        match variable(MAX_VARIABLE)? {
            Some(text) => parse_cache_max(&text)
                .map_err(|error| Failure::wrong(format!("${MAX_VARIABLE}: {error}"))),
            None => Ok(DEFAULT_MAX),
        }
    }

    fn remote(&self) -> Result<Option<String>, Failure> {
        match &self.cache_remote {
            Some(url) => Ok(Some(url.clone())),
            None => variable(REMOTE_VARIABLE),
        }
    }

    /// The salt that contexts are found under.
    pub(crate) fn salt(&self) -> &str {
        self.salt.as_deref().unwrap_or_default()
    }

    fn folder(&self) -> (Result<PathBuf, String>, Chosen) {
        let variable = env::var_os(FOLDER_VARIABLE).filter(|folder| !folder.is_empty());
        if let Some(folder) = self.cache_dir.clone().or(variable.map(PathBuf::from)) {
            return (Ok(folder), Chosen::ByName);
        }
        let places = etcetera::base_strategy::choose_native_strategy();
        let folder = places.map(|places| places.cache_dir().join(FOLDER));
        (folder.map_err(|error| error.to_string()), Chosen::ByDefault)
    }
}

fn parse_cache_max(text: &str) -> Result<u64, String> {
    match text.trim() {
        "0" => Ok(0),
        size => parse_bytes(size),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_may_be_kept_and_then_only_what_memory_lacks_room_for_goes_to_disk() {
        let args = StoreArgs {
            cache_max: Some(parse_cache_max(" 0 ").unwrap()),
            ..StoreArgs::default()
        };
        let mut notices = Vec::new();
        assert_eq!(args.options(None, &mut notices).unwrap().options, None);
        let limited = args.options(Some(1 << 30), &mut notices).unwrap();
        let limited = limited.options.unwrap();
        assert_eq!(limited.place, StorePlace::Temporary);
        assert!(notices.is_empty());
        assert_eq!(parse_cache_max("2GiB"), Ok(2 << 30));
        assert!(parse_cache_max("none").is_err());
    }

    #[test]
    fn a_folder_that_was_named_must_be_usable() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "dear").unwrap();
        let named = |path: PathBuf| StoreArgs {
            cache_dir: Some(path),
            cache_max: Some(1 << 20),
            cache_remote: None,
            salt: Some("a".to_owned()),
        };
        for taken in [file.clone(), folder.path().to_owned()] {
            let refused = named(taken).options(None, &mut Vec::new()).err().unwrap();
            assert_eq!(refused.code(), 2);
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"dear");
        let fresh = folder.path().join("new/store");
        let kept = named(fresh.clone()).options(None, &mut Vec::new()).unwrap();
        let options = kept.options.unwrap();
        assert!(kept.records.is_some());
        assert_eq!(options.place, StorePlace::Folder(fresh));
        assert_eq!((options.max_bytes, options.salt.as_str()), (1 << 20, "a"));
    }
}
