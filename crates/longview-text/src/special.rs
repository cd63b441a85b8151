//! Finds tokens that stand for themselves (control tokens, user-defined text) inside a text.

use aho_corasick::{AhoCorasick, MatchKind};

use crate::{Specials, TextError};

/// Tokens to look for. Where several match at one place the longest wins.
#[derive(Debug)]
pub(crate) struct SpecialMatcher {
    /// For all of them, and for those that are not control tokens; `None` where there are none.
    all: Option<AhoCorasick>,
    plain: Option<AhoCorasick>,
    /// The id of each of them, and whether it is a control token: as `all` counts them.
    tokens: Vec<(u32, bool)>,
    /// The same as `plain` counts them.
    plain_tokens: Vec<u32>,
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
    /// Looks for `tokens`, each with its id and whether it is a control token; an empty one never matches.
    ///
    /// # Errors
    /// More than can be looked for at once.
    pub(crate) fn new(mut tokens: Vec<(&str, u32, bool)>) -> Result<Self, TextError> {
        tokens.retain(|(token, ..)| !token.is_empty());
        let plain: Vec<_> = tokens.iter().filter(|(.., control)| !control).collect();
        Ok(Self {
            all: automaton(tokens.iter().map(|&(token, ..)| token))?,
            plain: automaton(plain.iter().map(|&&(token, ..)| token))?,
            plain_tokens: plain.iter().map(|&&(_, id, _)| id).collect(),
            tokens: tokens
                .iter()
                .map(|&(_, id, control)| (id, control))
                .collect(),
        })
    }

    /// The first token in `text`; control tokens only where they are to be parsed, and what stands inside of one that
    /// is not is looked for.
    pub(crate) fn find(&self, text: &str, specials: Specials) -> Option<Hit> {
        match specials {
            Specials::Parse => {
                let found = self.all.as_ref()?.find(text)?;
                let (id, control) = self.tokens[found.pattern().as_usize()];
                Some(Hit {
                    id,
                    start: found.start(),
                    end: found.end(),
                    control,
                })
            }
            Specials::AsText => {
                let found = self.plain.as_ref()?.find(text)?;
                Some(Hit {
                    id: self.plain_tokens[found.pattern().as_usize()],
                    start: found.start(),
                    end: found.end(),
                    control: false,
                })
            }
        }
    }

    /// Puts the ids of `text` behind `ids`: those of the tokens in it, and what `plain` makes of each
    /// stretch between them. A control token that is not to be parsed is plain text as a whole.
    pub(crate) fn split(
        &self,
        text: &str,
        specials: Specials,
        ids: &mut Vec<u32>,
        plain: &mut ForStretch<'_>,
    ) -> Result<(), TextError> {
        let mut done = 0;
        for found in self.all.iter().flat_map(|all| all.find_iter(text)) {
            let (id, control) = self.tokens[found.pattern().as_usize()];
            if control && specials == Specials::AsText {
                continue;
            }
            if found.start() > done {
                plain(&text[done..found.start()], ids)?;
            }
            ids.push(id);
            done = found.end();
        }
        match done < text.len() {
            true => plain(&text[done..], ids),
            false => Ok(()),
        }
    }
}

fn automaton<'t>(
    tokens: impl ExactSizeIterator<Item = &'t str>,
) -> Result<Option<AhoCorasick>, TextError> {
    if tokens.len() == 0 {
        return Ok(None);
    }
    AhoCorasick::builder()
        .match_kind(MatchKind::LeftmostLongest)
        .build(tokens)
        .map(Some)
        .map_err(TextError::building)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leftmost_then_longest_token_is_found() {
        let matcher = SpecialMatcher::new(vec![
            ("<s>", 1, true),
            ("\n", 2, false),
            ("\n\n", 3, false),
            ("", 4, true),
            ("s", 5, false),
        ])
        .unwrap();
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
            hit(5, 3, 4, false)
        );
        assert_eq!(matcher.find("<t", Specials::Parse), None);
        let split = |text: &str, specials| {
            let (mut ids, mut rest) = (Vec::new(), Vec::new());
            let mut plain = |stretch: &str, ids: &mut Vec<u32>| {
                ids.push(100);
                rest.push(stretch.to_owned());
                Ok(())
            };
            matcher.split(text, specials, &mut ids, &mut plain).unwrap();
            (ids, rest.join("|"))
        };
        let text = "a<s>b\n\n\nsc";
        let parsed = (vec![100, 1, 100, 3, 2, 5, 100], "a|b|c".to_owned());
        assert_eq!(split(text, Specials::Parse), parsed);
        let plain = (vec![100, 3, 2, 5, 100], "a<s>b|c".to_owned());
        assert_eq!(split(text, Specials::AsText), plain);
        assert!(split("", Specials::Parse).0.is_empty());
    }
}
