use super::super::Rng;
use super::super::chain::draw;
use super::super::order::most_likely_first;
use super::*;

fn ids(candidates: &[Candidate]) -> Vec<u32> {
    candidates.iter().map(|candidate| candidate.id).collect()
}

/// The order of a draw, where some have left.
fn drawn(candidates: &mut Candidates) -> Vec<u32> {
    match candidates.in_draw_order() {
        DrawOrder::Descending(order) => ids(order),
        DrawOrder::Vocabulary(_) => panic!("all are there"),
    }
}

#[test]
fn top_sorts_a_prefix_and_breaks_ties_by_id() {
    let mut candidates = Candidates::from_logits(&[1.0, 3.0, 2.0, 3.0, 0.0]).unwrap();
    assert_eq!(ids(candidates.top(2)), [1, 3]);
    assert_eq!(candidates.order, Order::Head);
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
        let mut wanted: Vec<Candidate> = of_row(&logits).collect();
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
    assert_eq!(drawn(&mut candidates), (0..500).collect::<Vec<_>>());
    candidates.keep_top_mass(2.0);
    assert_eq!(candidates.len(), 500);
    candidates.keep_top_mass(0.0);
    assert_eq!(candidates.len(), 1);
}

#[test]
fn keep_by_key_takes_the_smallest_keys_first() {
    let mut candidates = Candidates::from_logits(&[0.0; 4]).unwrap();
    candidates.keep_mass_by_key(0.5, |candidate| -f64::from(candidate.id));
    assert_eq!(drawn(&mut candidates), [2, 3]);
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
    assert_eq!(drawn(&mut candidates), expected);
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
    let logits: Vec<f32> = candidates.iter().map(|item| item.logit).collect();
    assert_eq!(logits, [f32::NEG_INFINITY, f32::MAX, -2e38]);
}

/// The old way: a list of all candidates, sorted as a whole whenever an order is asked for.
struct Listed {
    items: Vec<Candidate>,
    /// Whether some have left or were sorted.
    cut: bool,
}

impl Listed {
    fn highest(&self) -> f32 {
        math::highest_of(&self.items, |item| item.logit)
    }

    fn total_weight(&self) -> f64 {
        math::mass(self.items.iter().map(|item| item.logit), self.highest())
    }

    fn sort(&mut self) {
        self.items.sort_by(most_likely_first);
        self.cut = true;
    }

    fn keep_top(&mut self, count: usize) {
        if count < self.items.len() {
            self.sort();
            self.items.truncate(count);
        }
    }

    /// How many of `items` weigh `share` of all.
    fn reaching(&self, share: f64, items: &[Candidate]) -> usize {
        let (highest, wanted) = (self.highest(), share * self.total_weight());
        let mut held = 0.0;
        let reached = items.iter().position(|&item| {
            held += Candidates::weight(item, highest);
            held >= wanted
        });
        reached.map_or(items.len(), |at| at + 1)
    }

    fn keep_top_mass(&mut self, share: f64) {
        let mut sorted = self.items.clone();
        sorted.sort_by(most_likely_first);
        let count = self.reaching(share, &sorted);
        self.sort();
        self.items.truncate(count);
    }

    fn keep_at_least(&mut self, least: f32) {
        let least = least.min(self.highest());
        let before = self.items.len();
        self.items.retain(|item| item.logit >= least);
        self.cut |= self.items.len() < before;
    }

    fn keep_mass_by_key(&mut self, share: f64, key: impl Fn(Candidate) -> f64) {
        let mut keyed = self.items.clone();
        keyed.sort_by(|a, b| {
            key(*a)
                .total_cmp(&key(*b))
                .then_with(|| most_likely_first(a, b))
        });
        keyed.truncate(self.reaching(share, &keyed));
        (self.items, self.cut) = (keyed, true);
    }

    fn draw(&mut self, rng: &mut Rng) -> Option<u32> {
        let highest = self.highest();
        let mut left = rng.next_f64() * self.total_weight();
        if self.cut {
            self.sort();
        }
        let mut last = None;
        for &item in &self.items {
            let weight = Candidates::weight(item, highest);
            if weight > 0.0 {
                last = Some(item.id);
                if left < weight {
                    break;
                }
                left -= weight;
            }
        }
        last
    }
}

#[test]
fn a_row_is_drawn_from_as_a_list_of_all_was() {
    let mut x = 3_u32;
    let mut next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        x >> 8
    };
    for round in 0..240 {
        let len = [1, 70, 5_000, 40_000][round % 4];
        // Peaked, flat, and with few different values; some tokens are forbidden.
        let (spread, values) = [(30.0, 1 << 20), (0.5, 1 << 20), (4.0, 5)][round / 4 % 3];
        let logits: Vec<f32> = (0..len)
            .map(|_| match (next() % 50, next() % values) {
                (0, _) => f32::NEG_INFINITY,
                (_, value) => spread * (value as f32 / values as f32).powi(3),
            })
            .collect();
        if logits.iter().all(|&logit| logit == f32::NEG_INFINITY) {
            continue;
        }
        let mut row = Candidates::from_logits(&logits).unwrap();
        let mut list = Listed {
            items: of_row(&logits).collect(),
            cut: false,
        };
        let mut steps = Vec::new();
        for _ in 0..next() % 4 {
            if list.highest() == f32::NEG_INFINITY {
                break;
            }
            let step = next() % 7;
            steps.push(step);
            match step {
                0 => {
                    let factor = 1.0 / (0.3 + (next() % 20) as f32 / 10.0);
                    row.scale(factor);
                    let scaled = |logit: f32| match logit.is_finite() {
                        true => (logit * factor).clamp(f32::MIN, f32::MAX),
                        false => logit,
                    };
                    list.items
                        .iter_mut()
                        .for_each(|item| item.logit = scaled(item.logit));
                }
                1 => {
                    let count = 1 + (next() % 3_000) as usize;
                    row.keep_top(count);
                    list.keep_top(count);
                }
                2 => {
                    let share = f64::from(next() % 101) / 100.0;
                    row.keep_top_mass(share);
                    list.keep_top_mass(share);
                }
                3 => {
                    let least = list.highest() - (next() % 100) as f32 / 10.0;
                    row.keep_at_least(least);
                    list.keep_at_least(least);
                }
                4 => {
                    let key = |item: Candidate| f64::from((item.logit - spread / 2.0).abs());
                    let share = f64::from(next() % 100) / 100.0;
                    row.keep_mass_by_key(share, key);
                    list.keep_mass_by_key(share, key);
                }
                5 => {
                    let id = next() % len;
                    row.change(id, |logit| logit - 1.5);
                    let place = list.items.iter_mut().find(|item| item.id == id);
                    place.into_iter().for_each(|item| item.logit -= 1.5);
                }
                _ => {
                    let mask: Vec<u32> = (0..len.div_ceil(32)).map(|_| next() & next()).collect();
                    let is_set = |id: u32| mask[id as usize / 32] >> (id % 32) & 1 == 1;
                    let left: Vec<Candidate> = list
                        .items
                        .iter()
                        .copied()
                        .filter(|item| is_set(item.id))
                        .collect();
                    assert_eq!(row.keep_masked(&mask), !left.is_empty());
                    if !left.is_empty() && left.len() < list.items.len() {
                        (list.items, list.cut) = (left, true);
                    }
                }
            }
            assert_eq!(row.len(), list.items.len(), "{round}: {steps:?}");
            assert_eq!(row.highest(), list.highest(), "{round}: {steps:?}");
            assert_eq!(
                row.total_weight(),
                list.total_weight(),
                "{round}: {steps:?}"
            );
        }
        if list.highest() == f32::NEG_INFINITY {
            continue;
        }
        let seed = u64::from(next());
        let drawn = draw(&mut row, &mut Rng::new(seed));
        assert_eq!(drawn, list.draw(&mut Rng::new(seed)), "{round}: {steps:?}");
    }
}
