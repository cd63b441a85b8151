//! `longview chat`: a conversation.

mod conversation;
mod finished;

use std::io::{self, IsTerminal};

use longview::records::title_of;
use longview::{Prune, Tail};
use serde_json::{Map, Value, json};

use self::conversation::Conversation;
use crate::answer::PrunedCounts;
use crate::args::{ChatArgs, Fallback, Format};
use crate::failure::Failure;
use crate::input;
use crate::interrupt;
use crate::output::{self, note};
use crate::prompt::template_notice;
use crate::session::Session;

/// What a line with a tool's result begins with.
const TOOL: &str = "/tool ";

/// How work leaves when it is asked to and no method says how.
const AT_ONCE: Prune = Prune {
    last: 0,
    tail: Tail::Anew,
};

/// Talks with a person, or with the lines of standard input.
pub(crate) fn run(args: &ChatArgs, format: Format) -> Result<(), Failure> {
    args.generation.decode(Fallback::Greedy)?;
    let mut session = Session::open_conversation(&args.engine, &args.methods, &args.store)?;
    let recommended = session.recommended(&args.engine);
    session.settle_decode(&args.generation, Fallback::Model(recommended.as_ref()))?;
    let plain = template_notice(session.engine.text());
    session.notices.extend(plain);
    let mut conversation = Conversation::open(args, &mut session)?;
    let person = io::stdin().is_terminal();
    if person {
        note(
            "talk with the model; /tool TEXT gives it the result of a tool, /prune lets used results go, \
             /undo takes the last message back, /reset begins anew, /exit or Ctrl-D ends",
        );
    }
    session.say_notices(format);
    let mut answers = Vec::new();
    let mut stopped = false;
    while let Some(line) = next_line(person)? {
        match line.trim() {
            "" => continue,
            "/exit" | "/quit" => break,
            "/reset" => {
                conversation = conversation.reset(args, &mut session)?;
                continue;
            }
            "/undo" => {
                note(match conversation.undo() {
                    Some(said) => format!("taken back: {}", title_of(&said)),
                    None => "there is nothing to take back".to_owned(),
                });
                conversation.save(args, &mut session);
                continue;
            }
            "/prune" => {
                let prune = session.methods.prune().unwrap_or(AT_ONCE);
                let pruned = conversation.prune(Prune { last: 0, ..prune }, args, &mut session)?;
                note(pruned.unwrap_or_else(|| "no work is finished".to_owned()));
                conversation.save(args, &mut session);
                continue;
            }
            line => {
                let (role, said) = match line.strip_prefix(TOOL) {
                    Some(result) => ("tool", result.trim()),
                    None => ("user", line),
                };
                let mut answer = match conversation.say((role, said), args, &mut session, format) {
                    // A person can say something shorter, or begin anew.
                    Err(Failure::Wrong(error) | Failure::Failed(error)) if person => {
                        note(format!("{error:#}; the message was not answered"));
                        interrupt::forget();
                        continue;
                    }
                    answer => answer?,
                };
                answer.question = Some(said.to_owned());
                let remark = answer.remark(&session, &args.generation);
                session.notices.extend(remark);
                if let Some(prune) = session.methods.prune() {
                    let on_the_way = answer.pruned;
                    let notice = on_the_way
                        .map(|counts| format!("while it was written, {}", counts.sentence()));
                    session.notices.extend(notice);
                    let pruned = conversation.prune(prune, args, &mut session)?;
                    session.notices.extend(pruned);
                    let after = conversation.take_pruned();
                    answer.pruned = on_the_way
                        .into_iter()
                        .chain(after)
                        .reduce(PrunedCounts::and);
                }
                conversation.save(args, &mut session);
                session.notices.extend(answer.dropped(&session));
                session.hear_store();
                stopped = answer.is_cancelled() && !person;
                if format == Format::Text {
                    super::ask::show_notices(&session, &answer);
                    session.notices.clear();
                }
                answers.push(super::ask::fields(&answer)?);
            }
        }
        if stopped {
            break;
        }
        interrupt::forget();
    }
    if format == Format::Json {
        let mut object = Map::new();
        object.insert("answers".to_owned(), json!(answers));
        object.extend(session.summary());
        output::print_json(&Value::Object(object))?;
    }
    if stopped {
        Err(Failure::Stopped)
    } else {
        Ok(())
    }
}

fn next_line(person: bool) -> Result<Option<String>, Failure> {
    if person {
        // The prompt is for the person alone: standard output holds answers.
        let _ = io::Write::write_all(&mut io::stderr(), b"> ");
    }
    input::line()
}
