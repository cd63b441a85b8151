//! The documents a question is about: files, folders, globs and standard input.

mod kind;
mod walk;

use std::fs;
use std::io::{self, IsTerminal};
use std::path::Path;

use crate::failure::Failure;
use crate::input::{self, STDIN};
use kind::Unreadable;
use walk::Found;

/// Texts in the order given, and what was left out.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Documents {
    /// At least one.
    pub(crate) list: Vec<Document>,
    /// What was not read, and why; for the user to see.
    pub(crate) notices: Vec<String>,
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
    /// Paths that do not exist, named files that are no text, folders without text, and nothing to
    /// read at all.
    pub(crate) fn read(sources: &[String]) -> Result<Documents, Failure> {
        let mut documents = Documents::default();
        if sources.iter().filter(|source| *source == STDIN).count() > 1 {
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

    fn read_source(&mut self, source: &str) -> Result<(), Failure> {
        if source == STDIN {
            let document = read_stdin()?;
            self.list.push(document);
            return Ok(());
        }
        let path = Path::new(source);
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => self.read_many(source, Found::below(path)?),
            Ok(metadata) if !metadata.is_file() => Err(refused(source, &Unreadable::Special)),
            Ok(_) => {
                let bytes = input::file(path).map_err(|error| Failure::io(source, &error))?;
                let text = kind::text(path, bytes).map_err(|why| refused(source, &why))?;
                self.list.push(Document {
                    name: source.to_owned(),
                    text,
                });
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_glob(source) => {
                self.read_many(source, Found::matching(source)?)
            }
            Err(error) => Err(Failure::io(source, &error)),
        }
    }

    fn read_many(&mut self, source: &str, found: Found) -> Result<(), Failure> {
        let before = self.list.len();
        let unreadable = found.unreadable.into_iter();
        let mut left_out: Vec<(Unreadable, String)> = unreadable
            .map(|(place, error)| (Unreadable::Io(error), place))
            .collect();
        for path in found.files {
            crate::interrupt::check()?;
            let name = path.display().to_string();
            // A pipe would be waited for, and a device read without end.
            let read = match fs::metadata(&path) {
                Ok(metadata) if !metadata.is_file() => Err(Unreadable::Special),
                _ => match input::file(&path) {
                    Ok(bytes) => kind::text(&path, bytes),
                    Err(error) => Err(Unreadable::Io(error.to_string())),
                },
            };
            match read {
                Ok(text) => self.list.push(Document { name, text }),
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
                "{source}: no text found here ({found})"
            )));
        }
        self.notices.extend(notices);
        Ok(())
    }
}

/// The line before each of several documents.
pub(crate) fn name_line(name: &str) -> String {
    format!("File: {name}\n")
}

fn read_stdin() -> Result<Document, Failure> {
    if io::stdin().is_terminal() {
        crate::output::note("reading the document from the terminal; end it with Ctrl-D");
    }
    let text = kind::plain_text(input::stdin()?).map_err(|why| refused("standard input", &why))?;
    Ok(Document {
        name: "standard input".to_owned(),
        text,
    })
}

fn refused(name: &str, why: &Unreadable) -> Failure {
    Failure::wrong(format!("{name}: {why}"))
}

fn is_glob(source: &str) -> bool {
    source.contains(['*', '?', '['])
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

        fn path(&self, name: &str) -> String {
            self.0.path().join(name).display().to_string()
        }

        /// Names relative to the folder, and the notices.
        fn read(&self, sources: &[&str]) -> Result<(Vec<String>, Vec<String>), String> {
            let sources: Vec<String> = sources.iter().map(|source| self.path(source)).collect();
            let documents =
                Documents::read(&sources).map_err(|failure| failure.message().unwrap())?;
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
            let sources: Vec<String> = names.iter().map(|name| folder.path(name)).collect();
            Documents::read(&sources).unwrap().text()
        };
        assert_eq!(read(&["a.txt"]), "one\n");
        let (a, b) = (folder.path("a.txt"), folder.path("b.txt"));
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
        assert!(!notices.contains("run.log"), "{notices}");
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
