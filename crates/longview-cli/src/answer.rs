//! One generated answer: made, shown and measured.

use std::time::Instant;

use longview::keep::KeepReport;
use longview::pattern::PrefillReport;
use longview::read::ReadReport;
use longview::{
    AttentionPicture, Context, ContextWork, Control, EndOfText, Event, FinishReason,
    GenerateOptions, Generated, PicturePart, Prune, Pruned, ShowSpecials,
};
use serde::Serialize;

use crate::args::{Format, GenerationArgs};
use crate::failure::Failure;
use crate::interrupt;
use crate::output;
use crate::progress::Progress;
use crate::session::{Session, show};
use crate::size::human_count;
use crate::taken_over::TakenOver;

/// How answers that the model ended itself are called in JSON.
pub(crate) const END_OF_TEXT: &str = "end_of_text";

/// What a command needs to know of a prompt to generate from it.
pub(crate) struct Request<'a> {
    /// The tokens that are not in the context yet; at least one.
    pub(crate) tail: &'a [u32],
    /// Tokens of the prompt taken over from work done before, by where they were.
    pub(crate) reuse: TakenOver,
    /// Seconds already spent on this prompt: on finding it, and on reading what comes before the tail.
    pub(crate) seconds_before: f64,
    /// Bytes read back from disk meanwhile.
    pub(crate) read_bytes_before: u64,
    /// [`Context::computed_again`] when work on this prompt began.
    pub(crate) again_before: usize,
    /// Whether spaces and line breaks around the answer are part of it.
    pub(crate) edges: Edges,
    /// What leaves the context while the answer is written, if anything does.
    pub(crate) prune: Option<Prune>,
}

/// What becomes of spaces and line breaks around an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edges {
    /// They are left out: chat models open with them.
    Trim,
    /// They are kept: a text is continued.
    Keep,
}

/// An answer with everything that was measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Answer {
    /// The question, where there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) question: Option<String>,
    /// The text.
    pub(crate) answer: String,
    /// Tokens of the prompt.
    pub(crate) prompt_tokens: usize,
    /// Those taken over from work done before.
    pub(crate) reused_tokens: usize,
    /// The same by where they were found.
    pub(crate) reuse: TakenOver,
    /// Those read now.
    pub(crate) computed_tokens: usize,
    /// Tokens generated, the one that ended the answer included.
    pub(crate) generated_tokens: usize,
    /// Their ids.
    pub(crate) generated_ids: Vec<u32>,
    /// Why the answer ended.
    pub(crate) finish: &'static str,
    /// From the start of reading to the first token, or to the end where none came.
    pub(crate) seconds_to_first_token: f64,
    /// Tokens read a second.
    pub(crate) prefill_tokens_per_second: Option<f64>,
    /// Tokens generated a second after the first.
    pub(crate) decode_tokens_per_second: Option<f64>,
    /// Bytes of keys and values the context holds, shared ones included.
    pub(crate) kv_bytes: u64,
    /// Those of them that are on disk and not in memory.
    pub(crate) kv_bytes_on_disk: u64,
    /// Bytes read back from disk for this answer.
    pub(crate) store_read_bytes: u64,
    /// The fewest that had to be, in the memory there was; not known where a method leaves pairs out.
    pub(crate) least_bytes_read: Option<u64>,
    /// What the keep method has done to the context, where one was chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) keep: Option<KeepCounts>,
    /// What the read method has read for this answer, where one was chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) read: Option<ReadCounts>,
    /// What the prefill pattern has left out of the context's prompt, where one was chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prefill: Option<PrefillCounts>,
    /// What left the conversation after it, where something did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pruned: Option<PrunedCounts>,
    /// What its attention rested on, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) attention: Option<AttentionPicture>,
    /// The most it could have had.
    #[serde(skip)]
    max_tokens: usize,
    #[serde(skip)]
    pub(crate) generated: Option<Generated>,
}

/// What left a conversation because it was finished, in numbers.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct PrunedCounts {
    /// Results of tools and lists of sub-tasks.
    pub(crate) pieces: usize,
    /// Tokens that the context holds less.
    pub(crate) tokens: usize,
    /// Tokens after them that were read again.
    pub(crate) tokens_read_again: usize,
    /// Bytes of keys and values that it holds less.
    pub(crate) bytes_freed: u64,
}

impl PrunedCounts {
    /// What left while an answer was written, if anything did.
    fn of(pruned: &[Pruned]) -> Option<PrunedCounts> {
        let counts = pruned.iter().map(|one| PrunedCounts {
            pieces: one.spans.len(),
            tokens: one.tokens,
            tokens_read_again: one.read_again,
            bytes_freed: one.bytes_freed,
        });
        counts.reduce(PrunedCounts::and)
    }

    /// Both together.
    pub(crate) fn and(self, other: PrunedCounts) -> PrunedCounts {
        PrunedCounts {
            pieces: self.pieces + other.pieces,
            tokens: self.tokens + other.tokens,
            tokens_read_again: self.tokens_read_again + other.tokens_read_again,
            bytes_freed: self.bytes_freed + other.bytes_freed,
        }
    }

    /// A sentence for people.
    pub(crate) fn sentence(&self) -> String {
        format!(
            "{} of finished work left the conversation: {} tokens less, {} free, {} tokens read again",
            match self.pieces {
                1 => "one piece".to_owned(),
                count => format!("{count} pieces"),
            },
            human_count(self.tokens),
            longview::human_bytes(self.bytes_freed),
            human_count(self.tokens_read_again),
        )
    }
}

/// What a keep method has done, in numbers.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct KeepCounts {
    /// Pairs of all KV heads of the layers it acts on that were made.
    pairs_seen: u64,
    /// Those that are still held.
    pairs_kept: u64,
    /// Those that are gone.
    pairs_dropped: u64,
    /// Bytes of what stays of earlier tokens; `kv_bytes` counts all.
    stream_bytes: u64,
    /// How often it decided.
    compactions: usize,
    /// Seconds that took.
    seconds: f64,
    /// Those of them in which the model repeated the context.
    #[serde(skip_serializing_if = "Option::is_none")]
    repeat_seconds: Option<f64>,
    /// Seconds that this takes by its operations at the speed at which the prompt was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    repeat_predicted_seconds: Option<f64>,
}

/// What the tokens of an answer have read, in numbers.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ReadCounts {
    /// Pages of 64 tokens that were read, of all KV heads of the layers with full attention.
    pages_read: u64,
    /// Those that reading everything would have read.
    pages_present: u64,
    /// Bytes of what is kept to choose by.
    index_bytes: u64,
}

/// What the tokens of a prompt have read, in numbers.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PrefillCounts {
    /// Pages of 64 tokens that were read, of all KV heads of the layers with full attention.
    pages_read: u64,
    /// Those that reading everything would have read.
    pages_present: u64,
}

impl PrefillCounts {
    fn new(report: &PrefillReport) -> PrefillCounts {
        PrefillCounts {
            pages_read: report.pages_read,
            pages_present: report.pages_present,
        }
    }
}

impl ReadCounts {
    fn new(report: &ReadReport) -> ReadCounts {
        ReadCounts {
            pages_read: report.pages_read,
            pages_present: report.pages_present,
            index_bytes: report.index_bytes,
        }
    }

    /// Adds what another answer has read.
    pub(crate) fn add(&mut self, other: &ReadCounts) {
        self.pages_read += other.pages_read;
        self.pages_present += other.pages_present;
        self.index_bytes = self.index_bytes.max(other.index_bytes);
    }
}

/// A sentence for people, where something was left out.
fn pages(method: &str, of: &str, read: u64, present: u64) -> Option<String> {
    (read < present).then(|| {
        format!(
            "{method} read {} of {} pages for the {of} ({:.1} %)",
            human_count(read as usize),
            human_count(present as usize),
            100.0 * read as f64 / present as f64,
        )
    })
}

impl KeepCounts {
    fn new(report: &KeepReport) -> KeepCounts {
        KeepCounts {
            pairs_seen: report.pairs_seen,
            pairs_kept: report.pairs_kept,
            pairs_dropped: report.pairs_seen - report.pairs_kept,
            stream_bytes: report.stream_bytes,
            compactions: report.compactions,
            seconds: report.time.as_secs_f64(),
            repeat_seconds: report.repeated.map(|repeated| repeated.time.as_secs_f64()),
            repeat_predicted_seconds: report
                .repeated
                .and_then(|repeated| Some(repeated.predicted?.as_secs_f64())),
        }
    }

    /// A sentence for people.
    fn sentence(&self, method: &str) -> String {
        let mut sentence = format!(
            "{method} dropped {} of {} pairs; {} stay in {}",
            human_count(self.pairs_dropped as usize),
            human_count(self.pairs_seen as usize),
            human_count(self.pairs_kept as usize),
            longview::human_bytes(self.stream_bytes),
        );
        if let Some(took) = self.repeat_seconds {
            let foretold = match self.repeat_predicted_seconds {
                Some(predicted) => format!("{predicted:.2} s by its operations"),
                // All of it was taken over.
                None => "with nothing read here to foretell that by".to_owned(),
            };
            sentence.push_str(&format!(
                "; repeating the text took {took:.2} s, {foretold}"
            ));
        }
        sentence
    }
}

impl Answer {
    /// What the methods dropped or left out, for people: a sentence each.
    pub(crate) fn dropped(&self, session: &Session) -> Vec<String> {
        let methods = &session.methods;
        let prefill = self.prefill.as_ref().zip(methods.prefill());
        let prefill = prefill.and_then(|(counts, prefill)| {
            pages(
                &prefill.text,
                "prompt",
                counts.pages_read,
                counts.pages_present,
            )
        });
        let dropped = self.keep.as_ref().filter(|counts| counts.pairs_dropped > 0);
        let keep = dropped.zip(methods.keep());
        let keep = keep.map(|(counts, keep)| counts.sentence(&keep.text));
        let read = self.read.as_ref().zip(methods.read());
        let read = read.and_then(|(counts, read)| {
            pages(
                &read.text,
                "answer",
                counts.pages_read,
                counts.pages_present,
            )
        });
        prefill.into_iter().chain(keep).chain(read).collect()
    }

    /// Generates from `context` and `request`, printing the text as it comes unless the format is
    /// JSON.
    pub(crate) fn generate(
        session: &Session,
        context: &mut Context,
        request: &Request<'_>,
        args: &GenerationArgs,
        format: Format,
    ) -> Result<Answer, Failure> {
        let before = context.len();
        let prompt = before + request.tail.len();
        let max_tokens = args.room(prompt);
        let mut options = GenerateOptions {
            chain: session.methods.decode().chain(),
            max_tokens,
            stop: args.stop.clone(),
            end_of_text: if args.ignore_eos {
                EndOfText::Ignored
            } else {
                EndOfText::Ends
            },
            specials: ShowSpecials::Hide,
        };
        let start = Instant::now();
        let store_bytes = session.store_read_bytes();
        let bar = Progress::tokens("reading", before, prompt);
        let mut writer = Writer {
            format,
            edges: request.edges,
            begun: false,
            held: String::new(),
        };
        let mut broken = None;
        let on = &mut |event: Event<'_>| {
            match event {
                Event::Prefill(progress) => return show(&bar, progress),
                Event::Text(text) => {
                    bar.finish();
                    if let Err(failure) = writer.push(text) {
                        broken = Some(failure);
                        return Control::Stop;
                    }
                }
            }
            if interrupt::pressed() {
                Control::Stop
            } else {
                Control::Continue
            }
        };
        let (engine, tail) = (&session.engine, request.tail);
        let generated = match request.prune {
            Some(prune) => engine.generate_pruning(context, tail, &mut options, prune, on)?,
            None => engine.generate(context, tail, &mut options, on)?,
        };
        bar.finish();
        if let Some(failure) = broken {
            return Err(failure);
        }
        if format == Format::Text {
            output::print("\n")?;
        }
        // Ctrl-C may have come before the whole prompt was read; what was generated is not counted.
        let read = (context.len() - before).min(request.tail.len());
        let again = context.computed_again() - request.again_before;
        let reuse = request.reuse.without(again);
        let reused = reuse.tokens();
        let computed = before - reused + read;
        let until_first = if generated.ids.is_empty() {
            start.elapsed()
        } else {
            generated.time_to_first_token
        };
        let seconds = request.seconds_before + until_first.as_secs_f64();
        let work = ContextWork {
            held: reused,
            below: reuse.below_memory(),
            prompt: before + read,
            answer: generated.ids.len(),
        };
        let least = session.engine.least_bytes_read(context, &work);
        Ok(Answer {
            question: None,
            answer: request.edges.apply(&generated.text).to_owned(),
            prompt_tokens: prompt,
            reused_tokens: reused,
            reuse,
            computed_tokens: computed,
            generated_tokens: generated.ids.len(),
            generated_ids: generated.ids.clone(),
            finish: finish(generated.finish),
            seconds_to_first_token: seconds,
            prefill_tokens_per_second: (seconds > 0.0).then(|| computed as f64 / seconds),
            decode_tokens_per_second: generated.tokens_per_second(),
            kv_bytes: context.kv_bytes(),
            kv_bytes_on_disk: context.away_bytes(),
            keep: context.keep_report().map(|report| KeepCounts::new(&report)),
            read: context.read_report().map(|report| ReadCounts::new(&report)),
            prefill: context
                .prefill_report()
                .map(|report| PrefillCounts::new(&report)),
            pruned: PrunedCounts::of(&generated.pruned),
            attention: context.attention_map().map(|map| {
                let tokens = context.tokens().to_vec();
                session
                    .engine
                    .picture(&map, &tokens, prompt.min(tokens.len()))
            }),
            store_read_bytes: request.read_bytes_before + session.store_read_bytes() - store_bytes,
            least_bytes_read: least.filter(|_| generated.pruned.is_empty()),
            max_tokens,
            generated: Some(generated),
        })
    }

    /// Which parts of the prompt its attention rested on most, one line each, where that was asked for.
    pub(crate) fn attention_lines(&self) -> Vec<String> {
        let parts = self.attention.iter().flat_map(|picture| &picture.most);
        let line = |part: &PicturePart| {
            format!(
                "attention: {:.1} % on tokens {} to {}: {}",
                100.0 * part.mass,
                human_count(part.first_token),
                human_count(part.end_token),
                part.text.split_whitespace().collect::<Vec<_>>().join(" "),
            )
        };
        parts.map(line).collect()
    }

    /// What to tell the user about the way it ended, if that is not the natural one.
    pub(crate) fn remark(&self, session: &Session, args: &GenerationArgs) -> Option<String> {
        match self.generated.as_ref().map(|generated| generated.finish)? {
            FinishReason::Length if self.max_tokens < args.max_tokens => Some(format!(
                "the answer was cut at {} tokens, where --planned-tokens ends",
                self.max_tokens
            )),
            FinishReason::Length => Some(format!(
                "the answer was cut at --max-tokens {}",
                args.max_tokens
            )),
            FinishReason::ContextFull => Some("the answer was cut: the context is full".to_owned()),
            FinishReason::Cancelled if self.generated_tokens == 0 => {
                let read = self.reused_tokens + self.computed_tokens;
                Some(session.stopped_at(read, self.prompt_tokens))
            }
            FinishReason::Cancelled => Some("the answer was stopped by Ctrl-C".to_owned()),
            FinishReason::EndOfText | FinishReason::Stop => None,
        }
    }

    /// One line of measurements for people.
    pub(crate) fn line(&self, session: &Session) -> String {
        let rate = |rate: Option<f64>| rate.map_or("–".to_owned(), |rate| format!("{rate:.1}"));
        format!(
            "[{} prompt tokens ({} reused) · first token after {:.2} s · read {} tokens/s · wrote \
             {} tokens at {}/s · KV {} · {} numerics · {}]",
            human_count(self.prompt_tokens),
            human_count(self.reused_tokens),
            self.seconds_to_first_token,
            rate(self.prefill_tokens_per_second),
            self.generated_tokens,
            rate(self.decode_tokens_per_second),
            longview::human_bytes(self.kv_bytes),
            session.engine.exec().numerics,
            session.decode_text(),
        )
    }

    /// Whether Ctrl-C ended it.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.generated
            .as_ref()
            .is_some_and(|made| made.finish == FinishReason::Cancelled)
    }
}

impl Edges {
    fn apply(self, text: &str) -> &str {
        match self {
            Edges::Trim => text.trim(),
            Edges::Keep => text,
        }
    }
}

/// Prints a text as it comes.
struct Writer {
    format: Format,
    edges: Edges,
    begun: bool,
    /// Spaces that are printed only if text follows.
    held: String,
}

impl Writer {
    fn push(&mut self, text: &str) -> Result<(), Failure> {
        if self.format == Format::Json {
            return Ok(());
        }
        if self.edges == Edges::Keep {
            return output::print(text);
        }
        let text = if self.begun { text } else { text.trim_start() };
        if text.is_empty() {
            return Ok(());
        }
        self.begun = true;
        self.held.push_str(text);
        let shown = self.held.trim_end().len();
        let rest = self.held.split_off(shown);
        let text = std::mem::replace(&mut self.held, rest);
        output::print(&text)
    }
}

fn finish(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::EndOfText => END_OF_TEXT,
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::ContextFull => "context_full",
        FinishReason::Cancelled => "cancelled",
    }
}
