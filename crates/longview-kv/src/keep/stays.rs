//! The move of what stays of a layer into a stream: copied, packed anew, merged or turned.

use std::ops::Range;

use longview_kernels::{AlignedBytes, Exec};

use super::compress::Chosen;
use super::stream::Stream;
use super::view::LayerView;
use super::{Counting, Keep, Merging, Pairs, Positions};
use crate::ledger::Reservation;

/// What stays of one layer, on its way into a stream.
pub(super) struct Stays<'a> {
    pub(super) plan: &'a Keep,
    pub(super) view: &'a LayerView<'a>,
    pub(super) chosen: &'a Chosen,
    /// How many of the first pairs of every head stay in blocks of their own.
    pub(super) apart: usize,
    /// How many of the last pairs of every head stay in blocks.
    pub(super) in_blocks: usize,
    /// The tokens between the first and the last ones, which always stay.
    pub(super) open: Range<u32>,
}

impl Stays<'_> {
    /// A stream of all that does not stay in blocks, which fills `room` and may lie in `spare`. `memory
    /// [heads]` is what the merge remembers.
    pub(super) fn write(
        &self,
        exec: &Exec,
        memory: &mut [Option<f32>],
        room: Reservation,
        spare: Option<AlignedBytes>,
    ) -> Stream {
        let (view, group) = (self.view, self.view.group());
        let heads = 0..self.chosen.len();
        let positions = heads.clone().map(|head| {
            let position = |&pair: &u32| view.position(head, pair as usize) as u32;
            self.moving(head).iter().map(position).collect()
        });
        let place_bytes = self.plan.place_bytes();
        let mut stream = Stream::with_room(group, positions.collect(), place_bytes, room, spare);
        stream.set_apart(self.apart);
        if !group.geometry.is_whole() {
            self.copy(exec, &mut stream);
        }
        for head in heads {
            match group.geometry.is_whole() {
                true => self.pack(head, &mut stream, &mut memory[head]),
                false => self.change(head, &mut stream, &mut memory[head]),
            }
        }
        stream
    }

    /// The pairs of a head that move to the stream.
    fn moving(&self, head: usize) -> &[u32] {
        let chosen = &self.chosen[head];
        &chosen[self.apart..chosen.len() - self.in_blocks]
    }

    /// Pages of a head made anew of its pairs, whose tokens share scales.
    fn pack(&self, head: usize, stream: &mut Stream, memory: &mut Option<f32>) {
        let moving = self.moving(head);
        if moving.is_empty() {
            return;
        }
        let (_, mut pairs) = self.merged(head, memory);
        self.count(head, &pairs, stream);
        for (at, &pair) in moving.iter().enumerate() {
            let by = self.turn(head, at, pair as usize);
            if by != 0 {
                self.view.rotate(by, pairs.key_mut(at));
            }
        }
        stream.pack(self.view.group(), head, &pairs);
    }

    /// Pairs of all heads as they are.
    fn copy(&self, exec: &Exec, stream: &mut Stream) {
        let (view, group) = (self.view, self.view.group());
        stream.each_page_mut(exec, group, |head, pairs, to, slot| {
            let to = to.split_at_mut(group.geometry.k_bytes());
            view.copy(head, &self.moving(head)[pairs], to, slot);
        });
    }

    /// Writes anew the pairs of a head that others were merged into, and turns those that move up.
    fn change(&self, head: usize, stream: &mut Stream, memory: &mut Option<f32>) {
        let (view, group) = (self.view, self.view.group());
        let moving = self.moving(head);
        if self.plan.merge.is_some() {
            let (before, after) = self.merged(head, memory);
            for pair in 0..before.len() {
                // What nothing was merged into keeps its bits.
                if before.key(pair) != after.key(pair) || before.value(pair) != after.value(pair) {
                    stream.write(group, head, pair, after.key(pair), after.value(pair));
                }
            }
            self.count(head, &after, stream);
        }
        for (at, &pair) in moving.iter().enumerate() {
            let by = self.turn(head, at, pair as usize);
            if by != 0 {
                stream.turn(group, head, at, |key| view.rotate(by, key));
            }
        }
    }

    /// Remembers of how many tokens the pairs of a head are, where the merge counts them.
    fn count(&self, head: usize, pairs: &Pairs, stream: &mut Stream) {
        let counting = self.plan.counting();
        if counting != Counting::No {
            stream.set_tokens(head, pairs.tokens.clone(), counting);
        }
    }

    /// The pairs of a head that move, before and after those that go were merged into them.
    fn merged(&self, head: usize, memory: &mut Option<f32>) -> (Pairs, Pairs) {
        let view = self.view;
        let before = view.read(head, self.moving(head));
        let mut after = before.clone();
        if let Some(merge) = &self.plan.merge {
            let mut rest = self.chosen[head].iter().copied().peekable();
            let stays = |pair: &u32| rest.next_if_eq(pair).is_none();
            let gone: Vec<u32> = (0..view.pairs(head) as u32).filter(stays).collect();
            let turn = |positions: isize, key: &mut [f32]| view.rotate(positions, key);
            let gone = view.read(head, &gone);
            let mut with = Merging {
                isa: view.isa(),
                open: self.open.clone(),
                turn: &turn,
                memory,
            };
            merge.merge(&gone, &mut after, &mut with);
        }
        (before, after)
    }

    /// By how much the key of `pair`, the `at`-th of those that stay, is turned to where it stands once the
    /// gaps between them are closed: the last pair of a head keeps its place, and those before it move up.
    fn turn(&self, head: usize, at: usize, pair: usize) -> isize {
        match self.plan.positions {
            Positions::Text => 0,
            Positions::Slots => {
                let first = self.view.tokens() - self.chosen[head].len();
                first as isize + at as isize - self.view.place(head, pair) as isize
            }
        }
    }
}
