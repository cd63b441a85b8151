//! Every method of every stage, one small file each, and the registry that names them.
//!
//! A method says what it is in a [`Method`] (stage, name, paper, parameters with defaults) and
//! implements one trait of the crate that calls it. People write methods as text, such as
//! `temperature(0.7), top-p(p=0.95)`: [`MethodText`] parses any such text, [`Arguments`] binds it to
//! what the method declares, and [`Methods`] holds what was chosen for every stage.

mod arguments;
mod choice;
pub mod decode;
mod error;
mod keep;
mod method;
mod prefill;
mod prompt;
mod read;
pub mod registry;
mod reuse;
mod store;
mod suggest;
mod text;

pub use arguments::Arguments;
pub use choice::Methods;
pub use decode::{Decode, Sampling, fresh_seed};
pub use error::MethodError;
pub use keep::HeadScores;
pub use method::{Domain, Method, Parameter, Role, Stage};
pub use suggest::nearest;
pub use text::{Call, Item, Key, MethodText, Number, Value};
