//! Where the bytes of a weight file are.

use std::fs::{File, Metadata};
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;

use crate::error::{Result, WeightsError};
use crate::weight_file::WeightPart;

/// Bytes of one request to the disk. Linux serves no more of a request than the device takes at once, some MiB, and
/// forgets the rest.
#[cfg(unix)]
const REQUEST: usize = 1 << 20;

/// The bytes of one file: mapped, part of the program, or in memory.
#[derive(Debug)]
pub(crate) struct Source {
    /// The path or name that errors show.
    pub(crate) name: String,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    /// A file of no bytes: it cannot be mapped.
    Empty,
    Mapped(Mapped),
    Static(&'static [u8]),
    Owned(Vec<u8>),
}

/// A mapped file, and what it was like when it was mapped.
#[derive(Debug)]
struct Mapped {
    map: Mmap,
    file: File,
    was: Metadata,
}

impl Source {
    /// Maps a file read-only.
    ///
    /// The map stays true to the file: a program that overwrites a file in place changes the weights
    /// under us, which [`Source::check_unchanged`] tells of, and one that shortens it makes later reads
    /// fail with SIGBUS. Replacing a file by renaming another over it, as well-behaved programs do, is
    /// safe.
    pub(crate) fn map(path: &Path) -> Result<Source> {
        let name = path.display().to_string();
        let io = |action| {
            let path = name.clone();
            move |source: std::io::Error| match source.kind() {
                std::io::ErrorKind::NotFound => WeightsError::NotFound { path },
                _ => WeightsError::Io {
                    path,
                    action,
                    source,
                },
            }
        };
        // Asked before opening: opening a pipe would wait for its other end.
        let metadata = std::fs::metadata(path).map_err(io("read the file's size"))?;
        if !metadata.is_file() {
            let why = "it is not a regular file".to_owned();
            return Err(WeightsError::NotWeights { path: name, why });
        }
        let file = File::open(path).map_err(io("open the file"))?;
        let was = file.metadata().map_err(io("read the file's size"))?;
        if was.len() == 0 {
            return Ok(Source::of(name, Bytes::Empty));
        }
        // SAFETY: the map is read-only and private to this process; what other processes may do to
        // the file while it is mapped is stated in the documentation above.
        let map = unsafe { Mmap::map(&file) }.map_err(io("map the file into memory"))?;
        let mapped = Mapped { map, file, was };
        Ok(Source::of(name, Bytes::Mapped(mapped)))
    }

    /// Bytes that are part of the program.
    pub(crate) fn from_static(name: &str, bytes: &'static [u8]) -> Source {
        Source::of(name.to_owned(), Bytes::Static(bytes))
    }

    /// Bytes in memory.
    pub(crate) fn from_bytes(name: &str, bytes: Vec<u8>) -> Source {
        Source::of(name.to_owned(), Bytes::Owned(bytes))
    }

    fn of(name: String, bytes: Bytes) -> Source {
        Source { name, bytes }
    }

    /// Refuses a file that was written to since it was mapped.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        let Bytes::Mapped(mapped) = &self.bytes else {
            return Ok(());
        };
        let io = |source| WeightsError::Io {
            path: self.name.clone(),
            action: "look at the open file",
            source,
        };
        let is = mapped.file.metadata().map_err(io)?;
        let facts = |of: &Metadata| (of.len(), of.modified().ok());
        match facts(&is) == facts(&mapped.was) {
            true => Ok(()),
            false => Err(WeightsError::Changed {
                path: self.name.clone(),
            }),
        }
    }

    pub(crate) fn part(&self) -> WeightPart<'_> {
        match &self.bytes {
            Bytes::Empty => WeightPart::Memory(&[]),
            Bytes::Mapped(_) => WeightPart::File(self.name.clone().into()),
            Bytes::Static(bytes) => WeightPart::Memory(bytes),
            Bytes::Owned(bytes) => WeightPart::Memory(bytes),
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Empty => &[],
            Bytes::Mapped(mapped) => &mapped.map,
            Bytes::Static(bytes) => bytes,
            Bytes::Owned(bytes) => bytes,
        }
    }

    /// Whether [`Source::release`] has an effect.
    pub(crate) fn can_release(&self) -> bool {
        match self.bytes {
            Bytes::Mapped(_) => cfg!(unix),
            Bytes::Static(_) => cfg!(target_os = "linux"),
            Bytes::Empty | Bytes::Owned(_) => false,
        }
    }

    /// Bytes that take memory once they were read, and go on taking it.
    pub(crate) fn staying_bytes(&self) -> usize {
        match &self.bytes {
            Bytes::Static(bytes) if !self.can_release() => bytes.len(),
            // What is owned takes memory from the start.
            _ => 0,
        }
    }

    /// Lets the operating system take back the pages of a range; a later read loads them again.
    /// Advice only: where it is not offered, nothing happens.
    pub(crate) fn release(&self, range: Range<usize>) {
        if range.is_empty() || range.end > self.bytes().len() {
            return;
        }
        match &self.bytes {
            #[cfg(unix)]
            Bytes::Mapped(Mapped { map, .. }) => {
                // SAFETY: the map is read-only and backed by a file, so a dropped page is read again
                // from that file on the next access and references into the map stay valid.
                let _ = unsafe {
                    map.unchecked_advise_range(
                        memmap2::UncheckedAdvice::DontNeed,
                        range.start,
                        range.len(),
                    )
                };
            }
            #[cfg(target_os = "linux")]
            Bytes::Static(bytes) => release_static(&bytes[range]),
            _ => {}
        }
    }

    /// Asks the disk for `range`. Advice only, like [`Source::release`].
    pub(crate) fn read_ahead(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Bytes::Mapped(Mapped { map, .. }) = &self.bytes {
            for start in range.clone().step_by(REQUEST) {
                let len = REQUEST.min(range.end - start);
                let _ = map.advise_range(memmap2::Advice::WillNeed, start, len);
            }
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

/// Gives back the pages that lie in `bytes` whole; those on its edges hold something else, too.
#[cfg(target_os = "linux")]
fn release_static(bytes: &'static [u8]) {
    let page = rustix::param::page_size();
    let before = bytes.as_ptr().align_offset(page);
    let Some(inside) = bytes.get(before..).filter(|rest| rest.len() >= page) else {
        return;
    };
    let length = inside.len() - inside.len() % page;
    // SAFETY: the pages hold nothing but immutable bytes without addresses in them, which the system
    // maps privately from the program's file and nobody writes to: a dropped page is read again from that
    // file, which cannot be written to while it runs.
    let _ = unsafe {
        rustix::mm::madvise(
            inside.as_ptr().cast_mut().cast(),
            length,
            rustix::mm::Advice::LinuxDontNeed,
        )
    };
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// Too large for the pages around it to matter, and without zeros, which would lie elsewhere.
    static PART_OF_THE_PROGRAM: [u8; 4 << 20] = [7; 4 << 20];

    fn file_bytes_in_memory() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssFile:"));
        let kibibytes = line.unwrap().trim().strip_suffix("kB").unwrap().trim();
        kibibytes.parse::<usize>().unwrap() * 1024
    }

    #[test]
    fn weights_inside_the_program_are_given_back_and_read_again() {
        let source = Source::from_static("inside", &PART_OF_THE_PROGRAM);
        let sum = || {
            source
                .bytes()
                .iter()
                .map(|&byte| u64::from(byte))
                .sum::<u64>()
        };
        let whole = 7 * (4 << 20);
        assert_eq!(std::hint::black_box(sum()), whole);
        let before = file_bytes_in_memory();
        source.release(0..source.bytes().len());
        let after = file_bytes_in_memory();
        assert!(after + (3 << 20) < before, "{before} bytes, then {after}");
        assert_eq!(std::hint::black_box(sum()), whole);
        assert!(source.can_release() && source.staying_bytes() == 0);
        // Ranges that hold no whole page, and one beyond the end.
        source.release(1..100);
        source.release(source.bytes().len()..source.bytes().len() + 1);
        assert_eq!(sum(), whole);
    }
}
