//! `longview ask`: questions about documents.

use std::io::{self, IsTerminal};
use std::time::Instant;

use longview::Context;
use longview::text::AskFrame;
use serde_json::{Map, Value, json};

use crate::answer::{Answer, END_OF_TEXT, Edges, Request};
use crate::args::{AskArgs, Fallback, Format};
use crate::documents::Documents;
use crate::failure::Failure;
use crate::input::{self, STDIN};
use crate::interrupt;
use crate::output::{self, note};
use crate::session::{Session, check_prompt};

/// Tokens a question may have when it is not known yet.
const UNKNOWN_QUESTION: usize = 1024;

/// Reads the documents once and answers every question from them.
pub(crate) fn run(args: &AskArgs, format: Format) -> Result<(), Failure> {
    // Everything that can be wrong with the request is found before the model is loaded.
    args.generation.decode(Fallback::Greedy)?;
    let questions = Questions::of(args, format)?;
    let documents = Documents::read(&args.file)?;
    let mut session = Session::open(&args.engine, &args.methods)?;
    session.settle_decode(&args.generation, Fallback::Greedy)?;
    session.notices.extend(documents.notices.iter().cloned());
    let prompt = Prompt::new(&mut session, &documents)?;
    if args.print_prompt {
        return prompt.print(&mut session, &questions, format);
    }
    let longest = match &questions {
        Questions::Given(list) => {
            let lengths: Result<Vec<usize>, Failure> = list
                .iter()
                .map(|text| Ok(prompt.question(&session, text)?.len()))
                .collect();
            lengths?.into_iter().max().unwrap_or(0)
        }
        // A plan that was given is held to question by question.
        Questions::Terminal if args.generation.planned_tokens.is_some() => 0,
        Questions::Terminal => UNKNOWN_QUESTION,
    };
    let planned = session.planned_tokens(prompt.shared.len() + longest, &args.generation)?;
    if format == Format::Text {
        session
            .notices
            .drain(..)
            .for_each(|notice| note(format!("note: {notice}")));
    }
    let mut reader = Reader::new(&session, planned)?;
    match questions {
        Questions::Given(list) => answer_all(args, &mut session, &prompt, reader, &list, format),
        Questions::Terminal => {
            reader.read(&session, &prompt.shared)?;
            converse(args, &session, &prompt, reader)
        }
    }
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
            let text = super::read_text(&path.display().to_string())?;
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
        if person && !args.file.iter().any(|file| file == STDIN) && !args.print_prompt {
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

/// The tokens of everything before a question, and the frame a question is put into.
struct Prompt {
    frame: AskFrame,
    /// Head, documents and what stands between them and the question.
    shared: Vec<u32>,
    documents: String,
}

impl Prompt {
    fn new(session: &mut Session, documents: &Documents) -> Result<Prompt, Failure> {
        let vars = session.template_vars();
        let frame = AskFrame::new(session.engine.template(), &vars)?;
        let documents = documents.text();
        session.engine.check_text(documents.len())?;
        let parts = session
            .engine
            .tokenizer()
            .encode_parts(&frame.parts(&documents, ""))?;
        let shared = session.with_prefix(parts[..3].concat());
        Ok(Prompt {
            frame,
            shared,
            documents,
        })
    }

    /// The tokens from the question on. Documents and question are tokenised apart, so the shared
    /// tokens never depend on the question.
    fn question(&self, session: &Session, question: &str) -> Result<Vec<u32>, Failure> {
        // The first character stands for the documents: what comes before a part decides only
        // whether the part begins a text.
        let first = self
            .documents
            .chars()
            .next()
            .map(String::from)
            .unwrap_or_default();
        let parts = self.frame.parts(&first, question);
        Ok(session.engine.tokenizer().encode_parts(&parts)?[3..].concat())
    }

    fn print(
        &self,
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
        let tokens = [self.shared.clone(), self.question(session, question)?].concat();
        super::run::print_prompt(session, &tokens, format)
    }
}

/// The context that holds what all questions share.
struct Reader {
    context: Context,
    seconds: f64,
}

impl Reader {
    fn new(session: &Session, planned: usize) -> Result<Reader, Failure> {
        Ok(Reader {
            context: session.engine.new_context(planned)?,
            seconds: 0.0,
        })
    }

    fn read(&mut self, session: &Session, tokens: &[u32]) -> Result<(), Failure> {
        let start = Instant::now();
        session.read(&mut self.context, tokens)?;
        self.seconds = start.elapsed().as_secs_f64();
        Ok(())
    }

    /// Answers a question in a fork, so that the documents can be asked again.
    fn answer(
        &self,
        session: &Session,
        tail: &[u32],
        args: &AskArgs,
        format: Format,
        first: First,
    ) -> Result<Answer, Failure> {
        let limit = session.engine.model().blueprint().max_positions;
        check_prompt(self.context.len() + tail.len(), limit, &args.generation)?;
        let mut context = self.context.fork();
        let (reused, seconds_before) = match first {
            First::Yes => (0, self.seconds),
            First::No => (context.len(), 0.0),
        };
        let request = Request {
            tail,
            reused,
            seconds_before,
            edges: Edges::Trim,
        };
        Answer::generate(session, &mut context, &request, &args.generation, format)
    }
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
    prompt: &Prompt,
    mut reader: Reader,
    questions: &[String],
    format: Format,
) -> Result<(), Failure> {
    reader.read(session, &prompt.shared)?;
    let mut answers: Vec<Answer> = Vec::new();
    let mut stopped = false;
    for question in questions {
        if format == Format::Text && questions.len() > 1 {
            let gap = if answers.is_empty() { "" } else { "\n" };
            output::print(&format!("{gap}> {question}\n"))?;
        }
        let tail = prompt.question(session, question)?;
        let first = if answers.is_empty() {
            First::Yes
        } else {
            First::No
        };
        let mut answer = reader.answer(session, &tail, args, format, first)?;
        answer.question = Some(question.clone());
        session.notices.extend(answer.remark(&args.generation));
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
    session: &Session,
    prompt: &Prompt,
    reader: Reader,
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
        let tail = prompt.question(session, question)?;
        let answer = match reader.answer(session, &tail, args, Format::Text, first) {
            // Another question may be shorter.
            Err(Failure::Wrong(error) | Failure::Failed(error)) => {
                note(format!("{error:#}"));
                interrupt::forget();
                continue;
            }
            answer => answer?,
        };
        first = First::No;
        if let Some(remark) = answer.remark(&args.generation) {
            note(format!("note: {remark}"));
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

/// Notices on standard error, and the measurements if a person reads them.
pub(super) fn show_notices(session: &Session, answer: &Answer) {
    for notice in &session.notices {
        note(format!("note: {notice}"));
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
            total.kv_bytes = total.kv_bytes.max(answer.kv_bytes);
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
