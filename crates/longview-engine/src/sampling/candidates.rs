//! The tokens that may come next.

use std::cmp::Ordering;

use super::{SamplingError, math};

/// How many of the highest candidates are looked at first when the number needed is not known.
const FIRST_LOOK: usize = 64;

/// Candidates whose highest is looked for at once.
const BLOCK: usize = 64;

/// A token that may come next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Token id.
    pub id: u32,
    /// Unnormalised log-probability; −∞ forbids the token.
    pub logit: f32,
}

/// The tokens that may come next, never empty once filled.
///
/// Only as many candidates are sorted as a sampler looks at, so a vocabulary of 128k costs passes
/// over it and no sort.
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    items: Vec<Candidate>,
    order: Order,
}

/// What is known about the order of the candidates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Order {
    /// Candidate i is token i: nothing was removed or moved.
    #[default]
    Vocabulary,
    /// The first so many are the highest ones, in descending order.
    Descending(usize),
}

impl Candidates {
    /// The candidates of one step; `logits` is `[vocabulary]`.
    ///
    /// # Errors
    /// [`SamplingError::NotFinite`] when a logit is NaN or +∞, [`SamplingError::NoCandidate`] when
    /// there is none.
    pub fn from_logits(logits: &[f32]) -> Result<Candidates, SamplingError> {
        let mut candidates = Candidates::default();
        candidates.fill(logits)?;
        Ok(candidates)
    }

    /// Takes the candidates of the next step, keeping the memory of the last.
    ///
    /// # Errors
    /// As [`Candidates::from_logits`].
    pub fn fill(&mut self, logits: &[f32]) -> Result<(), SamplingError> {
        check(logits)?;
        self.take(logits);
        Ok(())
    }

    /// Takes the candidates of the next step, whose logits were [checked](check).
    pub(super) fn take(&mut self, logits: &[f32]) {
        self.items.clear();
        self.items.extend(
            (0..)
                .zip(logits)
                .map(|(id, &logit)| Candidate { id, logit }),
        );
        self.order = Order::Vocabulary;
    }

    /// How many are left.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is none, which is so only before the first [`Candidates::fill`].
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The candidates, in no promised order.
    pub fn as_slice(&self) -> &[Candidate] {
        &self.items
    }

    /// The highest logit.
    pub fn highest(&self) -> f32 {
        match self.order {
            Order::Descending(1..) => self.items[0].logit,
            _ => math::highest_of(&self.items, |item| item.logit),
        }
    }

    /// Σ exp(logit − highest): the factor between [`Candidates::weight`] and a probability.
    pub fn total_weight(&self) -> f64 {
        math::mass(self.items.iter().map(|item| item.logit), self.highest())
    }

    /// exp(logit − highest), the probability of a candidate times the total weight; all of it in
    /// f64 so that sums over large vocabularies keep their digits.
    pub fn weight(candidate: Candidate, highest: f32) -> f64 {
        f64::from(math::exp(candidate.logit - highest))
    }

    /// The `count` most likely candidates (or all, when there are fewer), most likely first; equal
    /// logits are ordered by token id.
    pub fn top(&mut self, count: usize) -> &[Candidate] {
        let count = count.min(self.items.len());
        let sorted = match self.order {
            Order::Vocabulary => 0,
            Order::Descending(sorted) => sorted,
        };
        if count > sorted {
            let rest = &mut self.items[sorted..];
            let wanted = count - sorted;
            let narrow = gather_highest(rest, wanted);
            if wanted < narrow {
                rest[..narrow].select_nth_unstable_by(wanted - 1, most_likely_first);
            }
            rest[..wanted].sort_unstable_by(most_likely_first);
            self.order = Order::Descending(count);
        }
        &self.items[..count]
    }

    /// All candidates, most likely first, except that a step no sampler has cut or sorted is given
    /// as it came, by token id: the one order in which a draw walks through them.
    pub fn in_draw_order(&mut self) -> &[Candidate] {
        match self.order {
            Order::Vocabulary => &self.items,
            Order::Descending(_) => self.top(self.items.len()),
        }
    }

    /// Keeps the `count` most likely candidates, at least one.
    pub fn keep_top(&mut self, count: usize) {
        let count = count.max(1);
        if count < self.items.len() {
            self.top(count);
            self.items.truncate(count);
        }
    }

    /// Keeps the smallest number of most likely candidates whose probabilities sum to `share` or
    /// more, at least one.
    pub fn keep_top_mass(&mut self, share: f64) {
        let highest = self.highest();
        let wanted = share * self.total_weight();
        let mut held = 0.0;
        let mut seen = 0;
        let mut look = FIRST_LOOK;
        while seen < self.items.len() {
            for &item in &self.top(look)[seen..] {
                held += Candidates::weight(item, highest);
                seen += 1;
                if held >= wanted {
                    return self.keep_top(seen);
                }
            }
            look = look.saturating_mul(8);
        }
    }

    /// Keeps the candidates whose logit is at least `least`, and always the most likely one.
    pub fn keep_at_least(&mut self, least: f32) {
        let least = least.min(self.highest());
        self.retain(|item| item.logit >= least);
    }

    /// Keeps, in ascending order of `key`, the smallest number of candidates whose probabilities
    /// sum to `share` or more, at least one. Equal keys are ordered most likely first.
    pub fn keep_mass_by_key(&mut self, share: f64, key: impl Fn(Candidate) -> f64) {
        let highest = self.highest();
        let wanted = share * self.total_weight();
        let mut keyed: Vec<(f64, Candidate)> =
            self.items.iter().map(|&item| (key(item), item)).collect();
        let compare = |a: &(f64, Candidate), b: &(f64, Candidate)| {
            a.0.total_cmp(&b.0)
                .then_with(|| most_likely_first(&a.1, &b.1))
        };
        let mut held = 0.0;
        let mut seen = 0;
        let mut look = FIRST_LOOK;
        'look: while seen < keyed.len() {
            let rest = &mut keyed[seen..];
            let some = look.min(rest.len());
            if some < rest.len() {
                rest.select_nth_unstable_by(some - 1, compare);
            }
            rest[..some].sort_unstable_by(compare);
            for (_, item) in &rest[..some] {
                held += Candidates::weight(*item, highest);
                seen += 1;
                if held >= wanted {
                    break 'look;
                }
            }
            look = look.saturating_mul(8);
        }
        keyed.truncate(seen);
        self.items.clear();
        self.items.extend(keyed.into_iter().map(|(_, item)| item));
        self.order = Order::Descending(0);
    }

    /// Multiplies every logit by a positive factor.
    pub fn scale(&mut self, factor: f32) {
        debug_assert!(factor > 0.0);
        // A factor that overflows keeps the order: ties at ±the largest number are ties by id only
        // among candidates that had already left every other behind.
        for item in &mut self.items {
            if item.logit.is_finite() {
                item.logit = (item.logit * factor).clamp(f32::MIN, f32::MAX);
            }
        }
    }

    /// Replaces the logit of token `id`, if it is still a candidate, by what `change` makes of it.
    /// A result that is not a number forbids the token.
    pub fn change(&mut self, id: u32, change: impl FnOnce(f32) -> f32) {
        let place = match self.order {
            Order::Vocabulary => Some(id as usize).filter(|&place| place < self.items.len()),
            Order::Descending(_) => self.items.iter().position(|item| item.id == id),
        };
        let Some(place) = place else { return };
        let logit = change(self.items[place].logit);
        self.items[place].logit = if logit.is_nan() {
            f32::NEG_INFINITY
        } else {
            logit.min(f32::MAX)
        };
        if self.order != Order::Vocabulary {
            self.order = Order::Descending(0);
        }
    }

    /// Keeps the candidates that `keep` is true for; when it is true for none, nothing changes.
    pub fn retain(&mut self, mut keep: impl FnMut(Candidate) -> bool) {
        let highest = match self.order {
            Order::Descending(sorted) => sorted,
            Order::Vocabulary => 0,
        };
        // One look at each: a vocabulary is long.
        let (mut kept, mut sorted) = (0, 0);
        for at in 0..self.items.len() {
            let item = self.items[at];
            if keep(item) {
                self.items[kept] = item;
                kept += 1;
                sorted += usize::from(at < highest);
            }
        }
        if kept == 0 || kept == self.items.len() {
            return;
        }
        self.items.truncate(kept);
        // What is left of the highest ones is still that.
        self.order = Order::Descending(sorted);
    }
}

/// The highest of `logits`; refuses those that no choice can be made from.
pub(crate) fn check(logits: &[f32]) -> Result<f32, SamplingError> {
    if logits.is_empty() {
        return Err(SamplingError::NoCandidate { vocabulary: 0 });
    }
    // One pass without branches for the usual case; the culprit is looked for afterwards.
    let seen = math::survey(logits);
    if seen.all_below_infinity {
        return Ok(seen.highest);
    }
    let (id, &value) = (0..)
        .zip(logits)
        .find(|&(_, &logit)| logit.is_nan() || logit == f32::INFINITY)
        .expect("a logit that is not below +∞ is NaN or +∞");
    Err(SamplingError::NotFinite { id, value })
}

/// Moves candidates to the front, among which are the `wanted` most likely; returns how many. One pass over
/// all, where choosing among all would take several with a branch at each.
fn gather_highest(items: &mut [Candidate], wanted: usize) -> usize {
    // Each block whose highest logit is no lower than the bound has one candidate that is not either.
    let blocks = items.len() / BLOCK;
    if wanted == 0 || wanted > blocks / 4 {
        return items.len();
    }
    let highest = |block: &[Candidate]| math::highest_of(block, |item| item.logit);
    let most: Vec<f32> = items.chunks(BLOCK).map(highest).collect();
    let mut sorted = most.clone();
    let (_, &mut bound, _) = sorted.select_nth_unstable_by(wanted - 1, |a, b| b.total_cmp(a));
    let mut front = 0;
    for (block, most) in most.into_iter().enumerate() {
        if most < bound {
            continue;
        }
        for at in block * BLOCK..items.len().min((block + 1) * BLOCK) {
            if items[at].logit >= bound {
                // The front is never beyond what is looked at.
                items.swap(front, at);
                front += 1;
            }
        }
    }
    front
}

/// Descending by logit, equal logits ascending by id.
fn most_likely_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(candidates: &[Candidate]) -> Vec<u32> {
        candidates.iter().map(|candidate| candidate.id).collect()
    }

    #[test]
    fn top_sorts_a_prefix_and_breaks_ties_by_id() {
        let mut candidates = Candidates::from_logits(&[1.0, 3.0, 2.0, 3.0, 0.0]).unwrap();
        assert_eq!(ids(candidates.top(2)), [1, 3]);
        assert_eq!(candidates.order, Order::Descending(2));
        assert_eq!(ids(candidates.top(4)), [1, 3, 2, 0]);
        assert_eq!(ids(candidates.top(99)), [1, 3, 2, 0, 4]);
    }

    #[test]
    fn the_highest_are_the_same_however_they_are_looked_for() {
        let mut x = 7_u32;
        let mut next = || {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            x >> 8
        };
        // Few different values make many ties; zeros of both signs are two values.
        for (len, values) in [(40, 9), (5_000, 7), (20_011, 100_000), (70_000, 3)] {
            let logits: Vec<f32> = (0..len)
                .map(|_| match next() % values {
                    0 => f32::NEG_INFINITY,
                    1 => -0.0,
                    value => (value as f32 - 2.0) * 0.37,
                })
                .collect();
            let mut wanted: Vec<Candidate> = Candidates::from_logits(&logits).unwrap().items;
            wanted.sort_by(most_likely_first);
            let mut candidates = Candidates::from_logits(&logits).unwrap();
            assert_eq!(candidates.highest(), wanted[0].logit);
            for count in [1, 3, 40, 64, 65, 300, 4_096] {
                let count = count.min(len);
                let mut fresh = Candidates::from_logits(&logits).unwrap();
                assert_eq!(
                    ids(fresh.top(count)),
                    ids(&wanted[..count]),
                    "{len}, {count}"
                );
                // From where the last look ended as well.
                assert_eq!(
                    ids(candidates.top(count)),
                    ids(&wanted[..count]),
                    "{len}, {count}"
                );
            }
            assert_eq!(candidates.len(), len);
        }
    }

    #[test]
    fn mass_is_reached_beyond_the_first_look() {
        // 1,000 equal tokens: 0.5 of the mass is 500 of them, the ones with the lowest ids.
        let mut candidates = Candidates::from_logits(&[0.5; 1_000]).unwrap();
        candidates.keep_top_mass(0.5);
        assert_eq!(candidates.len(), 500);
        assert_eq!(
            ids(candidates.in_draw_order()),
            (0..500).collect::<Vec<_>>()
        );
        candidates.keep_top_mass(2.0);
        assert_eq!(candidates.len(), 500);
        candidates.keep_top_mass(0.0);
        assert_eq!(candidates.len(), 1);
    }

    #[test]
    fn keep_by_key_takes_the_smallest_keys_first() {
        let mut candidates = Candidates::from_logits(&[0.0; 4]).unwrap();
        candidates.keep_mass_by_key(0.5, |candidate| -f64::from(candidate.id));
        assert_eq!(ids(candidates.in_draw_order()), [2, 3]);
    }

    #[test]
    fn what_is_retained_from_beyond_the_sorted_ones_is_not_taken_for_sorted() {
        let logits: Vec<f32> = (0..100).map(|id| (id * 37 % 100) as f32).collect();
        let mut candidates = Candidates::from_logits(&logits).unwrap();
        let highest = ids(candidates.top(10));
        let kept = [3, 50, 9, highest[4], highest[5]];
        candidates.retain(|candidate| kept.contains(&candidate.id));
        let mut expected = kept;
        expected.sort_by(|&a: &u32, &b: &u32| logits[b as usize].total_cmp(&logits[a as usize]));
        assert_eq!(candidates.len(), 5);
        assert_eq!(ids(candidates.top(1)), expected[..1]);
        assert_eq!(ids(candidates.top(4)), expected[..4]);
        assert_eq!(ids(candidates.in_draw_order()), expected);
    }

    #[test]
    fn retain_never_empties_and_change_finds_moved_tokens() {
        let mut candidates = Candidates::from_logits(&[1.0, 5.0, 2.0]).unwrap();
        candidates.retain(|_| false);
        assert_eq!(candidates.len(), 3);
        candidates.keep_top(2);
        candidates.change(2, |logit| logit + 10.0);
        candidates.change(0, |_| 99.0);
        assert_eq!(ids(candidates.top(2)), [2, 1]);
        assert_eq!(candidates.highest(), 12.0);
        candidates.change(2, |_| f32::NAN);
        assert_eq!(candidates.highest(), 5.0);
    }

    #[test]
    fn bad_logits_are_named() {
        let error = Candidates::from_logits(&[0.0, f32::NAN]).unwrap_err();
        assert!(matches!(error, SamplingError::NotFinite { id: 1, value } if value.is_nan()));
        let error = Candidates::from_logits(&[0.0, 1.0, f32::INFINITY]).unwrap_err();
        assert_eq!(
            error,
            SamplingError::NotFinite {
                id: 2,
                value: f32::INFINITY
            }
        );
        let error = Candidates::from_logits(&[]).unwrap_err();
        assert_eq!(error, SamplingError::NoCandidate { vocabulary: 0 });
        assert!(Candidates::from_logits(&[f32::NEG_INFINITY, 0.0]).is_ok());
    }

    #[test]
    fn scaling_cannot_make_infinities() {
        let mut candidates = Candidates::from_logits(&[f32::NEG_INFINITY, 4.0, -2.0]).unwrap();
        candidates.scale(1e38);
        let logits: Vec<f32> = candidates
            .as_slice()
            .iter()
            .map(|item| item.logit)
            .collect();
        assert_eq!(logits, [f32::NEG_INFINITY, f32::MAX, -2e38]);
    }
}
