//! What vectors of f32 are made of: the numeric forms of pages.

use crate::lanes::{Kernel, Lanes};
use crate::page::{KvType, nibble};

/// A number type that vectors of f32 are loaded from. Quantised forms load as their codes; what
/// uses them applies the scales.
pub(super) trait Element: Copy {
    const TYPE: KvType;

    /// Numbers `at..at + WIDTH` of a row; `at` is a multiple of `WIDTH`.
    ///
    /// # Safety
    /// `row` is valid for reading a row that holds these numbers.
    unsafe fn load<L: Lanes>(self, l: L, row: *const u8, at: usize) -> L::V;
}

/// [`KvType::F32`], and codes of any form once they have been converted.
#[derive(Clone, Copy)]
pub(super) struct Single;

/// [`KvType::F16`].
#[derive(Clone, Copy)]
pub(super) struct Half;

/// [`KvType::BF16`].
#[derive(Clone, Copy)]
pub(super) struct Brain;

/// [`KvType::Q8`].
#[derive(Clone, Copy)]
pub(super) struct Byte;

/// [`KvType::Q4`].
#[derive(Clone, Copy)]
pub(super) struct Nibble;

impl Element for Single {
    const TYPE: KvType = KvType::F32;

    #[inline(always)]
    unsafe fn load<L: Lanes>(self, l: L, row: *const u8, at: usize) -> L::V {
        // SAFETY: the caller vouches for the memory.
        unsafe { l.load_ptr(row.cast::<f32>().add(at)) }
    }
}

impl Element for Half {
    const TYPE: KvType = KvType::F16;

    #[inline(always)]
    unsafe fn load<L: Lanes>(self, l: L, row: *const u8, at: usize) -> L::V {
        // SAFETY: the caller vouches for the memory.
        unsafe { l.load_f16_ptr(row.add(at * 2)) }
    }
}

impl Element for Brain {
    const TYPE: KvType = KvType::BF16;

    #[inline(always)]
    unsafe fn load<L: Lanes>(self, l: L, row: *const u8, at: usize) -> L::V {
        // SAFETY: the caller vouches for the memory.
        unsafe { l.load_bf16_ptr(row.add(at * 2)) }
    }
}

impl Element for Byte {
    const TYPE: KvType = KvType::Q8;

    #[inline(always)]
    unsafe fn load<L: Lanes>(self, l: L, row: *const u8, at: usize) -> L::V {
        // SAFETY: the caller vouches for the memory.
        unsafe { l.load_i8_ptr(row.add(at)) }
    }
}

impl Element for Nibble {
    const TYPE: KvType = KvType::Q4;

    #[inline(always)]
    unsafe fn load<L: Lanes>(self, l: L, row: *const u8, at: usize) -> L::V {
        let (byte, shift) = nibble(at);
        // SAFETY: the caller vouches for the memory; a vector does not cross the 16 numbers whose
        // halves lie side by side, because `at` is a multiple of its width, a divisor of 16.
        unsafe { l.load_nibbles_ptr(row.add(byte), shift) }
    }
}

/// Rows of `width` numbers (a multiple of 16) to f32.
pub(super) struct Convert<'a, E> {
    pub element: E,
    pub width: usize,
    /// `[rows][row_bytes]`
    pub from: &'a [u8],
    /// `[rows][width]`
    pub to: &'a mut [f32],
}

impl<E: Element> Kernel for Convert<'_, E> {
    type Output = ();

    fn scalar(self) {
        let rows = self.from.chunks_exact(E::TYPE.row_bytes(self.width));
        for (from, to) in rows.zip(self.to.chunks_exact_mut(self.width)) {
            for (at, to) in to.iter_mut().enumerate() {
                *to = E::TYPE.get(from, at);
            }
        }
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        let rows = self.from.chunks_exact(E::TYPE.row_bytes(self.width));
        for (from, to) in rows.zip(self.to.chunks_exact_mut(self.width)) {
            for (i, to) in to.chunks_exact_mut(L::WIDTH).enumerate() {
                // SAFETY: `from` holds a row of `width` numbers.
                l.store(to, unsafe {
                    self.element.load(l, from.as_ptr(), i * L::WIDTH)
                });
            }
        }
    }
}
