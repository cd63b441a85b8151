//! A vocabulary as model files other than `tokenizer.json` carry it: plain lists.

use std::collections::HashMap;

use longview_weights::GgufFile;
use serde::Deserialize;

use crate::TextError;
use crate::ends::is_ending;

/// Most ids a vocabulary may have; real ones stay below 300,000.
pub(crate) const MAX_IDS: usize = 1 << 24;

/// What a token is for. The numbers are those of SentencePiece and of GGUF's
/// `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(from = "i32")]
pub enum TokenKind {
    /// Ordinary text.
    #[default]
    Normal,
    /// Stands for text the vocabulary cannot write.
    Unknown,
    /// Structure (`<s>`, `<|im_end|>`): never produced from plain text, not shown to users.
    Control,
    /// Text that is always kept as one token.
    UserDefined,
    /// A reserved place.
    Unused,
    /// One raw byte, written `<0x41>`.
    Byte,
}

impl From<i32> for TokenKind {
    /// Unknown numbers count as ordinary text, as the files' own readers treat them.
    fn from(number: i32) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }
}

/// A vocabulary in plain lists, as GGUF metadata holds it. [`crate::Tokenizer::from_vocabulary`]
/// checks it and builds a tokenizer.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Vocabulary {
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece BPE).
    pub model: String,
    /// `tokenizer.ggml.pre`: how byte-level BPE splits text into words; absent means `default`.
    pub pre: Option<String>,
    /// Token texts; the index is the id.
    pub tokens: Vec<String>,
    /// One score a token (`llama` only): higher merges first.
    pub scores: Vec<f32>,
    /// One kind a token; empty means all [`TokenKind::Normal`].
    pub kinds: Vec<TokenKind>,
    /// `left right`, best first (`gpt2` only).
    pub merges: Vec<String>,
    /// Begin of sequence.
    pub bos: Option<u32>,
    /// End of sequence.
    pub eos: Option<u32>,
    /// End of turn.
    pub eot: Option<u32>,
    /// End of message (a tool call follows).
    pub eom: Option<u32>,
    /// Padding.
    pub pad: Option<u32>,
    /// Unknown text.
    pub unk: Option<u32>,
    /// Whether a raw text starts with `bos`; absent means the custom of the kind.
    pub add_bos: Option<bool>,
    /// Whether a raw text ends with `eos`; absent means no.
    pub add_eos: Option<bool>,
    /// Whether a space is put before the text (`llama` only); absent means yes.
    pub add_space_prefix: Option<bool>,
    /// What a control token swallows of the text after it.
    pub after_control: AfterControl,
    /// The chat template that came with the model.
    pub chat_template: Option<String>,
}

/// What becomes of white space that follows a control token in parsed text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AfterControl {
    /// It is text like any other.
    #[default]
    Keep,
    /// It is swallowed (Phi-3).
    Strip,
}

impl Vocabulary {
    /// Reads the vocabulary in a GGUF file's metadata. A file without tensors is enough.
    ///
    /// # Errors
    /// Missing keys and values of the wrong type, by file and key.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, TextError> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let id = |name: &str| file.find_u32(&key(name));
        let flag = |name: &str| file.find_bool(&key(name));
        let model = file.str(&key("model"))?.to_owned();
        let kinds = match file.value(&key("token_type")) {
            Some(_) => file
                .i32s(&key("token_type"))?
                .into_iter()
                .map(TokenKind::from)
                .collect(),
            None => Vec::new(),
        };
        let name = file
            .find_str("general.name")?
            .unwrap_or_default()
            .to_lowercase();
        let phi3 = name.contains("phi-3") || name.contains("phi3");
        // Files of this kind may leave out the ids that SentencePiece gives by custom.
        let custom = |id: Option<u32>, usual: u32| id.or((model == "llama").then_some(usual));
        Ok(Self {
            pre: file.find_str(&key("pre"))?.map(str::to_owned),
            tokens: file
                .strings(&key("tokens"))?
                .into_iter()
                .map(str::to_owned)
                .collect(),
            scores: file.find_f32s(&key("scores"))?.unwrap_or_default(),
            kinds,
            merges: file
                .find_strings(&key("merges"))?
                .unwrap_or_default()
                .into_iter()
                .map(str::to_owned)
                .collect(),
            bos: custom(id("bos_token_id")?, 1),
            eos: custom(id("eos_token_id")?, 2),
            eot: id("eot_token_id")?,
            eom: id("eom_token_id")?,
            pad: id("padding_token_id")?,
            unk: custom(id("unknown_token_id")?, 0),
            add_bos: flag("add_bos_token")?,
            add_eos: flag("add_eos_token")?,
            add_space_prefix: flag("add_space_prefix")?,
            after_control: if phi3 {
                AfterControl::Strip
            } else {
                AfterControl::Keep
            },
            chat_template: file.find_str("tokenizer.chat_template")?.map(str::to_owned),
            model,
        })
    }

    /// The role of token `id`.
    pub(crate) fn kind(&self, id: usize) -> TokenKind {
        match self.kinds.get(id).copied().unwrap_or_default() {
            TokenKind::UserDefined if is_ending(&self.tokens[id]) => TokenKind::Control,
            kind => kind,
        }
    }

    /// Refuses lists that disagree, ids that point outside, and duplicate tokens. Returns the id
    /// of every token text.
    pub(crate) fn check(&self) -> Result<HashMap<&str, u32>, TextError> {
        let count = self.tokens.len();
        if count == 0 {
            return Err(TextError::Vocabulary("it has no tokens".into()));
        }
        if count > MAX_IDS {
            return Err(TextError::Vocabulary(format!(
                "{count} tokens; at most {MAX_IDS}"
            )));
        }
        if !self.kinds.is_empty() && self.kinds.len() != count {
            let kinds = self.kinds.len();
            return Err(TextError::Vocabulary(format!(
                "{count} tokens but {kinds} token types"
            )));
        }
        let named = [
            ("bos", self.bos),
            ("eos", self.eos),
            ("eot", self.eot),
            ("eom", self.eom),
            ("pad", self.pad),
            ("unk", self.unk),
        ];
        for (name, id) in named {
            if let Some(id) = id.filter(|&id| id as usize >= count) {
                return Err(TextError::Vocabulary(format!(
                    "the {name} token id {id} is outside its {count} tokens"
                )));
            }
        }
        let mut ids = HashMap::with_capacity(count);
        for (id, token) in self.tokens.iter().enumerate() {
            if let Some(first) = ids.insert(token.as_str(), id as u32)
                && !token.is_empty()
            {
                return Err(TextError::Vocabulary(format!(
                    "token {token:?} stands at both ids {first} and {id}"
                )));
            }
        }
        ids.remove("");
        Ok(ids)
    }
}
