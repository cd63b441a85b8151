//! A page's keys or values as a tile reads them: as they lie in memory, or turned into other numbers in
//! scratch memory first.

use super::element::{Brain, Byte, Convert, Half, Nibble};
use super::fixed::Groups;
use crate::Floats;
use crate::lanes::Lanes;
use crate::page::KvType;

/// A page's keys or values as they lie in memory.
#[derive(Clone, Copy)]
pub(super) struct Stored<'a> {
    pub(super) kv_type: KvType,
    pub(super) codes: &'a [u8],
    /// Empty where the form has none; in kivi pages with as many middles after them.
    pub(super) scales: &'a [u8],
}

impl<'a> Stored<'a> {
    pub(super) fn new(kv_type: KvType, bytes: &'a [u8], codes_bytes: usize) -> Stored<'a> {
        let (codes, scales) = bytes.split_at(codes_bytes);
        Stored {
            kv_type,
            codes,
            scales,
        }
    }

    /// What is said of codes that are read in whole numbers.
    pub(super) fn groups(&self) -> Option<Groups<'a>> {
        Groups::new(self.kv_type, self.scales)
    }

    /// The `numbers` numbers of a sparse page in half precision, in `scratch`, where `expand` puts them.
    #[inline(always)]
    pub(super) fn expanded<'s>(
        self,
        numbers: usize,
        scratch: &'s mut Floats,
        expand: impl FnOnce(&[u8], &mut [u8]),
    ) -> Stored<'s>
    where
        'a: 's,
    {
        let floats = scratch.sized(numbers.div_ceil(2));
        // SAFETY: floats are plain bytes, and any bytes are floats; the slice covers the same memory.
        let halves = unsafe {
            std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast::<u8>(), numbers * 2)
        };
        expand(self.codes, halves);
        Stored {
            kv_type: KvType::F16,
            codes: halves,
            scales: &[],
        }
    }

    /// The same with `floats` as its numbers or codes.
    #[inline(always)]
    fn as_floats<'s>(self, floats: &'s [f32]) -> Stored<'s>
    where
        'a: 's,
    {
        // SAFETY: floats are plain bytes; the slice covers the same memory.
        let codes =
            unsafe { std::slice::from_raw_parts(floats.as_ptr().cast(), size_of_val(floats)) };
        Stored {
            kv_type: KvType::F32,
            codes,
            ..self
        }
    }

    /// The same numbers or codes as f32, in rows of `width`: in `scratch`, unless they are f32
    /// already or are read as codes by any number of rows.
    #[inline(always)]
    pub(super) fn converted<'s, L: Lanes>(
        self,
        l: L,
        width: usize,
        scratch: &'s mut Floats,
    ) -> Stored<'s>
    where
        'a: 's,
    {
        if matches!(self.kv_type, KvType::Kivi(_) | KvType::Dotted(_)) {
            return self;
        }
        let numbers = self.codes.len() / self.kv_type.row_bytes(width) * width;
        let to = scratch.sized(numbers);
        let from = self.codes;
        macro_rules! convert {
            ($element:expr) => {
                l.call(Convert {
                    element: $element,
                    width,
                    from,
                    to,
                })
            };
        }
        match self.kv_type {
            KvType::F32 => return self,
            KvType::F16 => convert!(Half),
            KvType::BF16 => convert!(Brain),
            KvType::Q8 => convert!(Byte),
            KvType::Q4 => convert!(Nibble),
            KvType::Kivi(_) | KvType::Dotted(_) => unreachable!("returned above"),
            KvType::Sparse(_) => unreachable!("sparse pages are expanded"),
        }
        self.as_floats(scratch)
    }
}
