//! A text on its way to a client: calls are taken out, and spaces around it, unless it is wanted as it is.

use crate::edges::Trimmer;
use crate::tools::{Piece, Reader, Toolbox};

/// A text on its way to a client: calls are taken out, and spaces around it.
pub(crate) struct Reading {
    reader: Option<Reader>,
    trimmer: Option<Trimmer>,
    /// Calls so far.
    pub(crate) calls: usize,
    most_calls: usize,
}

impl Reading {
    /// Of a text in which the functions of `toolbox` may be called.
    pub(crate) fn new(toolbox: Option<&Toolbox>) -> Reading {
        Reading {
            reader: toolbox.map(Toolbox::reader),
            trimmer: Some(Trimmer::default()),
            calls: 0,
            most_calls: usize::MAX,
        }
    }

    /// Of a text that is wanted as it is.
    pub(crate) fn as_is() -> Reading {
        Reading {
            reader: None,
            trimmer: None,
            calls: 0,
            most_calls: usize::MAX,
        }
    }

    /// The same, of which one call is the most.
    pub(crate) fn at_most(mut self, several: Option<bool>) -> Reading {
        if several == Some(false) {
            self.most_calls = 1;
        }
        self
    }

    /// All that comes of a whole text.
    pub(crate) fn whole(&mut self, text: &str) -> Vec<Piece> {
        let mut pieces = self.push(text);
        pieces.extend(self.finish());
        pieces
    }

    /// Takes the next piece; returns what is certain.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Piece> {
        match &mut self.reader {
            None => self.trim(vec![Piece::Text(text.to_owned())]),
            Some(reader) => {
                let pieces = reader.push(text);
                self.trim(pieces)
            }
        }
    }

    /// Ends the text.
    pub(crate) fn finish(&mut self) -> Vec<Piece> {
        match &mut self.reader {
            None => Vec::new(),
            Some(reader) => {
                let pieces = reader.finish();
                self.trim(pieces)
            }
        }
    }

    fn trim(&mut self, pieces: Vec<Piece>) -> Vec<Piece> {
        let mut out = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Text(text) => {
                    let text = match &mut self.trimmer {
                        Some(trimmer) => trimmer.push(&text),
                        None => text,
                    };
                    if !text.is_empty() {
                        out.push(Piece::Text(text));
                    }
                }
                Piece::Call(_) if self.calls == self.most_calls => {}
                Piece::Call(call) => {
                    self.calls += 1;
                    out.push(Piece::Call(call));
                }
            }
        }
        out
    }
}
