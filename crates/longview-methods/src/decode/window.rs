//! The tokens that the penalties look back at.

use std::collections::BTreeMap;

/// How often each token occurs among the `last` tokens of `history`, ascending by id.
pub(super) fn counts(history: &[u32], last: usize) -> BTreeMap<u32, usize> {
    let mut counts = BTreeMap::new();
    for &id in &history[history.len().saturating_sub(last)..] {
        *counts.entry(id).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_tokens_count() {
        let list = |history, last| counts(history, last).into_iter().collect::<Vec<_>>();
        assert_eq!(list(&[7, 7, 5, 7], 3), [(5, 1), (7, 2)]);
        assert_eq!(list(&[7, 7], 99), [(7, 2)]);
        assert_eq!(list(&[], 3), []);
    }
}
