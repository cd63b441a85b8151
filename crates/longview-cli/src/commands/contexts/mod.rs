//! `longview contexts`: what is kept from one run to the next.

mod list;
mod show;
mod text;
mod transfer;
mod upkeep;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use longview::human_bytes;
use longview::records::{Listed, Record, Records, Summary};
use longview::tier::{BlockKey, DiskOptions, DiskTier, Repair, StoreFolder, Syncing, Tier};
use serde_json::{Value, json};

use crate::args::{ContextsAction, ContextsArgs, Format, Life};
use crate::failure::Failure;
use crate::output;
use crate::saved::failure;

/// Does what was asked for.
pub(crate) fn run(args: &ContextsArgs, format: Format) -> Result<(), Failure> {
    // What computes opens the store by itself.
    match &args.action {
        ContextsAction::Save(save) => return text::save(save, &args.store, format),
        ContextsAction::Append(append) => return text::append(append, &args.store, format),
        ContextsAction::Cut(cut) => return text::cut(cut, &args.store, format),
        ContextsAction::Truncate(shorter) => return text::truncate(shorter, &args.store, format),
        _ => {}
    }
    let kept = Kept::open(args)?;
    let result = match &args.action {
        ContextsAction::Save(_)
        | ContextsAction::Append(_)
        | ContextsAction::Cut(_)
        | ContextsAction::Truncate(_) => unreachable!("done above"),
        ContextsAction::Ls => list::ls(&kept, format),
        ContextsAction::Show { context, model } => show::show(&kept, context, model, format),
        ContextsAction::Gc { max } => {
            let max = max.map_or_else(|| args.store.max(), Ok)?;
            upkeep::gc(&kept, max, format)
        }
        ContextsAction::Fsck { repair } => {
            let how = match repair {
                true => Repair::Remove,
                false => Repair::Report,
            };
            upkeep::fsck(&kept, how, format)
        }
        ContextsAction::Export {
            context,
            file,
            overwrite,
        } => transfer::export(&kept, context, file, overwrite.taken(), format),
        ContextsAction::Import { file } => transfer::import(&kept, file, format),
        ContextsAction::Rm { contexts } => upkeep::rm(&kept, contexts, format),
        ContextsAction::Pin { context } => kept.change(context, format, |summary| {
            summary.pinned = true;
        }),
        ContextsAction::Unpin { context } => kept.change(context, format, |summary| {
            summary.pinned = false;
        }),
        ContextsAction::Label { context, label } => kept.change(context, format, |summary| {
            summary.label = label.clone();
        }),
        ContextsAction::Ttl { context, life } => kept.change(context, format, |summary| {
            summary.time_to_live = match life {
                Life::Seconds(seconds) => Some(*seconds),
                Life::Endless => None,
            };
        }),
    };
    for notice in kept.tier.take_notices() {
        output::tell(&notice);
    }
    result
}

/// An open folder with contexts.
struct Kept {
    folder: StoreFolder,
    records: Records,
    tier: Arc<DiskTier>,
    max_bytes: u64,
}

/// How much of a context is still there.
struct Presence {
    blocks: usize,
    blocks_there: usize,
    /// Bytes of the blocks that are there.
    bytes: u64,
}

impl Kept {
    fn open(args: &ContextsArgs) -> Result<Kept, Failure> {
        let folder = args.store.open_folder()?;
        let records = args.store.records(&folder);
        let pinned = records.clone();
        let options = DiskOptions {
            sync: Syncing::WhenAsked,
            pinned: Some(Arc::new(move || pinned.pinned())),
            ..DiskOptions::default()
        };
        let tier = DiskTier::open(&folder, options).map_err(failure)?;
        Ok(Kept {
            folder,
            records,
            tier: Arc::new(tier),
            max_bytes: args.store.max()?,
        })
    }

    fn find(&self, name: &str) -> Result<Record, Failure> {
        self.records.find(name).map_err(failure)
    }

    fn summaries(&self) -> Result<(Vec<Summary>, Vec<Listed>), Failure> {
        let mut open = Vec::new();
        let mut locked = Vec::new();
        for listed in self.records.list().map_err(failure)? {
            match listed {
                Listed::Open(summary) => open.push(*summary),
                other => locked.push(other),
            }
        }
        Ok((open, locked))
    }

    fn presence(&self, record: &Record) -> Presence {
        let keys: HashSet<BlockKey> = record.keys.iter().copied().collect();
        let there = keys.iter().filter_map(|key| self.tier.find(key));
        let bytes: Vec<u64> = there
            .map(|info| (info.shape.layers * info.shape.layer_bytes) as u64)
            .collect();
        Presence {
            blocks: keys.len(),
            blocks_there: bytes.len(),
            bytes: bytes.iter().sum(),
        }
    }

    /// Changes what a record says.
    fn change(
        &self,
        name: &str,
        format: Format,
        change: impl FnOnce(&mut Summary),
    ) -> Result<(), Failure> {
        let mut record = self.find(name)?;
        change(&mut record.summary);
        self.records.save(&record).map_err(failure)?;
        let record = self.records.load(&record.summary.id).map_err(failure)?;
        match format {
            Format::Json => output::print_json(&object(&record, &self.presence(&record))),
            Format::Text => output::print(&format!("{}\n", line(&record.summary))),
        }
    }
}

impl Presence {
    /// In words for a table.
    fn words(&self) -> String {
        match (self.blocks_there, self.blocks) {
            (there, all) if there == all => "complete".to_owned(),
            (0, _) => "evicted".to_owned(),
            (there, all) => format!("{there} of {all} blocks"),
        }
    }
}

/// A context's fields in JSON.
fn object(record: &Record, presence: &Presence) -> Value {
    let summary = &record.summary;
    let left = summary
        .time_to_live
        .filter(|_| !summary.pinned)
        .map(|life| life.saturating_sub(now().saturating_sub(summary.used)));
    json!({
        "id": summary.id,
        "label": summary.label,
        "title": summary.title,
        "model": summary.model,
        "identity": summary.identity,
        "methods": summary.methods,
        "tokens": summary.tokens,
        "blocks": presence.blocks,
        "blocks_there": presence.blocks_there,
        "bytes": presence.bytes,
        "complete": presence.blocks == presence.blocks_there,
        "pinned": summary.pinned,
        "created": summary.created,
        "used": summary.used,
        "time_to_live": summary.time_to_live,
        "seconds_left": left,
    })
}

/// A context in one line.
fn line(summary: &Summary) -> String {
    let label = summary
        .label
        .as_ref()
        .map_or(String::new(), |label| format!(" {label:?}"));
    let pinned = if summary.pinned { ", pinned" } else { "" };
    let life = match summary.time_to_live {
        Some(life) if !summary.pinned => {
            format!(
                ", expires {} after its last use",
                crate::size::human_duration(life)
            )
        }
        _ => String::new(),
    };
    format!(
        "{}{label}: {} tokens of {:?}, {}{pinned}{life}",
        summary.id,
        crate::size::human_count(summary.tokens as usize),
        summary.title,
        human_bytes(summary.bytes),
    )
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}
