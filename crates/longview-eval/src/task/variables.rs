//! `vt`: variables that are assigned from one another.

use std::collections::HashSet;

use longview_engine::sampling::Rng;

use super::{Making, ONE_FACT, Question, Sample};
use crate::draw::{capitals, number, unused};
use crate::haystack::Planted;
use crate::score::Scorer;
use crate::wording::{asks_for, fill};

/// Assignments after the first. RULER's default.
const STEPS: usize = 4;

/// Letters of a name.
const LETTERS: usize = 3;

/// A chain of assignments in sentences that say nothing; a unit is one of them.
pub(super) fn chain(making: &Making<'_>, rng: &mut Rng, units: usize) -> Sample {
    let words = &making.wording.variables;
    let mut used = HashSet::new();
    let names: Vec<String> = (0..=STEPS)
        .map(|_| unused(&mut used, || capitals(rng, LETTERS)))
        .collect();
    let value = number(rng, making.wording.digits);
    let mut depths: Vec<f64> = names.iter().map(|_| rng.next_f64()).collect();
    depths.sort_by(f64::total_cmp);
    let assignment = |at: usize| match at {
        0 => fill(&words.set, &[("name", &names[0]), ("value", &value)]),
        _ => fill(
            &words.copy,
            &[("name", &names[at]), ("other", &names[at - 1])],
        ),
    };
    let planted: Vec<Planted> = depths
        .into_iter()
        .enumerate()
        .map(|(at, depth)| Planted {
            depth,
            text: assignment(at),
        })
        .collect();
    let text = super::facts::noise(making, units, &planted);
    let ask = |values: &[(&str, &str)], answers: Vec<String>| Question {
        text: fill(&words.question, values),
        answers,
        scorer: Scorer::All,
        max_tokens: ONE_FACT,
    };
    let questions = if asks_for(&words.question, "name") {
        let of_name = |name: &String| ask(&[("name", name)], vec![value.clone()]);
        names.iter().map(of_name).collect()
    } else {
        vec![ask(&[("value", &value)], names.clone())]
    };
    Sample {
        document: fill(&words.document, &[("text", &text)]),
        questions,
    }
}
