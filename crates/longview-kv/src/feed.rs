//! Blocks that are away, read back layer by layer while a pass computes.
//!
//! A pass meets its layers in order, and attention meets the spans of a context in order, so the
//! order in which slices are needed is known when the pass begins. A thread reads ahead in that
//! order into a few buffers; attention takes each when its turn comes and gives the buffer back.
//! Blocks for which there is room in memory are kept, the others are read again by the next pass.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use crate::SPAN_BLOCKS;
use crate::batch::Segment;
use crate::block::Block;
use crate::error::KvError;
use crate::layout::{Group, KvLayout};
use crate::ledger::{Purpose, Reservation};
use crate::recurrent::RecurrentState;
use crate::sealed::Handle;
use crate::store::Store;
use crate::tier::{BlockKey, TierError};

/// Buffers of one span and layer each: one being attended to, one ready, one being read.
const BUFFERS: usize = 3;

/// Bytes that tiers are told of before they are read, so that a disk always has something to do.
const AHEAD: usize = 16 << 20;

/// The blocks of one span of one context that are away from memory.
pub(crate) struct Missing {
    /// The span.
    pub(crate) span: usize,
    /// Places of the blocks in the context, ascending.
    pub(crate) blocks: Vec<usize>,
    keys: Vec<BlockKey>,
}

/// One layer's slices of the blocks of a [`Missing`], one after another.
pub(crate) struct Slices {
    pub(crate) bytes: Vec<u8>,
    pub(crate) layer_bytes: usize,
}

/// What a pass reads back from tiers.
pub(crate) struct Feed {
    /// For every (segment, group): the spans with blocks that are away, ascending.
    missing: Arc<HashMap<(usize, usize), Vec<Missing>>>,
    reader: Mutex<Reader>,
    store: Arc<Store>,
    _buffers: Option<Reservation>,
}

struct Reader {
    ready: Option<Receiver<Result<Vec<u8>, TierError>>>,
    empty: Option<SyncSender<Vec<u8>>>,
    /// Returns what it has read to the end.
    thread: Option<JoinHandle<Incoming>>,
}

/// Blocks that stay in memory after the pass, by (segment, group, place).
type Incoming = HashMap<(usize, usize, usize), (Arc<Handle>, Block)>;

/// One read: a layer of a span.
struct Order {
    segment: usize,
    group: usize,
    /// Place of the layer in its group.
    layer: usize,
    missing: usize,
    bytes: usize,
}

impl Feed {
    /// Pins the contexts of `segments`, which have room, and begins to read what is not in memory;
    /// `None` when everything is. `keep_free` bytes of the ledger are left for others.
    ///
    /// # Errors
    /// [`KvError::OverLimit`] when there is no room for its buffers.
    pub(crate) fn begin(
        segments: &mut [Segment<'_>],
        keep_free: u64,
    ) -> Result<Option<Feed>, KvError> {
        let store = segments.iter().find_map(|segment| segment.context.store());
        let Some(store) = store.cloned() else {
            return Ok(None);
        };
        // Before blocks are pinned, for some may have to leave memory to make space.
        let away = segments.iter().any(|segment| segment.context.is_away());
        let mut buffers = match away {
            true => Some(reserve_buffers(segments, &store)?),
            false => None,
        };
        // First what must be in memory, while others may still leave it.
        for segment in segments.iter_mut() {
            segment.context.pin_beside(&store)?;
        }
        segments
            .iter_mut()
            .for_each(|segment| segment.context.pin());

        let mut missing = HashMap::new();
        let mut wanted = Vec::new();
        for (index, segment) in segments.iter().enumerate() {
            for (group, run) in segment.context.groups.iter().enumerate() {
                let mut spans: Vec<Missing> = Vec::new();
                for (place, handle) in run.away() {
                    wanted.push(((index, group, place), Arc::clone(handle)));
                    let span = place / SPAN_BLOCKS;
                    if spans.last().is_none_or(|last| last.span != span) {
                        spans.push(Missing {
                            span,
                            blocks: Vec::new(),
                            keys: Vec::new(),
                        });
                    }
                    let last = spans.len() - 1;
                    spans[last].blocks.push(place);
                    spans[last].keys.push(handle.key());
                }
                let state = segment.context.states[group].as_ref();
                if let Some(key) = state.and_then(RecurrentState::awaited) {
                    spans.push(Missing {
                        span: 0,
                        blocks: vec![0],
                        keys: vec![key],
                    });
                }
                if !spans.is_empty() {
                    missing.insert((index, group), spans);
                }
            }
        }
        if missing.is_empty() {
            return Ok(None);
        }
        if buffers.is_none() {
            // Another thread has made blocks leave since.
            buffers = Some(reserve_buffers(segments, &store)?);
        }
        let missing = Arc::new(missing);
        let orders = orders(segments, &missing);
        let buffer_bytes = orders.iter().map(|order| order.bytes).max().unwrap_or(0);
        let incoming = admit(wanted, &store, keep_free);

        let (ready_sender, ready) = sync_channel(BUFFERS);
        let (empty, empty_receiver) = sync_channel::<Vec<u8>>(BUFFERS);
        for _ in 0..BUFFERS {
            // The channel has room for all of them.
            let _ = empty.send(Vec::with_capacity(buffer_bytes));
        }
        let ahead = ReadAhead {
            orders,
            plan: Arc::clone(&missing),
            store: Arc::clone(&store),
            incoming,
        };
        let thread = std::thread::spawn(move || ahead.run(&empty_receiver, &ready_sender));
        Ok(Some(Feed {
            missing,
            reader: Mutex::new(Reader {
                ready: Some(ready),
                empty: Some(empty),
                thread: Some(thread),
            }),
            store,
            _buffers: buffers,
        }))
    }

    /// The spans of a context with blocks that are away, ascending.
    pub(crate) fn missing(&self, segment: usize, group: usize) -> &[Missing] {
        self.missing
            .get(&(segment, group))
            .map_or(&[], |spans| spans)
    }

    /// The next slices in order: those of span `missing` of the segment and layer whose turn it is.
    ///
    /// # Errors
    /// [`KvError::Lost`] when a block could not be read; the pass cannot go on then.
    pub(crate) fn receive(&self, missing: &Missing) -> Result<Slices, KvError> {
        let received = self
            .lock()
            .ready
            .as_ref()
            .and_then(|ready| ready.recv().ok());
        let bytes = received.ok_or(KvError::PassOver)??;
        let layer_bytes = bytes.len() / missing.blocks.len();
        Ok(Slices { bytes, layer_bytes })
    }

    /// Gives a buffer back, to be read into again.
    pub(crate) fn give_back(&self, slices: Slices) {
        if let Some(empty) = &self.lock().empty {
            // The reader may have finished; then the buffer is not needed.
            let _ = empty.send(slices.bytes);
        }
    }

    /// After a pass over all layers: what there was room for stays in memory.
    pub(crate) fn finish(self) {
        for (handle, block) in self.end().into_values() {
            let block = Arc::new(block);
            handle.fill(Arc::clone(&block));
            self.store.bring_nearer(handle.info(), &block);
        }
    }

    /// Ends the thread. Returns the blocks that it has read whole.
    fn end(&self) -> Incoming {
        let mut reader = self.lock();
        // Closing both channels ends the thread at its next step.
        (reader.ready, reader.empty) = (None, None);
        let thread = reader.thread.take();
        drop(reader);
        // A panic in it has shown itself as a pass without slices.
        thread.map_or_else(Incoming::new, |thread| thread.join().unwrap_or_default())
    }

    fn lock(&self) -> MutexGuard<'_, Reader> {
        self.reader
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.end();
    }
}

/// The work of the thread that reads.
struct ReadAhead {
    orders: Vec<Order>,
    plan: Arc<HashMap<(usize, usize), Vec<Missing>>>,
    store: Arc<Store>,
    incoming: Incoming,
}

impl ReadAhead {
    /// Reads in order into the buffers that come from `empty`. Returns the blocks that stay, when all
    /// was read.
    fn run(
        mut self,
        empty: &Receiver<Vec<u8>>,
        ready: &SyncSender<Result<Vec<u8>, TierError>>,
    ) -> Incoming {
        let (mut told, mut ahead) = (0, 0);
        for at in 0..self.orders.len() {
            while told < self.orders.len() && (told <= at || ahead < AHEAD) {
                let order = &self.orders[told];
                self.store.prefetch(&self.missing(order).keys, order.layer);
                ahead += order.bytes;
                told += 1;
            }
            let order = &self.orders[at];
            ahead -= order.bytes;
            let Ok(mut buffer) = empty.recv() else {
                return Incoming::new();
            };
            buffer.resize(order.bytes, 0);
            let keys = &self.missing(order).keys;
            let read = self.store.read(keys, order.layer, &mut buffer);
            if read.is_ok() {
                self.keep(at, &buffer);
            }
            let failed = read.is_err();
            if ready.send(read.map(|()| buffer)).is_err() || failed {
                return Incoming::new();
            }
        }
        self.incoming
    }

    fn missing(&self, order: &Order) -> &Missing {
        &self.plan[&(order.segment, order.group)][order.missing]
    }

    /// Copies the slices of order `at` into the blocks that stay.
    fn keep(&mut self, at: usize, slices: &[u8]) {
        let ReadAhead {
            orders,
            plan,
            incoming,
            ..
        } = self;
        let order = &orders[at];
        let blocks = &plan[&(order.segment, order.group)][order.missing].blocks;
        let layer_bytes = slices.len() / blocks.len();
        for (slice, &place) in slices.chunks_exact(layer_bytes).zip(blocks) {
            let staying = incoming.get_mut(&(order.segment, order.group, place));
            if let Some((_, block)) = staying {
                let from = order.layer * layer_bytes;
                block.bytes_mut()[from..from + layer_bytes].copy_from_slice(slice);
            }
        }
    }
}

impl Slices {
    /// The slice of the block at place `at` of its [`Missing`].
    pub(crate) fn of(&self, at: usize) -> &[u8] {
        &self.bytes[at * self.layer_bytes..][..self.layer_bytes]
    }
}

/// Bytes of the buffers that blocks of `layout` are read back into.
pub(crate) fn buffer_bytes(layout: &KvLayout) -> u64 {
    let of_group = |group: &Group| match group.is_recurrent() {
        true => group.layer_bytes(),
        // Those are read before a pass, whole.
        false if group.is_beside => 0,
        false => SPAN_BLOCKS * group.layer_bytes(),
    };
    let longest = layout.groups.iter().map(of_group).max();
    (BUFFERS * longest.unwrap_or(0)) as u64
}

/// Room for the buffers of a pass over `segments`.
fn reserve_buffers(segments: &[Segment<'_>], store: &Store) -> Result<Reservation, KvError> {
    let of_segment = |segment: &Segment<'_>| buffer_bytes(&segment.context.layout);
    let needed = segments.iter().map(of_segment).max().unwrap_or(0);
    store.make_space(needed);
    store.ledger().reserve(Purpose::Scratch, needed)
}

/// All reads of a pass, in the order in which attention needs them.
fn orders(segments: &[Segment<'_>], missing: &HashMap<(usize, usize), Vec<Missing>>) -> Vec<Order> {
    let mut orders = Vec::new();
    let layers = segments
        .first()
        .map_or(0, |segment| segment.context.layout.layers.len());
    for layer in 0..layers {
        for (index, segment) in segments.iter().enumerate() {
            let layout = &segment.context.layout;
            let (group, place) = layout.layers[layer];
            let spans = missing.get(&(index, group)).map_or(&[][..], |spans| spans);
            let slice = layout.groups[group].shape().layer_bytes;
            let spans: Range<usize> = 0..spans.len();
            orders.extend(spans.map(|at| Order {
                segment: index,
                group,
                layer: place,
                missing: at,
                bytes: slice * missing[&(index, group)][at].blocks.len(),
            }));
        }
    }
    orders
}

/// Blocks for those of `wanted` that memory has room for, beginning with the first; one for a block that
/// several contexts want.
fn admit(
    wanted: Vec<((usize, usize, usize), Arc<Handle>)>,
    store: &Store,
    keep_free: u64,
) -> Incoming {
    let mut incoming = Incoming::new();
    let mut seen = HashSet::new();
    for (place, handle) in wanted {
        if !seen.insert(handle.key()) {
            continue;
        }
        let shape = handle.info().shape;
        let bytes = shape.layers * shape.layer_bytes;
        if store.ledger().available() < (bytes as u64).saturating_add(keep_free) {
            break;
        }
        // Another thread may have taken the room since.
        let Ok(block) = Block::one_of_many(bytes, store.ledger()) else {
            break;
        };
        incoming.insert(place, (handle, block));
    }
    incoming
}
