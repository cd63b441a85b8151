//! The texts that tasks hide things in.

use longview_engine::sampling::Rng;

use crate::draw::below;

/// The book that tasks use unless another text is given.
const BOOK: &str = include_str!("../../../examples/sherlock_holmes.txt");

/// Words before which a full stop ends no sentence.
const TITLES: [&str; 6] = ["Mr.", "Mrs.", "Dr.", "St.", "No.", "Messrs."];

/// A text as words on one line and as paragraphs. It has no end: after its last word comes its
/// first.
#[derive(Clone, Debug)]
pub struct Haystack {
    words: Vec<String>,
    /// For each word whether a sentence ends with it.
    ends: Vec<bool>,
    paragraphs: Vec<String>,
}

/// Something to be hidden in a text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Planted {
    /// Where, from 0 for the beginning to 1 for the end.
    pub(crate) depth: f64,
    pub(crate) text: String,
}

impl Haystack {
    /// The text that is shipped: *The Adventures of Sherlock Holmes*.
    pub fn book() -> Haystack {
        Haystack::new(BOOK).expect("the book has words and sentences")
    }

    /// A text of at least one sentence; `None` when it has none.
    pub fn new(text: &str) -> Option<Haystack> {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        let mut ends: Vec<bool> = words.iter().map(|word| ends_sentence(word)).collect();
        // Whatever the text ends with, it comes round to its beginning there.
        *ends.last_mut()? = true;
        let paragraphs = text.replace("\r\n", "\n");
        let paragraphs = paragraphs.split("\n\n").map(one_line);
        let paragraphs = paragraphs
            .filter(|paragraph| !paragraph.is_empty())
            .collect();
        Some(Haystack {
            words,
            ends,
            paragraphs,
        })
    }

    /// A sentence's beginning, drawn evenly.
    pub(crate) fn sentence(&self, rng: &mut Rng) -> usize {
        let from = below(rng, self.words.len());
        let ahead =
            (0..self.words.len()).find(|ahead| self.ends[(from + ahead) % self.words.len()]);
        (from + ahead.unwrap_or(0) + 1) % self.words.len()
    }

    /// `count` words from word `start` on, with `planted` put where sentences end. What is planted at
    /// a greater depth never comes before what is planted at a smaller one.
    pub(crate) fn take(&self, start: usize, count: usize, planted: &[Planted]) -> String {
        let word = |at: usize| (start + at) % self.words.len();
        // Before the first word, after every sentence, and after the last word.
        let gaps: Vec<usize> = std::iter::once(0)
            .chain((1..count).filter(|&at| self.ends[word(at - 1)]))
            .chain([count])
            .collect();
        let nearest = |depth: f64| {
            let wanted = depth * count as f64;
            let after = gaps
                .partition_point(|&gap| (gap as f64) < wanted)
                .min(gaps.len() - 1);
            let before = after.saturating_sub(1);
            let off = |gap: usize| (gaps[gap] as f64 - wanted).abs();
            gaps[if off(before) < off(after) {
                before
            } else {
                after
            }]
        };
        let mut order: Vec<&Planted> = planted.iter().collect();
        order.sort_by(|a, b| a.depth.total_cmp(&b.depth));
        let mut order = order
            .into_iter()
            .map(|planted| (nearest(planted.depth), planted))
            .peekable();
        let mut text = String::new();
        let mut push = |piece: &str| {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(piece);
        };
        for at in 0..=count {
            while let Some((_, planted)) = order.next_if(|(gap, _)| *gap == at) {
                push(&planted.text);
            }
            if at < count {
                push(&self.words[word(at)]);
            }
        }
        text
    }

    /// The words, in order.
    pub(crate) fn words(&self) -> impl Iterator<Item = &str> {
        self.words.iter().map(String::as_str)
    }

    /// The paragraphs, each on one line.
    pub(crate) fn paragraphs(&self) -> &[String] {
        &self.paragraphs
    }
}

/// A paragraph's words with single spaces between.
fn one_line(paragraph: &str) -> String {
    paragraph.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn ends_sentence(word: &str) -> bool {
    let bare = word.trim_end_matches(['"', '\'', '”', '’', ')']);
    bare.ends_with(['.', '!', '?']) && !TITLES.contains(&bare) && bare.chars().count() > 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_end_where_people_end_them() {
        for (word, ends) in [
            ("Holmes.", true),
            ("\"Indeed!\"", true),
            ("Mr.", false),
            ("K.", false),
            ("street", false),
            ("no?'", true),
        ] {
            assert_eq!(ends_sentence(word), ends, "{word}");
        }
    }

    #[test]
    fn what_is_planted_stands_between_sentences_where_it_was_said() {
        let haystack = Haystack::new("One two three. Four five six. Seven eight nine.").unwrap();
        let plant = |depth, text: &str| Planted {
            depth,
            text: text.to_owned(),
        };
        let text = haystack.take(0, 9, &[plant(0.7, "B"), plant(0.3, "A")]);
        assert_eq!(text, "One two three. A Four five six. B Seven eight nine.");
        let text = haystack.take(0, 9, &[plant(0.0, "A"), plant(1.0, "B")]);
        assert_eq!(text, "A One two three. Four five six. Seven eight nine. B");
        // Round the end, and with nothing but what is planted.
        assert_eq!(haystack.take(6, 5, &[]), "Seven eight nine. One two");
        assert_eq!(haystack.take(3, 0, &[plant(0.5, "A")]), "A");
        assert!(Haystack::new(" \n ").is_none());
    }

    #[test]
    fn sentences_are_drawn_at_their_beginning() {
        let haystack = Haystack::book();
        let mut rng = Rng::new(5);
        for _ in 0..100 {
            let start = haystack.sentence(&mut rng);
            assert!(haystack.ends[(start + haystack.words.len() - 1) % haystack.words.len()]);
        }
        assert!(haystack.paragraphs().len() > 2000);
    }
}
