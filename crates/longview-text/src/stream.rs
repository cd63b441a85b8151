//! Ids to text one at a time, never splitting a character.

use std::sync::Arc;

use crate::TextError;
use crate::pieces::Pieces;

/// What the ids handed to a [`StreamDecoder`] begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// A whole text: the space that SentencePiece puts before a text is taken off again.
    Text,
    /// The continuation of a text: everything is written as it is.
    Continuation,
}

/// What becomes of special tokens in decoded text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShowSpecials {
    /// They are left out.
    Hide,
    /// They are written by name.
    Show,
}

/// Turns ids into text as they come. Bytes of an unfinished character wait for the next id; what
/// can never become one is replaced by U+FFFD, as decoding the whole at once would.
#[derive(Debug)]
pub struct StreamDecoder {
    pieces: Arc<Pieces>,
    specials: ShowSpecials,
    /// Whether the next byte written, if a space, is SentencePiece's prefix.
    drop_space: bool,
    /// At most three bytes: the beginning of a character.
    pending: Vec<u8>,
}

impl StreamDecoder {
    pub(crate) fn new(pieces: Arc<Pieces>, start: Start, specials: ShowSpecials) -> Self {
        let drop_space = start == Start::Text && pieces.space_prefix();
        Self {
            pieces,
            specials,
            drop_space,
            pending: Vec::new(),
        }
    }

    /// Takes one id and returns the text that is now certain; often empty.
    ///
    /// # Errors
    /// An id outside the vocabulary; the decoder stays usable.
    pub fn push(&mut self, id: u32) -> Result<String, TextError> {
        let mut bytes = self.pieces.known(id)?;
        if self.pieces.is_special(id) {
            if self.specials == ShowSpecials::Hide {
                return Ok(String::new());
            }
        } else if self.drop_space && !bytes.is_empty() {
            self.drop_space = false;
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.pending.extend_from_slice(bytes);
        Ok(self.take_certain())
    }

    /// Ends the text: an unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }

    fn take_certain(&mut self) -> String {
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        while let Some(chunk) = rest.utf8_chunks().next() {
            text.push_str(chunk.valid());
            rest = &rest[chunk.valid().len()..];
            // An invalid stretch at the very end may be a character still to be completed.
            if chunk.invalid().len() == rest.len() && may_continue(rest) {
                break;
            }
            if !chunk.invalid().is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
                rest = &rest[chunk.invalid().len()..];
            }
        }
        self.pending = rest.to_vec();
        text
    }
}

/// Whether `bytes` could become a character by adding bytes.
fn may_continue(bytes: &[u8]) -> bool {
    matches!(std::str::from_utf8(bytes), Err(error) if error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pieces::Piece;

    /// Ids 0–255 write their byte, 256 is special, 257 writes " a".
    fn decoder(start: Start, specials: ShowSpecials) -> StreamDecoder {
        let mut pieces: Vec<Piece> = (0..256)
            .map(|id| Piece {
                id,
                bytes: vec![id as u8],
                special: false,
            })
            .collect();
        pieces.push(Piece {
            id: 256,
            bytes: b"<e>".to_vec(),
            special: true,
        });
        pieces.push(Piece {
            id: 257,
            bytes: b" a".to_vec(),
            special: false,
        });
        StreamDecoder::new(
            Arc::new(Pieces::new(pieces, true).unwrap()),
            start,
            specials,
        )
    }

    #[test]
    fn characters_come_whole() {
        let mut stream = decoder(Start::Continuation, ShowSpecials::Hide);
        let parts: Vec<String> = "é🦙"
            .bytes()
            .map(|b| stream.push(b.into()).unwrap())
            .collect();
        assert_eq!(parts, ["", "é", "", "", "", "🦙"]);
        assert_eq!(stream.push(0xE2).unwrap(), "");
        assert_eq!(stream.push(b'x'.into()).unwrap(), "\u{FFFD}x");
        assert_eq!(stream.push(0xF0).unwrap(), "");
        assert_eq!(stream.finish(), "\u{FFFD}");
        assert!(stream.push(1000).is_err());
    }

    #[test]
    fn the_prefix_space_and_specials_follow_the_settings() {
        let text = |start, specials| {
            let mut stream = decoder(start, specials);
            [256, 257, 257].map(|id| stream.push(id).unwrap()).concat()
        };
        assert_eq!(text(Start::Text, ShowSpecials::Hide), "a a");
        assert_eq!(text(Start::Continuation, ShowSpecials::Hide), " a a");
        assert_eq!(text(Start::Text, ShowSpecials::Show), "<e>a a");
    }

    proptest! {
        #[test]
        fn streaming_equals_decoding_the_whole(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut stream = decoder(Start::Continuation, ShowSpecials::Hide);
            let mut text = String::new();
            for &byte in &bytes {
                let part = stream.push(byte.into()).unwrap();
                prop_assert!(stream.pending.len() < 4);
                text.push_str(&part);
            }
            text.push_str(&stream.finish());
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
