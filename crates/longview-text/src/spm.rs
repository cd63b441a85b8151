//! SentencePiece BPE by scores: of all neighbours that join to a token, the pair with the highest
//! score joins first, the leftmost among equals, until none is left.
//!
//! Text is cut wherever no token could reach across (its two characters are neighbours in no
//! token), so a book costs as much as its words do and the ids stay those of the whole text.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap, HashSet};

use ahash::RandomState;
use longview_weights::spelling::byte_token;

use crate::special::SpecialMatcher;
use crate::vocabulary::{AfterControl, TokenKind, Vocabulary};
use crate::{Specials, Start, TextError, footprint};

/// How SentencePiece writes a space.
const SPACE: char = '\u{2581}';
/// Longest run of text, in bytes, whose ids are remembered, and how many of them per call.
const CACHED_BYTES: usize = 48;
const CACHED_RUNS: usize = 100_000;

/// A SentencePiece encoder.
#[derive(Debug)]
pub(crate) struct Spm {
    /// Tokens that merging may produce, with their ids and scores.
    merge: HashMap<String, (u32, f32), RandomState>,
    /// Neighbouring characters inside the tokens of `merge`.
    neighbours: HashSet<(char, char), RandomState>,
    byte_ids: [Option<u32>; 256],
    unk: Option<u32>,
    space_prefix: bool,
    after_control: AfterControl,
    special: SpecialMatcher,
    ids: HashMap<String, u32>,
}

/// A pair of neighbours that could join.
struct Candidate {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of both when the pair was found; differs once either was joined elsewhere.
    len: usize,
    id: u32,
}

/// A stretch of the text, in a doubly linked list. `len` 0 marks one that was joined.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    len: usize,
    prev: usize,
    next: usize,
    id: Option<u32>,
}

const NONE: usize = usize::MAX;

impl Spm {
    /// Builds the encoder from a checked vocabulary and the ids of its tokens.
    pub(crate) fn new(
        vocabulary: &Vocabulary,
        ids: &HashMap<&str, u32>,
    ) -> Result<Self, TextError> {
        let count = vocabulary.tokens.len();
        if vocabulary.scores.len() != count {
            return Err(TextError::Vocabulary(format!(
                "kind `llama` needs one score a token; it has {} for {count} tokens",
                vocabulary.scores.len()
            )));
        }
        let mut spm = Self {
            merge: HashMap::with_capacity_and_hasher(count, RandomState::new()),
            neighbours: HashSet::default(),
            byte_ids: [None; 256],
            unk: vocabulary.unk,
            space_prefix: vocabulary.add_space_prefix.unwrap_or(true),
            after_control: vocabulary.after_control,
            special: SpecialMatcher::new(Vec::new())?,
            ids: ids
                .iter()
                .map(|(&token, &id)| (token.to_owned(), id))
                .collect(),
        };
        let mut special = Vec::new();
        for (id, token) in vocabulary.tokens.iter().enumerate() {
            let (number, score) = (id as u32, vocabulary.scores[id]);
            match vocabulary.kind(id) {
                _ if token.is_empty() => {}
                TokenKind::Byte => match byte_token(token) {
                    Some(byte) => spm.byte_ids[usize::from(byte)] = Some(number),
                    None => {
                        return Err(TextError::Vocabulary(format!(
                            "token {id} is marked as a byte but written {token:?}, not <0xNN>"
                        )));
                    }
                },
                kind @ (TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined) => {
                    special.push((token.as_str(), number, kind != TokenKind::UserDefined));
                }
                TokenKind::Normal | TokenKind::Unused => {
                    if score.is_nan() {
                        return Err(TextError::Vocabulary(format!(
                            "the score of token {id} is not a number"
                        )));
                    }
                    spm.neighbours
                        .extend(token.chars().zip(token.chars().skip(1)));
                    spm.merge.insert(token.clone(), (number, score));
                }
            }
        }
        spm.special = SpecialMatcher::new(special)?;
        Ok(spm)
    }

    /// The ids of `text`.
    pub(crate) fn encode(
        &self,
        text: &str,
        specials: Specials,
        position: Start,
    ) -> Result<Vec<u32>, TextError> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        let mut cache = HashMap::default();
        let mut rest = text;
        // A prefix space goes before every stretch of text that starts the input or follows a
        // special token.
        let mut prefix = self.space_prefix && position == Start::Text;
        while !rest.is_empty() {
            let found = self.special.find(rest, specials);
            let plain = &rest[..found.as_ref().map_or(rest.len(), |hit| hit.start)];
            if !plain.is_empty() {
                self.encode_plain(plain, prefix, &mut cache, &mut ids)?;
            }
            let Some(hit) = found else { break };
            ids.push(hit.id);
            prefix = self.space_prefix;
            rest = &rest[hit.end..];
            if hit.control && self.after_control == AfterControl::Strip {
                rest = rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '\u{b}');
            }
        }
        Ok(ids)
    }

    /// The id of the token written `token`.
    pub(crate) fn id_of(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    fn encode_plain(
        &self,
        text: &str,
        prefix: bool,
        cache: &mut HashMap<String, Vec<u32>, RandomState>,
        ids: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        let mut spaced = String::with_capacity(text.len() + text.len() / 2 + 3);
        if prefix {
            spaced.push(SPACE);
        }
        spaced.extend(text.chars().map(in_alphabet));

        let mut start = 0;
        let mut before = None;
        for (at, c) in spaced.char_indices() {
            if self.cuts(before, c) {
                self.encode_run(&spaced[start..at], cache, ids)?;
                start = at;
            }
            before = Some(c);
        }
        self.encode_run(&spaced[start..], cache, ids)
    }

    /// A bound on the bytes that [`Spm::encode`] takes for `text` while it works.
    pub(crate) fn encoding_bytes(&self, text: &str) -> u64 {
        let (mut run, mut longest) = (0, 0);
        let mut before = None;
        for c in text.chars().map(in_alphabet) {
            if self.cuts(before, c) {
                run = 0;
            }
            run += c.len_utf8() as u64;
            longest = longest.max(run);
            before = Some(c);
        }
        footprint::of_sentence_piece(text, longest)
    }

    /// Whether no token can reach across these two.
    fn cuts(&self, before: Option<char>, c: char) -> bool {
        before.is_some_and(|before| !self.neighbours.contains(&(before, c)))
    }

    /// Appends the ids of a run that no token crosses the borders of.
    fn encode_run(
        &self,
        run: &str,
        cache: &mut HashMap<String, Vec<u32>, RandomState>,
        ids: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        if let Some(known) = cache.get(run) {
            ids.extend_from_slice(known);
            return Ok(());
        }
        let from = ids.len();
        self.merge_run(run, ids)?;
        if run.len() <= CACHED_BYTES && cache.len() < CACHED_RUNS {
            cache.insert(run.to_owned(), ids[from..].to_vec());
        }
        Ok(())
    }

    fn merge_run(&self, run: &str, ids: &mut Vec<u32>) -> Result<(), TextError> {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(run.len());
        for (start, c) in run.char_indices() {
            let index = symbols.len();
            let len = c.len_utf8();
            let id = self.merge.get(&run[start..start + len]).map(|&(id, _)| id);
            let prev = index.checked_sub(1).unwrap_or(NONE);
            symbols.push(Symbol {
                start,
                len,
                prev,
                next: index + 1,
                id,
            });
        }
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        // One for each pair, and one more for each merge.
        let mut queue = BinaryHeap::with_capacity(2 * symbols.len());
        for left in 0..symbols.len() {
            queue.extend(self.candidate(run, &symbols, left, symbols[left].next));
        }
        while let Some(Candidate {
            left,
            right,
            len,
            id,
            ..
        }) = queue.pop()
        {
            let (a, b) = (symbols[left], symbols[right]);
            if a.len == 0 || b.len == 0 || a.len + b.len != len {
                continue;
            }
            symbols[left] = Symbol {
                len,
                next: b.next,
                id: Some(id),
                ..a
            };
            symbols[right].len = 0;
            if b.next != NONE {
                symbols[b.next].prev = left;
            }
            queue.extend(self.candidate(run, &symbols, a.prev, left));
            queue.extend(self.candidate(run, &symbols, left, b.next));
        }
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            match symbol.id {
                Some(id) => ids.push(id),
                None => self.push_bytes(&run[symbol.start..symbol.start + symbol.len], ids)?,
            }
        }
        Ok(())
    }

    fn candidate(
        &self,
        run: &str,
        symbols: &[Symbol],
        left: usize,
        right: usize,
    ) -> Option<Candidate> {
        let (a, b) = (symbols.get(left)?, symbols.get(right)?);
        let len = a.len + b.len;
        let &(id, score) = self.merge.get(&run[a.start..a.start + len])?;
        Some(Candidate {
            score,
            left,
            right,
            len,
            id,
        })
    }

    /// A character that is no token is written as its bytes, or else as `unk`.
    fn push_bytes(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TextError> {
        let bytes: Option<Vec<u32>> = text
            .bytes()
            .map(|byte| self.byte_ids[usize::from(byte)])
            .collect();
        match (bytes, self.unk) {
            (Some(bytes), _) => ids.extend(bytes),
            (None, Some(unk)) => ids.push(unk),
            (None, None) => {
                return Err(TextError::Encode(format!(
                    "the vocabulary has no token for {text:?}, no byte tokens and no unknown token"
                )));
            }
        }
        Ok(())
    }
}

fn in_alphabet(c: char) -> char {
    if c == ' ' { SPACE } else { c }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score
            .total_cmp(&other.score)
            .then(Reverse(self.left).cmp(&Reverse(other.left)))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Letters, a few words with scores, bytes for the rest.
    fn tiny() -> Spm {
        let words = [
            ("<unk>", 0.0, TokenKind::Unknown),
            ("<s>", 0.0, TokenKind::Control),
            ("\u{2581}", -10.0, TokenKind::Normal),
            ("a", -11.0, TokenKind::Normal),
            ("b", -12.0, TokenKind::Normal),
            ("ab", -1.0, TokenKind::Normal),
            ("ba", -2.0, TokenKind::Normal),
            ("aa", -2.0, TokenKind::Normal),
            ("aba", -3.0, TokenKind::Normal),
            ("\u{2581}a", -4.0, TokenKind::Normal),
            ("\u{2581}\u{2581}", -5.0, TokenKind::Normal),
            ("a\u{2581}b", -0.5, TokenKind::Normal),
            ("[x]", 0.0, TokenKind::UserDefined),
        ];
        let mut vocabulary = Vocabulary {
            model: "llama".into(),
            ..Vocabulary::default()
        };
        for (token, score, kind) in words {
            vocabulary.tokens.push(token.into());
            vocabulary.scores.push(score);
            vocabulary.kinds.push(kind);
        }
        for byte in 0..=255 {
            vocabulary.tokens.push(format!("<0x{byte:02X}>"));
            vocabulary.scores.push(0.0);
            vocabulary.kinds.push(TokenKind::Byte);
        }
        let ids = vocabulary.check().unwrap();
        Spm::new(&vocabulary, &ids).unwrap()
    }

    #[test]
    fn the_best_score_merges_first_and_the_leftmost_of_equals() {
        let spm = tiny();
        let ids = |text| {
            spm.encode(text, Specials::AsText, Start::Continuation)
                .unwrap()
        };
        // "ab" (-1) before "ba" and "aa" (-2); then "aba" from "ab" and "a".
        assert_eq!(ids("aba"), [8]);
        // "aa" twice over: the left pair joins.
        assert_eq!(ids("aaa"), [7, 3]);
        assert_eq!(ids("é"), [13 + 0xC3, 13 + 0xA9]);
        // As llama.cpp does, every token found in the text is followed by a prefix space.
        assert_eq!(ids("a[x]a"), [3, 12, 9]);
        assert_eq!(ids("<s>").len(), 3);
        assert_eq!(
            spm.encode("a<s>a", Specials::Parse, Start::Text).unwrap(),
            [9, 1, 9]
        );
        assert!(ids("").is_empty());
    }

    proptest! {
        #[test]
        fn cutting_into_runs_changes_nothing(text in "[ab x]{0,60}") {
            let spm = tiny();
            let spaced: String = text.chars().map(|c| if c == ' ' { SPACE } else { c }).collect();
            let mut whole = Vec::new();
            spm.merge_run(&spaced, &mut whole).unwrap();
            let runs = spm.encode(&text, Specials::AsText, Start::Continuation).unwrap();
            prop_assert_eq!(runs, whole);
        }
    }
}
