//! Tasks about facts: a key and a value in one sentence.

use std::collections::HashSet;

use longview_engine::sampling::Rng;

use super::{Making, ONE_FACT, Question, Sample};
use crate::draw::{number, phrase, shuffle, unused, uuid};
use crate::haystack::Planted;
use crate::score::Scorer;
use crate::wording::fill;

/// What facts are hidden in.
#[derive(Clone, Copy)]
pub(super) enum Hay {
    /// Sentences that say nothing, again and again; a unit is one of them.
    Noise,
    /// The haystack; a unit is a word.
    Book,
}

/// What a fact says.
#[derive(Clone, Copy)]
pub(super) enum Value {
    Number,
    Uuid,
}

/// A fact.
struct Fact {
    key: String,
    value: String,
}

/// One fact, and the question about it.
pub(super) fn single(
    making: &Making<'_>,
    rng: &mut Rng,
    units: usize,
    hay: Hay,
    value: Value,
) -> Sample {
    let key = phrase(rng, &mut HashSet::new());
    let fact = Fact {
        key,
        value: draw_value(making, rng, value),
    };
    let drawn = rng.next_f64();
    let planted = [plant(making, &fact, making.depth.unwrap_or(drawn))];
    let text = match hay {
        Hay::Noise => noise(making, units, &planted),
        Hay::Book => making
            .haystack
            .take(making.haystack.sentence(rng), units, &planted),
    };
    Sample {
        document: document(making, &text),
        questions: vec![question(making, &fact)],
    }
}

/// Four facts, one of which is asked for.
pub(super) fn one_of_four(making: &Making<'_>, rng: &mut Rng, units: usize) -> Sample {
    let facts = facts(making, rng, 4);
    Sample {
        document: hidden(making, rng, units, &facts),
        questions: vec![question(making, &facts[0])],
    }
}

/// Nothing but facts, one of which is asked for; a unit is a fact.
pub(super) fn one_of_many(
    making: &Making<'_>,
    rng: &mut Rng,
    units: usize,
    value: Value,
) -> Sample {
    let mut used = HashSet::new();
    let mut fact = |rng: &mut Rng| Fact {
        key: match value {
            Value::Number => phrase(rng, &mut used),
            Value::Uuid => unused(&mut used, || uuid(rng)),
        },
        value: draw_value(making, rng, value),
    };
    let asked = fact(rng);
    let depth = rng.next_f64();
    let mut sentences: Vec<String> = (1..units).map(|_| sentence(making, &fact(rng))).collect();
    let place = (depth * units as f64) as usize;
    sentences.insert(place.min(sentences.len()), sentence(making, &asked));
    Sample {
        document: document(making, &sentences.join(" ")),
        questions: vec![question(making, &asked)],
    }
}

/// One key with four values, all asked for.
pub(super) fn four_values(making: &Making<'_>, rng: &mut Rng, units: usize) -> Sample {
    let key = phrase(rng, &mut HashSet::new());
    let values: Vec<String> = distinct_values(making, rng, 4);
    let fact = |value: &String| Fact {
        key: key.clone(),
        value: value.clone(),
    };
    let facts: Vec<Fact> = values.iter().map(fact).collect();
    let words = &making.wording.needle;
    let asks = words.all_values.as_ref().unwrap_or(&words.question);
    Sample {
        document: hidden(making, rng, units, &facts),
        questions: vec![Question {
            text: fill(asks, &[("key", &key)]),
            answers: values,
            scorer: Scorer::All,
            max_tokens: 2 * ONE_FACT,
        }],
    }
}

/// Four facts, all asked for: in one question where the model knows such a question.
pub(super) fn four_keys(making: &Making<'_>, rng: &mut Rng, units: usize) -> Sample {
    let facts = facts(making, rng, 4);
    let document = hidden(making, rng, units, &facts);
    let questions = match &making.wording.needle.all_keys {
        None => facts.iter().map(|fact| question(making, fact)).collect(),
        Some(asks) => {
            let keys: Vec<&str> = facts.iter().map(|fact| fact.key.as_str()).collect();
            vec![Question {
                text: fill(asks, &[("keys", &keys.join(", "))]),
                answers: facts.iter().map(|fact| fact.value.clone()).collect(),
                scorer: Scorer::All,
                max_tokens: 2 * ONE_FACT,
            }]
        }
    };
    Sample {
        document,
        questions,
    }
}

/// Sixteen facts, of which eight are asked for, each alone.
pub(super) fn many_questions(making: &Making<'_>, rng: &mut Rng, units: usize) -> Sample {
    let facts = facts(making, rng, 16);
    let document = hidden(making, rng, units, &facts);
    Sample {
        document,
        questions: facts[..8]
            .iter()
            .map(|fact| question(making, fact))
            .collect(),
    }
}

/// `count` facts with keys and values of their own, in an order that says nothing.
fn facts(making: &Making<'_>, rng: &mut Rng, count: usize) -> Vec<Fact> {
    let mut used = HashSet::new();
    let values = distinct_values(making, rng, count);
    let fact = |value| Fact {
        key: phrase(rng, &mut used),
        value,
    };
    values.into_iter().map(fact).collect()
}

fn distinct_values(making: &Making<'_>, rng: &mut Rng, count: usize) -> Vec<String> {
    let mut used = HashSet::new();
    let digits = making.wording.digits;
    // One or two digits may not give as many numbers as are wanted.
    let digits = digits.max(count.ilog10() as usize + 2);
    (0..count)
        .map(|_| unused(&mut used, || number(rng, digits)))
        .collect()
}

/// A document of the haystack with `facts` at depths that are drawn.
fn hidden(making: &Making<'_>, rng: &mut Rng, units: usize, facts: &[Fact]) -> String {
    let mut planted: Vec<Planted> = facts
        .iter()
        .map(|fact| plant(making, fact, rng.next_f64()))
        .collect();
    shuffle(rng, &mut planted);
    let start = making.haystack.sentence(rng);
    document(making, &making.haystack.take(start, units, &planted))
}

/// `units` sentences of noise with `planted` between them.
pub(super) fn noise(making: &Making<'_>, units: usize, planted: &[Planted]) -> String {
    let noise: Vec<&str> = making
        .wording
        .noise
        .split_inclusive(". ")
        .map(str::trim)
        .collect();
    let mut order: Vec<&Planted> = planted.iter().collect();
    order.sort_by(|a, b| a.depth.total_cmp(&b.depth));
    let place = |planted: &Planted| (planted.depth * units as f64).round() as usize;
    let mut order = order.into_iter().peekable();
    let mut sentences = Vec::with_capacity(units + planted.len());
    for at in 0..=units {
        while let Some(planted) = order.next_if(|planted| place(planted).min(units) == at) {
            sentences.push(planted.text.as_str());
        }
        if at < units {
            sentences.push(noise[at % noise.len()]);
        }
    }
    sentences.join(" ")
}

fn draw_value(making: &Making<'_>, rng: &mut Rng, value: Value) -> String {
    match value {
        Value::Number => number(rng, making.wording.digits),
        Value::Uuid => uuid(rng),
    }
}

fn plant(making: &Making<'_>, fact: &Fact, depth: f64) -> Planted {
    Planted {
        depth,
        text: sentence(making, fact),
    }
}

fn sentence(making: &Making<'_>, fact: &Fact) -> String {
    let values = [("key", fact.key.as_str()), ("value", fact.value.as_str())];
    fill(&making.wording.needle.fact, &values)
}

fn question(making: &Making<'_>, fact: &Fact) -> Question {
    Question {
        text: fill(&making.wording.needle.question, &[("key", &fact.key)]),
        answers: vec![fact.value.clone()],
        scorer: Scorer::All,
        max_tokens: ONE_FACT,
    }
}

fn document(making: &Making<'_>, text: &str) -> String {
    fill(&making.wording.needle.document, &[("text", text)])
}
