//! What a file is: text that can be read, or something else.

use std::fmt;
use std::io;
use std::path::Path;

use longview::human_bytes;

use crate::input::LARGEST_TEXT;

/// What some programs put before a text.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// How many names a notice lists before it counts the rest.
const NAMES: usize = 100;

/// Why a file is not read.
#[derive(Debug)]
pub(super) enum Unreadable {
    /// A kind of document that must be converted first.
    Convert(&'static Kind),
    /// Bytes that are no text.
    Binary,
    /// Text in UTF-16.
    Utf16,
    /// Text in another encoding; the first wrong byte.
    Encoding(usize),
    /// No bytes.
    Empty,
    /// A pipe, a device or a socket.
    Special,
    /// A link in a folder.
    Link,
    /// A file or folder whose name begins with a dot.
    Hidden,
    /// A file or folder that `.gitignore` names.
    Ignored,
    /// More bytes than the documents before it have left room for.
    NoRoom,
    /// The operating system refuses.
    Io(io::Error),
}

/// A kind of document that must be converted first.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kind {
    name: &'static str,
    extensions: &'static [&'static str],
    hint: &'static str,
}

static PDF: Kind = Kind {
    name: "a PDF document",
    extensions: &["pdf"],
    hint: "convert it to text first, for example with: pdftotext -layout FILE.pdf FILE.txt",
};

static OFFICE: Kind = Kind {
    name: "an office document (DOCX or the like)",
    extensions: &["docx", "odt", "pptx", "xlsx", "epub", "doc", "rtf"],
    hint: "convert it to text first, for example with: pandoc -t plain FILE.docx -o FILE.txt",
};

static HTML: Kind = Kind {
    name: "an HTML page",
    extensions: &["html", "htm", "xhtml"],
    hint: "convert it to text first, for example with: pandoc -t plain FILE.html -o FILE.txt; \
           to read the markup itself, pass it through --file -",
};

/// Refuses a file that its name or its first bytes show to be no plain text.
pub(super) fn check(path: &Path, head: &[u8]) -> Result<(), Unreadable> {
    let extension = path
        .extension()
        .and_then(|extension| extension.to_str())
        .unwrap_or("");
    let extension = extension.to_ascii_lowercase();
    let named = |kind: &&&Kind| kind.extensions.contains(&extension.as_str());
    if let Some(kind) = [&PDF, &OFFICE, &HTML].iter().find(named) {
        return Err(Unreadable::Convert(kind));
    }
    if is_html(head) {
        return Err(Unreadable::Convert(&HTML));
    }
    check_unnamed(head)
}

/// The same for bytes that came without a name; HTML may pass.
pub(super) fn check_unnamed(head: &[u8]) -> Result<(), Unreadable> {
    if head.starts_with(b"%PDF-") {
        return Err(Unreadable::Convert(&PDF));
    }
    let zip = head.starts_with(b"PK\x03\x04");
    let parts: [&[u8]; 4] = [b"word/", b"ppt/", b"xl/", b"mimetypeapplication/"];
    if zip && parts.iter().any(|part| contains(head, part)) {
        return Err(Unreadable::Convert(&OFFICE));
    }
    if head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff") {
        return Err(Unreadable::Utf16);
    }
    if zip || head.contains(&0) {
        return Err(Unreadable::Binary);
    }
    match std::str::from_utf8(head) {
        // The last character may go on beyond them.
        Err(error) if error.error_len().is_some() => Err(Unreadable::Encoding(error.valid_up_to())),
        _ => Ok(()),
    }
}

/// The text of all of a file's bytes, without a byte order mark.
pub(super) fn text(bytes: Vec<u8>) -> Result<String, Unreadable> {
    let mut text = String::from_utf8(bytes).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        Unreadable::Encoding(place)
    })?;
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len_utf8());
    }
    if text.is_empty() {
        return Err(Unreadable::Empty);
    }
    Ok(text)
}

/// One notice for each reason, with the names.
pub(super) fn notices(left_out: Vec<(Unreadable, String)>) -> Vec<String> {
    let mut reasons: Vec<(String, Vec<String>)> = Vec::new();
    for (why, name) in left_out {
        // The place of a wrong byte belongs to the file, the rest to the reason.
        let (reason, name) = match &why {
            Unreadable::Encoding(place) => (
                "not UTF-8 text".to_owned(),
                format!("{name} (byte {place})"),
            ),
            Unreadable::Convert(kind) => (format!("{}; {}", kind.name, kind.hint), name),
            other => (other.to_string(), name),
        };
        match reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, names)) => names.push(name),
            None => reasons.push((reason, vec![name])),
        }
    }
    let notice = |(reason, names): (String, Vec<String>)| {
        let shown = names[..names.len().min(NAMES)].join(", ");
        let more = match names.len().saturating_sub(NAMES) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!("left out, {reason}: {shown}{more}")
    };
    reasons.into_iter().map(notice).collect()
}

fn is_html(bytes: &[u8]) -> bool {
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(256)]).to_ascii_lowercase();
    let head = head.trim_start_matches(|c: char| c.is_whitespace() || c == BYTE_ORDER_MARK);
    head.starts_with("<!doctype html") || head.starts_with("<html")
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unreadable::Convert(kind) => write!(f, "this is {}; {}", kind.name, kind.hint),
            Unreadable::Binary => f.write_str("a binary file, not text"),
            Unreadable::Utf16 => f.write_str(
                "UTF-16 text; convert it first, for example with: iconv -f UTF-16 -t UTF-8",
            ),
            Unreadable::Encoding(place) => write!(
                f,
                "not UTF-8 text: byte {place} is wrong; convert it first, for example with: \
                 iconv -f WINDOWS-1252 -t UTF-8"
            ),
            Unreadable::Special => {
                f.write_str("a pipe or a device, not a file; to read it, pass it through --file -")
            }
            Unreadable::Link => f.write_str(
                "a link, which is followed only where --file names it or a pattern matches it",
            ),
            Unreadable::Hidden => {
                f.write_str("hidden, and read only where --file names it or a pattern with the dot")
            }
            Unreadable::Ignored => {
                f.write_str("named by .gitignore, and read only where --file names it or a pattern")
            }
            Unreadable::NoRoom => write!(
                f,
                "with it the documents are longer than {} together; give fewer",
                human_bytes(LARGEST_TEXT)
            ),
            Unreadable::Empty => f.write_str("the file is empty"),
            Unreadable::Io(error) => error.fmt(f),
        }
    }
}
