//! What goes to standard output and standard error.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::failure::Failure;

/// Writes text to standard output and flushes it, so that streamed answers appear as they come.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => Failure::io("standard output", &error),
        })
}

/// Prints one JSON object and nothing else.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::failed(format!("the result cannot be written: {error}")))?;
    text.push('\n');
    print(&text)
}

/// Writes a line to standard error. That nobody reads it is no reason to fail.
pub(crate) fn note(line: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// What was told while it could not wait.
static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Tells a notice, unless it was told at once.
pub(crate) fn tell(notice: &str) {
    if !told().iter().any(|known| known == notice) {
        note(format!("note: {notice}"));
    }
}

/// Tells a notice that says why nothing goes on, before the command is over. A bar on the line gives way.
pub(crate) fn tell_at_once(notice: &str) {
    let clear = match io::stderr().is_terminal() {
        true => "\r\x1b[K",
        false => "",
    };
    note(format!("{clear}note: {notice}"));
    told().push(notice.to_owned());
}

fn told() -> std::sync::MutexGuard<'static, Vec<String>> {
    // A list is whole at every unlock.
    TOLD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A table with columns as wide as their widest cell; the first row is the heading. Columns in
/// `right` are aligned to the right.
pub(crate) fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..columns)
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            if right.contains(&column) {
                line.push_str(&format!("{cell:>width$}  "));
            } else {
                line.push_str(&format!("{cell:width$}  "));
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align() {
        let rows = [["name", "size"], ["a", "10"], ["longer", "9"]];
        let rows: Vec<Vec<String>> = rows
            .iter()
            .map(|row| row.iter().map(|cell| cell.to_string()).collect())
            .collect();
        assert_eq!(
            table(&rows, &[1]),
            "name    size\na         10\nlonger     9\n"
        );
    }
}
