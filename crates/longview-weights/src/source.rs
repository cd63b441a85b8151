//! Where the bytes of a weight file are.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;

use crate::error::{Result, WeightsError};
use crate::weight_file::WeightPart;

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
    Mapped(Mmap),
    Static(&'static [u8]),
    Owned(Vec<u8>),
}

impl Source {
    /// Maps a file read-only.
    ///
    /// The map stays true to the file: a program that overwrites a file in place changes the weights
    /// under us, and one that shortens it makes later reads fail with SIGBUS. Replacing a file by
    /// renaming another over it, as well-behaved programs do, is safe.
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
        let length = file.metadata().map_err(io("read the file's size"))?.len();
        if length == 0 {
            return Ok(Source {
                name,
                bytes: Bytes::Empty,
            });
        }
        // SAFETY: the map is read-only and private to this process; what other processes may do to
        // the file while it is mapped is stated in the documentation above.
        let map = unsafe { Mmap::map(&file) }.map_err(io("map the file into memory"))?;
        Ok(Source {
            name,
            bytes: Bytes::Mapped(map),
        })
    }

    /// Bytes that are part of the program.
    pub(crate) fn from_static(name: &str, bytes: &'static [u8]) -> Source {
        Source {
            name: name.to_owned(),
            bytes: Bytes::Static(bytes),
        }
    }

    /// Bytes in memory.
    pub(crate) fn from_bytes(name: &str, bytes: Vec<u8>) -> Source {
        Source {
            name: name.to_owned(),
            bytes: Bytes::Owned(bytes),
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
            Bytes::Mapped(map) => map,
            Bytes::Static(bytes) => bytes,
            Bytes::Owned(bytes) => bytes,
        }
    }

    /// Whether [`Source::release`] has an effect.
    pub(crate) fn can_release(&self) -> bool {
        cfg!(unix) && matches!(self.bytes, Bytes::Mapped(_))
    }

    /// Lets the operating system take back the pages of a range; a later read loads them again.
    /// Advice only: where it is not offered, nothing happens.
    pub(crate) fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Bytes::Mapped(map) = &self.bytes
            && range.end <= map.len()
            && !range.is_empty()
        {
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
        #[cfg(not(unix))]
        let _ = range;
    }
}
