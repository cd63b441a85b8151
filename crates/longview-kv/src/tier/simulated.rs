//! A disk in memory that fails as disks do: it loses or reorders what was not synced when the
//! power goes, runs full, writes short, cannot be read, or is read-only.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use super::files::{Access, Files, OpenFile, Stat};

/// What a power loss may tear a write at.
const SECTOR: u64 = 512;

/// The disk. Clones are the same disk.
#[derive(Clone, Default)]
pub(crate) struct SimulatedFiles(Arc<Mutex<Disk>>);

#[derive(Default)]
struct Disk {
    /// Names as the system shows them.
    names: BTreeMap<PathBuf, usize>,
    folders: BTreeSet<PathBuf>,
    /// Names that survive a power loss for certain.
    durable_names: BTreeMap<PathBuf, usize>,
    inodes: Vec<Inode>,
    /// Bytes that files may hold in all.
    room: Option<u64>,
    read_only: bool,
    /// Files whose paths contain this cannot be read.
    unreadable: Option<String>,
    /// Time shown for files that are changed.
    now: Option<SystemTime>,
    /// Writes take at most so many bytes at once.
    longest_write: Option<usize>,
    /// Times that a path was looked at, and that a file was synced.
    looks: usize,
    syncs: usize,
}

#[derive(Clone)]
struct Inode {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    /// Writes since the last sync, in order: where and what.
    unsynced: Vec<(u64, Vec<u8>)>,
    modified: SystemTime,
    locked: bool,
}

struct SimulatedFile {
    disk: SimulatedFiles,
    inode: usize,
    path: PathBuf,
    holds_lock: AtomicBool,
}

impl SimulatedFiles {
    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }

    /// What is left after the power went: everything synced; of the rest each sector of each write
    /// may or may not have reached the disk, in any order, and so may names.
    pub(crate) fn lose_power(&self, random: &mut fastrand::Rng) -> SimulatedFiles {
        let disk = self.disk();
        let mut left = Disk {
            folders: disk.folders.clone(),
            ..Disk::default()
        };
        for inode in &disk.inodes {
            let mut bytes = inode.durable.clone();
            for (offset, data) in &inode.unsynced {
                let fate = random.u8(0..3);
                let mut at = 0;
                while at < data.len() {
                    let to_edge = SECTOR - (offset + at as u64) % SECTOR;
                    let end = data.len().min(at + to_edge as usize);
                    let survives = match fate {
                        0 => true,
                        1 => false,
                        _ => random.bool(),
                    };
                    if survives {
                        write(&mut bytes, &data[at..end], offset + at as u64);
                    }
                    at = end;
                }
            }
            left.inodes.push(Inode {
                durable: bytes.clone(),
                bytes,
                unsynced: Vec::new(),
                modified: inode.modified,
                locked: false,
            });
        }
        // A name that was changed and not synced is the old one or the new one.
        let all: BTreeSet<_> = disk.names.keys().chain(disk.durable_names.keys()).collect();
        for path in all {
            let (new, old) = (disk.names.get(path), disk.durable_names.get(path));
            let inode = if random.bool() { new } else { old };
            if let Some(inode) = inode {
                left.names.insert(path.clone(), *inode);
            }
        }
        left.durable_names = left.names.clone();
        SimulatedFiles(Arc::new(Mutex::new(left)))
    }

    /// Lets files hold `bytes` more bytes in all.
    pub(crate) fn leave_room(&self, bytes: Option<u64>) {
        let mut disk = self.disk();
        let used = disk.used();
        disk.room = bytes.map(|bytes| used + bytes);
    }

    pub(crate) fn make_read_only(&self) {
        self.disk().read_only = true;
    }

    pub(crate) fn fail_reads_of(&self, part: Option<&str>) {
        self.disk().unreadable = part.map(str::to_owned);
    }

    pub(crate) fn set_clock(&self, now: SystemTime) {
        self.disk().now = Some(now);
    }

    pub(crate) fn write_at_most(&self, bytes: usize) {
        self.disk().longest_write = Some(bytes);
    }

    /// How often a path was looked at since this was asked last.
    pub(crate) fn take_looks(&self) -> usize {
        std::mem::take(&mut self.disk().looks)
    }

    /// How often a file was synced.
    pub(crate) fn syncs(&self) -> usize {
        self.disk().syncs
    }

    /// Bytes that files with names hold.
    pub(crate) fn used(&self) -> u64 {
        self.disk().used()
    }

    /// All files.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.disk().names.keys().cloned().collect()
    }

    /// Changes a file behind everyone's back.
    pub(crate) fn tamper(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut disk = self.disk();
        let inode = disk.names[path];
        change(&mut disk.inodes[inode].bytes);
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) {
        let mut disk = self.disk();
        let inode = disk.names.remove(from).unwrap();
        disk.names.insert(to.to_owned(), inode);
    }

    fn file(&self, inode: usize, path: &Path) -> Arc<dyn OpenFile> {
        Arc::new(SimulatedFile {
            disk: self.clone(),
            inode,
            path: path.to_owned(),
            holds_lock: AtomicBool::new(false),
        })
    }
}

impl Disk {
    fn used(&self) -> u64 {
        let named: BTreeSet<_> = self.names.values().collect();
        named
            .iter()
            .map(|&&inode| self.inodes[inode].bytes.len() as u64)
            .sum()
    }

    fn writable(&self) -> io::Result<()> {
        match self.read_only {
            true => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
            false => Ok(()),
        }
    }

    fn inode(&self, path: &Path) -> io::Result<usize> {
        let inode = self.names.get(path).copied();
        inode.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn parent_exists(&self, path: &Path) -> io::Result<()> {
        match path.parent() {
            Some(parent) if self.folders.contains(parent) => Ok(()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn now(&self) -> SystemTime {
        self.now.unwrap_or_else(SystemTime::now)
    }

    fn stat(&self, inode: usize) -> Stat {
        Stat {
            len: self.inodes[inode].bytes.len() as u64,
            modified: self.inodes[inode].modified,
            id: Some((0, inode as u64)),
            folder: false,
        }
    }
}

impl Files for SimulatedFiles {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn OpenFile>> {
        let mut disk = self.disk();
        disk.writable()?;
        disk.parent_exists(path)?;
        if disk.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let modified = disk.now();
        disk.inodes.push(Inode {
            bytes: Vec::new(),
            durable: Vec::new(),
            unsynced: Vec::new(),
            modified,
            locked: false,
        });
        let inode = disk.inodes.len() - 1;
        disk.names.insert(path.to_owned(), inode);
        drop(disk);
        Ok(self.file(inode, path))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn OpenFile>> {
        let disk = self.disk();
        if access == Access::Write {
            disk.writable()?;
        }
        let inode = disk.inode(path)?;
        drop(disk);
        Ok(self.file(inode, path))
    }

    fn publish(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.disk().names.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.replace(from, to)
    }

    fn replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.writable()?;
        disk.parent_exists(to)?;
        let inode = disk.inode(from)?;
        disk.names.remove(from);
        disk.names.insert(to.to_owned(), inode);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.writable()?;
        disk.inode(path)?;
        disk.names.remove(path);
        Ok(())
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        let disk = self.disk();
        if !disk.folders.contains(folder) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let all = disk.names.keys().chain(&disk.folders);
        let inside = all.filter(|path| path.parent() == Some(folder));
        Ok(inside.cloned().collect())
    }

    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        if disk.folders.contains(folder) {
            return Ok(());
        }
        disk.writable()?;
        disk.folders.extend(folder.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        let disk = &mut *disk;
        disk.durable_names
            .retain(|path, _| path.parent() != Some(folder));
        let inside = disk
            .names
            .iter()
            .filter(|(path, _)| path.parent() == Some(folder));
        disk.durable_names
            .extend(inside.map(|(path, inode)| (path.clone(), *inode)));
        Ok(())
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        let mut disk = self.disk();
        disk.looks += 1;
        if disk.folders.contains(path) {
            return Ok(Stat {
                len: 0,
                modified: disk.now(),
                id: None,
                folder: true,
            });
        }
        Ok(disk.stat(disk.inode(path)?))
    }

    fn free_bytes(&self, _folder: &Path) -> io::Result<u64> {
        let disk = self.disk();
        Ok(disk.room.map_or(u64::MAX, |room| room - disk.used()))
    }

    fn set_modified(&self, path: &Path, time: SystemTime) -> io::Result<()> {
        let mut disk = self.disk();
        disk.writable()?;
        let inode = disk.inode(path)?;
        disk.inodes[inode].modified = time;
        Ok(())
    }
}

impl OpenFile for SimulatedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let disk = self.disk.disk();
        let path = self.path.to_string_lossy();
        if disk
            .unreadable
            .as_ref()
            .is_some_and(|part| path.contains(part))
        {
            return Err(io::Error::other("input/output error"));
        }
        let bytes = &disk.inodes[self.inode].bytes;
        let there = bytes.get(offset as usize..).unwrap_or_default();
        let len = there.len().min(buffer.len());
        buffer[..len].copy_from_slice(&there[..len]);
        Ok(len)
    }

    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<usize> {
        let mut disk = self.disk.disk();
        disk.writable()?;
        let mut len = buffer.len().min(disk.longest_write.unwrap_or(usize::MAX));
        if let Some(room) = disk.room {
            let end = disk.inodes[self.inode].bytes.len() as u64;
            let grows_from = end.max(offset);
            let free = room.saturating_sub(disk.used() + grows_from.saturating_sub(end));
            let fits = grows_from.saturating_sub(offset) + free;
            if fits == 0 || grows_from - end > room.saturating_sub(disk.used()) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            len = len.min(fits as usize);
        }
        let now = disk.now();
        let inode = &mut disk.inodes[self.inode];
        write(&mut inode.bytes, &buffer[..len], offset);
        inode.unsynced.push((offset, buffer[..len].to_vec()));
        inode.modified = now;
        Ok(len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.disk.disk();
        disk.writable()?;
        disk.inodes[self.inode].bytes.resize(len as usize, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.disk.disk();
        disk.syncs += 1;
        let inode = &mut disk.inodes[self.inode];
        inode.durable = inode.bytes.clone();
        inode.unsynced.clear();
        Ok(())
    }

    fn stat(&self) -> io::Result<Stat> {
        Ok(self.disk.disk().stat(self.inode))
    }

    fn try_lock(&self) -> io::Result<bool> {
        let mut disk = self.disk.disk();
        let locked = &mut disk.inodes[self.inode].locked;
        if !*locked {
            *locked = true;
            self.holds_lock.store(true, Ordering::Relaxed);
        }
        Ok(self.holds_lock.load(Ordering::Relaxed))
    }
}

impl Drop for SimulatedFile {
    fn drop(&mut self) {
        if self.holds_lock.load(Ordering::Relaxed) {
            self.disk.disk().inodes[self.inode].locked = false;
        }
    }
}

fn write(bytes: &mut Vec<u8>, data: &[u8], offset: u64) {
    let (start, end) = (offset as usize, offset as usize + data.len());
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[start..end].copy_from_slice(data);
}
