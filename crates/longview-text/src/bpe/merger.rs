//! Merging the symbols of a word, best pair first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::table::TokenTable;

/// Marks the end of the list, and symbols that were joined to the one before.
const NONE: u32 = u32::MAX;

/// Merges one word after the other, in memory that it keeps.
#[derive(Default)]
pub(crate) struct Merger {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<Candidate>>,
}

/// A part of the word, in a doubly linked list.
struct Symbol {
    id: u32,
    prev: u32,
    next: u32,
}

/// A pair of neighbours that a merge joins. The lowest rank goes first, the leftmost among equals.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    at: u32,
    left: u32,
    right: u32,
    id: u32,
}

impl Merger {
    /// Adds a symbol to the end of the word. A word has fewer than 2^32 − 1 symbols.
    pub(crate) fn push(&mut self, id: u32) {
        let at = self.symbols.len() as u32;
        if let Some(last) = self.symbols.last_mut() {
            last.next = at;
        }
        self.symbols.push(Symbol {
            id,
            prev: at.checked_sub(1).unwrap_or(NONE),
            next: NONE,
        });
    }

    /// Merges the symbols pushed since the last word and puts what is left of them behind `ids`.
    pub(crate) fn finish(&mut self, table: &TokenTable, ids: &mut Vec<u32>) {
        for at in 0..self.symbols.len() as u32 {
            self.consider(table, at);
        }
        while let Some(Reverse(best)) = self.queue.pop() {
            let at = best.at as usize;
            let right = self.symbols[at].next;
            // One of the two may have been joined to something else meanwhile.
            if self.symbols[at].id != best.left
                || right == NONE
                || self.symbols[right as usize].id != best.right
            {
                continue;
            }
            let next = self.symbols[right as usize].next;
            self.symbols[right as usize].id = NONE;
            self.symbols[at].id = best.id;
            self.symbols[at].next = next;
            if next != NONE {
                self.symbols[next as usize].prev = best.at;
            }
            let prev = self.symbols[at].prev;
            if prev != NONE {
                self.consider(table, prev);
            }
            self.consider(table, best.at);
        }
        // The first symbol is never joined to one before.
        let mut at = if self.symbols.is_empty() { NONE } else { 0 };
        while at != NONE {
            let symbol = &self.symbols[at as usize];
            ids.push(symbol.id);
            at = symbol.next;
        }
        self.symbols.clear();
    }

    /// Forgets the symbols pushed since the last word.
    pub(crate) fn clear(&mut self) {
        self.symbols.clear();
    }

    fn consider(&mut self, table: &TokenTable, at: u32) {
        let left = &self.symbols[at as usize];
        if left.next == NONE {
            return;
        }
        let (left, right) = (left.id, self.symbols[left.next as usize].id);
        if let Some(merge) = table.merge(left, right) {
            self.queue.push(Reverse(Candidate {
                rank: merge.rank,
                at,
                left,
                right,
                id: merge.id,
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Merges by the definition: of all neighbours the best pair, again and again.
    fn merged_by_definition(table: &TokenTable, mut ids: Vec<u32>) -> Vec<u32> {
        loop {
            let pairs = ids.windows(2).enumerate();
            let merges = pairs.filter_map(|(at, pair)| Some((table.merge(pair[0], pair[1])?, at)));
            let Some((merge, at)) = merges.min_by_key(|(merge, at)| (merge.rank, *at)) else {
                return ids;
            };
            ids.splice(at..at + 2, [merge.id]);
        }
    }

    #[test]
    fn words_merge_as_the_definition_says() {
        let tokens = [
            "a", "b", "c", "ab", "bc", "abc", "aa", "aab", "cab", "bcab", "cc",
        ];
        let merges = [
            ("a", "a"),
            ("b", "c"),
            ("a", "b"),
            ("ab", "c"),
            ("a", "bc"),
            ("aa", "b"),
            ("c", "ab"),
            ("bc", "ab"),
            ("c", "c"),
        ];
        let numbered: Vec<(&str, u32)> = tokens.into_iter().zip(0..).collect();
        let table = TokenTable::new(&numbered, &merges).unwrap();
        let mut merger = Merger::default();
        // Every word of one to eight letters of three.
        for length in 1..=8_u32 {
            for word in 0..3_u32.pow(length) {
                let letters = (0..length).map(|place| word / 3_u32.pow(place) % 3);
                let letters: Vec<u32> = letters.collect();
                let mut got = vec![99];
                letters.iter().for_each(|&id| merger.push(id));
                merger.finish(&table, &mut got);
                assert_eq!(got[1..], merged_by_definition(&table, letters), "{word}");
            }
        }
        let mut none = Vec::new();
        merger.finish(&table, &mut none);
        assert!(none.is_empty());
    }
}
