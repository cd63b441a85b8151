//! `longview contexts gc`, `fsck` and `rm`.

use std::collections::HashSet;
use std::time::SystemTime;

use longview::human_bytes;
use longview::tier::{BlockKey, Fate, Repair, Tier};
use serde_json::{Value, json};

use super::Kept;
use crate::args::Format;
use crate::failure::Failure;
use crate::output;
use crate::saved::failure;
use crate::size::human_count;

/// Removes what is over, then what is least worth keeping.
pub(super) fn gc(kept: &Kept, max: u64, format: Format) -> Result<(), Failure> {
    let expired = kept.records.expire(SystemTime::now()).map_err(failure)?;
    let freed = kept.tier.gc(max).map_err(failure)?;
    let usage = kept.tier.usage();
    match format {
        Format::Json => output::print_json(&json!({
            "expired": expired,
            "freed_bytes": freed,
            "blocks": usage.blocks,
            "bytes": usage.bytes,
        })),
        Format::Text => output::print(&format!(
            "{} contexts have expired; {} freed, {} in {} blocks are left\n",
            expired.len(),
            human_bytes(freed),
            human_bytes(usage.bytes),
            human_count(usage.blocks as usize),
        )),
    }
}

/// Checks every byte.
pub(super) fn fsck(kept: &Kept, how: Repair, format: Format) -> Result<(), Failure> {
    let found = kept.tier.fsck(how).map_err(failure)?;
    let records = kept.records.check(how).map_err(failure)?;
    // Told below, each with its file.
    let _ = kept.tier.take_notices();
    let problems = [&found.problems[..], &records].concat();
    let left = problems
        .iter()
        .filter(|problem| problem.fate == Fate::Left)
        .count();
    match format {
        Format::Json => {
            let problems: Vec<Value> = problems
                .iter()
                .map(|problem| {
                    json!({
                        "file": problem.file.display().to_string(),
                        "what": problem.what,
                        "repaired": problem.fate != Fate::Left,
                        "fate": word(problem.fate),
                    })
                })
                .collect();
            output::print_json(&json!({
                "files": found.files,
                "blocks": found.blocks,
                "bytes": found.bytes,
                "problems": problems,
            }))?;
        }
        Format::Text => {
            let mut text = String::new();
            for problem in &problems {
                let done = match problem.fate {
                    Fate::Left => String::new(),
                    fate => format!(" ({})", word(fate)),
                };
                let file = problem.file.display();
                text.push_str(&format!("{file}: {}{done}\n", problem.what));
            }
            text.push_str(&format!(
                "{} files, {} whole blocks, {} read; {} problems\n",
                found.files,
                human_count(found.blocks as usize),
                human_bytes(found.bytes),
                problems.len(),
            ));
            output::print(&text)?;
        }
    }
    if left == 0 {
        return Ok(());
    }
    let hint = match how {
        Repair::Remove => "see above",
        Repair::Report => "--repair removes what is damaged or foreign",
    };
    Err(Failure::failed(format!("{left} problems are left: {hint}")))
}

/// What became of something wrong.
fn word(fate: Fate) -> &'static str {
    match fate {
        Fate::Left => "left",
        Fate::Removed => "removed",
        Fate::Renamed => "renamed",
    }
}

/// Removes contexts and the blocks that only they have.
pub(super) fn rm(kept: &Kept, names: &[String], format: Format) -> Result<(), Failure> {
    // All are looked up before one is removed.
    let found: Result<Vec<_>, _> = names.iter().map(|name| kept.find(name)).collect();
    let found = found?;
    let gone: HashSet<&str> = found
        .iter()
        .map(|record| record.summary.id.as_str())
        .collect();
    let (others, _) = kept.summaries()?;
    let others = others
        .iter()
        .filter(|summary| !gone.contains(summary.id.as_str()));
    let shared: HashSet<BlockKey> = others
        .filter_map(|summary| kept.records.load(&summary.id).ok())
        .flat_map(|record| record.keys)
        .collect();
    let before = kept.tier.usage().bytes;
    for record in &found {
        // Named twice, it is gone already.
        if kept.records.load(&record.summary.id).is_err() {
            continue;
        }
        kept.records.remove(&record.summary.id).map_err(failure)?;
        for key in record.keys.iter().filter(|key| !shared.contains(key)) {
            kept.tier.remove(key).map_err(failure)?;
        }
    }
    let freed = before.saturating_sub(kept.tier.usage().bytes);
    let ids: Vec<&str> = found
        .iter()
        .map(|record| record.summary.id.as_str())
        .collect();
    match format {
        Format::Json => output::print_json(&json!({ "removed": ids, "freed_bytes": freed })),
        Format::Text => output::print(&format!(
            "removed {}; {} freed\n",
            ids.join(", "),
            human_bytes(freed)
        )),
    }
}
