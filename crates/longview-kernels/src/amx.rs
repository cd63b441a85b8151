//! The tiles of AMX: sixteen rows of up to 64 bytes, and products of two of them.
//!
//! The compiler has no types for them yet, so they are named in assembly. It never uses them itself:
//! what one function leaves in a tile is there for the next, as long as [`Tiles`] lives.

use std::arch::asm;
use std::marker::PhantomData;

/// Bytes of a row of a tile.
pub(crate) const ROW: usize = 64;
/// Rows of a tile at most.
pub(crate) const ROWS: usize = 16;
/// Bytes of a whole tile.
pub(crate) const TILE: usize = ROWS * ROW;

/// The tiles of this thread, made ready; given back when it is dropped, so that the system need not
/// keep them whenever it takes the processor away.
pub(crate) struct Tiles {
    /// Those of another thread are others.
    here: PhantomData<*const ()>,
}

/// How the tiles are cut, as the instruction reads it.
#[repr(C, align(64))]
struct Cut {
    palette: u8,
    start: u8,
    _reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Tiles {
    /// Cuts the tiles for products of sixteen rows with sixteen outputs over `depth` bytes: four of sums,
    /// two of rows, two of codes.
    ///
    /// # Safety
    /// The processor offers [`crate::Isa::Amx`].
    pub(crate) unsafe fn for_bytes(depth: usize) -> Tiles {
        assert!(depth.is_multiple_of(4) && depth <= ROW);
        let (whole, deep, quads) = (ROW as u16, depth as u16, (depth / 4) as u8);
        // SAFETY: the caller's promise.
        unsafe {
            Tiles::cut(
                [whole, whole, whole, whole, deep, deep, whole, whole],
                [16, 16, 16, 16, 16, 16, quads, quads],
            )
        }
    }

    /// Cuts the tiles for products of `rows` rows with sixteen outputs over 32 bf16: four of sums, one of
    /// rows, one of what they are multiplied with.
    ///
    /// # Safety
    /// The processor offers [`crate::Isa::Amx`].
    pub(crate) unsafe fn for_floats(rows: usize) -> Tiles {
        assert!((1..=ROWS).contains(&rows));
        let rows = rows as u8;
        // SAFETY: the caller's promise.
        unsafe {
            Tiles::cut(
                [ROW as u16; 8],
                [rows, rows, rows, rows, rows, rows, 16, rows],
            )
        }
    }

    /// Cuts the tiles: the bytes of a row of each, and the rows.
    ///
    /// # Safety
    /// The processor offers [`crate::Isa::Amx`].
    unsafe fn cut(row_bytes: [u16; 8], rows: [u8; 8]) -> Tiles {
        let mut cut = Cut {
            palette: 1,
            start: 0,
            _reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        cut.row_bytes[..8].copy_from_slice(&row_bytes);
        cut.rows[..8].copy_from_slice(&rows);
        // SAFETY: the caller's promise; the cut is one that every processor with tiles allows.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const cut, options(nostack, readonly)) };
        Tiles { here: PhantomData }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: there are tiles, or this would not have been made.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Makes `$name(x, x_stride, w)`: sums over the codes `w`, `[depth / 4][16][4]`, times the rows `x` of
/// signed bytes, `[16 rows][16]`, are in the tiles of sums `$sums`.
///
/// Safety: [`Tiles`] are cut; so many bytes may be read there.
macro_rules! product {
    ($name:ident, $op:literal, $sums:literal, $x:literal, $w:literal) => {
        #[inline(always)]
        pub(crate) unsafe fn $name(x: *const u8, x_stride: usize, w: *const u8) {
            // SAFETY: the caller's promise.
            unsafe {
                asm!(
                    concat!("tileloadd ", $x, ", [{x} + {x_stride}]"),
                    concat!("tileloadd ", $w, ", [{w} + {row}]"),
                    concat!("tilezero ", $sums),
                    concat!($op, " ", $sums, ", ", $x, ", ", $w),
                    x = in(reg) x,
                    x_stride = in(reg) x_stride,
                    w = in(reg) w,
                    row = in(reg) ROW,
                    options(nostack, readonly, preserves_flags)
                );
            }
        }
    };
}
product!(signed_first, "tdpbssd", "tmm0", "tmm4", "tmm6");
product!(signed_second, "tdpbssd", "tmm1", "tmm5", "tmm7");
product!(unsigned_first, "tdpbsud", "tmm0", "tmm4", "tmm6");
product!(unsigned_second, "tdpbsud", "tmm1", "tmm5", "tmm7");

/// Makes `$name(sums)`, which writes the sums in the tile `$tile`, `[16 rows][16]`.
///
/// Safety: [`Tiles`] are cut; so many numbers may be written there.
macro_rules! store {
    ($name:ident, $tile:literal) => {
        #[inline(always)]
        pub(crate) unsafe fn $name(sums: *mut i32) {
            // SAFETY: the caller's promise.
            unsafe {
                asm!(
                    concat!("tilestored [{sums} + {row}], ", $tile),
                    sums = in(reg) sums,
                    row = in(reg) ROW,
                    options(nostack, preserves_flags)
                );
            }
        }
    };
}
store!(store_first, "tmm0");
store!(store_second, "tmm1");

store!(store_third, "tmm2");
store!(store_fourth, "tmm3");

/// Makes all sums zero.
///
/// Safety: [`Tiles`] are cut.
#[inline(always)]
pub(crate) unsafe fn clear() {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            options(nostack, nomem, preserves_flags)
        );
    }
}

/// Makes `$name(x, w, step)`: adds to all sums the rows `x` of signed bytes, `[16][64]`, times the codes
/// `w`, `[16][16][4]`, and those `step`, twice and three times `step` bytes after: the first and the third with
/// `$high`, the others with `$low`.
///
/// Safety: [`Tiles`] are cut; so many bytes may be read there.
macro_rules! products {
    ($name:ident, $high:literal, $low:literal) => {
        #[inline(always)]
        pub(crate) unsafe fn $name(x: *const u8, w: *const u8, step: usize) {
            // SAFETY: the caller's promise.
            unsafe {
                asm!(
                    "tileloadd tmm4, [{x} + {row}]",
                    "tileloadd tmm6, [{a} + {row}]",
                    concat!($high, " tmm0, tmm4, tmm6"),
                    "tileloadd tmm7, [{b} + {row}]",
                    concat!($low, " tmm1, tmm4, tmm7"),
                    "tileloadd tmm6, [{c} + {row}]",
                    concat!($high, " tmm2, tmm4, tmm6"),
                    "tileloadd tmm7, [{d} + {row}]",
                    concat!($low, " tmm3, tmm4, tmm7"),
                    x = in(reg) x,
                    a = in(reg) w,
                    b = in(reg) w.wrapping_add(step),
                    c = in(reg) w.wrapping_add(2 * step),
                    d = in(reg) w.wrapping_add(3 * step),
                    row = in(reg) ROW,
                    options(nostack, readonly, preserves_flags)
                );
            }
        }
    };
}
products!(signed_fours, "tdpbssd", "tdpbsud");
products!(unsigned_fours, "tdpbsud", "tdpbsud");

/// Loads sixteen rows, `[16][64]` bytes, for [`add_floats`].
///
/// Safety: [`Tiles`] are cut for floats; so many bytes may be read there.
#[inline(always)]
pub(crate) unsafe fn load_rows(x: *const u8) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tileloadd tmm4, [{x} + {row}]",
            x = in(reg) x,
            row = in(reg) ROW,
            options(nostack, readonly, preserves_flags)
        );
    }
}

/// Makes the sums in tile `AT`, one of four, zero.
///
/// Safety: [`Tiles`] are cut.
#[inline(always)]
pub(crate) unsafe fn clear_sums<const AT: usize>() {
    // SAFETY: the caller's promise.
    unsafe { asm!("tilezero tmm{at}", at = const AT, options(nostack, nomem, preserves_flags)) };
}

/// Loads the sums of tile `AT`, whose rows are `stride` floats apart.
///
/// Safety: [`Tiles`] are cut; so many floats may be read there.
#[inline(always)]
pub(crate) unsafe fn load_sums<const AT: usize>(sums: *const f32, stride: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tileloadd tmm{at}, [{sums} + {stride}]",
            at = const AT,
            sums = in(reg) sums,
            stride = in(reg) 4 * stride,
            options(nostack, readonly, preserves_flags)
        );
    }
}

/// Writes the sums of tile `AT`, with rows `stride` floats apart.
///
/// Safety: [`Tiles`] are cut; so many floats may be written there.
#[inline(always)]
pub(crate) unsafe fn store_sums<const AT: usize>(sums: *mut f32, stride: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tilestored [{sums} + {stride}], tmm{at}",
            at = const AT,
            sums = in(reg) sums,
            stride = in(reg) 4 * stride,
            options(nostack, preserves_flags)
        );
    }
}

/// Adds to the sums in tile `AT` the loaded rows times `w`, sixteen pairs of rows of bf16 `[16][16][2]`.
///
/// Safety: [`Tiles`] are cut for floats; so many bytes may be read there.
#[inline(always)]
pub(crate) unsafe fn add_floats<const AT: usize>(w: *const u8) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tileloadd tmm6, [{w} + {row}]",
            "tdpbf16ps tmm{at}, tmm4, tmm6",
            at = const AT,
            w = in(reg) w,
            row = in(reg) ROW,
            options(nostack, readonly, preserves_flags)
        );
    }
}

/// Loads as many rows as [`Tiles`] were cut for, `[16][64]` bytes, and those of two other tiles, for [`add_all_floats`].
///
/// Safety: [`Tiles`] are cut for floats; so many bytes may be read there.
#[inline(always)]
pub(crate) unsafe fn load_all_rows(x: *const u8) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tileloadd tmm4, [{x} + {row}]",
            "tileloadd tmm5, [{y} + {row}]",
            "tileloadd tmm7, [{z} + {row}]",
            x = in(reg) x,
            y = in(reg) x.wrapping_add(TILE),
            z = in(reg) x.wrapping_add(2 * TILE),
            row = in(reg) ROW,
            options(nostack, readonly, preserves_flags)
        );
    }
}

/// Adds to the sums in tile `AT` the rows of the three loaded tiles times `w`, and then those of the first
/// two times the tile after `w`: sixteen pairs of rows of bf16 each, `[16][16][2]`.
///
/// Safety: [`Tiles`] are cut for floats; so many bytes may be read there.
#[inline(always)]
pub(crate) unsafe fn add_all_floats<const AT: usize>(w: *const u8) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tileloadd tmm6, [{w} + {row}]",
            "tdpbf16ps tmm{at}, tmm4, tmm6",
            "tdpbf16ps tmm{at}, tmm5, tmm6",
            "tdpbf16ps tmm{at}, tmm7, tmm6",
            "tileloadd tmm6, [{v} + {row}]",
            "tdpbf16ps tmm{at}, tmm4, tmm6",
            "tdpbf16ps tmm{at}, tmm5, tmm6",
            at = const AT,
            w = in(reg) w,
            v = in(reg) w.wrapping_add(TILE),
            row = in(reg) ROW,
            options(nostack, readonly, preserves_flags)
        );
    }
}

/// So many products of whole tiles, of zeros: what the processor can do at most.
///
/// # Safety
/// The processor offers [`crate::Isa::Amx`].
pub(crate) unsafe fn whole_products(count: usize) {
    // SAFETY: the caller's promise; the loop uses tiles alone.
    unsafe {
        let _tiles = Tiles::for_bytes(ROW);
        asm!("tilezero tmm4", "tilezero tmm6", options(nostack, nomem));
        for _ in 0..count.div_ceil(4) {
            asm!(
                "tdpbssd tmm0, tmm4, tmm6",
                "tdpbssd tmm1, tmm4, tmm6",
                "tdpbssd tmm2, tmm4, tmm6",
                "tdpbssd tmm3, tmm4, tmm6",
                options(nostack, nomem, preserves_flags)
            );
        }
    }
}
