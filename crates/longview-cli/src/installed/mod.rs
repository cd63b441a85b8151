//! Models that are on this machine already, whoever downloaded them.

mod huggingface;
mod lm_studio;
mod ollama;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use longview::weights::PartName;
use serde::Serialize;

/// A model that can be named in `--model`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Installed {
    /// What to write after `--model`.
    pub(crate) name: String,
    /// Which program keeps it.
    pub(crate) source: Source,
    /// The GGUF file or the folder.
    pub(crate) path: PathBuf,
    /// Bytes of its weights.
    pub(crate) bytes: u64,
}

/// Who keeps a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Source {
    /// The cache of the Hugging Face libraries.
    #[serde(rename = "Hugging Face")]
    HuggingFace,
    /// Ollama.
    Ollama,
    /// LM Studio.
    #[serde(rename = "LM Studio")]
    LmStudio,
}

/// Folders in which models are looked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    huggingface: Vec<PathBuf>,
    ollama: Vec<PathBuf>,
    lm_studio: Vec<PathBuf>,
}

impl Places {
    /// The usual places of this user, and those that the programs' environment variables name.
    pub(crate) fn of_user() -> Places {
        let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let home = variable("HOME")
            .or_else(|| variable("USERPROFILE"))
            .map(PathBuf::from);
        let in_home = |path: &str| home.as_ref().map(|home| home.join(path));
        let cache = variable("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| in_home(".cache"));
        let hub = variable("HF_HUB_CACHE")
            .map(PathBuf::from)
            .or_else(|| variable("HF_HOME").map(|home| PathBuf::from(home).join("hub")))
            .or_else(|| cache.map(|cache| cache.join("huggingface/hub")));
        let ollama = match variable("OLLAMA_MODELS") {
            Some(folder) => vec![Some(PathBuf::from(folder))],
            None => vec![
                in_home(".ollama/models"),
                Some(PathBuf::from("/usr/share/ollama/.ollama/models")),
            ],
        };
        let lm_studio = vec![
            in_home(".lmstudio/models"),
            in_home(".cache/lm-studio/models"),
        ];
        Places {
            huggingface: hub.into_iter().collect(),
            ollama: ollama.into_iter().flatten().collect(),
            lm_studio: lm_studio.into_iter().flatten().collect(),
        }
    }

    /// Everything that is there, by name. A folder that cannot be read holds nothing.
    pub(crate) fn list(&self) -> Vec<Installed> {
        let mut models = Vec::new();
        self.huggingface
            .iter()
            .for_each(|folder| huggingface::list(folder, &mut models));
        self.ollama
            .iter()
            .for_each(|folder| ollama::list(folder, &mut models));
        self.lm_studio
            .iter()
            .for_each(|folder| lm_studio::list(folder, &mut models));
        models.sort_by(|a, b| a.name.cmp(&b.name).then_with(|| a.path.cmp(&b.path)));
        models
    }

    /// All folders that are looked into.
    pub(crate) fn folders(&self) -> impl Iterator<Item = &Path> {
        let all = self
            .huggingface
            .iter()
            .chain(&self.ollama)
            .chain(&self.lm_studio);
        all.map(PathBuf::as_path)
    }
}

/// The entries of a folder in order; nothing when it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths
}

fn file_name(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or("")
}

/// The GGUF models among `files`, each with the bytes of all its parts: of a split model only the
/// first part counts as a model. Projectors of vision models are none.
fn ggufs(files: &[PathBuf]) -> Vec<(PathBuf, u64)> {
    let size = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
    let mut models: Vec<(PathBuf, u64)> = Vec::new();
    for path in files {
        let name = file_name(path);
        if !name.ends_with(".gguf") || name.starts_with("mmproj") {
            continue;
        }
        match PartName::parse(name) {
            Some(part) if !part.is_first() => {
                let first = path.with_file_name(PartName { number: 1, ..part }.to_string());
                if let Some((_, bytes)) = models.iter_mut().find(|(path, _)| *path == first) {
                    *bytes += size(path);
                }
            }
            _ => models.push((path.clone(), size(path))),
        }
    }
    models
}

/// Bytes of the safetensors among `files`; 0 when there are none.
fn safetensors_bytes(files: &[PathBuf]) -> u64 {
    files
        .iter()
        .filter(|path| file_name(path).ends_with(".safetensors"))
        .filter_map(|path| fs::metadata(path).ok())
        .map(|metadata| metadata.len())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Home(tempfile::TempDir);

    impl Home {
        fn new(files: &[(&str, &str)]) -> Home {
            let home = tempfile::tempdir().unwrap();
            for (name, text) in files {
                let path = home.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Home(home)
        }

        /// Name, path below the home folder, bytes.
        fn list(&self) -> Vec<(String, String, u64)> {
            let at = |path: &str| vec![self.0.path().join(path)];
            let places = Places {
                huggingface: at("hub"),
                ollama: at("ollama"),
                lm_studio: at("lms"),
            };
            let relative = |path: &Path| {
                path.strip_prefix(self.0.path())
                    .unwrap()
                    .display()
                    .to_string()
            };
            let list = places.list().into_iter();
            list.map(|model| (model.name, relative(&model.path), model.bytes))
                .collect()
        }
    }

    #[test]
    fn hugging_face_snapshots_are_models() {
        let home = Home::new(&[
            ("hub/models--Qwen--Qwen3-0.6B/refs/main", "abc"),
            (
                "hub/models--Qwen--Qwen3-0.6B/snapshots/abc/config.json",
                "{}",
            ),
            (
                "hub/models--Qwen--Qwen3-0.6B/snapshots/abc/model.safetensors",
                "12345",
            ),
            (
                "hub/models--Qwen--Qwen3-0.6B/snapshots/old/model.safetensors",
                "1",
            ),
            ("hub/models--org--small-GGUF/refs/main", "x"),
            (
                "hub/models--org--small-GGUF/snapshots/x/small-q4_0.gguf",
                "123",
            ),
            (
                "hub/models--org--small-GGUF/snapshots/x/small-q8_0.gguf",
                "1234",
            ),
            (
                "hub/models--org--small-GGUF/snapshots/x/mmproj-small.gguf",
                "1",
            ),
            ("hub/models--org--empty/refs/main", "x"),
            ("hub/models--org--evil/refs/main", "../../.."),
            ("hub/datasets--org--data/refs/main", "x"),
        ]);
        let snapshots = "hub/models--org--small-GGUF/snapshots/x";
        assert_eq!(
            home.list(),
            [
                (
                    "Qwen/Qwen3-0.6B".into(),
                    "hub/models--Qwen--Qwen3-0.6B/snapshots/abc".into(),
                    5
                ),
                (
                    "org/small-GGUF/small-q4_0.gguf".into(),
                    format!("{snapshots}/small-q4_0.gguf"),
                    3
                ),
                (
                    "org/small-GGUF/small-q8_0.gguf".into(),
                    format!("{snapshots}/small-q8_0.gguf"),
                    4
                ),
            ]
        );
    }

    #[test]
    fn ollama_manifests_lead_to_blobs() {
        let manifest = |digest: &str| {
            format!(
                r#"{{"layers": [
                    {{"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:00"}},
                    {{"mediaType": "application/vnd.ollama.image.model", "digest": "{digest}"}}
                ]}}"#
            )
        };
        let manifests = "ollama/manifests/registry.ollama.ai";
        let home = Home::new(&[
            (
                &format!("{manifests}/library/llama3.2/1b"),
                &manifest("sha256:ab12"),
            ),
            (
                &format!("{manifests}/someone/tuned/latest"),
                &manifest("sha256:ab12"),
            ),
            (
                &format!("{manifests}/library/gone/latest"),
                &manifest("sha256:ff"),
            ),
            (
                &format!("{manifests}/library/evil/latest"),
                &manifest("sha256:../../x"),
            ),
            (&format!("{manifests}/library/torn/latest"), "{"),
            (
                "ollama/manifests/hf.co/org/repo/Q4_K_M",
                &manifest("sha256:ab12"),
            ),
            ("ollama/blobs/sha256-ab12", "1234567"),
        ]);
        let blob = "ollama/blobs/sha256-ab12".to_owned();
        assert_eq!(
            home.list(),
            [
                ("hf.co/org/repo:Q4_K_M".to_owned(), blob.clone(), 7),
                ("llama3.2:1b".to_owned(), blob.clone(), 7),
                ("someone/tuned:latest".to_owned(), blob, 7),
            ]
        );
    }

    #[test]
    fn lm_studio_folders_and_split_files() {
        let home = Home::new(&[
            ("lms/org/repo/big-00001-of-00002.gguf", "123"),
            ("lms/org/repo/big-00002-of-00002.gguf", "12345"),
            ("lms/org/repo/small.gguf", "1"),
            ("lms/org/tensors/config.json", "{}"),
            ("lms/org/tensors/model.safetensors", "12"),
        ]);
        let names = home.list();
        assert_eq!(
            names,
            [
                (
                    "org/repo/big-00001-of-00002.gguf".to_owned(),
                    "lms/org/repo/big-00001-of-00002.gguf".to_owned(),
                    8
                ),
                (
                    "org/repo/small.gguf".to_owned(),
                    "lms/org/repo/small.gguf".to_owned(),
                    1
                ),
                ("org/tensors".to_owned(), "lms/org/tensors".to_owned(), 2),
            ]
        );
    }
}
