//! Making room: what is cheapest to compute again goes first, and nothing before what follows it. What
//! follows nothing that is there is worth nothing, and no other block goes for it.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::time::SystemTime;

use super::index::Index;
use super::put::Writing;
use super::{Disk, age, io_error};
use crate::hash::BlockHash;
use crate::tier::{BlockKey, TierError};

/// Extents that are of use only together: those that hold blocks, of whatever groups, that end at
/// the same tokens.
#[derive(Default)]
struct Unit {
    extents: Vec<BlockKey>,
    bytes: u64,
    /// Seconds that computing it took.
    seconds: f64,
    used: Option<SystemTime>,
    /// Units that what is in this one follows.
    before: HashSet<usize>,
    /// Units that follow this one.
    followers: usize,
    /// The index of its first block.
    first: u32,
    /// Whether all that it follows is there: nobody finds it otherwise.
    is_found: bool,
    pinned: bool,
}

/// A unit that may go, the least valuable the greatest.
struct Candidate {
    value: f64,
    unit: usize,
}

impl Disk {
    pub(super) fn gc(&self, max_bytes: u64) -> Result<u64, TierError> {
        if self.read_only {
            return Err(TierError::ReadOnly {
                place: self.root.display().to_string(),
            });
        }
        let mut writing = self.writing();
        self.scan()?;
        self.evict(&mut writing, max_bytes, &[])
    }

    /// Evicts until at most `target` bytes are held, or all that is left is pinned, held, written
    /// by others, or leads to one of `keep`. Returns the bytes freed.
    pub(super) fn evict(
        &self,
        writing: &mut Writing,
        target: u64,
        keep: &[BlockHash],
    ) -> Result<u64, TierError> {
        let _alone = self.alone().map_err(io_error(&self.root, "lock"))?;
        let pinned = self.options.pinned.as_ref().map(|pinned| pinned());
        let held = self.held_extents();
        let (mut units, before) = {
            let state = self.state();
            let heads = keep.iter().copied().chain(pinned.into_iter().flatten());
            let before = state.index.usage().bytes;
            (units(&state.index, heads, &held), before)
        };
        let now = SystemTime::now();
        let mut candidates: BinaryHeap<_> = (0..units.len())
            .filter(|&unit| units[unit].followers == 0)
            .map(|unit| Candidate::new(&units, unit, now))
            .collect();
        while self.state().index.usage().bytes > target {
            let Some(Candidate { unit, .. }) = candidates.pop() else {
                break;
            };
            if units[unit].pinned {
                continue;
            }
            let mut whole = true;
            for extent in std::mem::take(&mut units[unit].extents) {
                // What another process writes to stays, and so does all it follows.
                match self.writer(writing, &extent)? {
                    Some(_) => self.unlink(writing, &extent)?,
                    None => whole &= self.header(&extent).is_none(),
                }
            }
            if !whole {
                continue;
            }
            for before in std::mem::take(&mut units[unit].before) {
                units[before].followers -= 1;
                if units[before].followers == 0 {
                    candidates.push(Candidate::new(&units, before, now));
                }
            }
        }
        Ok(before.saturating_sub(self.state().index.usage().bytes))
    }
}

/// Sorts extents into units. What leads to one of `heads`, and what is held, is pinned.
fn units(
    index: &Index,
    heads: impl Iterator<Item = BlockHash>,
    held: &HashSet<BlockKey>,
) -> Vec<Unit> {
    // Union of extents by the hashes in them.
    let extents: Vec<_> = index.extents().collect();
    let mut leader: Vec<usize> = (0..extents.len()).collect();
    let mut first_with = HashMap::new();
    for (at, (_, extent)) in extents.iter().enumerate() {
        for slot in extent.slots.iter().flatten() {
            let other = *first_with.entry(slot.hash).or_insert(at);
            let (a, b) = (root(&mut leader, at), root(&mut leader, other));
            leader[a.max(b)] = a.min(b);
        }
    }
    let mut number = HashMap::new();
    let mut units: Vec<Unit> = Vec::new();
    let mut unit_of = Vec::new();
    for (at, (key, extent)) in extents.iter().enumerate() {
        let root = root(&mut leader, at);
        let unit = *number.entry(root).or_insert_with(|| {
            units.push(Unit {
                first: u32::MAX,
                ..Unit::default()
            });
            units.len() - 1
        });
        unit_of.push(unit);
        let blocks = extent.slots.iter().flatten();
        let into = &mut units[unit];
        into.extents.push(**key);
        into.first = into.first.min(extent.header.first);
        into.bytes += extent.header.payload_offset();
        into.bytes += blocks.clone().count() as u64 * extent.header.block_bytes();
        into.seconds += blocks
            .map(|slot| f64::from(slot.seconds.max(0.0)))
            .sum::<f64>();
        let used = extent.used.max(extent.modified);
        into.used = Some(into.used.map_or(used, |before| before.max(used)));
        into.pinned |= held.contains(key);
    }
    for (at, (_, extent)) in extents.iter().enumerate() {
        for slot in extent.slots.iter().flatten() {
            if let Some(&before) = first_with.get(&slot.parent) {
                let (unit, before) = (unit_of[at], unit_of[before]);
                if unit != before && units[unit].before.insert(before) {
                    units[before].followers += 1;
                }
            }
        }
    }
    // What a unit follows begins before it does.
    let mut order: Vec<usize> = (0..units.len()).collect();
    order.sort_unstable_by_key(|&unit| units[unit].first);
    for unit in order {
        let mut before = units[unit].before.iter();
        units[unit].is_found = units[unit].first == 0 || before.any(|&unit| units[unit].is_found);
    }
    let heads = heads.filter_map(|head| first_with.get(&head).map(|&at| unit_of[at]));
    let mut waiting: Vec<usize> = heads.collect();
    waiting.extend((0..units.len()).filter(|&unit| units[unit].pinned));
    let mut seen = HashSet::new();
    while let Some(unit) = waiting.pop() {
        if seen.insert(unit) {
            units[unit].pinned = true;
            waiting.extend(&units[unit].before);
        }
    }
    units
}

fn root(leader: &mut [usize], mut at: usize) -> usize {
    while leader[at] != at {
        leader[at] = leader[leader[at]];
        at = leader[at];
    }
    at
}

impl Candidate {
    fn new(units: &[Unit], unit: usize, now: SystemTime) -> Candidate {
        let Unit {
            bytes,
            seconds,
            used,
            is_found,
            ..
        } = units[unit];
        let seconds = if is_found { seconds } else { 0.0 };
        // A second at least: what was used just now is not infinitely valuable.
        let age = used.map_or(f64::MAX, |used| age(now, used)) + 1.0;
        Candidate {
            value: seconds / (bytes as f64 * age),
            unit,
        }
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Candidate) -> Ordering {
        let by_value = other.value.total_cmp(&self.value);
        by_value.then(other.unit.cmp(&self.unit))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Candidate) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Candidate) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Candidate {}
