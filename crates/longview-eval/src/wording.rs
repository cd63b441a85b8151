//! The sentences that tasks are made of, so that a model is asked in words it knows.

use serde::Deserialize;

use crate::error::EvalError;

/// The fingerprint of the reference model.
const REFERENCE: &str = "82d49be1554e9a7e";

/// Templates of all tasks. Fields without a doc of their own are sentences whose placeholders
/// stand in braces; the README beside the shipped ones says more.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Wording {
    /// What the wording is called in reports.
    pub name: String,
    /// Digits of a planted number.
    pub digits: usize,
    /// What is repeated where a task wants a haystack that says nothing.
    pub noise: String,
    /// The tasks called `niah-…`, and those made of planted facts.
    pub needle: NeedleWording,
    /// `vt`.
    pub variables: VariablesWording,
    /// `cwe`.
    pub common: ListWording,
    /// `fwe`.
    pub frequent: ListWording,
    /// `qa-1` and `qa-2`.
    pub passages: PassagesWording,
}

/// How facts are planted and asked for.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct NeedleWording {
    /// `{text}`.
    pub document: String,
    /// `{key}` and `{value}`.
    pub fact: String,
    /// `{key}`.
    pub question: String,
    /// `{key}`: asks for all values of one key; `question` where the model knows no such question.
    pub all_values: Option<String>,
    /// `{keys}`: asks for several keys at once; where the model knows no such question each is
    /// asked alone.
    pub all_keys: Option<String>,
}

/// How variables are set and asked for.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct VariablesWording {
    /// `{text}`.
    pub document: String,
    /// `{name}` and `{value}`.
    pub set: String,
    /// `{name}` and `{other}`.
    pub copy: String,
    /// With `{value}` it asks for the names of all variables that have it; with `{name}` for the
    /// value of one, and every variable of the chain is asked for.
    pub question: String,
}

/// How words of a list are asked for.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ListWording {
    /// `{text}`.
    pub document: String,
    /// No placeholder.
    pub question: String,
}

/// How passages are given and asked about.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct PassagesWording {
    /// `{text}`, and `{number}` if wanted.
    pub passage: String,
    /// `{question}`, or `{opening}`: the words of the passage that stand before the answer.
    pub question: String,
}

impl Wording {
    /// The wording that the reference model was trained on.
    pub fn needle() -> Wording {
        Wording::shipped(include_str!("../data/wordings/needle.json"))
    }

    /// Plain English for models that follow instructions.
    pub fn general() -> Wording {
        Wording::shipped(include_str!("../data/wordings/general.json"))
    }

    /// The one that suits a model with this fingerprint: `needle` for the reference model, however its file is
    /// named or quantised, `general` for others.
    pub fn suiting(fingerprint: &str) -> Wording {
        match fingerprint {
            REFERENCE => Wording::needle(),
            _ => Wording::general(),
        }
    }

    fn shipped(json: &str) -> Wording {
        Wording::from_json("a wording that is shipped", json)
            .expect("the wordings shipped are checked by a test")
    }

    /// Reads a wording; `name` is the file's in errors.
    ///
    /// # Errors
    /// [`EvalError::Wording`] when it is no wording, or a sentence lacks what it must name.
    pub fn from_json(name: &str, json: &str) -> Result<Wording, EvalError> {
        let wrong = |what: String| EvalError::Wording {
            file: name.to_owned(),
            what,
        };
        let wording: Wording =
            serde_json::from_str(json).map_err(|error| wrong(error.to_string()))?;
        wording.check().map_err(wrong)?;
        Ok(wording)
    }

    fn check(&self) -> Result<(), String> {
        if !(1..=18).contains(&self.digits) {
            return Err(format!("digits is {}, not 1 to 18", self.digits));
        }
        if self.noise.split_whitespace().next().is_none() {
            return Err("noise is empty".to_owned());
        }
        let mut sentences: Vec<(&str, &str, &[&str])> = vec![
            ("needle.document", &self.needle.document, &["text"]),
            ("needle.fact", &self.needle.fact, &["key", "value"]),
            ("needle.question", &self.needle.question, &["key"]),
            ("variables.document", &self.variables.document, &["text"]),
            ("variables.set", &self.variables.set, &["name", "value"]),
            ("variables.copy", &self.variables.copy, &["name", "other"]),
            ("common.document", &self.common.document, &["text"]),
            ("common.question", &self.common.question, &[]),
            ("frequent.document", &self.frequent.document, &["text"]),
            ("frequent.question", &self.frequent.question, &[]),
        ];
        let asked_by_name = asks_for(&self.variables.question, "name");
        let of_variables: &[&str] = if asked_by_name { &["name"] } else { &["value"] };
        sentences.push(("variables.question", &self.variables.question, of_variables));
        let numbered = asks_for(&self.passages.passage, "number");
        let of_passage: &[&str] = if numbered {
            &["text", "number"]
        } else {
            &["text"]
        };
        sentences.push(("passages.passage", &self.passages.passage, of_passage));
        let opened = asks_for(&self.passages.question, "opening");
        let of_question: &[&str] = if opened { &["opening"] } else { &["question"] };
        sentences.push(("passages.question", &self.passages.question, of_question));
        if let Some(sentence) = &self.needle.all_values {
            sentences.push(("needle.all_values", sentence, &["key"]));
        }
        if let Some(sentence) = &self.needle.all_keys {
            sentences.push(("needle.all_keys", sentence, &["keys"]));
        }
        for (field, sentence, wanted) in sentences {
            let given = placeholders(sentence);
            if let Some(missing) = wanted.iter().find(|name| !given.contains(*name)) {
                return Err(format!("{field} has no {{{missing}}}: {sentence:?}"));
            }
            if let Some(unknown) = given.iter().find(|name| !wanted.contains(*name)) {
                return Err(format!(
                    "{field} has a {{{unknown}}} that nothing fills: {sentence:?}"
                ));
            }
        }
        Ok(())
    }
}

/// Whether a sentence has the placeholder `name`.
pub(crate) fn asks_for(sentence: &str, name: &str) -> bool {
    placeholders(sentence).contains(&name)
}

/// `sentence` with every placeholder replaced, all at once: what a value holds is never taken for
/// a placeholder.
pub(crate) fn fill(sentence: &str, values: &[(&str, &str)]) -> String {
    let mut text = String::new();
    let mut rest = sentence;
    while let Some((before, name, after)) = next_placeholder(rest) {
        text.push_str(before);
        match values.iter().find(|(known, _)| *known == name) {
            Some((_, value)) => text.push_str(value),
            None => text.push_str(&rest[before.len()..rest.len() - after.len()]),
        }
        rest = after;
    }
    text + rest
}

fn placeholders(sentence: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut rest = sentence;
    while let Some((_, name, after)) = next_placeholder(rest) {
        names.push(name);
        rest = after;
    }
    names
}

/// What stands before the next placeholder, its name, and what follows it.
fn next_placeholder(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once('{')?;
    let (name, after) = rest.split_once('}')?;
    Some((before, name, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_wordings_are_sound() {
        assert_eq!(Wording::needle().name, "needle");
        assert_eq!(Wording::general().name, "general");
        assert!(asks_for(&Wording::needle().variables.question, "name"));
    }

    #[test]
    fn placeholders_are_filled_once() {
        let filled = fill("{key} is {value}.", &[("key", "{value}"), ("value", "7")]);
        assert_eq!(filled, "{value} is 7.");
        assert_eq!(fill("no {such}", &[("key", "x")]), "no {such}");
    }

    #[test]
    fn a_sentence_that_lacks_its_fact_is_refused_by_name() {
        let json = include_str!("../data/wordings/needle.json");
        for (from, to, words) in [
            (
                "for {key} is {value}.",
                "for {key}.",
                "needle.fact has no {value}",
            ),
            (
                "of VAR {name}?",
                "of VAR {nam}?",
                "variables.question has no {value}",
            ),
            ("\"digits\": 6", "\"digits\": 0", "digits is 0"),
            (
                "Continue: {opening}",
                "Go on, {opening} {x}",
                "{x} that nothing fills",
            ),
            ("\"noise\"", "\"nose\"", "unknown field"),
        ] {
            let broken = json.replacen(from, to, 1);
            assert_ne!(broken, json, "{from}");
            let message = Wording::from_json("my.json", &broken)
                .unwrap_err()
                .to_string();
            assert!(
                message.contains("my.json") && message.contains(words),
                "{message}"
            );
        }
    }
}
