//! Where the tokens of a context lie in its blocks.
//!
//! Blocks hold slots: block `i` those from `64 · i` on. A context that only grew has token `t` in slot
//! `t`, its key rotated to position `t`. When a span is removed, nothing in the blocks moves: what
//! follows keeps its slots and its rotation, and is from then on so many positions nearer. A query
//! is rotated forward by as much when it meets such keys, so they need no new rounding. In the same
//! way a context takes over what another has read elsewhere.

use std::ops::Range;

/// Tokens that lie one after another in the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// The first of them, counted in the context.
    pub(crate) token: usize,
    /// Its slot.
    pub(crate) slot: usize,
    /// How many positions further than theirs their keys are rotated; negative where less far.
    pub(crate) shift: isize,
}

/// The stretches of a context, in order of tokens and of slots; the last has no end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Places(Vec<Stretch>);

impl Default for Places {
    /// Every token in the slot of its number.
    fn default() -> Places {
        Places(vec![Stretch {
            token: 0,
            slot: 0,
            shift: 0,
        }])
    }
}

impl Places {
    /// Whether every token is in the slot of its number.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(
            self.0[..],
            [Stretch {
                token: 0,
                slot: 0,
                shift: 0
            }]
        )
    }

    /// The slot of token `token`, or the one it will have.
    pub(crate) fn slot(&self, token: usize) -> usize {
        let stretch = self.of(token);
        stretch.slot + token - stretch.token
    }

    /// What of the slots `slots` holds tokens before token `end`: the slots of each stretch, none of
    /// them empty.
    pub(crate) fn within(
        &self,
        slots: Range<usize>,
        end: usize,
    ) -> impl Iterator<Item = (Range<usize>, Stretch)> {
        let of_stretch = move |(at, stretch): (usize, &Stretch)| {
            let next = self.0.get(at + 1).map_or(end, |next| next.token.min(end));
            let last = stretch.slot + next.saturating_sub(stretch.token);
            let covered = stretch.slot.max(slots.start)..last.min(slots.end);
            (!covered.is_empty()).then_some((covered, *stretch))
        };
        self.0.iter().enumerate().filter_map(of_stretch)
    }

    /// Forgets tokens from `len` on.
    pub(crate) fn truncate(&mut self, len: usize) {
        if len == 0 {
            *self = Places::default();
        }
        let kept = 1 + self.0[1..]
            .iter()
            .take_while(|stretch| stretch.token < len)
            .count();
        self.0.truncate(kept);
    }

    /// Removes tokens `span`, after which others follow.
    pub(crate) fn remove(&mut self, span: Range<usize>) {
        let after = Stretch {
            token: span.end,
            slot: self.slot(span.end),
            shift: self.of(span.end).shift,
        };
        let mut kept: Vec<Stretch> = Vec::new();
        let before = |stretch: &&Stretch| stretch.token < span.start || stretch.token == 0;
        kept.extend(self.0.iter().filter(before));
        let beyond = self.0.iter().filter(|stretch| stretch.token > span.end);
        kept.extend([after].iter().chain(beyond).map(|stretch| Stretch {
            token: stretch.token - span.len(),
            slot: stretch.slot,
            shift: stretch.shift + span.len() as isize,
        }));
        if span.start == 0 {
            // Nothing is left of the first stretch.
            kept.remove(0);
        }
        self.0 = kept;
    }

    /// Makes the tokens after token `len` follow in the next slots with keys at their own positions.
    pub(crate) fn go_on(&mut self, len: usize) {
        if self.of(len).shift != 0 {
            let slot = self.slot(len);
            self.0.push(Stretch {
                token: len,
                slot,
                shift: 0,
            });
        }
    }

    /// Puts a stretch at the end, which begins with the next token.
    pub(crate) fn push(&mut self, stretch: Stretch) {
        if stretch.token == 0 {
            self.0.clear();
        }
        self.0.push(stretch);
    }

    /// The stretch of token `token`, or the one that it will belong to.
    pub(crate) fn of(&self, token: usize) -> &Stretch {
        let after = self.0.partition_point(|stretch| stretch.token <= token);
        &self.0[after.saturating_sub(1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The slot and the shift of every token, kept one by one.
    fn table(places: &Places, len: usize) -> Vec<(usize, isize)> {
        (0..len)
            .map(|token| (places.slot(token), places.of(token).shift))
            .collect()
    }

    #[test]
    fn removals_and_growth_follow_a_plain_list() {
        let mut x = 7u32;
        let mut below = |n: usize| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (x >> 8) as usize % n.max(1)
        };
        for _ in 0..200 {
            let mut places = Places::default();
            let mut list: Vec<(usize, isize)> = Vec::new();
            let mut next_slot = 0;
            for _ in 0..30 {
                match below(4) {
                    0 if list.len() > 2 => {
                        let start = below(list.len() - 1);
                        let end = start + 1 + below(list.len() - 1 - start);
                        places.remove(start..end);
                        list.drain(start..end);
                        for entry in &mut list[start..] {
                            entry.1 += (end - start) as isize;
                        }
                    }
                    1 if list.len() > 1 => {
                        let len = 1 + below(list.len() - 1);
                        places.truncate(len);
                        list.truncate(len);
                        next_slot = list[len - 1].0 + 1;
                    }
                    _ => {
                        let count = 1 + below(100);
                        places.go_on(list.len());
                        for _ in 0..count {
                            list.push((next_slot, 0));
                            next_slot += 1;
                        }
                    }
                }
                assert_eq!(table(&places, list.len()), list);
                // Stretches cover every slot in use once, in order.
                let covered: Vec<usize> = places
                    .within(0..usize::MAX, list.len())
                    .flat_map(|(slots, _)| slots)
                    .collect();
                let slots: Vec<usize> = list.iter().map(|(slot, _)| *slot).collect();
                assert_eq!(covered, slots);
            }
        }
    }
}
