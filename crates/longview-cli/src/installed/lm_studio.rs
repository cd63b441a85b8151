//! LM Studio's folder: `PUBLISHER/REPOSITORY/…`.

use std::path::Path;

use super::{Installed, Source, entries, file_name, ggufs, safetensors_bytes};

/// Adds the models of one folder.
pub(super) fn list(folder: &Path, models: &mut Vec<Installed>) {
    for publisher in entries(folder) {
        for repository in entries(&publisher) {
            let base = format!("{}/{}", file_name(&publisher), file_name(&repository));
            let files = entries(&repository);
            let source = Source::LmStudio;
            for (path, bytes) in ggufs(&files) {
                let name = format!("{base}/{}", file_name(&path));
                models.push(Installed {
                    name,
                    source,
                    path,
                    bytes,
                });
            }
            let bytes = safetensors_bytes(&files);
            if bytes > 0 && repository.join("config.json").exists() {
                models.push(Installed {
                    name: base,
                    source,
                    path: repository,
                    bytes,
                });
            }
        }
    }
}
