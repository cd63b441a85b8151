//! Perplexity of a text.

use longview_engine::{Control, Engine};

use crate::Progress;
use crate::error::EvalError;
use crate::windows::{log_softmax, walk};

/// Perplexity of a text, with its uncertainty.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// exp of the mean negative log-likelihood of a token.
    pub perplexity: f64,
    /// Half the width of the 95 % interval of the perplexity, tokens taken as independent.
    pub interval: f64,
    /// Mean negative log-likelihood of a token, in nats.
    pub nats_per_token: f64,
    /// Tokens predicted.
    pub tokens: usize,
    /// Tokens in a window.
    pub window: usize,
}

/// The perplexity of `tokens` in windows of `window` tokens, each beginning with the model's
/// beginning-of-text token where it wants one.
///
/// # Errors
/// When the text or the window is too short, or the engine fails.
pub fn perplexity(
    engine: &Engine,
    tokens: &[u32],
    window: usize,
    on: &mut dyn FnMut(Progress) -> Control,
) -> Result<Perplexity, EvalError> {
    let prefix = engine.tokenizer().prefix_ids().to_vec();
    let (mut sum, mut squares, mut count) = (0.0, 0.0, 0usize);
    let mut logs = Vec::new();
    walk(
        &[engine],
        tokens,
        &prefix,
        window,
        on,
        &mut |rows, target| {
            log_softmax(rows[0], &mut logs);
            let loss = -logs[target as usize];
            sum += loss;
            squares += loss * loss;
            count += 1;
        },
    )?;
    let mean = sum / count as f64;
    let variance = (squares / count as f64 - mean * mean).max(0.0);
    let perplexity = mean.exp();
    Ok(Perplexity {
        perplexity,
        interval: 1.96 * (variance / count as f64).sqrt() * perplexity,
        nats_per_token: mean,
        tokens: count,
        window,
    })
}
