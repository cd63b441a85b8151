//! The memory that turning a text into ids takes meanwhile.

/// Bytes taken for each byte of ASCII, and of other characters, where words are long: what their tokens
/// take until all are known.
const LONG_WORDS: (u64, u64) = (144, 160);
/// The same where words are short, beside what each of these takes.
const SHORT_WORDS: (u64, u64) = (64, 112);
/// Bytes taken for each word that is split off before merging.
const WORD: u64 = 432;
/// Bytes taken for each byte by the vocabularies of SentencePiece: the text once more with its spaces
/// spelt, ids, and what is remembered of short stretches, each of which may be another.
const SENTENCE_PIECE: u64 = 80;
/// The same for each byte of the stretch that is merged: 40 by its symbols, 64 by the pairs of them.
const SENTENCE_PIECE_MERGED: u64 = 112;
/// Bytes taken for each byte where words are merged one by one: 6 by the ids, one a byte at most, in a list that
/// doubles; and where all is one word, 12 by its symbols, 16 by the pairs of them and 6 by how it is spelt.
const WORDS: u64 = 48;
/// Bytes taken for each byte of a run of white space by the pattern engine, which remembers where it could turn
/// back to, in a list that doubles.
const BLANKS: u64 = 96;
/// Bytes of text that are judged at a time, so that one part of a text does not hide another.
const STRETCH: usize = 4096;

/// A bound on the bytes that BPE takes for `text` where it is merged word by word.
pub(crate) fn of_words(text: &str) -> u64 {
    let runs = text.split(|c: char| !c.is_whitespace());
    let longest = runs.map(str::len).max().unwrap_or(0) as u64;
    let all = (text.len() as u64).saturating_mul(WORDS);
    all.saturating_add(longest.saturating_mul(BLANKS))
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
    }
}
