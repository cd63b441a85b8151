//! Ragged streams: the pairs of earlier tokens that a keep method left of one layer.
//!
//! Every KV head has as many as it was given. The heads of a layer lie one after another in one
//! sequence of pages, each from a multiple of [`STEP`] slots on, so that a head that keeps little
//! takes little; in forms that are made of whole pages each has pages of its own. A stream is written once and then
//! shared by forks; the next compaction makes a new one and frees the old, or writes over one that nobody else
//! holds and that keeps as many pairs of every head.

use std::ops::Range;

use longview_kernels::attention::PageRef;
use longview_kernels::page::{self, KvType, PAGE_TOKENS, PageGeometry};
use longview_kernels::{AlignedBytes, Exec};

use super::{Counting, Pairs};
use crate::block::Block;
use crate::layout::Group;
use crate::ledger::Reservation;

/// Slots that heads are given at a time, where pairs are written one by one.
const STEP: usize = 16;

/// Slots that heads are given at a time in the form of `group`.
fn step(group: &Group) -> usize {
    match group.geometry.is_whole() {
        true => PAGE_TOKENS,
        false => STEP,
    }
}

/// The pairs kept of one layer.
pub(crate) struct Stream {
    pages: Block,
    heads: Vec<Head>,
    places: Reservation,
    /// Pairs of every head before its own: the first tokens, which lie in blocks of their own.
    apart: usize,
}

/// The pairs kept of one KV head.
struct Head {
    /// Its first slot, a multiple of [`STEP`].
    first: usize,
    /// The tokens its pairs are of, ascending.
    positions: Vec<u32>,
    /// Of how many tokens each pair is, where that is counted.
    tokens: Vec<u32>,
    /// Their logarithms, where attention counts a pair as so many.
    log_weights: Vec<f32>,
}

impl Head {
    /// Its pairs that lie in page `index` of the stream, and the slot of the first.
    fn in_page(&self, index: usize) -> Option<(Range<usize>, usize)> {
        let base = index * PAGE_TOKENS;
        let start = base.max(self.first);
        let end = (base + PAGE_TOKENS).min(self.first + self.positions.len());
        (start < end).then(|| (start - self.first..end - self.first, start - base))
    }
}

/// The slots of `pairs`, at most a page of them, as [`page::copy_slots`] takes them.
pub(super) fn picked(pairs: &[u32], slot_of: impl Fn(u32) -> usize) -> [u8; PAGE_TOKENS] {
    let mut picked = [0; PAGE_TOKENS];
    for (picked, &pair) in picked.iter_mut().zip(pairs) {
        *picked = slot_of(pair) as u8;
    }
    picked
}

/// The slots of one head: whole pages that hold all of them, and where among these they lie.
pub(crate) struct Slots {
    /// Pages of the stream.
    pub(crate) pages: Range<usize>,
    /// Slots counted from the first of the pages.
    pub(crate) slots: Range<usize>,
}

impl Stream {
    /// Bytes of a stream whose heads keep `counts` pairs, each with `place_bytes` beside its key and value.
    pub(crate) fn bytes_of(group: &Group, counts: &[usize], place_bytes: usize) -> u64 {
        let slots: usize = counts
            .iter()
            .map(|count| count.next_multiple_of(step(group)))
            .sum();
        let pairs: usize = counts.iter().sum();
        (slots.div_ceil(PAGE_TOKENS) * group.page_bytes() + pairs * place_bytes) as u64
    }

    /// The most bytes that a stream of `heads` heads can take which keep `pairs` pairs in all, each with
    /// `place_bytes` beside its key and value.
    pub(crate) fn most_bytes(group: &Group, heads: usize, pairs: usize, place_bytes: usize) -> u64 {
        let slots = pairs + heads * (step(group) - 1);
        (slots.div_ceil(PAGE_TOKENS) * group.page_bytes() + pairs * place_bytes) as u64
    }

    /// A stream for pairs of the tokens `positions` of each head, to be filled with
    /// [`Stream::each_page_mut`] or [`Stream::pack`], each with `place_bytes` beside its key and value, whose bytes
    /// `room` holds. They may lie in `spare`, the memory of another stream.
    pub(crate) fn with_room(
        group: &Group,
        positions: Vec<Vec<u32>>,
        place_bytes: usize,
        mut room: Reservation,
        spare: Option<AlignedBytes>,
    ) -> Stream {
        let mut slots = 0;
        let mut pairs = 0;
        let of_head = |positions: Vec<u32>| {
            let first = slots;
            slots += positions.len().next_multiple_of(step(group));
            pairs += positions.len();
            Head {
                first,
                positions,
                tokens: Vec::new(),
                log_weights: Vec::new(),
            }
        };
        let heads: Vec<Head> = positions.into_iter().map(of_head).collect();
        let bytes = slots.div_ceil(PAGE_TOKENS) * group.page_bytes();
        let places = room.split((pairs * place_bytes) as u64);
        let mut pages = Block::in_room(bytes, room, spare);
        // Slots behind the last pair of a head hold nothing of what went.
        for head in heads.iter().filter(|head| !head.positions.is_empty()) {
            let last = (head.first + head.positions.len() - 1) / PAGE_TOKENS;
            let at = last * group.page_bytes();
            pages.bytes_mut()[at..at + group.page_bytes()].fill(0);
        }
        Stream {
            pages,
            heads,
            places,
            apart: 0,
        }
    }

    /// Pairs of every head before its own: the first tokens, where the layer's form holds them apart.
    pub(crate) fn apart(&self) -> usize {
        self.apart
    }

    pub(crate) fn set_apart(&mut self, pairs: usize) {
        self.apart = pairs;
    }

    /// Pairs of all heads, those of the first tokens included.
    pub(crate) fn held(&self) -> usize {
        self.pairs() + self.apart * self.heads()
    }

    /// Calls `write(head, its pairs, page, slot)` for the pairs of every head that go to each page, from that
    /// slot on; pages are shared among threads.
    pub(crate) fn each_page_mut(
        &mut self,
        exec: &Exec,
        group: &Group,
        write: impl Fn(usize, Range<usize>, &mut [u8], usize) + Sync,
    ) {
        let (heads, pages) = (&self.heads, self.pages.bytes_mut());
        let bytes = group.page_bytes();
        exec.pool.for_each_chunk(pages, bytes, |index, page, _| {
            for (at, head) in heads.iter().enumerate() {
                if let Some((pairs, slot)) = head.in_page(index) {
                    write(at, pairs, page, slot);
                }
            }
        });
    }

    /// Leaves every head the pairs with the numbers `chosen`, ascending and as many as it has, where they lie: its
    /// own move up, and `append(head, numbers, keys and values of a page, slot)` puts what comes from elsewhere
    /// behind them. There numbers count from 0, while in `chosen` they follow those of the head's own pairs.
    /// `positions` are the tokens that all are of.
    ///
    /// # Panics
    /// When they are not as many, and in forms that are made of whole pages.
    pub(crate) fn close_gaps(
        &mut self,
        group: &Group,
        chosen: &[&[u32]],
        positions: Vec<Vec<u32>>,
        append: impl Fn(usize, &[u32], (&mut [u8], &mut [u8]), usize),
    ) {
        let counts = chosen.iter().map(|chosen| chosen.len());
        assert!(
            counts.eq(self.heads.iter().map(|head| head.positions.len())),
            "as many pairs as before"
        );
        let (bytes, k_bytes) = (group.page_bytes(), group.geometry.k_bytes());
        let pages = self.pages.bytes_mut();
        // A page is made beside them and then put over the old one, of which no later page takes anything.
        let mut made = vec![0; bytes];
        for index in 0..pages.len() / bytes {
            let stays = |(head, chosen): (&Head, &&[u32])| {
                let last = head.in_page(index).map(|(pairs, _)| pairs.end - 1);
                last.is_none_or(|last| chosen[last] as usize == last)
            };
            // Nothing has left before the last of them.
            if self.heads.iter().zip(chosen).all(stays) {
                continue;
            }
            made.fill(0);
            let (made_k, made_v) = made.split_at_mut(k_bytes);
            for (number, head) in self.heads.iter().enumerate() {
                let Some((pairs, mut slot)) = head.in_page(index) else {
                    continue;
                };
                let moving = &chosen[number][pairs];
                let count = chosen[number].len();
                let (mut own, rest) =
                    moving.split_at(moving.partition_point(|&pair| (pair as usize) < count));
                while let Some(&pair) = own.first() {
                    let from = (head.first + pair as usize) / PAGE_TOKENS;
                    let slot_of = |pair: u32| head.first + pair as usize - from * PAGE_TOKENS;
                    let there = own.partition_point(|&pair| slot_of(pair) < PAGE_TOKENS);
                    let picked = picked(&own[..there], slot_of);
                    let from = pages[from * bytes..][..bytes].split_at(k_bytes);
                    let to = (&mut *made_k, &mut *made_v);
                    page::copy_slots(&group.geometry, from, &picked[..there], to, slot);
                    slot += there;
                    own = &own[there..];
                }
                let rest: Vec<u32> = rest.iter().map(|pair| pair - count as u32).collect();
                append(number, &rest, (&mut *made_k, &mut *made_v), slot);
            }
            pages[index * bytes..][..bytes].copy_from_slice(&made);
        }
        for (head, positions) in self.heads.iter_mut().zip(positions) {
            head.positions = positions;
        }
    }

    /// Makes the pages of head `head` of its pairs, in a form that is made of whole pages. Slots behind the
    /// last pair repeat it, so that they change no scale.
    pub(crate) fn pack(&mut self, group: &Group, head: usize, pairs: &Pairs) {
        let floats = PageGeometry {
            k_type: KvType::F32,
            v_type: KvType::F32,
            ..group.geometry
        };
        let (mut k, mut v) = (vec![0; floats.k_bytes()], vec![0; floats.v_bytes()]);
        let pages = self.slots(head).pages;
        for (at, index) in pages.enumerate() {
            for slot in 0..PAGE_TOKENS {
                let pair = (at * PAGE_TOKENS + slot).min(pairs.len() - 1);
                page::write_key(&floats, &mut k, slot, pairs.key(pair));
                page::write_value(&floats, &mut v, slot, pairs.value(pair));
            }
            let from = index * group.page_bytes();
            let to = &mut self.pages.bytes_mut()[from..from + group.page_bytes()];
            let to = to.split_at_mut(group.geometry.k_bytes());
            page::pack_page(&floats, (&k, &v), &group.geometry, to);
        }
    }

    /// Writes the key and the value of pair `pair` of head `head` anew.
    pub(crate) fn write(&mut self, group: &Group, head: usize, pair: usize, k: &[f32], v: &[f32]) {
        let slot = self.heads[head].first + pair;
        let at = slot / PAGE_TOKENS * group.page_bytes();
        let page = &mut self.pages.bytes_mut()[at..at + group.page_bytes()];
        let (page_k, page_v) = page.split_at_mut(group.geometry.k_bytes());
        page::write_key(&group.geometry, page_k, slot % PAGE_TOKENS, k);
        page::write_value(&group.geometry, page_v, slot % PAGE_TOKENS, v);
    }

    /// Changes the key of pair `pair` of head `head` as `turn` says.
    pub(crate) fn turn(
        &mut self,
        group: &Group,
        head: usize,
        pair: usize,
        turn: impl FnOnce(&mut [f32]),
    ) {
        let slot = self.heads[head].first + pair;
        let at = slot / PAGE_TOKENS * group.page_bytes();
        let keys = &mut self.pages.bytes_mut()[at..at + group.geometry.k_bytes()];
        let mut key = vec![0.0; group.kind.head_dim];
        page::read_key(&group.geometry, keys, slot % PAGE_TOKENS, &mut key);
        turn(&mut key);
        page::write_key(&group.geometry, keys, slot % PAGE_TOKENS, &key);
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        self.pages.bytes().len() as u64 + self.places.bytes()
    }

    /// Its room, and the memory that its pages were in.
    pub(crate) fn into_room(self) -> (Reservation, AlignedBytes) {
        let (mut room, pages) = self.pages.into_room();
        room.join(self.places);
        (room, pages)
    }

    /// Pairs of all heads.
    pub(crate) fn pairs(&self) -> usize {
        self.heads.iter().map(|head| head.positions.len()).sum()
    }

    /// KV heads.
    pub(crate) fn heads(&self) -> usize {
        self.heads.len()
    }

    /// The tokens that the pairs of a head are of, ascending.
    pub(crate) fn positions(&self, head: usize) -> &[u32] {
        &self.heads[head].positions
    }

    /// Of how many tokens pair `pair` of a head is.
    pub(crate) fn tokens(&self, head: usize, pair: usize) -> u32 {
        self.heads[head].tokens.get(pair).copied().unwrap_or(1)
    }

    /// Notes of how many tokens each pair of a head is.
    pub(crate) fn set_tokens(&mut self, head: usize, tokens: Vec<u32>, counting: Counting) {
        let head = &mut self.heads[head];
        if counting == Counting::Attention {
            let log = |&tokens: &u32| (f64::from(tokens).ln()) as f32;
            head.log_weights = tokens.iter().map(log).collect();
        }
        head.tokens = tokens;
    }

    /// What attention adds to the scores of a head's pairs; nothing where each counts as one.
    pub(crate) fn log_weights(&self, head: usize) -> &[f32] {
        &self.heads[head].log_weights
    }

    /// Of how many tokens each pair of a head is; nothing where that is not counted.
    pub(crate) fn counts(&self, head: usize) -> &[u32] {
        &self.heads[head].tokens
    }

    /// All pages.
    pub(crate) fn page_bytes(&self) -> &[u8] {
        self.pages.bytes()
    }

    /// Fills all pages with `bytes`, which are as many.
    pub(crate) fn fill_pages(&mut self, bytes: &[u8]) {
        self.pages.bytes_mut().copy_from_slice(bytes);
    }

    /// Where the pairs of a head lie.
    pub(crate) fn slots(&self, head: usize) -> Slots {
        let Head {
            first, positions, ..
        } = &self.heads[head];
        let from = first / PAGE_TOKENS;
        let lead = first % PAGE_TOKENS;
        let slots = lead..lead + positions.len();
        // A head without pairs may begin inside a page that is another's.
        let pages = match slots.is_empty() {
            true => 0,
            false => slots.end.div_ceil(PAGE_TOKENS),
        };
        Slots {
            pages: from..from + pages,
            slots,
        }
    }

    /// The most pages that any head reaches into.
    pub(crate) fn deepest(&self) -> usize {
        let pages = (0..self.heads.len()).map(|head| self.slots(head).pages.len());
        pages.max().unwrap_or(0)
    }

    /// Page `index` of the stream.
    pub(crate) fn page(&self, group: &Group, index: usize) -> PageRef<'_> {
        let at = index * group.page_bytes();
        let page = &self.pages.bytes()[at..at + group.page_bytes()];
        let (k, v) = page.split_at(group.geometry.k_bytes());
        PageRef::new(k, v)
    }
}
