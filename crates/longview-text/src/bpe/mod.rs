//! Byte-level and byte-fallback BPE by merge ranks.
//!
//! Nearly all vocabularies split text into words by regular expressions and merge the bytes of each.
//! That is done here, word by word, in the memory of the ids and of one word. What else a `tokenizer.json` may
//! ask for before merging (normalising, other ways of splitting, added tokens that swallow spaces) is
//! left to the `tokenizers` crate.

mod merger;
mod table;

use std::collections::{BTreeMap, HashMap};

use longview_weights::spelling::byte_to_char;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{
    AddedToken, AddedVocabulary, NormalizerWrapper, OffsetReferential, OffsetType, PreTokenizer,
    PreTokenizerWrapper,
};

use self::merger::Merger;
use self::table::TokenTable;
use crate::special::SpecialMatcher;
use crate::words::WordPatterns;
use crate::{Specials, Start, TextError, footprint};

/// Most white-space characters in a row. The pattern engine gives up on a million, as it does on as many others
/// that no pattern matches.
const MAX_BLANKS: usize = 900_000;

/// Most bytes of a word: places in it are of 32 bits.
const MAX_WORD: usize = 1 << 31;

/// A BPE encoder.
pub(crate) struct Bpe {
    table: TokenTable,
    /// The ids of the 256 bytes in the alphabet of byte-level vocabularies, where it has all of them.
    byte_ids: Option<Box<[u32; 256]>>,
    /// The ids of single bytes, where characters without a token fall back on them.
    fallback: Option<Box<[Option<u32>; 256]>>,
    /// For characters that have neither.
    unk: Option<u32>,
    fuse_unk: bool,
    whole_words: bool,
    added: BTreeMap<u32, AddedToken>,
    finder: Finder,
    steps: Steps,
    continuation: Option<Steps>,
}

/// What a [`Bpe`] is made of.
pub(crate) struct BpeParts<'a> {
    pub(crate) tokens: Vec<(&'a str, u32)>,
    /// Best first.
    pub(crate) merges: Vec<(&'a str, &'a str)>,
    pub(crate) unk_token: Option<&'a str>,
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
    pub(crate) split: Split,
}

/// How text is split into words.
pub(crate) enum Split {
    /// By regular expressions, into words that are spelt in the alphabet of byte-level vocabularies.
    Patterns(WordPatterns),
    /// By the steps of the `tokenizers` crate, if any, into words that are spelt as they leave them.
    Chain(Option<PreTokenizerWrapper>),
}

/// Finds added tokens, before anything else happens to a text.
enum Finder {
    /// Where nothing is normalised and no token swallows what stands beside it.
    Plain {
        first: SpecialMatcher,
        /// Those that are looked for in what the first leave.
        then: SpecialMatcher,
    },
    /// All of them, and all but the special ones.
    Library {
        parse: Box<AddedVocabulary>,
        as_text: Box<AddedVocabulary>,
    },
}

/// Room to work in, used from one word to the next.
#[derive(Default)]
struct Scratch {
    merger: Merger,
    spelt: String,
}

impl Bpe {
    /// Checks the merges against the vocabulary and builds the encoder.
    pub(crate) fn new(parts: BpeParts<'_>) -> Result<Self, TextError> {
        let table = TokenTable::new(&parts.tokens, &parts.merges)?;
        let unk = parts.unk_token.map(|unk| {
            let missing = || format!("its unknown token {unk:?} is missing");
            table
                .id(unk)
                .ok_or_else(|| TextError::Vocabulary(missing()))
        });
        let added = numbered(parts.added, &table);
        let swallows = |token: &AddedToken| token.single_word || token.lstrip || token.rstrip;
        let plain = parts.steps.normalizer.is_none()
            && matches!(parts.steps.split, Split::Patterns(_))
            && parts.continuation.is_none()
            && !added.values().any(swallows);
        Ok(Self {
            byte_ids: table.byte_ids(),
            fallback: parts.byte_fallback.then(|| table.fallback_ids()),
            unk: unk.transpose()?,
            fuse_unk: parts.fuse_unk,
            whole_words: parts.whole_words,
            finder: if plain {
                Finder::plain(&added)?
            } else {
                Finder::library(&added, parts.steps.normalizer.as_ref())?
            },
            table,
            added,
            steps: parts.steps,
            continuation: parts.continuation,
        })
    }

    /// The ids of `text`.
    pub(crate) fn encode(
        &self,
        text: &str,
        specials: Specials,
        position: Start,
    ) -> Result<Vec<u32>, TextError> {
        let steps = match (position, &self.continuation) {
            (Start::Continuation, Some(steps)) => steps,
            _ => &self.steps,
        };
        if !matches!(steps.split, Split::Chain(None)) {
            check_blanks(text)?;
        }
        let mut ids = Vec::with_capacity(text.len() / 4);
        let mut scratch = Scratch::default();
        let mut plain = |stretch: &str, ids: &mut Vec<u32>| match &steps.split {
            Split::Patterns(patterns) => patterns.split(stretch, &mut |word| {
                self.spell_and_merge(word, &mut scratch, ids)
            }),
            Split::Chain(_) => self.merge(stretch, &mut scratch.merger, ids),
        };
        let library = match (&self.finder, specials) {
            (Finder::Plain { first, then }, _) => {
                first.split(text, specials, &mut ids, &mut |stretch, ids| {
                    then.split(stretch, specials, ids, &mut plain)
                })?;
                return Ok(ids);
            }
            (Finder::Library { parse, .. }, Specials::Parse) => parse,
            (Finder::Library { as_text, .. }, Specials::AsText) => as_text,
        };
        let mut words = library.extract_and_normalize(steps.normalizer.as_ref(), text);
        if let Split::Chain(Some(chain)) = &steps.split {
            chain
                .pre_tokenize(&mut words)
                .map_err(|error| TextError::Encode(error.to_string()))?;
        }
        for (stretch, _, found) in words.get_splits(OffsetReferential::Normalized, OffsetType::None)
        {
            match found {
                Some(tokens) => ids.extend(tokens.iter().map(|token| token.id)),
                None => plain(stretch, &mut ids)?,
            }
        }
        Ok(ids)
    }

    /// A bound on the bytes that [`Bpe::encode`] takes for `text` while it works.
    pub(crate) fn encoding_bytes(&self, text: &str) -> u64 {
        match self.finder {
            Finder::Plain { .. } => footprint::of_words(text),
            Finder::Library { .. } => footprint::of_chain(text),
        }
    }

    /// The id of the token written `token`.
    pub(crate) fn id_of(&self, token: &str) -> Option<u32> {
        let added = self.added().find(|(_, added)| added.content == token);
        added.map(|(id, _)| id).or_else(|| self.table.id(token))
    }

    /// Every id with its token as written in the vocabulary.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = (u32, &str)> {
        self.table.tokens()
    }

    /// Tokens matched before splitting, with their ids.
    pub(crate) fn added(&self) -> impl Iterator<Item = (u32, &AddedToken)> {
        self.added.iter().map(|(&id, token)| (id, token))
    }

    /// Puts the ids of a word behind `ids`, by the bytes of its text.
    fn spell_and_merge(
        &self,
        word: &str,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        let Scratch { merger, spelt } = scratch;
        if self.whole_words || self.byte_ids.is_none() {
            spelt.clear();
            spelt.extend(word.bytes().map(byte_to_char));
        }
        let Some(byte_ids) = &self.byte_ids else {
            return self.merge(spelt, merger, ids);
        };
        if self.whole_words
            && let Some(id) = self.table.id(spelt)
        {
            ids.push(id);
            return Ok(());
        }
        check_length(word)?;
        merger.begin(word.len());
        for byte in word.bytes() {
            merger.push(byte_ids[usize::from(byte)]);
        }
        merger.finish(&self.table, ids);
        Ok(())
    }

    /// Puts the ids of a word behind `ids`, by its characters.
    fn merge(&self, word: &str, merger: &mut Merger, ids: &mut Vec<u32>) -> Result<(), TextError> {
        if self.whole_words
            && let Some(id) = self.table.id(word)
        {
            ids.push(id);
            return Ok(());
        }
        check_length(word)?;
        // A character is one symbol, or as many as it has bytes.
        merger.begin(word.len());
        let mut after_unknown = false;
        for c in word.chars() {
            let mut utf8 = [0; 4];
            let text = &*c.encode_utf8(&mut utf8);
            let known = self.table.id(text);
            if let Some(id) = known {
                merger.push(id);
            } else if let Some(bytes) = self.fallback_of(text) {
                bytes.for_each(|id| merger.push(id));
            } else if let Some(unk) = self.unk {
                if !(after_unknown && self.fuse_unk) {
                    merger.push(unk);
                }
                after_unknown = true;
                continue;
            } else {
                return Err(TextError::Encode(format!(
                    "the vocabulary has no token for {c:?} in {word:?}, no byte tokens and no \
                     unknown token"
                )));
            }
            after_unknown = false;
        }
        merger.finish(&self.table, ids);
        Ok(())
    }

    /// The ids of the bytes of a character, where the vocabulary falls back on them and has all.
    fn fallback_of<'a>(&'a self, character: &'a str) -> Option<impl Iterator<Item = u32> + 'a> {
        let fallback = self.fallback.as_deref()?;
        let id = |byte| fallback[usize::from(byte)];
        let complete = character.bytes().all(|byte| id(byte).is_some());
        complete.then(|| character.bytes().filter_map(id))
    }
}

impl Finder {
    fn plain(added: &BTreeMap<u32, AddedToken>) -> Result<Self, TextError> {
        let of = |normalized: bool| {
            let tokens = added
                .iter()
                .filter(|(_, token)| token.normalized == normalized);
            let tokens = tokens.map(|(&id, token)| (token.content.as_str(), id, token.special));
            SpecialMatcher::new(tokens.collect())
        };
        Ok(Self::Plain {
            first: of(false)?,
            then: of(true)?,
        })
    }

    fn library(
        added: &BTreeMap<u32, AddedToken>,
        normalizer: Option<&NormalizerWrapper>,
    ) -> Result<Self, TextError> {
        // It takes the ids of added tokens from a vocabulary.
        let ids = added.iter().map(|(&id, token)| (token.content.clone(), id));
        let own = BPE::builder()
            .vocab_and_merges(ids.collect::<Vocab>(), Vec::new())
            .build()
            .map_err(TextError::building)?;
        let mut parse = Box::new(AddedVocabulary::new());
        parse
            .add_tokens(added.values().cloned(), &own, normalizer)
            .map_err(TextError::building)?;
        let mut as_text = parse.clone();
        as_text.set_encode_special_tokens(true);
        Ok(Self::Library { parse, as_text })
    }
}

/// The added tokens with their ids. Those that are not in the vocabulary get the numbers after its own.
fn numbered(added: Vec<AddedToken>, table: &TokenTable) -> BTreeMap<u32, AddedToken> {
    let mut ids = HashMap::new();
    let mut numbered: BTreeMap<u32, AddedToken> = BTreeMap::new();
    let mut next = table.len() as u32;
    for mut token in added {
        if token.content.is_empty() {
            continue;
        }
        let known = ids.get(&token.content).copied();
        let id = known
            .or_else(|| table.id(&token.content))
            .unwrap_or_else(|| {
                next += 1;
                next - 1
            });
        ids.insert(token.content.clone(), id);
        // One that was special once stays so, whatever a second entry says.
        token.special |= known.is_some_and(|id| numbered[&id].special);
        numbered.insert(id, token);
    }
    numbered
}

/// Refuses a word that is too long to be merged.
fn check_length(word: &str) -> Result<(), TextError> {
    if word.len() > MAX_WORD {
        return Err(TextError::Encode(format!(
            "it has a word of {} bytes, and at most {MAX_WORD} can be merged; take it in parts",
            word.len()
        )));
    }
    Ok(())
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
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}
