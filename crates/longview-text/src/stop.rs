//! Stop strings, found across the pieces of a streamed text.

/// Watches a streamed text for strings that end it. Text that could still turn out to be the
/// beginning of a stop string is held back; what is emitted never contains any of one.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    /// Which of them was found.
    found: Option<usize>,
}

/// What [`StopMatcher::push`] lets through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emit {
    /// Text that is certain to come before any stop string.
    pub text: String,
    /// Whether a stop string was found; `text` then ends just before it.
    pub stopped: bool,
}

impl StopMatcher {
    /// Watches for any of `stops`; empty ones are ignored.
    pub fn new(stops: Vec<String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self {
            stops,
            held: String::new(),
            found: None,
        }
    }

    /// Takes the next piece of text. After a stop nothing more comes out.
    pub fn push(&mut self, text: &str) -> Emit {
        if self.found.is_some() {
            return Emit {
                text: String::new(),
                stopped: true,
            };
        }
        self.held.push_str(text);
        let first = earliest(&self.stops, &self.held);
        self.found = first.map(|(_, stop)| stop);
        let certain = match first {
            Some((start, _)) => start,
            None => self.held.len() - self.partial(),
        };
        let rest = self.held.split_off(certain);
        let text = std::mem::replace(&mut self.held, rest);
        let stopped = self.found.is_some();
        if stopped {
            self.held.clear();
        }
        Emit { text, stopped }
    }

    /// The stop string that has ended the text.
    pub fn found(&self) -> Option<&str> {
        self.found.map(|stop| self.stops[stop].as_str())
    }

    /// Ends the text: what was held back was no stop string after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of the held text that could be the beginning of a stop string.
    fn partial(&self) -> usize {
        let begins = |stop: &String| {
            let longest = self.held.len().min(stop.len() - 1);
            (1..=longest)
                .rev()
                .find(|&len| self.held.as_bytes().ends_with(&stop.as_bytes()[..len]))
                .unwrap_or(0)
        };
        self.stops.iter().map(begins).max().unwrap_or(0)
    }
}

/// Where the stop string that is complete first begins, and which it is; of several complete at once,
/// the one that begins first. Completion decides, so the result does not depend on the pieces.
fn earliest(stops: &[String], text: &str) -> Option<(usize, usize)> {
    let span = |(at, stop): (usize, &String)| {
        text.find(stop.as_str())
            .map(|start| (start + stop.len(), start, at))
    };
    let first = stops.iter().enumerate().filter_map(span).min();
    first.map(|(_, start, at)| (start, at))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], parts: &[&str]) -> (Vec<String>, bool, String) {
        let mut matcher = StopMatcher::new(stops.iter().map(|&s| s.into()).collect());
        let emitted = parts.iter().map(|part| matcher.push(part).text).collect();
        let stopped = matcher.push("").stopped;
        (emitted, stopped, matcher.finish())
    }

    #[test]
    fn a_stop_across_pieces_is_cut_exactly() {
        let (texts, stopped, rest) = run(&["\n\nQ:"], &["ab\n", "\nQ", ": more", "x"]);
        assert_eq!(texts, ["ab", "", "", ""]);
        assert!(stopped && rest.is_empty());
    }

    #[test]
    fn a_beginning_that_leads_nowhere_is_released() {
        let (texts, stopped, rest) = run(&["<end>"], &["a<e", "n", "x<"]);
        assert_eq!(texts, ["a", "", "<enx"]);
        assert!(!stopped);
        assert_eq!(rest, "<");
    }

    #[test]
    fn the_earliest_of_several_wins_and_multibyte_is_safe() {
        let mut matcher = StopMatcher::new(["zz", "é!", ""].map(str::to_owned).into());
        assert_eq!(matcher.found(), None);
        matcher.push("é!bzz");
        assert_eq!(matcher.found(), Some("é!"));
        let (texts, stopped, _) = run(&["zz", "é!", ""], &["aé", "é!bzz"]);
        assert_eq!(texts, ["a", "é"]);
        assert!(stopped);
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            text in "[abé]{0,24}",
            stops in prop::collection::vec("[abé]{1,3}", 0..3),
            cuts in prop::collection::vec(0usize..4, 24),
        ) {
            let mut matcher = StopMatcher::new(stops.clone());
            let mut emitted = String::new();
            let mut chars = text.chars().peekable();
            for cut in cuts {
                let piece: String = chars.by_ref().take(cut).collect();
                emitted.push_str(&matcher.push(&piece).text);
            }
            emitted.push_str(&matcher.push(&chars.collect::<String>()).text);
            let expected = earliest(&stops, &text);
            let stop = expected.map(|(_, stop)| stops[stop].as_str());
            prop_assert_eq!(matcher.found(), stop);
            emitted.push_str(&matcher.finish());
            let end = expected.map_or(text.len(), |(start, _)| start);
            prop_assert_eq!(emitted.as_str(), &text[..end]);
        }
    }
}
