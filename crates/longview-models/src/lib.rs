//! Model architectures, one file each, over shared parts.
//!
//! A [`ModelFile`] is a weight file whose settings were understood: its architecture (a file in
//! `arch/`) turned them into a [`Blueprint`]. [`ModelFile::load`] packs the weights into a
//! [`Model`], whose [`Model::forward`] runs batches of rows from any number of contexts.

pub mod arch;
pub mod blueprint;
mod config;
pub mod convert;
mod decoder;
mod delta_rows;
mod embedding;
mod error;
mod gguf_config;
mod language_part;
mod load;
mod model;
mod names;
mod products;
mod profile;
mod rope;
pub mod shapes;
mod workspace;

pub use blueprint::Blueprint;
pub use config::Config;
pub use convert::{Recipe, quantize};
pub use error::ModelError;
pub use model::{Model, ModelFile};
pub use products::{Product, Rows};
pub use profile::{Profile, Work};
pub use rope::{Rope, Scaling};
pub use workspace::Workspace;
