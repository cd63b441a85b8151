//! The memory that turning a text into ids takes meanwhile.

/// Bytes taken for each byte of ASCII, and of other characters, where words are long: what their tokens
/// take until all are known.
const LONG_WORDS: (u64, u64) = (144, 160);
/// The same where words are short, beside what each of these takes.
const SHORT_WORDS: (u64, u64) = (64, 112);
/// Bytes taken for each word that is split off before merging.
const WORD: u64 = 432;
/// Bytes taken for each byte by the vocabularies of SentencePiece, which split nothing off.
const SENTENCE_PIECE: u64 = 80;
/// Bytes of text that are judged at a time, so that one part of a text does not hide another.
const STRETCH: usize = 4096;

/// A bound on the bytes that BPE takes for `text` while it splits and merges it. What was measured, and
/// on which texts, is in BENCHMARKS.md; the worst of them took nine tenths of it or less.
pub(crate) fn of_bpe(text: &str) -> u64 {
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

/// The same for SentencePiece.
pub(crate) fn of_sentence_piece(text: &str) -> u64 {
    (text.len() as u64).saturating_mul(SENTENCE_PIECE)
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

    /// Texts of one kind, and the bytes for each of their bytes that were measured (BENCHMARKS.md): the
    /// most that any of four vocabularies took.
    #[test]
    fn the_bound_is_above_what_was_measured_and_not_far_above_for_prose() {
        let prose = "To Sherlock Holmes she is always the woman. I have seldom heard him mention her \
                     under any other name.\nIn his eyes she eclipses and predominates the whole of her sex.\n";
        for (kind, text, measured) in [
            ("prose", prose, 128.5),
            ("digits", "8402173", 304.3),
            ("marks", "?!.,;:()[]", 133.6),
            ("marks apart", "? ! . , ; ", 265.8),
            ("letters apart", "a b c d e ", 220.4),
            ("letters and digits", "a1b2c3d4", 303.2),
            ("lines", "a\n", 377.3),
            ("blanks", "a \n\t", 286.4),
            ("random letters", "xqzjkvbwpf", 115.6),
            ("Chinese", "漢字仮名交文", 144.3),
            ("Chinese and marks", "漢，字。文、", 244.0),
            ("emoji", "😀😁😂", 144.3),
        ] {
            let text = text.repeat(100_000 / text.len());
            let bound = of_bpe(&text) as f64 / text.len() as f64;
            assert!(bound >= measured, "{kind}: {bound:.1} of {measured}");
            assert!(bound <= measured * 1.75, "{kind}: {bound:.1} of {measured}");
        }
        let bound = of_bpe(&prose.repeat(100)) as f64 / (prose.len() * 100) as f64;
        assert!(bound < 165.0, "{bound}");
        // One part does not hide another.
        let (digits, letters) = ("7".repeat(8192), "x".repeat(8192));
        let apart = of_bpe(&digits) + of_bpe(&letters);
        assert_eq!(of_bpe(&format!("{digits}{letters}")), apart);
        assert_eq!(of_bpe(""), 0);
    }
}
