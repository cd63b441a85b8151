//! How a command can end other than well, and the exit code of each way.

use std::fmt;
use std::io;

/// Why a command did not finish.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The request itself was wrong; exit code 2.
    Wrong(anyhow::Error),
    /// It failed while running; exit code 1.
    Failed(anyhow::Error),
    /// Ctrl-C; exit code 130, as shells expect.
    Stopped,
    /// Whoever read our output has enough of it; exit code 0.
    OutputClosed,
}

impl Failure {
    /// A wrong request.
    pub(crate) fn wrong(message: impl fmt::Display) -> Failure {
        Failure::Wrong(anyhow::anyhow!("{message}"))
    }

    /// Something that failed while running.
    pub(crate) fn failed(message: impl fmt::Display) -> Failure {
        Failure::Failed(anyhow::anyhow!("{message}"))
    }

    /// An error of reading or writing `what`. A path that does not exist or may not be read was the
    /// request's fault.
    pub(crate) fn io(what: impl fmt::Display, error: &io::Error) -> Failure {
        let message = match error.kind() {
            io::ErrorKind::NotFound => format!("{what}: there is no such file or folder"),
            io::ErrorKind::PermissionDenied => {
                format!("{what}: no permission; check the owner and mode of the file or its folder")
            }
            io::ErrorKind::StorageFull => format!("{what}: no space left on the device"),
            io::ErrorKind::InvalidData => format!("{what}: not UTF-8 text"),
            io::ErrorKind::IsADirectory => format!("{what}: this is a folder, name a file"),
            io::ErrorKind::NotADirectory => {
                format!("{what}: a part of this path is a file, where a folder is needed")
            }
            io::ErrorKind::ReadOnlyFilesystem => {
                format!("{what}: nothing can be written there; choose another folder")
            }
            _ => format!("{what}: {error}"),
        };
        match error.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::InvalidFilename
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::InvalidData
            | io::ErrorKind::FileTooLarge
            | io::ErrorKind::InvalidInput => Failure::wrong(message),
            _ => Failure::failed(message),
        }
    }

    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Failure::OutputClosed => 0,
            Failure::Failed(_) => 1,
            Failure::Wrong(_) => 2,
            Failure::Stopped => 130,
        }
    }

    /// What to tell the user, if anything.
    pub(crate) fn message(&self) -> Option<String> {
        match self {
            Failure::Wrong(error) | Failure::Failed(error) => Some(format!("{error:#}")),
            Failure::Stopped => Some("stopped".to_owned()),
            Failure::OutputClosed => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_follow_the_contract() {
        assert_eq!(Failure::OutputClosed.code(), 0);
        assert_eq!(Failure::failed("x").code(), 1);
        assert_eq!(Failure::wrong("x").code(), 2);
        let missing = Failure::io("book.txt", &io::ErrorKind::NotFound.into());
        assert_eq!(missing.code(), 2);
        assert_eq!(
            missing.message().unwrap(),
            "book.txt: there is no such file or folder"
        );
        for (kind, code) in [
            (io::ErrorKind::NotADirectory, 2),
            (io::ErrorKind::InvalidFilename, 2),
            (io::ErrorKind::ReadOnlyFilesystem, 2),
            (io::ErrorKind::StorageFull, 1),
            (io::ErrorKind::TimedOut, 1),
        ] {
            assert_eq!(Failure::io("out", &kind.into()).code(), code, "{kind:?}");
        }
    }
}
