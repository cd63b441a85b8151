//! The messages of a conversation and the context that holds them.

use std::time::Instant;

use longview::records::{Record, title_of};
use longview::text::{GenerationPrompt, Message, Moment, TemplateVars};
use longview::{Context, EngineError, FinishReason, Prune, Reuse, Specials};
use serde::{Deserialize, Serialize};

use super::finished;
use crate::answer::{Answer, Edges, PrunedCounts, Request};
use crate::args::{ChatArgs, Format};
use crate::date;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::saved::{Entry, Kind};
use crate::session::{Session, check_prompt};
use crate::taken_over::TakenOver;

/// The messages so far and the context that holds them.
pub(super) struct Conversation {
    vars: TemplateVars,
    messages: Vec<Message>,
    context: Context,
    /// The text the context holds, where it is known.
    held: Option<Held>,
    /// Why it is not known, in words for the user.
    unknown: &'static str,
    /// Its record, once it is saved.
    id: Option<String>,
    /// What left it last, until it is asked for.
    pruned: Option<PrunedCounts>,
}

/// What a record holds of a conversation beside its tokens.
#[derive(Deserialize, Serialize)]
struct Script {
    messages: Vec<Message>,
    held: Option<Held>,
    /// The date that the chat template may write; not known of conversations of earlier versions.
    #[serde(default)]
    now: Option<Moment>,
}

/// How a context went back to what it has in common with a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Back {
    /// It could.
    Here,
    /// It could not, and another took its place.
    Anew,
}

/// The text a context holds.
#[derive(Clone, Deserialize, Serialize)]
struct Held {
    /// As the template rendered it.
    prompt: String,
    /// As the model continued it.
    answer: String,
    /// The last token generated, if it is text: it is not in the context yet.
    pending: Option<u32>,
}

impl Held {
    /// What `text` has beyond it. Templates may show an answer without the spaces around it: what
    /// the model generated stays as it is then.
    fn continued<'a>(&self, text: &'a str) -> Option<&'a str> {
        let rest = text.strip_prefix(self.prompt.as_str())?;
        let answer = self.answer.as_str();
        [
            answer,
            answer.trim_end(),
            answer.trim_start(),
            answer.trim(),
        ]
        .into_iter()
        .find_map(|shown| rest.strip_prefix(shown))
    }
}

impl Conversation {
    fn new(args: &ChatArgs, session: &mut Session) -> Result<Conversation, Failure> {
        let system = args
            .system
            .as_ref()
            .map(|text| Message::new("system", text.as_str()));
        Ok(Conversation {
            vars: session.engine.text().template_vars(begun(args)),
            messages: system.into_iter().collect(),
            context: new_context(args, session)?,
            held: None,
            unknown: "",
            id: None,
            pruned: None,
        })
    }

    /// The conversation that is to be gone on with, or a new one.
    pub(super) fn open(args: &ChatArgs, session: &mut Session) -> Result<Conversation, Failure> {
        let Some(saved) = &session.saved else {
            return match args.label.as_ref().or(args.load.as_ref()) {
                Some(name) => Err(Failure::wrong(format!(
                    "no conversation can be called {name:?}: nothing is kept (see --cache-dir and \
                     --cache-max)"
                ))),
                None => Conversation::new(args, session),
            };
        };
        let known = match &args.label {
            Some(label) if saved.labelled(label)?.is_some() => Some(label),
            _ => None,
        };
        let name = match (&args.load, known) {
            (Some(load), Some(label)) if load != label => {
                return Err(Failure::wrong(format!(
                    "there is a context labelled {label:?} already: give --label another name for what \
                     begins with {load:?}"
                )));
            }
            (load, known) => load.as_ref().or(known),
        };
        let Some(name) = name else {
            return Conversation::new(args, session);
        };
        let record = saved.open(name, &session.origins())?;
        Kind::Conversation.check(name, &record)?;
        let script: Script = serde_json::from_slice(record.said()).map_err(|error| {
            Failure::failed(format!(
                "context {name:?} is not as it was written: {error}"
            ))
        })?;
        // Another method has all of it read anew: what was said is known.
        let keep = session.methods.keep().map(|keep| &keep.text);
        if args.methods.keep.is_none() || keep == Some(&record.summary.methods) {
            session.adopt(&record, args.methods.keep.as_deref())?;
        }
        let mut conversation = Conversation::new(args, session)?;
        if conversation.context.origin().is_none() {
            return Ok(conversation);
        }
        let given = [
            ("--system", args.system.is_some()),
            ("--date", args.date.is_some()),
        ];
        for (flag, _) in given.iter().filter(|(_, given)| *given) {
            session.notices.push(format!(
                "{flag} is not used: the conversation {name:?} goes on as it began"
            ));
        }
        conversation.vars.now = script.now.unwrap_or(conversation.vars.now);
        if let Some(found) = conversation.find(name, &record, session)? {
            session.notices.extend(found.sentence(record.tokens.len()));
            conversation.held = script.held;
            conversation.unknown = "the last answer ended in a way that is not saved";
        }
        conversation.messages = script.messages;
        conversation.id = known.map(|_| record.summary.id);
        Ok(conversation)
    }

    /// Makes the context hold what `record`, called `name`, has of the conversation; `None` where that is
    /// read anew.
    fn find(
        &mut self,
        name: &str,
        record: &Record,
        session: &mut Session,
    ) -> Result<Option<TakenOver>, Failure> {
        let methods = &record.summary.methods;
        if methods.is_empty() {
            let usable = session.usable(&record.tokens);
            let found = TakenOver::take_over(&mut self.context, usable)?;
            session.read(&mut self.context, &record.tokens)?;
            return Ok(Some(found));
        }
        let how = match session.methods.keep() {
            Some(keep) if keep.text == *methods => {
                match TakenOver::restored(&mut self.context, record) {
                    Ok(Some(found)) => return Ok(Some(found)),
                    Ok(None) => ", as before".to_owned(),
                    Err(failure) => format!(": {}", failure.message().unwrap_or_default()),
                }
            }
            Some(keep) => format!(", under {}", keep.text),
            None => ", exactly".to_owned(),
        };
        session.notices.push(format!(
            "the conversation {name:?} was approximate ({methods}) and is read anew{how}"
        ));
        Ok(None)
    }

    /// Saves it, under its label where it has one.
    pub(super) fn save(&mut self, args: &ChatArgs, session: &mut Session) {
        let script = Script {
            messages: self.messages.clone(),
            held: self.held.clone(),
            now: Some(self.vars.now),
        };
        let said = self.messages.iter().find(|message| message.role == "user");
        let title = said.and_then(|message| message.content.as_ref()?.as_str());
        let entry = Entry {
            title: title_of(title.unwrap_or_default()),
            label: args.label.clone(),
            pieces: serde_json::to_vec(&script).expect("messages are text"),
            ..Entry::default()
        };
        let id = session.save(&self.context, self.id.as_deref(), entry);
        self.id = id.or(self.id.take());
    }

    /// Begins anew.
    pub(super) fn reset(
        self,
        args: &ChatArgs,
        session: &mut Session,
    ) -> Result<Conversation, Failure> {
        session.goes_on = false;
        // The old one stays, without the name.
        if let (Some(saved), Some(id), Some(_)) = (&session.saved, &self.id, &args.label) {
            saved.unlabel(id)?;
        }
        let system = self
            .messages
            .into_iter()
            .filter(|message| message.role == "system");
        Ok(Conversation {
            messages: system.collect(),
            ..Conversation::new(args, session)?
        })
    }

    /// Takes the last message and its answer back. Returns what had been said.
    pub(super) fn undo(&mut self) -> Option<String> {
        let said = |message: &Message| ["user", "tool"].contains(&message.role.as_str());
        let last = self.messages.iter().rposition(said)?;
        let gone = self.messages.split_off(last);
        self.held = None;
        self.unknown = "the last message was taken back";
        let text = gone.first()?.content.as_ref()?.as_str();
        Some(text.unwrap_or_default().to_owned())
    }

    /// Lets finished work leave: the results of tools that an answer has followed, and what answers
    /// report as finished, all but the pieces that were finished last. What is left is read as far as
    /// the context does not hold it. Returns a sentence about it, or nothing where nothing left.
    pub(super) fn prune(
        &mut self,
        prune: Prune,
        args: &ChatArgs,
        session: &mut Session,
    ) -> Result<Option<String>, Failure> {
        let pieces = finished::leave(&mut self.messages, prune.last);
        if pieces == 0 {
            return Ok(None);
        }
        let (tokens_before, bytes_before) = (self.context.len(), self.context.kv_bytes());
        let vars = TemplateVars {
            generation_prompt: GenerationPrompt::Omit,
            ..self.vars.clone()
        };
        let text = session.engine.template().render(&self.messages, &vars)?;
        let tokenizer = session.engine.tokenizer();
        let tokens = session
            .engine
            .text()
            .with_prefix(tokenizer.encode(&text, Specials::Parse)?);
        // What is generated next is aligned by tokens.
        self.held = None;
        self.unknown = "finished work has left the conversation";
        self.follow(&tokens, prune.tail.reuse(), args, session)?;
        let held = self.context.len();
        session.read(&mut self.context, &tokens)?;
        let counts = PrunedCounts {
            pieces,
            tokens: tokens_before.saturating_sub(self.context.len()),
            tokens_read_again: self.context.len() - held,
            bytes_freed: bytes_before.saturating_sub(self.context.kv_bytes()),
        };
        self.pruned = Some(counts);
        Ok(Some(counts.sentence()))
    }

    /// What left it last.
    pub(super) fn take_pruned(&mut self) -> Option<PrunedCounts> {
        self.pruned.take()
    }

    /// One turn: what was said and by whom, and the answer. What is not answered is forgotten.
    pub(super) fn say(
        &mut self,
        (role, said): (&str, &str),
        args: &ChatArgs,
        session: &mut Session,
        format: Format,
    ) -> Result<Answer, Failure> {
        self.messages.push(Message::new(role, said));
        let answer = self.answer(args, session, format);
        match &answer {
            Ok(answer) if answer.is_cancelled() && answer.generated_tokens == 0 => {
                self.messages.pop();
            }
            Ok(answer) => {
                let text = answer.answer.clone();
                let text = match (answer.pruned, session.methods.prune()) {
                    // As far as it left on the way it is gone from what is said next.
                    (Some(_), Some(prune)) => finished::emptied(text, prune.last),
                    _ => text,
                };
                self.messages.push(Message::new("assistant", text));
            }
            Err(_) => {
                self.messages.pop();
            }
        }
        answer
    }

    fn answer(
        &mut self,
        args: &ChatArgs,
        session: &mut Session,
        format: Format,
    ) -> Result<Answer, Failure> {
        let text = session
            .engine
            .template()
            .render(&self.messages, &self.vars)?;
        let start = Instant::now();
        let (tail, reuse) = self.tail(&text, args, session)?;
        let limit = session.position_limit();
        check_prompt(self.context.len() + tail.len(), limit, &args.generation).map_err(
            |refused| {
                let why = refused.message().unwrap_or_default();
                Failure::wrong(format!("{why}; /reset begins a conversation anew"))
            },
        )?;
        let request = Request {
            tail: &tail,
            reuse,
            seconds_before: start.elapsed().as_secs_f64(),
            read_bytes_before: 0,
            again_before: self.context.computed_again(),
            edges: Edges::Trim,
            prune: session.methods.prune(),
        };
        self.context.attend_until(self.context.len() + tail.len());
        session.say_notices(format);
        // Until the answer is there, nobody knows what the context holds.
        self.held = None;
        self.unknown = "the last message was not answered";
        let answer = Answer::generate(
            session,
            &mut self.context,
            &request,
            &args.generation,
            format,
        )?;
        self.remember(text, &answer);
        Ok(answer)
    }

    /// The tokens of `text` that the context does not hold, and where those it holds came from.
    ///
    /// What the model generated is kept as it is, token by token; only if the template shows
    /// earlier turns otherwise than they were generated, the text is tokenised anew from there. What
    /// the context then lacks is looked for in the store.
    fn tail(
        &mut self,
        text: &str,
        args: &ChatArgs,
        session: &mut Session,
    ) -> Result<(Vec<u32>, TakenOver), Failure> {
        let tokenizer = session.engine.tokenizer();
        let length = self.context.len();
        if let Some(held) = &self.held
            && let Some(new) = held.continued(text)
        {
            let mut tail: Vec<u32> = held.pending.into_iter().collect();
            // The letter stands for what the context holds: the rest continues a text.
            let parts = [("x", Specials::AsText), (new, Specials::Parse)];
            tail.extend(&tokenizer.encode_parts(&parts)?[1]);
            if !tail.is_empty() {
                return Ok((tail, TakenOver::of_context(length)));
            }
        }
        let why = match self.held.take() {
            Some(_) => "the chat template shows earlier turns otherwise than they were generated",
            None => self.unknown,
        };
        self.unknown = why;
        let tokens = session
            .engine
            .text()
            .with_prefix(tokenizer.encode(text, Specials::Parse)?);
        let (reuse, back) = self.follow(&tokens, session.methods.reuse(), args, session)?;
        let held = self.context.len();
        session.notices.extend(match back {
            Back::Anew if held == 0 => Some(format!(
                "{why}, and what went before is no longer held whole: the conversation is read \
                 again from its start"
            )),
            _ if held < length => Some(format!(
                "{why}: what follows token {held} of the {length} held is read again"
            )),
            _ => None,
        });
        session.notices.extend(reuse.sentence(tokens.len()));
        Ok((tokens[held..].to_vec(), reuse))
    }

    /// Makes the context hold what can be had of `tokens` without reading them, all but the last at
    /// most.
    fn follow(
        &mut self,
        tokens: &[u32],
        reuse: Reuse,
        args: &ChatArgs,
        session: &mut Session,
    ) -> Result<(TakenOver, Back), Failure> {
        let usable = &tokens[..tokens.len().saturating_sub(1)];
        if let shift @ Reuse::Shift { .. } = reuse {
            let bar = Progress::tokens("reading", self.context.len(), tokens.len());
            let moved = TakenOver::moved(session, &mut self.context, tokens, shift, &bar)?;
            if let Some(moved) = moved {
                return Ok((moved, Back::Here));
            }
        }
        let common = self.context.tokens().common_prefix(usable);
        let (common, back) = match self.context.resumable(common) {
            Some(common) => {
                let gone = self.context.truncate(common);
                gone.map_err(|error| Failure::from(EngineError::from(error)))?;
                (common, Back::Here)
            }
            // The store may have what sliding-window layers have dropped.
            None => {
                session.goes_on = false;
                self.context = new_context(args, session)?;
                (0, Back::Anew)
            }
        };
        let usable = session.usable(usable);
        let found = match usable.len() > common {
            true => TakenOver::take_over(&mut self.context, usable)?,
            false => TakenOver::default(),
        };
        Ok((TakenOver::of_context(common).and(&found), back))
    }

    fn remember(&mut self, prompt: String, answer: &Answer) {
        let Some(generated) = &answer.generated else {
            return;
        };
        if !generated.pruned.is_empty() {
            self.unknown = "finished work has left the conversation";
            return;
        }
        let pending = match generated.finish {
            // The end token is part of what the template renders next.
            FinishReason::EndOfText => None,
            FinishReason::Length | FinishReason::ContextFull | FinishReason::Cancelled
                if !generated.ids.is_empty() =>
            {
                generated.ids.last().copied()
            }
            // What was generated and what is shown differ: the next turn is aligned by tokens.
            FinishReason::Stop => {
                self.unknown = "the last answer ended before a stop text";
                return;
            }
            _ => return,
        };
        self.held = Some(Held {
            prompt,
            answer: generated.text.clone(),
            pending,
        });
    }
}

/// The date of a conversation that begins now.
fn begun(args: &ChatArgs) -> Moment {
    args.date.unwrap_or_else(date::today)
}

fn new_context(args: &ChatArgs, session: &mut Session) -> Result<Context, Failure> {
    let limit = session.position_limit();
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
    // How long the conversation will get, nobody knows: a budget by share is one of the plan.
    session.new_context(planned, planned)
}
