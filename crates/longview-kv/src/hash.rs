//! What a block is called: a hash of everything its keys and values were computed from.

use std::fmt;

/// A 256-bit chain hash: the identity a context was computed under, then every token up to and
/// including the block's own.
///
/// Two blocks with equal hashes hold equal bytes, because a row's result depends on nothing but
/// the tokens before it, the weights and the numerics class.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockHash([u8; 32]);

impl BlockHash {
    /// The hash that a chain begins with, of the named parts of an identity. Order and lengths
    /// count: no two lists of parts share a seed.
    pub fn seed(parts: &[(&str, &[u8])]) -> BlockHash {
        let mut hasher = blake3::Hasher::new_derive_key("longview 1 identity");
        for (name, value) in parts {
            for field in [name.as_bytes(), value] {
                hasher.update(&(field.len() as u64).to_le_bytes());
                hasher.update(field);
            }
        }
        BlockHash(hasher.finalize().into())
    }

    /// The hash of the block that holds `tokens` after what this hash stands for.
    pub fn then(&self, tokens: &[u32]) -> BlockHash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        BlockHash(hasher.finalize().into())
    }

    /// The hash of state that was made from this one by something other than reading tokens:
    /// `what` says by what. Such state never answers for exact state.
    pub fn derived(&self, what: &str) -> BlockHash {
        let mut hasher = blake3::Hasher::new_derive_key("longview 1 derived state");
        hasher.update(&self.0);
        hasher.update(what.as_bytes());
        BlockHash(hasher.finalize().into())
    }

    /// From its 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> BlockHash {
        BlockHash(bytes)
    }

    /// Its 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// From 64 hexadecimal digits; `None` for anything else.
    pub fn from_hex(text: &str) -> Option<BlockHash> {
        let hash = blake3::Hash::from_hex(text).ok()?;
        Some(BlockHash(hash.into()))
    }
}

/// 64 hexadecimal digits.
impl fmt::Display for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

/// The first digits, enough to tell blocks apart in a log.
impl fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_string()[..12])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_depend_on_everything_and_on_where_it_was_cut() {
        let seed = BlockHash::seed(&[("model", b"ab"), ("salt", b"")]);
        assert_ne!(seed, BlockHash::seed(&[("model", b"a"), ("salt", b"b")]));
        assert_ne!(seed, BlockHash::seed(&[("salt", b""), ("model", b"ab")]));
        let (a, b) = (seed.then(&[1, 2]), seed.then(&[2, 1]));
        assert_ne!(a, b);
        assert_ne!(a, seed.then(&[1]).then(&[2]));
        assert_ne!(a.derived("x"), a);
        assert_ne!(a.derived("x"), a.derived("y"));
    }

    #[test]
    fn text_and_back() {
        let hash = BlockHash::seed(&[]).then(&[7]);
        assert_eq!(BlockHash::from_hex(&hash.to_string()), Some(hash));
        assert_eq!(BlockHash::from_hex("12"), None);
        assert_eq!(BlockHash::from_hex(&"g".repeat(64)), None);
    }
}
