//! `longview bench`: tokens a second, and what share of the machine's limits that is.

mod profile;
mod roofline;
mod streams;
mod synthetic;

use std::time::{Duration, Instant};

use longview::keep::{Keep, KeepReport, Needs};
use longview::limits::{self, Limits};
use longview::methods::Stage;
use longview::models::Profile;
use longview::read::ReadReport;
use longview::sampling::Rng;
use longview::{Context, Control, EndOfText, Event, GenerateOptions, Tokenizer};
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::{BenchArgs, Format};
use crate::failure::Failure;
use crate::interrupt;
use crate::machine::beside_the_peak;
use crate::output;
use crate::progress::Progress;
use crate::session::Session;
use crate::size::human_count;
use profile::Spent;
use roofline::Least;

/// Beyond this, memory bandwidth is that of the memory and not of a cache.
const LARGEST_BUFFER: u64 = 1 << 30;

/// One figure.
#[derive(Clone, Debug, Serialize)]
struct Run {
    /// `prefill` or `decode`.
    kind: &'static str,
    /// Texts generated side by side; 1 for prefill.
    streams: usize,
    /// Tokens read or generated, of all streams.
    tokens: usize,
    /// Tokens in the context before.
    depth: usize,
    /// The best of the rounds.
    tokens_per_second: f64,
    /// Time this machine needs at least ÷ time measured.
    share_of_limit: f64,
    /// The same with the memory of the time instead of the best that was seen: the median of the rounds' shares,
    /// each with what memory gave before it and after it. Only where memory is the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    share_at_the_time: Option<f64>,
    /// What the time of one more round was spent on, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_json")]
    profile: Option<Spent>,
}

fn as_json<S: serde::Serializer>(
    profile: &Option<Spent>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    profile.as_ref().map(profile::json).serialize(serializer)
}

/// What a keep method has left of what a depth is filled with, before the runs at it.
#[derive(Clone, Debug, Serialize)]
struct KeptAt {
    depth: usize,
    pairs_seen: u64,
    pairs_kept: u64,
    kv_bytes: u64,
    /// What all its decisions took.
    seconds: f64,
}

/// Measures every prompt length and the generation at every depth.
pub(crate) fn run(args: &BenchArgs, format: Format) -> Result<(), Failure> {
    if args.rounds == 0 {
        return Err(Failure::wrong(
            "--rounds 0 measures nothing; give at least 1",
        ));
    }
    let mut session = Session::open(&args.engine, &args.methods)?;
    session.refuse_shift("bench")?;
    let longest = longest(args);
    let deepest = args.depth.iter().copied().max().unwrap_or(0);
    let limit = session.engine.model().blueprint().max_positions;
    if deepest.saturating_add(longest) > limit {
        return Err(Failure::wrong(format!(
            "depth {deepest} and {longest} tokens are more than the model's context of {limit}"
        )));
    }
    let methods = session.methods.acting();
    let fits = session
        .engine
        .plan_with(&methods, deepest + longest, deepest + longest)?;
    if !fits.fits() {
        return Err(longview::EngineError::DoesNotFit(Box::new(fits)).into());
    }
    if args.synthetic_kv && deepest > 0 {
        check_synthetic(methods.keep.as_deref())?;
        session.notices.push(
            "the depths are filled with random keys and values, not with a text that was read"
                .to_owned(),
        );
    }
    for &depth in &args.depth {
        let read = if depth > 0 { depth } else { longest };
        session.foretell(read, depth + longest)?;
    }
    if format == Format::Text {
        session
            .notices
            .iter()
            .for_each(|notice| output::tell(notice));
    }
    let mut bench = Bench {
        session: &session,
        rounds: args.rounds,
        runs: Vec::new(),
        kept: Vec::new(),
        limits: None,
    };
    for &depth in &args.depth {
        bench.at_depth(args, depth)?;
    }
    let (runs, kept, limits) = (bench.runs, bench.kept, bench.limits);
    match format {
        Format::Json => {
            let mut object = session.summary();
            object.insert(
                "limits".to_owned(),
                limits.as_ref().map_or(Value::Null, limits_json),
            );
            object.insert("runs".to_owned(), json!(runs));
            if !kept.is_empty() {
                object.insert("kept".to_owned(), json!(kept));
            }
            output::print_json(&object)
        }
        Format::Text => output::print(&text(&session, limits.as_ref(), &runs, &kept)),
    }
}

/// The limits as the contract names them.
pub(super) fn limits_json(limits: &Limits) -> Value {
    json!({
        "memory_gb_per_s": limits.memory_gb_per_s,
        "int8_tops": limits.int8_tops,
        "f32_gflops": limits.f32_gflops,
    })
}

/// Refuses a keep method that wants to know of tokens what only computing them says.
fn check_synthetic(keep: Option<&Keep>) -> Result<(), Failure> {
    let gathered = |keep: &&Keep| Needs {
        repeat: 0,
        ..keep.score.needs()
    };
    match keep.filter(|keep| gathered(keep) != Needs::default()) {
        Some(keep) => Err(Failure::wrong(format!(
            "--synthetic-kv fills a depth without computing its tokens, of which --keep {} wants more than keys \
             and values; leave --synthetic-kv out, or measure a method that goes by keys alone",
            keep.text
        ))),
        _ => Ok(()),
    }
}

/// Tokens that are read or generated at most after a depth.
fn longest(args: &BenchArgs) -> usize {
    // Generation begins with a token that is read.
    let prompts = args.prompt.iter().copied();
    prompts.fold(args.generate.saturating_add(1), usize::max)
}

struct Bench<'a> {
    session: &'a Session,
    rounds: usize,
    runs: Vec<Run>,
    kept: Vec<KeptAt>,
    /// The first depth's, which is the one that is reported.
    limits: Option<Limits>,
}

impl Bench<'_> {
    fn at_depth(&mut self, args: &BenchArgs, depth: usize) -> Result<(), Failure> {
        let engine = &self.session.engine;
        let longest = longest(args);
        let methods = self.session.methods.acting();
        let all = depth + longest;
        // A budget by share is one of what is read before the runs.
        let read = if depth > 0 { depth } else { all };
        let mut base = engine.new_context_with(&methods, read, all)?;
        if depth > 0 && args.synthetic_kv {
            synthetic::fill(engine, &mut base, depth)?;
        } else if depth > 0 {
            self.session.read(&mut base, &self.tokens(depth))?;
        }
        let seen_depth = self.decide(&mut base)?;
        let spinner = Progress::spinner(format!("measuring at depth {depth}"));
        let buffer = (roofline::weights_read(engine) + base.kv_bytes()).min(LARGEST_BUFFER);
        let buffer = buffer.max(1 << 20) as usize;
        let exec = engine.exec();
        let measure_limits = || beside_the_peak(|| limits::measure(exec.isa, &exec.pool, buffer));
        let before = measure_limits();
        let mut measured = Vec::new();
        for &count in args.prompt.iter().filter(|&&count| count > 0) {
            let prompt = self.tokens(count);
            let run = || prefill(self.session, &base, &prompt);
            measured.push(Measured {
                kind: "prefill",
                streams: 1,
                tokens: count,
                time: self.best(&run)?,
                memory: Vec::new(),
                work: Least::prefill(engine, seen_depth, count, methods.prefill.as_deref()),
                profile: self.profile(args, &run)?,
            });
        }
        for &streams in args.streams.iter().filter(|_| args.generate > 0) {
            let run = || match streams {
                1 => decode(self.session, &base, args.generate),
                _ => streams::decode(self.session, &base, streams, args.generate),
            };
            let rounds = self.beside_memory(buffer, &run)?;
            let best = rounds.iter().map(|(decoded, _)| *decoded).min();
            let Decoded { time, count, read } = best.unwrap_or_default();
            let memory = rounds
                .iter()
                .map(|&(decoded, memory)| (decoded.time, memory));
            measured.push(Measured {
                kind: "decode",
                streams,
                tokens: count,
                time,
                memory: memory.collect(),
                work: Least::decode(engine, depth, count / streams, streams, &read),
                profile: self.profile(args, &run)?,
            });
        }
        // Before and after the runs: memory that others slow down for seconds would make a limit
        // below what was reached.
        let limits = before.or_better(measure_limits());
        self.limits.get_or_insert(limits);
        let runs = measured.into_iter().map(|one| one.run(depth, &limits));
        self.runs.extend(runs);
        spinner.finish();
        Ok(())
    }

    fn tokens(&self, count: usize) -> Vec<u32> {
        tokens(self.session.engine.tokenizer(), count)
    }

    /// Lets the keep method of `base`, if it has one, decide on what was read. Returns how many tokens its
    /// pairs are worth then.
    fn decide(&mut self, base: &mut Context) -> Result<usize, Failure> {
        let depth = base.len();
        if base.keep_method().is_none() || depth == 0 {
            return Ok(depth);
        }
        self.session.engine.compress(base)?;
        base.settle();
        let report = base.keep_report();
        Ok(report.map_or(depth, |report| {
            let share = report.pairs_kept as f64 / report.pairs_seen.max(1) as f64;
            self.kept.push(KeptAt {
                depth,
                pairs_seen: report.pairs_seen,
                pairs_kept: report.pairs_kept,
                kv_bytes: base.kv_bytes(),
                seconds: report.time.as_secs_f64(),
            });
            (share * depth as f64) as usize
        }))
    }

    /// The least of what the rounds gave, times first.
    fn best<T: Ord>(&self, run: &impl Fn() -> Result<T, Failure>) -> Result<T, Failure> {
        let mut best = run()?;
        interrupt::check()?;
        for _ in 1..self.rounds {
            best = best.min(run()?);
            interrupt::check()?;
        }
        Ok(best)
    }

    /// What every round gave, each with the gigabytes a second that memory gave before it and after it.
    fn beside_memory<T>(
        &self,
        buffer: usize,
        run: &impl Fn() -> Result<T, Failure>,
    ) -> Result<Vec<(T, f64)>, Failure> {
        let exec = self.session.engine.exec();
        let memory = || beside_the_peak(|| limits::memory_at_present(exec.isa, &exec.pool, buffer));
        let mut rounds = Vec::with_capacity(self.rounds);
        let mut before = memory();
        for _ in 0..self.rounds {
            let round = run()?;
            interrupt::check()?;
            let after = memory();
            rounds.push((round, (before + after) / 2.0));
            before = after;
        }
        Ok(rounds)
    }

    /// Where the time of one more round goes, where that was asked for.
    fn profile<T>(
        &self,
        args: &BenchArgs,
        run: &impl Fn() -> Result<T, Failure>,
    ) -> Result<Option<Profile>, Failure> {
        if !args.profile {
            return Ok(None);
        }
        let (result, profile) = self.session.engine.profiled(run);
        result.map(|_| Some(profile))
    }
}

/// What the rounds of one figure gave.
struct Measured {
    kind: &'static str,
    streams: usize,
    tokens: usize,
    /// The best of the rounds.
    time: Duration,
    /// The time of each round, and the gigabytes a second that memory gave then, where memory is the limit.
    memory: Vec<(Duration, f64)>,
    work: Least,
    profile: Option<Profile>,
}

impl Measured {
    fn run(self, depth: usize, limits: &Limits) -> Run {
        let seconds = self.time.as_secs_f64().max(1e-9);
        let share = |&(time, memory_gb_per_s): &(Duration, f64)| {
            let then = Limits {
                memory_gb_per_s,
                ..*limits
            };
            self.work.least_seconds(&then) / time.as_secs_f64().max(1e-9)
        };
        let mut shares: Vec<f64> = self.memory.iter().map(share).collect();
        shares.sort_by(f64::total_cmp);
        let middle = shares.len() / 2;
        Run {
            kind: self.kind,
            streams: self.streams,
            tokens: self.tokens,
            depth,
            tokens_per_second: self.tokens as f64 / seconds,
            share_of_limit: self.work.least_seconds(limits) / seconds,
            share_at_the_time: match shares.len() % 2 {
                _ if shares.is_empty() => None,
                0 => Some((shares[middle - 1] + shares[middle]) / 2.0),
                _ => Some(shares[middle]),
            },
            profile: self
                .profile
                .map(|times| Spent::new(times, &self.work, limits)),
        }
    }
}

fn prefill(session: &Session, base: &Context, prompt: &[u32]) -> Result<Duration, Failure> {
    let mut context = base.fork();
    let start = Instant::now();
    let control = session.engine.prefill(&mut context, prompt, &mut |_| {
        if interrupt::pressed() {
            Control::Stop
        } else {
            Control::Continue
        }
    })?;
    if control == Control::Stop {
        return Err(Failure::Stopped);
    }
    Ok(start.elapsed())
}

/// Some steps.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Decoded {
    /// What they took.
    time: Duration,
    /// How many there were.
    count: usize,
    /// What they read.
    read: Pages,
}

/// Pages that steps read, of those that were there, or pairs that a keep method has left of those that were
/// made; none of either where all were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Pages {
    read: u64,
    present: u64,
}

impl Pages {
    /// What a text's methods report.
    fn of(kept: Option<&KeepReport>, read: Option<&ReadReport>) -> Pages {
        let of_kept = kept.map_or(Pages::default(), |report| Pages {
            read: report.pairs_kept,
            present: report.pairs_seen,
        });
        match read {
            // Of what was left of all there was.
            Some(report) => Pages {
                read: (report.pages_read as f64 * of_kept.share()) as u64,
                present: report.pages_present,
            },
            None => of_kept,
        }
    }

    /// The share that was read.
    fn share(&self) -> f64 {
        match self.present {
            0 => 1.0,
            present => self.read as f64 / present as f64,
        }
    }
}

/// The time of `count` steps.
fn decode(session: &Session, base: &Context, count: usize) -> Result<Decoded, Failure> {
    let mut context = base.fork();
    // What is generated attends to everything, whatever the prompts did.
    context.attend_until(context.len());
    // The first token comes with the prompt's pass and is not part of the time.
    let mut options = GenerateOptions::greedy(count + 1);
    options.end_of_text = EndOfText::Ignored;
    let start = tokens(session.engine.tokenizer(), 1);
    let generated =
        session.engine.generate(
            &mut context,
            &start,
            &mut options,
            &mut |event| match event {
                Event::Text(_) if interrupt::pressed() => Control::Stop,
                _ => Control::Continue,
            },
        )?;
    interrupt::check()?;
    let (kept, read) = (context.keep_report(), context.read_report());
    Ok(Decoded {
        time: generated.decode_time,
        count: generated.ids.len().saturating_sub(1),
        read: Pages::of(kept.as_ref(), read.as_ref()),
    })
}

/// Ordinary tokens, the same ones every time.
fn tokens(tokenizer: &Tokenizer, count: usize) -> Vec<u32> {
    let all = 0..tokenizer.vocab_size() as u32;
    let mut choice: Vec<u32> = all
        .clone()
        .filter(|&id| !tokenizer.is_special(id))
        .collect();
    if choice.is_empty() {
        // A vocabulary of special tokens alone has no others to offer.
        choice = all.collect();
    }
    let mut rng = Rng::new(1);
    let any = |_| choice[(rng.next_u64() % choice.len() as u64) as usize];
    (0..count).map(any).collect()
}

fn text(session: &Session, limits: Option<&Limits>, runs: &[Run], kept: &[KeptAt]) -> String {
    let about = session.engine.describe();
    let mut text = format!(
        "{} ({}, {}), {} threads, {} numerics, store {}\n",
        about.name,
        about.architecture,
        about.format,
        session.engine.exec().pool.threads(),
        session.engine.exec().numerics,
        session.methods.text(Stage::Store, session.engine.kv_type()),
    );
    if let Some(limits) = limits {
        text.push_str(&format!(
            "this machine: memory {:.1} GB/s, int8 {:.2} TOP/s, f32 {:.0} GFLOP/s\n\n",
            limits.memory_gb_per_s, limits.int8_tops, limits.f32_gflops
        ));
    }
    let heading = [
        "KIND",
        "STREAMS",
        "TOKENS",
        "DEPTH",
        "TOKENS/S",
        "OF THE LIMIT",
        "AT THE TIME",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for run in runs {
        rows.push(vec![
            run.kind.to_owned(),
            human_count(run.streams),
            human_count(run.tokens),
            human_count(run.depth),
            format!("{:.1}", run.tokens_per_second),
            format!("{:.0} %", 100.0 * run.share_of_limit),
            run.share_at_the_time
                .map_or_else(String::new, |share| format!("{:.0} %", 100.0 * share)),
        ]);
    }
    text.push_str(&output::table(&rows, &[1, 2, 3, 4, 5, 6]));
    for at in kept {
        text.push_str(&format!(
            "depth {}: {} of {} pairs kept, {} held, deciding took {:.1} ms\n",
            human_count(at.depth),
            at.pairs_kept,
            at.pairs_seen,
            longview::human_bytes(at.kv_bytes),
            1e3 * at.seconds
        ));
    }
    for run in runs {
        if let Some(profile) = &run.profile {
            let passes = match run.kind {
                "decode" => run.tokens / run.streams,
                _ => run.tokens.div_ceil(session.engine.chunk_tokens()),
            };
            text.push_str(&format!(
                "\n{} of {} tokens in {} streams at depth {}\n{}",
                run.kind,
                human_count(run.tokens),
                human_count(run.streams),
                human_count(run.depth),
                profile::text(profile, passes)
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_ordinary_ones_where_there_are_any() {
        let vocabulary = |special: usize| {
            let words: Vec<String> = (0..20).map(|id| format!("w{id}")).collect();
            let ids = words
                .iter()
                .zip(0..)
                .map(|(word, id)| (word.clone(), json!(id)));
            let vocab: serde_json::Map<String, Value> = ids.collect();
            let added: Vec<Value> = (0..special)
                .map(|id| json!({ "id": id, "content": words[id], "special": true }))
                .collect();
            let model = json!({ "type": "BPE", "vocab": vocab, "merges": [] });
            let file = json!({
                "added_tokens": added, "model": model, "decoder": { "type": "ByteLevel" },
            });
            Tokenizer::from_huggingface(file.to_string().as_bytes(), None, None).unwrap()
        };
        let ids = tokens(&vocabulary(18), 100);
        assert_eq!(ids.len(), 100);
        assert!(ids.iter().all(|&id| id >= 18) && ids.contains(&18) && ids.contains(&19));
        let ids = tokens(&vocabulary(20), 100);
        assert!(ids.len() == 100 && ids.iter().all(|&id| id < 20));
    }
}
