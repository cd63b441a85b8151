//! `longview contexts ls`.

use std::time::SystemTime;

use longview::human_bytes;
use longview::records::Listed;
use longview::tier::Tier;
use serde_json::{Value, json};

use super::{Kept, now, object};
use crate::args::Format;
use crate::failure::Failure;
use crate::output;
use crate::saved::failure;
use crate::size::{human_count, human_duration};

/// Prints the contexts, the last used first, and what the folder holds.
pub(super) fn ls(kept: &Kept, format: Format) -> Result<(), Failure> {
    // In a folder that can only be read they stay listed.
    let _ = kept.records.expire(SystemTime::now());
    let (summaries, locked) = kept.summaries()?;
    let mut records = Vec::new();
    for summary in summaries {
        match kept.records.load(&summary.id) {
            Ok(record) => records.push(record),
            // Removed meanwhile, or damaged beyond its head: neither can be opened.
            Err(error) => output::note(format!(
                "note: {}",
                failure(error).message().unwrap_or_default()
            )),
        }
    }
    let usage = kept.tier.usage();
    if format == Format::Json {
        let contexts: Vec<Value> = records
            .iter()
            .map(|record| object(record, &kept.presence(record)))
            .collect();
        let locked: Vec<Value> = locked
            .iter()
            .filter_map(|listed| match listed {
                Listed::Locked {
                    id,
                    bytes,
                    used,
                    pinned,
                } => Some(json!({ "id": id, "bytes": bytes, "used": used, "pinned": pinned })),
                Listed::Open(_) => None,
            })
            .collect();
        return output::print_json(&json!({
            "contexts": contexts,
            "locked": locked,
            "store": {
                "folder": kept.folder.root().display().to_string(),
                "blocks": usage.blocks,
                "bytes": usage.bytes,
                "max_bytes": kept.max_bytes,
            },
        }));
    }
    let mut text = String::new();
    if !records.is_empty() {
        let heading = [
            "ID", "LABEL", "TITLE", "MODEL", "TOKENS", "ON DISK", "KEPT", "USED",
        ];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        for record in &records {
            let summary = &record.summary;
            let presence = kept.presence(record);
            let pinned = if summary.pinned { ", pinned" } else { "" };
            rows.push(vec![
                summary.id.clone(),
                summary.label.clone().unwrap_or_default(),
                short(&summary.title),
                short(&summary.model),
                human_count(summary.tokens as usize),
                human_bytes(presence.bytes),
                presence.words() + pinned,
                format!("{} ago", human_duration(now().saturating_sub(summary.used))),
            ]);
        }
        text.push_str(&output::table(&rows, &[4, 5]));
        text.push('\n');
    }
    if !locked.is_empty() {
        text.push_str(&format!(
            "{} more under other salts (--salt)\n",
            locked.len()
        ));
    }
    text.push_str(&format!(
        "{}: {} blocks, {} of at most {}\n",
        kept.folder.root().display(),
        human_count(usage.blocks as usize),
        human_bytes(usage.bytes),
        human_bytes(kept.max_bytes),
    ));
    output::print(&text)
}

/// A text in one line of a table; the end says more than the beginning where it is a path.
fn short(text: &str) -> String {
    const MOST: usize = 40;
    let text: String = text
        .chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect();
    let length = text.chars().count();
    if length <= MOST {
        return text;
    }
    let end: String = text.chars().skip(length - MOST + 1).collect();
    format!("…{end}")
}
