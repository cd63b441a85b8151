//! Small files read whole.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::Value;

use crate::error::{Result, WeightsError};

/// The most an index or a configuration may have. Real ones stay below a tenth of this.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// A JSON file, or `None` if it is not there.
pub(crate) fn read_json(path: &Path) -> Result<Option<Value>> {
    let Some(bytes) = read_bounded(path, MAX_JSON_BYTES)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| WeightsError::Json {
            path: path.display().to_string(),
            what: format!("not valid JSON: {error}"),
        })
}

/// A file of at most `limit` bytes whole, or `None` if it is not there.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let name = || path.display().to_string();
    let bytes = match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => metadata.len(),
        Ok(_) => {
            let source = io::Error::other("it is not a regular file");
            return Err(WeightsError::Io {
                path: name(),
                action: "read the file",
                source,
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(WeightsError::Io {
                path: name(),
                action: "read the file",
                source,
            });
        }
    };
    if bytes > limit {
        return Err(WeightsError::TooLarge {
            path: name(),
            bytes,
            limit,
        });
    }
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(source) => Err(WeightsError::Io {
            path: name(),
            action: "read the file",
            source,
        }),
    }
}
