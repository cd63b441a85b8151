//! The engine: a model, its tokenizer and the memory they may use, and what is done with them.
//!
//! [`Engine::open`] loads a model; [`Engine::new_context`] makes a context of a planned length;
//! [`Engine::prefill`] reads tokens into it chunk by chunk, keeping every finished chunk when it
//! is stopped; [`Engine::generate`] continues it token by token. A [`schedule::Scheduler`] does both
//! for many at once.

mod account;
mod acting;
mod cost;
pub mod dates;
mod engine;
mod error;
mod generate;
mod inspect;
mod keep;
mod least_reads;
mod lookup;
mod memory;
mod pass;
mod picture;
mod plan;
mod prefill;
mod prune;
mod realign;
pub mod sampling;
pub mod schedule;
mod store;
mod text_side;
mod threads;

pub use acting::ContextMethods;
pub use engine::{Engine, EngineOptions, ModelSource, TemplateOrigin, Tenant};
pub use error::EngineError;
pub use generate::{Continuation, EndOfText, Event, FinishReason, GenerateOptions, Generated};
pub use inspect::{ModelDescription, inspect, open_tokenizer, plan};
pub use least_reads::ContextWork;
pub use lookup::Lookup;
pub use memory::{ProcessMemory, SystemMemory};
pub use picture::{AttentionPicture, PicturePart};
pub use plan::MemoryPlan;
pub use prefill::{Control, PrefillProgress};
pub use prune::{Prune, Pruned, Tail};
pub use realign::{Realigned, Reuse};
pub use store::{StoreOptions, StorePlace};
pub use text_side::TextSide;
pub use threads::finished_work;
