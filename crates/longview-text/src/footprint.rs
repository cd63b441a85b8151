//! The memory that turning a text into ids takes meanwhile.

/// Bytes taken for each byte of ASCII, and of other characters, where words are long: what their tokens
/// take until all are known.
const LONG_WORDS: (u64, u64) = (144, 160);
/// The same where words are short, beside what each of these takes.
const SHORT_WORDS: (u64, u64) = (64, 112);
/// Bytes taken for each word that is split off before merging.
const WORD: u64 = 432;
/// Bytes taken for each byte by the vocabularies of SentencePiece: the text once more with its spaces
/// spelt, ids, and what is remembered of short stretches.
const SENTENCE_PIECE: u64 = 40;
/// The same for each byte of the stretch that is merged.
const SENTENCE_PIECE_MERGED: u64 = 200;
/// Bytes taken for each byte by the ids of words: one a byte at most, in a list that doubles.
const IDS: u64 = 12;
/// Bytes taken for each byte of the word that is merged: its symbols, and two pairs for each, in lists
/// that double.
const MERGED: u64 = 112;
/// Bytes taken for each byte by what the `tokenizers` crate keeps beside a text: where each of its bytes
/// came from, twice while it is split.
const NORMALIZED: u64 = 56;
/// Bytes of text that are judged at a time, so that one part of a text does not hide another.
const STRETCH: usize = 4096;

/// A bound on the bytes that BPE takes for `text` where it is merged word by word: its ids, and the word
/// that takes most. Words that `end_at_spaces` hold one run of white space and one of anything else at most.
pub(crate) fn of_words(text: &str, end_at_spaces: bool) -> u64 {
    let longest = if end_at_spaces {
        longest_runs(text)
    } else {
        text.len() as u64
    };
    (text.len() as u64)
        .saturating_mul(IDS)
        .saturating_add(longest.saturating_mul(MERGED))
}

/// The same where the `tokenizers` crate normalises the text before it is split into words.
pub(crate) fn of_normalized_words(text: &str, end_at_spaces: bool) -> u64 {
    let normalized = (text.len() as u64).saturating_mul(NORMALIZED);
    of_words(text, end_at_spaces).saturating_add(normalized)
}

/// A bound on the bytes that BPE takes for `text` where the steps of a `tokenizer.json` split it.
pub(crate) fn of_chain(text: &str) -> u64 {
    let mut total: u64 = 0;
    let mut stretch = Stretch::default();
    let mut chars = text.chars().peekable();
    let mut before = Class::Blank;
    while let Some(c) = chars.next() {
        let class = Class::of(c);
        let begins = match class {
            Class::Letter | Class::Mark => class != before,
            Class::Digit | Class::Blank => true,
            // Words carry the space before them.
            Class::Space => chars.peek().is_none_or(|next| next.is_whitespace()),
        };
        before = match class {
            // What follows a space is a word of its own.
            Class::Space => Class::Blank,
            class => class,
        };
        stretch.add(c, begins);
        if stretch.bytes() >= STRETCH {
            total = total.saturating_add(stretch.cost());
            stretch = Stretch::default();
        }
    }
    total.saturating_add(stretch.cost())
}

/// The bytes of the longest run of white space, and of the longest run without any.
fn longest_runs(text: &str) -> u64 {
    let (mut runs, mut longest) = ([0; 2], [0; 2]);
    for c in text.chars() {
        let blank = usize::from(c.is_whitespace());
        runs[blank] += c.len_utf8() as u64;
        longest[blank] = runs[blank].max(longest[blank]);
        runs[1 - blank] = 0;
    }
    longest[0] + longest[1]
}

/// The same for SentencePiece, whose longest stretch that no token ends in is of `longest` bytes.
pub(crate) fn of_sentence_piece(text: &str, longest: u64) -> u64 {
    let stretch = longest.saturating_mul(SENTENCE_PIECE_MERGED);
    let all = (text.len() as u64).saturating_mul(SENTENCE_PIECE);
    all.saturating_add(stretch)
}

/// What decides where splitting ends a word.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    /// Most vocabularies split every digit off, or every third.
    Digit,
    Space,
    /// Line ends, tabs and the like.
    Blank,
    Mark,
}

impl Class {
    fn of(c: char) -> Class {
        match c {
            ' ' => Class::Space,
            c if c.is_whitespace() => Class::Blank,
            c if c.is_numeric() => Class::Digit,
            c if c.is_alphabetic() => Class::Letter,
            _ => Class::Mark,
        }
    }
}

#[derive(Default)]
struct Stretch {
    ascii: usize,
    other: usize,
    words: usize,
}

impl Stretch {
    fn add(&mut self, c: char, begins: bool) {
        match c.len_utf8() {
            1 => self.ascii += 1,
            bytes => self.other += bytes,
        }
        self.words += usize::from(begins);
    }

    fn bytes(&self) -> usize {
        self.ascii + self.other
    }

    fn cost(&self) -> u64 {
        let by_byte = |(ascii, other)| self.ascii as u64 * ascii + self.other as u64 * other;
        let short = by_byte(SHORT_WORDS) + self.words as u64 * WORD;
        short.max(by_byte(LONG_WORDS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // That the bounds hold is measured in `tests/footprint.rs`.

    #[test]
    fn one_part_of_a_text_does_not_hide_another() {
        let (digits, letters) = ("7".repeat(8192), "x".repeat(8192));
        let apart = of_chain(&digits) + of_chain(&letters);
        assert_eq!(of_chain(&format!("{digits}{letters}")), apart);
        assert_eq!(of_chain(""), 0);
        let (word, blanks) = ("x".repeat(1000), " ".repeat(500));
        let text = format!("a {word} b{blanks}c");
        let ids = text.len() as u64 * IDS;
        assert_eq!(of_words(&text, true), ids + 1500 * MERGED);
        assert_eq!(of_words(&text, false), ids + text.len() as u64 * MERGED);
    }
}
