//! The leaderboard as a page.

use longview_methods::Method;

use super::{Entry, Standing};
use crate::outcome::{Row, Sight};
use crate::report::{
    DENSE_FAILS_BELOW, Summary, dense_fails, markdown_table, summaries, summary_table, table,
};
use crate::setup::brief;

/// What stands around the part of the page that people write.
const REMARKS: [&str; 2] = [
    "<!-- remarks, kept when the page is made anew: begin -->",
    "<!-- remarks: end -->",
];

/// What forms and patterns stand beside.
const FLOORS: [&str; 2] = ["streaming-llm", "random"];

/// What people wrote on `page`, a leaderboard; nothing where there is none.
pub fn remarks_of(page: &str) -> Option<&str> {
    let (_, rest) = page.split_once(REMARKS[0])?;
    let (remarks, _) = rest.split_once(REMARKS[1])?;
    Some(remarks.trim())
}

/// The leaderboard as a Markdown page. `about` says what was run, a paragraph each; `remarks` is what
/// people say of it.
pub fn leaderboard_page(standings: &[Standing], about: &[String], remarks: &str) -> String {
    let mut text = String::from("# Leaderboard\n\n");
    for paragraph in about {
        text.push_str(&format!("{paragraph}\n\n"));
    }
    let [begin, end] = REMARKS;
    text.push_str(&format!("{begin}\n{}\n{end}\n", remarks.trim()));
    let boards: Vec<Means<'_>> = standings.iter().map(Means::of).collect();
    if let Some(first) = boards.first() {
        text.push_str(&claims(first));
    }
    for board in &boards {
        text.push_str(&board.section());
    }
    text
}

/// One board with its means.
struct Means<'a> {
    standing: &'a Standing,
    summaries: Vec<Summary>,
}

/// Entries that differ in their budget only.
struct Family<'a> {
    method: &'static Method,
    /// The text without the budget.
    name: String,
    entries: Vec<&'a Entry>,
}

impl<'a> Means<'a> {
    fn of(standing: &'a Standing) -> Means<'a> {
        Means {
            standing,
            summaries: summaries(&standing.rows),
        }
    }

    fn summary(&self, setup: &str, question: Sight) -> Option<&Summary> {
        let is_it = |of: &&Summary| of.setup == setup && of.question == question;
        self.summaries.iter().find(is_it)
    }

    fn families(&self) -> Vec<Family<'a>> {
        let mut families: Vec<Family<'a>> = Vec::new();
        for entry in &self.standing.entries {
            let name = entry.family.split_once('=').map_or("", |(_, name)| name);
            let (stage, name) = match entry.family.starts_with(entry.method.stage.name()) {
                true => (entry.method.stage.name(), name),
                false => ("", &*entry.family),
            };
            // Stages whose names are single need not be said.
            let name = match stage {
                "prefill" | "read" => format!("{stage}={name}"),
                _ => name.to_owned(),
            };
            match families.iter_mut().find(|family| family.name == name) {
                Some(family) => family.entries.push(entry),
                None => families.push(Family {
                    method: entry.method,
                    name,
                    entries: vec![entry],
                }),
            }
        }
        families
    }

    /// A score with its uncertainty.
    fn cell(&self, entry: Option<&&Entry>, question: Sight) -> String {
        let summary = entry.and_then(|entry| self.summary(&entry.setup.to_string(), question));
        summary.map_or_else(
            || "–".to_owned(),
            |of| format!("{:.1} ± {:.1}", of.score, of.half_width),
        )
    }

    fn section(&self) -> String {
        let Standing {
            board,
            rows,
            refused,
            ..
        } = self.standing;
        let mut text = format!("\n## {} tokens\n\n", board.length);
        let dense = |row: &&Row| row.setup == "dense" && row.question == Sight::Unseen;
        let counts = rows.iter().filter(dense).map(|row| row.samples);
        let most = counts.max().unwrap_or(0);
        let samples = match most == board.samples {
            true => format!("{most} samples a task"),
            false => format!("{most} samples a task so far, of {}", board.samples),
        };
        text.push_str(&format!(
            "{samples}. Means over the tasks that the dense path does not fail, each beside half the width of \
             its 95 % interval.\n"
        ));
        text.push_str(&self.by_budget());
        text.push_str(&self.others());
        text.push_str(&self.failed());
        for refusal in refused {
            let line = format!("\nNot measured: `{}`: {}.\n", refusal.setup, refusal.why);
            text.push_str(&line);
        }
        let mut means = self.summaries.clone();
        means.sort_by(|a, b| b.score.total_cmp(&a.score));
        for (what, table) in [
            (
                "All means, best first, with what is held",
                summary_table(&means),
            ),
            ("Every task", table(rows)),
        ] {
            let table = markdown_table(&table);
            text.push_str(&format!(
                "\n<details><summary>{what}</summary>\n\n{table}\n</details>\n"
            ));
        }
        text
    }

    /// Methods with budgets: a line each, and another with the question seen where that matters to them.
    fn by_budget(&self) -> String {
        let budgets = &self.standing.board.budgets;
        let heading = ["methods", "question"].map(str::to_owned).into_iter();
        let columns = budgets.iter().map(|budget| format!("{budget} %"));
        let mut rows: Vec<(f64, Vec<String>)> = Vec::new();
        for family in self.families() {
            for (question, name) in [(Sight::Unseen, "unseen"), (Sight::Seen, "seen")] {
                let entry = |budget: &u32| {
                    let mut entries = family.entries.iter();
                    entries.find(|entry| entry.budget == Some(*budget))
                };
                let found = budgets
                    .iter()
                    .filter_map(|budget| self.summary(&entry(budget)?.setup.to_string(), question));
                let scores: Vec<f64> = found.map(|of| of.score).collect();
                if scores.is_empty() {
                    continue;
                }
                let cells = budgets
                    .iter()
                    .map(|budget| self.cell(entry(budget), question));
                let row = [format!("`{}`", family.name), name.to_owned()];
                rows.push((scores.iter().sum(), row.into_iter().chain(cells).collect()));
            }
        }
        if rows.is_empty() {
            return String::new();
        }
        rows.sort_by(|a, b| b.0.total_cmp(&a.0));
        let heading: Vec<String> = heading.chain(columns).collect();
        let dense = |question| self.summary("dense", question).map(|of| of.score);
        let mut text = String::from("\n### By budget\n\n");
        let says = [
            (Sight::Unseen, "the question unseen"),
            (Sight::Seen, "the question seen"),
        ]
        .into_iter()
        .filter_map(|(question, words)| Some(format!("{:.1} with {words}", dense(question)?)));
        let says: Vec<String> = says.collect();
        text.push_str(&format!("The dense path scores {}.\n\n", says.join(", ")));
        let rows: Vec<Vec<String>> = std::iter::once(heading)
            .chain(rows.into_iter().map(|(_, row)| row))
            .collect();
        text.push_str(&markdown_table(&rows));
        text
    }

    /// Methods without a budget: forms and patterns, beside what the floors score in as many bytes.
    fn others(&self) -> String {
        let heading = ["methods", "score", "of dense, bytes held"].map(str::to_owned);
        let floors = FLOORS.map(|name| format!("`{name}` in those bytes"));
        let mut rows = vec![heading.into_iter().chain(floors).collect()];
        for entry in &self.standing.entries {
            let setup = entry.setup.to_string();
            let Some(of) = self.summary(&setup, Sight::Unseen) else {
                continue;
            };
            if entry.budget.is_none() {
                let share = of.share_held.map(|share| format!("{:.1} %", 100.0 * share));
                let floor = |name| self.floor_in(name, of.share_held?);
                let floors = FLOORS.map(|name| floor(name).map(|score| format!("{score:.0}")));
                let none = || "–".to_owned();
                let cells = [
                    format!("`{}`", brief(&setup)),
                    self.cell(Some(&entry), Sight::Unseen),
                    share.unwrap_or_else(none),
                ];
                let floors = floors.map(|score| score.unwrap_or_else(none));
                rows.push(cells.into_iter().chain(floors).collect());
            }
        }
        match rows.len() {
            1 => String::new(),
            _ => format!(
                "\n### Forms and patterns\n\nThe floors on a line between their nearest budgets, or the largest one and \
                 the dense path; `longview eval` measures them at the very bytes.\n\n{}",
                markdown_table(&rows)
            ),
        }
    }

    /// The score that the method `name` has where it holds `share` of the dense path's bytes: on a line
    /// between two of its budgets that were measured, or one and the dense path.
    fn floor_in(&self, name: &str, share: f64) -> Option<f64> {
        let mut families = self.families().into_iter();
        let family = families.find(|family| family.name == name)?;
        let measured = family.entries.iter().filter_map(|entry| {
            let of = self.summary(&entry.setup.to_string(), Sight::Unseen)?;
            Some((of.share_held?, of.score))
        });
        let dense = self.summary("dense", Sight::Unseen)?;
        let mut points: Vec<(f64, f64)> = measured.chain([(1.0, dense.score)]).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let around = points.windows(2).find_map(|pair| match pair {
            &[below, above] if below.0 <= share && share < above.0 => Some((below, above)),
            _ => None,
        });
        let (below, above) = around?;
        Some(below.1 + (above.1 - below.1) * (share - below.0) / (above.0 - below.0))
    }

    /// What the dense path fails.
    fn failed(&self) -> String {
        let is_failed =
            |row: &&Row| row.setup == "dense" && row.question == Sight::Unseen && dense_fails(row);
        let says = |row: &Row| format!("{} ({:.0} of 100 in {})", row.task, row.score, row.samples);
        let failed = self.standing.rows.iter().filter(is_failed).map(says);
        let failed: Vec<String> = failed.collect();
        if failed.is_empty() {
            return String::new();
        }
        format!(
            "\nThe dense path fails (scores below {DENSE_FAILS_BELOW:.0}) {}; what methods score there is not \
             shown, and samples end where it fails by more than chance.\n",
            failed.join(", ")
        )
    }
}

/// What was claimed of methods, and what they score here.
fn claims(means: &Means<'_>) -> String {
    let mut rows = vec![
        ["method", "claimed where it was published", "here"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for family in means.families() {
        let Some(claim) = family.method.claim else {
            continue;
        };
        let mut parts = Vec::new();
        for (question, words) in [(Sight::Unseen, ""), (Sight::Seen, "question seen: ")] {
            let scores: Vec<String> = family
                .entries
                .iter()
                .filter_map(|entry| {
                    let of = means.summary(&entry.setup.to_string(), question)?;
                    let share = match (entry.budget, of.share_held) {
                        (Some(budget), _) => format!("{budget} %"),
                        (None, Some(share)) => format!("{:.0} % of the bytes", 100.0 * share),
                        (None, None) => "?".to_owned(),
                    };
                    Some(format!("{:.0} at {share}", of.score))
                })
                .collect();
            if !scores.is_empty() {
                parts.push(format!("{words}{}", scores.join(", ")));
            }
        }
        if !parts.is_empty() {
            let cells = [
                format!("`{}`", family.name),
                claim.to_owned(),
                parts.join("; "),
            ];
            rows.push(cells.to_vec());
        }
    }
    if rows.len() == 1 {
        return String::new();
    }
    let length = means.standing.board.length;
    let dense = means.summary("dense", Sight::Unseen);
    let dense = dense.map_or_else(String::new, |of| {
        format!("; the dense path scores {:.0}", of.score)
    });
    format!(
        "\n## What was claimed, and what it is here\n\nMean scores at {length} tokens by what is kept{dense}. The \
         claims are of other models and tasks, and most are of speed and memory too, of which the tables \
         below speak.\n\n{}",
        markdown_table(&rows)
    )
}

#[cfg(test)]
mod tests {
    use super::super::tests::board;
    use super::*;
    use crate::outcome::rows;
    use crate::outcome::tests::outcome;
    use crate::run::Refusal;

    #[test]
    fn the_page_says_what_failed_what_was_refused_and_what_was_claimed() {
        let (entries, _) = board().entries();
        let of = |name: &str, budget: Option<u32>| {
            let found = entries
                .iter()
                .find(|one| one.method.name == name && one.budget == budget);
            found.unwrap().setup.to_string()
        };
        let (snapkv, kivi) = (of("snapkv", Some(10)), of("kivi", None));
        // A tenth of the bytes, beside a quarter: a sixth of the way to the dense path.
        let mut floor = outcome("easy", &of("random", Some(10)), 0, 10.0);
        floor.bytes_held = 200;
        let mut seen = outcome("easy", &snapkv, 0, 70.0);
        let mut dense_seen = outcome("easy", "dense", 0, 100.0);
        (seen.case.question, dense_seen.case.question) = (Sight::Seen, Sight::Seen);
        let standing = Standing {
            board: board(),
            rows: rows(&[
                outcome("easy", "dense", 0, 100.0),
                outcome("hard", "dense", 0, 10.0),
                outcome("easy", &snapkv, 0, 40.0),
                outcome("easy", &kivi, 0, 90.0),
                floor,
                dense_seen,
                seen,
            ]),
            refused: vec![Refusal {
                setup: "keep=x".to_owned(),
                why: "it needs a file".to_owned(),
            }],
            entries,
        };
        let page = leaderboard_page(&[standing], &["On a model.".to_owned()], "Look here.\n");
        for words in [
            "On a model.",
            "Look here.",
            "fails (scores below 80) hard (10 of 100 in 1); what methods score there is not shown",
            "`keep=x`: it needs a file",
            "| `snapkv` | unseen | 40.0 ± 44.4 | – |",
            "| `snapkv` | seen | 70.0 ± 43.8 | – |",
            "| `kivi` | 90.0 ± 41.5 | 25.0 % | – | 25 |",
            "40 at 10 %; question seen: 70 at 10 %",
            "2 bits with almost the same quality",
            "dense path scores 100.0 with the question unseen",
        ] {
            assert!(page.contains(words), "{words} in {page}");
        }
        assert_eq!(remarks_of(&page), Some("Look here."));
        assert_eq!(remarks_of("# Another page"), None);
    }
}
