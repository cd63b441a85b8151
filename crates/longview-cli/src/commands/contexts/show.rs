//! `longview contexts show`.

use longview::records::Record;
use longview::{EngineOptions, ModelSource, Tokenizer, human_bytes, inspect, open_tokenizer};
use serde_json::json;

use super::{Kept, now, object};
use crate::args::{Format, ModelArgs};
use crate::failure::Failure;
use crate::output;
use crate::prompt::shown;
use crate::size::{human_count, human_duration};

/// Tokens shown of the beginning and of the end.
const SHOWN: usize = 64;

/// Prints what is known of a context.
pub(super) fn show(
    kept: &Kept,
    name: &str,
    model: &ModelArgs,
    format: Format,
) -> Result<(), Failure> {
    let record = kept.find(name)?;
    let presence = kept.presence(&record);
    let tokenizer = tokenizer(&record, model)?;
    let (begins, ends) = ends(&record.tokens);
    let text = |ids: &[u32]| {
        let tokenizer = tokenizer.as_ref();
        tokenizer.map(|tokenizer| shown(tokenizer, ids)).transpose()
    };
    let (first, last) = (text(begins)?, text(ends)?);
    if format == Format::Json {
        let mut value = object(&record, &presence);
        value["begins"] = json!(first);
        value["ends"] = json!(last);
        value["first_ids"] = json!(begins);
        value["last_ids"] = json!(ends);
        return output::print_json(&value);
    }
    let summary = &record.summary;
    let mut rows = vec![
        ("id", summary.id.clone()),
        ("label", summary.label.clone().unwrap_or("–".to_owned())),
        ("title", summary.title.clone()),
        ("model", summary.model.clone()),
        ("identity", summary.identity.clone()),
        ("tokens", human_count(summary.tokens as usize)),
        (
            "kept",
            format!("{}, {}", presence.words(), human_bytes(presence.bytes)),
        ),
        (
            "made",
            format!(
                "{} ago",
                human_duration(now().saturating_sub(summary.created))
            ),
        ),
        (
            "last used",
            format!("{} ago", human_duration(now().saturating_sub(summary.used))),
        ),
        (
            "expires",
            match summary.time_to_live {
                _ if summary.pinned => "never: it is pinned".to_owned(),
                None => "never".to_owned(),
                Some(life) => format!("{} after its last use", human_duration(life)),
            },
        ),
    ];
    if !summary.methods.is_empty() {
        rows.push(("approximate", summary.methods.clone()));
    }
    let quoted = |text: Option<String>, ids: &[u32]| match text {
        Some(text) => format!("{text:?}"),
        None => format!("ids {ids:?} (--model shows the text)"),
    };
    rows.push(("begins", quoted(first, begins)));
    if !ends.is_empty() {
        rows.push(("ends", quoted(last, ends)));
    }
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .map(|(name, value)| vec![name.to_owned(), value])
        .collect();
    output::print(&output::table(&rows, &[]))
}

/// The first tokens, and the last ones beyond them.
fn ends(tokens: &[u32]) -> (&[u32], &[u32]) {
    let first = tokens.len().min(SHOWN);
    let last = tokens.len().saturating_sub(SHOWN).max(first);
    (&tokens[..first], &tokens[last..])
}

/// The tokenizer of the model that made a context, where it can be had.
///
/// # Errors
/// When a model was named that is another one.
fn tokenizer(record: &Record, args: &ModelArgs) -> Result<Option<Tokenizer>, Failure> {
    let source = args.source()?;
    let options = EngineOptions {
        model: source.clone(),
        ..EngineOptions::default()
    };
    let (about, _) = inspect(&options)?;
    if about.name == record.summary.model {
        return Ok(Some(open_tokenizer(&source)?));
    }
    if source == ModelSource::Embedded {
        return Ok(None);
    }
    Err(Failure::wrong(format!(
        "context {} was made by {}, not by {}: its token ids mean other text there",
        record.summary.id, record.summary.model, about.name
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginning_and_end_do_not_overlap() {
        let tokens: Vec<u32> = (0..100).collect();
        assert_eq!(ends(&tokens[..10]), (&tokens[..10], &[][..]));
        let (first, last) = ends(&tokens);
        assert_eq!((first.len(), last), (64, &tokens[64..]));
        let many: Vec<u32> = (0..1000).collect();
        assert_eq!(ends(&many).1, &many[936..]);
    }
}
