//! Kullback-Leibler divergence of a model's predictions from a reference's.

use longview_engine::{Control, Engine};

use crate::Progress;
use crate::error::EvalError;
use crate::windows::{log_softmax, walk};

/// How far a model's predictions are from a reference's over a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Divergence {
    /// Mean of KL(reference ‖ model) over the tokens, in nats.
    pub mean: f64,
    /// Half the width of the mean's 95 % interval, tokens taken as independent.
    pub interval: f64,
    /// The largest value of any token.
    pub max: f64,
    /// The value below which 99 % of the tokens lie.
    pub percentile_99: f64,
    /// Share of tokens for which both put the same token first.
    pub same_top: f64,
    /// Perplexity of the model.
    pub perplexity: f64,
    /// Perplexity of the reference.
    pub reference_perplexity: f64,
    /// Tokens predicted.
    pub tokens: usize,
}

/// The divergence of `engine` from `reference` over `tokens` in windows of `window` tokens.
///
/// # Errors
/// When the vocabularies differ in size, the text or the window is too short, or an engine fails.
pub fn divergence(
    engine: &Engine,
    reference: &Engine,
    tokens: &[u32],
    window: usize,
    on: &mut dyn FnMut(Progress) -> Control,
) -> Result<Divergence, EvalError> {
    let vocab = |engine: &Engine| engine.model().blueprint().vocab;
    if vocab(engine) != vocab(reference) {
        let (left, right) = (vocab(engine), vocab(reference));
        return Err(EvalError::Vocabularies { left, right });
    }
    let prefix = engine.tokenizer().prefix_ids().to_vec();
    let mut values = Vec::new();
    let (mut same, mut loss, mut reference_loss) = (0usize, 0.0, 0.0);
    let (mut p, mut q) = (Vec::new(), Vec::new());
    walk(
        &[engine, reference],
        tokens,
        &prefix,
        window,
        on,
        &mut |rows, target| {
            log_softmax(rows[0], &mut q);
            log_softmax(rows[1], &mut p);
            let (value, same_top) = divergence_of(&q, &p);
            values.push(value);
            same += usize::from(same_top);
            loss -= q[target as usize];
            reference_loss -= p[target as usize];
        },
    )?;
    values.sort_by(f64::total_cmp);
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values
        .iter()
        .map(|value| (value - mean).powi(2))
        .sum::<f64>()
        / count;
    let at = ((count * 0.99).ceil() as usize).clamp(1, values.len()) - 1;
    Ok(Divergence {
        mean,
        interval: 1.96 * (variance / count).sqrt(),
        max: values[values.len() - 1],
        percentile_99: values[at],
        same_top: same as f64 / count,
        perplexity: (loss / count).exp(),
        reference_perplexity: (reference_loss / count).exp(),
        tokens: values.len(),
    })
}

/// The divergence of `q` from `p`, both logarithms of probabilities, in nats, and whether both put the
/// same token first.
pub(crate) fn divergence_of(q: &[f64], p: &[f64]) -> (f64, bool) {
    let terms = p.iter().zip(q).filter(|(p, _)| p.is_finite());
    let value: f64 = terms.map(|(p, q)| p.exp() * (p - q)).sum();
    // Rounding can leave a value a little below zero, which a divergence never is.
    (value.max(0.0), top(p) == top(q))
}

fn top(logs: &[f64]) -> Option<usize> {
    (0..logs.len()).max_by(|&a, &b| logs[a].total_cmp(&logs[b]).then(b.cmp(&a)))
}
