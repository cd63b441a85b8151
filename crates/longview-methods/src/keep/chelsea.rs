//! Paper: <https://arxiv.org/abs/2506.11418> (Hu et al., Efficient Long-Context LLM Inference via KV
//! Cache Clustering, 2025). **Reconstructed**: no code is public, and the details here are ours, after
//! the abstract and the bipartite matching it extends (<https://arxiv.org/abs/2210.09461>).
//!
//! Neighbours in a text are alike. Each chunk of pairs is parted into even and odd places, and every
//! even one is matched with the odd one whose key is most like its own; the more alike, the sooner it
//! goes. Who is left is parted again, until one is left of a chunk. With `merge=chelsea` what goes is
//! averaged into what stays near it, and with `merge=chelsea(as=tokens)` counts as many in attention. Later
//! rounds match keys as they are, not the averages.

use longview_kv::KvError;
use longview_kv::keep::{LayerView, Question, Score, Scores, larger};

use super::{keep, parameter};
use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `chelsea(budget, chunk, sinks, recent, alloc, merge, block, decode)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "chelsea",
    exact: false,
    paper: Some("https://arxiv.org/abs/2506.11418"),
    claim: Some("up to 80 % less memory at comparable quality, decoding up to 3.19 times as fast"),
    doc: "of neighbouring pairs that are alike one stays, into which the others are averaged \
          (reconstructed)",
    parameters: &[
        parameter::budget("25%"),
        Parameter {
            name: "chunk",
            default: "64",
            unit: "pairs",
            doc: "neighbours that are matched with each other",
            domain: Domain::Count,
        },
        parameter::sinks("4"),
        parameter::recent("64"),
        parameter::alloc("uniform"),
        Parameter {
            default: "chelsea",
            ..parameter::MERGE
        },
        parameter::block("never"),
        parameter::decode("never"),
    ],
    build: Build::Keep(|arguments| {
        let score = Chelsea {
            chunk: arguments.count("chunk"),
            sinks: arguments.count("sinks"),
            recent: arguments.count("recent"),
        };
        keep(arguments, Question::Unseen, score)
    }),
};

struct Chelsea {
    chunk: usize,
    sinks: usize,
    recent: usize,
}

impl Score for Chelsea {
    fn score(&self, layer: &LayerView<'_>, scores: &mut Scores) -> Result<(), KvError> {
        let dim = layer.head_dim();
        let mut keys: Vec<f32> = Vec::new();
        for head in 0..layer.heads() {
            let first = layer.first_from(head, self.sinks);
            let last = layer
                .first_from(head, layer.tokens().saturating_sub(self.recent))
                .max(first);
            let mut chunks = scores.head_mut(head)[first..last].chunks_mut(self.chunk);
            let mut chunk = chunks.next();
            keys.clear();
            layer.keys(head, &mut |page| {
                for (pair, slot) in (page.first..).zip(page.slots.clone()) {
                    let Some(scores) = chunk.as_deref_mut().filter(|_| pair >= first) else {
                        continue;
                    };
                    let key = page.keys.chunks_exact(64).map(|row| row[slot]);
                    let norm = key.clone().map(|x| x * x).sum::<f32>().sqrt();
                    let norm = larger(f32::MIN_POSITIVE, norm);
                    keys.extend(key.map(|x| x / norm));
                    if keys.len() == scores.len() * dim {
                        rank(&keys, dim, scores);
                        keys.clear();
                        chunk = chunks.next();
                    }
                }
            });
        }
        Ok(())
    }
}

/// Scores the pairs of a chunk by how long they stay: the round in which each goes, and within it how
/// little it is like its match. `keys [pairs][dim]` have length 1.
fn rank(keys: &[f32], dim: usize, scores: &mut [f32]) {
    let key = |pair: usize| &keys[pair * dim..(pair + 1) * dim];
    let cosine = |a: usize, b: usize| key(a).iter().zip(key(b)).map(|(x, y)| x * y).sum::<f32>();
    let mut left: Vec<usize> = (0..scores.len()).collect();
    let mut round = 0.0;
    while left.len() > 1 {
        let odd: Vec<usize> = left.iter().copied().skip(1).step_by(2).collect();
        for &even in left.iter().step_by(2) {
            let like = odd.iter().map(|&odd| cosine(even, odd)).fold(-1.0, larger);
            scores[even] = round + (1.0 - like).clamp(0.0, 2.0) / 4.0;
        }
        left = odd;
        round += 1.0;
    }
    if let Some(&last) = left.first() {
        scores[last] = round + 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Toy;
    use super::*;

    #[test]
    fn rounds_by_hand() {
        // Even places 0 and 2, odd ones 1 and 3: 0 is 1 again, and 2 is 3 again.
        let keys = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0];
        let mut scores = [0.0; 4];
        rank(&keys, 2, &mut scores);
        assert_eq!(scores, [0.0, 1.25, 0.0, 3.0]);
        let mut single = [9.0];
        rank(&[1.0, 0.0], 2, &mut single);
        assert_eq!(single, [1.0]);
        // What is no number stays none, so that it is refused.
        rank(&[f32::NAN, 0.0, 1.0, 0.0], 2, &mut scores[..2]);
        assert!(scores[0].is_nan());
    }

    #[test]
    fn copies_go_first_and_leave_their_mean() {
        let mut toy = Toy::new(1, 1, 2);
        toy.keep("chelsea(budget=2, chunk=4, sinks=0, recent=0)", 4);
        toy.read_keys(&[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 2.0]]);
        toy.compress();
        assert_eq!(toy.positions(0, 0), [1, 3]);
        assert_eq!(toy.keys(0), [[1.0, 0.0], [0.0, 1.5]]);
        // At the next compaction what stands for two tokens counts as two: the mean of tokens 0 to 4.
        toy.read_keys(&[[0.0, 3.0], [0.0, 4.5]]);
        toy.compress();
        assert_eq!(toy.positions(0, 0), [3, 5]);
        assert_eq!(toy.keys(0)[1], [0.0, 4.5]);
        assert_eq!(toy.keys(0)[0], [0.4, 1.2]);
    }

    #[test]
    fn what_stands_for_copies_counts_as_many_where_it_is_told_to() {
        // Ten texts of three words, each said four times over.
        let words = [[1.0, 0.0], [0.0, 1.0], [-0.5, 0.5]];
        let keys: Vec<[f32; 2]> = (0..120).map(|at| words[at / 4 % 3]).collect();
        let read = |text: Option<&str>| {
            let mut toy = Toy::new(1, 1, 2);
            if let Some(text) = text {
                toy.keep(text, keys.len());
            }
            toy.read_keys(&keys);
            toy.compress();
            toy
        };
        let rest = "budget=30, chunk=4, sinks=0, recent=0, block=never";
        let mut whole = read(None);
        let mut counted = read(Some(&format!(
            "chelsea({rest}, merge=chelsea(near=4, as=tokens))"
        )));
        let mut plain = read(Some(&format!("chelsea({rest}, merge=chelsea(near=4))")));
        assert_eq!(counted.positions(0, 0).len(), 30);
        assert_eq!(counted.positions(0, 0), plain.positions(0, 0));
        let (mut logits, mut told) = (Vec::new(), Vec::new());
        plain.look(&mut |layer| layer.logits(0, &[1.0, 2.0], &mut logits));
        counted.look(&mut |layer| layer.logits(0, &[1.0, 2.0], &mut told));
        for (told, logit) in told.iter().zip(&logits) {
            assert_eq!(*told, logit + 4f32.ln());
        }
        for query in [[1.0, 2.0], [-3.0, 0.5], [0.0, 0.0]] {
            let [whole, counted, plain] =
                [&mut whole, &mut counted, &mut plain].map(|toy| toy.fork().attend(query));
            for (x, y) in counted.iter().zip(&whole) {
                assert!((x - y).abs() < 1e-6, "{counted:?} for {whole:?}");
            }
            // One pair of zeros beside thirty weighs more than beside four times as many.
            assert!(plain != counted);
        }
    }
}
