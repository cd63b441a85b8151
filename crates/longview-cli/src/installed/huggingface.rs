//! The Hugging Face cache: `models--ORG--NAME/snapshots/REVISION/…`.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Installed, Source, entries, file_name, ggufs, safetensors_bytes};

/// Adds the models of one cache folder: a snapshot with a configuration and safetensors under the
/// repository's name, and every GGUF file under the repository's name and its own.
pub(super) fn list(hub: &Path, models: &mut Vec<Installed>) {
    for folder in entries(hub) {
        let Some(repository) = file_name(&folder).strip_prefix("models--") else {
            continue;
        };
        let repository = repository.replace("--", "/");
        let Some(snapshot) = snapshot(&folder) else {
            continue;
        };
        let files = entries(&snapshot);
        let source = Source::HuggingFace;
        for (path, bytes) in ggufs(&files) {
            let name = format!("{repository}/{}", file_name(&path));
            models.push(Installed {
                name,
                source,
                path,
                bytes,
            });
        }
        let bytes = safetensors_bytes(&files);
        if bytes > 0 && snapshot.join("config.json").exists() {
            models.push(Installed {
                name: repository,
                source,
                path: snapshot,
                bytes,
            });
        }
    }
}

/// The snapshot that `main` points to, or the only one.
fn snapshot(folder: &Path) -> Option<PathBuf> {
    let snapshots = folder.join("snapshots");
    if let Ok(revision) = fs::read_to_string(folder.join("refs/main")) {
        let revision = revision.trim();
        let plain = revision.chars().all(|c| c.is_ascii_alphanumeric());
        let snapshot = snapshots.join(revision);
        if plain && !revision.is_empty() && snapshot.is_dir() {
            return Some(snapshot);
        }
    }
    match entries(&snapshots).as_slice() {
        [only] => Some(only.clone()),
        _ => None,
    }
}
