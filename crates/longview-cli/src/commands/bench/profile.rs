//! What the time of a run was spent on.

use longview::models::{Profile, Work};
use serde_json::{Value, json};

use crate::output;

/// `{ "seconds", "waiting_seconds", "layers": [{ "kind", "seconds": { work: seconds } }] }`.
pub(super) fn json(profile: &Profile) -> Value {
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
    })
}

/// A table in milliseconds a pass: a row for each kind of work, a column for each kind of layer.
pub(super) fn text(profile: &Profile, passes: usize) -> String {
    let kinds: Vec<_> = profile.rows().collect();
    let total = profile.total().as_secs_f64().max(1e-12);
    let milliseconds = |seconds: f64| format!("{:.3}", seconds * 1e3 / passes.max(1) as f64);
    let share = |seconds: f64| format!("{:.1} %", 100.0 * seconds / total);
    let mut heading = vec!["MS A PASS".to_owned()];
    heading.extend(kinds.iter().map(|(kind, _)| kind.to_uppercase()));
    heading.push("SHARE".to_owned());
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
        rows.push(row);
    }
    let mut all = vec!["all".to_owned()];
    all.extend(kinds.iter().map(|(_, times)| {
        let sum: f64 = times.iter().map(|time| time.as_secs_f64()).sum();
        milliseconds(sum)
    }));
    all.push(share(total));
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
