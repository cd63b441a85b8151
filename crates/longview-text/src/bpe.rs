//! Byte-level and byte-fallback BPE by merge ranks, through the `tokenizers` crate.
//!
//! The crate's own entry points trust their input in a few places (a merge whose result is no
//! token can index out of bounds), so everything is checked here before it is handed over.

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::{
    AddedToken, AddedVocabulary, Model, NormalizerWrapper, OffsetType, PreTokenizer,
    PreTokenizerWrapper, Token,
};

use crate::{Specials, Start, TextError};

/// Words whose merges are remembered, per thread.
const CACHED_WORDS: usize = 100_000;

/// Most white-space characters in a row. The pattern engine gives up on a million and would leave
/// the rest of the text unsplit in silence.
const MAX_BLANKS: usize = 900_000;

/// A BPE encoder.
pub(crate) struct Bpe {
    model: BPE,
    steps: Steps,
    /// The steps for the continuation of a text, where they differ.
    continuation: Option<Steps>,
    /// Tokens matched before splitting: all of them, and all but the special ones.
    parse: AddedVocabulary,
    as_text: AddedVocabulary,
}

/// What a [`Bpe`] is made of.
pub(crate) struct BpeParts {
    pub(crate) vocab: Vocab,
    /// Best first.
    pub(crate) merges: Merges,
    pub(crate) unk_token: Option<String>,
    pub(crate) fuse_unk: bool,
    pub(crate) byte_fallback: bool,
    /// Whether a word that is a token as a whole is taken without merging.
    pub(crate) whole_words: bool,
    pub(crate) steps: Steps,
    /// The steps for the continuation of a text, where they differ: those of a text may put a
    /// space before it.
    pub(crate) continuation: Option<Steps>,
    pub(crate) added: Vec<AddedToken>,
}

/// What happens to text before merging.
pub(crate) struct Steps {
    pub(crate) normalizer: Option<NormalizerWrapper>,
    pub(crate) split: Option<PreTokenizerWrapper>,
}

impl Bpe {
    /// Checks the merges against the vocabulary and builds the encoder.
    pub(crate) fn new(parts: BpeParts) -> Result<Self, TextError> {
        let mut result = String::new();
        for (rank, (left, right)) in parts.merges.iter().enumerate() {
            result.clear();
            result.push_str(left);
            result.push_str(right);
            for token in [left, right, &result] {
                if !parts.vocab.contains_key(token) {
                    return Err(TextError::Vocabulary(format!(
                        "merge {rank} ({left:?} + {right:?}) needs the token {token:?}, which is \
                         missing"
                    )));
                }
            }
        }
        let mut builder = BPE::builder()
            .vocab_and_merges(parts.vocab, parts.merges)
            .cache_capacity(CACHED_WORDS)
            .fuse_unk(parts.fuse_unk)
            .byte_fallback(parts.byte_fallback)
            .ignore_merges(parts.whole_words);
        if let Some(unk) = parts.unk_token {
            builder = builder.unk_token(unk);
        }
        let model = builder.build().map_err(TextError::building)?;
        let mut parse = AddedVocabulary::new();
        parse
            .add_tokens(parts.added, &model, parts.steps.normalizer.as_ref())
            .map_err(TextError::building)?;
        let mut as_text = parse.clone();
        as_text.set_encode_special_tokens(true);
        Ok(Self {
            model,
            steps: parts.steps,
            continuation: parts.continuation,
            parse,
            as_text,
        })
    }

    /// The ids of `text`.
    pub(crate) fn encode(
        &self,
        text: &str,
        specials: Specials,
        position: Start,
    ) -> Result<Vec<u32>, TextError> {
        let added = match specials {
            Specials::Parse => &self.parse,
            Specials::AsText => &self.as_text,
        };
        if self.steps.split.is_some() {
            check_blanks(text)?;
        }
        let failed =
            |error: Box<dyn std::error::Error + Send + Sync>| TextError::Encode(error.to_string());
        let steps = match (position, &self.continuation) {
            (Start::Continuation, Some(steps)) => steps,
            _ => &self.steps,
        };
        let mut words = added.extract_and_normalize(steps.normalizer.as_ref(), text);
        if let Some(split) = &steps.split {
            split.pre_tokenize(&mut words).map_err(failed)?;
        }
        words
            .tokenize(|word| {
                let tokens = self.model.tokenize(word.get())?;
                check_complete(word.get(), &tokens)?;
                Ok(tokens)
            })
            .map_err(failed)?;
        let encoding = words
            .into_encoding(None, 0, OffsetType::None)
            .map_err(failed)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The id of the token written `token`.
    pub(crate) fn id_of(&self, token: &str) -> Option<u32> {
        self.parse.token_to_id(token, &self.model)
    }

    /// Every id with its token as written in the vocabulary.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = (u32, String)> {
        self.model
            .get_vocab()
            .into_iter()
            .map(|(token, id)| (id, token))
    }

    /// Tokens matched before splitting, with their ids.
    pub(crate) fn added(&self) -> impl Iterator<Item = (u32, &AddedToken)> {
        self.parse
            .get_added_tokens_decoder()
            .iter()
            .map(|(&id, token)| (id, token))
    }
}

/// Refuses a word of which `tokens` leave something out: merging passes over characters that the
/// vocabulary has no token for, neither of their bytes nor for what is unknown.
fn check_complete(word: &str, tokens: &[Token]) -> Result<(), String> {
    let covered: usize = tokens
        .iter()
        .map(|token| token.offsets.1 - token.offsets.0)
        .sum();
    if covered >= word.len() {
        return Ok(());
    }
    Err(format!(
        "the vocabulary has no token for something in {word:?}, no byte tokens and no unknown token"
    ))
}

/// Refuses text with too much white space in one place.
fn check_blanks(text: &str) -> Result<(), TextError> {
    let (mut blanks, mut start) = (0, 0);
    for (at, c) in text.char_indices() {
        if !c.is_whitespace() {
            (blanks, start) = (0, at + c.len_utf8());
            continue;
        }
        blanks += 1;
        if blanks > MAX_BLANKS {
            return Err(TextError::Encode(format!(
                "more than {MAX_BLANKS} white-space characters in a row from byte {start}; \
                 shorten them"
            )));
        }
    }
    Ok(())
}

impl std::fmt::Debug for Bpe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bpe")
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}
