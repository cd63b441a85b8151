//! Paper: <https://arxiv.org/abs/2410.10819> (Xiao et al., DuoAttention: Efficient Long-Context LLM
//! Inference with Retrieval and Streaming Heads, 2024).
//!
//! Some KV heads retrieve and keep everything; the others stream and keep the first and the last
//! tokens. Which is which was found beforehand: one number from 0 to 1 a head, in a file of the
//! published form, see [`HeadScores`]. The paper trains them; `longview calibrate` finds them without
//! training. As many heads as the budget has room for keep everything, the highest numbers first; a
//! budget of 50% is the paper's sparsity of a half, less what streaming heads take.

use std::fs;

use longview_kv::KvError;
use longview_kv::keep::{
    Allocate, Allocation, LayerShape, LayerView, Question, Scope, Score, Scores,
};

use super::budgets::heads::whole_heads;
use super::head_scores::HeadScores;
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
    claim: Some(
        "2.55 times less memory, 1.67 times where query heads share KV heads, \
             at little loss",
    ),
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
        let HeadScores {
            scores,
            fingerprint,
            ..
        } = read(arguments)?;
        let recency = Recency {
            layers: scores.len(),
            heads: scores[0].len(),
        };
        let mut plan = keep(arguments, Question::Unseen, recency)?;
        plan.allocate = Box::new(Duo { scores });
        plan.made_for = fingerprint;
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
    fn refuses(&self, layers: &[LayerShape]) -> Option<String> {
        let heads = layers.iter().map(|layer| layer.kv_heads).max().unwrap_or(0);
        (layers.len() != self.layers || heads != self.heads).then(|| {
            format!(
                "its scores are of {} layers with {} KV heads, but the model has {} with {heads}: they \
                 are another model's (longview calibrate finds those of this one)",
                self.layers,
                self.heads,
                layers.len(),
            )
        })
    }

    fn score(&self, layer: &LayerView<'_>, scores: &mut Scores) -> Result<(), KvError> {
        for head in 0..layer.heads() {
            for (pair, score) in scores.head_mut(head).iter_mut().enumerate() {
                // Counted from the end: the latest are told apart in a text of any length.
                *score = -((layer.tokens() - layer.position(head, pair)) as f32);
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
        let of_layer = |&layer: &usize| self.scores[layer].clone();
        let ranks: Vec<Vec<f32>> = ask.layers.iter().map(of_layer).collect();
        whole_heads(ask, &ranks)
    }
}

fn read(arguments: &Arguments) -> Result<HeadScores, MethodError> {
    let path = arguments.path("scores");
    let wrong = |problem: String| MethodError::File {
        method: METHOD.name.to_owned(),
        path: path.to_owned(),
        problem,
    };
    let text = fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    HeadScores::parse(&text).map_err(wrong)
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
        let set = |path: &std::path::Path| {
            let mut methods = Methods::new();
            let path = path.display();
            let text = format!("duo-attention(scores=\"{path}\", budget=20, sinks=1, recent=1)");
            let set = methods.set(Stage::Keep, &text);
            set.map(|()| methods).map_err(|error| error.to_string())
        };
        let missing = set("/nowhere".as_ref()).unwrap_err();
        assert!(missing.contains("/nowhere"), "{missing}");
        let broken = file("0.5 nan\n");
        assert!(set(broken.path()).unwrap_err().contains("is not a number"));
        // Refused before anything is read.
        let toy = Toy::new(2, 2, 4);
        for (scores, said) in [
            (
                "0.5 0.5\n",
                "of 1 layers with 2 KV heads, but the model has 2",
            ),
            ("0.5 0.5 0.5\n0 1 0\n", "with 3 KV heads"),
            (
                "# model fingerprint: other\n0.5 0.5\n0 1\n",
                "fingerprint other, but this model's is toy",
            ),
        ] {
            let scores = file(scores);
            let methods = set(scores.path()).unwrap();
            let message = toy.refusal(methods.keep().unwrap());
            assert!(message.contains(said), "{message}");
        }
        let own = file("# model fingerprint: toy\n0.5 0.5\n0 1\n");
        let path = own.path().display();
        let text = format!("duo-attention(scores=\"{path}\", budget=20, sinks=1, recent=1)");
        Toy::new(2, 2, 4).keep(&text, 50);
    }
}
