//! Hugging Face model folders: configuration as JSON, weights in safetensors files.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

use ::safetensors::Dtype;
use longview_kernels::Format;
use serde_json::Value;

use crate::error::{Result, WeightsError};
use crate::json::{read_bounded, read_json};
use crate::safetensors::read_header;
use crate::source::Source;
use crate::table::{Entry, Table};
use crate::tensor::Tensor;

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// The most a `tokenizer.json` may have; the largest known has 40 MiB.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// The most a chat template may have; real ones stay below a hundredth of this.
const MAX_TEMPLATE_BYTES: u64 = 4 << 20;

/// An open model folder.
#[derive(Debug)]
pub struct HuggingFaceFolder {
    path: PathBuf,
    config: Value,
    generation_config: Option<Value>,
    tokenizer_config: Option<Value>,
    tensors: Table,
    /// Tensors of data types that are not read, with the name of the type: a model may carry some
    /// that no computation needs, so they are refused when asked for.
    unreadable: HashMap<String, Unreadable>,
}

#[derive(Debug)]
struct Unreadable {
    file: String,
    dtype: String,
}

impl HuggingFaceFolder {
    /// Opens a folder with `config.json` and `model.safetensors`, or the files that
    /// `model.safetensors.index.json` names.
    ///
    /// # Errors
    ///
    /// When a needed file is missing or damaged in any way, or the index leads outside the folder.
    pub fn open(path: impl AsRef<Path>) -> Result<HuggingFaceFolder> {
        let path = path.as_ref();
        let config = path.join("config.json");
        let config = read_json(&config)?.ok_or_else(|| WeightsError::MissingFile {
            path: config.display().to_string(),
            needed: "a model folder holds config.json, tokenizer.json and *.safetensors".into(),
        })?;
        let mut folder = HuggingFaceFolder {
            path: path.to_owned(),
            config,
            generation_config: read_json(&path.join("generation_config.json"))?,
            tokenizer_config: read_json(&path.join("tokenizer_config.json"))?,
            tensors: Table::default(),
            unreadable: HashMap::new(),
        };
        folder.open_weights()?;
        Ok(folder)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.json`: the architecture and its sizes.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// `generation_config.json`, if there is one: end-of-text ids and sampling defaults.
    pub fn generation_config(&self) -> Option<&Value> {
        self.generation_config.as_ref()
    }

    /// `tokenizer_config.json`, if there is one: special tokens and often the chat template.
    pub fn tokenizer_config(&self) -> Option<&Value> {
        self.tokenizer_config.as_ref()
    }

    /// Where `tokenizer.json` is, or would be.
    pub fn tokenizer_path(&self) -> PathBuf {
        self.path.join("tokenizer.json")
    }

    /// `tokenizer.json`, as it is.
    ///
    /// # Errors
    ///
    /// When there is none, it cannot be read, or it is larger than any tokenizer.
    pub fn tokenizer_json(&self) -> Result<Vec<u8>> {
        let path = self.tokenizer_path();
        if let Some(bytes) = read_bounded(&path, MAX_TOKENIZER_BYTES)? {
            return Ok(bytes);
        }
        let needed = if self.path.join("tokenizer.model").is_file() {
            "tokenizer.model alone is not read; save the tokenizer in the fast format, which \
             writes tokenizer.json"
        } else {
            "download it with the model"
        };
        Err(WeightsError::MissingFile {
            path: path.display().to_string(),
            needed: needed.into(),
        })
    }

    /// The chat template: `chat_template.jinja`, else `chat_template.json`, else the one in
    /// `tokenizer_config.json` (of several, the one called `default`). `None` where no file has one.
    ///
    /// # Errors
    ///
    /// When a file that should have it cannot be read.
    pub fn chat_template(&self) -> Result<Option<String>> {
        let jinja = self.path.join("chat_template.jinja");
        if let Some(bytes) = read_bounded(&jinja, MAX_TEMPLATE_BYTES)? {
            let text = String::from_utf8(bytes).map_err(|_| WeightsError::Json {
                path: jinja.display().to_string(),
                what: "not UTF-8 text".into(),
            })?;
            return Ok(Some(text));
        }
        let json = read_json(&self.path.join("chat_template.json"))?;
        let configs = [json.as_ref(), self.tokenizer_config.as_ref()];
        Ok(configs.into_iter().flatten().find_map(chat_template_in))
    }

    /// The tensor with this name.
    ///
    /// # Errors
    ///
    /// When there is none (the message names one called alike), or its data type is not read.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        if let Some(Unreadable { file, dtype }) = self.unreadable.get(name) {
            return Err(WeightsError::UnsupportedDtype {
                file: file.clone(),
                tensor: name.to_owned(),
                dtype: dtype.clone(),
            });
        }
        self.tensors.require(&self.path.display().to_string(), name)
    }

    /// The tensor with this name, where a model may do without it.
    pub fn find_tensor(&self, name: &str) -> Option<Tensor<'_>> {
        self.tensors.get(name)
    }

    /// All tensors of data types that are read.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor<'_>> {
        self.tensors.iter()
    }

    /// The number of tensors of data types that are read.
    pub fn tensor_count(&self) -> usize {
        self.tensors.len()
    }

    /// Bytes of all safetensors files.
    pub fn file_bytes(&self) -> u64 {
        self.tensors.file_bytes()
    }

    pub(crate) fn table(&self) -> &Table {
        &self.tensors
    }

    /// Keeps the tensors that `rename` gives a name, under that name, and returns the names of the
    /// others: for a model that is part of a larger one.
    ///
    /// # Errors
    ///
    /// When two tensors would have one name.
    pub fn select(&mut self, rename: impl Fn(&str) -> Option<String>) -> Result<Vec<String>> {
        let mut left_out = self.tensors.select(&rename)?;
        for (name, unreadable) in std::mem::take(&mut self.unreadable) {
            match rename(&name) {
                Some(new) => drop(self.unreadable.insert(new, unreadable)),
                None => left_out.push(name),
            }
        }
        Ok(left_out)
    }

    fn open_weights(&mut self) -> Result<()> {
        let index = self.path.join(INDEX);
        if let Some(json) = read_json(&index)? {
            return self.open_shards(&index.display().to_string(), &json);
        }
        let single = self.path.join(SINGLE);
        if !single.is_file() {
            let needed = format!("the weights are expected there, or in files that {INDEX} names");
            return Err(WeightsError::MissingFile {
                path: single.display().to_string(),
                needed,
            });
        }
        self.open_file(&single, None)
    }

    fn open_shards(&mut self, index: &str, json: &Value) -> Result<()> {
        let damaged = |what: String| WeightsError::Json {
            path: index.to_owned(),
            what,
        };
        let map = json
            .get("weight_map")
            .and_then(Value::as_object)
            .ok_or_else(|| {
                damaged("no object \"weight_map\" of tensor names and file names".into())
            })?;
        // Which tensors to find in which file; ordered, so that errors do not vary.
        let mut files: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, target) in map {
            let file = target
                .as_str()
                .ok_or_else(|| damaged(format!("the file of tensor {tensor:?} is {target}")))?;
            if !is_plain_file_name(file) {
                return Err(WeightsError::IndexEscapes {
                    file: index.to_owned(),
                    tensor: tensor.clone(),
                    target: file.to_owned(),
                });
            }
            files.entry(file).or_default().push(tensor);
        }
        if files.is_empty() {
            return Err(damaged("\"weight_map\" names no tensors".into()));
        }
        let count = files.len();
        for (part, (file, tensors)) in files.into_iter().enumerate() {
            let path = self.path.join(file);
            if !path.is_file() {
                return Err(WeightsError::Shard {
                    file: path.display().to_string(),
                    part: part + 1,
                    count,
                    what: format!("{INDEX} names it and it is not there; download every part"),
                });
            }
            self.open_file(&path, Some(&tensors))?;
        }
        Ok(())
    }

    /// Adds the tensors of a safetensors file: those `wanted` by the index, or all.
    fn open_file(&mut self, path: &Path, wanted: Option<&[&str]>) -> Result<()> {
        let source = Source::map(path)?;
        let (data_start, header) = read_header(&source)?;
        let all = header.offset_keys();
        let names: Vec<&str> = match wanted {
            Some(wanted) => wanted.to_vec(),
            None => all.iter().map(String::as_str).collect(),
        };
        let mut entries = Vec::new();
        for name in names {
            let Some(info) = header.info(name) else {
                return Err(WeightsError::MissingTensor {
                    file: source.name,
                    tensor: name.to_owned(),
                    hint: format!(", though {INDEX} places it there"),
                });
            };
            let format = match info.dtype {
                Dtype::F32 => Format::F32,
                Dtype::F16 => Format::F16,
                Dtype::BF16 => Format::BF16,
                other => {
                    let unreadable = Unreadable {
                        file: source.name.clone(),
                        dtype: format!("{other:?}"),
                    };
                    self.unreadable.insert(name.to_owned(), unreadable);
                    continue;
                }
            };
            // The header was checked: offsets end at the end of the file, sizes fit shapes.
            let bytes = data_start + info.data_offsets.0..data_start + info.data_offsets.1;
            entries.push(Entry {
                name: name.to_owned(),
                format,
                shape: info.shape.clone(),
                bytes,
            });
        }
        self.tensors.add(source, entries)
    }
}

/// The chat template in a `tokenizer_config.json` or `chat_template.json`: a text, or a list of named
/// ones (then the one named `default`, or the first).
pub fn chat_template_in(config: &Value) -> Option<String> {
    match config.get("chat_template")? {
        Value::String(template) => Some(template.clone()),
        Value::Array(named) => {
            let default = named.iter().find(|entry| entry["name"] == "default");
            default
                .or(named.first())?
                .get("template")?
                .as_str()
                .map(str::to_owned)
        }
        _ => None,
    }
}

/// Whether a path is one name, so that it stays in the folder it is joined to.
fn is_plain_file_name(file: &str) -> bool {
    let mut components = Path::new(file).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(name)), None) if name == file)
        && !file.contains(['/', '\\', ':', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_stay_in_the_folder() {
        assert!(is_plain_file_name("model-00001-of-00002.safetensors"));
        for hostile in [
            "",
            ".",
            "..",
            "../x",
            "/etc/passwd",
            "a/b",
            "a/",
            "C:x",
            "a\\b",
            "a\0",
        ] {
            assert!(!is_plain_file_name(hostile), "{hostile:?}");
        }
    }

    #[test]
    fn of_several_templates_the_default_is_taken() {
        let config = serde_json::json!({"chat_template": [
            {"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]});
        assert_eq!(chat_template_in(&config).as_deref(), Some("D"));
        let config = serde_json::json!({"chat_template": [{"name": "rag", "template": "R"}]});
        assert_eq!(chat_template_in(&config).as_deref(), Some("R"));
        assert_eq!(
            chat_template_in(&serde_json::json!({"chat_template": 7})),
            None
        );
    }
}
