//! Paper: <https://arxiv.org/abs/2505.23416> (Kim et al., KVzip: Query-Agnostic KV Cache Compression
//! with Context Reconstruction, 2025).
//!
//! What a model looks at when it repeats a text is what it needs to answer anything about it. The
//! context is repeated part by part in passes whose own pairs are dropped; a pair scores the largest
//! attention it is given by any row and query head of its group, among the first tokens, the part and
//! the repetition only. `alloc=threshold` is the paper's non-uniform mode, `uniform` its uniform one,
//! `heads` its head mode. No question is needed. The request to repeat is put in the turns of the
//! model's chat template. What comes after a compaction is repeated, by itself, before the next one, and
//! is in the budget with what stayed: a conversation holds as much as was stated, however long it is.

use longview_kv::KvError;
use longview_kv::keep::{LayerView, Needs, Question, Score, Scores};

use super::{keep, parameter};
use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `kvzip(budget, part, sinks, recent, alloc, merge, decode, chunks)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "kvzip",
    exact: false,
    paper: Some("https://arxiv.org/abs/2505.23416"),
    claim: Some(
        "3 to 4 times less memory at negligible loss, for questions that \
             nobody knew while compressing",
    ),
    doc: "the pairs that the model looks at when it repeats the text stay; reads the text twice",
    parameters: &[
        parameter::budget("30%"),
        Parameter {
            name: "part",
            default: "2k",
            unit: "tokens",
            doc: "how much is repeated at a time",
            domain: Domain::Count,
        },
        parameter::sinks("4"),
        parameter::recent("8"),
        parameter::alloc("threshold"),
        parameter::MERGE,
        parameter::DECODE_TOO,
        parameter::CHUNKS,
    ],
    build: Build::Keep(|arguments| {
        let part = arguments.count("part");
        keep(arguments, Question::Unseen, KvZip { part })
    }),
};

struct KvZip {
    part: usize,
}

impl Score for KvZip {
    fn needs(&self) -> Needs {
        Needs {
            repeat: self.part,
            ..Needs::default()
        }
    }

    fn score(&self, layer: &LayerView<'_>, scores: &mut Scores) -> Result<(), KvError> {
        for head in 0..layer.heads() {
            let marks = layer.repeated(head)?;
            for (pair, score) in scores.head_mut(head).iter_mut().enumerate() {
                *score = marks[layer.position(head, pair)];
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Toy;

    #[test]
    fn what_a_repetition_copies_stays() {
        let mut toy = Toy::new(1, 1, 4);
        toy.keep("kvzip(budget=4, sinks=0, recent=0, alloc=uniform)", 12);
        let unit =
            |at: usize| -> [f32; 4] { std::array::from_fn(|i| f32::from(u8::from(i == at))) };
        // Tokens 4, 5 and 9 are alike no other; the repetition asks for each of them.
        let keys: Vec<[f32; 4]> = (0..12)
            .map(|token| match token {
                4 => unit(1),
                5 => unit(2),
                9 => unit(3),
                _ => unit(0),
            })
            .collect();
        toy.read_keys(&keys);
        let mut fork = toy.fork();
        fork.context.watch_repeat(0..12, 0).unwrap();
        let asked = [unit(1), unit(2), unit(3)].map(|q| q.map(|x| 30.0 * x));
        fork.read_keys_and_queries(&[[0.0; 4]; 3], &asked);
        let marks = fork.context.take_marks().unwrap();
        drop(fork);
        toy.context.mark(&marks).unwrap();
        assert_eq!(toy.context.len(), 12, "nothing of the repetition stays");
        toy.compress();
        // The fourth is the first of those that were looked at alike.
        assert_eq!(toy.positions(0, 0), [0, 4, 5, 9]);
    }

    #[test]
    fn what_was_not_repeated_is_asked_for_and_no_more() {
        let repeats = |toy: &Toy| toy.context.repeats().map(|(_, tokens)| tokens);
        let mut toy = Toy::new(1, 2, 4);
        toy.keep("kvzip(budget=20, sinks=4, recent=8)", 40);
        toy.read(40);
        assert_eq!(repeats(&toy), Some(4..40));
        let mut fork = toy.fork();
        fork.context.watch_repeat(4..40, 4).unwrap();
        fork.read(36);
        let marks = fork.context.take_marks().unwrap();
        toy.context.mark(&marks).unwrap();
        assert_eq!(repeats(&toy), None);
        // What stands there next is another text.
        toy.context.truncate(30).unwrap();
        toy.read(6);
        assert_eq!(repeats(&toy), Some(30..36));
        let message = toy.try_compress().unwrap_err().to_string();
        assert!(message.contains("when it repeats the context"), "{message}");
    }

    #[test]
    fn without_a_repetition_it_says_what_is_missing() {
        let mut toy = Toy::new(1, 1, 4);
        toy.keep("kvzip(budget=20)", 40);
        toy.read(40);
        let message = toy.try_compress().unwrap_err().to_string();
        assert!(message.contains("when it repeats the context"), "{message}");
    }
}
