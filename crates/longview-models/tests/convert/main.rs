//! Conversion to GGUF: what was converted computes what its source does, and what cannot be
//! converted is refused by name.

mod fixtures;
mod metadata;
mod parity;
mod random;
mod recipes;
mod refusals;
mod vocabulary;
