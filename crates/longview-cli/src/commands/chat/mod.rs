//! `longview chat`: a conversation.

mod conversation;

use std::io::{self, IsTerminal};

use serde_json::{Map, Value, json};

use self::conversation::Conversation;
use crate::args::{ChatArgs, Fallback, Format};
use crate::failure::Failure;
use crate::input;
use crate::interrupt;
use crate::output::{self, note};
use crate::prompt::template_vars;
use crate::session::Session;

/// Talks with a person, or with the lines of standard input.
pub(crate) fn run(args: &ChatArgs, format: Format) -> Result<(), Failure> {
    args.generation.decode(Fallback::Greedy)?;
    let mut session = Session::open_keeping(&args.engine, &args.methods, &args.store)?;
    let recommended = session.recommended(&args.engine);
    session.settle_decode(&args.generation, Fallback::Model(recommended.as_ref()))?;
    let vars = template_vars(session.engine.text(), &mut session.notices);
    let mut conversation = Conversation::open(args, &mut session, vars)?;
    let person = io::stdin().is_terminal();
    if person {
        note(
            "talk with the model; /undo takes the last message back, /reset begins anew, /exit or \
             Ctrl-D ends",
        );
        session
            .notices
            .drain(..)
            .for_each(|notice| note(format!("note: {notice}")));
    }
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
                    Some(said) => format!("taken back: {}", title(&said)),
                    None => "there is nothing to take back".to_owned(),
                });
                conversation.save(args, &mut session);
                continue;
            }
            said => {
                let mut answer = match conversation.say(said, args, &mut session, format) {
                    // A person can say something shorter, or begin anew.
                    Err(Failure::Wrong(error) | Failure::Failed(error)) if person => {
                        note(format!("{error:#}; the message was not answered"));
                        interrupt::forget();
                        continue;
                    }
                    answer => answer?,
                };
                answer.question = Some(said.to_owned());
                conversation.save(args, &mut session);
                let remark = answer.remark(&session, &args.generation);
                session.notices.extend(remark);
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

/// The beginning of what was said, to tell it from other messages.
fn title(said: &str) -> String {
    said.chars().take(60).collect()
}

fn next_line(person: bool) -> Result<Option<String>, Failure> {
    if person {
        // The prompt is for the person alone: standard output holds answers.
        let _ = io::Write::write_all(&mut io::stderr(), b"> ");
    }
    input::line()
}
