//! How an answer is scored, and means with their uncertainty.

use serde::{Deserialize, Serialize};

/// What of the expected answers must be in the text of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scorer {
    /// The share of them that is.
    All,
    /// Any one of them.
    Any,
}

/// A mean over samples of scores from 0 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// The 95 % interval, Wilson's for proportions: never empty, never beyond 0 or 100. Scores
    /// between right and wrong vary less than those, so for them it is wider than need be.
    pub interval: [f64; 2],
    /// Samples.
    pub count: usize,
}

impl Scorer {
    /// The score of `answer`, 0 to 1. Case and the width of white space do not matter; an expected
    /// number or word must not be part of a longer one.
    pub fn score(self, answer: &str, expected: &[String]) -> f64 {
        let answer = plain(answer);
        let found = expected
            .iter()
            .filter(|wanted| holds(&answer, &plain(wanted)))
            .count();
        match self {
            Scorer::Any => f64::from(u8::from(found > 0)),
            Scorer::All => found as f64 / expected.len().max(1) as f64,
        }
    }
}

impl Mean {
    /// The mean of scores from 0 to 100; `None` of none.
    pub fn of(scores: &[f64]) -> Option<Mean> {
        if scores.is_empty() {
            return None;
        }
        let count = scores.len() as f64;
        let mean = scores.iter().sum::<f64>() / count;
        Some(Mean {
            mean,
            interval: wilson(mean / 100.0, count).map(|share| 100.0 * share),
            count: scores.len(),
        })
    }
}

/// The mean of `values` and half the width of its 95 % interval, by Student's distribution; no width of a
/// single value, which does not say how much others differ.
pub(crate) fn mean_and_half_width(values: &[f64]) -> (f64, Option<f64>) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let half = (values.len() > 1).then(|| {
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        student(values.len() - 1) * (squares / (count - 1.0) / count).sqrt()
    });
    (mean, half)
}

/// Half the width of the 95 % interval of the mean of `differences` between pairs of scores from 0 to 100:
/// Agresti and Min's for proportions, which counts two pairs more that differ by chance. It is never empty:
/// pairs that were all alike do not say that the next one is.
pub(crate) fn paired_half_width(differences: &[f64]) -> f64 {
    let count = differences.len() as f64 + 2.0;
    let shares = || differences.iter().map(|difference| difference / 100.0);
    let squares = shares().map(|share| share * share).sum::<f64>() + 1.0;
    let sum: f64 = shares().sum();
    100.0 * Z * (squares - sum * sum / count).max(0.0).sqrt() / count
}

/// The normal distribution's quantile of 97.5 %.
const Z: f64 = 1.959_964;

/// Student's of so many degrees of freedom, 1 at least.
fn student(freedom: usize) -> f64 {
    const FIRST: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
        2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
        2.052, 2.048, 2.045, 2.042,
    ];
    let expanded = || {
        let v = freedom as f64;
        Z + (Z.powi(3) + Z) / (4.0 * v)
            + (5.0 * Z.powi(5) + 16.0 * Z.powi(3) + 3.0 * Z) / (96.0 * v * v)
    };
    FIRST.get(freedom - 1).copied().unwrap_or_else(expanded)
}

/// Wilson's interval at 95 % of a proportion `p` of `n` trials.
fn wilson(p: f64, n: f64) -> [f64; 2] {
    let z = 1.96f64;
    let middle = p + z * z / (2.0 * n);
    let spread = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).max(0.0).sqrt();
    let below = 1.0 + z * z / n;
    [(middle - spread) / below, (middle + spread) / below].map(|share| share.clamp(0.0, 1.0))
}

fn plain(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").to_lowercase()
}

/// Whether `text` holds `wanted` with no letter or digit beside it.
fn holds(text: &str, wanted: &str) -> bool {
    let is_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    // Two letters or digits side by side are of one word.
    let joined = |a, b| is_word(a) && is_word(b);
    !wanted.is_empty()
        && text.match_indices(wanted).any(|(at, _)| {
            let (before, after) = (&text[..at], &text[at + wanted.len()..]);
            let starts = !joined(before.chars().next_back(), wanted.chars().next());
            starts && !joined(wanted.chars().next_back(), after.chars().next())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_by_hand() {
        let expected = ["48213".to_owned(), "Black  Swan".to_owned()];
        for (answer, all, any) in [
            ("The number is 48213.", 0.5, 1.0),
            ("black swan, 48213", 1.0, 1.0),
            ("148213 and 482130", 0.0, 0.0),
            ("Black\nSwans", 0.0, 0.0),
            ("It is 48213, or 482130.", 0.5, 1.0),
            ("", 0.0, 0.0),
        ] {
            assert_eq!(Scorer::All.score(answer, &expected), all, "{answer}");
            assert_eq!(Scorer::Any.score(answer, &expected), any, "{answer}");
        }
    }

    #[test]
    fn intervals_by_hand() {
        // 8 of 10: (0.8 + 0.19208 ± 1.96 √(0.016 + 0.0096)) / 1.38416.
        let mean = Mean::of(&[100., 100., 0., 100., 100., 100., 100., 100., 0., 100.]).unwrap();
        assert_eq!((mean.mean, mean.count), (80.0, 10));
        assert!((mean.interval[0] - 49.0).abs() < 0.1, "{mean:?}");
        assert!((mean.interval[1] - 94.3).abs() < 0.1, "{mean:?}");
        let sure = Mean::of(&[100.0; 100]).unwrap();
        assert!(
            sure.interval[1] > 99.999 && (sure.interval[0] - 96.3).abs() < 0.1,
            "{sure:?}"
        );
        assert!(Mean::of(&[]).is_none());
        // The deviation of the mean of two that differ by 2 is 1.
        assert_eq!(mean_and_half_width(&[1.0, 3.0]), (2.0, Some(12.706)));
        assert_eq!(mean_and_half_width(&[7.0]), (7.0, None));
        assert!((student(31) - 2.0395).abs() < 1e-3 && student(1_000_000) < 1.960);
        // 3 of 10 pairs right before and wrong after: √(3 + 1 − 9 / 12) / 12.
        let mut differences = [0.0; 10];
        differences[..3].fill(-100.0);
        assert!((paired_half_width(&differences) - 29.4).abs() < 0.1);
        // None of 200 differs: that says no more than 1 point either way.
        assert!((paired_half_width(&[0.0; 200]) - 0.97).abs() < 0.01);
    }
}
