//! `qa-1` and `qa-2`: questions that paragraphs of a book answer.

use longview_engine::sampling::Rng;
use serde::Deserialize;

use super::{Making, Question, Sample, Turn, questions_error};
use crate::draw::{seed_of, shuffle};
use crate::error::EvalError;
use crate::haystack::Haystack;
use crate::score::Scorer;
use crate::wording::fill;

/// The most tokens of an answer. RULER's.
const ANSWER_TOKENS: usize = 32;

/// Paragraphs with fewer words are too short to be a passage among others.
const PASSAGE_WORDS: usize = 20;

/// Questions about paragraphs.
#[derive(Clone, Debug)]
pub struct Questions {
    asked: Vec<Asked>,
    /// Paragraphs that answer no question.
    others: Vec<String>,
}

#[derive(Clone, Debug)]
struct Asked {
    entry: Entry,
    /// The paragraphs that answer it.
    passages: Vec<String>,
}

/// A question as files have it; the README beside the shipped ones says what the fields mean.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    question: String,
    answers: Vec<String>,
    clues: Vec<String>,
    opening: String,
}

impl Questions {
    /// The questions that are shipped, about the book that is.
    pub fn shipped() -> Questions {
        let json = include_str!("../../data/questions.json");
        Questions::from_json(json, &Haystack::book())
            .expect("the questions shipped are checked by a test")
    }

    /// Reads questions about a text.
    ///
    /// # Errors
    /// [`EvalError::Questions`] when a clue is not in one paragraph alone, or the answer does not
    /// follow the opening.
    pub fn from_json(json: &str, text: &Haystack) -> Result<Questions, EvalError> {
        let entries: Vec<Entry> =
            serde_json::from_str(json).map_err(|error| questions_error(error.to_string()))?;
        let asked: Result<Vec<Asked>, EvalError> = entries
            .into_iter()
            .map(|entry| Asked::new(entry, text))
            .collect();
        let asked = asked?;
        let is_other = |paragraph: &&String| {
            paragraph.split(' ').count() >= PASSAGE_WORDS
                && !asked.iter().any(|asked| asked.passages.contains(paragraph))
        };
        let others: Vec<String> = text.paragraphs().iter().filter(is_other).cloned().collect();
        for hops in [1, 2] {
            if !asked.iter().any(|asked| asked.passages.len() == hops) {
                return Err(questions_error(format!(
                    "no question needs {hops} passages"
                )));
            }
        }
        if others.is_empty() {
            return Err(questions_error("the text has no other passages".to_owned()));
        }
        Ok(Questions { asked, others })
    }
}

impl Asked {
    fn new(entry: Entry, text: &Haystack) -> Result<Asked, EvalError> {
        let find = |clue: &String| {
            let mut found = text
                .paragraphs()
                .iter()
                .filter(|paragraph| paragraph.contains(clue));
            match (found.next(), found.next()) {
                (Some(one), None) => Ok(one.clone()),
                (None, _) => Err(questions_error(format!("{clue:?} is in no paragraph"))),
                _ => Err(questions_error(format!(
                    "{clue:?} is in several paragraphs"
                ))),
            }
        };
        let passages: Vec<String> = entry.clues.iter().map(find).collect::<Result<_, _>>()?;
        let follows = |passage: &String| {
            let rest = passage
                .split_once(&entry.opening)
                .map(|(_, rest)| rest.trim_start());
            rest.is_some_and(|rest| entry.answers.iter().any(|answer| rest.starts_with(answer)))
        };
        if !passages.iter().any(follows) {
            let opening = &entry.opening;
            let what = format!("no answer follows {opening:?} in the passages of its clues");
            return Err(questions_error(what));
        }
        Ok(Asked { entry, passages })
    }
}

/// The passages of one question that takes `hops` of them, among others; a unit is another one.
pub(super) fn ask(making: &Making<'_>, rng: &mut Rng, units: usize, hops: usize) -> Sample {
    let questions = making.questions;
    let of_kind: Vec<&Asked> = questions
        .asked
        .iter()
        .filter(|asked| asked.passages.len() == hops)
        .collect();
    let Asked { entry, passages } = in_turn(&of_kind, making.turn, hops);
    let mut others: Vec<&String> = questions.others.iter().collect();
    shuffle(rng, &mut others);
    let mut all: Vec<&String> = others
        .into_iter()
        .cycle()
        .take(units)
        .chain(passages)
        .collect();
    shuffle(rng, &mut all);
    let words = &making.wording.passages;
    let numbered: Vec<String> = all
        .iter()
        .enumerate()
        .map(|(at, text)| {
            let number = (at + 1).to_string();
            fill(&words.passage, &[("number", &number), ("text", text)])
        })
        .collect();
    let asks = [
        ("question", entry.question.as_str()),
        ("opening", entry.opening.as_str()),
    ];
    Sample {
        document: numbered.join("\n\n"),
        questions: vec![Question {
            text: fill(&words.question, &asks),
            answers: entry.answers.clone(),
            scorer: Scorer::Any,
            max_tokens: ANSWER_TOKENS,
        }],
    }
}

/// The one of `items` whose turn it is: all of them come up, in an order drawn for the set, before any
/// comes up again, in another order.
fn in_turn<'a, T>(items: &[&'a T], turn: Turn, hops: usize) -> &'a T {
    let round = turn.sample / items.len();
    let mut rng = Rng::new(seed_of(turn.seed, &format!("questions {hops} {round}")));
    let mut order = items.to_vec();
    shuffle(&mut rng, &mut order);
    order[turn.sample % items.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_questions_are_answered_by_their_passages() {
        let questions = Questions::shipped();
        let count = |hops| {
            questions
                .asked
                .iter()
                .filter(|a| a.passages.len() == hops)
                .count()
        };
        assert!(count(1) >= 20 && count(2) >= 6);
        assert!(questions.others.len() > 500);
    }

    #[test]
    fn every_question_is_asked_once_before_any_is_asked_again() {
        let items = [0, 1, 2, 3, 4];
        let items: Vec<&i32> = items.iter().collect();
        let order = |seed, samples: std::ops::Range<usize>| -> Vec<i32> {
            let at = |sample| *in_turn(&items, Turn { seed, sample }, 1);
            samples.map(at).collect()
        };
        let rounds = [order(1, 0..5), order(1, 5..10), order(2, 0..5)];
        for round in &rounds {
            let mut all = round.clone();
            all.sort_unstable();
            assert_eq!(all, [0, 1, 2, 3, 4]);
        }
        assert!(
            rounds[0] != rounds[1] && rounds[0] != rounds[2],
            "{rounds:?}"
        );
    }

    #[test]
    fn questions_that_their_text_does_not_answer_are_refused() {
        let text = "The cat sat on the mat.\n\nThe dog sat on the mat.";
        let text = Haystack::new(text).unwrap();
        for (clue, opening, words) in [
            ("sat on", "The cat sat on", "several paragraphs"),
            ("a bird", "The cat sat on", "in no paragraph"),
            ("The cat", "The dog sat on", "no answer follows"),
        ] {
            let json = format!(
                r#"[{{"question": "Where?", "answers": ["the mat"], "clues": ["{clue}"], "opening": "{opening}"}}]"#
            );
            let message = Questions::from_json(&json, &text).unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
        }
    }
}
