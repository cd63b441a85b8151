//! What clients write that looks like a special token: it is meant as text, whatever is asked of a tokenizer.
//!
//! Before a conversation is rendered such texts give way to marks with numbers, and when the rendering is
//! tokenised they are put back as text. All of them are looked for in one pass over what was written, however
//! many a vocabulary has.

use aho_corasick::{AhoCorasick, MatchKind};
use longview::Engine;
use serde_json::Value;

/// Stand around a number in a rendering for text that is not the template's own.
pub(crate) const MARK: char = '\u{E0A3}';
pub(crate) const MARK_END: char = '\u{E0A4}';

/// Stands in a rendering where what is to be cached ends.
pub(crate) const CUT: char = '\u{E0A7}';

/// Finds the texts of a vocabulary's special tokens.
pub(crate) struct SpecialTexts(AhoCorasick);

impl SpecialTexts {
    /// Those of an engine's vocabulary, and the marks themselves.
    pub(crate) fn of(engine: &Engine) -> SpecialTexts {
        let tokenizer = engine.tokenizer();
        let texts = (0..tokenizer.vocab_size() as u32)
            .filter(|&id| tokenizer.is_special(id))
            .filter_map(|id| String::from_utf8(tokenizer.token_bytes(id)?).ok())
            .filter(|text| !text.is_empty());
        SpecialTexts::new(texts.chain([MARK, MARK_END, CUT].map(String::from)))
    }

    fn new(texts: impl Iterator<Item = String>) -> SpecialTexts {
        let found = AhoCorasick::builder()
            // Where one begins like another, it is the longer one.
            .match_kind(MatchKind::LeftmostLongest)
            .build(texts);
        SpecialTexts(found.expect("the special tokens of a vocabulary are short and few"))
    }

    /// Puts numbers in the place of special texts, which are added to `meant`. A cut that is to be at byte
    /// `cut` of the text is marked there, or behind the special text in the middle of which it would be.
    pub(crate) fn hide(&self, text: &mut String, cut: Option<usize>, meant: &mut Vec<String>) {
        if cut.is_none() && !self.0.is_match(text.as_str()) {
            return;
        }
        let mut hidden = String::with_capacity(text.len() + CUT.len_utf8());
        let (mut from, mut cut) = (0, cut);
        let mut plain = |hidden: &mut String, from: usize, to: usize| match cut {
            Some(at) if at <= to => {
                let at = at.max(from);
                hidden.push_str(&text[from..at]);
                hidden.push(CUT);
                hidden.push_str(&text[at..to]);
                cut = None;
            }
            _ => hidden.push_str(&text[from..to]),
        };
        for found in self.0.find_iter(text.as_str()) {
            plain(&mut hidden, from, found.start());
            hidden.push_str(&format!("{MARK}{}{MARK_END}", meant.len()));
            meant.push(text[found.range()].to_owned());
            from = found.end();
        }
        plain(&mut hidden, from, text.len());
        *text = hidden;
    }

    /// The same in every text of a value.
    pub(crate) fn hide_in(&self, value: &mut Value, meant: &mut Vec<String>) {
        match value {
            Value::String(text) => self.hide(text, None, meant),
            Value::Array(items) => items.iter_mut().for_each(|item| self.hide_in(item, meant)),
            Value::Object(fields) => fields
                .values_mut()
                .for_each(|field| self.hide_in(field, meant)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

/// The parts of a rendering: the template's own text, and in turn what was `meant` as text.
pub(crate) fn shown<'a>(
    rendered: &'a str,
    meant: &'a [String],
) -> impl Iterator<Item = Shown<'a>> + 'a {
    let mut rest = Some(rendered);
    let mut word: Option<&str> = None;
    std::iter::from_fn(move || {
        if let Some(word) = word.take() {
            return Some(Shown::Meant(word));
        }
        let own = rest.take()?;
        let marked = own.split_once(MARK).and_then(|(before, after)| {
            let (number, after) = after.split_once(MARK_END)?;
            let at: Option<usize> = number.parse().ok();
            let word = at.and_then(|at| meant.get(at)).map_or("", String::as_str);
            Some((before, word, after))
        });
        let Some((before, found, after)) = marked else {
            return Some(Shown::Own(own));
        };
        (word, rest) = (Some(found), Some(after));
        Some(Shown::Own(before))
    })
}

/// A part of a rendering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown<'a> {
    /// The template's, or what a client wrote that looks like no special token.
    Own(&'a str),
    /// What a client wrote that looks like one.
    Meant(&'a str),
}

impl<'a> Shown<'a> {
    /// Its text.
    pub(crate) fn text(self) -> &'a str {
        match self {
            Shown::Own(text) | Shown::Meant(text) => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn specials(count: usize) -> SpecialTexts {
        let many = (0..count).map(|at| format!("<|reserved_{at}|>"));
        let own = ["<s>", "<s>>", "<|end|>"].map(String::from);
        SpecialTexts::new(many.chain(own).chain([MARK, CUT].map(String::from)))
    }

    #[test]
    fn the_longest_gives_way_and_comes_back_and_a_cut_stands_where_it_was_asked_for() {
        let given = format!("a<s>>b<|end|>{CUT}é");
        for cut in [None, Some(0), Some(1), Some(3), Some(6), Some(given.len())] {
            let (mut text, mut meant) = (given.clone(), Vec::new());
            specials(3).hide(&mut text, cut, &mut meant);
            assert_eq!(meant, ["<s>>", "<|end|>", &CUT.to_string()]);
            let before = |text: &str| -> String { shown(text, &meant).map(Shown::text).collect() };
            match (cut, text.split_once(CUT)) {
                (None, split) => assert_eq!((split, before(&text)), (None, given.clone())),
                // In the middle of a special text it is behind it.
                (Some(3), split) => assert_eq!(before(split.unwrap().0), "a<s>>"),
                (Some(at), split) => assert_eq!(before(split.unwrap().0), given[..at]),
            }
            assert_eq!(before(&text.replace(CUT, "")), given);
        }
    }

    #[test]
    fn ten_megabytes_and_six_thousand_special_tokens_are_one_pass() {
        let specials = specials(6000);
        let mut text = format!("<|end|>{}", "<|reserved and words ".repeat(500_000));
        let (begun, mut meant) = (Instant::now(), Vec::new());
        specials.hide(&mut text, None, &mut meant);
        assert_eq!(meant, ["<|end|>"]);
        // Character by character it took minutes.
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}
