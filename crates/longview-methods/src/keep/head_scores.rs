//! How much each head of a model retrieves, as files say it.

use std::fmt::{self, Write as _};

/// A number from 0 to 1 for every KV head: the higher, the more the head fetches from far back in the
/// text.
///
/// The text form is the published one of DuoAttention, a line a layer and a number a KV head between
/// tabs. Lines that begin with `#` are comments to all who read it; one of them names the model, so that
/// scores of another are refused.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadScores {
    /// `[layers][KV heads]`
    pub scores: Vec<Vec<f32>>,
    /// What tells their model from others, where that is known.
    pub fingerprint: Option<String>,
    /// What a reader should know of how they were found; a line each.
    pub remarks: Vec<String>,
}

/// What stands before the fingerprint.
const FINGERPRINT: &str = "model fingerprint:";

impl HeadScores {
    /// Reads the text form; numbers are clamped to 0..1, for the published files have some below.
    ///
    /// # Errors
    /// What is wrong, by line.
    pub fn parse(text: &str) -> Result<HeadScores, String> {
        let mut found = HeadScores {
            scores: Vec::new(),
            fingerprint: None,
            remarks: Vec::new(),
        };
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if let Some(remark) = line.strip_prefix('#') {
                match remark.trim().strip_prefix(FINGERPRINT) {
                    Some(fingerprint) => found.fingerprint = Some(fingerprint.trim().to_owned()),
                    None => found.remarks.push(remark.trim().to_owned()),
                }
                continue;
            }
            if line.is_empty() {
                continue;
            }
            let score = |word: &str| match word.parse::<f32>() {
                Ok(score) if score.is_finite() => Ok(score.clamp(0.0, 1.0)),
                _ => Err(format!("line {number}: {word:?} is not a number")),
            };
            let layer: Vec<f32> = line
                .split_whitespace()
                .map(score)
                .collect::<Result<_, _>>()?;
            if let Some(first) = found.scores.first()
                && first.len() != layer.len()
            {
                return Err(format!(
                    "line {number} has {} numbers, the first has {}",
                    layer.len(),
                    first.len()
                ));
            }
            found.scores.push(layer);
        }
        match found.scores.is_empty() {
            true => Err("it holds no numbers".to_owned()),
            false => Ok(found),
        }
    }
}

/// The text form.
impl fmt::Display for HeadScores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for remark in &self.remarks {
            writeln!(f, "# {remark}")?;
        }
        if let Some(fingerprint) = &self.fingerprint {
            writeln!(f, "# {FINGERPRINT} {fingerprint}")?;
        }
        for layer in &self.scores {
            let mut line = String::new();
            for (head, score) in layer.iter().enumerate() {
                let tab = if head > 0 { "\t" } else { "" };
                write!(line, "{tab}{score:.6}")?;
            }
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let scores = HeadScores {
            scores: vec![vec![0.25, 1.0], vec![0.0, 0.5]],
            fingerprint: Some("0123abcd".to_owned()),
            remarks: vec!["found by hand".to_owned()],
        };
        let text = scores.to_string();
        assert_eq!(
            text,
            "# found by hand\n# model fingerprint: 0123abcd\n0.250000\t1.000000\n0.000000\t0.500000\n"
        );
        assert_eq!(HeadScores::parse(&text), Ok(scores));
    }

    #[test]
    fn published_files_are_read_and_broken_ones_refused() {
        let published = HeadScores::parse("1.02\t-0.004\n0.5\t0.25\n").unwrap();
        assert_eq!(published.scores, [[1.0, 0.0], [0.5, 0.25]]);
        assert_eq!(published.fingerprint, None);
        for (text, said) in [
            ("1 2\n3\n", "line 2 has 1 numbers"),
            ("# remark\n1 x\n", "line 2: \"x\" is not a number"),
            ("1 nan\n", "\"nan\" is not a number"),
            ("inf\n", "\"inf\" is not a number"),
            ("\n# nothing\n", "no numbers"),
        ] {
            let message = HeadScores::parse(text).unwrap_err();
            assert!(message.contains(said), "{text:?}: {message}");
        }
    }
}
