//! Weights of either kind behind one door.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::{Result, WeightsError};
use crate::gguf::{GgufFile, PartName};
use crate::huggingface::HuggingFaceFolder;
use crate::table::Table;
use crate::tensor::Tensor;

/// One of the files that an open model's weights come from.
#[derive(Clone, Debug)]
pub enum WeightPart<'a> {
    /// A file on disk.
    File(PathBuf),
    /// Bytes that are in memory anyway.
    Memory(&'a [u8]),
}

/// An open model: a GGUF file or a Hugging Face folder.
#[derive(Debug)]
#[non_exhaustive]
pub enum WeightFile {
    /// One GGUF file, or one model in several.
    Gguf(GgufFile),
    /// A folder with `config.json` and safetensors.
    HuggingFace(Box<HuggingFaceFolder>),
}

impl WeightFile {
    /// Opens a `.gguf` file, a Hugging Face folder, or a folder in which one GGUF model lies.
    ///
    /// A folder with `config.json` and safetensors is read as such, even if a GGUF lies beside them.
    ///
    /// # Errors
    ///
    /// When there is no model, or several, or the one there is damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<WeightFile> {
        let path = path.as_ref();
        let name = || path.display().to_string();
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(WeightsError::NotFound { path: name() });
            }
            Err(source) => {
                return Err(WeightsError::Io {
                    path: name(),
                    action: "look at it",
                    source,
                });
            }
        };
        if metadata.is_dir() {
            return WeightFile::open_folder(path);
        }
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("safetensors" | "json")) {
            let why = "for safetensors, give the folder that also holds config.json".to_owned();
            return Err(WeightsError::NotWeights { path: name(), why });
        }
        GgufFile::open(path).map(WeightFile::Gguf)
    }

    /// The path or name of the model.
    pub fn name(&self) -> String {
        match self {
            WeightFile::Gguf(file) => file.name().to_owned(),
            WeightFile::HuggingFace(folder) => folder.path().display().to_string(),
        }
    }

    /// The tensor with this name, as this kind of file calls it.
    ///
    /// # Errors
    ///
    /// When there is none, or it is of a data type that is not read.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        match self {
            WeightFile::Gguf(file) => file.tensor(name),
            WeightFile::HuggingFace(folder) => folder.tensor(name),
        }
    }

    /// The tensor with this name, where a model may do without it.
    pub fn find_tensor(&self, name: &str) -> Option<Tensor<'_>> {
        self.table().get(name)
    }

    /// All tensors, in the order of the files.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor<'_>> {
        self.table().iter()
    }

    /// The names of all tensors, in the order of the files.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors().map(|tensor| tensor.name)
    }

    /// Bytes of all weight files together.
    pub fn file_bytes(&self) -> u64 {
        self.table().file_bytes()
    }

    /// Where the weights come from, to tell models apart by content.
    pub fn parts(&self) -> Vec<WeightPart<'_>> {
        self.table().parts()
    }

    /// Refuses files that were written to since they were opened. What is read of such a file is neither
    /// what it was nor surely what it is.
    ///
    /// # Errors
    ///
    /// [`WeightsError::Changed`].
    pub fn check_unchanged(&self) -> Result<()> {
        self.table().check_unchanged()
    }

    /// Gives the pages of some bytes of a tensor back to the operating system, once they were
    /// repacked. The tensor stays readable: its pages are loaded again when touched.
    pub fn release(&self, tensor: &str, bytes: Range<usize>) {
        self.table().release(tensor, bytes);
    }

    /// Gives the pages of everything back to the operating system, after it was read from end to end.
    pub fn release_all(&self) {
        self.table().release_all();
    }

    /// Bytes that take memory once they were read, and go on taking it: weights inside the program, where
    /// the system offers no way to give their pages back.
    pub fn staying_bytes(&self) -> usize {
        self.table().staying_bytes()
    }

    /// Whether [`WeightFile::release`] has an effect on a tensor: its pages come from a file.
    pub fn can_release(&self, tensor: &str) -> bool {
        self.table().can_release(tensor)
    }

    /// Tells the operating system that the first `bytes` of all tensors are about to be read.
    pub fn read_ahead_first(&self, bytes: usize) {
        let mut left = bytes;
        for tensor in self.tensors() {
            let len = tensor.data.len().min(left);
            self.read_ahead(tensor.name, 0..len);
            left -= len;
            if left == 0 {
                return;
            }
        }
    }

    /// Tells the operating system that some bytes of a tensor are about to be read, so that the disk is at work
    /// while others are repacked.
    pub fn read_ahead(&self, tensor: &str, bytes: Range<usize>) {
        self.table().read_ahead(tensor, bytes);
    }

    fn table(&self) -> &Table {
        match self {
            WeightFile::Gguf(file) => file.table(),
            WeightFile::HuggingFace(folder) => folder.table(),
        }
    }

    fn open_hugging_face(path: &Path) -> Result<WeightFile> {
        Ok(WeightFile::HuggingFace(Box::new(HuggingFaceFolder::open(
            path,
        )?)))
    }

    fn open_folder(path: &Path) -> Result<WeightFile> {
        let files = list(path)?;
        let has = |test: &dyn Fn(&str) -> bool| {
            files.iter().any(|file| {
                file.file_name()
                    .and_then(|name| name.to_str())
                    .is_some_and(test)
            })
        };
        let safetensors = has(&|name| name.contains(".safetensors"));
        let models: Vec<&PathBuf> = files.iter().filter(|file| is_model(file)).collect();
        match models[..] {
            _ if safetensors => WeightFile::open_hugging_face(path),
            [model] => GgufFile::open(model).map(WeightFile::Gguf),
            [] if files.is_empty() => Err(WeightsError::EmptyFolder {
                path: path.display().to_string(),
            }),
            [] if has(&|name| name == "config.json") => WeightFile::open_hugging_face(path),
            [] => Err(WeightsError::NoModel {
                path: path.display().to_string(),
                found: name_some(files.iter()),
            }),
            _ => Err(WeightsError::SeveralModels {
                path: path.display().to_string(),
                list: name_some(models.into_iter()),
            }),
        }
    }
}

/// What is in a folder, in the order of names.
fn list(path: &Path) -> Result<Vec<PathBuf>> {
    let read = || -> std::io::Result<Vec<PathBuf>> {
        fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect()
    };
    let mut files = read().map_err(|source| WeightsError::Io {
        path: path.display().to_string(),
        action: "list the folder",
        source,
    })?;
    files.sort();
    Ok(files)
}

/// Whether a file is a GGUF model, or the first part of one.
fn is_model(file: &Path) -> bool {
    let name = file.file_name().and_then(|name| name.to_str());
    file.extension()
        .is_some_and(|extension| extension == "gguf")
        && name
            .and_then(PartName::parse)
            .is_none_or(|part| part.is_first())
}

/// The first few names, and how many more there are.
fn name_some<'a>(files: impl ExactSizeIterator<Item = &'a PathBuf>) -> String {
    const SHOWN: usize = 8;
    let more = files.len().saturating_sub(SHOWN);
    let names: Vec<String> = files
        .take(SHOWN)
        .map(|file| {
            file.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    let rest = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    names.join(", ") + &rest
}
