//! A Hugging Face tokenizer as the vocabulary of a GGUF file.
//!
//! Byte-level BPE keeps its merges and names its word splitting. BPE with byte fallback, the form
//! into which SentencePiece vocabularies are brought for `tokenizer.json`, is brought back: each
//! token's score is minus the rank of the first merge that makes it.

use std::collections::{BTreeMap, HashMap};

use longview_weights::spelling::byte_token;
use longview_weights::{GgufHeader, HuggingFaceFolder};
use serde::Deserialize;
use serde_json::Value;

use super::presplit;
use crate::error::ModelError;

/// How SentencePiece writes a space.
const SPACE: char = '\u{2581}';

/// What tokens are for, as `tokenizer.ggml.token_type` numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    vocab: Value,
    #[serde(default)]
    merges: Vec<Merge>,
    unk_token: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

#[derive(Deserialize)]
struct Added {
    id: Option<u32>,
    content: String,
    #[serde(default)]
    special: bool,
}

/// Reads a tokenizer and builds lists from it.
struct Reader<'a> {
    folder: &'a HuggingFaceFolder,
    /// Path of `tokenizer.json`, for messages.
    path: String,
    file: File,
    /// Rows of the embedding.
    rows: usize,
}

/// One text and one kind for every row of the embedding.
struct Tokens {
    texts: Vec<String>,
    kinds: Vec<Kind>,
    ids: HashMap<String, u32>,
}

/// Writes the tokenizer of `folder` as the vocabulary of a model with `rows` rows of embedding.
/// Returns what could not be carried over. A folder with no tokenizer at all makes a file with none.
pub(super) fn write(
    folder: &HuggingFaceFolder,
    rows: usize,
    header: &mut GgufHeader,
) -> Result<Vec<String>, ModelError> {
    let none = ["tokenizer.json", "tokenizer.model"]
        .iter()
        .all(|name| !folder.path().join(name).exists());
    if none {
        header.str("tokenizer.ggml.model", "no_vocab");
        let notice = "the folder has no tokenizer.json: the file has no vocabulary and takes token \
                      ids only";
        return Ok(vec![notice.to_owned()]);
    }
    let path = folder.tokenizer_path().display().to_string();
    let text = folder.tokenizer_json()?;
    let file: File = serde_json::from_slice(&text).map_err(|error| ModelError::Tokenizer {
        file: path.clone(),
        problem: format!("is broken: {error}"),
    })?;
    let reader = Reader {
        folder,
        path,
        file,
        rows,
    };
    reader.write(header)
}

impl Reader<'_> {
    fn write(&self, header: &mut GgufHeader) -> Result<Vec<String>, ModelError> {
        let kind = self.file.model.kind.as_deref().unwrap_or("BPE");
        if kind != "BPE" || self.file.model.merges.is_empty() {
            return Err(self.error(format!(
                "is of the kind {kind}{}; BPE with merges can be converted",
                if kind == "BPE" { " without merges" } else { "" }
            )));
        }
        let byte_level = mentions(self.file.decoder.as_ref(), "ByteLevel");
        let mut notices = Vec::new();
        let tokens = self.tokens(byte_level)?;
        if byte_level {
            header.str("tokenizer.ggml.model", "gpt2");
            let whole_words = self.file.model.ignore_merges;
            let pre = presplit::name_of(self.file.pre_tokenizer.as_ref(), whole_words)
                .map_err(|problem| self.error(problem))?;
            header.str("tokenizer.ggml.pre", pre);
            notices.extend(self.normalizer_notice(&[]));
            put_lists(&tokens, header);
            header.strings("tokenizer.ggml.merges", &self.merge_lines()?);
        } else if self.file.model.byte_fallback {
            header.str("tokenizer.ggml.model", "llama");
            header.str("tokenizer.ggml.pre", "default");
            notices.extend(self.normalizer_notice(&["Prepend", "Replace"]));
            put_lists(&tokens, header);
            header.f32s("tokenizer.ggml.scores", &self.scores(&tokens)?);
            header.bool("tokenizer.ggml.add_space_prefix", self.space_prefix());
        } else {
            let known = "byte-level BPE and BPE with byte fallback can be converted";
            return Err(self.error(format!(
                "has neither a byte alphabet nor byte tokens; {known}"
            )));
        }
        self.put_special(&tokens, header);
        if let Some(template) = self.folder.chat_template()? {
            header.str("tokenizer.chat_template", &template);
        }
        Ok(notices)
    }

    fn tokens(&self, byte_level: bool) -> Result<Tokens, ModelError> {
        let mut texts: Vec<Option<(String, Kind)>> = vec![None; self.rows];
        let mut put = |text: &str, id: u64, kind: Kind| {
            let id = usize::try_from(id).unwrap_or(usize::MAX);
            let Some(place) = texts.get_mut(id) else {
                return Err(self.error(format!(
                    "has token {text:?} at id {id}, but the model's embedding has {} rows; \
                     tokenizer and weights belong to different models",
                    self.rows
                )));
            };
            *place = Some((text.to_owned(), kind));
            Ok(())
        };
        let vocab = self.file.model.vocab.as_object();
        let vocab = vocab.ok_or_else(|| self.error("has no vocabulary".to_owned()))?;
        for (text, id) in vocab {
            let id = id
                .as_u64()
                .ok_or_else(|| self.error(format!("has token {text:?} at the id {id}")))?;
            let kind = match () {
                () if byte_level => Kind::Normal,
                () if Some(text) == self.file.model.unk_token.as_ref() => Kind::Unknown,
                () if byte_token(text).is_some() => Kind::Byte,
                () => Kind::Normal,
            };
            put(text, id, kind)?;
        }
        for (id, added) in self.added(vocab) {
            let unknown = !byte_level && Some(&added.content) == self.file.model.unk_token.as_ref();
            let kind = match () {
                () if unknown => Kind::Unknown,
                () if added.special => Kind::Control,
                // Runs of spaces: what merging makes of them is the same token.
                () if !byte_level && added.content.chars().all(|c| c == SPACE) => Kind::Normal,
                () => Kind::UserDefined,
            };
            put(&added.content, u64::from(id), kind)?;
        }
        let mut tokens = Tokens {
            texts: Vec::with_capacity(self.rows),
            kinds: Vec::with_capacity(self.rows),
            ids: HashMap::with_capacity(self.rows),
        };
        for (id, entry) in texts.into_iter().enumerate() {
            let (text, kind) = entry.unwrap_or_else(|| (format!("[PAD{id}]"), Kind::Unused));
            if let Some(first) = tokens.ids.insert(text.clone(), id as u32) {
                let problem = format!("has token {text:?} at both ids {first} and {id}");
                return Err(self.error(problem));
            }
            tokens.texts.push(text);
            tokens.kinds.push(kind);
        }
        Ok(tokens)
    }

    /// Added tokens by id: those of `tokenizer.json`, then those only `tokenizer_config.json` has.
    fn added(&self, vocab: &serde_json::Map<String, Value>) -> BTreeMap<u32, Added> {
        let mut all = BTreeMap::new();
        let decoder = self.folder.tokenizer_config();
        let decoder = decoder.and_then(|config| config.get("added_tokens_decoder")?.as_object());
        for (id, token) in decoder.into_iter().flatten() {
            if let (Ok(id), Ok(added)) = (id.parse(), Added::deserialize(token)) {
                all.insert(id, added);
            }
        }
        for added in &self.file.added_tokens {
            let known = vocab.get(&added.content).and_then(Value::as_u64);
            let id = added.id.or(known.and_then(|id| u32::try_from(id).ok()));
            if let Some(id) = id {
                let (content, special) = (added.content.clone(), added.special);
                all.insert(
                    id,
                    Added {
                        id: Some(id),
                        content,
                        special,
                    },
                );
            }
        }
        all
    }

    /// The merges as pairs; a first line that only names a version is none.
    fn merges(&self) -> impl Iterator<Item = Result<(&str, &str), ModelError>> {
        let pair = |merge: &'_ Merge| match merge {
            Merge::Pair(..) => true,
            Merge::Line(line) => !line.starts_with("#version"),
        };
        let merges = self
            .file
            .model
            .merges
            .iter()
            .filter(move |merge| pair(merge));
        merges.map(|merge| match merge {
            Merge::Pair(left, right) => Ok((left.as_str(), right.as_str())),
            Merge::Line(line) => line
                .split_once(' ')
                .ok_or_else(|| self.error(format!("has the merge {line:?}, which is no pair"))),
        })
    }

    fn merge_lines(&self) -> Result<Vec<String>, ModelError> {
        let line = |merge: Result<(&str, &str), ModelError>| {
            let (left, right) = merge?;
            if left.contains(' ') || right.contains(' ') {
                let problem = format!("merges {left:?} and {right:?}, which hold spaces");
                return Err(self.error(problem));
            }
            Ok(format!("{left} {right}"))
        };
        self.merges().map(line).collect()
    }

    /// For each token minus the rank of the first merge that makes it; tokens that no merge makes
    /// come after all others.
    fn scores(&self, tokens: &Tokens) -> Result<Vec<f32>, ModelError> {
        let last = -(self.file.model.merges.len() as f32);
        let mut scores = vec![last; tokens.texts.len()];
        for (rank, merge) in self.merges().enumerate() {
            let (left, right) = merge?;
            if let Some(&id) = tokens.ids.get(&format!("{left}{right}")) {
                let score = &mut scores[id as usize];
                *score = score.max(-(rank as f32));
            }
        }
        Ok(scores)
    }

    /// Whether a space is put before texts.
    fn space_prefix(&self) -> bool {
        let metaspace = find(self.file.pre_tokenizer.as_ref(), "Metaspace");
        let metaspace = metaspace.is_some_and(|step| {
            let scheme = step.get("prepend_scheme").and_then(Value::as_str);
            scheme.unwrap_or("always") != "never"
                && step.get("add_prefix_space") != Some(&Value::Bool(false))
        });
        metaspace || mentions(self.file.normalizer.as_ref(), "Prepend")
    }

    fn normalizer_notice(&self, carried: &[&str]) -> Option<String> {
        let mut kinds = Vec::new();
        kinds_of(self.file.normalizer.as_ref(), &mut kinds);
        let lost: Vec<&str> = kinds
            .into_iter()
            .filter(|kind| *kind != "Sequence" && !carried.contains(kind))
            .collect();
        (!lost.is_empty()).then(|| {
            format!(
                "the tokenizer first brings text into another form ({}), which vocabularies in \
                 GGUF files do not",
                lost.join(", ")
            )
        })
    }

    fn put_special(&self, tokens: &Tokens, header: &mut GgufHeader) {
        let config = self.folder.tokenizer_config();
        let flag = |name: &str| config?.get(name)?.as_bool();
        let named = |name: &str| {
            let value = config?.get(name)?;
            let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
            tokens.ids.get(text).copied()
        };
        let listed = |name: &str| {
            let settings = self.folder.config();
            let sources = [
                self.folder.generation_config(),
                Some(settings),
                settings.get("text_config"),
            ];
            let of = |source: &Value| -> Vec<u32> {
                let value = source.get(name);
                let list = value.and_then(Value::as_array).map(Vec::as_slice);
                let list = list.unwrap_or_else(|| value.map_or(&[], std::slice::from_ref));
                let id = |id: &Value| u32::try_from(id.as_u64()?).ok();
                let inside = |id: &u32| (*id as usize) < self.rows;
                list.iter().filter_map(id).filter(inside).collect()
            };
            let found = sources.into_iter().flatten().map(of);
            found
                .into_iter()
                .find(|ids| !ids.is_empty())
                .unwrap_or_default()
        };
        let ends = listed("eos_token_id");
        let bos = named("bos_token").or_else(|| listed("bos_token_id").first().copied());
        let eos = named("eos_token").or_else(|| ends.first().copied());
        // What else ends an answer: the end of a turn, then that of a message.
        let mut others = ends.into_iter().filter(|&id| Some(id) != eos);
        let ids = [
            ("bos_token_id", bos),
            ("eos_token_id", eos),
            ("eot_token_id", others.next()),
            ("eom_token_id", others.next()),
            ("padding_token_id", named("pad_token")),
            ("unknown_token_id", named("unk_token")),
        ];
        for (key, id) in ids {
            if let Some(id) = id {
                header.u32(&format!("tokenizer.ggml.{key}"), id);
            }
        }
        let (before, after) = surrounding(self.file.post_processor.as_ref());
        let add_bos = flag("add_bos_token").unwrap_or(before) && bos.is_some();
        let add_eos = flag("add_eos_token").unwrap_or(after) && eos.is_some();
        header.bool("tokenizer.ggml.add_bos_token", add_bos);
        header.bool("tokenizer.ggml.add_eos_token", add_eos);
    }

    fn error(&self, problem: String) -> ModelError {
        ModelError::Tokenizer {
            file: self.path.clone(),
            problem,
        }
    }
}

fn put_lists(tokens: &Tokens, header: &mut GgufHeader) {
    header.strings("tokenizer.ggml.tokens", &tokens.texts);
    let kinds: Vec<i32> = tokens.kinds.iter().map(|&kind| kind as i32).collect();
    header.i32s("tokenizer.ggml.token_type", &kinds);
}

/// The step of this type in a chain of steps.
fn find<'a>(chain: Option<&'a Value>, kind: &str) -> Option<&'a Value> {
    let chain = chain?;
    if chain.get("type").and_then(Value::as_str) == Some(kind) {
        return Some(chain);
    }
    steps(chain).find_map(|step| find(Some(step), kind))
}

fn mentions(chain: Option<&Value>, kind: &str) -> bool {
    find(chain, kind).is_some()
}

fn kinds_of<'a>(chain: Option<&'a Value>, kinds: &mut Vec<&'a str>) {
    if let Some(chain) = chain {
        kinds.extend(chain.get("type").and_then(Value::as_str));
        steps(chain).for_each(|step| kinds_of(Some(step), kinds));
    }
}

fn steps(chain: &Value) -> impl Iterator<Item = &Value> {
    ["normalizers", "pretokenizers", "decoders", "processors"]
        .into_iter()
        .filter_map(|name| chain.get(name)?.as_array())
        .flatten()
}

/// Whether a post-processor puts a special token before and after a text.
fn surrounding(post_processor: Option<&Value>) -> (bool, bool) {
    let single = find(post_processor, "TemplateProcessing")
        .and_then(|step| step.get("single")?.as_array())
        .map_or(&[][..], Vec::as_slice);
    let is_text = |step: &Value| step.get("Sequence").is_some();
    let is_special = |step: &Value| step.get("SpecialToken").is_some();
    let text = single.iter().position(is_text).unwrap_or(single.len());
    let (before, after) = single.split_at(text);
    (before.iter().any(is_special), after.iter().any(is_special))
}
