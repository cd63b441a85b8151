//! `cwe` and `fwe`: words that come up often.

use std::collections::HashSet;

use longview_engine::sampling::Rng;

use super::{Making, Question, Sample};
use crate::draw::{capitals, shuffle, unused};
use crate::score::Scorer;
use crate::wording::{ListWording, fill};

/// Words that `cwe` asks for, and how often they and the others come up. RULER's defaults.
const COMMON: usize = 10;
const COMMON_TIMES: usize = 30;
const OTHER_TIMES: usize = 3;

/// Words that `fwe` asks for.
const FREQUENT: usize = 3;

/// The rank-frequency exponent of `fwe`. RULER's default.
const EXPONENT: f64 = 2.0;

/// Letters of a coded word.
const LETTERS: usize = 6;

/// A numbered list in which ten words are common; a unit is one of the other words.
pub(super) fn common(making: &Making<'_>, rng: &mut Rng, units: usize) -> Sample {
    let mut words = vocabulary(making);
    shuffle(rng, &mut words);
    let common: Vec<String> = words[..COMMON.min(words.len())].to_vec();
    let mut others = words.into_iter().skip(COMMON);
    let mut used = HashSet::new();
    // A book may have fewer words than a long list needs.
    let mut other = || {
        let coded = |rng: &mut Rng| capitals(rng, LETTERS).to_lowercase();
        others
            .next()
            .unwrap_or_else(|| unused(&mut used, || coded(rng)))
    };
    let others: Vec<String> = (0..units).map(|_| other()).collect();
    let mut list: Vec<&str> = Vec::new();
    for (words, times) in [(&common, COMMON_TIMES), (&others, OTHER_TIMES)] {
        list.extend(
            words
                .iter()
                .flat_map(|word| std::iter::repeat_n(word.as_str(), times)),
        );
    }
    shuffle(rng, &mut list);
    let numbered: Vec<String> = list
        .iter()
        .enumerate()
        .map(|(at, word)| format!("{}. {word}", at + 1))
        .collect();
    sample(&making.wording.common, &numbered.join(" "), common, 120)
}

/// Words of six letters whose frequency falls with the square of their rank; dots have the first
/// rank. A unit is one word of the text.
pub(super) fn frequent(making: &Making<'_>, rng: &mut Rng, units: usize) -> Sample {
    let mut used = HashSet::new();
    let mut word = || unused(&mut used, || capitals(rng, LETTERS).to_lowercase());
    let asked: Vec<String> = (0..FREQUENT).map(|_| word()).collect();
    // The sum of all n^-2.
    let total = std::f64::consts::PI.powi(2) / 6.0;
    let mut text: Vec<String> = Vec::with_capacity(units);
    for rank in 1.. {
        let share = (rank as f64).powf(-EXPONENT) / total;
        let times = ((share * units as f64).round() as usize)
            .max(1)
            .min(units - text.len());
        let word = match rank {
            1 => "...".to_owned(),
            2..=4 => asked[rank - 2].clone(),
            _ => word(),
        };
        text.extend(std::iter::repeat_n(word, times));
        if text.len() == units {
            break;
        }
    }
    shuffle(rng, &mut text);
    sample(&making.wording.frequent, &text.join(" "), asked, 50)
}

/// The book's words of four letters and more, each once, in its order.
fn vocabulary(making: &Making<'_>) -> Vec<String> {
    let mut seen = HashSet::new();
    let plain = |word: &str| word.len() >= 4 && word.bytes().all(|b| b.is_ascii_lowercase());
    making
        .haystack
        .words()
        .filter(|word| plain(word) && seen.insert(word.to_owned()))
        .map(str::to_owned)
        .collect()
}

fn sample(words: &ListWording, text: &str, answers: Vec<String>, max_tokens: usize) -> Sample {
    Sample {
        document: fill(&words.document, &[("text", text)]),
        questions: vec![Question {
            text: words.question.clone(),
            answers,
            scorer: Scorer::All,
            max_tokens,
        }],
    }
}
