//! `longview contexts save`, `append`, `cut` and `truncate`: contexts by name that were made from a text.

use std::path::Path;
use std::time::Instant;

use longview::records::{Listed, Record, title_of};
use longview::{EngineOptions, Lookup, Specials};
use serde_json::{Value, json};

use super::line;
use crate::args::{
    AppendArgs, CutArgs, EngineArgs, Format, MethodArgs, SaveArgs, StoreArgs, TruncateArgs,
};
use crate::commands::read_text;
use crate::commands::run::continuation;
use crate::documents::Documents;
use crate::failure::Failure;
use crate::output;
use crate::saved::{Entry, Kind, document_pieces, failure};
use crate::session::{Session, refused};
use crate::taken_over::TakenOver;

/// Reads documents or a text and keeps them under a name, or names the last conversation.
pub(super) fn save(args: &SaveArgs, store: &StoreArgs, format: Format) -> Result<(), Failure> {
    let text = given(
        args.text.prompt.as_deref(),
        args.text.prompt_file.as_deref(),
    )?;
    if text.is_none() && args.file.is_empty() {
        return name_conversation(&args.label, store, format);
    }
    let documents = match &text {
        None => Some(Documents::read(&args.file)?),
        Some(_) => None,
    };
    let mut work = Work::open(&args.engine, &args.methods, store)?;
    let session = &mut work.session;
    let (tokens, entry) = match (&documents, &text) {
        (Some(documents), _) => {
            let prompt = session.document_prompt(documents, args.date)?;
            let entry = Entry {
                title: documents.title(),
                pieces: document_pieces(prompt.now),
                ..Entry::default()
            };
            (prompt.shared, entry)
        }
        (None, text) => {
            let text = text.as_deref().unwrap_or_default();
            session.engine.check_text(text)?;
            let side = session.engine.text();
            let ids = side
                .tokenizer()
                .encode(text, specials(args.text.special_tokens))?;
            let entry = Entry {
                title: title_of(text),
                ..Entry::default()
            };
            (side.with_prefix(ids), entry)
        }
    };
    let entry = Entry {
        label: Some(args.label.clone()),
        ..entry
    };
    work.read(&tokens, entry, format)
}

/// Reads more text after a saved one.
pub(super) fn append(args: &AppendArgs, store: &StoreArgs, format: Format) -> Result<(), Failure> {
    let more = given(args.prompt.as_deref(), args.prompt_file.as_deref())?.unwrap_or_default();
    let mut work = Work::open(&args.engine, &args.methods, store)?;
    let record = work.records()?.find(&args.context)?;
    Kind::Text.check(&args.context, &record)?;
    work.session.engine.check_text(&more)?;
    let side = work.session.engine.text();
    let more = continuation(side, &more, specials(args.special_tokens))?;
    let tokens = [&record.tokens[..], &more].concat();
    let entry = Entry {
        title: record.summary.title.clone(),
        ..Entry::default()
    };
    work.loaded = Some(record);
    work.read(&tokens, entry, format)
}

/// Takes a span out of a saved text. What follows is read again, for it was read after the span.
pub(super) fn cut(args: &CutArgs, store: &StoreArgs, format: Format) -> Result<(), Failure> {
    let mut work = Work::open(&args.engine, &args.methods, store)?;
    let record = work.records()?.find(&args.context)?;
    Kind::Text.check(&args.context, &record)?;
    let (first, end) = (args.span.start, args.span.end);
    let held = record.tokens.len();
    let prefix = work.session.engine.text().tokenizer().prefix_ids();
    let fixed = match record.tokens.starts_with(prefix) {
        true => prefix.len(),
        false => 0,
    };
    if first < fixed || end > held || end - first == held {
        return Err(Failure::wrong(format!(
            "context {:?} has {held} tokens, of which {} may be cut: give a span within \
             {fixed}..{held}{}",
            args.context,
            held - fixed,
            match fixed {
                0 => ", but not all of it",
                _ => " (what stands before is how the model's texts begin)",
            }
        )));
    }
    let tokens = [&record.tokens[..first], &record.tokens[end..]].concat();
    let entry = Entry {
        title: record.summary.title.clone(),
        ..Entry::default()
    };
    work.loaded = Some(record);
    work.read(&tokens, entry, format)
}

/// Forgets the end of a saved text. Loads no weights.
pub(super) fn truncate(
    args: &TruncateArgs,
    store: &StoreArgs,
    format: Format,
) -> Result<(), Failure> {
    let methods = args.methods.methods()?;
    let mut notices = Vec::new();
    let kept = store.options(None, &mut notices)?;
    let Some(records) = kept.records else {
        return Err(nothing_kept(notices.pop()));
    };
    let mut record = records.find(&args.context).map_err(failure)?;
    Kind::Text.check(&args.context, &record)?;
    if record.left().is_some() {
        return Err(Failure::wrong(format!(
            "context {:?} is what {} has left of a text, of which no part can be told apart: save the shorter \
             text anew with `longview contexts save`",
            args.context, record.summary.methods
        )));
    }
    let held = record.tokens.len();
    if args.tokens == 0 || args.tokens > held {
        return Err(Failure::wrong(format!(
            "context {:?} has {held} tokens: give a number from 1 to {held}, or remove it with \
             `longview contexts rm`",
            args.context
        )));
    }
    let options = EngineOptions {
        store: kept.options,
        ..args.engine.options(&methods)?
    };
    let lookup = Lookup::open(&options).map_err(|error| refused(&options.model, error))?;
    let Some(lookup) = lookup else {
        return Err(nothing_kept(None));
    };
    // It may have been planned for more than it holds, with the rotary frequencies of long contexts.
    let longest = lookup.describe().context_length.max(held);
    let mut planned = held;
    if record.summary.check_origin(lookup.origin(held)?).is_err() {
        planned = longest;
        record
            .summary
            .check_origin(lookup.origin(longest)?)
            .map_err(failure)?;
    }
    record.tokens.truncate(args.tokens);
    let kept = lookup.find(&record.tokens, planned)?;
    record.keys = kept.keys();
    record.summary.bytes = kept.kv_bytes();
    records.save(&record).map_err(failure)?;
    let record = records.load(&record.summary.id).map_err(failure)?;
    match format {
        Format::Json => output::print_json(&json!({
            "id": record.summary.id,
            "label": record.summary.label,
            "tokens": record.summary.tokens,
            "removed_tokens": held - args.tokens,
            "notices": notices,
        })),
        Format::Text => output::print(&format!("{}\n", line(&record.summary))),
    }
}

/// Gives the conversation that was used last a name.
fn name_conversation(label: &str, store: &StoreArgs, format: Format) -> Result<(), Failure> {
    let folder = store.open_folder()?;
    let records = store.records(&folder);
    let open = records.list().map_err(failure)?.into_iter();
    let last = open
        .filter_map(|listed| match listed {
            Listed::Open(summary) => records.load(&summary.id).ok(),
            Listed::Locked { .. } => None,
        })
        .find(|record| Kind::of(record) == Kind::Conversation);
    let Some(mut record) = last else {
        return Err(Failure::wrong(
            "there is no conversation to name; give --file, --prompt or --prompt-file to save a text",
        ));
    };
    record.summary.label = Some(label.to_owned());
    // Named ones stay until someone removes them.
    record.summary.time_to_live = None;
    records.save(&record).map_err(failure)?;
    match format {
        Format::Json => output::print_json(&json!({
            "id": record.summary.id,
            "label": label,
            "title": record.summary.title,
            "tokens": record.summary.tokens,
        })),
        Format::Text => output::print(&format!("{}\n", line(&record.summary))),
    }
}

/// An open model and a text to read.
struct Work {
    session: Session,
    /// The context that is gone on with.
    loaded: Option<Record>,
}

impl Work {
    fn open(engine: &EngineArgs, methods: &MethodArgs, store: &StoreArgs) -> Result<Work, Failure> {
        let session = Session::open_keeping(engine, methods, store)?;
        session.refuse_acting("contexts save and append")?;
        Ok(Work {
            session,
            loaded: None,
        })
    }

    fn records(&self) -> Result<&crate::saved::Saved, Failure> {
        let saved = self.session.saved.as_ref();
        saved.ok_or_else(|| nothing_kept(self.session.notices.first().cloned()))
    }

    /// Reads what is not known of `tokens`, and saves them in place of the context that is gone on
    /// with, of the one that has the label and is the same, or as a new one.
    fn read(mut self, tokens: &[u32], entry: Entry, format: Format) -> Result<(), Failure> {
        // Before the work, not after it.
        self.records()?;
        let session = &mut self.session;
        let start = Instant::now();
        let mut context = session.engine.new_context(tokens.len())?;
        let before = match self.loaded.take() {
            Some(record) => {
                session.check_saved(&record, &context)?;
                Some(record)
            }
            None => session.claim(&context, entry.label.as_deref(), |record| {
                record.tokens == tokens
            })?,
        };
        let found = TakenOver::take_over(&mut context, tokens)?;
        session.tell_of_disk(tokens.len());
        session.read(&mut context, tokens)?;
        let seconds = start.elapsed().as_secs_f64();
        session.hear_store();
        let id = before.as_ref().map(|record| record.summary.id.as_str());
        let saved = session
            .saved
            .as_ref()
            .map(|saved| saved.save(&context, id, entry));
        let id = saved.transpose()?.flatten();
        let records = self.records()?;
        let record = records.find(&id.unwrap_or_default())?;
        let (reused, all) = (found.tokens(), tokens.len());
        match format {
            Format::Json => {
                let mut value = self.session.summary();
                let fields = json!({
                    "id": record.summary.id,
                    "label": record.summary.label,
                    "title": record.summary.title,
                    "tokens": all,
                    "reused_tokens": reused,
                    "reuse": found,
                    "computed_tokens": all - reused,
                    "seconds": seconds,
                    "kv_bytes": context.kv_bytes(),
                });
                if let Value::Object(fields) = fields {
                    value.extend(fields);
                }
                output::print_json(&Value::Object(value))
            }
            Format::Text => {
                for notice in self
                    .session
                    .notices
                    .iter()
                    .cloned()
                    .chain(found.sentence(all))
                {
                    output::tell(&notice);
                }
                output::print(&format!("{}\n", line(&record.summary)))
            }
        }
    }
}

/// The text that was given, if any; it must not be empty.
fn given(prompt: Option<&str>, file: Option<&Path>) -> Result<Option<String>, Failure> {
    let text = match (prompt, file) {
        (Some(text), _) => text.to_owned(),
        (None, Some(file)) => read_text(file)?,
        (None, None) => return Ok(None),
    };
    if text.is_empty() {
        return Err(Failure::wrong(
            "the text is empty; there is nothing to read",
        ));
    }
    Ok(Some(text))
}

fn specials(parse: bool) -> Specials {
    match parse {
        true => Specials::Parse,
        false => Specials::AsText,
    }
}

fn nothing_kept(notice: Option<String>) -> Failure {
    Failure::wrong(notice.unwrap_or_else(|| {
        "nothing is kept from one run to the next (see --cache-dir and --cache-max)".to_owned()
    }))
}
