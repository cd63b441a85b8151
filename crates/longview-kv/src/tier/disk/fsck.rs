//! Checking every byte of a store.

use std::io;
use std::path::{Path, PathBuf};

use super::index::Place;
use super::put::Writing;
use super::scan::{Contents, Unknown, contents, key_of_file};
use super::{Disk, io_error};
use crate::tier::extent::{Header, Slot, SlotState, Unreadable, checksum};
use crate::tier::files::{Access, OpenFile};
use crate::tier::{BlockKey, TierError};

/// What a check does with what it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Nothing.
    Report,
    /// Removes damaged blocks and files that do not belong into a store. Files of newer versions,
    /// and what other processes are writing to, stay.
    Remove,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fsck {
    /// Files looked at.
    pub files: u64,
    /// Whole blocks.
    pub blocks: u64,
    /// Their bytes, all of which were read.
    pub bytes: u64,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// Something wrong with a file of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub what: String,
    /// What became of it.
    pub fate: Fate,
}

/// What a check did with a file that is not right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing.
    Left,
    /// The file, or the block in it, is gone.
    Removed,
    /// It has its name again.
    Renamed,
}

impl Disk {
    pub(super) fn fsck(&self, repair: Repair) -> Result<Fsck, TierError> {
        let mut found = Fsck::default();
        let mut buffer = Vec::new();
        for path in self.extent_files()? {
            let mut writing = self.writing();
            found.files += 1;
            let Some(extent) = key_of_file(&path) else {
                found.problems.push(Problem {
                    fate: fate(repair, || self.files.remove(&path).is_ok()),
                    what: Unreadable::Foreign.to_string(),
                    file: path,
                });
                continue;
            };
            let read = self.files.open(&path, Access::Read).map_err(Unknown::from);
            match read.and_then(|file| Ok((self.settled(&writing, &*file, &path, &extent)?, file)))
            {
                Ok((contents, file)) => {
                    self.fsck_extent(&contents, &*file, &mut buffer, &mut found, |what, slot| {
                        Problem {
                            file: path.clone(),
                            what,
                            fate: fate(repair, || {
                                self.clear_slot(&mut writing, &extent, slot).is_ok()
                            }),
                        }
                    });
                }
                // Evicted by another process since the folder was listed.
                Err(Unknown::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let ours = !matches!(
                        error,
                        Unknown::Unreadable(Unreadable::Future(_)) | Unknown::Io(_)
                    );
                    found.problems.push(Problem {
                        fate: fate(repair, || {
                            ours && self.remove_unused(&mut writing, &extent, &path)
                        }),
                        what: error.to_string(),
                        file: path,
                    });
                }
            }
        }
        Ok(found)
    }

    /// What an extent says. A record that is not whole may be one that another process is writing now: it
    /// is read again while nobody can, or taken for empty.
    fn settled(
        &self,
        writing: &Writing,
        file: &dyn OpenFile,
        path: &Path,
        extent: &BlockKey,
    ) -> Result<Contents, Unknown> {
        let mut found = contents(file, extent)?;
        if !found.table.contains(&SlotState::Torn) || writing.writes(extent) {
            return Ok(found);
        }
        // The lock goes with this file, so that a repair can have it.
        let alone = self.files.open(path, Access::Read)?;
        if alone.try_lock()? {
            return contents(&*alone, extent);
        }
        for state in &mut found.table {
            if *state == SlotState::Torn {
                *state = SlotState::Empty;
            }
        }
        Ok(found)
    }

    /// Reads every slice of an extent.
    fn fsck_extent(
        &self,
        contents: &Contents,
        file: &dyn OpenFile,
        buffer: &mut Vec<u8>,
        found: &mut Fsck,
        mut problem: impl FnMut(String, u32) -> Problem,
    ) {
        let header = &contents.header;
        for (at, state) in (0..).zip(&contents.table) {
            let what = match state {
                SlotState::Empty => continue,
                SlotState::Torn => format!("block {at} was not written to its end"),
                SlotState::Valid(slot) => match damage(header, slot, at, file, buffer) {
                    None => {
                        found.blocks += 1;
                        found.bytes += header.block_bytes();
                        continue;
                    }
                    Some(what) => format!("block {at} is damaged: {what}"),
                },
            };
            found.problems.push(problem(what, at));
        }
    }

    /// Takes back that a slot holds a block. The extent goes with its last block.
    pub(super) fn clear_slot(
        &self,
        writing: &mut Writing,
        extent: &BlockKey,
        slot: u32,
    ) -> Result<(), TierError> {
        let path = self.path_of(extent);
        let Some(file) = self.writer(writing, extent)? else {
            let busy = io::Error::new(io::ErrorKind::WouldBlock, "another process writes to it");
            return Err(io_error(&path, "remove a block")(busy));
        };
        let (header, alone) = {
            let state = self.state();
            let Some(known) = state.index.extent(extent) else {
                return Ok(());
            };
            let mut others = (0..).zip(&known.slots).filter(|(at, _)| *at != slot);
            let alone = others.all(|(_, slot)| slot.is_none());
            (known.header.clone(), alone)
        };
        if alone {
            return self.unlink(writing, extent);
        }
        let empty = vec![0; header.slot_bytes()];
        file.write_all_at(&empty, header.slot_offset(slot))
            .map_err(io_error(&path, "remove a block"))?;
        writing.wrote(extent);
        let place = Place {
            extent: *extent,
            slot,
        };
        self.state().index.empty(place);
        Ok(())
    }

    /// Removes a file that is no extent, unless another process has it locked.
    fn remove_unused(&self, writing: &mut Writing, extent: &BlockKey, path: &Path) -> bool {
        let locked = self
            .files
            .open(path, Access::Read)
            .and_then(|file| Ok((file.try_lock()?, file)));
        matches!(locked, Ok((true, _))) && self.unlink(writing, extent).is_ok()
    }
}

/// What becomes of something wrong that `remove` may be able to remove.
fn fate(repair: Repair, remove: impl FnOnce() -> bool) -> Fate {
    match repair {
        Repair::Remove if remove() => Fate::Removed,
        Repair::Remove | Repair::Report => Fate::Left,
    }
}

/// What is wrong with a block's payload.
fn damage(
    header: &Header,
    slot: &Slot,
    at: u32,
    file: &dyn OpenFile,
    buffer: &mut Vec<u8>,
) -> Option<String> {
    buffer.resize(header.shape.layer_bytes, 0);
    for (layer, sum) in slot.sums.iter().enumerate() {
        match file.read_all_at(buffer, header.slice_offset(layer, at)) {
            Err(error) => return Some(error.to_string()),
            Ok(()) if checksum(buffer) != *sum => {
                return Some(format!("checksum of layer {layer}"));
            }
            Ok(()) => {}
        }
    }
    None
}
