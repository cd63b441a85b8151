//! Reading blocks back.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::index::Place;
use super::{Disk, State, age};
use crate::tier::extent::checksum;
use crate::tier::files::{Access, OpenFile};
use crate::tier::{BlockKey, TierError};

/// Files kept open for reading.
const MOST_HANDLES: usize = 128;
/// Shorter reads say nothing about the disk.
const METERED_BYTES: usize = 256 << 10;
/// Weight of the newest read in the average.
const NEWEST: f64 = 0.1;
/// Times of use on disk are this coarse.
const TOUCH_SECONDS: f64 = 10.0;

/// Files open for reading.
#[derive(Default)]
pub(super) struct Handles {
    open: HashMap<BlockKey, (Arc<dyn OpenFile>, u64)>,
    clock: u64,
}

/// Measures how fast reads are.
#[derive(Default)]
pub(super) struct Meter {
    seconds_per_byte: Option<f64>,
}

/// Blocks that lie one after another in an extent.
struct Run {
    first: Place,
    sums: Vec<u128>,
    offset: u64,
    layer_bytes: usize,
}

impl Handles {
    fn get(&mut self, extent: &BlockKey) -> Option<Arc<dyn OpenFile>> {
        self.clock += 1;
        let (file, used) = self.open.get_mut(extent)?;
        *used = self.clock;
        Some(Arc::clone(file))
    }

    fn keep(&mut self, extent: BlockKey, file: Arc<dyn OpenFile>) {
        if self.open.len() >= MOST_HANDLES {
            let oldest = self.open.iter().min_by_key(|(_, (_, used))| *used);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                self.open.remove(&oldest);
            }
        }
        self.open.insert(extent, (file, self.clock));
    }

    pub(super) fn close(&mut self, extent: &BlockKey) {
        self.open.remove(extent);
    }
}

impl Meter {
    /// Bytes a second.
    pub(super) fn rate(&self) -> Option<f64> {
        self.seconds_per_byte.map(f64::recip)
    }

    fn note(&mut self, bytes: usize, time: Duration) {
        if bytes < METERED_BYTES || time.is_zero() {
            return;
        }
        let now = time.as_secs_f64() / bytes as f64;
        // Averaging times, not rates: the average then predicts how long many reads take.
        let before = self.seconds_per_byte.unwrap_or(now);
        self.seconds_per_byte = Some(before + NEWEST * (now - before));
    }
}

impl Disk {
    pub(super) fn read(
        &self,
        keys: &[BlockKey],
        layer: usize,
        out: &mut [u8],
    ) -> Result<(), TierError> {
        let started = Instant::now();
        let bytes = out.len();
        let (mut keys, mut out) = (keys, out);
        while !keys.is_empty() {
            let run = self.run(keys, layer)?;
            let count = run.sums.len();
            let Some((head, tail)) = out.split_at_mut_checked(count * run.layer_bytes) else {
                return Err(TierError::Unfit {
                    key: keys[0],
                    what: "the buffer is shorter than the blocks that are read",
                });
            };
            self.read_run(&keys[..count], layer, run, head)?;
            (keys, out) = (&keys[count..], tail);
        }
        self.meter().note(bytes, started.elapsed());
        Ok(())
    }

    /// Has the system begin to read slices. What cannot be had shows when it is read.
    pub(super) fn prefetch(&self, mut keys: &[BlockKey], layer: usize) {
        while !keys.is_empty() {
            let Ok(run) = self.run(keys, layer) else {
                return;
            };
            if let Ok(file) = self.open_extent(&run.first.extent) {
                file.will_need(run.offset, run.sums.len() * run.layer_bytes);
            }
            keys = &keys[run.sums.len()..];
        }
    }

    /// Notes uses in memory, and now and then on disk for other processes and later ones.
    pub(super) fn touch(&self, keys: &[BlockKey]) {
        let now = SystemTime::now();
        let mut stale = Vec::new();
        {
            let mut state = self.state();
            for key in keys {
                let Some(place) = state.index.place(key) else {
                    continue;
                };
                if let Some(extent) = state.index.extent_mut(&place.extent) {
                    extent.used = now;
                    let behind = now.duration_since(extent.modified).is_err()
                        || age(now, extent.modified) > TOUCH_SECONDS;
                    if behind && !self.read_only {
                        extent.modified = now;
                        stale.push(place.extent);
                    }
                }
            }
        }
        for extent in stale {
            // When it fails the extent only seems older than it is.
            let _ = self.files.set_modified(&self.path_of(&extent), now);
        }
    }

    /// The longest run that the first of `keys` begins.
    fn run(&self, keys: &[BlockKey], layer: usize) -> Result<Run, TierError> {
        self.locate(&keys[0]);
        let state = self.state();
        let missing = || TierError::Missing(keys[0]);
        let (first, extent, _) = state.index.slot(&keys[0]).ok_or_else(missing)?;
        if layer >= extent.header.shape.layers {
            return Err(TierError::Unfit {
                key: keys[0],
                what: "it has fewer layers than are read",
            });
        }
        let mut sums = Vec::new();
        for (key, at) in keys.iter().zip(first.slot..) {
            match state.index.slot(key) {
                Some((place, _, slot)) if place.extent == first.extent && place.slot == at => {
                    sums.push(slot.sums[layer]);
                }
                _ => break,
            }
        }
        Ok(Run {
            first,
            sums,
            offset: extent.header.slice_offset(layer, first.slot),
            layer_bytes: extent.header.shape.layer_bytes,
        })
    }

    fn read_run(
        &self,
        keys: &[BlockKey],
        layer: usize,
        run: Run,
        out: &mut [u8],
    ) -> Result<(), TierError> {
        let extent = run.first.extent;
        let path = self.path_of(&extent);
        let read = self
            .open_extent(&extent)
            .and_then(|file| file.read_all_at(out, run.offset));
        let what = match read {
            Ok(()) => {
                let slices = out.chunks_exact(run.layer_bytes).zip(&run.sums);
                let wrong = slices.map(|(slice, sum)| checksum(slice) == *sum);
                match wrong.zip(keys).find(|(right, _)| !right) {
                    None => return Ok(()),
                    Some((_, key)) => (*key, format!("checksum of layer {layer}")),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.reload(&extent);
                return Err(TierError::Missing(keys[0]));
            }
            Err(error) => (keys[0], error.to_string()),
        };
        let (key, what) = what;
        let mut state = self.state();
        state.handles.close(&extent);
        // The file may have been removed and written anew by others since its records were read.
        drop(state);
        if !self.still_says(&key, layer, &run) {
            return Err(TierError::Missing(key));
        }
        self.state().index.damage(&key);
        let error = TierError::Damaged {
            place: path.display().to_string(),
            key,
            what,
        };
        self.notices.push_about(&path, error.to_string());
        Err(error)
    }

    /// Whether the file has the record that a run was read by.
    fn still_says(&self, key: &BlockKey, layer: usize, run: &Run) -> bool {
        self.reload(&run.first.extent);
        let state = self.state();
        let slot = state.index.slot(key);
        slot.is_some_and(|(place, _, slot)| {
            let at = place.slot.wrapping_sub(run.first.slot) as usize;
            place.extent == run.first.extent && run.sums.get(at) == Some(&slot.sums[layer])
        })
    }

    fn open_extent(&self, extent: &BlockKey) -> io::Result<Arc<dyn OpenFile>> {
        if let Some(file) = self.state().handles.get(extent) {
            return Ok(file);
        }
        let file = self.files.open(&self.path_of(extent), Access::Read)?;
        let mut state: std::sync::MutexGuard<'_, State> = self.state();
        state.handles.keep(*extent, Arc::clone(&file));
        Ok(file)
    }
}
