//! The charts of a report.

use super::svg::{Axis, Chart, HeatMap, Scale, Series};
use super::{Summary, summaries};
use crate::outcome::{Measure, Row, Sight};
use crate::setup::brief;

/// The charts that `rows` have the numbers for, each with the name of its file: score by bytes held
/// for every length, score by length, and a heat map for every setup.
pub fn charts(rows: &[Row]) -> Vec<(String, String)> {
    let summaries = summaries(rows);
    let mut lengths: Vec<usize> = summaries.iter().map(|of| of.length).collect();
    lengths.sort_unstable();
    lengths.dedup();
    let mut charts: Vec<(String, String)> = Vec::new();
    for &length in &lengths {
        let of_length: Vec<&Summary> = summaries.iter().filter(|of| of.length == length).collect();
        if of_length.len() > 1 {
            let name = format!("score_by_bytes_{length}.svg");
            charts.push((name, by_bytes(&of_length, length).draw()));
        }
    }
    if lengths.len() > 1 {
        charts.push((
            "score_by_length.svg".to_owned(),
            by_length(&summaries).draw(),
        ));
    }
    let mapped: Vec<&Row> = rows.iter().filter(|row| row.depth.is_some()).collect();
    let mut setups: Vec<&str> = Vec::new();
    for row in &mapped {
        if !setups.contains(&row.setup.as_str()) {
            setups.push(&row.setup);
        }
    }
    for setup in setups {
        let of_setup: Vec<&Row> = mapped
            .iter()
            .copied()
            .filter(|row| row.setup == setup)
            .collect();
        let name = format!("heatmap_{}.svg", file_name(&brief(setup)));
        charts.push((name, heat_map(setup, &of_setup).draw()));
    }
    charts
}

/// Setups of one method with other budgets are one line; a setup of its own is a point.
fn by_bytes(summaries: &[&Summary], length: usize) -> Chart {
    let mut series: Vec<Series> = Vec::new();
    for of in summaries {
        let name = named(family(&brief(&of.setup)), of.question);
        let point = (of.bytes_held, of.score);
        match series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(point),
            None => series.push(Series {
                name,
                points: vec![point],
            }),
        }
    }
    Chart {
        title: format!("Score by bytes of keys and values held, {length} tokens"),
        x: Axis {
            label: "bytes held when the answer begins".to_owned(),
            scale: Scale::Logarithmic,
            show: |bytes| longview_kv::human_bytes(bytes as u64),
        },
        y: scores(),
        series,
    }
}

fn by_length(summaries: &[Summary]) -> Chart {
    let mut series: Vec<Series> = Vec::new();
    for of in summaries {
        let point = (of.length as f64, of.score);
        let name = named(brief(&of.setup), of.question);
        match series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(point),
            None => series.push(Series {
                name,
                points: vec![point],
            }),
        }
    }
    Chart {
        title: "Score by length".to_owned(),
        x: Axis {
            label: "tokens of prompt and answer".to_owned(),
            scale: Scale::Logarithmic,
            show: |tokens| format!("{tokens:.0}"),
        },
        y: scores(),
        series,
    }
}

fn scores() -> Axis {
    Axis {
        label: "mean score of the tasks that the dense path does not fail".to_owned(),
        scale: Scale::Linear,
        show: |score| format!("{score:.0}"),
    }
}

fn heat_map(setup: &str, rows: &[&Row]) -> HeatMap {
    let mut lengths: Vec<usize> = rows.iter().map(|row| row.length).collect();
    lengths.sort_unstable();
    lengths.dedup();
    let mut depths: Vec<f64> = rows.iter().filter_map(|row| row.depth).collect();
    depths.sort_by(f64::total_cmp);
    depths.dedup();
    let value = |depth: f64, length: usize| {
        let there = |row: &&&Row| {
            row.measure == Measure::Recall && row.depth == Some(depth) && row.length == length
        };
        rows.iter().find(there).map(|row| row.score)
    };
    HeatMap {
        title: format!("Recall by depth and length: {}", brief(setup)),
        x_label: "tokens of prompt and answer".to_owned(),
        y_label: "depth of the fact".to_owned(),
        columns: lengths.iter().map(usize::to_string).collect(),
        rows: depths
            .iter()
            .map(|depth| format!("{:.0} %", 100.0 * depth))
            .collect(),
        values: depths
            .iter()
            .map(|&depth| lengths.iter().map(|&length| value(depth, length)).collect())
            .collect(),
    }
}

/// The name of a line of a chart.
fn named(setup: String, question: Sight) -> String {
    match question {
        Sight::Unseen => setup,
        Sight::Seen => format!("{setup}, question seen"),
    }
}

/// A setup's text without its `budget=…`.
fn family(setup: &str) -> String {
    let Some((before, rest)) = setup.split_once("budget=") else {
        return setup.to_owned();
    };
    let end = rest.find([',', ')']).unwrap_or(rest.len());
    let after = rest[end..].trim_start_matches(", ");
    let joined = format!("{before}{}", family(after));
    joined.replace("()", "").replace(", )", ")")
}

/// A setup's text as part of a file's name.
fn file_name(setup: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    setup.chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::rows;
    use crate::outcome::tests::outcome;

    #[test]
    fn budgets_of_one_method_are_one_line() {
        for (setup, name) in [
            ("snapkv(window=32, budget=10%)+q8", "snapkv(window=32)+q8"),
            ("random(budget=64, seed=1)", "random(seed=1)"),
            ("tova(budget=5%)", "tova"),
            ("q8", "q8"),
        ] {
            assert_eq!(family(setup), name);
        }
    }

    #[test]
    fn every_chart_is_drawn_from_what_there_is() {
        let mut outcomes = Vec::new();
        for (length, depth) in [
            (1024, None),
            (2048, None),
            (1024, Some(0.5)),
            (2048, Some(0.0)),
        ] {
            for setup in ["dense", "q8 <x>"] {
                let mut one = outcome("a", setup, 0, 90.0);
                (one.case.length, one.case.depth) = (length, depth);
                outcomes.push(one);
            }
        }
        let charts = charts(&rows(&outcomes));
        let names: Vec<&str> = charts.iter().map(|(name, _)| name.as_str()).collect();
        let expected = [
            "score_by_bytes_1024.svg",
            "score_by_bytes_2048.svg",
            "score_by_length.svg",
            "heatmap_dense.svg",
            "heatmap_q8__x_.svg",
        ];
        assert_eq!(names, expected);
        for (name, svg) in &charts {
            assert!(
                svg.starts_with("<svg") && svg.ends_with("</svg>\n"),
                "{name}"
            );
            assert!(
                !svg.contains("<x>") && !svg.contains("NaN"),
                "{name}: {svg}"
            );
        }
        // A circle for the one point of each of two setups.
        assert_eq!(charts[0].1.matches("<circle").count(), 2);
        assert_eq!(charts[3].1.matches("<rect").count(), 1 + 4);
    }
}
