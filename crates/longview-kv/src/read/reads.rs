//! A context's read method: whose rows it plans, what is kept for it, and what was read.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use longview_kernels::{Exec, Isa, Pool};

use super::left::StreamBounds;
use super::{Bounds, HeadBounds, Read, chosen_from};
use crate::BLOCK_TOKENS;
use crate::context::Context;
use crate::error::KvError;
use crate::layout::{Group, KvLayout};
use crate::run::Slot;

/// A read method in charge of a context.
pub(crate) struct Reads {
    pub(crate) read: Arc<Read>,
    /// The first token of the answer that is being written.
    pub(crate) from: usize,
    /// Of each layer group with full attention, where the method goes by bounds: those of the blocks from `first`
    /// on.
    bounds: Vec<Option<Bounds>>,
    /// The first block that is chosen from, and its first slot: what is before them a keep method has moved elsewhere.
    first: usize,
    first_slot: usize,
    /// Of each layer what is left of it, as far as a row has wanted to choose from that.
    left: Vec<Option<Arc<StreamBounds>>>,
    /// Since the answer began.
    counts: Counts,
    /// In the pass that runs.
    pass: PassCounts,
    /// The first token whose keys and values are not what the model defines, because it read less.
    approximate: Option<usize>,
}

/// What a read method has read for an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadReport {
    /// The method's canonical text.
    pub method: String,
    /// Pages read by the answer's tokens, of all layers with full attention and all KV heads.
    pub pages_read: u64,
    /// Those that reading everything would have read.
    pub pages_present: u64,
    /// Bytes of what is kept for the method beside keys and values.
    pub index_bytes: u64,
}

impl ReadReport {
    /// Adds what another text of the same request has read.
    pub fn add(&mut self, other: &ReadReport) {
        self.pages_read += other.pages_read;
        self.pages_present += other.pages_present;
        self.index_bytes = self.index_bytes.max(other.index_bytes);
    }
}

#[derive(Clone, Copy, Default)]
struct Counts {
    read: u64,
    present: u64,
}

/// Counted by whichever thread plans a row.
#[derive(Default)]
struct PassCounts {
    read: AtomicU64,
    present: AtomicU64,
}

impl Context {
    /// Puts `read` in charge of what tokens of answers read ([`Context::answer_from`]); prompts go on
    /// reading everything. What it goes by is made of the blocks that are full with the next pass, and
    /// of later ones as they fill.
    ///
    /// Nothing that was read so far changes, and it is found by others as before. What an answer's
    /// tokens compute from less than everything is not, and no longer [exact](Context::is_exact).
    ///
    /// # Errors
    /// [`KvError::ReadRefused`] where it cannot be used: no layer with full attention, text that was moved,
    /// another read method whose answers are part of the context.
    pub fn read_by(&mut self, read: &Arc<Read>) -> Result<(), KvError> {
        let refused = |why: String| Err(read.refused(why));
        if self.layout.full_layers().next().is_none() {
            return refused(
                "every layer of the model has a sliding window or keeps a state, which bounds what it \
                 reads already"
                    .to_owned(),
            );
        }
        if !self.places.is_plain() {
            return refused(
                "text in the context was moved or removed; read it anew first".to_owned(),
            );
        }
        let known = self.reads.take();
        let approximate = known.as_ref().and_then(|known| known.approximate);
        if let Some(known) = known {
            let same = *known.read == **read;
            let other = known.read.text.clone();
            if same || approximate.is_some() {
                self.reads = Some(known);
            }
            match (same, approximate) {
                (true, _) => return Ok(()),
                (false, Some(_)) => {
                    return refused(format!(
                        "answers that --read {other} has written are part of the context; truncate it to \
                         before them"
                    ));
                }
                (false, None) => {}
            }
        }
        let edge = self.kept.as_ref().map_or(0, |kept| kept.edge());
        let slot = self.places.slot(edge);
        self.reads = Some(Box::new(Reads {
            bounds: bounds_of(read, &self.layout),
            first: slot / BLOCK_TOKENS,
            first_slot: slot % BLOCK_TOKENS,
            left: Vec::new(),
            read: Arc::clone(read),
            from: usize::MAX,
            counts: Counts::default(),
            pass: PassCounts::default(),
            approximate: None,
        }));
        Ok(())
    }

    /// What is before token `edge` is what a keep method has left of it: what was known of keys is of others.
    pub(crate) fn forget_bounds(&mut self, edge: usize) {
        let slot = self.places.slot(edge);
        if let Some(reads) = &mut self.reads {
            reads.bounds = bounds_of(&reads.read, &self.layout);
            (reads.first, reads.first_slot) = (slot / BLOCK_TOKENS, slot % BLOCK_TOKENS);
            reads.left.clear();
        }
    }

    /// Says that the tokens from token `from` on are an answer: what they read is the read method's to
    /// plan, where there is one, and is counted from here on. Tokens before it are a prompt.
    pub fn answer_from(&mut self, from: usize) {
        self.watch_from(from);
        if let Some(reads) = &mut self.reads {
            reads.from = from;
            reads.counts = Counts::default();
        }
    }

    /// The read method in charge, if there is one.
    pub fn read_method(&self) -> Option<&Arc<Read>> {
        self.reads.as_ref().map(|reads| &reads.read)
    }

    /// What the answer that began last has read, where a read method is in charge.
    pub fn read_report(&self) -> Option<ReadReport> {
        let reads = self.reads.as_ref()?;
        Some(ReadReport {
            method: reads.read.text.clone(),
            pages_read: reads.counts.read,
            pages_present: reads.counts.present,
            index_bytes: self.index_bytes(),
        })
    }

    /// Bytes of what is kept for the read method.
    pub(crate) fn index_bytes(&self) -> u64 {
        let Some(reads) = &self.reads else {
            return 0;
        };
        let blocks = reads.bounds.iter().flatten().map(Bounds::bytes);
        let left = reads.left.iter().flatten().map(|left| left.bytes());
        blocks.sum::<u64>() + left.sum::<u64>()
    }

    /// The first token whose keys and values are not what the model defines, because the read method
    /// let it or one before it read less than everything.
    pub fn approximate_from(&self) -> Option<usize> {
        self.reads.as_ref()?.approximate
    }

    /// Makes room for what is kept of the blocks that `count` more tokens fill, and catches up with
    /// those that came from elsewhere.
    pub(crate) fn make_index_room(&mut self, count: usize) -> Result<(), KvError> {
        let Some(mut reads) = self.reads.take() else {
            return Ok(());
        };
        let made = self.index_room(&mut reads, count);
        self.reads = Some(reads);
        made
    }

    fn index_room(&self, reads: &mut Reads, count: usize) -> Result<(), KvError> {
        let store = self.home.as_ref().map(|home| &*home.store);
        let (first, first_slot) = (reads.first, reads.first_slot);
        let held = self.len() / BLOCK_TOKENS - first;
        let end = (self.len() + count) / BLOCK_TOKENS - first;
        for ((bounds, run), group) in reads
            .bounds
            .iter_mut()
            .zip(&self.groups)
            .zip(&self.layout.groups)
        {
            let Some(bounds) = bounds else { continue };
            bounds.make_writable(end, &self.ledger, store)?;
            for index in bounds.blocks()..held {
                let at = (index, if index == 0 { first_slot } else { 0 });
                let note = |bounds: &mut Bounds, block: &crate::Block| {
                    for place in 0..group.layers {
                        // Of the same numbers any instruction set makes the same bounds.
                        bounds.note(Isa::best(), group, place, at, block.layer(group, place));
                    }
                };
                match (run.slot(first + index), store) {
                    (Some(Slot::Open(block)), _) => note(bounds, block),
                    (Some(Slot::Sealed(handle)), Some(store)) => match handle.pin(store.now()) {
                        Some(block) => note(bounds, &block),
                        None => note(bounds, &store.private_copy(handle, group.block_bytes())?),
                    },
                    _ => unreachable!("layers with full attention hold every block"),
                }
            }
            bounds.complete(held);
        }
        if self.len() + count > reads.from {
            self.bound_left(reads, None)?;
        }
        Ok(())
    }

    /// Makes what a read method chooses by of what a keep method has left. Where memory has no room for it now, it
    /// is asked for again when a row wants it.
    pub(crate) fn index_left(&mut self, exec: &Exec) {
        if let Some(mut reads) = self.reads.take() {
            let _ = self.bound_left(&mut reads, Some(&exec.pool));
            self.reads = Some(reads);
        }
    }

    /// Makes the bounds of what a keep method has left, where they are not made yet.
    fn bound_left(&self, reads: &mut Reads, pool: Option<&Pool>) -> Result<(), KvError> {
        let store = self.home.as_ref().map(|home| &*home.store);
        let Some(part) = reads.read.select.bounds() else {
            return Ok(());
        };
        reads.left.resize_with(self.layout.layers.len(), || None);
        for (layer, left) in reads.left.iter_mut().enumerate() {
            let Some(stream) = self.stream(layer).filter(|_| left.is_none()) else {
                continue;
            };
            let group = &self.layout.groups[self.layout.layers[layer].0];
            let bounds = StreamBounds::new(pool, group, part, stream, &self.ledger, store)?;
            *left = Some(Arc::new(bounds));
        }
        Ok(())
    }

    /// Notes what is kept of the blocks `filled` of layer `layer`, whose keys are there.
    pub(crate) fn index_blocks(&mut self, isa: Isa, layer: usize, filled: Range<usize>) {
        let (place, at) = self.layout.layers[layer];
        let Some(reads) = self.reads.as_mut().filter(|_| !filled.is_empty()) else {
            return;
        };
        let Some(bounds) = &mut reads.bounds[place] else {
            return;
        };
        let group = &self.layout.groups[place];
        let (first, first_slot) = (reads.first, reads.first_slot);
        for index in filled {
            let block = self.groups[place]
                .block(index)
                .expect("a block that a pass fills is in memory");
            let from = if index == first { first_slot } else { 0 };
            bounds.note(
                isa,
                group,
                at,
                (index - first, from),
                block.layer(group, at),
            );
        }
    }

    /// What the pass noted and counted holds from now on; the context has `before` tokens less without it.
    pub(crate) fn commit_reads(&mut self, before: usize) {
        let held = self.len() / BLOCK_TOKENS;
        let Some(reads) = &mut self.reads else {
            return;
        };
        for bounds in reads.bounds.iter_mut().flatten() {
            bounds.complete(held - reads.first);
        }
        let Counts { read, present } = reads.pass.take();
        reads.counts.read += read;
        reads.counts.present += present;
        if read < present {
            let first = before.max(reads.from);
            reads.approximate.get_or_insert(first);
        }
    }

    /// Forgets what a pass noted that was given up, and what is kept of tokens from `len` on.
    pub(crate) fn trim_reads(&mut self, len: usize) {
        if let Some(reads) = &mut self.reads {
            reads.pass = PassCounts::default();
            if len == 0 {
                // Nothing that was left of it is any more.
                (reads.first, reads.first_slot) = (0, 0);
                reads.left.clear();
            }
            for bounds in reads.bounds.iter_mut().flatten() {
                bounds.truncate(len / BLOCK_TOKENS - reads.first);
            }
            reads.approximate = reads.approximate.filter(|&first| first < len);
        }
    }

    /// Refuses to move text while a read method is in charge: blocks are found by position.
    pub(crate) fn check_unread(&self) -> Result<(), KvError> {
        match &self.reads {
            None => Ok(()),
            Some(reads) => Err(reads
                .read
                .refused("text cannot be moved or removed while it plans what is read".to_owned())),
        }
    }
}

impl Reads {
    /// The first block that is chosen from.
    pub(crate) fn first(&self) -> usize {
        self.first
    }

    /// What is known of the keys of one KV head: of layer `layer`, at place `place` of group `group`.
    pub(crate) fn bounds(
        &self,
        layer: usize,
        (group, place): (usize, usize),
        head: usize,
    ) -> Option<HeadBounds<'_>> {
        let left = self.left.get(layer).and_then(Option::as_ref);
        Some(HeadBounds {
            stream: left.map(|left| left.head(head)),
            blocks: self.bounds[group].as_ref()?.head(place, head),
        })
    }

    /// Counts pages that a row of the pass reads, of those that are there.
    pub(crate) fn count(&self, read: usize, present: usize) {
        self.pass.read.fetch_add(read as u64, Ordering::Relaxed);
        self.pass
            .present
            .fetch_add(present as u64, Ordering::Relaxed);
    }
}

/// None yet, of the layer groups that `read` chooses from by bounds.
fn bounds_of(read: &Read, layout: &KvLayout) -> Vec<Option<Bounds>> {
    let of_group = |group: &Group| {
        let part = read.select.bounds()?;
        chosen_from(group).then(|| Bounds::new(group, part))
    };
    layout.groups.iter().map(of_group).collect()
}

impl Read {
    pub(crate) fn refused(&self, why: String) -> KvError {
        KvError::ReadRefused {
            method: self.text.clone(),
            why,
        }
    }
}

impl PassCounts {
    fn take(&mut self) -> Counts {
        Counts {
            read: std::mem::take(self.read.get_mut()),
            present: std::mem::take(self.present.get_mut()),
        }
    }
}

/// What a pass has counted is its own context's.
impl Clone for Reads {
    fn clone(&self) -> Reads {
        Reads {
            read: Arc::clone(&self.read),
            from: self.from,
            bounds: self.bounds.clone(),
            first: self.first,
            first_slot: self.first_slot,
            left: self.left.clone(),
            counts: self.counts,
            pass: PassCounts::default(),
            approximate: self.approximate,
        }
    }
}
