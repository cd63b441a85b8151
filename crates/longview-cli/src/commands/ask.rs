//! `longview ask`: questions about documents.

use std::io::{self, IsTerminal};
use std::time::Instant;

use longview::Context;
use longview::keep::Question;
use longview::records::Record;
use longview::text::Moment;
use serde_json::{Map, Value, json};

use crate::answer::{Answer, END_OF_TEXT, Edges, Request};
use crate::args::{AskArgs, Fallback, Format};
use crate::date;
use crate::documents::Documents;
use crate::failure::Failure;
use crate::input;
use crate::interrupt;
use crate::output::{self, note};
use crate::prompt::{DocumentPrompt, template_notice};
use crate::saved::{Entry, Kind, document_date, document_pieces};
use crate::session::{Session, check_prompt};
use crate::taken_over::TakenOver;

/// Tokens a question may have when it is not known yet.
const UNKNOWN_QUESTION: usize = 1024;

/// Reads the documents once and answers every question from them.
pub(crate) fn run(args: &AskArgs, format: Format) -> Result<(), Failure> {
    // Everything that can be wrong with the request is found before the model is loaded.
    args.generation.decode(Fallback::Greedy)?;
    let questions = Questions::of(args, format)?;
    let documents = match &args.load {
        None => Some(Documents::read(&args.file)?),
        Some(_) => None,
    };
    let mut session = if args.print_prompt && args.load.is_none() {
        Session::open(&args.engine, &args.methods)?
    } else {
        Session::open_keeping(&args.engine, &args.methods, &args.store)?
    };
    session.refuse_shift("ask")?;
    session.settle_decode(&args.generation, Fallback::Greedy)?;
    let source = match (&args.load, documents) {
        (Some(name), _) => Source::Kept(kept_documents(&session, name)?),
        (None, documents) => Source::Read(documents.unwrap_or_default()),
    };
    if let Source::Kept(record) = &source {
        session.adopt(record, args.methods.keep.as_deref())?;
    }
    let prompt = source.prompt(&mut session, args.date)?;
    if args.print_prompt {
        return print(&prompt, &mut session, &questions, format);
    }
    let longest = match &questions {
        Questions::Given(list) => {
            let lengths: Result<Vec<usize>, Failure> = list
                .iter()
                .map(|text| Ok(prompt.question(session.engine.text(), text)?.len()))
                .collect();
            lengths?.into_iter().max().unwrap_or(0)
        }
        // A plan that was given is held to question by question.
        Questions::Terminal if args.generation.planned_tokens.is_some() => 0,
        Questions::Terminal => UNKNOWN_QUESTION,
    };
    let planned = session.planned_tokens(prompt.shared.len() + longest, &args.generation)?;
    let asked = prompt.shared.len() + longest;
    let kept = match &source {
        Source::Kept(record) => Some(&**record),
        Source::Read(_) => None,
    };
    let restored = kept.is_some_and(|record| record.left().is_some());
    let mut reader = Reader::open(&mut session, asked, planned, &prompt.shared, kept)?;
    if args.attention {
        let watched = reader.context.watch_attention();
        watched.map_err(longview::EngineError::from)?;
    }
    if let Source::Kept(record) = &source {
        session.check_saved(record, &reader.context)?;
    }
    let methods = reader.left_by();
    let same =
        |record: &Record| record.tokens == prompt.shared && record.summary.methods == methods;
    let before = session.claim(&reader.context, args.label.as_deref(), same)?;
    session
        .notices
        .extend(reader.found.sentence(prompt.shared.len()));
    session.tell_of_disk(planned);
    session.hear_store();
    session.say_notices(format);
    reader.read(&session, &prompt.shared)?;
    let entry = Entry {
        title: source.title(),
        label: args.label.clone(),
        pieces: document_pieces(prompt.now),
        ..Entry::default()
    };
    let id = before.as_ref().map(|record| record.summary.id.as_str());
    if !restored || args.label.is_some() {
        session.save(&reader.context, id, entry);
    }
    match questions {
        Questions::Given(list) => answer_all(args, &mut session, &prompt, reader, &list, format),
        Questions::Terminal => converse(args, &mut session, &prompt, reader),
    }
}

/// Where the documents come from.
enum Source {
    /// Files.
    Read(Documents),
    /// A context by name.
    Kept(Box<Record>),
}

impl Source {
    fn prompt(
        &self,
        session: &mut Session,
        date: Option<Moment>,
    ) -> Result<DocumentPrompt, Failure> {
        match self {
            Source::Read(documents) => session.document_prompt(documents, date),
            Source::Kept(record) => {
                let text = session.engine.text();
                session.notices.extend(template_notice(text));
                let now = document_date(record).unwrap_or_else(date::today);
                DocumentPrompt::kept(text, now, record.tokens.clone())
            }
        }
    }

    fn title(&self) -> String {
        match self {
            Source::Read(documents) => documents.title(),
            Source::Kept(record) => record.summary.title.clone(),
        }
    }
}

fn kept_documents(session: &Session, name: &str) -> Result<Box<Record>, Failure> {
    let record = session.find_saved(name)?;
    Kind::Documents.check(name, &record)?;
    Ok(Box::new(record))
}

/// Where the questions come from.
enum Questions {
    /// From the command line and a file; at least one.
    Given(Vec<String>),
    /// One after another from a person.
    Terminal,
}

impl Questions {
    fn of(args: &AskArgs, format: Format) -> Result<Questions, Failure> {
        let mut list = args.questions.clone();
        if list.iter().any(|question| question.trim().is_empty()) {
            return Err(Failure::wrong(
                "the question is empty; write what you want to know",
            ));
        }
        if let Some(path) = &args.questions_file {
            let text = super::read_text(path)?;
            let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
            list.extend(lines.filter(|line| !line.is_empty()).map(str::to_owned));
            if list.is_empty() {
                return Err(Failure::wrong(format!(
                    "{}: no question in it",
                    path.display()
                )));
            }
        }
        if !list.is_empty() {
            return Ok(Questions::Given(list));
        }
        let person =
            format == Format::Text && io::stdin().is_terminal() && io::stdout().is_terminal();
        if person && !args.file.iter().any(|file| input::is_stdin(file)) && !args.print_prompt {
            Ok(Questions::Terminal)
        } else if args.print_prompt {
            Ok(Questions::Given(vec!["…".to_owned()]))
        } else {
            Err(Failure::wrong(
                "no question: write it after the options, or give --questions FILE, or run this \
                 on a terminal to be asked",
            ))
        }
    }
}

/// Shows what the model would read.
fn print(
    prompt: &DocumentPrompt,
    session: &mut Session,
    questions: &Questions,
    format: Format,
) -> Result<(), Failure> {
    let question = match questions {
        Questions::Given(list) => list[0].as_str(),
        Questions::Terminal => "…",
    };
    if let Questions::Given(list) = questions
        && list.len() > 1
    {
        session.notices.push(format!(
            "shown with the first question; {} more follow the same documents",
            list.len() - 1
        ));
    }
    let question = prompt.question(session.engine.text(), question)?;
    let tokens = [prompt.shared.clone(), question].concat();
    super::run::print_prompt(session, &tokens, format)
}

/// The context that holds what all questions share.
struct Reader {
    context: Context,
    /// What was taken over of it.
    found: TakenOver,
    /// Seconds to find it and to read the rest.
    seconds: f64,
    /// Bytes read back from disk meanwhile.
    read_bytes: u64,
}

impl Reader {
    /// A context that holds what is known of `shared`, or what a keep method has left of it in `kept`; a
    /// prompt will have `asked` tokens.
    fn open(
        session: &mut Session,
        asked: usize,
        planned: usize,
        shared: &[u32],
        kept: Option<&Record>,
    ) -> Result<Reader, Failure> {
        let start = Instant::now();
        let mut context = session.new_context(asked, planned)?;
        // Questions attend to all of the documents.
        context.attend_until(shared.len());
        // Nothing is predicted from it, so it may be held to its last token.
        let left = kept.map(|record| TakenOver::restored(&mut context, record));
        let found = match left.transpose()?.flatten() {
            Some(found) => found,
            None => TakenOver::take_over(&mut context, session.usable(shared))?,
        };
        Ok(Reader {
            context,
            found,
            seconds: start.elapsed().as_secs_f64(),
            read_bytes: 0,
        })
    }

    /// The keep method that will have dropped pairs of it when the documents have been read, if one does that
    /// then.
    fn left_by(&self) -> String {
        let keep = self.context.keep_method();
        let decides = keep.filter(|keep| keep.question == Question::Unseen);
        decides.map_or_else(String::new, |keep| keep.text.clone())
    }

    /// Reads the rest of `shared`, and lets a keep method that needs no question decide.
    fn read(&mut self, session: &Session, shared: &[u32]) -> Result<(), Failure> {
        let start = Instant::now();
        let bytes = session.store_read_bytes();
        session.read(&mut self.context, shared)?;
        session.engine.compress_document(&mut self.context)?;
        self.seconds += start.elapsed().as_secs_f64();
        self.read_bytes = session.store_read_bytes() - bytes;
        Ok(())
    }

    /// Answers a question, in a fork where the documents will be asked again: the last question may
    /// have the context itself, so that what a keep method drops is free.
    fn answer(
        &mut self,
        session: &Session,
        tail: &[u32],
        args: &AskArgs,
        format: Format,
        turn: Turn,
    ) -> Result<Answer, Failure> {
        let start = Instant::now();
        let limit = session.position_limit();
        check_prompt(self.context.len() + tail.len(), limit, &args.generation)?;
        let shared = self.context.len();
        let again_before = match turn.first {
            First::Yes => 0,
            First::No => self.context.computed_again(),
        };
        let mut fork;
        let context = if turn.last == Last::Yes {
            &mut self.context
        } else {
            fork = self.context.fork();
            &mut fork
        };
        // The same question may have been asked before.
        let asked = [&context.tokens().to_vec(), tail].concat();
        let usable = session.usable(&asked[..asked.len().saturating_sub(1)]);
        let found = match usable.len() > shared {
            true => TakenOver::take_over(context, usable)?,
            false => TakenOver::default(),
        };
        let (before, seconds, read_bytes_before) = match turn.first {
            First::Yes => (self.found.clone(), self.seconds, self.read_bytes),
            First::No => (TakenOver::of_context(shared), 0.0, 0),
        };
        let request = Request {
            tail: &asked[context.len()..],
            reuse: before.and(&found),
            seconds_before: seconds + start.elapsed().as_secs_f64(),
            read_bytes_before,
            again_before,
            edges: Edges::Trim,
            prune: None,
        };
        Answer::generate(session, context, &request, &args.generation, format)
    }
}

/// Which of the questions it is.
#[derive(Clone, Copy)]
struct Turn {
    first: First,
    last: Last,
}

/// Whether nothing will be asked after it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Yes,
    Unknown,
}

/// Whether an answer is the first, to which the reading of the documents is counted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    Yes,
    No,
}

fn answer_all(
    args: &AskArgs,
    session: &mut Session,
    prompt: &DocumentPrompt,
    mut reader: Reader,
    questions: &[String],
    format: Format,
) -> Result<(), Failure> {
    let mut answers: Vec<Answer> = Vec::new();
    let mut stopped = false;
    for (index, question) in questions.iter().enumerate() {
        if format == Format::Text && questions.len() > 1 {
            let gap = if answers.is_empty() { "" } else { "\n" };
            output::print(&format!("{gap}> {question}\n"))?;
        }
        let tail = prompt.question(session.engine.text(), question)?;
        let first = if answers.is_empty() {
            First::Yes
        } else {
            First::No
        };
        let last = match index + 1 == questions.len() {
            true => Last::Yes,
            false => Last::Unknown,
        };
        let mut answer = reader.answer(session, &tail, args, format, Turn { first, last })?;
        answer.question = Some(question.clone());
        let remark = answer.remark(session, &args.generation);
        session.notices.extend(remark);
        session.notices.extend(answer.dropped(session));
        session.hear_store();
        stopped = answer.is_cancelled();
        if format == Format::Text {
            show_notices(session, &answer);
            session.notices.clear();
        }
        answers.push(answer);
        if stopped {
            break;
        }
    }
    if format == Format::Json {
        output::print_json(&object(session, &answers)?)?;
    }
    if stopped {
        Err(Failure::Stopped)
    } else {
        Ok(())
    }
}

/// Asks a person for questions until the end of input.
fn converse(
    args: &AskArgs,
    session: &mut Session,
    prompt: &DocumentPrompt,
    mut reader: Reader,
) -> Result<(), Failure> {
    let mut first = First::Yes;
    note("ask about the documents; an empty line or Ctrl-D ends");
    loop {
        output::print("> ")?;
        let line = input::line()?.unwrap_or_default();
        let question = line.trim();
        if question.is_empty() {
            return Ok(());
        }
        let tail = prompt.question(session.engine.text(), question)?;
        let turn = Turn {
            first,
            last: Last::Unknown,
        };
        let answer = match reader.answer(session, &tail, args, Format::Text, turn) {
            // Another question may be shorter.
            Err(Failure::Wrong(error) | Failure::Failed(error)) => {
                note(format!("{error:#}"));
                interrupt::forget();
                continue;
            }
            answer => answer?,
        };
        first = First::No;
        let remark = answer.remark(session, &args.generation);
        session.notices.extend(remark);
        session.notices.extend(answer.dropped(session));
        session.hear_store();
        answer.attention_lines().into_iter().for_each(note);
        for notice in session.notices.drain(..) {
            output::tell(&notice);
        }
        note(answer.line(session));
        // Ctrl-C stopped the answer, not the conversation.
        interrupt::forget();
    }
}

/// The fields of an answer.
pub(super) fn fields(answer: &Answer) -> Result<Map<String, Value>, Failure> {
    match serde_json::to_value(answer) {
        Ok(Value::Object(fields)) => Ok(fields),
        other => Err(Failure::failed(format!(
            "an answer cannot be written as JSON: {other:?}"
        ))),
    }
}

/// Notices on standard error, what the attention rested on where that was asked for, and the
/// measurements if a person reads them.
pub(super) fn show_notices(session: &Session, answer: &Answer) {
    answer.attention_lines().into_iter().for_each(note);
    for notice in &session.notices {
        output::tell(notice);
    }
    if io::stderr().is_terminal() {
        note(answer.line(session));
    }
}

/// One object for all answers. With several questions the counts are sums, the times and speeds
/// those of the first answer, which the reading of the documents belongs to; `answers` has each.
fn object(session: &Session, answers: &[Answer]) -> Result<Map<String, Value>, Failure> {
    let (first, rest) = answers
        .split_first()
        .ok_or_else(|| Failure::failed("no question was answered"))?;
    let mut total = first.clone();
    if !rest.is_empty() {
        total.question = None;
        for answer in rest {
            total.answer.push('\n');
            total.answer.push_str(&answer.answer);
            total.prompt_tokens += answer.prompt_tokens;
            total.reused_tokens += answer.reused_tokens;
            total.computed_tokens += answer.computed_tokens;
            total.generated_tokens += answer.generated_tokens;
            total.generated_ids.extend(&answer.generated_ids);
            total.reuse = total.reuse.and(&answer.reuse);
            total.kv_bytes = total.kv_bytes.max(answer.kv_bytes);
            total.kv_bytes_on_disk = total.kv_bytes_on_disk.max(answer.kv_bytes_on_disk);
            total.store_read_bytes += answer.store_read_bytes;
            total.least_bytes_read = total
                .least_bytes_read
                .zip(answer.least_bytes_read)
                .map(|(all, least)| all + least);
            if let (Some(all), Some(read)) = (&mut total.read, &answer.read) {
                all.add(read);
            }
        }
        // One that did not end by itself is the news.
        total.finish = answers
            .iter()
            .map(|answer| answer.finish)
            .find(|&finish| finish != END_OF_TEXT)
            .unwrap_or(END_OF_TEXT);
    }
    let mut object = fields(&total)?;
    object.extend(session.summary());
    let each: Result<Vec<_>, Failure> = answers.iter().map(fields).collect();
    object.insert("answers".to_owned(), json!(each?));
    Ok(object)
}
