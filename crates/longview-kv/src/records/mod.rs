//! Records of contexts: what `longview contexts ls` lists.
//!
//! Blocks are found by content and need no list. A record says that someone wants a context to be
//! kept, under which name, until when, and which blocks it consists of. Each is a file of its own,
//! written whole and then given its name.
//!
//! Records belong to a *salt*, as blocks do: under another salt a record shows as locked, with its
//! size and dates and nothing of what it says. This separates tenants of one program; who can
//! read the files can read what is in them.

mod folder;
mod format;

pub use folder::Records;
pub(crate) use format::{
    MOST_BYTES as MOST_RECORD_BYTES, decode as decode_record, encode as encode_record,
};

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::hash::BlockHash;
use crate::tier::{BlockKey, Origin, TierError};

/// Characters of a text that tell it from others in a list.
const TITLE_CHARACTERS: usize = 60;

/// Stands between what a record's maker says and what a keep method has left: in no JSON.
const LEFT: u8 = 0;

/// How a text is called in a list: by its first 60 characters, in one line.
pub fn title_of(text: &str) -> String {
    let is_gap = |letter: char| letter.is_whitespace() || letter.is_control();
    let words = text.split(is_gap).filter(|word| !word.is_empty());
    let mut title = String::new();
    for word in words.take(TITLE_CHARACTERS) {
        if !title.is_empty() {
            title.push(' ');
        }
        title.extend(word.chars().take(TITLE_CHARACTERS));
    }
    title.chars().take(TITLE_CHARACTERS).collect()
}

/// A saved context.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// What is listed.
    pub summary: Summary,
    /// All tokens it has read.
    pub tokens: Vec<u32>,
    /// Every block it consists of, of all groups, in the order of the context.
    pub keys: Vec<BlockKey>,
    /// What else is needed to open a derived context, in a form its maker knows.
    pub pieces: Vec<u8>,
}

/// What is listed of a context without reading its tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Its name for programs: 12 hexadecimal digits.
    pub id: String,
    /// Its name for people.
    pub label: Option<String>,
    /// What it is about, such as names of files or the first words.
    pub title: String,
    /// The model's name.
    pub model: String,
    /// The rest of the identity as text, as in [`Origin`].
    pub identity: String,
    /// Tells contexts of one identity from others without giving the seed away.
    seed_check: String,
    /// Canonical text of the methods it was made with; empty for exact contexts.
    pub methods: String,
    /// Tokens read.
    pub tokens: u64,
    /// Tokens that whoever made it had still to read.
    #[serde(default)]
    pub rest: u64,
    /// What text it is of, in a word that its maker knows.
    #[serde(default)]
    pub form: String,
    /// Bytes of its blocks, shared ones included.
    pub bytes: u64,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// When it was last used, in seconds since 1970.
    pub used: u64,
    /// It may be removed when it was not used for so many seconds.
    pub time_to_live: Option<u64>,
    /// Whether it is never evicted and never expires.
    pub pinned: bool,
    /// Of which salt it is; `None` without one.
    salt: Option<String>,
}

/// A context in a list.
#[derive(Clone, Debug, PartialEq)]
pub enum Listed {
    /// One that may be opened.
    Open(Box<Summary>),
    /// One of another salt.
    Locked {
        /// Its id.
        id: String,
        /// Bytes of its blocks.
        bytes: u64,
        /// When it was last used, in seconds since 1970.
        used: u64,
        /// Whether it is pinned.
        pinned: bool,
    },
}

impl Record {
    /// A record of a context of `origin` that was made now, with a new id and no label.
    pub fn new(origin: &Origin, tokens: Vec<u32>, keys: Vec<BlockKey>) -> Record {
        let now = seconds(SystemTime::now());
        Record {
            summary: Summary {
                id: new_id(),
                label: None,
                title: String::new(),
                model: origin.model.clone(),
                identity: origin.identity.clone(),
                seed_check: seed_check(origin),
                methods: String::new(),
                tokens: tokens.len() as u64,
                rest: 0,
                form: String::new(),
                bytes: 0,
                created: now,
                used: now,
                time_to_live: None,
                pinned: false,
                salt: None,
            },
            tokens,
            keys,
            pieces: Vec::new(),
        }
    }

    /// What its maker says of it: all of its pieces, but for what [`Record::set_left`] put behind.
    pub fn said(&self) -> &[u8] {
        self.parts().0
    }

    /// What a keep method has left of the context ([`Context::save_kept`](crate::Context::save_kept)), where
    /// that is what was saved.
    pub fn left(&self) -> Option<&[u8]> {
        self.parts().1
    }

    /// Puts what a keep method has left of the context behind what its maker says, which holds no zero byte.
    pub fn set_left(&mut self, left: &[u8]) {
        self.pieces.truncate(self.said().len());
        self.pieces.push(LEFT);
        self.pieces.extend(left);
    }

    fn parts(&self) -> (&[u8], Option<&[u8]>) {
        match self.pieces.iter().position(|&byte| byte == LEFT) {
            Some(at) => (&self.pieces[..at], Some(&self.pieces[at + 1..])),
            None => (&self.pieces, None),
        }
    }
}

impl Summary {
    /// Whether the context was made under `origin`: the same weights, settings and salt.
    ///
    /// # Errors
    /// [`TierError::OtherModel`] when it was not.
    pub fn check_origin(&self, origin: &Origin) -> Result<(), TierError> {
        if self.is_of(origin) {
            return Ok(());
        }
        Err(TierError::OtherModel {
            id: self.id.clone(),
            found: Box::new((self.model.clone(), self.identity.clone())),
            wanted: Box::new((origin.model.clone(), origin.identity.clone())),
        })
    }

    /// The same for one of `origins`, such as those of a model with two sets of rotary frequencies.
    ///
    /// # Errors
    /// [`TierError::OtherModel`] when it was made under none of them; never when there is none.
    pub fn check_origins(&self, origins: &[Arc<Origin>]) -> Result<(), TierError> {
        match origins.first() {
            Some(first) if !origins.iter().any(|origin| self.is_of(origin)) => {
                self.check_origin(first)
            }
            _ => Ok(()),
        }
    }

    fn is_of(&self, origin: &Origin) -> bool {
        self.seed_check == seed_check(origin)
    }

    /// Whether its time is over. A clock that was set back makes nothing expire.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        let unused = seconds(now).saturating_sub(self.used);
        !self.pinned && self.time_to_live.is_some_and(|life| unused > life)
    }
}

fn seed_check(origin: &Origin) -> String {
    origin.seed.derived("record").to_string()
}

/// Seconds since 1970; 0 for earlier.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// An id that no other context has.
pub(crate) fn new_id() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanos = now.map_or(0, |now| now.as_nanos());
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let hash = BlockHash::seed(&[
        ("time", &nanos.to_le_bytes()),
        ("process", &std::process::id().to_le_bytes()),
        ("count", &count.to_le_bytes()),
    ]);
    hash.to_string()[..ID_DIGITS].to_owned()
}

const ID_DIGITS: usize = 12;

fn is_id(text: &str) -> bool {
    text.len() == ID_DIGITS
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests;
