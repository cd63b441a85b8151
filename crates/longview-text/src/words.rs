//! How byte-level BPE vocabularies split text into words before merging: the families that GGUF files
//! name, and patterns that a `tokenizer.json` brings along.

use fancy_regex::Regex;
use longview_weights::gguf::{PRESPLITS, Presplit};

use crate::TextError;

/// Regular expressions that split text into words, one after the other: each splits the pieces that the
/// one before left. What a pattern matches is one piece, and so is what lies between two matches.
pub(crate) struct WordPatterns(Vec<Regex>);

/// The most patterns that follow one another; the families of GGUF files have six at most.
pub(crate) const MOST_PATTERNS: usize = 32;

impl WordPatterns {
    /// # Errors
    /// A pattern that is none.
    pub(crate) fn new(patterns: &[&str]) -> Result<Self, TextError> {
        let compiled = patterns.iter().map(|pattern| Regex::new(pattern));
        let compiled: Result<Vec<Regex>, _> = compiled.collect();
        compiled.map(Self).map_err(TextError::building)
    }

    /// Hands every word of `text` to `word`, in order.
    ///
    /// # Errors
    /// Those of `word`, and text that the pattern engine gives up on.
    pub(crate) fn split(
        &self,
        text: &str,
        word: &mut dyn FnMut(&str) -> Result<(), TextError>,
    ) -> Result<(), TextError> {
        split_by(&self.0, text, word)
    }
}

fn split_by(
    patterns: &[Regex],
    text: &str,
    word: &mut dyn FnMut(&str) -> Result<(), TextError>,
) -> Result<(), TextError> {
    let Some((pattern, others)) = patterns.split_first() else {
        return word(text);
    };
    let mut done = 0;
    for found in pattern.find_iter(text) {
        let found = found.map_err(|error| TextError::Encode(error.to_string()))?;
        if found.start() > done {
            split_by(others, &text[done..found.start()], word)?;
        }
        if found.end() > found.start() {
            split_by(others, found.as_str(), word)?;
        }
        done = found.end();
    }
    if done < text.len() {
        split_by(others, &text[done..], word)?;
    }
    Ok(())
}

/// The family that files call `name`.
///
/// # Errors
/// An unknown name, with the list of known ones: a guess would give wrong ids in silence.
pub(crate) fn named(name: &str) -> Result<&'static Presplit, TextError> {
    PRESPLITS
        .iter()
        .find(|family| family.names.contains(&name))
        .ok_or_else(|| TextError::Unsupported {
            part: "pre-tokenizer",
            found: name.into(),
            known: PRESPLITS
                .iter()
                .flat_map(|family| family.names)
                .copied()
                .collect::<Vec<_>>()
                .join(", "),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(name: &str, text: &str) -> Vec<String> {
        let patterns = WordPatterns::new(named(name).unwrap().patterns).unwrap();
        let mut words = Vec::new();
        let mut word = |word: &str| {
            words.push(word.to_owned());
            Ok(())
        };
        patterns.split(text, &mut word).unwrap();
        words
    }

    #[test]
    fn every_family_compiles_and_loses_nothing() {
        let text = "It's 12345 l'été, Привет\n\n  x=1; 你好 ﬁ DON'T\t\u{3000}end ";
        for kind in PRESPLITS {
            assert_eq!(
                words(kind.names[0], text).concat(),
                text,
                "{:?}",
                kind.names
            );
        }
    }

    #[test]
    fn families_differ_where_their_models_do() {
        assert_eq!(words("gpt-2", "a 12345"), ["a", " 12345"]);
        assert_eq!(words("llama-bpe", "a 12345"), ["a", " ", "123", "45"]);
        assert_eq!(words("qwen2", "a 123"), ["a", " ", "1", "2", "3"]);
        assert_eq!(words("starcoder", "a 123"), ["a", " ", "1", "2", "3"]);
        assert_eq!(words("falcon", "12345"), ["123", "45"]);
        assert_eq!(words("tekken", "fooBar 12"), ["foo", "Bar", " ", "1", "2"]);
        assert_eq!(
            words("gpt-4o", "fooBar's 1234"),
            ["foo", "Bar's", " ", "123", "4"]
        );
        assert_eq!(
            words("deepseek-coder", "a 12\nb"),
            ["a", " ", "1", "2", "\n", "b"]
        );
        assert_eq!(
            words("deepseek-llm", "a 123 ΑΒγ你好"),
            ["a", " ", "123", " ΑΒγ", "你好"]
        );
        assert_eq!(
            words("deepseek-v3", "x.foo 1234"),
            ["x", ".foo", " ", "123", "4"]
        );
    }

    #[test]
    fn unknown_names_are_refused_with_the_known_ones() {
        let error = named("klingon").unwrap_err().to_string();
        assert!(
            error.contains("klingon") && error.contains("llama-bpe"),
            "{error}"
        );
    }
}
