//! Where sealed blocks live: one trait for memory, disk and remote stores, held to one
//! conformance suite.
//!
//! A *sealed* block is full (64 tokens of one layer group) or a checkpoint of recurrent state at a
//! block edge; its bytes never change again, and its key says what they were computed from. So
//! tiers may hold copies, drop them and share them between processes without asking anyone.

use std::fmt;
use std::sync::Arc;

mod disk;
pub(crate) mod extent;
pub(crate) mod files;
pub(crate) mod folder;
mod notices;
mod ram;
#[cfg(feature = "remote")]
mod remote;
mod spill;

#[cfg(test)]
mod conformance;
#[cfg(test)]
pub(crate) mod simulated;
#[cfg(test)]
pub(crate) mod testing;

pub use disk::{DiskOptions, DiskTier, Fate, Fsck, Problem, Repair, Syncing};
pub use folder::StoreFolder;
pub use notices::{Notices, show_at_once};
pub(crate) use ram::RamTier;
#[cfg(feature = "remote")]
pub use remote::RemoteTier;
pub use spill::SpillTier;

use crate::block::Block;
use crate::error::human_bytes;
use crate::hash::BlockHash;

/// What a sealed block is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockKey {
    /// Hash of everything up to and including the block's tokens.
    pub hash: BlockHash,
    /// The layer group, in the order of the model's layout.
    pub group: u16,
}

/// As a message names it: the first digits of the hash tell blocks apart.
impl fmt::Display for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {:?} of layer group {}", self.hash, self.group)
    }
}

/// How the bytes of a block are cut: `layers` slices of `layer_bytes` bytes, first layer first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockShape {
    /// Layers of the group.
    pub layers: usize,
    /// Bytes that one layer has in a block.
    pub layer_bytes: usize,
}

/// Where blocks come from, for people who look into a store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The hash that chains of this identity begin with.
    pub seed: BlockHash,
    /// The model's name.
    pub model: String,
    /// The rest of the identity as text: numerics class, element types, instruction set, rotary set.
    pub identity: String,
}

/// What a tier knows of a block beside its bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockInfo {
    /// What it is found by.
    pub key: BlockKey,
    /// Hash of everything before the block.
    pub parent: BlockHash,
    /// Its place in the context: positions `64 · index` and on.
    pub index: u32,
    /// The tokens in it.
    pub tokens: Arc<[u32]>,
    /// How its bytes are cut.
    pub shape: BlockShape,
    /// Seconds that computing it took.
    pub seconds: f32,
    /// Where it comes from.
    pub origin: Arc<Origin>,
}

/// What a tier holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierUsage {
    /// Blocks held.
    pub blocks: u64,
    /// Bytes they take, headers included.
    pub bytes: u64,
}

/// A place that holds sealed blocks.
///
/// All methods may be called from several threads at once, and several processes may use one
/// place at the same time.
pub trait Tier: Send + Sync {
    /// A name for people, such as `disk`.
    fn name(&self) -> &str;

    /// Whether what is put here outlives the process. Other places are given blocks only when memory
    /// has no room for them.
    fn lasts(&self) -> bool {
        true
    }

    /// Takes a block in; it is held when this returns. Does nothing when it is held already.
    ///
    /// # Errors
    /// [`TierError::Full`] when there is no room, [`TierError::ReadOnly`] where nothing can ever be
    /// put, [`TierError::Io`] when the system refuses. The tier is then as it was.
    fn put(&self, info: &BlockInfo, block: &Arc<Block>) -> Result<(), TierError>;

    /// What is known of a block; `None` when it is not held.
    fn find(&self, key: &BlockKey) -> Option<BlockInfo>;

    /// Whether a block is held, as far as that is known without looking: `false` for one that only
    /// another process has put. Costs no input or output.
    fn knows(&self, key: &BlockKey) -> bool {
        self.find(key).is_some()
    }

    /// The blocks of group 0 that directly follow `parent`, to say where two prompts part.
    fn after(&self, parent: &BlockHash) -> Vec<BlockInfo>;

    /// The block itself where the tier has it in memory in the form contexts use.
    fn resident(&self, _key: &BlockKey) -> Option<Arc<Block>> {
        None
    }

    /// Reads one layer's slice of each of `keys` into `out`, `[keys][layer_bytes]`, and checks every
    /// slice against its checksum. Keys that follow each other in a context are read together.
    ///
    /// # Errors
    /// [`TierError::Missing`] and [`TierError::Damaged`] name the block; it is then to be
    /// recomputed. `out` may hold anything.
    fn read(&self, keys: &[BlockKey], layer: usize, out: &mut [u8]) -> Result<(), TierError>;

    /// Says that one layer's slices of `keys` are about to be read, so that a slow place may begin.
    fn prefetch(&self, _keys: &[BlockKey], _layer: usize) {}

    /// Notes that blocks were used now.
    fn touch(&self, keys: &[BlockKey]);

    /// Keeps blocks from being evicted, by this or another process, until the value returned is
    /// dropped. [`Tier::remove`] still removes them.
    ///
    /// # Errors
    /// [`TierError::Missing`] when one of them is not held.
    fn hold(&self, keys: &[BlockKey]) -> Result<Hold, TierError>;

    /// Lets a block go, if it is held. What follows it can no longer be reached.
    ///
    /// # Errors
    /// When the place cannot be written to.
    fn remove(&self, key: &BlockKey) -> Result<(), TierError>;

    /// Makes everything put so far survive a power loss.
    ///
    /// # Errors
    /// When the system refuses, or has refused to write a block since the last call; what was not synced may
    /// then be lost.
    fn sync(&self) -> Result<(), TierError>;

    /// Gives back memory in which blocks wait to be put.
    fn relieve(&self) {}

    /// What is held in all.
    fn usage(&self) -> TierUsage;

    /// The most bytes that could be held here, as far as that is known; what is held now counts.
    fn room(&self) -> u64 {
        u64::MAX
    }

    /// Calls `visit` with every block held.
    fn for_each(&self, visit: &mut dyn FnMut(&BlockInfo));

    /// Bytes a second that reading from here is expected to give; `None` when not measured.
    fn read_rate(&self) -> Option<f64>;

    /// Whether nothing can be put here.
    fn read_only(&self) -> bool {
        false
    }

    /// What people should know of this place, such as files that were skipped. Each is told once.
    fn take_notices(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Keeps blocks from being evicted while it lives; see [`Tier::hold`].
pub struct Hold {
    _guard: Box<dyn Send + Sync>,
}

impl Hold {
    /// A hold that ends when `guard` is dropped.
    pub fn new(guard: impl Send + Sync + 'static) -> Hold {
        Hold {
            _guard: Box::new(guard),
        }
    }
}

/// An error of a tier.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TierError {
    /// The system refused.
    #[error("{place}: cannot {action}: {source}")]
    Io {
        /// The file or object.
        place: String,
        /// What was tried, such as "write".
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A block is not held, or no longer.
    #[error("{0} is not in the store; it is computed again when needed")]
    Missing(BlockKey),
    /// What was read is not what was written.
    #[error("{place}: {key} is damaged ({what}); it is computed again when needed")]
    Damaged {
        /// The file or object.
        place: String,
        /// The block.
        key: BlockKey,
        /// What is wrong with it.
        what: String,
    },
    /// Nothing can be put here.
    #[error("{place} is read-only: what is computed is not kept there")]
    ReadOnly {
        /// The store.
        place: String,
    },
    /// A block that a store cannot describe.
    #[error("{key} cannot be stored: {what}")]
    Unfit {
        /// The block.
        key: BlockKey,
        /// What about it.
        what: &'static str,
    },
    /// The folder holds something else.
    #[error(
        "{place} is not a Longview store and not empty; give an empty or new folder with --cache-dir"
    )]
    NotAStore {
        /// The folder.
        place: String,
    },
    /// The store is of another version.
    #[error(
        "{place} is a store of format {found}, this Longview reads format {ours}; use the version that \
         made it, or another folder with --cache-dir; nothing was changed"
    )]
    Version {
        /// The folder.
        place: String,
        /// Format of the store.
        found: u32,
        /// Format that this version reads and writes.
        ours: u32,
    },
    /// No context, or none that may be opened, has this name.
    #[error("no context is called {name:?}; `longview contexts ls` shows those there are")]
    NoContext {
        /// The label or the beginning of an id.
        name: String,
    },
    /// Several contexts have this name.
    #[error("{name:?} may be any of {}; give more of the id", .ids.join(", "))]
    Ambiguous {
        /// The label or the beginning of an id.
        name: String,
        /// Their ids.
        ids: Vec<String>,
    },
    /// Another context has this label.
    #[error("context {id} is labelled {label:?} already; choose another label, or remove it first")]
    LabelTaken {
        /// The label.
        label: String,
        /// Who has it.
        id: String,
    },
    /// A label that could not be used to find a context.
    #[error("{label:?} cannot be a label: {what}")]
    BadLabel {
        /// The label.
        label: String,
        /// What about it.
        what: &'static str,
    },
    /// A record or bundle that is damaged, of another version, or not one at all.
    #[error("{place}: {what}")]
    Unreadable {
        /// The file.
        place: String,
        /// What is wrong with it, and what to do.
        what: String,
    },
    /// A context of another model or of other settings.
    #[error(
        "context {id} was made by {} ({}), not by {}; its text can be read anew with this one",
        .found.0, .found.1, other_than(.found, .wanted)
    )]
    OtherModel {
        /// The context.
        id: String,
        /// Model and identity it was made by.
        found: Box<(String, String)>,
        /// Model and identity it was to be used with.
        wanted: Box<(String, String)>,
    },
    /// There is no room for more.
    #[error("{place}: no room for {} more: {what}", human_bytes(*.wanted))]
    Full {
        /// The store.
        place: String,
        /// Bytes that were to be written.
        wanted: u64,
        /// What the limit is.
        what: String,
    },
}

impl TierError {
    /// The block that could not be had, where the error is about one.
    pub fn key(&self) -> Option<BlockKey> {
        match self {
            TierError::Missing(key) | TierError::Damaged { key, .. } => Some(*key),
            _ => None,
        }
    }
}

/// Model and identity `wanted`, as told from `found`.
fn other_than(found: &(String, String), wanted: &(String, String)) -> String {
    match found == wanted {
        true => "the one of that name that is used now: its weights are others".to_owned(),
        false => format!("{} ({})", wanted.0, wanted.1),
    }
}
