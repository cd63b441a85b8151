//! Reading a document once for every way of reading it, and compressing forks of it.

use std::sync::Arc;
use std::time::Instant;

use longview_engine::{Control, EngineError};
use longview_kv::Context;
use longview_kv::keep::{Gather, Keep, Needs, Repetition, Scored};
use longview_methods::Stage;

use super::{Evaluation, Measured, compression_seconds};
use crate::error::EvalError;
use crate::setup::Setup;

/// A context that has read a document.
pub(super) struct Reading {
    /// It, until the only setup that it is for has taken it.
    context: Option<Context>,
    /// Whether it is for one setup only.
    is_alone: bool,
    /// Bytes of keys and values of the document.
    pub(super) document_bytes: u64,
    /// Seconds it took.
    pub(super) seconds: f64,
    /// The most bytes of keys and values it held meanwhile.
    pub(super) peak_bytes: u64,
    /// What the model has seen when it repeated the document, for all methods that want that done in the
    /// same way.
    pub(super) repeated: Vec<Repeated>,
    /// What it scored, for all methods that score alike.
    scored: Vec<Arc<Scored>>,
}

/// A fork of a reading in which the model has repeated the document.
pub(super) struct Repeated {
    pub(super) how: Repetition,
    pub(super) context: Context,
    /// The most bytes of keys and values held beside the document meanwhile.
    pub(super) more_bytes: u64,
}

/// A fork of a reading that was compressed as a setup says.
pub(super) struct Compressed {
    pub(super) context: Context,
    /// Bytes of keys and values held, with what a read method will keep to choose by.
    pub(super) bytes_held: u64,
    /// The most bytes of keys and values held until then.
    pub(super) peak_bytes: u64,
    /// Seconds that the methods took after the document was read.
    pub(super) seconds: f64,
}

/// How many tokens a context is made for.
#[derive(Clone, Copy)]
pub(super) struct Lengths {
    /// Those that a keep method's budget is a share of.
    pub(super) prompt: usize,
    /// All that it will hold.
    pub(super) planned: usize,
}

/// How a keep method has a document read.
#[derive(Clone, Debug, PartialEq)]
enum Reads {
    /// Like anyone else.
    Plainly,
    /// Something is gathered meanwhile: moments of the queries from so many tokens on, where it is they.
    Watching { moments_from: Option<usize> },
    /// Pairs leave meanwhile, or it gathers what only it knows to compute, so the reading is the method's
    /// own.
    Alone,
}

impl Reads {
    fn of(keep: &Arc<Keep>) -> Reads {
        let needs = keep.score.needs();
        if keep.when.block.is_some() || needs.own == Gather::Yes {
            Reads::Alone
        } else if needs.is_nothing() {
            Reads::Plainly
        } else {
            let moments = needs.query_moments == Gather::Yes;
            Reads::Watching {
                moments_from: moments.then_some(needs.moments_from),
            }
        }
    }

    /// Whether one reading is for both.
    fn shares_with(&self, other: &Reads) -> bool {
        match (self, other) {
            (
                Reads::Watching {
                    moments_from: Some(a),
                },
                Reads::Watching {
                    moments_from: Some(b),
                },
            ) => a == b,
            (Reads::Watching { .. }, Reads::Watching { .. }) => true,
            // What leaves meanwhile leaves a context that nobody shares: its memory is used again.
            (Reads::Alone, _) => false,
            _ => self == other,
        }
    }
}

/// Said where a reading is taken twice, which nothing does.
const TAKEN_ONCE: &str = "a reading is taken by the only setup that it is for, once";

/// The stages that act while a document is read.
const READING: [Stage; 3] = [Stage::Prompt, Stage::Prefill, Stage::Store];

impl Evaluation<'_> {
    /// Reads `tokens` as all of `setups` read them, of which there is at least one, gathering what
    /// their keep methods need to know.
    pub(super) fn read(
        &self,
        setups: &[&Setup],
        tokens: &[u32],
        lengths: Lengths,
    ) -> Result<Reading, EvalError> {
        let forms = setups[0].methods().kv_forms();
        let forms = forms.unwrap_or(self.engine.kv_forms());
        let mut context = self.engine.new_context_as(lengths.planned, forms)?;
        if let Some(prefill) = setups[0].methods().prefill() {
            context
                .attend_by(prefill, tokens.len())
                .map_err(EngineError::from)?;
        }
        let keeps = || setups.iter().filter_map(|setup| setup.methods().keep());
        if let Some(first) = keeps().find(|keep| Reads::of(keep) != Reads::Plainly) {
            let needs = keeps().fold(Needs::default(), |all, keep| all.and(keep.score.needs()));
            let engine = self.engine;
            engine.keep_with(&mut context, first, needs, lengths.prompt)?;
        }
        // What other contexts hold is none of this one's.
        let before = self.engine.ledger().watch_kv();
        let start = Instant::now();
        let go_on = &mut |_| Control::Continue;
        self.engine.prefill(&mut context, tokens, go_on)?;
        Ok(Reading {
            document_bytes: context.kv_bytes(),
            context: Some(context),
            is_alone: setups.len() == 1,
            seconds: start.elapsed().as_secs_f64(),
            peak_bytes: self.engine.ledger().usage().kv_peak - before,
            repeated: Vec::new(),
            scored: Vec::new(),
        })
    }

    /// A fork of `reading`, which `setup` shares, with the keep and the read method of `setup` in charge
    /// if they are not already; the reading itself where no other setup is for it, so that what leaves is free.
    pub(super) fn put_in_charge(
        &self,
        setup: &Setup,
        reading: &mut Reading,
        lengths: Lengths,
    ) -> Result<Context, EvalError> {
        let keep = setup.methods().keep();
        let wanted = keep.and_then(|keep| keep.repetition());
        let known = reading
            .repeated
            .iter()
            .find(|repeated| Some(repeated.how) == wanted);
        let mut context = match known {
            Some(repeated) => repeated.context.fork(),
            None if reading.is_alone => reading.context.take().expect(TAKEN_ONCE),
            None => reading.document().fork(),
        };
        // One that decides while a document is read has been since it began.
        if let Some(keep) = keep.filter(|keep| keep.when.block.is_none()) {
            self.engine.keep(&mut context, keep, lengths.prompt)?;
        }
        if let Some(how) = wanted.filter(|_| known.is_none()) {
            let before = self.engine.ledger().watch_kv();
            self.engine.repeat(&mut context)?;
            let report = context.keep_report();
            let is_shared = !reading.is_alone;
            if is_shared && report.is_some_and(|report| report.repeated.is_some()) {
                reading.repeated.push(Repeated {
                    how,
                    context: context.fork(),
                    more_bytes: self.engine.ledger().usage().kv_peak - before,
                });
            }
        }
        if let Some(read) = setup.methods().read() {
            context.read_by(read).map_err(EngineError::from)?;
        }
        Ok(context)
    }

    /// A fork of `reading`, a document whose questions are not known yet, compressed as `setup` says.
    pub(super) fn compress(
        &self,
        setup: &Setup,
        reading: &mut Reading,
        lengths: Lengths,
    ) -> Result<Compressed, EvalError> {
        let before = self.engine.ledger().watch_kv();
        let mut context = self.put_in_charge(setup, reading, lengths)?;
        self.score_once(reading, &mut context)?;
        if context.keep_method().is_some() && !self.engine.compress_document(&mut context)? {
            // A method that would rather see the question.
            self.engine.compress(&mut context)?;
            context.settle();
        }
        // Where the document was not taken it is still held whole beside what is kept of it.
        let more = self.engine.ledger().usage().kv_peak - before;
        // What the last chunk was read with is no part of what is held.
        context.pass_windows();
        Ok(Compressed {
            bytes_held: self.held(setup, &context),
            peak_bytes: reading.peak_with(setup, more),
            seconds: compression_seconds(&context),
            context,
        })
    }

    /// Lets the keep method in charge of `context`, a fork of `reading`, choose from scores that others
    /// which score alike choose from as well. Not where memory is limited: there it must fit beside nothing
    /// but the context.
    fn score_once(&self, reading: &mut Reading, context: &mut Context) -> Result<(), EvalError> {
        let Some(keep) = context.keep_method() else {
            return Ok(());
        };
        if self.engine.ledger().limit() != u64::MAX {
            return Ok(());
        }
        let known = reading.scored.iter().find(|scored| scored.is_by(keep));
        let scored = match known {
            Some(known) => Some(Arc::clone(known)),
            None => self.engine.score(context)?,
        };
        if let Some(scored) = scored {
            context.choose_from(&scored);
            if known.is_none() {
                reading.scored.push(scored);
            }
        }
        Ok(())
    }

    /// Bytes that `context` holds under `setup`, with what its read method will keep to choose by.
    pub(super) fn held(&self, setup: &Setup, context: &Context) -> u64 {
        let bytes = context.kv_bytes();
        bytes + self.index_bytes(setup, context, context.len(), bytes)
    }

    /// Bytes that the read method of `setup`, if it has one, will keep of the first `tokens` tokens of `context` to
    /// choose by, beside what of that is in `kv_bytes` already; at most, where a keep method holds these.
    pub(super) fn index_bytes(
        &self,
        setup: &Setup,
        context: &Context,
        tokens: usize,
        kv_bytes: u64,
    ) -> u64 {
        let Some(read) = setup.methods().read() else {
            return 0;
        };
        let made = context.read_report().map_or(0, |report| report.index_bytes);
        let all = match context.is_compressed() {
            true => read.bytes_beside(context.layout(), kv_bytes.saturating_sub(made)),
            false => read.bytes(context.layout(), tokens),
        };
        all.saturating_sub(made)
    }

    /// `setups` parted by how they read a document: those of one part share one reading.
    pub(super) fn by_reading<'s>(&self, setups: &[&'s Setup]) -> Vec<Vec<&'s Setup>> {
        let key = |setup: &Setup| {
            let mut texts = setup.texts(self.engine.kv_type());
            texts.retain(|(stage, _)| READING.contains(stage));
            let reads = setup.methods().keep().map_or(Reads::Plainly, Reads::of);
            (texts, reads)
        };
        let together = |a: &Setup, b: &Setup| {
            let ((a, a_reads), (b, b_reads)) = (key(a), key(b));
            a == b && a_reads.shares_with(&b_reads)
        };
        let mut parts: Vec<Vec<&Setup>> = Vec::new();
        for setup in setups {
            let takes_it = |part: &&mut Vec<&Setup>| part.iter().all(|one| together(one, setup));
            match parts.iter_mut().find(takes_it) {
                Some(part) => part.push(setup),
                None => parts.push(vec![setup]),
            }
        }
        parts
    }
}

impl Reading {
    /// The context, which no setup has taken yet.
    pub(super) fn document(&self) -> &Context {
        self.context.as_ref().expect(TAKEN_ONCE)
    }

    /// The most bytes of keys and values that `setup` would have held by itself, which held `more` beside
    /// the document: a repetition that others use as well is each one's own.
    pub(super) fn peak_with(&self, setup: &Setup, more: u64) -> u64 {
        let wanted = setup.methods().keep().and_then(|keep| keep.repetition());
        let repeated = self.repeated.iter();
        let mut of_setup = repeated.filter(|repeated| Some(repeated.how) == wanted);
        let repeating = of_setup.next().map_or(0, |repeated| repeated.more_bytes);
        let both = self.document_bytes + more.max(repeating);
        self.peak_bytes.max(both)
    }
}

/// The reading that the setups `part` share; where it was refused every one of them is told so.
pub(super) fn all_or_refused(
    reading: Result<Reading, EvalError>,
    part: &[&Setup],
    measured: &mut Measured<'_>,
) -> Result<Option<Reading>, EvalError> {
    let error = match reading {
        Ok(reading) => return Ok(Some(reading)),
        Err(EvalError::Engine(error)) if error.is_request_error() && !part[0].is_dense() => error,
        Err(error) => return Err(error),
    };
    let why = error.to_string();
    for setup in part {
        measured(setup, Err(EvalError::Refused { why: why.clone() }))?;
    }
    Ok(None)
}
