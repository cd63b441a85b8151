//! The products with AVX2, and with the 8-bit dot products of AVX-VNNI.
//!
//! Sixteen registers of eight lanes hold neither a block's codes nor many sums, so a segment of a
//! panel is unpacked to memory once and then read by every row.

mod float;
mod int8;
mod unpack;

pub(super) use float::float;
pub(super) use int8::{int8, int8_vnni};
