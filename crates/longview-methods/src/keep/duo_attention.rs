//! Paper: <https://arxiv.org/abs/2410.10819> (Xiao et al., DuoAttention: Efficient Long-Context LLM
//! Inference with Retrieval and Streaming Heads, 2024).
//!
//! Some KV heads retrieve and keep everything; the others stream and keep the first and the last
//! tokens. Which is which was found beforehand: one number from 0 to 1 a head, in a file of the
//! published form, a line a layer with a number a KV head between tabs. As many heads as the budget
//! has room for keep everything, the highest numbers first; a budget of 50% is the paper's sparsity
//! of a half, less what streaming heads take.

use std::fs;

use longview_kv::KvError;
use longview_kv::keep::{Allocate, Allocation, LayerView, Question, Scope, Score, Scores};

use super::budgets::heads::whole_heads;
use super::{keep, parameter};
use crate::arguments::Arguments;
use crate::error::MethodError;
use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `duo-attention(scores, budget, sinks, recent, decode)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "duo-attention",
    exact: false,
    paper: Some("https://arxiv.org/abs/2410.10819"),
    doc: "heads that retrieve keep everything, the others the first and the last tokens",
    parameters: &[
        Parameter {
            name: "scores",
            default: "",
            unit: "",
            doc: "a file with a line a layer and a number a KV head, such as full_attention_heads.tsv",
            domain: Domain::Path,
        },
        parameter::budget("50%"),
        parameter::sinks("64"),
        parameter::recent("256"),
        parameter::decode("64"),
    ],
    build: Build::Keep(|arguments| {
        let scores = read(arguments)?;
        let layers = scores.len();
        let mut plan = keep(
            arguments,
            Question::Unseen,
            Recency {
                layers,
                heads: scores[0].len(),
            },
        )?;
        plan.allocate = Box::new(Duo { scores });
        Ok(plan)
    }),
};

/// The later, the better.
struct Recency {
    layers: usize,
    heads: usize,
}

struct Duo {
    /// `[layers][heads]`
    scores: Vec<Vec<f32>>,
}

impl Score for Recency {
    fn score(&self, layer: &LayerView<'_>, scores: &mut Scores) -> Result<(), KvError> {
        if (layer.layers(), layer.heads()) != (self.layers, self.heads) {
            return Err(KvError::KeepRefused {
                method: "duo-attention".to_owned(),
                why: format!(
                    "its scores are of {} layers with {} KV heads, but the model has {} with {}: they \
                     are another model's",
                    self.layers,
                    self.heads,
                    layer.layers(),
                    layer.heads()
                ),
            });
        }
        for head in 0..layer.heads() {
            for (pair, score) in scores.head_mut(head).iter_mut().enumerate() {
                *score = layer.position(head, pair) as f32;
            }
        }
        Ok(())
    }
}

impl Allocate for Duo {
    fn scope(&self) -> Scope {
        Scope::Model
    }

    fn wanted(&self, ask: &Allocation<'_>) -> Vec<Vec<f64>> {
        whole_heads(ask, &self.scores)
    }
}

/// The numbers of the file, clamped to 0..1.
fn read(arguments: &Arguments) -> Result<Vec<Vec<f32>>, MethodError> {
    let path = arguments.path("scores");
    let wrong = |problem: String| MethodError::File {
        method: METHOD.name.to_owned(),
        path: path.to_owned(),
        problem,
    };
    let text = fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let mut layers: Vec<Vec<f32>> = Vec::new();
    for (index, line) in text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .enumerate()
    {
        let number = |word: &str| match word.trim().parse::<f32>() {
            Ok(number) if number.is_finite() => Ok(number.clamp(0.0, 1.0)),
            _ => Err(wrong(format!(
                "line {}: {word:?} is not a number",
                index + 1
            ))),
        };
        let layer: Vec<f32> = line
            .split_whitespace()
            .map(number)
            .collect::<Result<_, _>>()?;
        if layers
            .first()
            .is_some_and(|first| first.len() != layer.len())
        {
            return Err(wrong(format!(
                "line {} has {} numbers, the first has {}",
                index + 1,
                layer.len(),
                layers[0].len()
            )));
        }
        layers.push(layer);
    }
    match layers.is_empty() {
        true => Err(wrong("it holds no numbers".to_owned())),
        false => Ok(layers),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Toy;
    use super::*;
    use crate::choice::Methods;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn retrieval_heads_keep_everything_and_the_others_stream() {
        let scores = file("0.9\t-0.02\n0.1\t0.8\n");
        let mut toy = Toy::new(2, 2, 4);
        let path = scores.path().display();
        toy.keep(
            &format!("duo-attention(scores=\"{path}\", budget=60, sinks=4, recent=16)"),
            100,
        );
        toy.read(100);
        toy.compress();
        let stream: Vec<u32> = (0..4).chain(84..100).collect();
        assert_eq!(toy.positions(0, 0).len(), 100);
        assert_eq!(toy.positions(1, 1).len(), 100);
        assert_eq!(toy.positions(0, 1), stream);
        assert_eq!(toy.positions(1, 0), stream);
    }

    #[test]
    fn files_of_other_models_and_no_scores_are_refused() {
        let set = |text: &str| {
            let scores = file(text);
            let mut methods = Methods::new();
            let path = scores.path().display();
            let text = format!("duo-attention(scores=\"{path}\", budget=60, sinks=1, recent=1)");
            methods
                .set(Stage::Keep, &text)
                .map_err(|error| error.to_string())
        };
        assert!(
            set("1 2\n3\n")
                .unwrap_err()
                .contains("line 2 has 1 numbers")
        );
        assert!(set("1 x\n").unwrap_err().contains("\"x\" is not a number"));
        assert!(set("\n").unwrap_err().contains("no numbers"));
        let mut methods = Methods::new();
        let missing = methods.set(Stage::Keep, "duo-attention(scores=\"/nowhere\")");
        assert!(missing.unwrap_err().to_string().contains("/nowhere"));
        let scores = file("0.5 0.5\n");
        let mut toy = Toy::new(2, 2, 4);
        let path = scores.path().display();
        toy.keep(
            &format!("duo-attention(scores=\"{path}\", budget=20, sinks=1, recent=1)"),
            50,
        );
        toy.read(50);
        let message = toy.try_compress().unwrap_err().to_string();
        assert!(message.contains("another model's"), "{message}");
    }
}
