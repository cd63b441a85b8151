//! A chain of samplers and the choice at its end.

use super::candidates::{Candidate, DrawOrder, check};
use super::order::highest_of_row;
use super::{Candidates, Rng, SamplingError, math};

/// One step of a decode method: it removes candidates or changes their logits.
pub trait Sampler: Send {
    /// Works on the candidates of one step. `history` holds every token of the context so far,
    /// prompt included, oldest first.
    fn apply(&mut self, candidates: &mut Candidates, history: &[u32]);
}

/// How a chain chooses among the candidates left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The most likely one; among equals the lowest id.
    Greedy,
    /// One drawn with its probability.
    Draw(Rng),
}

/// What was chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Token id.
    pub id: u32,
    /// Natural logarithm of the probability the *model* gave the token, before any sampler.
    pub logprob: f32,
}

/// The samplers of one generation in order, and how it finishes each step.
pub struct Chain {
    samplers: Vec<Box<dyn Sampler>>,
    finish: Finish,
    candidates: Candidates,
}

impl Chain {
    /// A chain that applies `samplers` in order.
    pub fn new(samplers: Vec<Box<dyn Sampler>>, finish: Finish) -> Chain {
        Chain {
            samplers,
            finish,
            candidates: Candidates::default(),
        }
    }

    /// The most likely token at every step.
    pub fn greedy() -> Chain {
        Chain::new(Vec::new(), Finish::Greedy)
    }

    /// Puts a sampler before all others.
    #[must_use]
    pub fn after(mut self, first: Box<dyn Sampler>) -> Chain {
        self.samplers.insert(0, first);
        self
    }

    /// Chooses the next token and says how likely the model held it; arguments and errors as in
    /// [`Chain::choose`].
    ///
    /// # Errors
    /// As [`Chain::choose`].
    pub fn pick(&mut self, logits: &[f32], history: &[u32]) -> Result<Choice, SamplingError> {
        let highest = check(logits)?;
        let id = self.choose_below(logits, highest, history)?;
        Ok(Choice {
            id,
            logprob: (f64::from(logits[id as usize]) - offset(logits, highest)) as f32,
        })
    }

    /// Chooses the next token; `logits` is `[vocabulary]` and `history` as in [`Sampler::apply`]. Its
    /// probability takes a sum over the vocabulary, which [`Chain::pick`] makes and this does not.
    ///
    /// # Errors
    /// [`SamplingError::NotFinite`] when a logit is NaN or +∞; [`SamplingError::NoCandidate`] when
    /// every token is forbidden.
    pub fn choose(&mut self, logits: &[f32], history: &[u32]) -> Result<u32, SamplingError> {
        let highest = check(logits)?;
        self.choose_below(logits, highest, history)
    }

    /// The same for checked logits, the highest of which is `highest`.
    fn choose_below(
        &mut self,
        logits: &[f32],
        highest: f32,
        history: &[u32],
    ) -> Result<u32, SamplingError> {
        let id = if self.samplers.is_empty() && self.finish == Finish::Greedy {
            argmax(logits, highest)
        } else {
            self.candidates.take(logits, highest);
            for sampler in &mut self.samplers {
                sampler.apply(&mut self.candidates, history);
            }
            match &mut self.finish {
                Finish::Greedy => allowed_top(&mut self.candidates),
                Finish::Draw(rng) => draw(&mut self.candidates, rng),
            }
        };
        id.ok_or(SamplingError::NoCandidate {
            vocabulary: logits.len(),
        })
    }
}

/// The lowest id among the highest logits, unless all are −∞.
fn argmax(logits: &[f32], highest: f32) -> Option<u32> {
    if highest == f32::NEG_INFINITY {
        return None;
    }
    u32::try_from(math::first(logits, highest)?).ok()
}

fn allowed_top(candidates: &mut Candidates) -> Option<u32> {
    let first = *candidates.top(1).first()?;
    (first.logit > f32::NEG_INFINITY).then_some(first.id)
}

/// Walks through the candidates until their weights pass a random share of the total.
pub(super) fn draw(candidates: &mut Candidates, rng: &mut Rng) -> Option<u32> {
    /// Weights that are made at once, so that the loop is vectorised.
    const PIECE: usize = 64;
    let highest = candidates.highest();
    if highest == f32::NEG_INFINITY {
        return None;
    }
    let mut walk = Walk {
        left: rng.next_f64() * candidates.mass(highest),
        last: None,
    };
    match candidates.in_draw_order() {
        DrawOrder::Vocabulary(row) => {
            for (first, piece) in (0..).step_by(PIECE).zip(row.chunks(PIECE)) {
                let mut weights = [0.0; PIECE];
                for (weight, &logit) in weights.iter_mut().zip(piece) {
                    *weight = math::exp(logit - highest);
                }
                let mut weights = (first..).zip(&weights[..piece.len()]);
                if weights.any(|(id, &weight)| walk.ends_at(id, weight.into())) {
                    break;
                }
            }
        }
        DrawOrder::Descending(items) => {
            let mut items = items.iter();
            items.any(|&item| walk.ends_at(item.id, Candidates::weight(item, highest)));
        }
    }
    // When rounding lets the walk run past the end, the last possible candidate is meant.
    walk.last
}

/// A walk through candidates.
struct Walk {
    /// Weight that is left to pass.
    left: f64,
    /// The last token that could be drawn.
    last: Option<u32>,
}

impl Walk {
    /// Passes a token; whether it is the one that is drawn.
    fn ends_at(&mut self, id: u32, weight: f64) -> bool {
        if weight > 0.0 {
            self.last = Some(id);
            if self.left < weight {
                return true;
            }
            self.left -= weight;
        }
        false
    }
}

/// The `count` most likely tokens of a step with the natural logarithms of the probabilities that the
/// model gave them, most likely first; `logits` is `[vocabulary]`.
///
/// # Errors
/// As [`Chain::pick`].
pub fn top_logprobs(logits: &[f32], count: usize) -> Result<Vec<(u32, f32)>, SamplingError> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let highest = check(logits)?;
    Ok(top(logits, count, offset(logits, highest)))
}

/// The same for a step whose token is known, with the logarithm of the probability of `token`.
///
/// # Errors
/// As [`Chain::pick`].
pub fn logprobs(
    logits: &[f32],
    token: u32,
    count: usize,
) -> Result<(f32, Vec<(u32, f32)>), SamplingError> {
    let offset = offset(logits, check(logits)?);
    // A token that the model has no logit for cannot come.
    let logit = logits.get(token as usize);
    let logit = logit.copied().unwrap_or(f32::NEG_INFINITY);
    let logprob = (f64::from(logit) - offset) as f32;
    Ok((logprob, top(logits, count, offset)))
}

/// The `count` most likely tokens with the logarithms of their probabilities.
fn top(logits: &[f32], count: usize, offset: f64) -> Vec<(u32, f32)> {
    let mut items = Vec::new();
    highest_of_row(logits, count.min(logits.len()), &mut items);
    let logprob = |item: &Candidate| (item.id, (f64::from(item.logit) - offset) as f32);
    items.iter().take(count).map(logprob).collect()
}

/// What a logit is above the logarithm of its probability, `highest` being the highest.
fn offset(logits: &[f32], highest: f32) -> f64 {
    f64::from(highest) + math::ln(math::mass_of(logits, highest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Forbids one token.
    struct Forbid(u32);

    impl Sampler for Forbid {
        fn apply(&mut self, candidates: &mut Candidates, _history: &[u32]) {
            candidates.change(self.0, |_| f32::NEG_INFINITY);
        }
    }

    #[test]
    fn greedy_takes_the_lowest_id_among_equals() {
        let choice = Chain::greedy().pick(&[1.0, 2.0, 2.0], &[]).unwrap();
        assert_eq!(choice.id, 1);
        // p = e² / (e + 2e²) = 1 / (e⁻¹ + 2)
        let want = -(2.0 + (-1.0_f64).exp()).ln();
        assert!((f64::from(choice.logprob) - want).abs() < 1e-6);
    }

    #[test]
    fn samplers_run_before_the_choice() {
        let mut chain = Chain::new(vec![Box::new(Forbid(1))], Finish::Greedy);
        let choice = chain.pick(&[1.0, 3.0, 2.0], &[]).unwrap();
        assert_eq!(choice.id, 2);
        // The log-probability is still the model's.
        let want = 2.0 - (1_f64.exp() + 2_f64.exp() + 3_f64.exp()).ln();
        assert!((f64::from(choice.logprob) - want).abs() < 1e-6);
    }

    #[test]
    fn the_most_likely_come_with_their_probabilities() {
        let logits = [0.0, 2_f32.ln(), f32::NEG_INFINITY, 5_f32.ln()];
        let top = top_logprobs(&logits, 2).unwrap();
        assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [3, 1]);
        for (id, logprob) in top {
            let share = [1.0, 2.0, 0.0, 5.0][id as usize] / 8.0;
            assert!((f64::from(logprob).exp() - share).abs() < 1e-6);
            let picked = Chain::greedy().pick(&logits, &[]).unwrap();
            assert!(id != picked.id || logprob == picked.logprob);
        }
    }

    #[test]
    fn a_draw_follows_the_probabilities_and_its_seed() {
        // Weights 1 : 2 : 5, and a forbidden token.
        let logits = [0.0, 2_f32.ln(), f32::NEG_INFINITY, 5_f32.ln()];
        let count = |seed| {
            let mut chain = Chain::new(Vec::new(), Finish::Draw(Rng::new(seed)));
            let mut counts = [0_u32; 4];
            let ids: Vec<u32> = (0..40_000)
                .map(|_| chain.pick(&logits, &[]).unwrap().id)
                .collect();
            ids.iter().for_each(|&id| counts[id as usize] += 1);
            (ids, counts)
        };
        let (ids, counts) = count(11);
        assert_eq!(ids, count(11).0);
        assert_ne!(ids, count(12).0);
        // Standard deviations are at most 97.
        assert!(counts[0].abs_diff(5_000) < 400, "{counts:?}");
        assert!(counts[1].abs_diff(10_000) < 400, "{counts:?}");
        assert_eq!(counts[2], 0);
        assert!(counts[3].abs_diff(25_000) < 400, "{counts:?}");
    }

    #[test]
    fn the_text_of_a_seed_never_changes() {
        let logits: Vec<f32> = (0..50).map(|id| (id as f32 * 0.37) % 3.0).collect();
        let mut chain = Chain::new(Vec::new(), Finish::Draw(Rng::new(42)));
        let ids: Vec<u32> = (0..8)
            .map(|_| chain.pick(&logits, &[]).unwrap().id)
            .collect();
        assert_eq!(ids, PINNED);
    }

    /// Written down when the generator was; a change breaks every text asked for by seed.
    const PINNED: [u32; 8] = [40, 16, 48, 35, 39, 30, 7, 31];

    #[test]
    fn nothing_left_and_not_a_number_are_errors() {
        let forbidden = [f32::NEG_INFINITY; 3];
        for finish in [Finish::Greedy, Finish::Draw(Rng::new(1))] {
            let mut chain = Chain::new(vec![Box::new(Forbid(0))], finish);
            let error = chain.pick(&forbidden, &[]).unwrap_err();
            assert_eq!(error, SamplingError::NoCandidate { vocabulary: 3 });
        }
        let error = Chain::greedy().pick(&forbidden, &[]).unwrap_err();
        assert_eq!(error, SamplingError::NoCandidate { vocabulary: 3 });
        let error = Chain::greedy().pick(&[0.0, f32::NAN], &[]).unwrap_err();
        assert!(error.to_string().contains("token 1"), "{error}");
    }
}
