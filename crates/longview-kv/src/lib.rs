//! The only owner of keys and values.
//!
//! A [`Context`] is what a model has read: blocks of 64 tokens in memory that the [`Ledger`]
//! accounts for. A model sees contexts through a [`Batch`]: it appends the keys and values of the
//! rows it computes, layer by layer, and asks for attention over what is stored. Attention is
//! built from partials over fixed spans of 1,024 positions merged left to right, so a row's result
//! is the same whatever else is computed with it.

mod attach;
mod attend;
mod batch;
mod block;
pub mod bundle;
mod checkpoint;
mod context;
mod earlier;
mod error;
mod feed;
mod forms;
mod growth;
mod hash;
pub mod keep;
mod layout;
mod ledger;
mod moving;
pub mod pattern;
mod places;
pub mod read;
pub mod records;
mod recurrent;
mod run;
mod sealed;
mod shared;
mod sharing;
mod store;
pub mod tier;
mod tokens;
mod watched;
mod whereabouts;

pub use attach::{Explanation, ReuseEnd};
pub use attend::{AttendWorkspace, Attention};
pub use batch::{Batch, Segment, Wanted};
pub use block::Block;
pub use context::{Context, Identity, RopeSet};
pub use error::{KvError, human_bytes};
pub use forms::{KvForm, KvForms};
pub use hash::BlockHash;
pub use layout::{KvLayout, LayerLayout, LayerState};
pub use ledger::{Ledger, Purpose, Reservation, Usage, largest};
pub use longview_kernels::page::{
    DottedBits, KiviBits, KiviGroup, KiviQueries, KvType, QueryBits, Sparse,
};
pub use recurrent::{CHECKPOINT_TOKENS, RecurrentWorkspace};
pub use store::{Store, StoreCounts};
pub use tokens::Tokens;
pub use watched::AttentionMap;

/// Tokens in a block; also the slots of a page.
pub const BLOCK_TOKENS: usize = longview_kernels::page::PAGE_TOKENS;

/// Blocks that attention goes over at a time; extents on disk end where such a span ends.
pub(crate) const SPAN_BLOCKS: usize = longview_kernels::attention::SPAN_TOKENS / BLOCK_TOKENS;
