//! Text ↔ token ids, from either kind of model file.

use std::collections::HashMap;
use std::sync::Arc;

use longview_weights::chat_template_in;
use longview_weights::gguf::Presplit;
use longview_weights::spelling::byte_token;
use serde_json::Value;
use tokenizers::AddedToken;

use crate::TextError;
use crate::bpe::{Bpe, BpeParts, Split, Steps};
use crate::ends::ending_ids;
use crate::huggingface;
use crate::pieces::{ByteAlphabet, Piece, Pieces, byte_level_bytes};
use crate::spm::Spm;
use crate::stream::{ShowSpecials, Start, StreamDecoder};
use crate::vocabulary::{TokenKind, Vocabulary};
use crate::words::{self, WordPatterns};

/// What special tokens written out in a text (`<|im_end|>`) become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Specials {
    /// The special tokens: for text a chat template rendered.
    Parse,
    /// Plain text, so that a document cannot end a turn or open another: for text from outside.
    AsText,
}

/// A model's tokenizer: text to ids and back, and the ids that have a meaning of their own.
///
/// Cheap to share by reference; encoding needs no lock.
#[derive(Debug)]
pub struct Tokenizer {
    encoder: Encoder,
    pieces: Arc<Pieces>,
    bos: Option<u32>,
    eos: Option<u32>,
    ends: Vec<u32>,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    chat_template: Option<String>,
}

#[derive(Debug)]
enum Encoder {
    Bpe(Box<Bpe>),
    Spm(Box<Spm>),
}

impl Tokenizer {
    /// Builds from the files of a Hugging Face folder: the bytes of `tokenizer.json` and, where
    /// they exist, the parsed `tokenizer_config.json` and `generation_config.json`.
    ///
    /// # Errors
    /// Broken JSON, a vocabulary that contradicts itself, and parts this crate does not support.
    pub fn from_huggingface(
        tokenizer_json: &[u8],
        tokenizer_config: Option<&Value>,
        generation_config: Option<&Value>,
    ) -> Result<Self, TextError> {
        let read = huggingface::read(tokenizer_json, tokenizer_config, generation_config)?;
        let specials: HashMap<&str, u32> = read
            .bpe
            .added()
            .filter(|(_, token)| token.special)
            .map(|(id, token)| (token.content.as_str(), id))
            .collect();
        Ok(Self {
            ends: ending_ids(read.endings, |token| specials.get(token).copied()),
            pieces: Arc::new(Pieces::new(read.pieces, read.space_prefix)?),
            bos: read.bos,
            eos: read.eos,
            prefix: read.prefix,
            suffix: read.suffix,
            chat_template: tokenizer_config.and_then(chat_template_in),
            encoder: Encoder::Bpe(Box::new(read.bpe)),
        })
    }

    /// Builds from plain lists, as GGUF metadata holds them.
    ///
    /// # Errors
    /// Lists that disagree, missing merges or scores, ids outside the vocabulary, and kinds of
    /// model or pre-tokenizer this crate does not know (the error names those it does).
    pub fn from_vocabulary(vocabulary: Vocabulary) -> Result<Self, TextError> {
        let ids = vocabulary.check()?;
        let (encoder, add_bos) = match vocabulary.model.as_str() {
            "gpt2" => {
                let split = words::named(vocabulary.pre.as_deref().unwrap_or("default"))?;
                let bpe = byte_level_bpe(&vocabulary, split)?;
                (Encoder::Bpe(Box::new(bpe)), split.add_bos)
            }
            "llama" => (Encoder::Spm(Box::new(Spm::new(&vocabulary, &ids)?)), true),
            other => {
                return Err(TextError::Unsupported {
                    part: "vocabulary kind",
                    found: other.into(),
                    known: "gpt2 (byte-level BPE), llama (SentencePiece BPE)".into(),
                });
            }
        };
        let special_id = |token: &str| {
            let id = *ids.get(token)?;
            (vocabulary.kind(id as usize) == TokenKind::Control).then_some(id)
        };
        let named = [vocabulary.eos, vocabulary.eot, vocabulary.eom];
        let ends = ending_ids(named.into_iter().flatten(), special_id);
        let space_prefix =
            matches!(encoder, Encoder::Spm(_)) && vocabulary.add_space_prefix.unwrap_or(true);
        let surround = |id: Option<u32>, add: bool| id.filter(|_| add).into_iter().collect();
        Ok(Self {
            pieces: Arc::new(Pieces::new(pieces_of(&vocabulary, &ends), space_prefix)?),
            ends,
            bos: vocabulary.bos,
            eos: vocabulary.eos,
            prefix: surround(vocabulary.bos, vocabulary.add_bos.unwrap_or(add_bos)),
            suffix: surround(vocabulary.eos, vocabulary.add_eos.unwrap_or(false)),
            chat_template: vocabulary.chat_template,
            encoder,
        })
    }

    /// The ids of `text`, with nothing added before or after
    /// (see [`Tokenizer::prefix_ids`]).
    ///
    /// # Errors
    /// A character the vocabulary has neither a token, nor bytes, nor an unknown token for; and text that splitting
    /// gives up on, such as 900,001 white-space characters in a row.
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>, TextError> {
        self.encode_at(text, specials, Start::Text)
    }

    fn encode_at(
        &self,
        text: &str,
        specials: Specials,
        position: Start,
    ) -> Result<Vec<u32>, TextError> {
        match &self.encoder {
            Encoder::Bpe(bpe) => bpe.encode(text, specials, position),
            Encoder::Spm(spm) => spm.encode(text, specials, position),
        }
    }

    /// A bound on the bytes that [`Tokenizer::encode`] takes for `text` while it works, far more than the
    /// ids take afterwards.
    pub fn encoding_bytes(&self, text: &str) -> u64 {
        match &self.encoder {
            Encoder::Bpe(bpe) => bpe.encoding_bytes(text),
            Encoder::Spm(spm) => spm.encoding_bytes(text),
        }
    }

    /// The ids of texts that follow one another, each tokenised apart: no token spans two of them
    /// and none depends on a later one. Where the vocabulary puts a space before a text, only the
    /// first gets it, and what follows a special token where that is the vocabulary's custom.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_parts<T: AsRef<str>>(
        &self,
        parts: &[(T, Specials)],
    ) -> Result<Vec<Vec<u32>>, TextError> {
        let mut position = Start::Text;
        let mut encoded = Vec::with_capacity(parts.len());
        for (text, specials) in parts {
            let ids = self.encode_at(text.as_ref(), *specials, position)?;
            if let Some(&last) = ids.last() {
                let opens = *specials == Specials::Parse && self.is_special(last);
                position = if opens {
                    Start::Text
                } else {
                    Start::Continuation
                };
            }
            encoded.push(ids);
        }
        Ok(encoded)
    }

    /// The text of `ids`, special tokens left out; bytes that are not UTF-8 become U+FFFD.
    /// `decode(encode(text))` is `text` for every vocabulary that can write it.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TextError> {
        let mut stream = self.stream(Start::Text, ShowSpecials::Hide);
        let mut text = String::new();
        for &id in ids {
            text.push_str(&stream.push(id)?);
        }
        text.push_str(&stream.finish());
        Ok(text)
    }

    /// A decoder that takes one id at a time.
    pub fn stream(&self, start: Start, specials: ShowSpecials) -> StreamDecoder {
        StreamDecoder::new(Arc::clone(&self.pieces), start, specials)
    }

    /// Begin of sequence, where the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// End of sequence, where the model names one. To stop at the end of an answer use
    /// [`Tokenizer::eos_ids`].
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Every id that ends an answer, sorted: end of sequence, of turn and of message.
    pub fn eos_ids(&self) -> &[u32] {
        &self.ends
    }

    /// The ids the model expects before a raw text: `[bos]` or nothing. A text that a chat
    /// template rendered already begins with them.
    pub fn prefix_ids(&self) -> &[u32] {
        &self.prefix
    }

    /// The ids the model expects after a raw, complete text; nearly always nothing.
    pub fn suffix_ids(&self) -> &[u32] {
        &self.suffix
    }

    /// Number of ids: the highest plus one.
    pub fn vocab_size(&self) -> usize {
        self.pieces.size()
    }

    /// The raw bytes a token writes, which need not be UTF-8 on their own; a special token's are
    /// its name. `None` outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        self.pieces.bytes(id).map(<[u8]>::to_vec)
    }

    /// The id of the token that the vocabulary writes `token` (in its own alphabet: `Ġthe`,
    /// `▁the`, `<|im_end|>`).
    pub fn id_of(&self, token: &str) -> Option<u32> {
        match &self.encoder {
            Encoder::Bpe(bpe) => bpe.id_of(token),
            Encoder::Spm(spm) => spm.id_of(token),
        }
    }

    /// Whether `id` is structure rather than text, so that it is not shown.
    pub fn is_special(&self, id: u32) -> bool {
        self.pieces.is_special(id)
    }

    /// The chat template that came inside the tokenizer's own files, if any. A template file of a
    /// folder goes before it (see [`longview_weights::HuggingFaceFolder::chat_template`]).
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// Checks that an embedding of `rows` rows has one for every id. More rows than ids are
    /// normal (padding to a round number).
    ///
    /// # Errors
    /// [`TextError::Embedding`] when there are fewer.
    pub fn check_embedding_rows(&self, rows: usize) -> Result<(), TextError> {
        let vocabulary = self.vocab_size();
        if vocabulary > rows {
            Err(TextError::Embedding { vocabulary, rows })
        } else {
            Ok(())
        }
    }
}

fn byte_level_bpe(vocabulary: &Vocabulary, split: &Presplit) -> Result<Bpe, TextError> {
    if vocabulary.merges.is_empty() {
        return Err(TextError::Vocabulary(
            "kind `gpt2` needs merges (tokenizer.ggml.merges), and there are none".into(),
        ));
    }
    let mut merges = Vec::with_capacity(vocabulary.merges.len());
    for (rank, line) in vocabulary.merges.iter().enumerate() {
        // Neither half is empty, so the separator is not the first character.
        let middle = line
            .char_indices()
            .skip(1)
            .find(|&(_, c)| c == ' ')
            .map(|(at, _)| at);
        let pair = middle.map(|at| (&line[..at], &line[at + 1..]));
        merges.push(pair.ok_or_else(|| {
            TextError::Vocabulary(format!("merge {rank} ({line:?}) is not a pair"))
        })?);
    }
    let added = vocabulary
        .tokens
        .iter()
        .enumerate()
        .filter_map(|(id, token)| {
            let special = match vocabulary.kind(id) {
                TokenKind::Control | TokenKind::Unknown => true,
                TokenKind::UserDefined => false,
                TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => return None,
            };
            Some(AddedToken::from(token.as_str(), special).normalized(false))
        });
    let tokens = vocabulary.tokens.iter().map(String::as_str).zip(0..);
    Bpe::new(BpeParts {
        tokens: tokens.filter(|(token, _)| !token.is_empty()).collect(),
        merges,
        unk_token: None,
        fuse_unk: false,
        byte_fallback: false,
        whole_words: split.whole_words,
        steps: Steps {
            normalizer: None,
            split: Split::Patterns(WordPatterns::new(split.patterns)?),
        },
        continuation: None,
        added: added.collect(),
    })
}

/// What the tokens of a plain-list vocabulary write. `ends` are not shown even where the file
/// marks them as ordinary text.
fn pieces_of(vocabulary: &Vocabulary, ends: &[u32]) -> Vec<Piece> {
    let alphabet = ByteAlphabet::new();
    let sentence_piece = vocabulary.model == "llama";
    let piece = |(id, token): (usize, &String)| {
        let kind = vocabulary.kind(id);
        let bytes = match kind {
            TokenKind::Control | TokenKind::Unknown => token.as_bytes().to_vec(),
            TokenKind::Byte => {
                byte_token(token).map_or_else(|| token.as_bytes().to_vec(), |b| vec![b])
            }
            _ if sentence_piece => token.replace('\u{2581}', " ").into_bytes(),
            TokenKind::UserDefined => token.as_bytes().to_vec(),
            TokenKind::Normal | TokenKind::Unused => byte_level_bytes(token, &alphabet),
        };
        let id = id as u32;
        let structure = matches!(kind, TokenKind::Control | TokenKind::Unknown);
        Piece {
            id,
            bytes,
            special: structure || ends.binary_search(&id).is_ok(),
        }
    };
    vocabulary.tokens.iter().enumerate().map(piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A byte-level vocabulary of `<|x|>`, the whole alphabet, and a few merges.
    fn tiny_bpe() -> Vocabulary {
        let mut tokens = vec!["<|x|>".to_owned()];
        tokens.extend(
            (0..=255).map(|byte| longview_weights::spelling::byte_to_char(byte).to_string()),
        );
        tokens.extend(["he".to_owned(), "hel".to_owned(), "Ġhe".to_owned()]);
        let mut kinds = vec![TokenKind::Control];
        kinds.resize(tokens.len(), TokenKind::Normal);
        Vocabulary {
            model: "gpt2".into(),
            pre: Some("gpt-2".into()),
            tokens,
            kinds,
            merges: vec!["h e".into(), "he l".into(), "Ġ he".into()],
            bos: Some(0),
            eos: Some(0),
            ..Vocabulary::default()
        }
    }

    #[test]
    fn merges_apply_in_their_order_and_specials_as_asked() {
        let tokenizer = Tokenizer::from_vocabulary(tiny_bpe()).unwrap();
        assert_eq!(
            tokenizer.encode("hel he", Specials::AsText).unwrap(),
            [258, 259]
        );
        assert_eq!(
            tokenizer.encode("he<|x|>he", Specials::Parse).unwrap(),
            [257, 0, 257]
        );
        let text = tokenizer.encode("<|x|>", Specials::AsText).unwrap();
        assert_eq!(text.len(), 5);
        assert_eq!(tokenizer.decode(&text).unwrap(), "<|x|>");
        assert_eq!(tokenizer.decode(&[257, 0]).unwrap(), "he");
        assert!(matches!(
            tokenizer.decode(&[9999]),
            Err(TextError::UnknownId { id: 9999, .. })
        ));
        assert_eq!(tokenizer.eos_ids(), [0]);
        assert!(tokenizer.prefix_ids().is_empty());
    }

    #[test]
    fn embedding_rows_may_exceed_but_not_fall_short() {
        let tokenizer = Tokenizer::from_vocabulary(tiny_bpe()).unwrap();
        assert_eq!(tokenizer.vocab_size(), 260);
        assert!(tokenizer.check_embedding_rows(320).is_ok());
        let error = tokenizer.check_embedding_rows(100).unwrap_err().to_string();
        assert!(error.contains("260") && error.contains("100"), "{error}");
    }

    #[test]
    fn absurd_runs_of_white_space_are_refused_and_long_ones_are_exact() {
        let tokenizer = Tokenizer::from_vocabulary(tiny_bpe()).unwrap();
        let space = tokenizer.id_of("Ġ").unwrap();
        let text = format!("{}he", " ".repeat(200_000));
        let ids = tokenizer.encode(&text, Specials::AsText).unwrap();
        assert_eq!((ids.len(), ids[0], ids[199_999]), (200_000, space, 259));
        let error = tokenizer
            .encode(&" ".repeat(900_001), Specials::AsText)
            .unwrap_err();
        assert!(error.to_string().contains("byte 0"), "{error}");
    }

    #[test]
    fn contradictions_are_refused() {
        let broken: [fn(&mut Vocabulary); 9] = [
            |v| v.tokens.clear(),
            |v| v.merges.clear(),
            |v| v.merges.push("q".into()),
            |v| v.merges.push("he he".into()),
            |v| v.kinds.truncate(3),
            |v| v.bos = Some(100_000),
            |v| v.tokens[5] = v.tokens[6].clone(),
            |v| v.model = "bert".into(),
            |v| v.pre = Some("unheard-of".into()),
        ];
        for (index, break_it) in broken.into_iter().enumerate() {
            let mut vocabulary = tiny_bpe();
            break_it(&mut vocabulary);
            assert!(
                Tokenizer::from_vocabulary(vocabulary).is_err(),
                "case {index}"
            );
        }
        let spm = Vocabulary {
            model: "llama".into(),
            ..tiny_bpe()
        };
        let error = Tokenizer::from_vocabulary(spm).unwrap_err().to_string();
        assert!(error.contains("score"), "{error}");
    }
}
