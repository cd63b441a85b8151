//! What every kernel call needs to know about the machine and the arithmetic.

use crate::isa::{Isa, Numerics};
use crate::pool::Pool;

/// The threads, the instruction set and the numerics class that kernels run with.
pub struct Exec {
    /// The threads that share the work.
    pub pool: Pool,
    /// The instruction set. Where the processor lacks it, products take the plain version.
    pub isa: Isa,
    /// The roundings that are allowed.
    pub numerics: Numerics,
}

impl Exec {
    /// `threads` threads (0 is taken as 1) computing with `isa` in the class `numerics`.
    ///
    /// # Panics
    /// When this processor does not offer `isa`.
    pub fn new(threads: usize, isa: Isa, numerics: Numerics) -> Exec {
        assert!(isa.is_available(), "this processor does not offer {isa}");
        Exec {
            pool: Pool::new(threads),
            isa,
            numerics,
        }
    }

    /// The instruction set to use: plain Rust should the processor lack the one asked for.
    pub(crate) fn usable_isa(&self) -> Isa {
        if self.isa.is_available() {
            self.isa
        } else {
            Isa::Scalar
        }
    }
}
