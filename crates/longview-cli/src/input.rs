//! Reading files, standard input and variables, never without end.

use std::env;
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::path::Path;

use crate::failure::Failure;
use crate::interrupt;

/// What stands for standard input where a file is named.
const STDIN: &str = "-";

/// The most bytes of one text, and of all documents together; beyond what any model reads.
pub(crate) const LARGEST_TEXT: u64 = 1 << 30;

/// How many bytes of a file are looked at to tell what it is.
pub(crate) const HEAD: usize = 8192;

/// Whether a path stands for standard input.
pub(crate) fn is_stdin(path: &Path) -> bool {
    path == Path::new(STDIN)
}

/// A file of which only the beginning was read.
pub(crate) struct Begun {
    file: File,
    bytes: u64,
    head: Vec<u8>,
}

impl Begun {
    /// Opens a file that was named, which may be a pipe. One Ctrl-C ends the program meanwhile.
    pub(crate) fn open(path: &Path) -> io::Result<Begun> {
        interrupt::while_waiting(|| {
            let file = File::open(path)?;
            let mut head = Vec::new();
            (&file).take(HEAD as u64).read_to_end(&mut head)?;
            Ok(Begun {
                bytes: file.metadata()?.len(),
                file,
                head,
            })
        })
    }

    /// How many bytes it had then; 0 for a pipe.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Its first bytes: all of a short file.
    pub(crate) fn head(&self) -> &[u8] {
        &self.head
    }

    /// All of its bytes, of which there may be `most`. One Ctrl-C ends the program meanwhile.
    pub(crate) fn read(self, most: u64) -> io::Result<Vec<u8>> {
        if self.bytes > most {
            return Err(too_large(most));
        }
        interrupt::while_waiting(|| bytes((&self.head[..]).chain(self.file), most))
    }
}

/// The bytes of standard input, of which there may be `most`. One Ctrl-C ends the program meanwhile.
pub(crate) fn stdin(most: u64) -> io::Result<Vec<u8>> {
    interrupt::while_waiting(|| bytes(io::stdin().lock(), most))
}

/// What a variable of the environment says; `None` where it is empty or not set.
pub(crate) fn variable(name: &str) -> Result<Option<String>, Failure> {
    let value = env::var_os(name).filter(|value| !value.is_empty());
    let text = value.map(|value| value.into_string()).transpose();
    text.map_err(|_| Failure::wrong(format!("${name}: its value is not UTF-8 text")))
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
