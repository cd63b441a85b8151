//! Writing blocks.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use super::index::Place;
use super::scan::{Unknown, contents};
use super::{Disk, Syncing, age, io_error};
use crate::error::human_bytes;
use crate::tier::extent::{Header, Slot, Unreadable, block_bytes, unfit};
use crate::tier::files::{Access, OpenFile, is_full};
use crate::tier::folder::temporary_path;
use crate::tier::{BlockInfo, BlockKey, TierError};

/// Extents kept open for writing.
const MOST_WRITERS: usize = 64;
/// What others have written is looked at this often when room is counted.
const RECOUNT_SECONDS: f64 = 5.0;

/// Systems write files back by themselves sooner than this.
const UNSYNCED_SECONDS: f64 = 300.0;

/// What is being written.
#[derive(Default)]
pub(super) struct Writing {
    /// Extents that this process has locked.
    writers: HashMap<BlockKey, Writer>,
    clock: u64,
    /// Extents written to since the last sync.
    dirty: BTreeSet<BlockKey>,
    /// Folders with new names since the last sync.
    dirty_folders: BTreeSet<PathBuf>,
    /// When room was last counted with what others have written.
    pub(super) counted: Option<SystemTime>,
    /// Why the first block since [`Disk::take_lost`] could not be written: where, and what the system said.
    lost: Option<(PathBuf, io::Error)>,
    /// When nothing could be evicted although there was no room, and the bytes held then.
    stuck: Option<(Instant, u64)>,
}

struct Writer {
    file: Arc<dyn OpenFile>,
    id: Option<(u64, u64)>,
    used: u64,
}

/// What became of an attempt to write a block into an extent.
enum Attempt {
    Done,
    /// The extent cannot take the block.
    Elsewhere,
}

impl Writing {
    /// Whether this process may write to an extent, and so nobody else does.
    pub(super) fn writes(&self, extent: &BlockKey) -> bool {
        self.writers.contains_key(extent)
    }

    /// Notes that an extent is to be synced.
    pub(super) fn wrote(&mut self, extent: &BlockKey) {
        self.dirty.insert(*extent);
    }
}

impl Disk {
    /// Has the next sync include what another process may have put and, being killed, not synced.
    pub(super) fn adopt_unsynced(&self) {
        let now = SystemTime::now();
        let mut writing = self.writing();
        for (extent, known) in self.state().index.extents() {
            let unsettled = known.modified > now || age(now, known.modified) < UNSYNCED_SECONDS;
            if unsettled {
                writing.dirty.insert(*extent);
                writing.dirty_folders.insert(self.folder_of(extent));
            }
        }
    }

    pub(super) fn put(&self, info: &BlockInfo, bytes: &[u8]) -> Result<(), TierError> {
        if let Some(what) = unfit(info, bytes.len()) {
            return Err(TierError::Unfit {
                key: info.key,
                what,
            });
        }
        if self.read_only {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(TierError::ReadOnly {
                place: self.root.display().to_string(),
            });
        }
        let mut writing = self.writing();
        if self.locate_behind(info) {
            return Ok(());
        }
        let slot = Arc::new(Slot::of(info, bytes));
        let wanted = block_bytes(info.shape);
        self.make_room(&mut writing, info, wanted)?;
        match self.write(&mut writing, info, &slot, bytes) {
            Err(TierError::Io { source, .. }) if is_full(&source) => {
                let freed = self.free(&mut writing, info, wanted)?;
                match self.write(&mut writing, info, &slot, bytes) {
                    Err(TierError::Io { source, .. }) if is_full(&source) => Err(TierError::Full {
                        place: self.root.display().to_string(),
                        wanted,
                        what: format!("{source}, after {} were freed", human_bytes(freed)),
                    }),
                    other => other,
                }
            }
            other => other,
        }
    }

    pub(super) fn remove(&self, key: &BlockKey) -> Result<(), TierError> {
        let mut writing = self.writing();
        if !self.locate(key) {
            return Ok(());
        }
        let place = self.state().index.place(key);
        match place {
            Some(place) => self.clear_slot(&mut writing, &place.extent, place.slot),
            None => Ok(()),
        }
    }

    pub(super) fn sync(&self) -> Result<(), TierError> {
        if self.options.sync == Syncing::Never {
            return Ok(());
        }
        let (extents, folders) = {
            let mut writing = self.writing();
            let writing = &mut *writing;
            (
                std::mem::take(&mut writing.dirty),
                std::mem::take(&mut writing.dirty_folders),
            )
        };
        let mut outcome = Ok(());
        for extent in extents {
            let path = self.path_of(&extent);
            let synced = self
                .files
                .open(&path, Access::Write)
                .and_then(|file| file.sync());
            match synced {
                // Evicted since.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    outcome = Err(io_error(&path, "sync")(error));
                    self.writing().dirty.insert(extent);
                }
                Ok(()) => {}
            }
        }
        for folder in folders {
            if let Err(error) = self.files.sync_folder(&folder) {
                outcome = Err(io_error(&folder, "sync")(error));
                self.writing().dirty_folders.insert(folder);
            }
        }
        outcome
    }

    /// That blocks could not be written since the last time this was asked, if any.
    pub(super) fn take_lost(&self) -> Result<(), TierError> {
        match self.writing().lost.take() {
            Some((path, error)) => Err(io_error(&path, "write")(error)),
            None => Ok(()),
        }
    }

    /// Removes an extent's file. The caller has seen that nobody else writes to it.
    pub(super) fn unlink(&self, writing: &mut Writing, extent: &BlockKey) -> Result<(), TierError> {
        let path = self.path_of(extent);
        match self.files.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error(&path, "remove")(error));
            }
            _ => {}
        }
        writing.writers.remove(extent);
        writing.dirty.remove(extent);
        writing.dirty_folders.insert(self.folder_of(extent));
        let mut state = self.state();
        state.index.forget(extent);
        state.handles.close(extent);
        Ok(())
    }

    /// Locks an extent for writing; `None` when another process has it, or it is gone.
    pub(super) fn writer(
        &self,
        writing: &mut Writing,
        extent: &BlockKey,
    ) -> Result<Option<Arc<dyn OpenFile>>, TierError> {
        let path = self.path_of(extent);
        writing.clock += 1;
        if let Some(writer) = writing.writers.get_mut(extent) {
            // Someone may have removed the file by hand: what is written to it would be lost.
            if self
                .files
                .stat(&path)
                .is_ok_and(|stat| stat.id == writer.id)
            {
                writer.used = writing.clock;
                return Ok(Some(Arc::clone(&writer.file)));
            }
            writing.writers.remove(extent);
            writing.dirty.remove(extent);
            let mut state = self.state();
            state.index.forget(extent);
            state.handles.close(extent);
        }
        let file = match self.files.open(&path, Access::Write) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.reload(extent);
                return Ok(None);
            }
            Err(error) => return Err(io_error(&path, "open")(error)),
        };
        let locked = file.try_lock().map_err(io_error(&path, "lock"))?;
        let id = file.stat().map_err(io_error(&path, "look at"))?.id;
        let same = self.files.stat(&path).is_ok_and(|stat| stat.id == id);
        if !locked || !same {
            return Ok(None);
        }
        // Another process may have written to it before.
        match contents(&*file, extent) {
            Ok(found) => {
                let mut state = self.state();
                state
                    .index
                    .load(&found.header, &found.table, found.modified);
            }
            Err(_) => return Ok(None),
        }
        self.keep_writer(writing, *extent, &file, id);
        Ok(Some(file))
    }

    fn keep_writer(
        &self,
        writing: &mut Writing,
        extent: BlockKey,
        file: &Arc<dyn OpenFile>,
        id: Option<(u64, u64)>,
    ) {
        if writing.writers.len() >= MOST_WRITERS {
            let oldest = writing.writers.iter().min_by_key(|(_, writer)| writer.used);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                self.drop_writer(writing, &oldest);
            }
        }
        let writer = Writer {
            file: Arc::clone(file),
            id,
            used: writing.clock,
        };
        writing.writers.insert(extent, writer);
        if let Some(extent) = self.state().index.extent_mut(&extent) {
            extent.ours = true;
        }
    }

    /// Lets others write to an extent.
    fn drop_writer(&self, writing: &mut Writing, extent: &BlockKey) {
        writing.writers.remove(extent);
        if let Some(extent) = self.state().index.extent_mut(extent) {
            extent.ours = false;
        }
    }

    fn write(
        &self,
        writing: &mut Writing,
        info: &BlockInfo,
        slot: &Arc<Slot>,
        bytes: &[u8],
    ) -> Result<(), TierError> {
        if let Some(place) = self.place_for(info)
            && let Attempt::Done = self.append(writing, place, info, slot, bytes)?
        {
            return Ok(());
        }
        self.begin(writing, info, slot, bytes)
    }

    /// Where a block goes among the extents there are: behind its predecessor, or where it was
    /// before it was found damaged.
    fn place_for(&self, info: &BlockInfo) -> Option<Place> {
        let state = self.state();
        let own = Place {
            extent: info.key,
            slot: 0,
        };
        let parent = BlockKey {
            hash: info.parent,
            group: info.key.group,
        };
        let behind = state.index.place(&parent).map(|place| Place {
            extent: place.extent,
            slot: place.slot + 1,
        });
        let fits = |place: &Place| {
            state.index.extent(&place.extent).is_some_and(|extent| {
                let free = extent.slots.get(place.slot as usize);
                extent.header.shape == info.shape
                    && extent.header.origin == info.origin
                    && extent.header.first + place.slot == info.index
                    && free.is_some_and(Option::is_none)
            })
        };
        behind.into_iter().chain([own]).find(fits)
    }

    fn append(
        &self,
        writing: &mut Writing,
        place: Place,
        info: &BlockInfo,
        slot: &Arc<Slot>,
        bytes: &[u8],
    ) -> Result<Attempt, TierError> {
        let Some(file) = self.writer(writing, &place.extent)? else {
            return Ok(Attempt::Elsewhere);
        };
        let free = {
            let state = self.state();
            if state.index.place(&info.key).is_some() {
                return Ok(Attempt::Done);
            }
            let extent = state.index.extent(&place.extent);
            let slot = extent.and_then(|extent| extent.slots.get(place.slot as usize));
            slot.is_some_and(Option::is_none)
        };
        let Some(header) = self.header(&place.extent).filter(|_| free) else {
            return Ok(Attempt::Elsewhere);
        };
        write_block(&*file, &header, place.slot, slot, bytes)
            .map_err(io_error(&self.path_of(&place.extent), "write"))?;
        writing.wrote(&place.extent);
        self.state().index.wrote(place.extent, place.slot, slot);
        if place.slot + 1 == header.capacity {
            self.drop_writer(writing, &place.extent);
        }
        Ok(Attempt::Done)
    }

    /// Writes a block as the first of a new extent.
    fn begin(
        &self,
        writing: &mut Writing,
        info: &BlockInfo,
        slot: &Arc<Slot>,
        bytes: &[u8],
    ) -> Result<(), TierError> {
        let header = Arc::new(Header::beginning_with(info));
        let temporary = temporary_path(&self.root);
        let outcome = self.publish(&temporary, &header, slot, bytes);
        if !matches!(outcome, Ok(Some(_))) {
            // It may never have been made.
            let _ = self.files.remove(&temporary);
        }
        let path = self.path_of(&info.key);
        if let Err(error) = &outcome
            && !is_full(error)
        {
            // Who put it goes on without; whoever has everything synced is told.
            let same = io::Error::new(error.kind(), error.to_string());
            writing.lost.get_or_insert_with(|| (path.clone(), same));
        }
        match outcome.map_err(io_error(&path, "write"))? {
            Some(file) => {
                let stat = file.stat().map_err(io_error(&path, "look at"))?;
                writing.clock += 1;
                {
                    let mut state = self.state();
                    state.index.forget(&info.key);
                    state.handles.close(&info.key);
                    state.index.load(&header, &[], stat.modified);
                    state.index.wrote(info.key, 0, slot);
                }
                if header.capacity > 1 {
                    self.keep_writer(writing, info.key, &file, stat.id);
                }
                writing.wrote(&info.key);
                writing.dirty_folders.insert(self.folder_of(&info.key));
                Ok(())
            }
            // Another process was faster.
            None if self.locate(&info.key) => Ok(()),
            None => {
                let busy = io::Error::new(
                    io::ErrorKind::WouldBlock,
                    "another process is writing this block",
                );
                Err(io_error(&path, "write")(busy))
            }
        }
    }

    /// Makes a file with one block and gives it its name. `None` when there is a file of that name
    /// that is in use.
    fn publish(
        &self,
        temporary: &Path,
        header: &Header,
        slot: &Slot,
        bytes: &[u8],
    ) -> io::Result<Option<Arc<dyn OpenFile>>> {
        let path = self.path_of(&header.key());
        let folder = self.folder_of(&header.key());
        if self.files.stat(&folder).is_err() {
            self.files.create_folder(&folder)?;
            self.files.sync_folder(&self.extents_folder())?;
        }
        let file = self.files.create(temporary)?;
        file.try_lock()?;
        file.write_all_at(&header.encode(), 0)?;
        write_block(&*file, header, 0, slot, bytes)?;
        match self.files.publish(temporary, &path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let there = match self.files.open(&path, Access::Write) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                    other => Some(other?),
                };
                if let Some(there) = there {
                    if let Err(Unknown::Unreadable(newer @ Unreadable::Future(_))) =
                        contents(&*there, &header.key())
                    {
                        return Err(io::Error::other(newer));
                    }
                    self.reload(&header.key());
                    let held = self.state().index.place(&header.key()).is_some();
                    if held || !there.try_lock()? {
                        return Ok(None);
                    }
                }
                // Nobody writes to it and the block is not in it: it is damaged.
                self.files.replace(temporary, &path)?;
            }
            other => other?,
        }
        Ok(Some(file))
    }

    pub(super) fn header(&self, extent: &BlockKey) -> Option<Arc<Header>> {
        let state = self.state();
        Some(Arc::clone(&state.index.extent(extent)?.header))
    }

    /// Evicts, when the store would grow beyond its limit.
    fn make_room(
        &self,
        writing: &mut Writing,
        info: &BlockInfo,
        wanted: u64,
    ) -> Result<(), TierError> {
        let Some(limit) = self.options.max_bytes else {
            return Ok(());
        };
        let now = SystemTime::now();
        if writing
            .counted
            .is_none_or(|then| age(now, then) > RECOUNT_SECONDS || then > now)
        {
            writing.counted = Some(now);
            self.scan()?;
        }
        // A new extent has a header, too.
        let wanted = wanted + Header::beginning_with(info).payload_offset();
        let held = || self.state().index.usage().bytes;
        // Looking for what may go takes longer than writing a block.
        let stuck = writing.stuck.is_some_and(|(then, bytes)| {
            then.elapsed().as_secs_f64() < RECOUNT_SECONDS && held() >= bytes
        });
        if held() + wanted > limit && !stuck && self.is_worth_room(info) {
            let target = (limit / 10 * 9).saturating_sub(wanted);
            self.evict(writing, target, &[info.parent])?;
        }
        let held = held();
        if held + wanted <= limit {
            return Ok(());
        }
        if !stuck {
            writing.stuck = Some((Instant::now(), held));
        }
        Err(TierError::Full {
            place: self.root.display().to_string(),
            wanted,
            what: format!(
                "{} of the {} allowed are in use, all of it pinned or needed now; give more with \
                 --cache-max",
                human_bytes(held),
                human_bytes(limit)
            ),
        })
    }

    /// Whether others may go for a block: not where what it follows was not kept, for nobody would find it. A
    /// text longer than the limit would otherwise push out its own beginning. What this process alone keeps is
    /// asked for by name.
    fn is_worth_room(&self, info: &BlockInfo) -> bool {
        let is_own = self.options.sync == Syncing::Never;
        is_own || info.index == 0 || self.state().index.holds(info.parent)
    }

    /// Evicts, when the disk is full: what is wanted, and a tenth of what is held so that the next
    /// block does not have to ask again.
    fn free(&self, writing: &mut Writing, info: &BlockInfo, wanted: u64) -> Result<u64, TierError> {
        if !self.is_worth_room(info) {
            return Ok(0);
        }
        let held = self.state().index.usage().bytes;
        let target = (held / 10 * 9).min(held.saturating_sub(wanted));
        self.evict(writing, target, &[info.parent])
    }
}

/// Writes the payload of a block, then the record that makes it count.
fn write_block(
    file: &dyn OpenFile,
    header: &Header,
    position: u32,
    slot: &Slot,
    bytes: &[u8],
) -> io::Result<()> {
    let slices = bytes.chunks_exact(header.shape.layer_bytes);
    for (layer, slice) in slices.enumerate() {
        file.write_all_at(slice, header.slice_offset(layer, position))?;
    }
    let record = slot.encode(header, position);
    file.write_all_at(&record, header.slot_offset(position))
}
