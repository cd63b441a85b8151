//! The documents a question is about: files, folders, globs and standard input.

mod kind;
mod pattern;
mod walk;

use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::input::{self, Begun, LARGEST_TEXT};
use kind::Unreadable;
use pattern::Pattern;
use walk::Found;

/// What a document from standard input is called.
const STDIN_NAME: &str = "standard input";

/// Texts in the order given, and what was left out.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Documents {
    /// At least one.
    pub(crate) list: Vec<Document>,
    /// What was not read, and why; for the user to see.
    pub(crate) notices: Vec<String>,
    /// Bytes that further documents may have.
    room: u64,
}

/// One document.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Document {
    /// The path as the user would write it.
    pub(crate) name: String,
    /// The text, without a byte order mark.
    pub(crate) text: String,
}

impl Documents {
    /// Reads what `--file` was given, in that order. A file that was named must be text; in folders
    /// and globs what is no text is left out, with a notice.
    ///
    /// # Errors
    /// Paths that do not exist, named files that are no text, folders without text, more text than
    /// any model reads, and nothing to read at all.
    pub(crate) fn read(sources: &[PathBuf]) -> Result<Documents, Failure> {
        Documents::read_within(sources, LARGEST_TEXT)
    }

    /// The same with at most `room` bytes of text.
    fn read_within(sources: &[PathBuf], room: u64) -> Result<Documents, Failure> {
        let mut documents = Documents {
            room,
            ..Documents::default()
        };
        if sources
            .iter()
            .filter(|source| input::is_stdin(source))
            .count()
            > 1
        {
            return Err(Failure::wrong(
                "--file -: standard input can be read once only",
            ));
        }
        for source in sources {
            documents.read_source(source)?;
        }
        Ok(documents)
    }

    /// The text the model reads: the document alone, or each of several after a line with its name.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for document in &self.list {
            if self.list.len() > 1 {
                text.push_str(&name_line(&document.name));
            }
            text.push_str(&document.text);
            if self.list.len() > 1 && !document.text.ends_with('\n') {
                text.push('\n');
            }
        }
        text
    }

    /// What the documents are called in a list: the first one's name, and how many follow.
    pub(crate) fn title(&self) -> String {
        match &self.list[..] {
            [] => String::new(),
            [only] => only.name.clone(),
            [first, rest @ ..] => format!("{} and {} more", first.name, rest.len()),
        }
    }

    fn read_source(&mut self, source: &Path) -> Result<(), Failure> {
        if input::is_stdin(source) {
            let text = read_stdin(self.room)?;
            self.push(STDIN_NAME.to_owned(), text);
            return Ok(());
        }
        let name = source.display().to_string();
        match fs::metadata(source) {
            Ok(metadata) if metadata.is_dir() => self.read_many(source, Found::below(source)?),
            Ok(metadata) if !metadata.is_file() => Err(refused(&name, &Unreadable::Special)),
            Ok(_) => {
                let text = self.text_of(source).map_err(|why| refused(&name, &why))?;
                self.push(name, text);
                Ok(())
            }
            // What is no file may be a pattern, also below something that is no folder.
            Err(error) if is_nowhere(&error) => match Pattern::parse(source)? {
                Some(pattern) => self.read_many(source, Found::matching(&pattern)?),
                None => Err(Failure::io(&name, &error)),
            },
            Err(error) => Err(Failure::io(&name, &error)),
        }
    }

    fn read_many(&mut self, source: &Path, found: Found) -> Result<(), Failure> {
        let before = self.list.len();
        let mut left_out = found.left_out;
        for path in found.files {
            crate::interrupt::check()?;
            let name = path.display().to_string();
            // A pipe would be waited for, and a device read without end.
            let read = match fs::metadata(&path) {
                Ok(metadata) if !metadata.is_file() => Err(Unreadable::Special),
                _ => self.text_of(&path),
            };
            match read {
                Ok(text) => self.push(name, text),
                Err(why @ Unreadable::NoRoom) => return Err(refused(&name, &why)),
                Err(why) => left_out.push((why, name)),
            }
        }
        let notices = kind::notices(left_out);
        if self.list.len() == before {
            let found = if notices.is_empty() {
                "nothing".to_owned()
            } else {
                notices.join("; ")
            };
            return Err(Failure::wrong(format!(
                "{}: no text found here ({found})",
                source.display()
            )));
        }
        self.notices.extend(notices);
        Ok(())
    }

    /// The text of a file. What its beginning shows to be no text is not read to its end.
    fn text_of(&self, path: &Path) -> Result<String, Unreadable> {
        let begun = Begun::open(path).map_err(Unreadable::Io)?;
        kind::check(path, begun.head())?;
        let most = match begun.bytes() {
            // By itself, whatever was read before.
            bytes if bytes > LARGEST_TEXT => LARGEST_TEXT,
            _ => self.room,
        };
        kind::text(begun.read(most).map_err(|error| not_read(error, most))?)
    }

    fn push(&mut self, name: String, text: String) {
        self.room = self.room.saturating_sub(text.len() as u64);
        self.list.push(Document { name, text });
    }
}

/// The line before each of several documents.
pub(crate) fn name_line(name: &str) -> String {
    format!("File: {name}\n")
}

fn read_stdin(room: u64) -> Result<String, Failure> {
    if io::stdin().is_terminal() {
        crate::output::note("reading the document from the terminal; end it with Ctrl-D");
    }
    let read = || {
        let bytes = input::stdin(room).map_err(|error| not_read(error, room))?;
        kind::check_unnamed(&bytes[..bytes.len().min(input::HEAD)])?;
        kind::text(bytes)
    };
    read().map_err(|why| refused(STDIN_NAME, &why))
}

/// Why reading of at most `most` bytes failed.
fn not_read(error: io::Error, most: u64) -> Unreadable {
    match error.kind() {
        io::ErrorKind::FileTooLarge if most < LARGEST_TEXT => Unreadable::NoRoom,
        _ => Unreadable::Io(error),
    }
}

fn refused(name: &str, why: &Unreadable) -> Failure {
    match why {
        Unreadable::Io(error) => Failure::io(name, error),
        why => Failure::wrong(format!("{name}: {why}")),
    }
}

/// Whether there is nothing of that name.
fn is_nowhere(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new(files: &[(&str, &[u8])]) -> Folder {
            let folder = tempfile::tempdir().unwrap();
            for (name, bytes) in files {
                let path = folder.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, bytes).unwrap();
            }
            Folder(folder)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        /// Names relative to the folder, and the notices.
        fn read(&self, sources: &[&str]) -> Result<(Vec<String>, Vec<String>), String> {
            self.read_within(sources, LARGEST_TEXT)
        }

        fn read_within(
            &self,
            sources: &[&str],
            room: u64,
        ) -> Result<(Vec<String>, Vec<String>), String> {
            let sources: Vec<PathBuf> = sources.iter().map(|source| self.path(source)).collect();
            let documents = Documents::read_within(&sources, room)
                .map_err(|failure| failure.message().unwrap())?;
            let base = format!("{}/", self.0.path().display());
            let names = documents
                .list
                .iter()
                .map(|document| document.name.replace(&base, ""));
            let notices = documents
                .notices
                .iter()
                .map(|notice| notice.replace(&base, ""));
            Ok((names.collect(), notices.collect()))
        }
    }

    #[test]
    fn files_keep_the_order_given_and_get_name_lines_when_several() {
        let folder = Folder::new(&[("b.txt", b"two"), ("a.txt", b"one\n")]);
        let read = |names: &[&str]| {
            let sources: Vec<PathBuf> = names.iter().map(|name| folder.path(name)).collect();
            Documents::read(&sources).unwrap().text()
        };
        assert_eq!(read(&["a.txt"]), "one\n");
        let (a, b) = (folder.path("a.txt"), folder.path("b.txt"));
        let (a, b) = (a.display(), b.display());
        assert_eq!(
            read(&["b.txt", "a.txt"]),
            format!("File: {b}\ntwo\nFile: {a}\none\n")
        );
    }

    #[test]
    fn folders_are_read_in_order_without_what_is_ignored_or_no_text() {
        let folder = Folder::new(&[
            (".gitignore", b"target\n*.log\n"),
            ("target/out.txt", b"built"),
            ("run.log", b"noise"),
            ("src/b.rs", b"fn b() {}"),
            ("src/a.rs", b"fn a() {}"),
            ("README.md", b"# read me"),
            ("image.png", b"\x89PNG\r\n\x1a\n\0\0"),
            ("old.txt", b"caf\xe9"),
            ("paper.pdf", b"%PDF-1.7 ..."),
            ("__init__.py", b""),
        ]);
        let (names, notices) = folder.read(&["."]).unwrap();
        let names: Vec<&str> = names
            .iter()
            .map(|name| name.trim_start_matches("./"))
            .collect();
        assert_eq!(names, ["README.md", "src/a.rs", "src/b.rs"]);
        let notices = notices.join("\n").replace("./", "");
        for said in [
            "binary",
            "image.png",
            "byte 3",
            "old.txt",
            "PDF",
            "paper.pdf",
            "__init__.py",
        ] {
            assert!(notices.contains(said), "{said} is missing in {notices}");
        }
        // What lies below a folder that is left out goes without saying.
        assert!(!notices.contains("out.txt"), "{notices}");
    }

    #[cfg(unix)]
    #[test]
    fn nothing_in_a_folder_is_left_out_in_silence() {
        let folder = Folder::new(&[
            (".gitignore", b"target\n*.log\n"),
            (".ignore", b"b.txt\n"),
            (".github/workflow.yml", b"on: push"),
            ("target/out.txt", b"built"),
            ("run.log", b"noise"),
            ("a.txt", b"a"),
            ("b.txt", b"b"),
            ("sub/.env", b"TOKEN=1"),
        ]);
        std::os::unix::fs::symlink(folder.path("a.txt"), folder.path("sub/link.txt")).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(folder.path("socket")).unwrap();
        let (names, notices) = folder.read(&["."]).unwrap();
        drop(socket);
        let names: Vec<String> = names.iter().map(|name| name.replace("./", "")).collect();
        // What another program's .ignore says is nothing to this one.
        assert_eq!(names, ["a.txt", "b.txt"]);
        let told = |words: &str, names: &[&str]| {
            let notice = notices.iter().find(|notice| notice.contains(words));
            let notice = notice.unwrap_or_else(|| panic!("no {words:?} in {notices:?}"));
            let listed = notice.rsplit(": ").next().unwrap().replace("./", "");
            assert_eq!(listed.split(", ").collect::<Vec<_>>(), names, "{notices:?}");
        };
        told("a link", &["sub/link.txt"]);
        told("a pipe or a device", &["socket"]);
        told("hidden", &[".github", ".gitignore", ".ignore", "sub/.env"]);
        told("named by .gitignore", &["run.log", "target"]);
        // A pattern finds what a name beginning with a dot or a link names.
        assert_eq!(folder.read(&["sub/*"]).unwrap().0, ["sub/link.txt"]);
        assert_eq!(folder.read(&["sub/.e*"]).unwrap().0, ["sub/.env"]);
    }

    #[test]
    fn globs_match_and_say_when_they_do_not() {
        let folder = Folder::new(&[
            ("a.txt", b"a"),
            ("b.txt", b"b"),
            ("c.md", b"c"),
            ("d.bin", b"\0"),
        ]);
        assert_eq!(folder.read(&["*.txt"]).unwrap().0, ["a.txt", "b.txt"]);
        let (names, notices) = folder.read(&["*"]).unwrap();
        assert_eq!(names, ["a.txt", "b.txt", "c.md"]);
        assert!(notices[0].contains("d.bin"), "{notices:?}");
        assert!(
            folder
                .read(&["*.rs"])
                .unwrap_err()
                .contains("no file matches")
        );
        assert!(folder.read(&["[a"]).unwrap_err().contains("not a pattern"));
        // A name that exists is a name, whatever characters it holds.
        let folder = Folder::new(&[("a[1].txt", b"a")]);
        assert_eq!(folder.read(&["a[1].txt"]).unwrap().0, ["a[1].txt"]);
        // Nor is there anything below a file.
        let below = folder.read(&["a[[]1].txt/*"]).unwrap_err();
        assert!(below.contains("no file matches"), "{below}");
    }

    #[test]
    fn globs_read_every_file_once_and_hidden_ones_only_by_name() {
        let folder = Folder::new(&[
            (".env", b"TOKEN=1"),
            (".git/config", b"[core]"),
            ("a.txt", b"a"),
            ("sub/.hidden.txt", b"h"),
            ("sub/b.txt", b"b"),
            ("sub/deep/c.txt", b"c"),
        ]);
        let all = ["a.txt", "sub/b.txt", "sub/deep/c.txt"];
        for pattern in ["**/*", "**", "*", "**/*.txt", "**/**/?*"] {
            assert_eq!(folder.read(&[pattern]).unwrap().0, all, "{pattern}");
        }
        assert_eq!(folder.read(&["sub/**/c.*"]).unwrap().0, all[2..]);
        assert_eq!(folder.read(&["*/../s?b/deep/*"]).unwrap().0.len(), 1);
        assert_eq!(folder.read(&[".e*"]).unwrap().0, [".env"]);
        assert_eq!(folder.read(&[".g*/[a-d]*"]).unwrap().0, [".git/config"]);
        assert_eq!(
            folder.read(&["*/.hidden.*"]).unwrap().0,
            ["sub/.hidden.txt"]
        );
    }

    #[cfg(unix)]
    #[test]
    fn names_that_are_not_utf_8_are_read_like_others() {
        use std::os::unix::ffi::OsStrExt;
        let folder = Folder::new(&[("a.txt", b"a")]);
        let name = std::ffi::OsStr::from_bytes(b"caf\xe9.txt");
        fs::write(folder.0.path().join(name), "b").unwrap();
        for sources in [vec![folder.path("*.txt")], vec![folder.path("")]] {
            let documents = Documents::read(&sources).unwrap();
            let texts = documents.list.iter().map(|one| one.text.as_str());
            assert_eq!(texts.collect::<Vec<_>>(), ["a", "b"], "{sources:?}");
        }
        let named = Documents::read(&[folder.0.path().join(name)]).unwrap();
        assert!(named.list[0].name.ends_with("caf\u{fffd}.txt"));
        let wild = std::ffi::OsStr::from_bytes(b"caf\xe9*");
        let refused = Documents::read(&[folder.0.path().join(wild)]).unwrap_err();
        assert!(refused.message().unwrap().contains("not UTF-8"));
    }

    #[test]
    fn documents_are_bounded_together() {
        let folder = Folder::new(&[
            ("a.txt", b"1234567"),
            ("b.txt", b"1234567"),
            ("c.bin", b"\0"),
        ]);
        assert_eq!(folder.read_within(&["."], 14).unwrap().0.len(), 2);
        for sources in [&["."][..], &["*.txt"], &["a.txt", "b.txt"]] {
            let message = folder.read_within(sources, 13).unwrap_err();
            assert!(
                message.contains("b.txt: with it the documents are longer than 1.0 GiB together"),
                "{message}"
            );
        }
    }

    #[test]
    fn what_is_no_text_is_told_by_its_beginning() {
        let folder = Folder::new(&[
            ("a.txt", b"a"),
            ("b.dump", b""),
            ("long.txt", &[b'x'; 9000]),
        ]);
        // Longer than any text, and none of it on disk.
        let dump = fs::File::create(folder.path("b.dump")).unwrap();
        dump.set_len(3 << 30).unwrap();
        let begun = std::time::Instant::now();
        let (names, notices) = folder.read(&["."]).unwrap();
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(
            notices[0].contains("binary") && notices[0].contains("b.dump"),
            "{notices:?}"
        );
        assert!(begun.elapsed().as_secs() < 5, "it was read");
        // Characters may go on beyond what is looked at.
        let umlauts = format!("x{}", "ä".repeat(5000));
        let folder = Folder::new(&[
            ("a.txt", umlauts.as_bytes()),
            ("b.txt", b"\xef\xbb\xbfx\xff"),
        ]);
        let (names, notices) = folder.read(&["."]).unwrap();
        assert_eq!(names.len(), 1);
        assert!(notices[0].contains("b.txt (byte 4)"), "{notices:?}");
    }

    #[test]
    fn named_files_that_are_no_text_are_refused_with_a_hint() {
        let folder = Folder::new(&[
            ("a.pdf", b"%PDF-1.4"),
            ("b.docx", b"PK\x03\x04word/document.xml"),
            ("c.html", b"<!DOCTYPE html><p>x"),
            ("d", b"  <HTML><p>x"),
            ("e.bin", b"a\0b"),
            ("f.txt", b"ab\xff"),
            ("g.txt", b""),
            ("h.txt", b"\xff\xfea\0b\0"),
        ]);
        for (name, said) in [
            ("a.pdf", "pdftotext"),
            ("b.docx", "pandoc"),
            ("c.html", "pandoc"),
            ("d", "HTML"),
            ("e.bin", "binary"),
            ("f.txt", "byte 2"),
            ("g.txt", "empty"),
            ("h.txt", "UTF-16"),
            ("missing.txt", "no such file"),
        ] {
            let message = folder.read(&[name]).unwrap_err();
            assert!(
                message.contains(said) && message.contains(name),
                "{name}: {message}"
            );
        }
    }

    #[test]
    fn an_empty_folder_is_refused() {
        let folder = Folder::new(&[("x/only.bin", b"\0")]);
        let message = folder.read(&["x"]).unwrap_err();
        assert!(
            message.contains("no text found here") && message.contains("only.bin"),
            "{message}"
        );
        fs::create_dir(folder.path("y")).unwrap();
        assert!(folder.read(&["y"]).unwrap_err().contains("nothing"));
    }

    #[test]
    fn a_byte_order_mark_is_no_text() {
        let folder = Folder::new(&[("a.txt", b"\xef\xbb\xbfhello")]);
        assert_eq!(
            Documents::read(&[folder.path("a.txt")]).unwrap().text(),
            "hello"
        );
    }
}
