//! `longview chat`: a conversation.

use std::io::{self, BufRead, IsTerminal};

use longview::text::{Message, TemplateVars};
use longview::{Context, FinishReason, Specials};
use serde_json::{Map, Value, json};

use crate::answer::{Answer, Edges, Request};
use crate::args::{ChatArgs, Fallback, Format};
use crate::failure::Failure;
use crate::interrupt;
use crate::output::{self, note};
use crate::session::Session;

/// Talks with a person, or with the lines of standard input.
pub(crate) fn run(args: &ChatArgs, format: Format) -> Result<(), Failure> {
    args.generation.decode(Fallback::Greedy)?;
    let mut session = Session::open(&args.engine, &args.methods)?;
    let recommended = session.recommended(&args.engine);
    session.settle_decode(&args.generation, Fallback::Model(recommended.as_ref()))?;
    let vars = session.template_vars();
    let mut conversation = Conversation::new(args, &session, vars)?;
    let person = io::stdin().is_terminal();
    if person {
        note("talk with the model; /reset begins anew, /exit or Ctrl-D ends");
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
                conversation = conversation.reset(args, &session)?;
                continue;
            }
            said => {
                let mut answer = match conversation.say(said, args, &mut session, format) {
                    // A person can say something shorter, or begin anew.
                    Err(Failure::Wrong(error)) if person => {
                        note(format!("{error:#}"));
                        continue;
                    }
                    answer => answer?,
                };
                answer.question = Some(said.to_owned());
                session.notices.extend(answer.remark(&args.generation));
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

/// The messages so far and the context that holds them.
struct Conversation {
    vars: TemplateVars,
    messages: Vec<Message>,
    context: Context,
    /// The text the context holds, as the template rendered it and the model continued it.
    held: String,
    /// The last token generated, if it is text: it is not in the context yet.
    pending: Option<u32>,
}

impl Conversation {
    fn new(
        args: &ChatArgs,
        session: &Session,
        vars: TemplateVars,
    ) -> Result<Conversation, Failure> {
        let system = args
            .system
            .as_ref()
            .map(|text| Message::new("system", text.as_str()));
        Ok(Conversation {
            vars,
            messages: system.into_iter().collect(),
            context: new_context(args, session)?,
            held: String::new(),
            pending: None,
        })
    }

    fn reset(self, args: &ChatArgs, session: &Session) -> Result<Conversation, Failure> {
        let system = self
            .messages
            .into_iter()
            .filter(|message| message.role == "system");
        Ok(Conversation {
            messages: system.collect(),
            context: new_context(args, session)?,
            held: String::new(),
            pending: None,
            ..self
        })
    }

    /// One turn: what was said, and the answer.
    fn say(
        &mut self,
        said: &str,
        args: &ChatArgs,
        session: &mut Session,
        format: Format,
    ) -> Result<Answer, Failure> {
        self.messages.push(Message::new("user", said));
        let text = session
            .engine
            .template()
            .render(&self.messages, &self.vars)?;
        let (tail, reused) = self.tail(&text, session)?;
        let limit = session.engine.model().blueprint().max_positions;
        let total = self.context.len() + tail.len();
        if total >= limit {
            self.messages.pop();
            return Err(Failure::wrong(format!(
                "the conversation has {total} tokens, but the model reads at most {limit}: begin \
                 anew with /reset, or use a model with a longer context (--model)"
            )));
        }
        let request = Request {
            tail: &tail,
            reused,
            seconds_before: 0.0,
            edges: Edges::Trim,
        };
        let answer = Answer::generate(
            session,
            &mut self.context,
            &request,
            &args.generation,
            format,
        )?;
        self.messages
            .push(Message::new("assistant", answer.answer.as_str()));
        self.remember(text, &answer);
        Ok(answer)
    }

    /// The tokens of `text` that the context does not hold, and how many it holds.
    ///
    /// What the model generated is kept as it is, token by token; only if the template shows
    /// earlier turns otherwise than they were generated, the text is tokenised anew from there.
    fn tail(&mut self, text: &str, session: &mut Session) -> Result<(Vec<u32>, usize), Failure> {
        let tokenizer = session.engine.tokenizer();
        let held = self.context.len();
        if let Some(new) = text.strip_prefix(self.held.as_str())
            && !self.held.is_empty()
        {
            let mut tail: Vec<u32> = self.pending.into_iter().collect();
            // The letter stands for what the context holds: the rest continues a text.
            let parts = [("x", Specials::AsText), (new, Specials::Parse)];
            tail.extend(&tokenizer.encode_parts(&parts)?[1]);
            if !tail.is_empty() {
                return Ok((tail, held));
            }
        }
        let tokens = session.with_prefix(tokenizer.encode(text, Specials::Parse)?);
        let common = session.engine.align(&mut self.context, &tokens)?;
        if common < held {
            session.notices.push(format!(
                "the chat template changed earlier turns: {} tokens are read again",
                held - common
            ));
        }
        Ok((tokens[common..].to_vec(), common))
    }

    fn remember(&mut self, text: String, answer: &Answer) {
        self.held.clear();
        self.pending = None;
        let Some(generated) = &answer.generated else {
            return;
        };
        match generated.finish {
            // The end token is part of what the template renders next.
            FinishReason::EndOfText => {}
            FinishReason::Length | FinishReason::ContextFull => {
                self.pending = generated.ids.last().copied();
            }
            // What was generated and what is shown differ: the next turn is aligned by tokens.
            FinishReason::Stop | FinishReason::Cancelled => return,
        }
        self.held = text + &generated.text;
    }
}

fn new_context(args: &ChatArgs, session: &Session) -> Result<Context, Failure> {
    let limit = session.engine.model().blueprint().max_positions;
    let planned = match args.generation.planned_tokens {
        Some(planned) if planned > limit => {
            return Err(Failure::wrong(format!(
                "--planned-tokens {planned} is more than the model's context of {limit} tokens"
            )));
        }
        Some(planned) => planned,
        // Room for a few turns; the context grows beyond it as long as memory allows.
        None => limit.min(8192),
    };
    Ok(session.engine.new_context(planned)?)
}

fn next_line(person: bool) -> Result<Option<String>, Failure> {
    if person {
        // The prompt is for the person alone: standard output holds answers.
        let _ = io::Write::write_all(&mut io::stderr(), b"> ");
    }
    let mut line = String::new();
    let read = interrupt::while_waiting(|| io::stdin().lock().read_line(&mut line));
    match read {
        Ok(0) => Ok(None),
        Ok(_) => Ok(Some(line)),
        Err(error) => Err(Failure::io("standard input", &error)),
    }
}
