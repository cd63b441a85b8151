//! Ollama's store: `manifests/HOST/OWNER/MODEL/TAG` name the blobs that hold GGUF files.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Installed, Source, entries, file_name};

/// Adds the models of one store.
pub(super) fn list(store: &Path, models: &mut Vec<Installed>) {
    for host in entries(&store.join("manifests")) {
        for owner in entries(&host) {
            for model in entries(&owner) {
                for tag in entries(&model) {
                    let Some(path) = blob(store, &tag) else {
                        continue;
                    };
                    let Ok(metadata) = fs::metadata(&path) else {
                        continue;
                    };
                    let name = name([&host, &owner, &model, &tag]);
                    let bytes = metadata.len();
                    models.push(Installed {
                        name,
                        source: Source::Ollama,
                        path,
                        bytes,
                    });
                }
            }
        }
    }
}

/// The name as Ollama's own commands take it.
fn name([host, owner, model, tag]: [&Path; 4]) -> String {
    let host = match file_name(host) {
        "registry.ollama.ai" => String::new(),
        host => format!("{host}/"),
    };
    let owner = match file_name(owner) {
        "library" if host.is_empty() => String::new(),
        owner => format!("{owner}/"),
    };
    format!("{host}{owner}{}:{}", file_name(model), file_name(tag))
}

/// The blob with the weights that a manifest names.
fn blob(store: &Path, manifest: &Path) -> Option<PathBuf> {
    let manifest: Value = serde_json::from_slice(&fs::read(manifest).ok()?).ok()?;
    let is_model =
        |layer: &&Value| layer["mediaType"].as_str() == Some("application/vnd.ollama.image.model");
    let layer = manifest["layers"].as_array()?.iter().find(is_model)?;
    let digest = layer["digest"].as_str()?.strip_prefix("sha256:")?;
    let plain = !digest.is_empty() && digest.chars().all(|c| c.is_ascii_hexdigit());
    plain.then(|| store.join("blobs").join(format!("sha256-{digest}")))
}
