//! Reads `tokenizer.json`, `tokenizer_config.json` and `generation_config.json`.

use std::collections::{HashMap, HashSet};

use longview_weights::gguf::GPT2_WORDS;
use longview_weights::spelling::byte_token;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use tokenizers::AddedToken;

use crate::TextError;
use crate::bpe::{Bpe, BpeParts, Split, Steps};
use crate::ends::is_ending;
use crate::pieces::{ByteAlphabet, Piece, byte_level_bytes};
use crate::words::{MOST_PATTERNS, WordPatterns};

/// Steps that may stand in a `tokenizer.json`. Others either belong to models that do not
/// generate text or trust binary data inside the file.
const NORMALIZERS: &[&str] = &[
    "Sequence",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Replace",
    "Prepend",
    "Lowercase",
    "Strip",
    "StripAccents",
    "ByteLevel",
    "Nmt",
];
const PRE_TOKENIZERS: &[&str] = &[
    "Sequence",
    "ByteLevel",
    "Split",
    "Digits",
    "Metaspace",
    "Punctuation",
    "Whitespace",
    "WhitespaceSplit",
    "CharDelimiterSplit",
    "UnicodeScripts",
];

#[derive(Deserialize)]
struct Peek {
    model: PeekModel,
}

#[derive(Deserialize)]
struct PeekModel {
    #[serde(rename = "type")]
    kind: Option<String>,
    merges: Option<IgnoredAny>,
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
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    fuse_unk: Option<bool>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

#[derive(Deserialize)]
struct Added {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

/// What the files say, ready for [`crate::Tokenizer`].
pub(crate) struct Read {
    pub(crate) bpe: Bpe,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) space_prefix: bool,
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    /// Ids that end an answer by the files' own word.
    pub(crate) endings: Vec<u32>,
    /// Ids put before and after a raw text.
    pub(crate) prefix: Vec<u32>,
    pub(crate) suffix: Vec<u32>,
}

/// How tokens turn back into bytes.
struct Decoder {
    byte_level: bool,
    byte_fallback: bool,
    replace: Vec<(String, String)>,
    space_prefix: bool,
}

/// Reads the three files; the last two may be absent.
pub(crate) fn read(
    tokenizer_json: &[u8],
    tokenizer_config: Option<&Value>,
    generation_config: Option<&Value>,
) -> Result<Read, TextError> {
    let json = |error: serde_json::Error| TextError::Json {
        file: "tokenizer.json",
        detail: error.to_string(),
    };
    let peek: Peek = serde_json::from_slice(tokenizer_json).map_err(json)?;
    let kind = peek.model.kind.as_deref().unwrap_or("BPE");
    if kind != "BPE" || peek.model.merges.is_none() {
        let found = if kind == "BPE" {
            "BPE without merges"
        } else {
            kind
        };
        return Err(unsupported("tokenizer model", found, &["BPE"]));
    }
    let file: File = serde_json::from_slice(tokenizer_json).map_err(json)?;
    let decoder = Decoder::read(file.decoder.as_ref())?;
    let added = added_tokens(file.added_tokens, tokenizer_config);
    let post_processor = file.post_processor;
    let bpe = file
        .model
        .build(file.normalizer, file.pre_tokenizer, added)?;

    let alphabet = ByteAlphabet::new();
    let mut pieces: Vec<Piece> = bpe
        .tokens()
        .map(|(id, token)| Piece {
            id,
            bytes: decoder.bytes(token, &alphabet),
            special: false,
        })
        .collect();
    pieces.extend(bpe.added().map(|(id, token)| Piece {
        id,
        bytes: decoder.added_bytes(&token.content),
        special: token.special,
    }));
    let size = pieces
        .iter()
        .map(|piece| piece.id as usize + 1)
        .max()
        .unwrap_or(0);

    let named = |name: &str| tokenizer_config?.get(name).and_then(token_text);
    let named_id = |name: &str| named(name).and_then(|token| bpe.id_of(token));
    let generation_ids = |name: &str| {
        let value = generation_config.and_then(|config| config.get(name));
        let list = value.and_then(Value::as_array).map(Vec::as_slice);
        let list = list.unwrap_or_else(|| value.map_or(&[], std::slice::from_ref));
        // Some configurations carry ids of another vocabulary; those cannot be meant.
        let in_range = |id: u64| u32::try_from(id).ok().filter(|&id| (id as usize) < size);
        list.iter()
            .filter_map(Value::as_u64)
            .filter_map(in_range)
            .collect::<Vec<u32>>()
    };
    let eos_ids = generation_ids("eos_token_id");
    let bos = named_id("bos_token").or_else(|| generation_ids("bos_token_id").first().copied());
    let eos = named_id("eos_token").or_else(|| eos_ids.first().copied());
    let (mut prefix, mut suffix) = surround(post_processor.as_ref(), size);
    let flag = |name: &str| tokenizer_config?.get(name)?.as_bool();
    if let Some(add) = flag("add_bos_token") {
        prefix = bos.filter(|_| add).into_iter().collect();
    }
    if let Some(add) = flag("add_eos_token") {
        suffix = eos.filter(|_| add).into_iter().collect();
    }
    Ok(Read {
        space_prefix: decoder.space_prefix,
        bos,
        eos,
        endings: eos_ids.into_iter().chain(eos).collect(),
        prefix,
        suffix,
        bpe,
        pieces,
    })
}

impl Model {
    fn build(
        self,
        normalizer: Option<Value>,
        pre_tokenizer: Option<Value>,
        added: Vec<AddedToken>,
    ) -> Result<Bpe, TextError> {
        for affix in [&self.continuing_subword_prefix, &self.end_of_word_suffix] {
            if affix.as_ref().is_some_and(|affix| !affix.is_empty()) {
                return Err(unsupported(
                    "tokenizer model",
                    "BPE with word affixes",
                    &["BPE"],
                ));
            }
        }
        let mut merges = Vec::with_capacity(self.merges.len());
        for (rank, merge) in self.merges.iter().enumerate() {
            merges.push(match merge {
                Merge::Pair(left, right) => (left.as_str(), right.as_str()),
                Merge::Line(line) if line.starts_with("#version") => continue,
                Merge::Line(line) => {
                    let parts = line
                        .split_once(' ')
                        .filter(|(_, right)| !right.contains(' '));
                    parts.ok_or_else(|| {
                        TextError::Vocabulary(format!("merge {rank} ({line:?}) is not a pair"))
                    })?
                }
            });
        }
        let bare = (
            normalizer.as_ref().map(without_prefix),
            pre_tokenizer.as_ref().map(without_prefix),
        );
        let continuation = if bare == (normalizer.clone(), pre_tokenizer.clone()) {
            None
        } else {
            Some(steps(bare.0, bare.1)?)
        };
        Bpe::new(BpeParts {
            tokens: self.vocab.iter().map(|(t, &id)| (t.as_str(), id)).collect(),
            merges,
            unk_token: self.unk_token.as_deref(),
            fuse_unk: self.fuse_unk.unwrap_or(false),
            byte_fallback: self.byte_fallback.unwrap_or(false),
            whole_words: self.ignore_merges.unwrap_or(false),
            steps: steps(normalizer, pre_tokenizer)?,
            continuation,
            added,
        })
    }
}

impl Decoder {
    fn read(value: Option<&Value>) -> Result<Self, TextError> {
        let mut decoder = Self {
            byte_level: false,
            byte_fallback: false,
            replace: Vec::new(),
            space_prefix: false,
        };
        match value {
            Some(value) => decoder.step(value)?,
            None => return Err(unsupported("decoder", "none", DECODERS)),
        }
        Ok(decoder)
    }

    fn step(&mut self, value: &Value) -> Result<(), TextError> {
        let text = |name: &str| value.get(name).and_then(Value::as_str);
        match text("type").unwrap_or("without a type") {
            "ByteLevel" => self.byte_level = true,
            "ByteFallback" => self.byte_fallback = true,
            "Fuse" => {}
            "Replace" => {
                let pattern = value.get("pattern").and_then(|p| p.get("String"));
                let pattern = pattern.and_then(Value::as_str).filter(|p| !p.is_empty());
                let pattern =
                    pattern.ok_or_else(|| unsupported("decoder", "Replace by regex", DECODERS))?;
                let content = text("content").unwrap_or_default();
                self.replace.push((pattern.to_owned(), content.to_owned()));
            }
            "Strip" => {
                let count = |name: &str| value.get(name).and_then(Value::as_u64).unwrap_or(0);
                if text("content") != Some(" ") || count("start") > 1 || count("stop") > 0 {
                    return Err(unsupported(
                        "decoder",
                        "Strip of more than a space",
                        DECODERS,
                    ));
                }
                self.space_prefix |= count("start") == 1;
            }
            "Metaspace" => {
                let mark = text("replacement").unwrap_or("\u{2581}");
                self.replace.push((mark.to_owned(), " ".to_owned()));
                let never = text("prepend_scheme") == Some("never")
                    || value.get("add_prefix_space") == Some(&Value::Bool(false));
                self.space_prefix |= !never;
            }
            "Sequence" => {
                for step in value
                    .get("decoders")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                {
                    self.step(step)?;
                }
            }
            other => return Err(unsupported("decoder", other, DECODERS)),
        }
        Ok(())
    }

    fn bytes(&self, token: &str, alphabet: &ByteAlphabet) -> Vec<u8> {
        if self.byte_level {
            return byte_level_bytes(token, alphabet);
        }
        if self.byte_fallback
            && let Some(byte) = byte_token(token)
        {
            return vec![byte];
        }
        self.added_bytes(token)
    }

    /// Added tokens are plain text, whatever alphabet the rest of the vocabulary uses.
    fn added_bytes(&self, token: &str) -> Vec<u8> {
        let replace = |text: String, (from, to): &(String, String)| text.replace(from, to);
        self.replace
            .iter()
            .fold(token.to_owned(), replace)
            .into_bytes()
    }
}

const DECODERS: &[&str] = &[
    "ByteLevel",
    "ByteFallback",
    "Fuse",
    "Replace",
    "Strip",
    "Metaspace",
    "Sequence",
];

fn unsupported(part: &'static str, found: &str, known: &[&str]) -> TextError {
    TextError::Unsupported {
        part,
        found: found.to_owned(),
        known: known.join(", "),
    }
}

fn steps(normalizer: Option<Value>, pre_tokenizer: Option<Value>) -> Result<Steps, TextError> {
    let json = |error: serde_json::Error| TextError::Json {
        file: "tokenizer.json",
        detail: error.to_string(),
    };
    let mut steps = Steps {
        normalizer: None,
        split: Split::Chain(None),
    };
    if let Some(value) = normalizer {
        check_steps(&value, "normalizer", "normalizers", NORMALIZERS)?;
        steps.normalizer = Some(serde_json::from_value(value).map_err(json)?);
    }
    if let Some(value) = pre_tokenizer {
        check_steps(&value, "pre-tokenizer", "pretokenizers", PRE_TOKENIZERS)?;
        steps.split = match word_patterns(&value) {
            Some(patterns) => Split::Patterns(WordPatterns::new(&patterns)?),
            None => Split::Chain(Some(serde_json::from_value(value).map_err(json)?)),
        };
    }
    Ok(steps)
}

/// The patterns of a chain of steps that splits by them and then spells words in the byte alphabet, as
/// nearly all do.
fn word_patterns(value: &Value) -> Option<Vec<&str>> {
    let steps = match text_in(value, "type")? {
        "Sequence" => value.get("pretokenizers")?.as_array()?.as_slice(),
        _ => std::slice::from_ref(value),
    };
    let (bytes, splits) = steps.split_last()?;
    let mut patterns = Vec::with_capacity(splits.len() + 1);
    for split in splits {
        patterns.push(match text_in(split, "type")? {
            "Digits" if flag_in(split, "individual_digits", false)? => r"\p{N}",
            "Digits" => r"\p{N}+",
            "Split" if text_in(split, "behavior")? == "Isolated" => {
                let pattern = split.get("pattern")?.get("Regex")?.as_str()?;
                (!flag_in(split, "invert", false)?).then_some(pattern)?
            }
            _ => return None,
        });
    }
    if text_in(bytes, "type")? != "ByteLevel" || flag_in(bytes, "add_prefix_space", true)? {
        return None;
    }
    if flag_in(bytes, "use_regex", true)? {
        patterns.push(GPT2_WORDS);
    }
    (patterns.len() <= MOST_PATTERNS).then_some(patterns)
}

fn text_in<'a>(step: &'a Value, name: &str) -> Option<&'a str> {
    step.get(name)?.as_str()
}

fn flag_in(step: &Value, name: &str, usual: bool) -> Option<bool> {
    step.get(name).map_or(Some(usual), Value::as_bool)
}

/// A chain of steps without those that put a space before the text.
fn without_prefix(value: &Value) -> Value {
    let mut value = value.clone();
    match value.get("type").and_then(Value::as_str) {
        Some("Sequence") => {
            for list in ["normalizers", "pretokenizers"] {
                if let Some(steps) = value.get_mut(list).and_then(Value::as_array_mut) {
                    steps
                        .retain(|step| step.get("type").and_then(Value::as_str) != Some("Prepend"));
                    steps
                        .iter_mut()
                        .for_each(|step| *step = without_prefix(step));
                }
            }
        }
        Some("Prepend") => value = serde_json::json!({ "type": "Sequence", "normalizers": [] }),
        Some("Metaspace") => {
            value["prepend_scheme"] = "never".into();
            value["add_prefix_space"] = false.into();
        }
        Some("ByteLevel") if value.get("add_prefix_space") == Some(&Value::Bool(true)) => {
            value["add_prefix_space"] = false.into();
        }
        _ => {}
    }
    value
}

/// Refuses a chain of steps with one of a type that is not in `known`.
fn check_steps(
    value: &Value,
    part: &'static str,
    children: &str,
    known: &[&str],
) -> Result<(), TextError> {
    let kind = value
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or("without a type");
    if !known.contains(&kind) {
        return Err(unsupported(part, kind, known));
    }
    let pattern = value.get("pattern").and_then(Value::as_object);
    if pattern.is_some_and(|pattern| pattern.values().any(|text| text.as_str() == Some(""))) {
        return Err(unsupported(part, "an empty pattern", known));
    }
    let steps = value
        .get(children)
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    steps
        .into_iter()
        .try_for_each(|step| check_steps(step, part, children, known))
}

/// The added tokens of `tokenizer.json`, then those that only `tokenizer_config.json` lists, by id.
fn added_tokens(file: Vec<Added>, tokenizer_config: Option<&Value>) -> Vec<AddedToken> {
    let mut seen: HashSet<String> = file.iter().map(|token| token.content.clone()).collect();
    let decoder = tokenizer_config.and_then(|config| config.get("added_tokens_decoder"));
    let mut late: Vec<(u32, Added)> = decoder
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(id, token)| Some((id.parse().ok()?, Added::deserialize(token).ok()?)))
        .filter(|(_, token)| seen.insert(token.content.clone()))
        .collect();
    late.sort_by_key(|&(id, _)| id);
    let late = late.into_iter().map(|(_, token)| token);
    let build = |token: Added| {
        let special = token.special || is_ending(&token.content);
        AddedToken::from(token.content, special)
            .single_word(token.single_word)
            .lstrip(token.lstrip)
            .rstrip(token.rstrip)
            .normalized(token.normalized.unwrap_or(!special))
    };
    file.into_iter().chain(late).map(build).collect()
}

/// A special token is written as a text or as an object with a `content`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// The ids that a post-processor puts before and after a single text.
fn surround(post_processor: Option<&Value>, size: usize) -> (Vec<u32>, Vec<u32>) {
    let (mut prefix, mut suffix) = (Vec::new(), Vec::new());
    let Some(value) = post_processor else {
        return (prefix, suffix);
    };
    match value.get("type").and_then(Value::as_str) {
        Some("Sequence") => {
            for step in value
                .get("processors")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                let (before, after) = surround(Some(step), size);
                prefix.extend(before);
                suffix.extend(after);
            }
        }
        Some("TemplateProcessing") => {
            let mut text_seen = false;
            for step in value
                .get("single")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                text_seen |= step.get("Sequence").is_some();
                let name = step
                    .get("SpecialToken")
                    .and_then(|token| token.get("id")?.as_str());
                let entry = name.and_then(|name| value.get("special_tokens")?.get(name));
                let ids = entry
                    .and_then(|entry| entry.get("ids")?.as_array())
                    .into_iter()
                    .flatten();
                let ids = ids.filter_map(|id| u32::try_from(id.as_u64()?).ok());
                let side = if text_seen { &mut suffix } else { &mut prefix };
                side.extend(ids.filter(|&id| (id as usize) < size));
            }
        }
        _ => {}
    }
    (prefix, suffix)
}
