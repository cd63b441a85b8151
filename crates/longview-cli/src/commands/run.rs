//! `longview run`: continue a text.

use std::time::Instant;

use longview::records::{Record, title_of};
use longview::{Context, Specials, TextSide};
use serde_json::{Map, Value};

use super::read_text;
use crate::answer::{Answer, Edges, Request};
use crate::args::{Fallback, Format, RunArgs};
use crate::failure::Failure;
use crate::output;
use crate::prompt::shown;
use crate::saved::{Entry, Kind};
use crate::session::Session;
use crate::taken_over::TakenOver;

/// Generates what follows a prompt.
pub(crate) fn run(args: &RunArgs, format: Format) -> Result<(), Failure> {
    // Refused before the model is loaded.
    args.generation.decode(Fallback::Greedy)?;
    let prompt = match (&args.prompt, &args.prompt_file) {
        (Some(prompt), _) => prompt.clone(),
        (None, Some(file)) => read_text(file)?,
        (None, None) => String::new(),
    };
    if prompt.is_empty() && args.load.is_none() {
        return Err(Failure::wrong(
            "the prompt is empty; give some text to continue",
        ));
    }
    let mut session = if args.print_prompt {
        Session::open(&args.engine, &args.methods)?
    } else {
        Session::open_keeping(&args.engine, &args.methods, &args.store)?
    };
    session.refuse_shift("run")?;
    let loaded = args
        .load
        .as_deref()
        .map(|name| session.find_saved(name))
        .transpose()?;
    if let (Some(name), Some(record)) = (&args.load, &loaded) {
        Kind::Text.check(name, record)?;
        session.adopt(record, args.methods.keep.as_deref())?;
    }
    let recommended = session.recommended(&args.engine);
    session.settle_decode(&args.generation, Fallback::Model(recommended.as_ref()))?;
    let specials = if args.special_tokens {
        Specials::Parse
    } else {
        Specials::AsText
    };
    session.engine.check_text(&prompt)?;
    let text = session.engine.text();
    let tokens = match &loaded {
        None => text.with_prefix(text.tokenizer().encode(&prompt, specials)?),
        Some(record) => [&record.tokens[..], &continuation(text, &prompt, specials)?].concat(),
    };
    if args.print_prompt {
        return print_prompt(&session, &tokens, format);
    }
    let planned = session.planned_tokens(tokens.len(), &args.generation)?;
    let start = Instant::now();
    let mut context = session.new_context(tokens.len(), planned)?;
    let left = loaded.as_ref();
    let left = left.map(|record| TakenOver::restored(&mut context, record));
    let left = left.transpose()?.flatten();
    if let Some(record) = &loaded {
        session.check_saved(record, &context)?;
    }
    // The text loaded goes on under its name; and what this command wrote before it may write again.
    let longest = tokens.len().saturating_add(args.generation.max_tokens);
    let goes_on = |record: &Record| match &loaded {
        Some(loaded) => loaded.summary.id == record.summary.id,
        None => {
            Kind::of(record) == Kind::Text
                && record.tokens.len() <= longest
                && record.tokens.starts_with(&tokens)
        }
    };
    let before = session.claim(&context, args.label.as_deref(), goes_on)?;
    // The last token's logits are wanted, so it is always computed.
    let all_but_last = tokens.len().saturating_sub(1);
    let reuse = match left {
        Some(kept) if context.len() <= all_but_last => kept,
        Some(kept) => {
            let last = context.len() - all_but_last;
            back_by_one(&mut context)?;
            kept.without(last)
        }
        None => TakenOver::take_over(&mut context, session.usable(&tokens[..all_but_last]))?,
    };
    session.notices.extend(reuse.sentence(tokens.len()));
    session.tell_of_disk(planned);
    session.say_notices(format);
    let request = Request {
        tail: &tokens[context.len()..],
        reuse,
        seconds_before: start.elapsed().as_secs_f64(),
        read_bytes_before: 0,
        again_before: 0,
        edges: Edges::Keep,
        prune: None,
    };
    let answer = Answer::generate(&session, &mut context, &request, &args.generation, format)?;
    if let Some(label) = &args.label {
        // A text of its own is found again by its tokens, and takes no other's place.
        let before = before.filter(|_| loaded.is_some());
        let id = before.as_ref().map(|record| record.summary.id.as_str());
        let entry = Entry {
            title: loaded.map_or_else(|| title_of(&prompt), |record| record.summary.title),
            label: Some(label.clone()),
            ..Entry::default()
        };
        session.save(&context, id, entry);
    }
    finish(&mut session, answer, args, format)
}

/// Takes the last token of what a keep method has left of a text back, to read it again.
fn back_by_one(context: &mut Context) -> Result<(), Failure> {
    let decides_by_all = context
        .keep_method()
        .is_some_and(|keep| keep.score.needs().every_token());
    let gone = match decides_by_all {
        // What it was told counts the last token, and cannot be taken back.
        true => Err(()),
        false => context.truncate(context.len() - 1).map_err(|_| ()),
    };
    gone.map_err(|()| {
        Failure::wrong(
            "what is left of this text goes on with more of it only: give some text with --prompt",
        )
    })
}

/// The tokens of a text that continues another.
pub(super) fn continuation(
    text: &TextSide,
    more: &str,
    specials: Specials,
) -> Result<Vec<u32>, Failure> {
    // The letter stands for what comes before.
    let parts = [("x", Specials::AsText), (more, specials)];
    Ok(text.tokenizer().encode_parts(&parts)?.swap_remove(1))
}

fn finish(
    session: &mut Session,
    answer: Answer,
    args: &RunArgs,
    format: Format,
) -> Result<(), Failure> {
    // A continuation ends somewhere: only the reasons nobody asked for are worth a word.
    let cancelled = answer.is_cancelled();
    if answer.finish != "length" {
        let remark = answer.remark(session, &args.generation);
        session.notices.extend(remark);
    }
    session.notices.extend(answer.dropped(session));
    session.hear_store();
    match format {
        Format::Json => output::print_json(&object(session, &answer)?)?,
        Format::Text => super::ask::show_notices(session, &answer),
    }
    if cancelled {
        Err(Failure::Stopped)
    } else {
        Ok(())
    }
}

fn object(session: &Session, answer: &Answer) -> Result<Map<String, Value>, Failure> {
    let mut fields = super::ask::fields(answer)?;
    fields.extend(session.summary());
    Ok(fields)
}

/// Shows what the model would read, special tokens by name.
pub(crate) fn print_prompt(
    session: &Session,
    tokens: &[u32],
    format: Format,
) -> Result<(), Failure> {
    let text = shown(session.engine.tokenizer(), tokens)?;
    match format {
        Format::Json => output::print_json(&serde_json::json!({
            "prompt": text,
            "prompt_tokens": tokens.len(),
            "prompt_ids": tokens,
            "notices": session.notices,
        })),
        Format::Text => {
            for notice in &session.notices {
                output::tell(notice);
            }
            output::print(&format!("{text}\n"))
        }
    }
}
