//! What the time of a run was spent on.

use longview::limits::Limits;
use longview::models::{Profile, Work};
use serde_json::{Value, json};

use super::roofline::Least;
use crate::output;

/// Where the time of a run went, and how much of it this machine needs at least.
#[derive(Clone, Debug)]
pub(super) struct Spent {
    times: Profile,
    /// For each kind of work the share of its time; `None` where nothing is counted for it.
    shares: [Option<f64>; Work::ALL.len()],
}

impl Spent {
    pub(super) fn new(times: Profile, least: &Least, limits: &Limits) -> Spent {
        let shares = Work::ALL.map(|work| {
            let needed = least.least_seconds_of(work, limits);
            let spent: f64 = times
                .rows()
                .map(|(_, t)| t[work as usize].as_secs_f64())
                .sum();
            (needed > 0.0 && spent > 0.0).then(|| needed / spent)
        });
        Spent { times, shares }
    }
}

/// `{ "seconds", "waiting_seconds", "layers": [{ "kind", "seconds": { work: seconds } }],
/// "share_of_limit": { work: share } }`.
pub(super) fn json(spent: &Spent) -> Value {
    let profile = &spent.times;
    let shares: serde_json::Map<String, Value> = Work::ALL
        .iter()
        .zip(spent.shares)
        .filter_map(|(work, share)| Some((work.name().to_owned(), json!(share?))))
        .collect();
    let layers: Vec<Value> = profile
        .rows()
        .map(|(kind, times)| {
            let seconds: serde_json::Map<String, Value> = Work::ALL
                .iter()
                .zip(times)
                .filter(|(_, time)| !time.is_zero())
                .map(|(work, time)| (work.name().to_owned(), json!(time.as_secs_f64())))
                .collect();
            json!({ "kind": kind, "seconds": seconds })
        })
        .collect();
    json!({
        "seconds": profile.total().as_secs_f64(),
        "waiting_seconds": profile.waiting.as_secs_f64(),
        "layers": layers,
        "share_of_limit": shares,
    })
}

/// A table in milliseconds a pass: a row for each kind of work, a column for each kind of layer, then the kind's share of the
/// time and how much of its time this machine needs at least.
pub(super) fn text(spent: &Spent, passes: usize) -> String {
    let profile = &spent.times;
    let kinds: Vec<_> = profile.rows().collect();
    let total = profile.total().as_secs_f64().max(1e-12);
    let milliseconds = |seconds: f64| format!("{:.3}", seconds * 1e3 / passes.max(1) as f64);
    let share = |seconds: f64| format!("{:.1} %", 100.0 * seconds / total);
    let mut heading = vec!["MS A PASS".to_owned()];
    heading.extend(kinds.iter().map(|(kind, _)| kind.to_uppercase()));
    heading.extend(["SHARE", "OF THE LIMIT"].map(str::to_owned));
    let mut rows = vec![heading];
    for (index, work) in Work::ALL.iter().enumerate() {
        let times: Vec<f64> = kinds.iter().map(|(_, t)| t[index].as_secs_f64()).collect();
        let all: f64 = times.iter().sum();
        if all == 0.0 {
            continue;
        }
        let mut row = vec![work.name().to_owned()];
        row.extend(times.iter().map(|&time| match time {
            0.0 => String::new(),
            _ => milliseconds(time),
        }));
        row.push(share(all));
        row.push(
            spent.shares[index].map_or(String::new(), |share| format!("{:.0} %", 100.0 * share)),
        );
        rows.push(row);
    }
    let mut all = vec!["all".to_owned()];
    all.extend(kinds.iter().map(|(_, times)| {
        let sum: f64 = times.iter().map(|time| time.as_secs_f64()).sum();
        milliseconds(sum)
    }));
    all.extend([share(total), String::new()]);
    rows.push(all);
    let right: Vec<usize> = (1..rows[0].len()).collect();
    let waiting = profile.waiting.as_secs_f64();
    output::table(&rows, &right)
        + &format!(
            "of which waiting for the other threads: {} ms a pass, {}\n",
            milliseconds(waiting),
            share(waiting)
        )
}
