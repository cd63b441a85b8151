//! Which heads retrieve: found on a model without training it.
//!
//! DuoAttention trains a gate a KV head on texts with pass keys, so that the model's last states change as
//! little as possible when the others stream. Here the model reads such texts as it is, and each question
//! with its answer is put before it: a head that retrieves looks back at the sentence with the pass key
//! then, and one that streams does not. A head's score is the largest attention that any token of a
//! question and its answer gives to any token of the sentence, by any of its query heads, averaged over
//! pass keys. Attention is that over the whole text.

use std::collections::HashSet;
use std::ops::Range;

use longview_engine::sampling::Rng;
use longview_engine::{Control, Engine, EngineError};
use longview_kv::keep::larger;
use longview_kv::{Segment, Wanted};
use longview_methods::{HeadScores, Methods, Stage};
use longview_text::Specials;

use crate::Progress;
use crate::draw::{number, phrase, seed_of};
use crate::error::EvalError;
use crate::haystack::Planted;
use crate::prompt::Prompter;
use crate::run::Material;
use crate::score::Scorer;
use crate::task::{Question, Sample};
use crate::wording::fill;

/// Pass keys in a text.
const PASS_KEYS: usize = 8;

/// Where the first and the last of them stand, 0 for the beginning and 1 for the end.
const DEPTHS: Range<f64> = 0.05..0.95;

/// Words of the haystack whose tokens are counted to know how many words a text may have.
const COUNTED_WORDS: usize = 500;

/// The fewest tokens of a text in which the pass keys are not all there is.
const LEAST_TOKENS: usize = 640;

/// What heads are scored on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calibration {
    /// Tokens of a text, about.
    pub length: usize,
    /// Texts, each with its own pass keys.
    pub samples: usize,
    /// What they are drawn from.
    pub seed: u64,
}

/// A text with pass keys as the model reads it.
struct Text {
    document: Vec<u32>,
    /// For each pass key the tokens of its sentence.
    sentences: Vec<Range<usize>>,
    /// For each pass key the question and the answer.
    asked: Vec<Vec<u32>>,
}

/// Scores the heads of the model of `engine`; `on` is told how far it has come.
///
/// # Errors
/// [`EvalError::Refused`] for models without attention over a whole text and texts too short,
/// [`EvalError::TooLong`] beyond the model's context, [`EvalError::Stopped`] when `on` says so, and the
/// engine's.
pub fn calibrate(
    engine: &Engine,
    material: &Material,
    plan: &Calibration,
    on: &mut dyn FnMut(Progress) -> Control,
) -> Result<HeadScores, EvalError> {
    let refused = |why: &str| EvalError::Refused {
        why: why.to_owned(),
    };
    if engine.model().layout().is_recurrent() {
        return Err(refused(
            "the model has recurrent layers, which no keep method acts on: its heads need no scores",
        ));
    }
    if plan.length < LEAST_TOKENS || plan.samples == 0 {
        return Err(EvalError::Refused {
            why: format!("heads are scored on at least one text of at least {LEAST_TOKENS} tokens"),
        });
    }
    let limit = engine.model().blueprint().max_positions;
    if plan.length > limit {
        return Err(EvalError::TooLong {
            length: plan.length,
            limit,
        });
    }
    let prompter = Prompter::new(engine.text())?;
    let mut sums: Vec<Vec<f64>> = Vec::new();
    let mut progress = Progress {
        done: 0,
        total: plan.samples * (1 + PASS_KEYS),
    };
    for sample in 0..plan.samples {
        let seed = seed_of(plan.seed, &format!("calibrate {sample}"));
        let text = Text::new(engine, &prompter, material, plan.length, seed)?;
        let answers = text.asked.iter().map(Vec::len).max().unwrap_or(0);
        let mut context = engine.new_context(text.document.len() + answers)?;
        // Nothing leaves under it: it is in charge so that attention is watched.
        let mut methods = Methods::new();
        methods
            .set(Stage::Keep, "knorm(budget=100%, decode=never)")
            .expect("knorm has these parameters");
        let keep = methods.keep().expect("knorm is a keep method");
        engine.keep(&mut context, keep, text.document.len())?;
        let stopped = |control| match control {
            Control::Stop => Err(EvalError::Stopped),
            Control::Continue => Ok(()),
        };
        let read = engine.prefill(&mut context, &text.document, &mut |_| on(progress))?;
        stopped(read)?;
        progress.done += 1;
        for (sentence, asked) in text.sentences.iter().zip(&text.asked) {
            let mut fork = context.fork();
            fork.watch_repeat(0..text.document.len(), 0)
                .map_err(EngineError::from)?;
            for chunk in asked.chunks(engine.chunk_tokens()) {
                let segment = Segment {
                    context: &mut fork,
                    tokens: chunk,
                    wanted: Wanted::Nothing,
                };
                drop(engine.pass([segment])?);
            }
            let marks = fork.take_marks().expect("the fork was made to watch");
            sums.resize(marks.layers().len(), Vec::new());
            for (sums, heads) in sums.iter_mut().zip(marks.layers()) {
                sums.resize(heads.len(), 0.0);
                for (sum, of_head) in sums.iter_mut().zip(heads) {
                    let most = of_head[sentence.clone()].iter();
                    *sum += f64::from(most.fold(0f32, |m, &x| larger(m, x)));
                }
            }
            progress.done += 1;
            stopped(on(progress))?;
        }
    }
    let count = (plan.samples * PASS_KEYS) as f64;
    let mean = |sums: &Vec<f64>| sums.iter().map(|sum| (sum / count) as f32).collect();
    let described = engine.describe().name;
    Ok(HeadScores {
        scores: sums.iter().map(mean).collect(),
        fingerprint: Some(engine.model().fingerprint().to_owned()),
        remarks: vec![
            format!("{described}: attention to pass keys, no training (longview calibrate)"),
            format!(
                "{} texts of {} tokens with {PASS_KEYS} pass keys each, seed {}",
                plan.samples, plan.length, plan.seed
            ),
        ],
    })
}

impl Text {
    fn new(
        engine: &Engine,
        prompter: &Prompter<'_>,
        material: &Material,
        length: usize,
        seed: u64,
    ) -> Result<Text, EvalError> {
        let tokenizer = engine.tokenizer();
        let mut rng = Rng::new(seed);
        let mut used = HashSet::new();
        let words = &material.wording.needle;
        let mut facts = Vec::with_capacity(PASS_KEYS);
        let mut questions = Vec::with_capacity(PASS_KEYS);
        for _ in 0..PASS_KEYS {
            let key = phrase(&mut rng, &mut used);
            let value = number(&mut rng, material.wording.digits);
            facts.push(fill(&words.fact, &[("key", &key), ("value", &value)]));
            questions.push(Question {
                text: fill(&words.question, &[("key", &key)]),
                answers: vec![value],
                scorer: Scorer::All,
                max_tokens: 0,
            });
        }
        let start = material.haystack.sentence(&mut rng);
        let some = material.haystack.take(start, COUNTED_WORDS, &[]);
        let tokens_a_word =
            tokenizer.encode(&some, Specials::AsText)?.len() as f64 / COUNTED_WORDS as f64;
        let mut answers = Vec::with_capacity(PASS_KEYS);
        for fact in &facts {
            answers.push(tokenizer.encode(&format!(" {fact}"), Specials::AsText)?);
        }
        let planted: usize = answers.iter().map(Vec::len).sum();
        let count = (length.saturating_sub(planted) as f64 / tokens_a_word) as usize;
        let place = |(index, fact): (usize, &String)| Planted {
            depth: DEPTHS.start
                + (DEPTHS.end - DEPTHS.start) * index as f64 / (PASS_KEYS - 1) as f64,
            text: fact.clone(),
        };
        let planted: Vec<Planted> = facts.iter().enumerate().map(place).collect();
        let text = material.haystack.take(start, count.max(1), &planted);
        let sample = Sample {
            document: fill(&words.document, &[("text", &text)]),
            questions,
        };
        let prompt = prompter.prompt(&sample)?;
        let asked = prompt.questions.iter().zip(&answers);
        let asked = asked.map(|(question, answer)| [&question[..], answer].concat());
        let sentences = facts.iter().map(|fact| {
            let found = tokens_of(engine, &prompt.document, fact);
            found.ok_or_else(|| EvalError::Refused {
                why: "the chat template or the tokenizer changes the sentences that hold pass keys, so \
                      that they are not found again; give other sentences with --wording"
                    .to_owned(),
            })
        });
        Ok(Text {
            sentences: sentences.collect::<Result<_, _>>()?,
            asked: asked.collect(),
            document: prompt.document,
        })
    }
}

/// The tokens that write `sentence` in a document.
fn tokens_of(engine: &Engine, document: &[u32], sentence: &str) -> Option<Range<usize>> {
    let mut text = Vec::new();
    let mut ends = Vec::with_capacity(document.len());
    for &id in document {
        text.extend(engine.tokenizer().token_bytes(id)?);
        ends.push(text.len());
    }
    let start = text
        .windows(sentence.len())
        .position(|words| words == sentence.as_bytes())?;
    let first = ends.partition_point(|&end| end <= start);
    let last = ends.partition_point(|&end| end < start + sentence.len());
    Some(first..last + 1)
}
