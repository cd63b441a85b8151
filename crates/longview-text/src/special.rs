//! Finds tokens that stand for themselves (control tokens, user-defined text) inside a text.

use std::collections::{BTreeSet, HashMap};

use crate::{Specials, TextError};

/// Tokens to look for. Where several match at one place the longest wins.
#[derive(Debug, Default)]
pub(crate) struct SpecialMatcher {
    /// Token → id and whether it is a control token.
    tokens: HashMap<Vec<u8>, (u32, bool)>,
    /// For each first byte, the lengths of the tokens that begin with it; empty where there are no tokens.
    lengths: Vec<BTreeSet<usize>>,
}

/// A token found at `start..end` (bytes).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Hit {
    pub(crate) id: u32,
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) control: bool,
}

/// Puts the ids of a stretch of plain text behind those before.
pub(crate) type ForStretch<'a> = dyn FnMut(&str, &mut Vec<u32>) -> Result<(), TextError> + 'a;

impl SpecialMatcher {
    /// Adds a token; an empty one never matches.
    pub(crate) fn insert(&mut self, token: &str, id: u32, control: bool) {
        if let Some(&first) = token.as_bytes().first() {
            self.tokens.insert(token.as_bytes().to_vec(), (id, control));
            self.lengths.resize_with(256, BTreeSet::new);
            self.lengths[usize::from(first)].insert(token.len());
        }
    }

    /// The first token in `text`; control tokens only where they are to be parsed.
    pub(crate) fn find(&self, text: &str, specials: Specials) -> Option<Hit> {
        if self.tokens.is_empty() {
            return None;
        }
        let bytes = text.as_bytes();
        bytes.iter().enumerate().find_map(|(start, &first)| {
            let lengths = self.lengths[usize::from(first)].iter();
            lengths.rev().find_map(|&len| {
                let &(id, control) = self.tokens.get(bytes.get(start..start + len)?)?;
                let wanted = !control || specials == Specials::Parse;
                wanted.then_some(Hit {
                    id,
                    start,
                    end: start + len,
                    control,
                })
            })
        })
    }

    /// Puts the ids of `text` behind `ids`: those of the tokens in it, and what `plain` makes of each
    /// stretch between them.
    pub(crate) fn split(
        &self,
        text: &str,
        specials: Specials,
        ids: &mut Vec<u32>,
        plain: &mut ForStretch<'_>,
    ) -> Result<(), TextError> {
        let mut rest = text;
        while !rest.is_empty() {
            let found = self.find(rest, specials);
            let end = found.as_ref().map_or(rest.len(), |hit| hit.start);
            if end > 0 {
                plain(&rest[..end], ids)?;
            }
            let Some(hit) = found else { break };
            ids.push(hit.id);
            rest = &rest[hit.end..];
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leftmost_then_longest_token_is_found() {
        let mut matcher = SpecialMatcher::default();
        matcher.insert("<s>", 1, true);
        matcher.insert("\n", 2, false);
        matcher.insert("\n\n", 3, false);
        matcher.insert("", 4, true);
        let hit = |id, start, end, control| {
            Some(Hit {
                id,
                start,
                end,
                control,
            })
        };
        assert_eq!(
            matcher.find("a\n\n\nb<s>", Specials::Parse),
            hit(3, 1, 3, false)
        );
        assert_eq!(matcher.find("é<s>", Specials::Parse), hit(1, 2, 5, true));
        assert_eq!(
            matcher.find("é<s>\n", Specials::AsText),
            hit(2, 5, 6, false)
        );
        assert_eq!(matcher.find("<s", Specials::Parse), None);
    }
}
