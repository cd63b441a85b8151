//! Paper: <https://arxiv.org/abs/2305.14160> (Wang et al., Label Words are Anchors: An Information Flow
//! Perspective for Understanding In-Context Learning, 2023), its demonstration compression.
//!
//! In a prompt of labelled examples the label words gather what stands before them, and the answer is
//! read from there: so of the examples only the label words stay, with the words of the template and
//! line breaks. A label counts where it follows the last of the words of `template`, all its tokens; what
//! comes after the last label is the question and stays; where the budget has no room for it, that is an
//! error. Pairs keep their positions. Needs no attention
//! and no training; the paper's re-weighting, which trains, is not here. For generated answers the paper
//! claims nothing.

use longview_kv::KvError;
use longview_kv::keep::{LayerView, Question, Score, Scores};

use super::{keep, parameter};
use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `label-words(labels, template, budget, sinks)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "label-words",
    exact: false,
    paper: Some("https://arxiv.org/abs/2305.14160"),
    claim: Some("demonstrations answered 1.1 to 2.9 times as fast at a small loss"),
    doc: "of labelled examples only the labels, the words of the template and line breaks stay",
    parameters: &[
        Parameter {
            name: "labels",
            default: "",
            unit: "",
            doc: "the label words, between bars, such as \"positive|negative\"",
            domain: Domain::Text,
        },
        Parameter {
            name: "template",
            default: "\"\"",
            unit: "",
            doc: "the words that every example has, between bars, such as \"Review:|Sentiment:\"; a label \
                  counts after the last of them only",
            domain: Domain::Text,
        },
        parameter::budget("50%"),
        parameter::sinks("1"),
    ],
    build: Build::Keep(|arguments| {
        let words = |name| -> Vec<Vec<u8>> {
            let words = arguments.text(name).split('|').map(str::trim);
            let words = words.filter(|word| !word.is_empty());
            words.map(|word| word.as_bytes().to_vec()).collect()
        };
        let score = LabelWords {
            text: arguments.to_string(),
            labels: words("labels"),
            template: words("template"),
        };
        keep(arguments, Question::Unseen, score)
    }),
};

struct LabelWords {
    /// The method as it is written.
    text: String,
    labels: Vec<Vec<u8>>,
    template: Vec<Vec<u8>>,
}

/// What a token is in a prompt of examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Example,
    Template,
    Label,
    Question,
}

impl Score for LabelWords {
    fn score(&self, layer: &LayerView<'_>, scores: &mut Scores) -> Result<(), KvError> {
        let mut pieces = Vec::with_capacity(layer.tokens());
        for position in 0..layer.tokens() {
            let piece = layer.spelling(layer.token(position));
            pieces.push(piece.ok_or_else(|| KvError::NotObserved {
                what: "the text of every token".to_owned(),
            })?);
        }
        let parts = self.parts(&pieces).ok_or_else(|| KvError::KeepRefused {
            method: self.text.clone(),
            why: "none of its labels stands in the text where its template says; check labels and template"
                .to_owned(),
        })?;
        for head in 0..layer.heads() {
            for (pair, score) in scores.head_mut(head).iter_mut().enumerate() {
                *score = match parts[layer.position(head, pair)] {
                    Part::Question => f32::INFINITY,
                    Part::Label => 2.0,
                    Part::Template => 1.0,
                    Part::Example => f32::NEG_INFINITY,
                };
            }
        }
        Ok(())
    }
}

impl LabelWords {
    /// What each token is, given the bytes that each writes; `None` where no label was found.
    fn parts(&self, pieces: &[Vec<u8>]) -> Option<Vec<Part>> {
        let text = pieces.concat();
        let mut of_byte = vec![Part::Example; text.len()];
        let mut mark = |from: usize, len: usize, part: Part| {
            for byte in &mut of_byte[from..from + len] {
                *byte = part.max(*byte);
            }
        };
        let mut last = None;
        for at in 0..text.len() {
            if text[at] == b'\n' {
                mark(at, 1, Part::Template);
            }
            let template = self
                .template
                .iter()
                .find(|word| text[at..].starts_with(word));
            if let Some(word) = template {
                mark(at, word.len(), Part::Template);
            }
            let label = match self.template.last() {
                None => at,
                last if last == template => {
                    let begins = at + template.map_or(0, Vec::len);
                    let spaces = text[begins..].iter().take_while(|byte| **byte == b' ');
                    begins + spaces.count()
                }
                Some(_) => continue,
            };
            let apart = |byte: Option<&u8>| byte.is_none_or(|byte| !byte.is_ascii_alphanumeric());
            let found = self.labels.iter().find(|word| {
                text[label..].starts_with(word)
                    && apart(text.get(label + word.len()))
                    && (!self.template.is_empty()
                        || apart(label.checked_sub(1).map(|at| &text[at])))
            });
            if let Some(word) = found {
                mark(label, word.len(), Part::Label);
                last = Some(label + word.len());
            }
        }
        let last = last?;
        of_byte[last..].fill(Part::Question);
        let mut end = 0;
        let of_token = |piece: &Vec<u8>| {
            let from = end;
            end += piece.len();
            // A token is what the most telling of its bytes is: a label's space comes with it.
            of_byte[from..end]
                .iter()
                .copied()
                .max()
                .unwrap_or(Part::Example)
        };
        Some(pieces.iter().map(of_token).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Toy;
    use super::*;
    use crate::choice::Methods;

    const EXAMPLES: &str = "R: fine show\nS: good\nR: bad luck\nS: bad\nR: so good\nS:";

    #[test]
    fn labels_the_template_and_the_question_stay() {
        let mut toy = Toy::new(1, 2, 4);
        toy.keep(
            "label-words(labels=\"good|bad\", template=\"R:|S:\", budget=50, sinks=0)",
            EXAMPLES.len(),
        );
        toy.read_text(EXAMPLES);
        toy.compress();
        let kept = |head| -> String {
            let positions = toy.positions(0, head).into_iter();
            positions
                .map(|at| EXAMPLES.as_bytes()[at as usize] as char)
                .collect()
        };
        // A letter a token: spaces of examples go, and "bad" and "good" where they are no labels.
        let wanted = "R:\nS:good\nR:\nS:bad\nR: so good\nS:";
        assert_eq!((kept(0), kept(1)), (wanted.to_owned(), wanted.to_owned()));
    }

    #[test]
    fn a_small_budget_keeps_labels_before_the_template() {
        let mut toy = Toy::new(1, 1, 4);
        toy.keep(
            "label-words(labels=\"yes|no\", template=\"A:\", budget=5, sinks=0)",
            20,
        );
        toy.read_text("q A: yes q A: no");
        toy.compress();
        let text: Vec<u8> = toy
            .positions(0, 0)
            .into_iter()
            .map(|at| b"q A: yes q A: no"[at as usize])
            .collect();
        assert_eq!(text, b"yesno");
    }

    #[test]
    fn a_question_beyond_the_budget_is_refused_before_anything_leaves() {
        let mut toy = Toy::new(1, 2, 4);
        toy.keep("label-words(labels=\"yes\", budget=8, sinks=0)", 20);
        toy.read_text("so yes and a long question");
        let message = toy.try_compress().unwrap_err().to_string();
        assert!(
            message.contains("room for 8 pairs a KV head, but 20 are of tokens that must stay"),
            "{message}"
        );
        assert_eq!(toy.positions(0, 1).len(), 26);
    }

    #[test]
    fn tokens_of_several_letters_are_labels_by_any_of_them() {
        let words = |labels: &[&str], template: &[&str]| LabelWords {
            text: String::new(),
            labels: labels.iter().map(|word| word.as_bytes().to_vec()).collect(),
            template: template
                .iter()
                .map(|word| word.as_bytes().to_vec())
                .collect(),
        };
        let pieces = |texts: &[&str]| -> Vec<Vec<u8>> {
            texts.iter().map(|text| text.as_bytes().to_vec()).collect()
        };
        use Part::{Example, Label, Question, Template};
        let text = pieces(&[
            "It", " was", " great", ".\n", "Mood:", " posi", "tive", "\nNext",
        ]);
        let parts = words(&["positive"], &["Mood:"]).parts(&text);
        // The last token begins with a line break that no longer counts: it follows the last label.
        let wanted = [
            Example, Example, Example, Template, Template, Label, Label, Question,
        ];
        assert_eq!(parts.unwrap(), wanted);
        // Without a template a label is a word of its own.
        let text = pieces(&["un", "positive", " positive", "!"]);
        let parts = words(&["positive"], &[]).parts(&text).unwrap();
        assert_eq!(parts, [Example, Example, Label, Question]);
        assert_eq!(words(&["none"], &[]).parts(&text), None);
    }

    #[test]
    fn a_text_without_labels_and_labels_that_are_none_are_refused() {
        let mut toy = Toy::new(1, 1, 4);
        toy.keep("label-words(labels=\"good\", budget=5)", 20);
        toy.read_text("nothing of the kind");
        let message = toy.try_compress().unwrap_err().to_string();
        assert!(
            message.contains("none of its labels stands in the text"),
            "{message}"
        );
        let mut methods = Methods::new();
        let missing = methods
            .set(Stage::Keep, "label-words")
            .unwrap_err()
            .to_string();
        assert!(missing.contains("labels must be given"), "{missing}");
    }
}
