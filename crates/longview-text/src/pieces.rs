//! Id → bytes: what every token writes.

use longview_weights::spelling::byte_to_char;

use crate::TextError;
use crate::vocabulary::MAX_IDS;

/// The bytes and the role of every id, in one arena.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    bytes: Vec<u8>,
    /// End of each id's bytes; the start is the end of the id before.
    ends: Vec<u32>,
    special: Vec<bool>,
    /// Whether the encoder put a space before the text, which decoding takes off again.
    space_prefix: bool,
}

/// One token on its way into [`Pieces`].
pub(crate) struct Piece {
    pub(crate) id: u32,
    pub(crate) bytes: Vec<u8>,
    pub(crate) special: bool,
}

impl Pieces {
    /// Lays out `pieces`, which may come in any order and leave holes (holes write nothing). Later
    /// pieces replace earlier ones of the same id.
    pub(crate) fn new(mut pieces: Vec<Piece>, space_prefix: bool) -> Result<Self, TextError> {
        if pieces.is_empty() {
            return Err(TextError::Vocabulary("it has no tokens".into()));
        }
        pieces.sort_by_key(|piece| piece.id);
        let size = pieces.last().map_or(0, |last| last.id as usize + 1);
        // Sparse ids would make a small file cost much memory; real vocabularies are dense.
        if size > MAX_IDS || size > 4 * pieces.len() + 65_536 {
            return Err(TextError::Vocabulary(format!(
                "token ids reach {} with only {} tokens",
                size - 1,
                pieces.len()
            )));
        }
        let total: usize = pieces.iter().map(|piece| piece.bytes.len()).sum();
        if u32::try_from(total).is_err() {
            return Err(TextError::Vocabulary(format!(
                "its tokens hold {total} bytes"
            )));
        }
        let mut table = Self {
            bytes: Vec::with_capacity(total),
            ends: Vec::with_capacity(size),
            special: Vec::with_capacity(size),
            space_prefix,
        };
        for piece in pieces {
            let id = piece.id as usize;
            if table.ends.len() == id + 1 {
                table.ends.pop();
                table.special.pop();
                table
                    .bytes
                    .truncate(table.ends.last().map_or(0, |&end| end as usize));
            }
            while table.ends.len() < id {
                table.ends.push(table.bytes.len() as u32);
                table.special.push(false);
            }
            table.bytes.extend_from_slice(&piece.bytes);
            table.ends.push(table.bytes.len() as u32);
            table.special.push(piece.special);
        }
        Ok(table)
    }

    /// Number of ids, holes included.
    pub(crate) fn size(&self) -> usize {
        self.ends.len()
    }

    /// The bytes id `id` writes.
    pub(crate) fn bytes(&self, id: u32) -> Option<&[u8]> {
        let index = id as usize;
        let end = *self.ends.get(index)? as usize;
        let start = index
            .checked_sub(1)
            .map_or(0, |before| self.ends[before] as usize);
        Some(&self.bytes[start..end])
    }

    /// Like [`Pieces::bytes`], with the error a caller shows for an unknown id.
    pub(crate) fn known(&self, id: u32) -> Result<&[u8], TextError> {
        self.bytes(id).ok_or(TextError::UnknownId {
            id,
            size: self.size(),
        })
    }

    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    pub(crate) fn space_prefix(&self) -> bool {
        self.space_prefix
    }
}

/// The bytes a byte-level token writes. Text outside the alphabet (tokens added by hand) stands
/// for itself.
pub(crate) fn byte_level_bytes(token: &str, alphabet: &ByteAlphabet) -> Vec<u8> {
    let mapped: Option<Vec<u8>> = token.chars().map(|c| alphabet.byte(c)).collect();
    mapped.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// The inverse of [`byte_to_char`].
pub(crate) struct ByteAlphabet([Option<u8>; 0x144]);

impl ByteAlphabet {
    pub(crate) fn new() -> Self {
        let mut table = [None; 0x144];
        for byte in 0..=255 {
            table[byte_to_char(byte) as usize] = Some(byte);
        }
        Self(table)
    }

    fn byte(&self, c: char) -> Option<u8> {
        self.0.get(c as usize).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_is_read_back() {
        let alphabet = ByteAlphabet::new();
        for byte in 0..=255 {
            assert_eq!(alphabet.byte(byte_to_char(byte)), Some(byte));
        }
        assert_eq!(byte_level_bytes("Ġhé", &alphabet), [b' ', b'h', 0xE9]);
        assert_eq!(byte_level_bytes("▁é", &alphabet), "▁é".as_bytes());
    }

    #[test]
    fn holes_write_nothing_and_far_ids_are_refused() {
        let piece = |id, text: &str| Piece {
            id,
            bytes: text.into(),
            special: false,
        };
        let pieces = Pieces::new(vec![piece(3, "d"), piece(0, "a"), piece(3, "D")], false).unwrap();
        assert_eq!(pieces.size(), 4);
        assert_eq!(pieces.bytes(0), Some(&b"a"[..]));
        assert_eq!(pieces.bytes(1), Some(&b""[..]));
        assert_eq!(pieces.bytes(3), Some(&b"D"[..]));
        assert_eq!(pieces.bytes(4), None);
        assert!(Pieces::new(vec![piece(u32::MAX, "x")], false).is_err());
    }
}
