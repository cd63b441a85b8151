//! The products with AVX-512 and its 8-bit dot product (VNNI).
//!
//! A register holds one number of each of a panel's 16 outputs. Tiles take up to three groups of
//! four rows at a panel's block, whose codes are unpacked once into eight registers.

mod float;
mod int8;
mod unpack;

pub(super) use float::float;
pub(super) use int8::int8;

/// Repeats `$body` for `$i` in `0..$count`, written out so that arrays indexed by `$i` stay in
/// registers.
macro_rules! each {
    ($i:ident < $count:expr, $body:block) => {
        each!(@ $i, $count, $body, 0 1 2 3 4 5 6 7 8 9 10 11)
    };
    (@ $i:ident, $count:expr, $body:block, $($at:literal)*) => {
        $({
            let $i: usize = $at;
            if $i < $count $body
        })*
    };
}
use each;
