//! The products with AVX-512 and its 8-bit dot product (VNNI), and with the tiles of AMX beside them.
//!
//! A register holds one number of each of a panel's 16 outputs. With few rows, a panel's block is
//! unpacked into eight registers for all of them, with some rows those of two panels; with more, panels
//! are unpacked into the cache and read again by every group of rows, or by tiles of them.

mod float;
mod folded;
mod int8;
mod rows_int8;
mod tiles_int8;
mod tiles_small;
mod unpack;
mod unpacked;
mod wide_float;
mod wide_int8;

pub(super) use float::float;
pub(super) use int8::{int8, int8_pairs};
pub(super) use unpacked::WIDE_SLAB;

use std::ops::Range;

use crate::activations::{Activations, TILE_ROWS};
use crate::amx::Tiles;

/// Cuts the tiles for products of the rows of `groups` over `depth` bytes.
///
/// # Panics
/// When the rows are not in tiles, or `groups` begin inside one.
fn cut_for_rows(x: &Activations, groups: &Range<usize>, depth: usize) -> Tiles {
    let of_tile = TILE_ROWS / x.shape().group;
    assert!(x.shape().in_tiles() && groups.start.is_multiple_of(of_tile));
    // SAFETY: rows are in tiles where the instruction set is `Isa::Amx`, which runs only where the
    // processor offers it.
    unsafe { Tiles::for_bytes(depth) }
}

/// Repeats `$body` for `$i` in `0..$count`, written out so that arrays indexed by `$i` stay in
/// registers; `of` tells the largest count there is, 12 when left out.
macro_rules! each {
    ($i:ident < $count:expr, $body:block) => {
        each!(@ $i, $count, $body, 0 1 2 3 4 5 6 7 8 9 10 11)
    };
    ($i:ident < $count:expr, $body:block of 2) => { each!(@ $i, $count, $body, 0 1) };
    ($i:ident < $count:expr, $body:block of 3) => { each!(@ $i, $count, $body, 0 1 2) };
    ($i:ident < $count:expr, $body:block of 4) => { each!(@ $i, $count, $body, 0 1 2 3) };
    ($i:ident < $count:expr, $body:block of 8) => { each!(@ $i, $count, $body, 0 1 2 3 4 5 6 7) };
    ($i:ident < $count:expr, $body:block of 16) => {
        each!(@ $i, $count, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $i:ident, $count:expr, $body:block, $($at:literal)*) => {
        $({
            let $i: usize = $at;
            if $i < $count $body
        })*
    };
}
use each;
