//! Paper: <https://arxiv.org/abs/2503.08879> (Wang et al., LLMs Know What to Drop: Self-Attention
//! Guided KV Cache Eviction for Efficient Long-Context Inference, 2025).
//!
//! The last token of the prompt picks, once: of what lies between the first and the most recent
//! tokens, those pairs stay whose logits it sums highest over the query heads of their group. Its
//! authors' server sums raw logits; `sum=attention` sums what softmax makes of them, so that one
//! query head with large logits cannot decide alone. What is generated stays.
//!
//! The published defaults are a window of 8,192 tokens of which 512 are picked, so that 94 % of it are
//! recent: `budget=8192, recent-share=0.9375`. An even split is the default here, for small budgets. The
//! option that leaves the first layers whole is not there.

use longview_kv::KvError;
use longview_kv::keep::{LayerView, Needs, Question, Score, Scores};

use super::{keep, parameter};
use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `sage-kv(budget, recent-share, sum, sinks, alloc, merge, decode, chunks)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "sage-kv",
    exact: false,
    paper: Some("https://arxiv.org/abs/2503.08879"),
    claim: Some(
        "better accuracy with 4 times less memory than streaming-llm and 2 \
             times less than quest",
    ),
    doc: "first and recent tokens stay, and between them what the prompt's last token looks at",
    parameters: &[
        parameter::budget("20%"),
        parameter::recent_share("0.5"),
        Parameter {
            name: "sum",
            default: "logits",
            unit: "",
            doc: "what is summed over the query heads of a KV head",
            domain: Domain::Word(&["logits", "attention"]),
        },
        parameter::sinks("4"),
        parameter::alloc("uniform"),
        parameter::MERGE,
        parameter::DECODE_TOO,
        parameter::CHUNKS,
    ],
    build: Build::Keep(|arguments| {
        let sum = match arguments.word("sum") {
            "attention" => Sum::Attention,
            _ => Sum::Logits,
        };
        keep(arguments, Question::Seen, SageKv { sum })
    }),
};

struct SageKv {
    sum: Sum,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sum {
    Logits,
    Attention,
}

impl Score for SageKv {
    fn needs(&self) -> Needs {
        Needs {
            last_queries: 1,
            ..Needs::default()
        }
    }

    fn score(&self, layer: &LayerView<'_>, scores: &mut Scores) -> Result<(), KvError> {
        for head in 0..layer.heads() {
            let asked = layer.last_queries(head, 1)?;
            let mut logits = Vec::new();
            layer.logits(head, &asked.queries, &mut logits);
            for of_head in logits.chunks_exact_mut(layer.pairs(head).max(1)) {
                if self.sum == Sum::Attention {
                    layer.softmax(of_head);
                }
                layer.add(scores.head_mut(head), of_head);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Toy;

    #[test]
    fn logits_and_attention_can_pick_differently() {
        // Two query heads a KV head, with logits (1, 5, 0) and (2, −6, 0) for tokens 0, 1, 2.
        let picked = |sum: &str| {
            let mut toy = Toy::grouped(1, 1, 2, 2);
            toy.keep(
                &format!("sage-kv(budget=1, sinks=0, recent-share=0, sum={sum})"),
                3,
            );
            let keys = [[1.0, 2.0], [5.0, -6.0], [0.0, 0.0]];
            toy.read_grouped(&keys, &[[1.0, 0.0], [0.0, 1.0]]);
            toy.compress();
            toy.positions(0, 0)
        };
        assert_eq!(picked("logits"), [0]);
        assert_eq!(picked("attention"), [1]);
    }
}
