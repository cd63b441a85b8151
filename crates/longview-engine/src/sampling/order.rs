//! The most likely of many candidates, without sorting all where few are wanted.

use std::cell::RefCell;
use std::cmp::Ordering;

use super::candidates::Candidate;
use super::math;

/// Candidates whose highest is looked for at once.
const BLOCK: usize = 64;

/// Where so many are to be sorted, digit by digit is faster than by comparing.
const MANY: usize = 2_048;

/// Bits of a digit, and digits of a key.
const DIGIT: u32 = 11;
const DIGITS: usize = 3;

/// Descending by logit, equal logits ascending by id.
pub(super) fn most_likely_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// Fills `out` with the `wanted` most likely tokens of `row`, `[vocabulary]`, or more, most likely first.
pub(super) fn highest_of_row(row: &[f32], wanted: usize, out: &mut Vec<Candidate>) {
    out.clear();
    let Some(bound) = bound(row, wanted, |&logit| logit) else {
        out.extend((0..).zip(row).map(|(id, &logit)| Candidate { id, logit }));
        sort(out, row.len());
        return;
    };
    at_least(row, bound, out);
    let sorted = sort(out, wanted);
    out.truncate(sorted);
}

/// Fills `out` with the tokens of `row` whose logits are at least `least`, by id.
pub(super) fn at_least(row: &[f32], least: f32, out: &mut Vec<Candidate>) {
    out.clear();
    for (first, block) in (0..).step_by(BLOCK).zip(row.chunks(BLOCK)) {
        if math::highest_of(block, |&logit| logit) < least {
            continue;
        }
        let all = (first..).zip(block);
        let candidate = |(id, &logit)| Candidate { id, logit };
        out.extend(all.map(candidate).filter(|item| item.logit >= least));
    }
}

/// Moves the `wanted` most likely of `items` to the front, most likely first. Returns how many stand so: more,
/// where sorting more was faster.
pub(super) fn sort(items: &mut [Candidate], wanted: usize) -> usize {
    let is_by_id = |items: &[Candidate]| items.is_sorted_by_key(|item| item.id);
    if items.len() > MANY && !are_few(items.len(), wanted) && is_by_id(items) {
        sort_by_digits(items);
        return items.len();
    }
    let narrow = gather_highest(items, wanted);
    // All that were gathered, unless ties have made them many.
    let sorted = match narrow <= 4 * wanted + BLOCK {
        true => narrow,
        false => {
            items[..narrow].select_nth_unstable_by(wanted - 1, most_likely_first);
            wanted
        }
    };
    items[..sorted].sort_unstable_by(most_likely_first);
    sorted
}

/// A logit that at least `wanted` of `items` are not below, if few are wanted: each block whose highest is
/// one of the `wanted` highest of all blocks has one.
fn bound<T>(items: &[T], wanted: usize, logit: impl Fn(&T) -> f32) -> Option<f32> {
    if !are_few(items.len(), wanted) {
        return None;
    }
    let highest = |block: &[T]| math::highest_of(block, &logit);
    let mut most: Vec<f32> = items.chunks(BLOCK).map(highest).collect();
    let (_, &mut bound, _) = most.select_nth_unstable_by(wanted - 1, |a, b| b.total_cmp(a));
    Some(bound)
}

/// Whether `wanted` of `all` candidates are few enough to be found by the highest of each block.
fn are_few(all: usize, wanted: usize) -> bool {
    (1..=all / BLOCK / 2).contains(&wanted)
}

/// Moves candidates to the front, which are the most likely, `wanted` or more; returns how many. The others
/// stay in their order.
fn gather_highest(items: &mut [Candidate], wanted: usize) -> usize {
    let Some(bound) = bound(items, wanted, |item| item.logit) else {
        return items.len();
    };
    let mut gathered = Vec::new();
    let mut free = items.len();
    for at in (0..items.len()).rev() {
        let item = items[at];
        if item.logit >= bound {
            gathered.push(item);
        } else {
            free -= 1;
            items[free] = item;
        }
    }
    items[..free].copy_from_slice(&gathered);
    free
}

/// Sorts `items`, which stand by id, most likely first.
fn sort_by_digits(items: &mut [Candidate]) {
    // As large as a vocabulary: new ones every time would cost as much as the sorting.
    thread_local!(static KEYED: RefCell<[Vec<(u32, u32)>; 2]> = RefCell::default());
    KEYED.with_borrow_mut(|[keyed, moved]| sort_by_keys(items, keyed, moved));
}

/// The same with memory for the keys; what is in it is of no account.
fn sort_by_keys(items: &mut [Candidate], keyed: &mut Vec<(u32, u32)>, moved: &mut Vec<(u32, u32)>) {
    keyed.clear();
    keyed.extend(items.iter().map(|item| (key(item.logit), item.id)));
    moved.resize(keyed.len(), (0, 0));
    let mut counts = [[0_usize; 1 << DIGIT]; DIGITS];
    let digit =
        |key: u32, place: usize| (key >> (DIGIT * place as u32)) as usize & ((1 << DIGIT) - 1);
    for &(key, _) in &*keyed {
        for (place, counts) in counts.iter_mut().enumerate() {
            counts[digit(key, place)] += 1;
        }
    }
    // From the lowest digit on, and equals stay in their order: by id.
    for (place, counts) in counts.iter_mut().enumerate() {
        let mut before = 0;
        for count in counts.iter_mut() {
            before += std::mem::replace(count, before);
        }
        for &entry in &*keyed {
            let to = &mut counts[digit(entry.0, place)];
            moved[*to] = entry;
            *to += 1;
        }
        std::mem::swap(keyed, moved);
    }
    for (item, &(key, id)) in items.iter_mut().zip(&*keyed) {
        *item = Candidate {
            id,
            logit: logit(key),
        };
    }
}

/// A number that is the smaller the higher the logit is in the total order of floats.
fn key(logit: f32) -> u32 {
    let bits = logit.to_bits();
    let sign = bits >> 31;
    !(bits ^ (sign.wrapping_neg() | 1 << 31))
}

/// The logit of a key.
fn logit(key: u32) -> f32 {
    let ascending = !key;
    let negative = 1 - (ascending >> 31);
    f32::from_bits(ascending ^ (negative.wrapping_neg() | 1 << 31))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_order_as_floats_do_and_can_be_read_back() {
        let mut logits = [
            3.5,
            -0.0,
            0.0,
            f32::NEG_INFINITY,
            f32::MIN,
            f32::MAX,
            -1e-40,
            1e-40,
        ];
        for logit_ in logits {
            assert_eq!(logit(key(logit_)).to_bits(), logit_.to_bits());
        }
        logits.sort_by(|a, b| b.total_cmp(a));
        assert!(logits.is_sorted_by_key(|&logit| key(logit)));
    }

    #[test]
    fn sorting_by_digits_is_sorting_by_comparing() {
        let mut x = 9_u32;
        let mut next = || {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            x >> 8
        };
        for values in [3, 4_000, 1 << 24] {
            let mut items: Vec<Candidate> = (0..9_000)
                .map(|at| Candidate {
                    id: at * 3,
                    logit: (next() % values) as f32 * 0.37 - 500.0,
                })
                .collect();
            let mut wanted = items.clone();
            wanted.sort_unstable_by(most_likely_first);
            sort_by_digits(&mut items);
            assert_eq!(items, wanted);
        }
    }
}
