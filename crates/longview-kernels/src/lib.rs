//! Numbers in, numbers out.
//!
//! The lowest room of Longview: everything here works on plain slices and knows nothing of models,
//! contexts or files. Every operation has a scalar twin that defines it; the vector versions are
//! chosen at run time by [`Isa`] and tested against that twin.
//!
//! **Row invariance.** For one [`Isa`] and one [`Numerics`] class the result of a row never depends
//! on how many rows, threads or chunks are computed with it: each output has one summation order.

pub mod activation;
pub mod activations;
mod affinity;
#[cfg(target_arch = "x86_64")]
mod amx;
pub mod attention;
mod compiled;
mod error;
mod exec;
pub mod format;
pub mod isa;
mod lanes;
pub mod limits;
pub mod logits;
mod matmul;
pub mod memory;
pub mod norm;
mod packed;
pub mod page;
pub mod pool;
pub mod recurrent;
#[cfg(target_os = "linux")]
mod regions;
pub mod rope;
mod share;

pub use activations::{Activations, MakeRow, Need};
pub use error::KernelError;
pub use exec::Exec;
pub use format::Format;
pub use isa::{Isa, Numerics};
pub use matmul::{announce, matmul, matmul_gated, matmul_many, needed, rounds_in_larger_blocks};
pub use memory::{AlignedBytes, Floats};
pub use packed::Packed;
pub use pool::Pool;
