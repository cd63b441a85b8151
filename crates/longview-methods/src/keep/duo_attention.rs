//! Paper: <https://arxiv.org/abs/2410.10819> (Xiao et al., DuoAttention: Efficient Long-Context LLM
//! Inference with Retrieval and Streaming Heads, 2024).
//!
//! Some KV heads retrieve and keep everything; the others stream and keep the first and the last
//! tokens. Which is which was found beforehand: one number from 0 to 1 a head, in a file of the
//! published form, see [`HeadScores`]. The paper trains them; `longview calibrate` finds them without
//! training. As many heads as the budget has room for keep everything, the highest numbers first; a
//! budget of 50% is the paper's sparsity of a half, less what streaming heads take. How many is decided
//! once, of the prompt: heads that retrieve grow with the text that follows, beyond the budget, and the
//! others go on streaming. What the budget has left makes the streaming heads' windows longer.
//!
//! `block` bounds streaming heads while the prompt is read, as the paper's chunks do: a row sees what such
//! a head kept before the block, and the block. Without it every head reads the prompt densely, and the
//! whole prompt is in memory at its end.

use std::fs;

use longview_kv::KvError;
use longview_kv::keep::{
    Allocate, Allocation, LayerShape, LayerView, Planned, Question, Scope, Score, Scores,
};

use super::head_scores::HeadScores;
use super::{keep, parameter};
use crate::arguments::Arguments;
use crate::error::MethodError;
use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `duo-attention(scores, budget, sinks, recent, block, decode)`.
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
        parameter::block("never"),
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
        let places =
            |(layer, heads): (usize, &Vec<usize>)| (0..heads.len()).map(move |head| (layer, head));
        let mut order: Vec<(usize, usize)> =
            ask.protected.iter().enumerate().flat_map(places).collect();
        let rank = |&(layer, head): &(usize, usize)| self.scores[ask.layers[layer]][head];
        // Of equal ones the first.
        order.sort_by(|a, b| rank(b).total_cmp(&rank(a)));
        let (retrieve, stream) = order.split_at(whole_heads(&ask.planned));
        let mut wanted: Vec<Vec<f64>> = ask
            .protected
            .iter()
            .map(|heads| vec![0.0; heads.len()])
            .collect();
        let mut left = (ask.slots * order.len()) as f64;
        for &(layer, head) in retrieve {
            wanted[layer][head] = ask.scores[layer].head(head).len() as f64;
            left -= wanted[layer][head];
        }
        for &(layer, head) in stream {
            wanted[layer][head] = left / stream.len() as f64;
        }
        wanted
    }

    fn grown(&self, planned: &Planned, tokens: usize) -> usize {
        let more = whole_heads(planned) * tokens.saturating_sub(planned.prompt);
        planned.slots + more.div_ceil(planned.heads.max(1))
    }
}

/// How many heads keep everything: as many as the budget has room for beside the first and the last
/// tokens of the others.
fn whole_heads(planned: &Planned) -> usize {
    let Planned {
        slots,
        prompt,
        heads,
        least,
    } = *planned;
    let stream = least.min(prompt);
    let room = slots.saturating_sub(stream) * heads;
    room.checked_div(prompt - stream)
        .map_or(heads, |whole| whole.min(heads))
}

fn read(arguments: &Arguments) -> Result<HeadScores, MethodError> {
    let path = arguments.path("scores");
    let wrong = |problem: String| MethodError::File {
        method: METHOD.name.to_owned(),
        path: path.to_owned(),
        problem,
    };
    let bytes = fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let no_text = |_| {
        "this is no text; head scores are lines of numbers, a line for each layer, as longview calibrate \
         writes them"
            .to_owned()
    };
    let text = String::from_utf8(bytes).map_err(|error| wrong(no_text(error)))?;
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
        // They still do when more was written, and the others go on streaming.
        toy.read(64);
        assert!(toy.context.keep_is_due_in_decode());
        toy.compress();
        let stream: Vec<u32> = (0..4).chain(148..164).collect();
        assert_eq!(toy.positions(0, 0).len(), 164);
        assert_eq!(toy.positions(1, 1).len(), 164);
        assert_eq!(toy.positions(0, 1), stream);
        assert_eq!(toy.positions(1, 0), stream);
    }

    #[test]
    fn what_is_left_of_the_budget_goes_to_all_streaming_heads_and_blocks_bound_it() {
        let scores = file("0.9\t0.2\t0.1\n");
        let path = scores.path().display();
        let kept = |block: &str, chunk: usize| {
            let mut toy = Toy::new(1, 3, 4);
            let text = format!(
                "duo-attention(scores=\"{path}\", budget=60, sinks=4, recent=16, block={block})"
            );
            toy.keep(&text, 100);
            for _ in 0..100 / chunk {
                toy.read(chunk);
                let most = (0..3)
                    .map(|head| toy.positions(0, head).len())
                    .sum::<usize>();
                assert!(block == "never" || most <= 3 * (60 + 20));
                if toy.context.keep_is_due() {
                    toy.compress();
                }
            }
            toy.compress();
            [0, 1, 2].map(|head| toy.positions(0, head))
        };
        let whole = kept("never", 100);
        assert_eq!(whole.each_ref().map(Vec::len), [100, 40, 40]);
        assert_eq!(kept("20", 10), whole);
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
