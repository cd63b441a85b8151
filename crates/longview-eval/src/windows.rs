//! Walking a text in windows and looking at every token's logits.

use longview_engine::{Control, Engine, EngineError};
use longview_kv::{Purpose, Segment, Wanted};

use crate::Progress;
use crate::error::EvalError;

/// The most tokens computed in one pass.
const PASS_TOKENS: usize = 128;

/// The most bytes of logits that a pass makes; large vocabularies get shorter passes.
const PASS_LOGITS: usize = 64 << 20;

/// Calls `visit(passes, target)` for every token predicted: the logits of each engine for the
/// position before it, and its id. All engines read the same windows.
///
/// `prefix` begins every window (a model's beginning-of-text token) and is not predicted.
pub(crate) fn walk(
    engines: &[&Engine],
    tokens: &[u32],
    prefix: &[u32],
    window: usize,
    on: &mut dyn FnMut(Progress) -> Control,
    visit: &mut dyn FnMut(&[&[f32]], u32),
) -> Result<(), EvalError> {
    if tokens.len() < 2 {
        return Err(EvalError::TooShort {
            tokens: tokens.len(),
        });
    }
    if window <= prefix.len() + 1 {
        return Err(EvalError::WindowTooShort { window });
    }
    let vocab = engines[0].model().blueprint().vocab;
    let row = vocab * size_of::<f32>();
    let pass_tokens = (PASS_LOGITS / row.max(1)).clamp(1, PASS_TOKENS);
    let mut held = Vec::with_capacity(engines.len());
    for engine in engines {
        // The pass's own logits and the copy.
        let bytes = 2 * (pass_tokens * row) as u64;
        let reserved = engine.ledger().reserve(Purpose::Scratch, bytes);
        held.push(reserved.map_err(EngineError::from)?);
    }
    let predicted = |window: &[u32]| window.len() - usize::from(prefix.is_empty());
    let windows = || tokens.chunks(window - prefix.len());
    let total = windows().map(predicted).sum();
    let mut done = 0;
    for window in windows() {
        let text = [prefix, window].concat();
        let mut contexts = Vec::with_capacity(engines.len());
        for engine in engines {
            contexts.push(engine.new_context(text.len())?);
        }
        // The first predicted token is the one after the prefix, or after the first token.
        let first = prefix.len().max(1);
        for start in (0..text.len() - 1).step_by(pass_tokens) {
            let end = (start + pass_tokens).min(text.len() - 1);
            let mut passes = Vec::with_capacity(engines.len());
            for (engine, context) in engines.iter().zip(&mut contexts) {
                let segment = Segment {
                    context,
                    tokens: &text[start..end],
                    wanted: Wanted::All,
                };
                // Copied, because both engines may be the same one, whose logits are one buffer.
                passes.push(engine.pass(vec![segment])?.logits().to_vec());
            }
            for position in start..end {
                if position + 1 < first {
                    continue;
                }
                let at = (position - start) * vocab;
                let rows: Vec<&[f32]> = passes.iter().map(|pass| &pass[at..at + vocab]).collect();
                visit(&rows, text[position + 1]);
                done += 1;
            }
            if on(Progress { done, total }) == Control::Stop {
                return Err(EvalError::Stopped);
            }
        }
    }
    Ok(())
}

/// Natural logarithms of the probabilities that `logits` stand for, in f64.
pub(crate) fn log_softmax(logits: &[f32], out: &mut Vec<f64>) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let max = f64::from(max);
    let total: f64 = logits.iter().map(|&x| (f64::from(x) - max).exp()).sum();
    let norm = max + total.ln();
    out.clear();
    out.extend(logits.iter().map(|&x| f64::from(x) - norm));
}
