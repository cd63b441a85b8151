//! The tokens that may come next.

use super::order::{at_least, highest_of_row, most_likely_first, sort};
use super::{SamplingError, math};

/// How many of the highest candidates are looked at first when the number needed is not known.
const FIRST_LOOK: usize = 64;

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
/// As long as none has left they are a row of logits, and only as many are made [`Candidate`]s and sorted as
/// a sampler looks at: a vocabulary of 128k costs passes over its logits and no list.
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    /// The logit of every token, while all are candidates.
    row: Vec<f32>,
    /// All candidates otherwise; beside a row a copy of its highest ones, in descending order.
    items: Vec<Candidate>,
    order: Order,
    /// The highest logit of the row, as long as it is known.
    highest: Option<f32>,
}

/// What is known about the order of the candidates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Order {
    /// There is a row, which nobody has looked into.
    #[default]
    Vocabulary,
    /// There is a row, and its highest ones stand beside it.
    Head,
    /// There is no row. The first so many are the highest ones, in descending order.
    Descending(usize),
}

/// The order in which a draw walks through the candidates.
pub(super) enum DrawOrder<'a> {
    /// By token id: the logit of every token, none of which was cut or sorted.
    Vocabulary(&'a [f32]),
    /// Most likely first.
    Descending(&'a [Candidate]),
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
        let highest = check(logits)?;
        self.take(logits, highest);
        Ok(())
    }

    /// Takes the candidates of the next step, whose logits were [checked](check).
    pub(super) fn take(&mut self, logits: &[f32], highest: f32) {
        self.items.clear();
        self.row.clear();
        self.row.extend_from_slice(logits);
        self.order = Order::Vocabulary;
        self.highest = Some(highest);
    }

    /// How many are left.
    pub fn len(&self) -> usize {
        match self.order {
            Order::Vocabulary | Order::Head => self.row.len(),
            Order::Descending(_) => self.items.len(),
        }
    }

    /// Whether there is none, which is so only before the first [`Candidates::fill`].
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The candidates, in no promised order.
    pub fn iter(&self) -> impl Iterator<Item = Candidate> {
        let (row, items) = match self.order {
            Order::Vocabulary | Order::Head => (&self.row[..], &[][..]),
            Order::Descending(_) => (&[][..], &self.items[..]),
        };
        of_row(row).chain(items.iter().copied())
    }

    /// The highest logit.
    pub fn highest(&self) -> f32 {
        match self.order {
            Order::Vocabulary | Order::Head => {
                let highest = self.highest;
                highest.unwrap_or_else(|| math::survey(&self.row).highest)
            }
            Order::Descending(1..) => self.items[0].logit,
            Order::Descending(0) => math::highest_of(&self.items, |item| item.logit),
        }
    }

    /// Σ exp(logit − highest): the factor between [`Candidates::weight`] and a probability.
    pub fn total_weight(&self) -> f64 {
        self.mass(self.highest())
    }

    /// The same where the highest logit is known.
    pub(super) fn mass(&self, highest: f32) -> f64 {
        match self.order {
            Order::Vocabulary | Order::Head => math::mass_of(&self.row, highest),
            Order::Descending(_) => math::mass(self.items.iter().map(|item| item.logit), highest),
        }
    }

    /// exp(logit − highest), the probability of a candidate times the total weight; all of it in
    /// f64 so that sums over large vocabularies keep their digits.
    pub fn weight(candidate: Candidate, highest: f32) -> f64 {
        f64::from(math::exp(candidate.logit - highest))
    }

    /// The `count` most likely candidates (or all, when there are fewer), most likely first; equal
    /// logits are ordered by token id.
    pub fn top(&mut self, count: usize) -> &[Candidate] {
        let count = count.min(self.len());
        match self.order {
            Order::Vocabulary | Order::Head => {
                if count > self.items.len() {
                    highest_of_row(&self.row, count, &mut self.items);
                }
                self.order = Order::Head;
                if count == self.row.len() {
                    self.leave_row(count);
                }
            }
            Order::Descending(sorted) if count > sorted => {
                let more = sort(&mut self.items[sorted..], count - sorted);
                self.order = Order::Descending(sorted + more);
            }
            Order::Descending(_) => {}
        }
        &self.items[..count]
    }

    /// The candidates as a draw walks through them: most likely first, except that a step no sampler has
    /// cut or sorted is given as it came, by token id.
    pub(super) fn in_draw_order(&mut self) -> DrawOrder<'_> {
        match self.order {
            Order::Vocabulary => DrawOrder::Vocabulary(&self.row),
            Order::Head | Order::Descending(_) => DrawOrder::Descending(self.top(self.len())),
        }
    }

    /// Keeps the `count` most likely candidates, at least one.
    pub fn keep_top(&mut self, count: usize) {
        let count = count.max(1);
        if count < self.len() {
            self.top(count);
            self.items.truncate(count);
            self.leave_row(count);
        }
    }

    /// Keeps the smallest number of most likely candidates whose probabilities sum to `share` or
    /// more, at least one.
    pub fn keep_top_mass(&mut self, share: f64) {
        let highest = self.highest();
        let wanted = share * self.mass(highest);
        let mut held = 0.0;
        let mut seen = 0;
        let mut look = FIRST_LOOK;
        while seen < self.len() {
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
        if self.order == Order::Vocabulary {
            let before = self.row.len();
            at_least(&self.row, least, &mut self.items);
            match self.items.len() < before {
                true => self.leave_row(0),
                false => self.items.clear(),
            }
            return;
        }
        self.retain(|item| item.logit >= least);
    }

    /// Keeps, in ascending order of `key`, the smallest number of candidates whose probabilities
    /// sum to `share` or more, at least one. Equal keys are ordered most likely first.
    pub fn keep_mass_by_key(&mut self, share: f64, key: impl Fn(Candidate) -> f64) {
        let highest = self.highest();
        let wanted = share * self.mass(highest);
        let mut keyed: Vec<(f64, Candidate)> = self.iter().map(|item| (key(item), item)).collect();
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
        self.leave_row(0);
    }

    /// Multiplies every logit by a positive factor.
    pub fn scale(&mut self, factor: f32) {
        debug_assert!(factor > 0.0);
        // A factor that overflows keeps the order: ties at ±the largest number are ties by id only
        // among candidates that had already left every other behind.
        let scaled = |logit: f32| match logit == f32::NEG_INFINITY {
            true => logit,
            false => (logit * factor).clamp(f32::MIN, f32::MAX),
        };
        if !matches!(self.order, Order::Descending(_)) {
            for logit in &mut self.row {
                *logit = scaled(*logit);
            }
            self.highest = self.highest.map(scaled);
        }
        for item in &mut self.items {
            item.logit = scaled(item.logit);
        }
    }

    /// Replaces the logit of token `id`, if it is still a candidate, by what `change` makes of it.
    /// A result that is not a number forbids the token.
    pub fn change(&mut self, id: u32, change: impl FnOnce(f32) -> f32) {
        let of_id = |item: &&mut Candidate| item.id == id;
        let place = match self.order {
            Order::Vocabulary | Order::Head => self.row.get_mut(id as usize),
            Order::Descending(_) => self
                .items
                .iter_mut()
                .find(of_id)
                .map(|item| &mut item.logit),
        };
        let Some(place) = place else { return };
        let logit = change(*place);
        *place = if logit.is_nan() {
            f32::NEG_INFINITY
        } else {
            logit.min(f32::MAX)
        };
        self.highest = None;
        match self.order {
            Order::Vocabulary => {}
            Order::Head => self.items.clear(),
            Order::Descending(_) => self.order = Order::Descending(0),
        }
    }

    /// Keeps the candidates that `keep` is true for; when it is true for none, nothing changes.
    pub fn retain(&mut self, mut keep: impl FnMut(Candidate) -> bool) {
        let Order::Descending(highest) = self.order else {
            let head = self.take_head();
            self.items
                .extend(of_row(&self.row).filter(|&item| keep(item)));
            match self.items.len() {
                kept if kept > 0 && kept < self.row.len() => self.leave_row(0),
                _ => self.items = head,
            }
            return;
        };
        // One look at each: there may be many.
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

    /// Keeps the tokens whose bits are set in `mask`, 32 tokens a word from the lowest bit on. Returns
    /// whether there are any; when not, nothing changes.
    pub fn keep_masked(&mut self, mask: &[u32]) -> bool {
        let is_set = |id: u32| {
            let word = mask.get(id as usize / 32);
            word.is_some_and(|word| word >> (id % 32) & 1 == 1)
        };
        if let Order::Descending(_) = self.order {
            let any = self.items.iter().any(|item| is_set(item.id));
            self.retain(|item| is_set(item.id));
            return any;
        }
        let head = self.take_head();
        for (first, (&word, logits)) in (0..).step_by(32).zip(mask.iter().zip(self.row.chunks(32)))
        {
            let mut left = word;
            // Most masks let most tokens through, or next to none: a run of them at a time.
            while left != 0 {
                let from = left.trailing_zeros();
                let end = from + (left >> from).trailing_ones();
                left &= u32::MAX.checked_shl(end).unwrap_or(0);
                // Masks are rounded up to whole words.
                let run = from as usize..logits.len().min(end as usize);
                let tokens = (first + from..).zip(logits.get(run).unwrap_or_default());
                self.items
                    .extend(tokens.map(|(id, &logit)| Candidate { id, logit }));
            }
        }
        let kept = self.items.len();
        match kept > 0 && kept < self.row.len() {
            true => self.leave_row(0),
            false => self.items = head,
        }
        kept > 0
    }

    /// The highest ones that stand beside a row, if there are any; the memory stays where they were otherwise.
    fn take_head(&mut self) -> Vec<Candidate> {
        match self.items.is_empty() {
            true => Vec::new(),
            false => std::mem::take(&mut self.items),
        }
    }

    /// What stands in `items` is all there is, the first `sorted` of them in descending order.
    fn leave_row(&mut self, sorted: usize) {
        self.row.clear();
        self.order = Order::Descending(sorted);
    }
}

/// The candidates that a row of logits is.
fn of_row(row: &[f32]) -> impl Iterator<Item = Candidate> {
    let candidate = |(id, &logit)| Candidate { id, logit };
    (0..).zip(row).map(candidate)
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

#[cfg(test)]
#[path = "candidates_tests.rs"]
mod tests;
