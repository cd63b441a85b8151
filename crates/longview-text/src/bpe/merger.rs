//! Merging the symbols of a word, best pair first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::table::{Merge, TokenTable};

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

/// A pair of neighbours that a merge joins. The lowest rank goes first, the leftmost among equals. Ranks tell
/// pairs apart.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    at: u32,
}

impl Merger {
    /// Begins a word of at most `symbols` symbols, fewer than 2^32 − 1, and makes room for them and no more.
    pub(crate) fn begin(&mut self, symbols: usize) {
        self.symbols.clear();
        self.symbols.reserve_exact(symbols);
    }

    /// Adds a symbol to the end of the word.
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

    /// Merges the symbols of the word and puts what is left of them behind `ids`.
    pub(crate) fn finish(&mut self, table: &TokenTable, ids: &mut Vec<u32>) {
        // One for each pair, and one more for each merge: it takes one and gives two.
        self.queue.reserve_exact(2 * self.symbols.len());
        for at in 0..self.symbols.len() as u32 {
            self.consider(table, at);
        }
        while let Some(Reverse(Candidate { rank, at })) = self.queue.pop() {
            // One of the two may have been joined to something else meanwhile.
            let Some((right, merge)) = self.pair(table, at).filter(|(_, found)| found.rank == rank)
            else {
                continue;
            };
            let next = self.symbols[right as usize].next;
            self.symbols[right as usize].id = NONE;
            let left = &mut self.symbols[at as usize];
            (left.id, left.next) = (merge.id, next);
            let prev = left.prev;
            if next != NONE {
                self.symbols[next as usize].prev = at;
            }
            if prev != NONE {
                self.consider(table, prev);
            }
            self.consider(table, at);
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

    fn consider(&mut self, table: &TokenTable, at: u32) {
        if let Some((_, Merge { rank, .. })) = self.pair(table, at) {
            self.queue.push(Reverse(Candidate { rank, at }));
        }
    }

    /// The symbol that symbol `at` can be joined with, and what they become.
    fn pair(&self, table: &TokenTable, at: u32) -> Option<(u32, Merge)> {
        let left = &self.symbols[at as usize];
        // What was joined to the one before is nobody's neighbour.
        if left.id == NONE || left.next == NONE {
            return None;
        }
        let right = &self.symbols[left.next as usize];
        Some((left.next, table.merge(left.id, right.id)?))
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
                merger.begin(letters.len());
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
