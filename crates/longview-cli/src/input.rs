//! Reading files and standard input, never without end.

use std::fs::{self, File};
use std::io::{self, BufRead, Read};
use std::path::Path;

use crate::failure::Failure;
use crate::interrupt;

/// Where `-` reads from.
pub(crate) const STDIN: &str = "-";

/// The most bytes of one text; beyond what any model reads.
pub(crate) const LARGEST_TEXT: u64 = 1 << 30;

/// The bytes of standard input. One Ctrl-C ends the program meanwhile.
pub(crate) fn stdin() -> Result<Vec<u8>, Failure> {
    interrupt::while_waiting(|| bytes(io::stdin().lock(), LARGEST_TEXT))
        .map_err(|error| Failure::io("standard input", &error))
}

/// The bytes of a file that was named, which may be a pipe. One Ctrl-C ends the program meanwhile.
pub(crate) fn file(path: &Path) -> io::Result<Vec<u8>> {
    interrupt::while_waiting(|| {
        let metadata = fs::metadata(path)?;
        if metadata.len() > LARGEST_TEXT {
            return Err(too_large(LARGEST_TEXT));
        }
        bytes(File::open(path)?, LARGEST_TEXT)
    })
}

/// A line of standard input with its end, or `None` at the end of input.
pub(crate) fn line() -> Result<Option<String>, Failure> {
    let mut line = String::new();
    let mut stdin = io::stdin().lock().take(LARGEST_TEXT);
    match interrupt::while_waiting(|| stdin.read_line(&mut line)) {
        Ok(0) => Ok(None),
        Ok(length) if length as u64 == LARGEST_TEXT => {
            Err(Failure::io("standard input", &too_large(LARGEST_TEXT)))
        }
        Ok(_) => Ok(Some(line)),
        Err(error) => Err(Failure::io("standard input", &error)),
    }
}

fn bytes(from: impl Read, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One more tells a text that is too long from one that just fits.
    from.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(too_large(most));
    }
    Ok(bytes)
}

fn too_large(most: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::FileTooLarge,
        format!(
            "longer than the {} that a text may have",
            longview::human_bytes(most)
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_ends_at_the_bound() {
        assert_eq!(bytes(&b"abc"[..], 3).unwrap(), b"abc");
        let error = bytes(io::repeat(7), 1000).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert!(error.to_string().contains("longer than"), "{error}");
    }
}
