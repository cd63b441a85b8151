//! `longview run`: continue a text.

use longview::{ShowSpecials, Specials};
use serde_json::{Map, Value};

use super::read_text;
use crate::answer::{Answer, Edges, Request};
use crate::args::{Fallback, Format, RunArgs};
use crate::failure::Failure;
use crate::output;
use crate::session::Session;

/// Generates what follows a prompt.
pub(crate) fn run(args: &RunArgs, format: Format) -> Result<(), Failure> {
    // Refused before the model is loaded.
    args.generation.decode(Fallback::Greedy)?;
    let prompt = match (&args.prompt, &args.prompt_file) {
        (Some(prompt), _) => prompt.clone(),
        (None, Some(file)) => read_text(file)?,
        (None, None) => String::new(),
    };
    if prompt.is_empty() {
        return Err(Failure::wrong(
            "the prompt is empty; give some text to continue",
        ));
    }
    let mut session = Session::open(&args.engine, &args.methods)?;
    let recommended = session.recommended(&args.engine);
    session.settle_decode(&args.generation, Fallback::Model(recommended.as_ref()))?;
    let specials = if args.special_tokens {
        Specials::Parse
    } else {
        Specials::AsText
    };
    session.engine.check_text(prompt.len())?;
    let tokens = session.with_prefix(session.engine.tokenizer().encode(&prompt, specials)?);
    if args.print_prompt {
        return print_prompt(&session, &tokens, format);
    }
    let planned = session.planned_tokens(tokens.len(), &args.generation)?;
    let mut context = session.engine.new_context(planned)?;
    let request = Request {
        tail: &tokens,
        reused: 0,
        seconds_before: 0.0,
        edges: Edges::Keep,
    };
    let answer = Answer::generate(&session, &mut context, &request, &args.generation, format)?;
    finish(&mut session, answer, args, format)
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
        session.notices.extend(answer.remark(&args.generation));
    }
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
    let tokenizer = session.engine.tokenizer();
    let mut stream = tokenizer.stream(longview::text::Start::Continuation, ShowSpecials::Show);
    let mut text = String::new();
    for &id in tokens {
        text.push_str(&stream.push(id)?);
    }
    text.push_str(&stream.finish());
    match format {
        Format::Json => output::print_json(&serde_json::json!({
            "prompt": text,
            "prompt_tokens": tokens.len(),
            "prompt_ids": tokens,
            "notices": session.notices,
        })),
        Format::Text => {
            for notice in &session.notices {
                output::note(format!("note: {notice}"));
            }
            output::print(&format!("{text}\n"))
        }
    }
}
