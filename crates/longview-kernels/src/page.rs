//! A page: the keys and values of 64 tokens of one (layer, KV head), in the order attention reads.
//!
//! Keys are transposed, `[head_dim][64 tokens]`: a vector of scores has tokens as its lanes, so a
//! dot product needs no sum across lanes. Values are `[64 tokens][v_dim padded to 16]`: a vector of
//! outputs has channels as its lanes. Both are dense, in the element type of the geometry, with no
//! header; slots beyond the written tokens may hold any bits, for attention never lets them
//! contribute.

use half::f16;

use crate::Isa;
use crate::lanes::{self, Kernel, Lanes};

/// Tokens in a page.
pub const PAGE_TOKENS: usize = 64;

/// Value rows are padded to a multiple of this many channels.
pub const VALUE_PADDING: usize = 16;

/// The numeric form in which keys or values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvType {
    /// Single precision.
    F32,
    /// Half precision, rounded to nearest even; numbers beyond its range become its largest finite
    /// number, so that one outlier cannot turn a whole context into NaN.
    F16,
}

impl KvType {
    /// Bytes of `elements` stored numbers.
    pub fn bytes(self, elements: usize) -> usize {
        match self {
            KvType::F32 => elements * 4,
            KvType::F16 => elements * 2,
        }
    }
}

impl std::fmt::Display for KvType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
        })
    }
}

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

/// Rows of numbers inside a larger matrix: row `i` starts at `data[i * stride]`.
#[derive(Clone, Copy, Debug)]
pub struct StridedRows<'a> {
    /// The numbers, from the first row's first on.
    pub data: &'a [f32],
    /// Numbers from the start of a row to the start of the next.
    pub stride: usize,
}

impl PageGeometry {
    /// Numbers from one token's value to the next: `v_dim` padded to 16.
    pub fn v_stride(&self) -> usize {
        self.v_dim.next_multiple_of(VALUE_PADDING)
    }

    /// Bytes of a page's keys.
    pub fn k_bytes(&self) -> usize {
        self.k_type.bytes(self.head_dim * PAGE_TOKENS)
    }

    /// Bytes of a page's values.
    pub fn v_bytes(&self) -> usize {
        self.v_type.bytes(self.v_stride() * PAGE_TOKENS)
    }
}

impl<'a> StridedRows<'a> {
    /// Row `i`, `width` numbers of it.
    ///
    /// # Panics
    /// When the row does not lie inside `data`.
    pub fn row(&self, i: usize, width: usize) -> &'a [f32] {
        &self.data[i * self.stride..][..width]
    }
}

/// Writes the key of one token, `k [head_dim]`, to `slot` of a page.
///
/// # Panics
/// When a length or the slot does not fit the geometry.
pub fn write_key(geom: &PageGeometry, page_k: &mut [u8], slot: usize, k: &[f32]) {
    check(page_k.len(), geom.k_bytes(), slot, 1);
    assert_eq!(k.len(), geom.head_dim, "a key has head_dim numbers");
    for (d, &x) in k.iter().enumerate() {
        write_number(geom.k_type, page_k, d * PAGE_TOKENS + slot, x);
    }
}

/// Writes the value of one token, `v [v_dim]`, to `slot` of a page.
///
/// # Panics
/// When a length or the slot does not fit the geometry.
pub fn write_value(geom: &PageGeometry, page_v: &mut [u8], slot: usize, v: &[f32]) {
    check(page_v.len(), geom.v_bytes(), slot, 1);
    assert_eq!(v.len(), geom.v_dim, "a value has v_dim numbers");
    let padded = v
        .iter()
        .copied()
        .chain(std::iter::repeat(0.0))
        .take(geom.v_stride());
    for (d, x) in padded.enumerate() {
        write_number(geom.v_type, page_v, slot * geom.v_stride() + d, x);
    }
}

/// Writes the keys and values of `count` consecutive tokens from `first_slot` on; the same bits as
/// [`write_key`] and [`write_value`] token by token.
///
/// # Panics
/// When a length or a slot does not fit the geometry.
#[expect(
    clippy::too_many_arguments,
    reason = "two matrices, their pages and their place"
)]
pub fn write_tokens(
    isa: Isa,
    geom: &PageGeometry,
    page_k: &mut [u8],
    page_v: &mut [u8],
    first_slot: usize,
    count: usize,
    k: StridedRows<'_>,
    v: StridedRows<'_>,
) {
    check(page_k.len(), geom.k_bytes(), first_slot, count);
    check(page_v.len(), geom.v_bytes(), first_slot, count);
    if count > 0 {
        lanes::run(
            isa,
            WriteTokens {
                geom,
                page_k,
                page_v,
                first_slot,
                count,
                k,
                v,
            },
        );
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
        *x = read_number(geom.k_type, page_k, d * PAGE_TOKENS + slot);
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
        *x = read_number(geom.v_type, page_v, slot * geom.v_stride() + d);
    }
}

/// Number `index` of a page's keys or values.
pub(crate) fn read_number(kv_type: KvType, page: &[u8], index: usize) -> f32 {
    match kv_type {
        KvType::F32 => {
            let b = &page[index * 4..][..4];
            f32::from_le_bytes([b[0], b[1], b[2], b[3]])
        }
        KvType::F16 => f16::from_le_bytes([page[index * 2], page[index * 2 + 1]]).to_f32(),
    }
}

fn write_number(kv_type: KvType, page: &mut [u8], index: usize, x: f32) {
    match kv_type {
        KvType::F32 => page[index * 4..][..4].copy_from_slice(&x.to_le_bytes()),
        KvType::F16 => {
            let half = f16::from_f32(x.clamp(-LARGEST_F16, LARGEST_F16));
            page[index * 2..][..2].copy_from_slice(&half.to_le_bytes());
        }
    }
}

const LARGEST_F16: f32 = 65504.0;

fn check(len: usize, expected: usize, first_slot: usize, count: usize) {
    assert_eq!(len, expected, "a page's length follows from its geometry");
    assert!(
        first_slot + count <= PAGE_TOKENS,
        "a page has {PAGE_TOKENS} slots"
    );
}

struct WriteTokens<'a> {
    geom: &'a PageGeometry,
    page_k: &'a mut [u8],
    page_v: &'a mut [u8],
    first_slot: usize,
    count: usize,
    k: StridedRows<'a>,
    v: StridedRows<'a>,
}

impl Kernel for WriteTokens<'_> {
    type Output = ();

    fn scalar(self) {
        for i in 0..self.count {
            let slot = self.first_slot + i;
            write_key(
                self.geom,
                self.page_k,
                slot,
                self.k.row(i, self.geom.head_dim),
            );
            write_value(self.geom, self.page_v, slot, self.v.row(i, self.geom.v_dim));
        }
    }

    #[inline(always)]
    fn lanes<L: Lanes>(self, l: L) {
        let WriteTokens {
            geom,
            page_k,
            page_v,
            first_slot,
            count,
            k,
            v,
        } = self;
        let mut first = 0;
        while first < count {
            let tokens = (count - first).min(L::WIDTH);
            // Rows are cut once here, so that the loop over channels has nothing left to check.
            let mut rows = [&[][..]; 16];
            for (i, row) in rows[..tokens].iter_mut().enumerate() {
                *row = k.row(first + i, geom.head_dim);
            }
            for d in 0..geom.head_dim {
                let mut column = [0f32; 16];
                for (x, row) in column[..tokens].iter_mut().zip(&rows) {
                    *x = row[d];
                }
                let at = geom.k_type.bytes(d * PAGE_TOKENS + first_slot + first);
                let to = &mut page_k[at..][..geom.k_type.bytes(tokens)];
                write_vector(l, geom.k_type, to, &column);
            }
            first += tokens;
        }
        for i in 0..count {
            let row = v.row(i, geom.v_dim);
            let at = geom.v_type.bytes((first_slot + i) * geom.v_stride());
            let to = &mut page_v[at..][..geom.v_type.bytes(geom.v_stride())];
            for (to, from) in to
                .chunks_mut(geom.v_type.bytes(L::WIDTH))
                .zip(row.chunks(L::WIDTH).chain(std::iter::repeat(&[][..])))
            {
                let mut whole = [0f32; 16];
                whole[..from.len()].copy_from_slice(from);
                write_vector(l, geom.v_type, to, &whole);
            }
        }
    }
}

/// Writes as many of `numbers` as `to` has room for, at most a vector of them.
#[inline(always)]
fn write_vector<L: Lanes>(l: L, kv_type: KvType, to: &mut [u8], numbers: &[f32; 16]) {
    let v = l.load(numbers);
    let v = match kv_type {
        KvType::F32 => v,
        KvType::F16 => l.min(l.splat(LARGEST_F16), l.max(l.splat(-LARGEST_F16), v)),
    };
    let store = |p: *mut u8| match kv_type {
        // SAFETY: both callers below offer room for a whole vector of this type.
        KvType::F32 => unsafe { l.store_ptr(p.cast(), v) },
        // SAFETY: as above.
        KvType::F16 => unsafe { l.store_f16_ptr(p, v) },
    };
    if to.len() == kv_type.bytes(L::WIDTH) {
        store(to.as_mut_ptr());
    } else {
        let mut whole = [0u8; 64];
        store(whole.as_mut_ptr());
        to.copy_from_slice(&whole[..to.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometries() -> impl Iterator<Item = PageGeometry> {
        [(16, 16), (64, 64), (80, 72), (5, 1), (128, 33)]
            .into_iter()
            .flat_map(|(head_dim, v_dim)| {
                [
                    (KvType::F32, KvType::F16),
                    (KvType::F16, KvType::F32),
                    (KvType::F16, KvType::F16),
                ]
                .map(|(k_type, v_type)| PageGeometry {
                    head_dim,
                    v_dim,
                    k_type,
                    v_type,
                })
            })
    }

    #[test]
    fn what_is_written_is_read_back() {
        for geom in geometries() {
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
