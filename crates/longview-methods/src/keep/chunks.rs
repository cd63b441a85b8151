//! Paper: <https://arxiv.org/abs/2502.00299> (Liu et al., ChunkKV: Semantic-Preserving KV Cache Compression
//! for Efficient Long-Context LLM Inference, 2025).
//!
//! Words mean little without their neighbours. With `chunks=N` the tokens of a text are parted into runs of
//! N, counted from its first token, and every pair scores what the pairs of its run score on average, head
//! by head: so runs stay or leave whole, whatever the score, but for the one at which the budget ends and
//! for tokens that always stay. Budgets are spread by these means. The paper scores as `snapkv` does and
//! takes the same runs in neighbouring layers; here every layer chooses for itself.

use longview_kernels::Exec;
use longview_kv::KvError;
use longview_kv::keep::{LayerShape, LayerView, Needs, PlainRows, Score, Scores};

/// A score by runs of tokens.
pub(super) struct Chunks {
    pub(super) score: Box<dyn Score>,
    /// Tokens of a run, at least 1.
    pub(super) tokens: usize,
}

impl Score for Chunks {
    fn needs(&self) -> Needs {
        self.score.needs()
    }

    fn score(&self, layer: &LayerView<'_>, scores: &mut Scores) -> Result<(), KvError> {
        self.score.score(layer, scores)?;
        for head in 0..layer.heads() {
            let scores = scores.head_mut(head);
            let mut first = 0;
            while first < scores.len() {
                let run = layer.position(head, first) / self.tokens;
                let end = layer.first_from(head, (run + 1) * self.tokens);
                level(&mut scores[first..end]);
                first = end;
            }
        }
        Ok(())
    }

    fn refuses(&self, layers: &[LayerShape]) -> Option<String> {
        self.score.refuses(layers)
    }

    fn own(&self, exec: &Exec, rows: &PlainRows<'_>, out: &mut [Vec<f32>]) {
        self.score.own(exec, rows, out);
    }
}

/// Gives all of `scores` their mean, but for those that decide by themselves.
fn level(scores: &mut [f32]) {
    let counts = |score: &&mut f32| !score.is_infinite();
    let (sum, count) = scores
        .iter_mut()
        .filter(counts)
        .fold((0.0, 0usize), |(sum, count), score| {
            (sum + f64::from(*score), count + 1)
        });
    let mean = (sum / count.max(1) as f64) as f32;
    scores
        .iter_mut()
        .filter(counts)
        .for_each(|score| *score = mean);
}

#[cfg(test)]
mod tests {
    use super::super::testing::Toy;
    use super::*;

    #[test]
    fn means_by_hand() {
        let mut scores = [1.0, f32::INFINITY, 3.0, f32::NEG_INFINITY];
        level(&mut scores);
        assert_eq!(scores, [2.0, f32::INFINITY, 2.0, f32::NEG_INFINITY]);
        // What is no number is not lost in a mean.
        let mut scores = [1.0, f32::NAN];
        level(&mut scores);
        assert!(scores.iter().all(|score| score.is_nan()));
        level(&mut []);
    }

    #[test]
    fn runs_stay_whole_and_the_budget_ends_inside_one() {
        // Small keys stay: token 5 is the smallest, tokens 6 to 8 are smaller on average than 3 to 5.
        let norms = [9.0, 9.0, 9.0, 8.0, 8.0, 0.1, 2.0, 3.0, 2.0, 9.0, 9.0];
        let kept = |text: &str| {
            let mut toy = Toy::new(1, 1, 2);
            toy.keep(text, norms.len());
            let keys: Vec<[f32; 2]> = norms.iter().map(|&norm| [norm, 0.0]).collect();
            toy.read_keys(&keys);
            toy.compress();
            toy.positions(0, 0)
        };
        let text = |chunks: &str| format!("knorm(budget=4, sinks=0, recent=0{chunks})");
        assert_eq!(kept(&text("")), [5, 6, 7, 8]);
        assert_eq!(kept(&text(", chunks=3")), [3, 6, 7, 8]);
        assert_eq!(kept(&text(", chunks=1")), kept(&text("")));
        // What always stays does so beside the runs.
        assert_eq!(
            kept("knorm(budget=4, sinks=0, recent=1, chunks=3)"),
            [6, 7, 8, 10]
        );
    }
}
