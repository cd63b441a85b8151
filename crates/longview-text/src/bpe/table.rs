//! The tokens and merges of a BPE vocabulary, laid out to be looked up.

use std::collections::HashMap;

use ahash::RandomState;
use hashbrown::HashTable;
use longview_weights::spelling::byte_to_char;

use crate::TextError;

/// Ids by text, texts by id, and what every pair of neighbours merges to.
///
/// Texts lie in one string and the table of ids holds places in it: a vocabulary of 128,000 tokens would
/// otherwise be as many allocations, twice.
pub(crate) struct TokenTable {
    texts: String,
    entries: Vec<Entry>,
    /// Places in `entries`, by the hash of their text.
    by_text: HashTable<u32>,
    hasher: RandomState,
    merges: HashMap<(u32, u32), Merge, RandomState>,
}

struct Entry {
    /// Where its text ends; it starts where the text before ends.
    end: u32,
    id: u32,
}

/// What a pair of neighbours becomes.
#[derive(Clone, Copy)]
pub(crate) struct Merge {
    /// The place in the list of merges: lower goes first.
    pub(crate) rank: u32,
    pub(crate) id: u32,
}

impl TokenTable {
    /// Lays out `tokens`, which are texts of their own each, and `merges`, best first, whose halves and
    /// results must be tokens.
    pub(crate) fn new(tokens: &[(&str, u32)], merges: &[(&str, &str)]) -> Result<Self, TextError> {
        let total: usize = tokens.iter().map(|(text, _)| text.len()).sum();
        if u32::try_from(total).is_err() {
            return Err(TextError::Vocabulary(format!(
                "its tokens hold {total} bytes"
            )));
        }
        let mut table = Self {
            texts: String::with_capacity(total),
            entries: Vec::with_capacity(tokens.len()),
            by_text: HashTable::with_capacity(tokens.len()),
            hasher: RandomState::new(),
            merges: HashMap::default(),
        };
        for &(text, id) in tokens {
            let place = table.entries.len() as u32;
            table.texts.push_str(text);
            table.entries.push(Entry {
                end: table.texts.len() as u32,
                id,
            });
            let (texts, entries, hasher) = (&table.texts, &table.entries, &table.hasher);
            let hash = |&place: &u32| hasher.hash_one(text_at(texts, entries, place));
            table
                .by_text
                .insert_unique(hasher.hash_one(text), place, hash);
        }
        table.merges = table.pairs(merges)?;
        Ok(table)
    }

    fn pairs(
        &self,
        merges: &[(&str, &str)],
    ) -> Result<HashMap<(u32, u32), Merge, RandomState>, TextError> {
        let mut pairs = HashMap::with_capacity_and_hasher(merges.len(), RandomState::new());
        let mut joined = String::new();
        for (rank, &(left, right)) in merges.iter().enumerate() {
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            let id = |token: &str| {
                self.id(token).ok_or_else(|| {
                    TextError::Vocabulary(format!(
                        "merge {rank} ({left:?} + {right:?}) needs the token {token:?}, which is \
                         missing"
                    ))
                })
            };
            let merge = Merge {
                rank: rank as u32,
                id: id(&joined)?,
            };
            pairs.insert((id(left)?, id(right)?), merge);
        }
        Ok(pairs)
    }

    /// How many tokens there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The id of the token written `text`.
    pub(crate) fn id(&self, text: &str) -> Option<u32> {
        let same = |&place: &u32| text_at(&self.texts, &self.entries, place) == text;
        let place = self.by_text.find(self.hasher.hash_one(text), same)?;
        Some(self.entries[*place as usize].id)
    }

    /// Every token with its id.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = (u32, &str)> {
        let text = |place| text_at(&self.texts, &self.entries, place as u32);
        let entries = self.entries.iter().enumerate();
        entries.map(move |(place, entry)| (entry.id, text(place)))
    }

    /// What two neighbours become, where a merge joins them.
    pub(crate) fn merge(&self, left: u32, right: u32) -> Option<Merge> {
        self.merges.get(&(left, right)).copied()
    }

    /// The ids of the 256 bytes in the alphabet of byte-level vocabularies, if it has all of them.
    pub(crate) fn byte_ids(&self) -> Option<Box<[u32; 256]>> {
        let mut ids = Box::new([0; 256]);
        for (byte, id) in (0..=255).zip(ids.iter_mut()) {
            *id = self.id(byte_to_char(byte).encode_utf8(&mut [0; 4]))?;
        }
        Some(ids)
    }

    /// The ids of single bytes, written `<0x41>`, as far as there are any.
    pub(crate) fn fallback_ids(&self) -> Box<[Option<u32>; 256]> {
        let mut ids = Box::new([None; 256]);
        for (byte, id) in (0..=255u8).zip(ids.iter_mut()) {
            *id = self.id(&format!("<0x{byte:02X}>"));
        }
        ids
    }
}

fn text_at<'a>(texts: &'a str, entries: &[Entry], place: u32) -> &'a str {
    let place = place as usize;
    let start = place.checked_sub(1).map_or(0, |before| entries[before].end);
    &texts[start as usize..entries[place].end as usize]
}

impl std::fmt::Debug for TokenTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenTable")
            .field("tokens", &self.entries.len())
            .field("merges", &self.merges.len())
            .finish()
    }
}
