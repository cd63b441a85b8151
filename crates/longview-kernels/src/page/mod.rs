//! A page: the keys and values of 64 tokens of one (layer, KV head), in the order attention reads.
//!
//! Keys are transposed, `[head_dim][64 tokens]`: a vector of scores has tokens as its lanes, so a
//! dot product needs no sum across lanes. Values are `[64 tokens][v_dim padded]`: a vector of
//! outputs has channels as its lanes. Both are dense, in the element type of the geometry, with no
//! header; quantised forms are followed by their scales, `[blocks of 32 channels][64 tokens]` in
//! half precision, for keys and values alike. Slots beyond the written tokens may hold any bits, for
//! attention never lets them contribute.

mod copy;
mod form;
mod quads;
mod whole;
mod write;

use half::f16;

pub use copy::copy_slots;
pub use form::{Dotted, DottedBits, KvType, QUANT_BLOCK, QueryBits};
pub use whole::{Kivi, KiviBits, KiviGroup, KiviQueries, Sparse, pack_page};
pub use write::{StridedRows, write_key, write_tokens, write_value};

use form::SCALE_BYTES;
pub(crate) use form::{Q4_MIDDLE, nibble};
pub(crate) use quads::{CodeBits, QUAD, RUN_BYTES};
pub(crate) use whole::{bitmap_words, half_at, word_at};

/// Tokens in a page.
pub const PAGE_TOKENS: usize = 64;

/// Value rows are padded to a multiple of this many channels; rows of nibbles to 32.
pub const VALUE_PADDING: usize = 16;

/// The shape and numeric form of the pages of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageGeometry {
    /// Numbers in a key.
    pub head_dim: usize,
    /// Numbers in a value.
    pub v_dim: usize,
    /// How keys are stored.
    pub k_type: KvType,
    /// How values are stored.
    pub v_type: KvType,
}

impl PageGeometry {
    /// Bytes of a page's keys, scales included.
    pub fn k_bytes(&self) -> usize {
        let scales = match self.k_type {
            // With every scale a middle.
            KvType::Kivi(kivi) => 2 * PAGE_TOKENS / kivi.group.tokens() * self.head_dim,
            KvType::Sparse(sparse) => {
                return self.head_dim * 8 + sparse.numbers_bytes(self.head_dim);
            }
            kv_type => PAGE_TOKENS * kv_type.scales(self.head_dim),
        };
        self.k_codes_bytes() + SCALE_BYTES * scales
    }

    /// Bytes of a page's values, scales included.
    pub fn v_bytes(&self) -> usize {
        let scales = PAGE_TOKENS * self.v_type.scales(self.v_dim);
        let scales = match self.v_type {
            KvType::Kivi(_) => 2 * scales,
            KvType::Sparse(sparse) => {
                let bitmaps = PAGE_TOKENS * bitmap_words(self.v_dim) * 8;
                return bitmaps + sparse.numbers_bytes(self.v_dim);
            }
            _ => scales,
        };
        self.v_codes_bytes() + SCALE_BYTES * scales
    }

    /// Whether the keys or the values are made of whole pages.
    pub fn is_whole(&self) -> bool {
        self.k_type.is_whole() || self.v_type.is_whole()
    }

    /// Bytes of the keys without their scales.
    #[inline]
    pub(crate) fn k_codes_bytes(&self) -> usize {
        match self.k_type {
            KvType::Sparse(_) => self.k_bytes(),
            KvType::Kivi(kivi) => kivi.codes().codes_bytes(self.head_dim, PAGE_TOKENS),
            KvType::Dotted(dotted) => dotted.codes().codes_bytes(self.head_dim, PAGE_TOKENS),
            k_type => k_type.row_bytes(PAGE_TOKENS) * self.head_dim,
        }
    }

    /// Bytes of the values without their scales.
    #[inline]
    pub(crate) fn v_codes_bytes(&self) -> usize {
        match self.v_type {
            KvType::Sparse(_) => self.v_bytes(),
            KvType::Kivi(kivi) => kivi.codes().codes_bytes(PAGE_TOKENS, self.v_dim),
            KvType::Dotted(dotted) => dotted.codes().codes_bytes(PAGE_TOKENS, self.v_dim),
            _ => self.v_row_bytes() * PAGE_TOKENS,
        }
    }

    /// Bytes from one token's value to the next.
    pub(crate) fn v_row_bytes(&self) -> usize {
        let padded = self.v_dim.next_multiple_of(VALUE_PADDING);
        self.v_type.row_bytes(padded)
    }
}

/// Reads the key in `slot` of a page into `out [head_dim]`.
///
/// # Panics
/// When a length or the slot does not fit the geometry.
pub fn read_key(geom: &PageGeometry, page_k: &[u8], slot: usize, out: &mut [f32]) {
    check(page_k.len(), geom.k_bytes(), slot, 1);
    assert_eq!(out.len(), geom.head_dim, "a key has head_dim numbers");
    for (d, x) in out.iter_mut().enumerate() {
        *x = key_number(geom, page_k, slot, d);
    }
}

/// Reads the value in `slot` of a page into `out [v_dim]`.
///
/// # Panics
/// When a length or the slot does not fit the geometry.
pub fn read_value(geom: &PageGeometry, page_v: &[u8], slot: usize, out: &mut [f32]) {
    check(page_v.len(), geom.v_bytes(), slot, 1);
    assert_eq!(out.len(), geom.v_dim, "a value has v_dim numbers");
    for (d, x) in out.iter_mut().enumerate() {
        *x = value_number(geom, page_v, slot, d);
    }
}

/// Channel `d` of the key in `slot`.
#[inline]
pub(crate) fn key_number(geom: &PageGeometry, page_k: &[u8], slot: usize, d: usize) -> f32 {
    if geom.k_type.is_whole() {
        return whole::key_number(geom, page_k, slot, d);
    }
    let (codes, scales) = page_k.split_at(geom.k_codes_bytes());
    if let KvType::Dotted(dotted) = geom.k_type {
        let code = dotted.codes().code(codes, d, slot, PAGE_TOKENS);
        return scaled(f32::from(code) - dotted.codes().middle(), scales, slot, d);
    }
    let row = &codes[d * geom.k_type.row_bytes(PAGE_TOKENS)..];
    scaled(geom.k_type.get(row, slot), scales, slot, d)
}

/// Channel `d` of the value in `slot`.
#[inline]
pub(crate) fn value_number(geom: &PageGeometry, page_v: &[u8], slot: usize, d: usize) -> f32 {
    if geom.v_type.is_whole() {
        return whole::value_number(geom, page_v, slot, d);
    }
    let (codes, scales) = page_v.split_at(geom.v_codes_bytes());
    if let KvType::Dotted(dotted) = geom.v_type {
        let code = dotted.codes().code(codes, slot, d, geom.v_dim);
        return scaled(f32::from(code) - dotted.codes().middle(), scales, slot, d);
    }
    let row = &codes[slot * geom.v_row_bytes()..];
    scaled(geom.v_type.get(row, d), scales, slot, d)
}

/// `x` times the scale of channel `d` in `slot`, where there are scales.
fn scaled(x: f32, scales: &[u8], slot: usize, d: usize) -> f32 {
    if scales.is_empty() {
        x
    } else {
        x * scale_number(scales, slot, d / QUANT_BLOCK)
    }
}

/// The scale of block `block` of the token in `slot`.
pub(crate) fn scale_number(scales: &[u8], slot: usize, block: usize) -> f32 {
    let at = (block * PAGE_TOKENS + slot) * SCALE_BYTES;
    f16::from_le_bytes([scales[at], scales[at + 1]]).to_f32()
}

fn check(len: usize, expected: usize, first_slot: usize, count: usize) {
    assert_eq!(len, expected, "a page's length follows from its geometry");
    assert!(
        first_slot + count <= PAGE_TOKENS,
        "a page has {PAGE_TOKENS} slots"
    );
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::form::LARGEST_F16;
    use super::*;
    use crate::Isa;

    fn geometries() -> impl Iterator<Item = PageGeometry> {
        [(16, 16), (64, 64), (80, 72), (5, 1), (128, 33)]
            .into_iter()
            .flat_map(|(head_dim, v_dim)| {
                KvType::ALL.into_iter().flat_map(move |k_type| {
                    [KvType::F16, k_type].map(|v_type| PageGeometry {
                        head_dim,
                        v_dim,
                        k_type,
                        v_type,
                    })
                })
            })
    }

    /// How far a number stored as `kv_type` may be off, in a block whose largest is `largest`.
    fn allowed(kv_type: KvType, x: f32, largest: f32) -> f32 {
        match kv_type {
            KvType::F32 => 0.0,
            KvType::F16 => x.abs() / 2048.0 + 3e-8,
            // Half a step of eight significant bits.
            KvType::BF16 => x.abs() / 256.0,
            // Half a scale; scales are rounded up to half precision.
            KvType::Dotted(dotted) => allowed(dotted.numbers(), x, largest),
            KvType::Q8 => largest / 127.0 * 0.5005 * 1.001 + 3e-8,
            KvType::Q4 => largest / 7.5 * 0.5005 * 1.001 + 3e-8,
            KvType::Kivi(_) | KvType::Sparse(_) => unreachable!("not written token by token"),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn stored_numbers_are_within_the_stated_error(
            kv_type in proptest::sample::select(&KvType::ALL),
            dim in 1usize..100,
            slot in 0usize..64,
            exponent in -20i32..5,
            seed in any::<u32>(),
        ) {
            let mut state = seed | 1;
            let x: Vec<f32> = (0..dim).map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state as i32 as f32 / 2f32.powi(31)) * 2f32.powi(exponent)
            }).collect();
            let geom = PageGeometry { head_dim: dim, v_dim: dim, k_type: kv_type, v_type: kv_type };
            let (mut k, mut v) = (vec![0xff; geom.k_bytes()], vec![0xff; geom.v_bytes()]);
            write_key(&geom, &mut k, slot, &x);
            write_value(&geom, &mut v, slot, &x);
            let (mut key, mut value) = (vec![0.0; dim], vec![0.0; dim]);
            read_key(&geom, &k, slot, &mut key);
            read_value(&geom, &v, slot, &mut value);
            prop_assert_eq!(&key, &value);
            for (block, back) in x.chunks(QUANT_BLOCK).zip(key.chunks(QUANT_BLOCK)) {
                let largest = block.iter().fold(0f32, |m, x| m.max(x.abs()));
                for (&x, &back) in block.iter().zip(back) {
                    let allowed = allowed(kv_type, x, largest);
                    prop_assert!((x - back).abs() <= allowed, "{kv_type}: {back} for {x}, {allowed} allowed");
                }
            }
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let floats = [KvType::F32, KvType::F16];
        let of_floats =
            |geom: &PageGeometry| floats.contains(&geom.k_type) && floats.contains(&geom.v_type);
        for geom in geometries().filter(of_floats) {
            let mut k = vec![0xff; geom.k_bytes()];
            let mut v = vec![0xff; geom.v_bytes()];
            let key: Vec<f32> = (0..geom.head_dim).map(|d| d as f32 * 0.25 - 3.0).collect();
            let value: Vec<f32> = (0..geom.v_dim).map(|d| 7.0 - d as f32).collect();
            write_key(&geom, &mut k, 63, &key);
            write_value(&geom, &mut v, 17, &value);
            let mut key_back = vec![0.0; geom.head_dim];
            let mut value_back = vec![0.0; geom.v_dim];
            read_key(&geom, &k, 63, &mut key_back);
            read_value(&geom, &v, 17, &mut value_back);
            assert_eq!((key, value), (key_back, value_back));
        }
    }

    #[test]
    fn many_tokens_at_once_give_the_same_bits_as_one_by_one() {
        for isa in Isa::available() {
            for geom in geometries() {
                let stride = geom.head_dim.max(geom.v_dim) + 3;
                let data: Vec<f32> = (0..64 * stride)
                    .map(|i| ((i * 2_654_435_761) % 1_000_003) as f32 * 0.37 - 1.5e5)
                    .collect();
                let rows = StridedRows {
                    data: &data,
                    stride,
                };
                for (first, count) in [(0, 64), (0, 1), (5, 20), (63, 1), (16, 32), (3, 0)] {
                    let mut one = (vec![0xAB; geom.k_bytes()], vec![0xAB; geom.v_bytes()]);
                    let mut all = one.clone();
                    for i in 0..count {
                        write_key(&geom, &mut one.0, first + i, rows.row(i, geom.head_dim));
                        write_value(&geom, &mut one.1, first + i, rows.row(i, geom.v_dim));
                    }
                    let (k, v) = (&mut all.0, &mut all.1);
                    write_tokens(isa, &geom, k, v, first, count, rows, rows);
                    assert!(one == all, "{isa} {geom:?} {first} {count}");
                }
            }
        }
    }

    #[test]
    fn numbers_beyond_half_precision_are_clamped_and_nan_stays() {
        let geom = PageGeometry {
            head_dim: 4,
            v_dim: 1,
            k_type: KvType::F16,
            v_type: KvType::F16,
        };
        for isa in Isa::available() {
            let mut k = vec![0; geom.k_bytes()];
            let mut v = vec![0; geom.v_bytes()];
            let data = [1e9, -1e9, f32::NAN, 1.0];
            let rows = StridedRows {
                data: &data,
                stride: 4,
            };
            write_tokens(isa, &geom, &mut k, &mut v, 2, 1, rows, rows);
            let mut back = [0.0; 4];
            read_key(&geom, &k, 2, &mut back);
            assert_eq!(
                (back[0], back[1], back[3]),
                (LARGEST_F16, -LARGEST_F16, 1.0)
            );
            assert!(back[2].is_nan());
        }
    }
}
