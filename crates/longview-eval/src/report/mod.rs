//! Rows as tables and charts.

mod charts;
mod svg;

pub use charts::charts;

use std::collections::BTreeMap;

use crate::outcome::{Measure, Row, Sight};
use crate::setup::{DENSE, brief};

/// Below this score the dense path fails a task: what methods score there says nothing of them, and
/// it does not enter their means.
pub const DENSE_FAILS_BELOW: f64 = 80.0;

/// A setup's mean over the tasks that the dense path does not fail.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The setup's canonical text.
    pub setup: String,
    /// Tokens of the samples.
    pub length: usize,
    /// When the question was known.
    pub question: Sight,
    /// Mean score of the tasks, each counted once.
    pub score: f64,
    /// The same of the dense path on the same tasks.
    pub dense_score: f64,
    /// Half the width of the score's 95 % interval, the tasks' taken together.
    pub half_width: f64,
    /// Tasks.
    pub tasks: usize,
    /// Mean bytes held.
    pub bytes_held: f64,
    /// The same as a share of what the dense path holds, where that is known.
    pub share_held: Option<f64>,
}

/// Whether the dense path fails the task of `row`.
pub fn dense_fails(row: &Row) -> bool {
    let failed = |score| score < DENSE_FAILS_BELOW;
    row.measure == Measure::Recall && row.dense_score.is_some_and(failed)
}

/// The means of every setup and length, in the order of the rows.
pub fn summaries(rows: &[Row]) -> Vec<Summary> {
    let mut order: Vec<(&str, usize, Sight)> = Vec::new();
    let mut parts: BTreeMap<usize, Vec<&Row>> = BTreeMap::new();
    for row in rows.iter().filter(|row| counts(row, rows)) {
        let key = (row.setup.as_str(), row.length, row.question);
        let place = order
            .iter()
            .position(|known| *known == key)
            .unwrap_or_else(|| {
                order.push(key);
                order.len() - 1
            });
        parts.entry(place).or_default().push(row);
    }
    let mean = |rows: &[&Row], of: &dyn Fn(&Row) -> f64| {
        rows.iter().map(|row| of(row)).sum::<f64>() / rows.len() as f64
    };
    let held = |rows: &[&Row]| mean(rows, &|row| row.bytes_held as f64);
    let dense_bytes = |row: &Row| dense_row(row, rows).map(|dense| dense.bytes_held as f64);
    parts
        .into_values()
        .map(|part| {
            let dense: Option<f64> = part.iter().map(|row| dense_bytes(row)).sum();
            let all: f64 = part.iter().map(|row| row.bytes_held as f64).sum();
            Summary {
                setup: part[0].setup.clone(),
                length: part[0].length,
                question: part[0].question,
                score: mean(&part, &|row| row.score),
                dense_score: mean(&part, &|row| row.dense_score.unwrap_or(f64::NAN)),
                half_width: {
                    let half = |row: &&Row| {
                        let [low, high] = row.interval.unwrap_or([0.0, 100.0]);
                        (high - low) / 2.0
                    };
                    let squares = part.iter().map(|row| half(row).powi(2));
                    squares.sum::<f64>().sqrt() / part.len() as f64
                },
                tasks: part.len(),
                bytes_held: held(&part),
                share_held: dense.map(|dense| all / dense),
            }
        })
        .collect()
}

/// Whether a row enters its setup's mean: as all samples of the dense path say, whichever of them the setup
/// has, so that setups are compared over the same tasks.
fn counts(row: &Row, rows: &[Row]) -> bool {
    row.measure == Measure::Recall
        && row.depth.is_none()
        && row.dense_score.is_some()
        && !dense_fails(dense_row(row, rows).unwrap_or(row))
}

/// The row of the dense path beside `row`.
fn dense_row<'r>(row: &Row, rows: &'r [Row]) -> Option<&'r Row> {
    rows.iter().find(|other| {
        let dense = other.setup == DENSE && other.question == row.question;
        dense && other.task == row.task && other.length == row.length && other.depth == row.depth
    })
}

/// The rows as a table, the heading first; columns from the fourth on are numbers.
pub fn table(rows: &[Row]) -> Vec<Vec<String>> {
    let heading = [
        "task", "length", "methods", "score", "95 %", "dense", "held", "peak", "compress",
        "decode", "samples",
    ];
    let mut table = vec![heading.map(str::to_owned).to_vec()];
    for row in rows {
        let mut task = row.task.clone();
        if let Some(depth) = row.depth {
            task.push_str(&format!(" at {:.0} %", 100.0 * depth));
        }
        if row.question == Sight::Seen {
            task.push_str(", question seen");
        }
        let digits = if row.more_is_better() { 1 } else { 2 };
        let number = |value: f64| format!("{value:.digits$}");
        let dense = match row.dense_score {
            None => "–".to_owned(),
            Some(score) if dense_fails(row) => format!("{} fails", number(score)),
            Some(score) => number(score),
        };
        let interval = |[low, high]: [f64; 2]| format!("{}–{}", number(low), number(high));
        let speed = row.decode_tokens_per_second;
        table.push(vec![
            task,
            row.length.to_string(),
            brief(&row.setup),
            number(row.score),
            row.interval.map_or_else(|| "–".to_owned(), interval),
            dense,
            longview_kv::human_bytes(row.bytes_held),
            longview_kv::human_bytes(row.peak_bytes),
            format!("{:.1} ms", 1000.0 * row.compression_seconds),
            speed.map_or_else(|| "–".to_owned(), |speed| format!("{speed:.0}/s")),
            row.samples.to_string(),
        ]);
    }
    table
}

/// A number of nats with `digits` digits after the first; no more than `0` where there is none.
pub fn nats(value: f64, digits: usize) -> String {
    match value == 0.0 {
        true => "0".to_owned(),
        false => format!("{value:.digits$e}"),
    }
}

/// Whether there are tasks that means could be over, and the dense path fails all of them.
pub fn lacks_means(rows: &[Row]) -> bool {
    let mut scored = rows.iter();
    scored.any(|row| row.measure == Measure::Recall && row.depth.is_none())
        && summaries(rows).is_empty()
}

/// What the text tasks measure beside their score, and what read methods read, one line a row; nothing
/// for others.
pub fn remarks(rows: &[Row]) -> Vec<String> {
    let of_row = |row: &Row| {
        let mut parts = Vec::new();
        if let Some(divergence) = row.divergence {
            parts.push(format!(
                "KL divergence from the dense path {} nats a token",
                nats(divergence, 3)
            ));
        }
        if let Some(count) = row.same_until {
            parts.push(format!("its text for the first {count:.0} tokens"));
        }
        if let Some(share) = row.read_share {
            parts.push(format!(
                "answers read {:.1} % of the pages before them",
                100.0 * share
            ));
        }
        let (task, length) = (&row.task, row.length);
        (!parts.is_empty()).then(|| {
            format!(
                "{task} at {length}, {}: {}",
                brief(&row.setup),
                parts.join(", ")
            )
        })
    };
    rows.iter().filter_map(of_row).collect()
}

/// A Markdown document: the means, then every row. `about` says what was run, one line each.
pub fn markdown(rows: &[Row], about: &[String]) -> String {
    let mut text = String::from("# Evaluation\n\n");
    for line in about {
        text.push_str(&format!("{line}\n\n"));
    }
    let summaries = summaries(rows);
    if !summaries.is_empty() {
        text.push_str(&format!(
            "## Means\n\nOver the tasks on which the dense path scores at least {DENSE_FAILS_BELOW}.\n\n"
        ));
        text.push_str(&markdown_table(&summary_table(&summaries)));
        text.push('\n');
    }
    text.push_str("## Every task\n\n");
    text.push_str(&markdown_table(&table(rows)));
    let remarks = remarks(rows);
    if !remarks.is_empty() {
        text.push('\n');
        remarks
            .iter()
            .for_each(|line| text.push_str(&format!("- {line}\n")));
    }
    text
}

/// Means as a table, the heading first.
pub(crate) fn summary_table(summaries: &[Summary]) -> Vec<Vec<String>> {
    let heading = [
        "methods", "length", "question", "score", "dense", "held", "of dense", "tasks",
    ];
    let mut table = vec![heading.map(str::to_owned).to_vec()];
    table.extend(summaries.iter().map(summary_cells));
    table
}

fn summary_cells(of: &Summary) -> Vec<String> {
    let share = |share: f64| format!("{:.1} %", 100.0 * share);
    vec![
        brief(&of.setup),
        of.length.to_string(),
        match of.question {
            Sight::Unseen => "unseen".to_owned(),
            Sight::Seen => "seen".to_owned(),
        },
        format!("{:.1}", of.score),
        format!("{:.1}", of.dense_score),
        longview_kv::human_bytes(of.bytes_held as u64),
        of.share_held.map_or_else(|| "–".to_owned(), share),
        of.tasks.to_string(),
    ]
}

/// A table whose first row is the heading.
pub fn markdown_table(rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (at, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
        if at == 0 {
            text.push_str(&format!("|{}\n", "---|".repeat(row.len())));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::rows;
    use crate::outcome::tests::outcome;

    #[test]
    fn means_leave_out_what_the_dense_path_fails() {
        let rows = rows(&[
            outcome("easy", "dense", 0, 100.0),
            outcome("easy", "q4", 0, 90.0),
            outcome("hard", "dense", 0, 10.0),
            outcome("hard", "q4", 0, 0.0),
        ]);
        let summaries = summaries(&rows);
        assert_eq!(summaries.len(), 2);
        let q4 = &summaries[1];
        assert_eq!((q4.score, q4.tasks, q4.share_held), (90.0, 1, Some(0.25)));
        let text = markdown(&rows, &["made by a test".to_owned()]);
        for words in ["made by a test", "| q4 | 1024 |", "10.0 fails", "25.0 %"] {
            assert!(text.contains(words), "{words} in {text}");
        }
    }

    #[test]
    fn no_divergence_is_no_power_of_ten() {
        assert_eq!(
            (nats(0.0, 3), nats(0.0, 1)),
            ("0".to_owned(), "0".to_owned())
        );
        assert_eq!(
            (nats(0.001234, 3), nats(0.02, 1)),
            ("1.234e-3".to_owned(), "2.0e-2".to_owned())
        );
        let mut same = outcome("continuation", "f16", 0, 3.0);
        (same.measure, same.divergence) = (Measure::Perplexity, Some(0.0));
        let said = remarks(&rows(&[same])).concat();
        assert!(said.contains("dense path 0 nats a token"), "{said}");
    }

    #[test]
    fn means_are_lacking_where_the_dense_path_fails_all() {
        let of = |dense: f64| rows(&[outcome("a", "dense", 0, dense), outcome("a", "q4", 0, 90.0)]);
        assert!(lacks_means(&of(10.0)) && !lacks_means(&of(90.0)) && !lacks_means(&[]));
    }

    #[test]
    fn the_dense_path_fails_a_task_by_all_its_samples() {
        // 9 of 10 right, and the one sample that the setup has is the other.
        let dense = (0..10).map(|at| outcome("a", "dense", at, if at == 0 { 0.0 } else { 100.0 }));
        let mut outcomes: Vec<_> = dense.collect();
        outcomes.push(outcome("a", "q4", 0, 50.0));
        let summaries = summaries(&rows(&outcomes));
        assert_eq!((summaries.len(), summaries[1].score), (2, 50.0));
    }
}
