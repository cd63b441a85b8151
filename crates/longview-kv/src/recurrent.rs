//! The state of recurrent layers: one block a group, which every token changes.
//!
//! A pass reads the state that holds and writes another, which takes its place when the pass is
//! committed; so a pass that fails or is given up changes nothing, and forks share what they have in
//! common. A state cannot be taken back by tokens, so copies are kept at some block edges,
//! *checkpoints*: they are where a context can be cut back to, and where it is found by content.

use std::sync::Arc;

use longview_kernels::Exec;
use longview_kernels::recurrent::{DeltaRows, DeltaScratch, GatedDelta, numbers, numbers_mut};

use crate::BLOCK_TOKENS;
use crate::batch::Batch;
use crate::block::Block;
use crate::error::KvError;
use crate::layout::Group;
use crate::ledger::Ledger;
use crate::sealed::{Handle, Name};
use crate::shared::SharedList;
use crate::store::Store;
use crate::tier::BlockKey;

/// Tokens between the checkpoints that every context keeps, beside those at the ends of messages.
/// Each costs the state of all recurrent layers: 75 MiB for Qwen3-Next 80B, whose keys and values
/// take 96 MiB for as many tokens in f16.
pub const CHECKPOINT_TOKENS: usize = 4096;

/// Regular checkpoints that forks share at once.
const REGULAR: usize = 16;

/// Checkpoints at the ends of messages that a context keeps; older ones give way.
const MESSAGES: usize = 4;

/// The most checkpoints that a context of `tokens` tokens keeps.
pub(crate) fn most_checkpoints(tokens: usize) -> usize {
    (tokens / CHECKPOINT_TOKENS + MESSAGES).min(tokens / BLOCK_TOKENS)
}

/// What a context has of one group of recurrent layers.
#[derive(Default)]
pub(crate) struct RecurrentState {
    /// The state after all tokens; `None` before the first, when it is zero.
    held: Option<Held>,
    /// What a pass reads of a state that is elsewhere, layer by layer.
    arriving: Option<Block>,
    /// What the pass that runs writes; a spare one between passes.
    next: Option<Block>,
    /// Checkpoints at multiples of [`CHECKPOINT_TOKENS`], ascending.
    regular: SharedList<Checkpoint, REGULAR>,
    /// Those at the ends of messages, ascending.
    messages: Vec<Checkpoint>,
    /// What computing took since the last checkpoint.
    seconds: f32,
}

#[derive(Clone)]
enum Held {
    Here(Arc<Block>),
    /// Taken over from a store, to be read by the next pass.
    There(Arc<Handle>),
}

#[derive(Clone)]
struct Checkpoint {
    tokens: usize,
    place: Place,
}

#[derive(Clone)]
enum Place {
    Here(Arc<Block>),
    /// Under this name in the context's store, which may let it go.
    Store(Name),
}

impl RecurrentState {
    /// A second state with the same content.
    pub(crate) fn fork(&self) -> RecurrentState {
        RecurrentState {
            held: self.held.clone(),
            arriving: None,
            next: None,
            regular: self.regular.clone(),
            messages: self.messages.clone(),
            seconds: self.seconds,
        }
    }

    /// Makes room for a pass: for the state where it is to be read back, and for another to write.
    pub(crate) fn begin(
        &mut self,
        bytes: usize,
        ledger: &Ledger,
        store: Option<&Store>,
    ) -> Result<(), KvError> {
        if let (Some(Held::There(handle)), Some(store)) = (&self.held, store) {
            match handle.pin(store.now()) {
                Some(block) => self.held = Some(Held::Here(block)),
                None if self.arriving.is_none() => {
                    self.arriving = Some(Block::with_space(bytes, ledger, Some(store))?);
                }
                None => {}
            }
        }
        if self.next.is_none() {
            self.next = Some(Block::with_space(bytes, ledger, store)?);
        }
        Ok(())
    }

    /// One layer's slice of the state that holds, `None` when that is zero, and of the one to be
    /// written.
    fn layer(&mut self, group: &Group, place: usize) -> (Option<&[f32]>, &mut [f32]) {
        let start = group.layer_offset(place);
        let slice = start..start + group.layer_bytes();
        let held = match &self.held {
            Some(Held::Here(block)) => Some(numbers(&block.bytes()[slice.clone()])),
            Some(Held::There(_)) => {
                let block = self.arriving.as_ref().expect("begin has made room");
                Some(numbers(&block.bytes()[slice.clone()]))
            }
            None => None,
        };
        let next = self.next.as_mut().expect("begin has made room");
        (held, numbers_mut(&mut next.bytes_mut()[slice]))
    }

    /// The state that the pass is to read, where it is not in memory.
    pub(crate) fn awaited(&self) -> Option<BlockKey> {
        match &self.held {
            Some(Held::There(handle)) if self.arriving.is_some() => Some(handle.key()),
            _ => None,
        }
    }

    /// One layer's slice of that state.
    fn arrive(&mut self, group: &Group, place: usize, bytes: &[u8]) {
        let block = self.arriving.as_mut().expect("begin has made room");
        block.bytes_mut()[group.layer_offset(place)..][..bytes.len()].copy_from_slice(bytes);
    }

    /// What the pass wrote holds from now on; `seconds` is what it took.
    pub(crate) fn commit(&mut self, seconds: f32) {
        let next = self.next.take().expect("begin has made room");
        let before = self.held.replace(Held::Here(Arc::new(next)));
        self.next = match before {
            // No checkpoint and no fork refers to it: the next pass writes it.
            Some(Held::Here(before)) => Arc::into_inner(before),
            _ => self.arriving.take(),
        };
        self.arriving = None;
        self.seconds += seconds;
    }

    /// The state that holds and what computing it took since the last checkpoint; `None` where one
    /// is kept already.
    pub(crate) fn to_checkpoint(&self, tokens: usize) -> Option<(Arc<Block>, f32)> {
        let known = self.checkpoints().any(|known| known.tokens == tokens);
        match &self.held {
            Some(Held::Here(block)) if !known => Some((Arc::clone(block), self.seconds)),
            _ => None,
        }
    }

    /// Notes that `block`, the state after `tokens` tokens, is kept: under `name` in a store, or
    /// here. Returns the key of one that gives way.
    pub(crate) fn keep(
        &mut self,
        tokens: usize,
        block: Arc<Block>,
        name: Option<Name>,
    ) -> Option<BlockKey> {
        self.held = Some(Held::Here(Arc::clone(&block)));
        let place = name.map_or(Place::Here(block), Place::Store);
        self.add(Checkpoint { tokens, place });
        self.seconds = 0.0;
        if self.messages.len() <= MESSAGES {
            return None;
        }
        match self.messages.remove(0).place {
            Place::Store(name) => Some(name.key),
            Place::Here(_) => None,
        }
    }

    /// Takes over a state from a store: that after `tokens` tokens.
    pub(crate) fn take_over(&mut self, tokens: usize, handle: Arc<Handle>) {
        let place = Place::Store(handle.name());
        self.held = Some(Held::There(handle));
        self.add(Checkpoint { tokens, place });
        self.seconds = 0.0;
    }

    /// The longest prefix of at most `most` tokens whose state is kept, of a context of `len`.
    pub(crate) fn nearest(&self, most: usize, len: usize, store: Option<&Store>) -> usize {
        if most >= len {
            return len;
        }
        let mut kept: Vec<&Checkpoint> = self.checkpoints().collect();
        kept.retain(|known| known.tokens <= most);
        kept.sort_by_key(|known| std::cmp::Reverse(known.tokens));
        let found = kept.into_iter().find(|known| known.find(store).is_some());
        found.map_or(0, |known| known.tokens)
    }

    /// Goes back to the state after `tokens` tokens, which [`RecurrentState::nearest`] has found.
    pub(crate) fn go_back(&mut self, tokens: usize, store: Option<&Store>) {
        let until = self
            .regular
            .iter_from(0)
            .take_while(|known| known.tokens <= tokens);
        let kept = until.count();
        self.regular.truncate(kept);
        self.messages.retain(|known| known.tokens <= tokens);
        let known = self.checkpoints().find(|known| known.tokens == tokens);
        self.held = known.and_then(|known| known.find(store));
        self.arriving = None;
        self.seconds = 0.0;
    }

    /// What the checkpoints that a store has are called there.
    pub(crate) fn stored(&self) -> impl Iterator<Item = BlockKey> {
        self.checkpoints().filter_map(|known| match &known.place {
            Place::Store(name) => Some(name.key),
            Place::Here(_) => None,
        })
    }

    fn checkpoints(&self) -> impl Iterator<Item = &Checkpoint> {
        self.regular.iter_from(0).chain(&self.messages)
    }

    /// Adds a checkpoint after all there are.
    fn add(&mut self, checkpoint: Checkpoint) {
        if checkpoint.tokens.is_multiple_of(CHECKPOINT_TOKENS) {
            self.regular.push(checkpoint);
            self.regular.settle(self.regular.len());
        } else {
            self.messages.push(checkpoint);
        }
    }

    /// Whether the state is the block called `key`, still to be read.
    pub(crate) fn awaits(&self, key: &BlockKey) -> bool {
        matches!(&self.held, Some(Held::There(handle)) if handle.key() == *key)
    }

    /// Blocks this context refers to: its state, and checkpoints that no store has.
    pub(crate) fn blocks(&self) -> usize {
        let here = |known: &&Checkpoint| matches!(known.place, Place::Here(_));
        usize::from(self.held.is_some()) + self.checkpoints().filter(here).count()
    }
}

impl Checkpoint {
    fn find(&self, store: Option<&Store>) -> Option<Held> {
        match &self.place {
            Place::Here(block) => Some(Held::Here(Arc::clone(block))),
            Place::Store(name) => store?.find(&name.key).map(Held::There),
        }
    }
}

/// Buffers of [`Batch::read_recurrent`], kept between calls.
#[derive(Default)]
pub struct RecurrentWorkspace {
    scratch: Vec<DeltaScratch>,
    /// What each task gives, `[rows][group · value_dim]`.
    outs: Vec<Vec<f32>>,
}

/// The rows of one segment, read with one key head.
struct Task<'a> {
    head: usize,
    rows: std::ops::Range<usize>,
    held: Option<&'a [f32]>,
    next: &'a mut [f32],
    out: &'a mut Vec<f32>,
}

impl Batch<'_> {
    /// Reads every row into the state of layer `layer`, and writes what the states give to `out`,
    /// `[rows][value_heads][value_dim]`.
    ///
    /// # Errors
    /// [`KvError::Lost`] when a state cannot be read back; the pass has to be given up.
    ///
    /// # Panics
    /// When the layer's state does not have the size that `delta` asks for, or lengths disagree.
    pub fn read_recurrent(
        &mut self,
        exec: &Exec,
        layer: usize,
        delta: &GatedDelta<'_>,
        rows: &DeltaRows<'_>,
        out: &mut [f32],
        workspace: &mut RecurrentWorkspace,
    ) -> Result<(), KvError> {
        self.receive_states(layer)?;
        let shape = delta.shape;
        let ranges: Vec<_> = (0..self.segments().len())
            .map(|at| self.rows_of(at))
            .collect();
        let tasks = ranges.len() * shape.key_heads;
        workspace
            .outs
            .resize_with(workspace.outs.len().max(tasks), Vec::new);
        workspace
            .scratch
            .resize_with(exec.pool.threads(), DeltaScratch::default);
        let mut outs = workspace.outs.iter_mut();
        let mut tasks: Vec<Task<'_>> = Vec::with_capacity(tasks);
        for (segment, rows) in self.segments_mut().iter_mut().zip(&ranges) {
            let context = &mut *segment.context;
            let (group, place) = context.layout.layers[layer];
            let state = context.states[group]
                .as_mut()
                .expect("a recurrent layer has a state");
            let (held, next) = state.layer(&context.layout.groups[group], place);
            assert_eq!(next.len(), shape.state(), "the state of layer {layer}");
            let mut held = held.map(|held| held.chunks_exact(shape.head_state()));
            let next = next.chunks_exact_mut(shape.head_state());
            tasks.extend(
                next.zip(&mut outs)
                    .enumerate()
                    .map(|(head, (next, out))| Task {
                        head,
                        rows: rows.clone(),
                        held: held.as_mut().and_then(Iterator::next),
                        next,
                        out,
                    }),
            );
        }
        let scratch: Vec<_> = workspace
            .scratch
            .iter_mut()
            .map(std::sync::Mutex::new)
            .collect();
        exec.pool.for_each(&mut tasks, |_, task, worker| {
            // Each worker number is held by one running task at a time, so this never waits.
            let mut scratch = scratch[worker]
                .lock()
                .unwrap_or_else(|error| error.into_inner());
            task.run(exec, delta, rows, &mut scratch);
        });

        let row_len = shape.value_heads * shape.value_dim;
        let from_group = shape.group() * shape.value_dim;
        exec.pool.for_each_chunk(out, row_len, |row, out, _| {
            for task in tasks.iter().filter(|task| task.rows.contains(&row)) {
                let values = &task.out[(row - task.rows.start) * from_group..][..from_group];
                for (member, values) in values.chunks_exact(shape.value_dim).enumerate() {
                    let at = delta.order.value_head(&shape, task.head, member) * shape.value_dim;
                    out[at..at + shape.value_dim].copy_from_slice(values);
                }
            }
        });
        Ok(())
    }

    /// Takes in layer `layer` of the states that are read back.
    fn receive_states(&mut self, layer: usize) -> Result<(), KvError> {
        let (feed, segments) = self.feed_and_segments();
        let Some(feed) = feed else {
            return Ok(());
        };
        for (index, segment) in segments.iter_mut().enumerate() {
            let context = &mut *segment.context;
            let (place, at) = context.layout.layers[layer];
            let (group, state) = (&context.layout.groups[place], &mut context.states[place]);
            if let ([missing], Some(state)) = (feed.missing(index, place), state) {
                let slices = feed.receive(missing)?;
                state.arrive(group, at, &slices.bytes);
                feed.give_back(slices);
            }
        }
        Ok(())
    }
}

impl Task<'_> {
    fn run(
        &mut self,
        exec: &Exec,
        delta: &GatedDelta<'_>,
        rows: &DeltaRows<'_>,
        scratch: &mut DeltaScratch,
    ) {
        match self.held {
            Some(held) => self.next.copy_from_slice(held),
            None => self.next.fill(0.0),
        }
        let shape = delta.shape;
        self.out
            .resize(self.rows.len() * shape.group() * shape.value_dim, 0.0);
        let of = |width: usize| self.rows.start * width..self.rows.end * width;
        let (wide, narrow) = (of(shape.channels()), of(shape.value_heads));
        let rows = DeltaRows {
            mixed: &rows.mixed[wide],
            decay: &rows.decay[narrow.clone()],
            beta: &rows.beta[narrow],
        };
        delta.read(exec.isa, self.head, &rows, self.next, self.out, scratch);
    }
}
