//! What one sample under one setup gave, and the rows of a report made of such outcomes.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::score::{Mean, mean_and_half_width, paired_half_width};
use crate::setup::DENSE;

/// What a score is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// The share of what was expected that the answers held, 0 to 100.
    Recall,
    /// The share of tokens that the dense path chooses too, 0 to 100.
    SameToken,
    /// Perplexity of a text; less is better.
    Perplexity,
}

/// When the question is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sight {
    /// After the document was read and compressed.
    Unseen,
    /// Before it is compressed: every question is read with the document, as a prompt of its own; in a
    /// conversation the first is, and further ones go on from what was kept for it. Bytes and times are those of
    /// the first.
    Seen,
}

/// A sample of a task, to be told from all others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// The task.
    pub task: String,
    /// Tokens asked for.
    pub length: usize,
    /// Where the fact stands, for the heat map.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub depth: Option<f64>,
    /// The number of the sample.
    pub sample: usize,
    /// When the question is known.
    pub question: Sight,
    /// Tokens generated, where that is asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub generate: Option<usize>,
    /// How often the way the task's samples are drawn or asked had changed: other results are not its own.
    #[serde(skip_serializing_if = "is_first", default)]
    pub drawn: u32,
}

/// What a setup gave for a sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The sample.
    #[serde(flatten)]
    pub case: Case,
    /// The setup's canonical text.
    pub setup: String,
    /// What the score is.
    pub measure: Measure,
    /// The score, as the measure says.
    pub score: f64,
    /// Mean KL divergence from the dense path in nats, where it was measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub divergence: Option<f64>,
    /// Tokens before the text first differs from the dense path's, where text was generated to be
    /// compared.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub same_until: Option<usize>,
    /// The share of the pages before them that the tokens of answers read, where a read method chose
    /// them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub read_share: Option<f64>,
    /// Tokens of the prompt.
    pub tokens: usize,
    /// Bytes of keys and values held when the first answer begins.
    pub bytes_held: u64,
    /// The most bytes of keys and values held until then.
    pub peak_bytes: u64,
    /// Seconds that reading the document took; of the dense path where that was shared.
    pub prefill_seconds: f64,
    /// Seconds that the methods took after it.
    pub compression_seconds: f64,
    /// Tokens generated one by one after an answer's first.
    pub decode_tokens: usize,
    /// Seconds that took.
    pub decode_seconds: f64,
    /// What was answered, for whoever wants to look.
    pub answers: Vec<String>,
}

/// Outcomes of all samples of a task and length under one setup.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The task.
    pub task: String,
    /// Tokens asked for.
    pub length: usize,
    /// Where the fact stands, for the heat map.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<f64>,
    /// When the question was known.
    pub question: Sight,
    /// The setup's canonical text.
    pub setup: String,
    /// What the score is.
    pub measure: Measure,
    /// The mean score.
    pub score: f64,
    /// Its 95 % interval; nothing of the perplexity of one sample, which does not say how much others
    /// differ.
    pub interval: Option<[f64; 2]>,
    /// The mean score of the dense path on the same samples; nothing while that is not known.
    pub dense_score: Option<f64>,
    /// How far the score is from the dense path's, sample by sample.
    pub difference: Option<Difference>,
    /// Samples.
    pub samples: usize,
    /// Mean KL divergence from the dense path in nats, where it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub divergence: Option<f64>,
    /// Mean of the tokens before the text first differs from the dense path's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub same_until: Option<f64>,
    /// Mean share of the pages before them that the tokens of answers read, where a read method chose
    /// them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_share: Option<f64>,
    /// Mean bytes held when the answer begins.
    pub bytes_held: u64,
    /// The most bytes held until then, of all samples.
    pub peak_bytes: u64,
    /// Mean seconds of reading the document.
    pub prefill_seconds: f64,
    /// Mean seconds of what the methods did after it.
    pub compression_seconds: f64,
    /// Tokens generated a second, after the first; nothing where no second one was generated.
    pub decode_tokens_per_second: Option<f64>,
}

/// Paired differences from the dense path.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Their mean.
    pub mean: f64,
    /// Half the width of its 95 % interval; nothing of the perplexity of one sample.
    pub half_width: Option<f64>,
}

impl Case {
    /// The same for all samples of a row.
    fn row(&self) -> (&str, usize, Option<u64>, Sight) {
        (
            &self.task,
            self.length,
            self.depth.map(f64::to_bits),
            self.question,
        )
    }
}

/// The rows of `outcomes`, in the order in which their first samples come.
pub(crate) fn rows<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>) -> Vec<Row> {
    let mut places = HashMap::new();
    let mut rows: Vec<Vec<&Outcome>> = Vec::new();
    let mut dense = HashMap::new();
    for outcome in outcomes {
        let place = *places
            .entry((&outcome.setup, outcome.case.row()))
            .or_insert(rows.len());
        if place == rows.len() {
            rows.push(Vec::new());
        }
        rows[place].push(outcome);
        if outcome.setup == DENSE {
            dense.insert((outcome.case.row(), outcome.case.sample), outcome.score);
        }
    }
    let dense_of = |outcome: &Outcome| {
        let key = (outcome.case.row(), outcome.case.sample);
        dense.get(&key).copied()
    };
    rows.into_iter()
        .map(|row| Row::of(&row, &dense_of))
        .collect()
}

impl Row {
    /// `outcomes` are of one row, at least one.
    fn of(outcomes: &[&Outcome], dense_of: &dyn Fn(&Outcome) -> Option<f64>) -> Row {
        let first = outcomes[0];
        let scores: Vec<f64> = outcomes.iter().map(|outcome| outcome.score).collect();
        let mean = |of: &dyn Fn(&Outcome) -> f64| {
            outcomes.iter().map(|outcome| of(outcome)).sum::<f64>() / outcomes.len() as f64
        };
        let (score, interval) = match first.measure {
            Measure::Recall | Measure::SameToken => {
                let mean = Mean::of(&scores).expect("a row has an outcome");
                (mean.mean, Some(mean.interval))
            }
            Measure::Perplexity => {
                // Of logarithms: a mean over tokens is then what it is for one long text.
                let logarithms: Vec<f64> = scores.iter().map(|score| score.ln()).collect();
                let (mean, half) = mean_and_half_width(&logarithms);
                let interval = half.map(|half| [(mean - half).exp(), (mean + half).exp()]);
                (mean.exp(), interval)
            }
        };
        let dense: Option<Vec<f64>> = outcomes.iter().map(|outcome| dense_of(outcome)).collect();
        let dense_score = dense.as_ref().map(|dense| match first.measure {
            Measure::Perplexity => {
                (dense.iter().map(|score| score.ln()).sum::<f64>() / dense.len() as f64).exp()
            }
            _ => dense.iter().sum::<f64>() / dense.len() as f64,
        });
        let difference = dense.map(|dense| {
            let pairs = scores.iter().zip(&dense);
            let differences: Vec<f64> = pairs.map(|(score, dense)| score - dense).collect();
            let (mean, half_width) = mean_and_half_width(&differences);
            let half_width = match first.measure {
                Measure::Recall | Measure::SameToken => Some(paired_half_width(&differences)),
                Measure::Perplexity => half_width,
            };
            Difference { mean, half_width }
        });
        let optional = |of: &dyn Fn(&Outcome) -> Option<f64>| {
            let known: Option<Vec<f64>> = outcomes.iter().map(|outcome| of(outcome)).collect();
            known.map(|known| known.iter().sum::<f64>() / known.len() as f64)
        };
        let tokens: usize = outcomes.iter().map(|outcome| outcome.decode_tokens).sum();
        let seconds: f64 = outcomes.iter().map(|outcome| outcome.decode_seconds).sum();
        Row {
            task: first.case.task.clone(),
            length: first.case.length,
            depth: first.case.depth,
            question: first.case.question,
            setup: first.setup.clone(),
            measure: first.measure,
            score,
            interval,
            dense_score,
            difference,
            samples: outcomes.len(),
            divergence: optional(&|outcome| outcome.divergence),
            same_until: optional(&|outcome| outcome.same_until.map(|count| count as f64)),
            read_share: optional(&|outcome| outcome.read_share),
            bytes_held: mean(&|outcome| outcome.bytes_held as f64) as u64,
            peak_bytes: outcomes
                .iter()
                .map(|outcome| outcome.peak_bytes)
                .max()
                .unwrap_or(0),
            prefill_seconds: mean(&|outcome| outcome.prefill_seconds),
            compression_seconds: mean(&|outcome| outcome.compression_seconds),
            decode_tokens_per_second: (tokens > 0).then(|| tokens as f64 / seconds.max(1e-9)),
        }
    }

    /// Whether `score` being larger is better.
    pub fn more_is_better(&self) -> bool {
        self.measure != Measure::Perplexity
    }
}

/// Whether samples are drawn as they were at first, which is not written.
#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over a reference"
)]
fn is_first(drawn: &u32) -> bool {
    *drawn == 0
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An outcome with the numbers that matter in tests of reports.
    pub(crate) fn outcome(task: &str, setup: &str, sample: usize, score: f64) -> Outcome {
        Outcome {
            case: Case {
                task: task.to_owned(),
                length: 1024,
                depth: None,
                sample,
                question: Sight::Unseen,
                generate: None,
                drawn: 0,
            },
            setup: setup.to_owned(),
            measure: Measure::Recall,
            score,
            divergence: None,
            same_until: None,
            read_share: None,
            tokens: 1020,
            bytes_held: if setup == "dense" { 2000 } else { 500 },
            peak_bytes: 2000,
            prefill_seconds: 1.0,
            compression_seconds: 0.0,
            decode_tokens: 10,
            decode_seconds: 0.1,
            answers: Vec::new(),
        }
    }

    #[test]
    fn rows_pair_every_sample_with_the_dense_path() {
        let outcomes = [
            outcome("a", "dense", 0, 100.0),
            outcome("a", "q4", 0, 50.0),
            outcome("a", "dense", 1, 100.0),
            outcome("a", "q4", 1, 100.0),
            outcome("b", "q4", 0, 0.0),
        ];
        let rows = rows(&outcomes);
        assert_eq!(rows.len(), 3);
        let q4 = &rows[1];
        assert_eq!(
            (q4.score, q4.dense_score, q4.samples),
            (75.0, Some(100.0), 2)
        );
        assert_eq!(q4.difference.map(|of| of.mean), Some(-25.0));
        // Alike once is not alike always.
        let dense = rows[0].difference.and_then(|of| of.half_width);
        assert!(dense.is_some_and(|half| half > 40.0), "{dense:?}");
        assert_eq!(q4.decode_tokens_per_second, Some(100.0));
        assert_eq!((rows[2].task.as_str(), rows[2].dense_score), ("b", None));
    }

    #[test]
    fn outcomes_are_read_back_as_written() {
        let mut one = outcome("a", "q4", 0, 100.0 / 3.0);
        one.case.depth = Some(0.1);
        let json = serde_json::to_string(&one).unwrap();
        assert_eq!(serde_json::from_str::<Outcome>(&json).unwrap(), one);
    }
}
