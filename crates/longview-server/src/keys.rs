//! API keys, and the tenants they stand for.

use blake3::Hash;

use crate::error::ServerError;

/// Keys that open the server, each with the name of whom it belongs to.
///
/// One name may have several keys, so that a key can be replaced without a moment in which none
/// works. What is read under one name is found under no other.
#[derive(Clone, Debug, Default)]
pub struct ApiKeys {
    keys: Vec<(Hash, String)>,
}

impl ApiKeys {
    /// No keys: everybody may come in, and is the same tenant.
    pub fn none() -> ApiKeys {
        ApiKeys::default()
    }

    /// From text: keys apart by line breaks or commas, each `KEY` or `NAME=KEY`; what follows `#` in a
    /// line is a remark. A key without a name is its own tenant.
    ///
    /// # Errors
    /// [`ServerError::Keys`] for keys that are too short, that hold spaces, or that are there twice.
    pub fn parse(text: &str) -> Result<ApiKeys, ServerError> {
        let mut keys = ApiKeys::default();
        let lines = text
            .lines()
            .map(|line| line.split('#').next().unwrap_or(""));
        for (at, word) in lines.flat_map(|line| line.split(',')).enumerate() {
            let word = word.trim();
            if word.is_empty() {
                continue;
            }
            let (name, key) = match word.split_once('=') {
                Some((name, key)) => (Some(name.trim()), key.trim()),
                None => (None, word),
            };
            if key.len() < 8 {
                return Err(ServerError::Keys(format!(
                    "key {} has {} characters; give at least 8",
                    at + 1,
                    key.len()
                )));
            }
            if key.chars().any(|c| c.is_whitespace() || c.is_control()) {
                return Err(ServerError::Keys(format!(
                    "key {} has spaces in it; put each key on a line of its own",
                    at + 1
                )));
            }
            let hash = blake3::hash(key.as_bytes());
            if keys.keys.iter().any(|(known, _)| *known == hash) {
                return Err(ServerError::Keys(format!("key {} is there twice", at + 1)));
            }
            let name = name.map_or_else(
                || {
                    format!(
                        "key:{}",
                        blake3::derive_key("longview 1 tenant of a key", key.as_bytes())
                            .iter()
                            .take(16)
                            .map(|byte| format!("{byte:02x}"))
                            .collect::<String>()
                    )
                },
                |name| format!("name:{name}"),
            );
            keys.keys.push((hash, name));
        }
        Ok(keys)
    }

    /// Whether anybody may come in.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The tenants' names, each once.
    pub fn tenants(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.keys.iter().map(|(_, name)| name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Whose `key` is. Takes as long for a wrong key as for a right one, whatever they have in common:
    /// hashes are compared, each in constant time, and all of them.
    pub(crate) fn tenant(&self, key: &str) -> Option<&str> {
        let hash = blake3::hash(key.as_bytes());
        let mut found = None;
        for (known, name) in &self.keys {
            // `Hash` compares in constant time.
            if *known == hash {
                found = Some(name.as_str());
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_open_for_their_tenants_only() {
        let text = "# ours\nann=secret-one, ann=secret-two\nsecret-three # the guest's\n\n";
        let keys = ApiKeys::parse(text).unwrap();
        assert_eq!(keys.tenant("secret-one"), Some("name:ann"));
        assert_eq!(keys.tenant("secret-two"), Some("name:ann"));
        assert!(keys.tenant("secret-three").unwrap().starts_with("key:"));
        assert_eq!(keys.tenant("secret-four"), None);
        assert_eq!(keys.tenant(""), None);
        assert_eq!(keys.tenants().len(), 2);
        assert!(ApiKeys::parse(" \n#x").unwrap().is_empty());
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["short", "a b c d e f g", "secret-one,secret-one"] {
            assert!(ApiKeys::parse(text).is_err(), "{text}");
        }
    }
}
